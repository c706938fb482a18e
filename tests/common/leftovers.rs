//! What a daemon may have left behind: processes, mounts, cgroups, sockets, staging files.

use super::World;
use coracle::sys::process::kill;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Fails unless nothing of the world's daemon and its containers is left on the machine.
/// Containers that exist stay on disk; what is unfinished may not.
#[track_caller]
pub fn assert_nothing_left(world: &World) {
    let left = everything(world);
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
}

/// What is left, in words.
pub fn everything(world: &World) -> Vec<String> {
    let mut left = Vec::new();
    for pid in processes(world) {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        left.push(format!("process {pid}: {}", String::from_utf8_lossy(&command).replace('\0', " ")));
    }
    left.extend(mounts(world).into_iter().map(|line| format!("mount: {line}")));
    left.extend(cgroups(world).into_iter().map(|dir| format!("cgroup: {}", dir.display())));
    for path in [&world.socket, &world.pid_file] {
        if path.exists() {
            left.push(format!("file: {}", path.display()));
        }
    }
    left.extend(staging(world).into_iter().map(|path| format!("staging: {}", path.display())));
    left
}

/// Processes in the world's cgroups, and those that carry the world's directory on their command line.
pub fn processes(world: &World) -> Vec<i32> {
    // With its slash: world 4 is not world 44.
    let needle = format!("{}/", world.dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let in_cgroup = fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|text| is_in_world(&text, world));
        let in_command = fs::read(entry.path().join("cmdline")).is_ok_and(|text| String::from_utf8_lossy(&text).contains(&needle));
        // A zombie has neither memory nor descriptors; its parent may be slow.
        let dead = fs::read_to_string(entry.path().join("stat")).is_ok_and(|text| text.contains(") Z "));
        if (in_cgroup || in_command) && !dead {
            found.push(pid);
        }
    }
    found
}

/// A cgroup path of the world's: `/coracle-test-1-2` or below it, and not `/coracle-test-1-20`.
fn is_in_world(cgroup: &str, world: &World) -> bool {
    cgroup.lines().any(|line| line.split('/').any(|part| part == world.name))
}

/// Mounts of this namespace that touch the world's directory.
pub fn mounts(world: &World) -> Vec<String> {
    let needle = format!("{}/", world.dir.display());
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter(|line| line.contains(&needle)).map(str::to_owned).collect()
}

/// The world's cgroup directories, in every hierarchy.
pub fn cgroups(world: &World) -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    roots.into_iter().map(|root| root.join(&world.name)).filter(|dir| dir.is_dir()).collect()
}

/// Unfinished content in the data root.
pub fn staging(world: &World) -> Vec<PathBuf> {
    fs::read_dir(world.data_root.join("staging")).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Every file below a directory, by name; nothing is followed.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()));
        }
        found.push(entry.path());
    }
    found.sort();
    found
}

/// For the end of a failed test: kills what runs, unmounts, removes cgroups.
pub fn end_everything(world: &World) {
    let end = Instant::now() + Duration::from_secs(10);
    while let processes = processes(world)
        && !processes.is_empty()
        && Instant::now() < end
    {
        for pid in processes {
            let _ = kill(pid, libc::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for line in mounts(world) {
        if let Some(target) = line.split(' ').nth(4).and_then(|target| coracle::sys::cstring(target).ok()) {
            let _ = coracle::sys::mount::umount2(&target, libc::MNT_DETACH);
        }
    }
    for dir in cgroups(world) {
        remove_cgroup(&dir);
    }
}

/// Removes a cgroup and those below it, deepest first.
fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}
