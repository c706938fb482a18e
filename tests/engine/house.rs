//! The house around the program: what is installed, what the man page says, what the command line refuses.

use crate::common::World;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Every long flag in a text.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 3).map(str::to_owned).collect()
}

fn coracle(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_coracle")).args(args).output().expect("our binary");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn the_man_page_lists_the_flags_that_help_lists() {
    let (code, help) = coracle(&["daemon", "--help"]);
    assert_eq!(code, 0, "{help}");
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/coracle.8")).expect("the man page");
    let documented = flags(&page.replace("\\-", "-").replace("\\fB", " ").replace("\\fR", " "));
    let missing: Vec<String> = flags(&help).difference(&documented).filter(|flag| *flag != "--help").cloned().collect();
    assert!(missing.is_empty(), "man/coracle.8 lacks {missing:?}");
}

#[test]
fn the_command_line_is_strict() {
    assert_eq!(coracle(&["--version"]).0, 0);
    for args in
        [&["nonsense"][..], &["daemon", "--nonsense"], &["daemon", "--data-root"], &["daemon", "-H", "gopher://x"], &["daemon", "extra"]]
    {
        let (code, text) = coracle(args);
        assert!(code != 0 && !text.is_empty(), "{args:?}: {code} {text}");
    }
    let world = World::new();
    let (code, text) = coracle(&["daemon", "--log-level", "loud", "--data-root", world.data_root.to_str().expect("UTF-8")]);
    assert!(code != 0 && text.contains("loud"), "{code} {text}");
}

#[test]
fn the_binary_is_static() {
    let bytes = std::fs::read(env!("CARGO_BIN_EXE_coracle")).expect("our binary");
    assert!(!bytes.windows(15).any(|window| window == b"/ld-linux-x86-6" || window == b"/ld-linux-aarch"), "it names a dynamic loader");
}

#[test]
fn install_puts_everything_below_destdir_and_uninstall_takes_it_back() {
    let world = World::new();
    let (stage, built) = (world.path("stage"), world.path("coracle"));
    std::fs::copy(env!("CARGO_BIN_EXE_coracle"), &built).expect("the world can be written");
    let make = |target: &str| {
        let mut command = Command::new("make");
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-s", target, "PREFIX=/usr"]);
        command.arg(format!("DESTDIR={}", stage.display())).arg(format!("BINARY={}", built.display()));
        let output = command.output().expect("make");
        assert!(output.status.success(), "make {target}: {}", String::from_utf8_lossy(&output.stderr));
    };
    make("install");
    for path in [
        "usr/bin/coracle",
        "usr/share/man/man8/coracle.8",
        "usr/lib/systemd/system/coracle.service",
        "usr/share/bash-completion/completions/coracle",
    ] {
        assert!(stage.join(path).is_file(), "{path} is not installed");
    }
    let unit = std::fs::read_to_string(stage.join("usr/lib/systemd/system/coracle.service")).expect("the unit");
    assert!(unit.contains("ExecStart=/usr/bin/coracle daemon"), "{unit}");
    make("uninstall");
    let left: Vec<_> = crate::common::leftovers::files(&stage).into_iter().filter(|path| path.is_file()).collect();
    assert!(left.is_empty(), "{left:?}");
}
