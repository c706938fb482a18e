//! A world for tests that start real processes in real namespaces, each in a forked child of its own (libtest's threads must not clone).

use super::config::{Config, HostConfig};
use super::exec_launch::launch_exec;
use super::launch::{Launched, launch};
use super::plan::{Container, ExecPlan, LaunchPlan, Member, Network, Own, Placement, PlanInput, RootInput, Seccomp};
use super::plan_mounts::MountInput;
use super::plan_process::ExecInput;
use super::report::{Failure, Report};
use crate::sys;
use crate::sys::process::ExitStatus;
use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

/// A data root with one busybox layer.
pub(super) struct World {
    pub(super) path: PathBuf,
    pub(super) config: Config,
    pub(super) host: HostConfig,
    pub(super) argv: Vec<String>,
    /// What runs when there is no `argv`.
    program: String,
    pub(super) mounts: Vec<MountInput>,
    pub(super) init: PathBuf,
    pub(super) layers: Vec<PathBuf>,
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
    pub(super) own: Own,
}

impl World {
    fn new(path: PathBuf) -> World {
        for dir in ["init", "layer/bin", "upper", "work", "layer/etc"] {
            std::fs::create_dir_all(path.join(dir)).expect("the temporary directory is writable");
        }
        std::fs::copy("/usr/bin/busybox", path.join("layer/bin/busybox")).expect("busybox-static is installed");
        for applet in
            ["true", "sh", "cat", "id", "ls", "pwd", "env", "mount", "tty", "stat", "readlink", "touch", "sleep", "grep", "hostname"]
        {
            std::os::unix::fs::symlink("busybox", path.join("layer/bin").join(applet)).expect("a fresh directory");
        }
        std::fs::write(path.join("layer/etc/passwd"), "root:x:0:0::/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n").expect("writable");
        std::fs::write(path.join("layer/etc/group"), "root:x:0:\nbob:x:1001:\nextra:x:50:bob\n").expect("writable");
        super::rootfs::fill_init_layer(std::fs::File::open(path.join("init")).expect("just made").as_fd()).expect("an empty layer");
        let config = Config { hostname: "test".into(), ..Config::default() };
        let (init, layers, upper, work) = (path.join("init"), vec![path.join("layer")], path.join("upper"), path.join("work"));
        let (host, own) = (HostConfig::default(), Own::read());
        World { path, config, host, argv: Vec::new(), program: "/bin/true".into(), mounts: Vec::new(), init, layers, upper, work, own }
    }

    pub(super) fn plan(&self) -> LaunchPlan {
        LaunchPlan::new(&self.input()).expect("a valid plan")
    }

    pub(super) fn input(&self) -> PlanInput<'_> {
        PlanInput {
            container: self.container(),
            argv: if self.argv.is_empty() { std::slice::from_ref(&self.program) } else { &self.argv },
            root: RootInput { init_layer: &self.init, layers: &self.layers, upper: &self.upper, work: &self.work },
            mounts: &self.mounts,
            hostname_file: None,
            hosts_file: None,
            resolv_file: None,
            network: Network::Private,
            netlink: Vec::new(),
            pid_of: None,
            ipc_of: None,
            private_cgroupns: true,
            cgroup: Placement::default(),
            devices: &[],
            init_binary: None,
            default_shm_size: 64 << 20,
        }
    }

    /// An upper and a work directory for a second container.
    pub(super) fn second_upper(&self) -> (PathBuf, PathBuf) {
        let (upper, work) = (self.path.join("upper2"), self.path.join("work2"));
        std::fs::create_dir_all(&upper).expect("writable");
        std::fs::create_dir_all(&work).expect("writable");
        (upper, work)
    }

    pub(super) fn container(&self) -> Container<'_> {
        Container {
            id: "0123456789abcdef",
            config: &self.config,
            host: &self.host,
            linked_environment: &[],
            seccomp: Seccomp::Unconfined,
            apparmor: None,
            selinux: None,
            writable_cgroups: self.host.privileged,
            no_new_privileges: false,
            default_ulimits: &[],
            own: &self.own,
        }
    }

    /// Starts, lets go, and waits for the end.
    pub(super) fn run(&self) -> Outcome {
        finish(launch(&self.plan()))
    }

    /// A container that stays until it is killed.
    pub(super) fn running(&mut self) -> Running {
        self.argv = vec!["/bin/sh".into(), "-c".into(), "echo up; exec sleep 1000".into()];
        let mut launched = launch(&self.plan()).expect("the daemon's half");
        launched.channel.send_go().expect("a channel");
        let stdout = launched.stdout.take().expect("no terminal");
        wait_readable(stdout.as_raw_fd());
        Running { member: Member { pid: launched.pid, pidfd: std::rc::Rc::new(launched.pidfd) } }
    }

    pub(super) fn exec(&self, running: &Running, exec: &ExecInput) -> Outcome {
        let plan = ExecPlan::new(&self.container(), exec, running.member.clone(), Placement::default()).expect("a valid exec");
        finish(launch_exec(&plan))
    }

    pub(super) fn sh(&mut self, script: &str) -> Outcome {
        self.argv = vec!["/bin/sh".into(), "-c".into(), script.into()];
        self.run()
    }
}

