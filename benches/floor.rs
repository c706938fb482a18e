//! The floor: what the kernel must do for one container and nothing else. Clone into new namespaces, mount an overlay, proc
//! and a small /dev, pivot into it, enter a cgroup, exec; wait; remove the cgroup and the upper directory.

use coracle::sys::process::Pointers;
use coracle::sys::{cstring, mount, process};
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

/// CLONE_NEWNS, NEWPID, NEWUTS, NEWIPC and NEWNET of sched.h.
const NAMESPACES: u64 = 0x0002_0000 | 0x2000_0000 | 0x0400_0000 | 0x0800_0000 | 0x4000_0000;

/// Median of `rounds`, in milliseconds.
pub fn median_ms(rounds: usize) -> Option<f64> {
    let dir = std::env::temp_dir().join(format!("coracle-floor-{}", std::process::id()));
    let lower = dir.join("lower");
    fs::create_dir_all(&lower).ok()?;
    crate::engine::unpack_root(&lower);
    let figures = (0..rounds).map(|round| crate::millis(|| run(&dir, &lower, round))).collect();
    fs::remove_dir_all(&dir).ok()?;
    Some(crate::median(figures))
}

/// The cgroup directories that one container gets, a v1 or v2 machine alike.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.join(name)];
    }
    let all = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(|dir| dir.is_dir() && !dir.is_symlink()).map(|dir| dir.join(name)).collect()
}

fn run(dir: &Path, lower: &Path, round: usize) {
    let (upper, work, merged) = (dir.join("upper"), dir.join("work"), dir.join("merged"));
    for made in [&upper, &work, &merged] {
        fs::create_dir_all(made).expect("our own directory");
    }
    let groups = cgroups(&format!("coracle-floor-{}-{round}", std::process::id()));
    for group in &groups {
        let _ = fs::create_dir(group);
        // A cpuset of v1 takes nobody before it has processors and memory.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Some(value) = group.parent().and_then(|parent| fs::read_to_string(parent.join(file)).ok()) {
                let _ = fs::write(group.join(file), value);
            }
        }
    }
    let options = format!("lowerdir={},upperdir={},workdir={},index=off,xino=off", lower.display(), upper.display(), work.display());
    let text = |text: &str| cstring(text).expect("no NUL");
    let (options, target) = (text(&options), text(merged.to_str().expect("UTF-8")));
    let member: Vec<PathBuf> =
        groups.iter().map(|group| if group.join("tasks").exists() { group.join("tasks") } else { group.join("cgroup.procs") }).collect();
    let arguments: Vec<CString> = vec![text("true")];
    let environment: Vec<CString> = vec![text("PATH=/bin")];
    let pid = match process::clone3(NAMESPACES, None, libc::SIGCHLD).expect("clone3") {
        Some((pid, _pidfd)) => pid,
        None => {
            // The child: straight down to the exec, or status 99.
            let deed = || -> std::io::Result<()> {
                for file in &member {
                    fs::write(file, "0")?;
                }
                mount::mount(None, c"/", None, libc::MS_SLAVE | libc::MS_REC, None)?;
                mount::mount(Some(c"overlay"), &target, Some(c"overlay"), 0, Some(&options))?;
                std::env::set_current_dir(&merged)?;
                mount::mount(Some(c"proc"), c"proc", Some(c"proc"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, None)?;
                mount::mount(Some(c"tmpfs"), c"dev", Some(c"tmpfs"), libc::MS_NOSUID, Some(c"mode=755,size=65536k"))?;
                mount::pivot_root(c".", c".")?;
                mount::umount2(c".", libc::MNT_DETACH)?;
                Ok(())
            };
            match deed() {
                Ok(()) => drop(process::execve(c"/bin/true", &Pointers::new(&arguments), &Pointers::new(&environment))),
                Err(e) => eprintln!("the floor: {e}"),
            }
            process::exit(99);
        }
    };
    let status = process::waitpid(pid, 0).expect("our child").map(|(_, status)| status.code());
    assert_eq!(status, Some(0), "the floor's own program failed");
    for group in &groups {
        let _ = fs::remove_dir(group);
    }
    let _ = fs::remove_dir_all(&upper);
    let _ = fs::remove_dir_all(&work);
}
