//! The deeds, tried on the host's own cgroups: each test has a parent of its own and takes it away again.
//!
//! They need root and writable cgroups, and say so where they are skipped. The same tests hold on v1 and on v2.

use super::devices::{self, Devices};
use super::{Cgroup, Cgroups, Driver, plan};
use crate::container::config::{DeviceMapping, HostConfig, Resources};
use crate::error::Result;
use crate::sys::process::{self, ExitStatus, Pid};
use crate::sys::{fd, poll};
use std::fs;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A parent directory of this test's own in every tree.
struct World {
    cgroups: Cgroups,
    parent: String,
    made: Vec<String>,
}

impl World {
    fn new() -> Option<World> {
        let parent = format!("/coracle-unit-{}-{}", process::getpid(), NEXT.fetch_add(1, Ordering::Relaxed));
        if process::geteuid() != 0 {
            eprintln!("skipped: needs root");
            return None;
        }
        match Cgroups::open(Driver::Cgroupfs, &parent) {
            Ok(mut cgroups) => {
                let writable = make(&mut cgroups, "probe", &Resources::default(), &Devices::All);
                match writable {
                    Ok(mut probe) => {
                        probe.remove().unwrap();
                        Some(World { cgroups, parent, made: Vec::new() })
                    }
                    Err(e) => {
                        eprintln!("skipped: cgroups are not writable: {e}");
                        None
                    }
                }
            }
            Err(e) => {
                eprintln!("skipped: {e}");
                None
            }
        }
    }

    fn cgroup(&mut self, id: &str, resources: &Resources, devices: &Devices) -> Cgroup {
        let cgroup = make(&mut self.cgroups, id, resources, devices).unwrap();
        self.made.push(cgroup.path());
        cgroup
    }

    fn supports(&self, has: impl Fn(&super::Support) -> bool, what: &str) -> bool {
        let has = has(&self.cgroups.facts().support);
        if !has {
            eprintln!("skipped: no {what} here");
        }
        has
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for path in &self.made {
            let Ok(Some(mut cgroup)) = self.cgroups.reopen(path) else { continue };
            let _ = cgroup.thaw();
            let _ = cgroup.kill_all();
            wait_until(|| cgroup.remove().is_ok());
        }
        for tree in &self.cgroups.facts().hierarchy.trees {
            let _ = fs::remove_dir(format!("{}{}{}", tree.point, self.cgroups.facts().hierarchy.base, self.parent));
        }
    }
}

fn make(cgroups: &mut Cgroups, id: &str, resources: &Resources, devices: &Devices) -> Result<Cgroup> {
    let plan = plan(cgroups.facts(), id, resources, devices, &devices::numbers)?;
    cgroups.create(&plan)
}

/// Waits for what the kernel does in its own time; ten seconds are for a loaded machine.
fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > Duration::from_secs(10) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Runs `work` in a child inside the cgroup; its result is the exit code.
fn spawn(cgroup: &Cgroup, work: impl FnOnce() -> i32) -> Pid {
    let join = cgroup.join(None).unwrap();
    match process::fork().unwrap() {
        Some(pid) => pid,
        None => {
            let joined = join.files.iter().all(|file| fd::write(file.as_fd(), b"0").is_ok());
            process::exit(if joined { work() } else { 99 })
        }
    }
}

fn status(pid: Pid) -> ExitStatus {
    process::waitpid(pid, 0).unwrap().unwrap().1
}

fn sleeper(cgroup: &Cgroup) -> Pid {
    spawn(cgroup, || {
        loop {
            std::thread::sleep(Duration::from_millis(5));
        }
    })
}

#[test]
fn a_memory_hog_is_killed_and_counted() {
    let Some(mut world) = World::new() else { return };
    if !world.supports(|s| s.memory_limit, "memory limit") {
        return;
    }
    let limit = 16 << 20;
    let cgroup = world.cgroup("hog", &Resources { memory: limit, memory_swap: limit, ..Resources::default() }, &Devices::with(&[]));
    let (before, watch) = (cgroup.oom_kills().unwrap(), cgroup.watch_oom().unwrap());
    assert!(!cgroup.oom_killed_since(before));
    let pid = spawn(&cgroup, || {
        let hoard = vec![7u8; 64 << 20];
        i32::from(hoard[hoard.len() / 2])
    });
    assert_eq!(status(pid), ExitStatus::Signal(libc::SIGKILL));
    assert!(cgroup.oom_killed_since(before));
    let mut ready = [libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&watch.fd()), events: watch.events(), revents: 0 }];
    assert_eq!(poll::poll(&mut ready, 5000).unwrap(), 1);
    watch.acknowledge().unwrap();
    assert_eq!(poll::poll(&mut ready, 0).unwrap(), 0, "acknowledged");
    assert!(cgroup.stats().unwrap().memory.unwrap().limit == 16 << 20);
}

