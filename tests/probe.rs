//! The payload of test images: a static program that tells, from inside a container, what it was given.

use std::fs;
use std::io::{BufWriter, Write};

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("json") | None => println!("{}", report()),
        Some("lines") => lines(&args.next().unwrap_or_default()),
        Some("exit") => std::process::exit(args.next().and_then(|n| n.parse().ok()).unwrap_or(0)),
        Some("sleep") => loop {
            std::thread::park();
        },
        Some(other) => {
            eprintln!("probe: {other}?");
            std::process::exit(2);
        }
    }
}

/// Numbered lines of 100 bytes each until `bytes` have been written: a lost or torn one shows.
fn lines(bytes: &str) {
    let count = bytes.parse().unwrap_or(0u64) / 100;
    let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    for n in 0..count {
        if writeln!(out, "{n:012}{:->87}", "").is_err() {
            std::process::exit(1);
        }
    }
    if out.flush().is_err() {
        std::process::exit(1);
    }
}

/// What /proc/self says, as one JSON object.
fn report() -> serde_json::Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let status: serde_json::Map<_, _> = read("/proc/self/status")
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ").into()))
        .collect();
    let mut fds = serde_json::Map::new();
    for entry in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        if let Ok(target) = fs::read_link(entry.path()) {
            // The descriptor that reads this very directory is ours, not inherited.
            let target = target.to_string_lossy().into_owned();
            if !(target.starts_with("/proc/") && target.ends_with("/fd")) {
                fds.insert(entry.file_name().to_string_lossy().into_owned(), target.into());
            }
        }
    }
    let mounts: Vec<serde_json::Value> = read("/proc/self/mountinfo").lines().filter_map(mount).collect();
    let devices: Vec<String> =
        fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let environment: serde_json::Map<_, _> = std::env::vars().map(|(name, value)| (name, value.into())).collect();
    serde_json::json!({
        "status": status,
        "fds": fds,
        "mounts": mounts,
        "devices": devices,
        "env": environment,
        "args": std::env::args().collect::<Vec<_>>(),
        "cwd": std::env::current_dir().map(|d| d.to_string_lossy().into_owned()).unwrap_or_default(),
        "cgroup": read("/proc/self/cgroup").lines().collect::<Vec<_>>(),
        "limits": read("/proc/self/limits").lines().skip(1).collect::<Vec<_>>(),
        "stat": read("/proc/self/stat"),
        "hostname": read("/proc/sys/kernel/hostname").trim(),
        "oom_score_adj": read("/proc/self/oom_score_adj").trim(),
    })
}

/// One line of mountinfo (proc_pid_mountinfo(5)): target, options, type, source, superblock options.
fn mount(line: &str) -> Option<serde_json::Value> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    Some(serde_json::json!({
        "root": left.get(3)?, "target": left.get(4)?, "options": left.get(5)?, "propagation": left.get(6..)?,
        "type": right.first()?, "source": right.get(1)?, "super": right.get(2)?,
    }))
}
