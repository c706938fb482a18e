//! AppArmor: whether the host has it, which profile a container gets, and our default profile's text.
//!
//! The kernel takes compiled policy only, so loading needs the host's `apparmor_parser`, run as a helper with the
//! text on its stdin. Where it is missing the daemon says so; a container that needs the profile then does not start.

use crate::error::{Error, Result};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Docker's name for it, which tools and policies refer to.
pub const DEFAULT_PROFILE: &str = "docker-default";

/// No profile, asked for by name.
pub const UNCONFINED: &str = "unconfined";

/// The kernel's list of loaded profiles, one "name (mode)" a line.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// The host's policy fragments.
const FRAGMENTS: &str = "/etc/apparmor.d";

/// Bytes read of a list or a word from the kernel.
const MAX_LIST: u64 = 1 << 20;

/// Whether the kernel confines by AppArmor and its file system is there to steer it. Not so inside a container whose
/// runtime says so (`container` in the environment): profiles are not namespaced there.
pub fn host_supports() -> bool {
    Path::new("/sys/kernel/security/apparmor").is_dir()
        && std::env::var_os("container").is_none_or(|value| value.is_empty())
        && read_small("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// The profile of a container: its own choice, else by its kind.
pub fn profile_for(option: Option<&str>, privileged: bool) -> &str {
    match option {
        Some(chosen) => chosen,
        None if privileged => UNCONFINED,
        None => DEFAULT_PROFILE,
    }
}

/// Whether the kernel has a profile of this name.
///
/// # Errors
/// System, when the list cannot be read.
pub fn is_loaded(name: &str) -> Result<bool> {
    let list = read_small(LOADED).map_err(|e| Error::io(format!("open {LOADED}"), &e))?;
    Ok(lists(&list, name))
}

fn lists(list: &str, name: &str) -> bool {
    // A name may have blanks itself; the mode in parentheses is the last word.
    list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(loaded, _)| loaded == name))
}

/// How to load [`default_profile`]: a helper's arguments; the text goes to its stdin. `None`: this host has no
/// `apparmor_parser`.
pub fn load_command() -> Option<Vec<String>> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let parser = places.iter().map(|dir| format!("{dir}/apparmor_parser")).find(|path| Path::new(path).is_file())?;
    // Replace what is loaded; keep no compiled copy, as /etc may be read-only.
    Some(vec![parser, "--replace".into(), "--skip-cache".into()])
}

/// Loads the default profile: runs [`load_command`], blocking.
///
/// # Errors
/// System, with what the parser said.
pub fn load() -> Result<()> {
    let failed = |what: &str| {
        Error::system(format!("AppArmor enabled on system but the {DEFAULT_PROFILE} profile could not be loaded: {}", what.trim()))
    };
    let command = load_command().ok_or_else(|| failed("apparmor_parser is not installed"))?;
    let (program, arguments) = command.split_first().ok_or_else(|| failed("no parser"))?;
    let mut parser = Command::new(program);
    parser.args(arguments).env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = parser.spawn().map_err(|e| failed(&e.to_string()))?;
    // A parser that does not read tells why on its way out.
    let _ = child.stdin.take().map(|mut input| input.write_all(default_profile().as_bytes()));
    let output = child.wait_with_output().map_err(|e| failed(&e.to_string()))?;
    if output.status.success() { Ok(()) } else { Err(failed(&String::from_utf8_lossy(&output.stderr))) }
}

/// What the container's child writes before execve so that the new program is confined: the file, tried in this
/// order (the second before Linux 5.8), and the text. `None` for [`UNCONFINED`], which every process is by itself.
pub fn exec_attribute(profile: &str) -> Option<([&'static std::ffi::CStr; 2], Vec<u8>)> {
    let files = [c"/proc/thread-self/attr/apparmor/exec", c"/proc/thread-self/attr/exec"];
    (profile != UNCONFINED).then(|| (files, format!("exec {profile}").into_bytes()))
}

/// The default profile for this host, in AppArmor's language.
pub fn default_profile() -> String {
    let has = |fragment: &str| Path::new(FRAGMENTS).join(fragment).is_file();
    // "name (mode)", or "unconfined" alone.
    let own = read_small("/proc/self/attr/apparmor/current").or_else(|_| read_small("/proc/self/attr/current")).unwrap_or_default();
    let own = own.split(' ').next().unwrap_or_default().trim_matches(|c: char| c.is_whitespace() || c == '\0');
    let daemon = if own.is_empty() || own.contains(['"', ',', '{', '}', '#']) { UNCONFINED } else { own };
    text(&Host { abi: has("abi/3.0"), tunables: has("tunables/global"), base: has("abstractions/base"), daemon })
}

/// What the text depends on.
struct Host<'a> {
    /// The host's parser knows feature sets. With that of AppArmor 4 `network` would not cover Unix sockets.
    abi: bool,
    tunables: bool,
    base: bool,
    /// The profile that our daemon runs under.
    daemon: &'a str,
}

fn text(host: &Host) -> String {
    let abi = if host.abi { "abi <abi/3.0>,\n" } else { "" };
    let tunables = if host.tunables { "#include <tunables/global>\n" } else { "@{PROC}=/proc/\n" };
    let base = if host.base { "  #include <abstractions/base>\n" } else { "" };
    let daemon = host.daemon;
    format!(
        "{abi}{tunables}
profile {DEFAULT_PROFILE} flags=(attach_disconnected,mediate_deleted) {{
{base}
  network,
  capability,
  file,
  umount,

  # The kernel's ciphers have served to get out of containers; programs do without.
  deny network alg,

  # Signals from the host and from the daemon (stop, kill), and among the container's own processes.
  signal (receive) peer=unconfined,
  signal (receive) peer={daemon},
  signal (send,receive) peer={DEFAULT_PROFILE},

  # /proc: a process's own directory is writable, and of /proc/sys only kernel/shm*.
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,

  deny mount,

  # /sys: nothing but the cgroup file systems.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,

  # Debuggers, and ps, within the container.
  ptrace (trace,read,tracedby,readby) peer={DEFAULT_PROFILE},
}}
"
    )
}

fn read_small(path: &str) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_LIST).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_by_choice_and_kind() {
        let cases =
            [(None, false, DEFAULT_PROFILE), (None, true, UNCONFINED), (Some("mine"), true, "mine"), (Some(UNCONFINED), false, UNCONFINED)];
        for (option, privileged, profile) in cases {
            assert_eq!(profile_for(option, privileged), profile);
        }
        assert_eq!(exec_attribute(UNCONFINED), None);
        assert_eq!(exec_attribute("x y").unwrap().1, b"exec x y");
    }

    #[test]
    fn reads_the_kernels_list() {
        let list = "docker-default-2 (enforce)\n/usr/bin/man (complain)\na b (enforce)\n";
        assert!(lists(list, "/usr/bin/man") && lists(list, "a b"));
        assert!(!lists(list, "docker-default") && !lists(list, "b") && !lists("", ""));
    }

    /// By the host's own parser, where there is one: it compiles, with and without the host's fragments.
    #[test]
    fn the_text_compiles() {
        let Some(command) = load_command() else { return };
        let bare = Host { abi: false, tunables: false, base: false, daemon: "/usr/bin/coracle" };
        for text in [default_profile(), text(&bare)] {
            let mut parser = Command::new(&command[0])
                .args(["--skip-kernel-load", "--skip-cache", "--skip-read-cache"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let output = parser.wait_with_output().unwrap();
            assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