#[test]
fn a_fork_bomb_meets_its_limit() {
    let Some(mut world) = World::new() else { return };
    if !world.supports(|s| s.pids_limit, "pids limit") {
        return;
    }
    let cgroup = world.cgroup("bomb", &Resources { pids_limit: Some(4), ..Resources::default() }, &Devices::with(&[]));
    let pid = spawn(&cgroup, || {
        let mut children = 0;
        loop {
            match process::fork() {
                Ok(Some(_)) => children += 1,
                Ok(None) => std::thread::sleep(Duration::from_secs(30)),
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => return children,
                Err(_) => return 98,
            }
            if children > 20 {
                return children;
            }
        }
    });
    assert_eq!(status(pid), ExitStatus::Code(3));
    assert_eq!(cgroup.processes().unwrap().len(), 3);
    assert_eq!(cgroup.stats().unwrap().pids.unwrap().limit, 4);
    cgroup.kill_all().unwrap();
    assert!(wait_until(|| !cgroup.is_populated().unwrap()));
}

#[test]
fn a_denied_device_cannot_be_opened_and_a_given_one_can() {
    let Some(mut world) = World::new() else { return };
    // kmsg (c 1:11): nobody's default, readable for root where nothing denies it.
    if fs::File::open("/dev/kmsg").is_err() {
        eprintln!("skipped: /dev/kmsg can't be opened even outside");
        return;
    }
    let open = || match fs::File::open("/dev/null").and(fs::File::open("/dev/kmsg")) {
        Ok(_) => 0,
        Err(e) => e.raw_os_error().unwrap_or(97),
    };
    let fenced = world.cgroup("fenced", &Resources::default(), &Devices::with(&[]));
    assert_eq!(status(spawn(&fenced, open)), ExitStatus::Code(libc::EPERM));
    let mut host = HostConfig::default();
    host.resources.devices = Some(vec![DeviceMapping {
        path_on_host: "/dev/kmsg".into(),
        path_in_container: "/dev/kmsg".into(),
        cgroup_permissions: "r".into(),
    }]);
    let (_, given) = devices::gather(&host).unwrap();
    let given = world.cgroup("given", &Resources::default(), &given);
    assert_eq!(status(spawn(&given, open)), ExitStatus::Code(0));
    let write = || i32::from(fs::OpenOptions::new().write(true).open("/dev/kmsg").is_ok());
    assert_eq!(status(spawn(&given, write)), ExitStatus::Code(0), "given to read, not to write");
    let privileged = world.cgroup("privileged", &Resources::default(), &Devices::All);
    assert_eq!(status(spawn(&privileged, open)), ExitStatus::Code(0));
}

#[test]
fn a_cpu_quota_throttles() {
    let Some(mut world) = World::new() else { return };
    if !world.supports(|s| s.cpu_cfs, "CFS quota") {
        return;
    }
    let cgroup = world.cgroup("slow", &Resources { nano_cpus: 100_000_000, ..Resources::default() }, &Devices::with(&[]));
    let pid = spawn(&cgroup, || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            std::hint::spin_loop();
        }
        0
    });
    assert_eq!(status(pid), ExitStatus::Code(0));
    let cpu = cgroup.stats().unwrap().cpu.unwrap();
    assert!(cpu.throttled_periods > 0 && cpu.throttled_time > 0, "{cpu:?}");
    assert!(cpu.total > 0 && cpu.total < 300_000_000, "{cpu:?}");
}

#[test]
fn frozen_processes_stand_still_and_go_on() {
    let Some(mut world) = World::new() else { return };
    let mut cgroup = world.cgroup("ice", &Resources::default(), &Devices::with(&[]));
    let pid = sleeper(&cgroup);
    assert!(wait_until(|| cgroup.processes().unwrap() == [pid]));
    assert_eq!(cgroup.remove().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "a process is in it");
    cgroup.freeze().unwrap();
    assert!(wait_until(|| cgroup.is_frozen().unwrap()));
    let used = cgroup.stats().unwrap().cpu.unwrap().total;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(cgroup.stats().unwrap().cpu.unwrap().total, used);
    cgroup.thaw().unwrap();
    assert!(!cgroup.is_frozen().unwrap());
    cgroup.kill_all().unwrap();
    assert_eq!(status(pid), ExitStatus::Signal(libc::SIGKILL));
    assert!(wait_until(|| !cgroup.is_populated().unwrap()));
    assert!(wait_until(|| cgroup.remove().is_ok()));
    assert!(cgroup.read("memory", "memory.stat").is_err());
}