pub(super) struct Running {
    pub(super) member: Member,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(sys::process::pidfd_send_signal(self.member.pidfd.as_fd(), libc::SIGKILL));
        drop(sys::process::waitpid(self.member.pid, 0));
    }
}

pub(super) fn exec_of(argv: &[String]) -> ExecInput<'_> {
    ExecInput { argv, environment: &[], user: "", workdir: "", terminal: None, stdin: false, privileged: false }
}

#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) failure: Option<Failure>,
    pub(super) status: ExitStatus,
    pub(super) output: String,
}

pub(super) fn finish(launched: Result<Launched, Failure>) -> Outcome {
    let mut launched = launched.expect("the daemon's half");
    launched.channel.send_go().expect("a channel");
    let mut outcome = Outcome { failure: None, status: ExitStatus::Code(0), output: String::new() };
    let mut pty = None;
    loop {
        wait_readable(launched.channel.as_fd().as_raw_fd());
        match launched.channel.read_report().expect("a report") {
            Some(Report::Failed(failure)) => outcome.failure = Some(failure),
            Some(Report::Pty(master)) => {
                pty = Some(master);
                continue;
            }
            Some(Report::ReadyForGo) | None => continue,
            Some(Report::Running) => {}
        }
        break;
    }
    for stream in [pty, launched.stdout.take(), launched.stderr.take()].into_iter().flatten() {
        outcome.output += &read_all(&stream);
    }
    outcome.status = sys::process::waitpid(launched.pid, 0).expect("our child").expect("waited without WNOHANG").1;
    outcome
}

pub(super) fn wait_readable(fd: i32) {
    let mut fds = [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }];
    assert_eq!(sys::poll::poll(&mut fds, 20_000).expect("poll"), 1, "nothing came within 20 s");
}

pub(super) fn read_all(fd: &OwnedFd) -> String {
    let mut all = Vec::new();
    let mut buf = [0; 4096];
    loop {
        wait_readable(fd.as_raw_fd());
        match sys::fd::read(fd.as_fd(), &mut buf) {
            // A pty's end is EIO.
            Ok(0) | Err(_) => return String::from_utf8_lossy(&all).replace('\r', ""),
            Ok(n) => all.extend_from_slice(&buf[..n]),
        }
    }
}

/// Runs a test in a process with one thread, in a mount namespace of its own, and removes its world.
pub(super) fn alone(name: &str, test: impl FnOnce(&mut World)) {
    let path = std::env::temp_dir().join(format!("coracle-launch-{name}-{}", std::process::id()));
    let (read, write) = sys::fd::pipe2(0).expect("a pipe");
    let Some(pid) = sys::process::fork().expect("fork") else {
        drop(read);
        std::panic::set_hook(Box::new(move |info| {
            let mut text = String::new();
            let _ = write!(text, "{info}");
            drop(sys::fd::write_all(write.as_fd(), text.as_bytes()));
        }));
        sys::process::unshare(libc::CLONE_NEWNS).expect("root");
        sys::mount::mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None).expect("root");
        test(&mut World::new(path));
        sys::process::exit(0);
    };
    drop(write);
    let words = read_all(&read);
    let status = sys::process::waitpid(pid, 0).expect("our child").expect("waited").1;
    // The child's mounts are gone with its namespace.
    std::fs::remove_dir_all(&path).expect("nothing is mounted there any more");
    assert_eq!(status, ExitStatus::Code(0), "{words}");
}
