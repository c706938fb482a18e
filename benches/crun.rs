//! `crun run` of the same program from the same files, where crun is installed.

use std::fs;
use std::process::{Command, Stdio};

/// Median of `rounds`, in milliseconds.
pub fn median_ms(rounds: usize) -> Option<f64> {
    let program = crate::common::find_program("crun")?;
    let dir = std::env::temp_dir().join(format!("coracle-crun-{}", std::process::id()));
    let root = dir.join("rootfs");
    fs::create_dir_all(&root).ok()?;
    crate::engine::unpack_root(&root);
    let run = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).current_dir(&dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let prepared = run(&["spec"]) && {
        let path = dir.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap_or_default()).unwrap_or_default();
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = serde_json::json!(["/bin/true"]);
        config["root"]["readonly"] = true.into();
        fs::write(&path, config.to_string()).is_ok() && run(&["run", &format!("coracle-bench-{}-try", std::process::id())])
    };
    let result = prepared.then(|| {
        let name = |round: usize| format!("coracle-bench-{}-{round}", std::process::id());
        // A round that fails would be a fast one.
        crate::median((0..rounds).map(|round| crate::millis(|| assert!(run(&["run", &name(round)]), "crun failed"))).collect())
    });
    fs::remove_dir_all(&dir).ok()?;
    result
}