#[test]
fn limits_change_while_it_runs_and_refusals_change_nothing() {
    let Some(mut world) = World::new() else { return };
    if !world.supports(|s| s.memory_limit && s.pids_limit && s.cpuset, "memory, pids or cpuset limit") {
        return;
    }
    let v2 = world.cgroups.facts().hierarchy.version.is_v2();
    let old = Resources { memory: 32 << 20, memory_swap: 64 << 20, pids_limit: Some(10), ..Resources::default() };
    let mut cgroup = world.cgroup("living", &old, &Devices::with(&[]));
    let pid = sleeper(&cgroup);
    assert!(wait_until(|| cgroup.processes().unwrap() == [pid]));
    let new = Resources { memory: 128 << 20, memory_swap: 256 << 20, pids_limit: Some(20), cpuset_cpus: "0".into(), ..old.clone() };
    cgroup.update(&old, &new).unwrap();
    let stats = cgroup.stats().unwrap();
    assert_eq!((stats.memory.unwrap().limit, stats.pids.unwrap().limit), (128 << 20, 20));
    assert_eq!(cgroup.read("cpuset", "cpuset.cpus").unwrap().trim(), "0");
    assert_eq!(cgroup.read("cpuset", "cgroup.procs").unwrap().trim(), pid.to_string(), "moved into the late tree");
    let wrong = Resources { memory: 64 << 20, memory_swap: 128 << 20, cpuset_cpus: "4000".into(), ..new.clone() };
    let refused = cgroup.update(&new, &wrong).unwrap_err();
    assert!(refused.message.contains("cpuset.cpus"), "{refused}");
    assert_eq!(cgroup.stats().unwrap().memory.unwrap().limit, 128 << 20, "put back");
    cgroup.update(&new, &Resources { memory: 16 << 20, memory_swap: 32 << 20, ..new.clone() }).unwrap();
    let swap = if v2 { cgroup.read("memory", "memory.swap.max") } else { cgroup.read("memory", "memory.memsw.limit_in_bytes") };
    if let Ok(swap) = swap {
        assert_eq!(swap.trim().parse(), Ok(if v2 { 16 << 20 } else { 32 << 20 }));
    }
    cgroup.kill_all().unwrap();
    status(pid);
}

#[test]
fn it_is_found_again_by_its_path_and_removed_with_all_below() {
    let Some(mut world) = World::new() else { return };
    let made = world.cgroup("again", &Resources::default(), &Devices::with(&[]));
    let inner = made.host_path("memory").unwrap();
    fs::create_dir_all(format!("{inner}/a/b")).unwrap();
    fs::create_dir_all(format!("{inner}/c")).unwrap();
    let path = made.path();
    drop(made);
    let parent = world.parent.clone();
    let mut other = Cgroups::open(Driver::Cgroupfs, &parent).unwrap();
    let mut found = other.reopen(&path).unwrap().unwrap();
    assert_eq!((found.path(), found.host_path("memory").unwrap()), (path.clone(), inner));
    found.remove().unwrap();
    assert!(other.reopen(&path).unwrap().is_none());
    assert!(other.reopen("/a/../b").is_err());
}

#[test]
fn a_left_over_directory_gives_way_to_a_new_start() {
    let Some(mut world) = World::new() else { return };
    let old = world.cgroup("twice", &Resources { pids_limit: Some(5), ..Resources::default() }, &Devices::with(&[]));
    assert_eq!(old.read("pids", "pids.max").unwrap().trim(), "5");
    let new = world.cgroup("twice", &Resources::default(), &Devices::with(&[]));
    assert_eq!(new.read("pids", "pids.max").unwrap().trim(), "max");
    let pid = sleeper(&new);
    assert!(wait_until(|| new.is_populated().unwrap()));
    assert!(make(&mut world.cgroups, "twice", &Resources::default(), &Devices::All).is_err(), "not while something lives there");
    new.kill_all().unwrap();
    status(pid);
}

/// The systemd driver's order of things: the process, the unit around it, the plan's files; then an update, and the unit's end.
#[test]
fn a_systemd_scope_holds_limits_and_goes() {
    let systemd = fs::symlink_metadata("/run/systemd/system").is_ok() && process::geteuid() == 0;
    if !systemd {
        eprintln!("skipped: systemd does not run here");
        return;
    }
    let mut cgroups = Cgroups::open(Driver::Systemd, "").unwrap();
    let id = format!("coracletest{}", process::getpid());
    let resources = Resources { memory: 64 << 20, memory_swap: 64 << 20, pids_limit: Some(9), cpu_shares: 512, ..Resources::default() };
    let plan = plan(cgroups.facts(), &id, &resources, &Devices::with(&[]), &devices::numbers).unwrap();
    let scope = plan.scope.clone().unwrap();
    let (gate, go) = fd::pipe2(0).unwrap();
    let Some(pid) = process::fork().unwrap() else {
        drop(go);
        let mut word = [0];
        let _ = fd::read(gate.as_fd(), &mut word);
        // Opening is denied by the program that was attached meanwhile.
        let denied = fs::File::open("/dev/kmsg").err().and_then(|e| e.raw_os_error()) == Some(libc::EPERM);
        if !denied {
            process::exit(1);
        }
        loop {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    drop(gate);
    let mut bus = super::Bus::connect().unwrap();
    bus.start_scope(&scope, pid).unwrap();
    let mut cgroup = cgroups.create(&plan).unwrap();
    assert_eq!(cgroup.path(), format!("/system.slice/docker-{id}.scope"));
    assert!(fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().contains(&cgroup.path()));
    assert!(cgroups.facts().support.memory_limit && cgroups.facts().support.swap_limit, "{:?}", cgroups.facts().support);
    drop(go);
    let stats = cgroup.stats().unwrap();
    assert_eq!((stats.memory.unwrap().limit, stats.pids.unwrap().limit), (64 << 20, 9));
    let more = Resources { memory: 128 << 20, memory_swap: 128 << 20, pids_limit: Some(19), ..resources.clone() };
    cgroup.update(&resources, &more).unwrap();
    bus.set_properties(&scope.name, &super::systemd::limits(cgroups.facts().hierarchy.version.is_v2(), &more)).unwrap();
    assert_eq!(cgroup.stats().unwrap().memory.unwrap().limit, 128 << 20);
    let reload = std::process::Command::new("systemctl").arg("daemon-reload").status();
    if reload.is_ok() {
        let stats = cgroup.stats().unwrap();
        assert_eq!((stats.memory.unwrap().limit, stats.pids.unwrap().limit), (128 << 20, 19), "kept through a reload");
    }
    assert_eq!(cgroup.processes().unwrap(), [pid]);
    assert!(process::waitpid(pid, libc::WNOHANG).unwrap().is_none(), "the device was denied, so it still runs");
    bus.stop(&scope.name).unwrap();
    assert!(matches!(status(pid), ExitStatus::Signal(_)));
    assert!(wait_until(|| cgroups.reopen(&plan.path()).unwrap().is_none()));
    bus.stop(&scope.name).unwrap();
}

#[test]
fn realtime_is_passed_down_from_the_daemons_share() {
    let Some(mut world) = World::new() else { return };
    if !world.supports(|s| s.cpu_realtime, "realtime limit") {
        return;
    }
    let asked = Resources { cpu_realtime_period: 1_000_000, cpu_realtime_runtime: 500, ..Resources::default() };
    let refused = make(&mut world.cgroups, "early", &asked, &Devices::with(&[]));
    assert!(refused.is_err(), "the parent has none to give");
    world.cgroups.set_realtime(1_000_000, 1_000).unwrap();
    let cgroup = world.cgroup("late", &asked, &Devices::with(&[]));
    assert_eq!(cgroup.read("cpu", "cpu.rt_runtime_us").unwrap().trim(), "500");
}

#[test]
fn a_refused_plan_leaves_nothing_behind() {
    let Some(mut world) = World::new() else { return };
    let wrong = Resources { cpuset_cpus: "4000".into(), ..Resources::default() };
    let refused = make(&mut world.cgroups, "wrong", &wrong, &Devices::with(&[])).unwrap_err();
    assert!(refused.message.contains("write cpuset.cpus"), "{refused}");
    let path = format!("{}{}/wrong", world.cgroups.facts().hierarchy.base, world.parent);
    assert!(world.cgroups.reopen(&path).unwrap().is_none());
}
