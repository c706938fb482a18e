//! Starts real processes in real namespaces, each test in a forked child of its own (libtest's threads must not clone).

use super::config::{Config, HostConfig};
use super::exec_launch::launch_exec;
use super::launch::{Launched, launch};
use super::plan::{Container, ExecPlan, LaunchPlan, Member, Network, Own, Placement, PlanInput, RootInput, Seccomp};
use super::plan_mounts::{MountInput, MountSource, Propagation};
use super::plan_process::{ExecInput, Terminal};
use super::report::{Failure, Phase, Report, Step};
use crate::sys;
use crate::sys::process::ExitStatus;
use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

/// A data root with one busybox layer.
struct World {
    path: PathBuf,
    config: Config,
    host: HostConfig,
    argv: Vec<String>,
    mounts: Vec<MountInput>,
    init: PathBuf,
    layers: Vec<PathBuf>,
    upper: PathBuf,
    work: PathBuf,
    own: Own,
}

impl World {
    fn new(name: &str) -> World {
        let path = std::env::temp_dir().join(format!("coracle-launch-{name}-{}", std::process::id()));
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
        World { path, config, host, argv: Vec::new(), mounts: Vec::new(), init, layers, upper, work, own }
    }

    fn plan(&self) -> LaunchPlan {
        LaunchPlan::new(&self.input()).expect("a valid plan")
    }

    fn input(&self) -> PlanInput<'_> {
        PlanInput {
            container: self.container(),
            argv: &self.argv,
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

    fn container(&self) -> Container<'_> {
        Container {
            id: "0123456789abcdef",
            config: &self.config,
            host: &self.host,
            linked_environment: &[],
            seccomp: Seccomp::Unconfined,
            apparmor: None,
            selinux: None,
            no_new_privileges: false,
            default_ulimits: &[],
            own: &self.own,
        }
    }

    /// Starts, lets go, and waits for the end.
    fn run(&self) -> Outcome {
        finish(launch(&self.plan()))
    }

    /// A container that stays until it is killed.
    fn running(&mut self) -> Running {
        self.argv = vec!["/bin/sh".into(), "-c".into(), "echo up; exec sleep 1000".into()];
        let mut launched = launch(&self.plan()).expect("the daemon's half");
        launched.channel.send_go().expect("a channel");
        let stdout = launched.stdout.take().expect("no terminal");
        wait_readable(stdout.as_raw_fd());
        Running { member: Member { pid: launched.pid, pidfd: std::rc::Rc::new(launched.pidfd) } }
    }

    fn exec(&self, running: &Running, exec: &ExecInput) -> Outcome {
        let plan = ExecPlan::new(&self.container(), exec, running.member.clone(), Placement::default()).expect("a valid exec");
        finish(launch_exec(&plan))
    }

    fn sh(&mut self, script: &str) -> Outcome {
        self.argv = vec!["/bin/sh".into(), "-c".into(), script.into()];
        self.run()
    }
}

struct Running {
    member: Member,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(sys::process::pidfd_send_signal(self.member.pidfd.as_fd(), libc::SIGKILL));
        drop(sys::process::waitpid(self.member.pid, 0));
    }
}

fn exec_of(argv: &[String]) -> ExecInput<'_> {
    ExecInput { argv, environment: &[], user: "", workdir: "", terminal: None, stdin: false, privileged: false }
}

impl Drop for World {
    fn drop(&mut self) {
        // work/work is made by the kernel with mode 0, which root ignores.
        drop(std::fs::remove_dir_all(&self.path));
    }
}

#[derive(Debug)]
struct Outcome {
    failure: Option<Failure>,
    status: ExitStatus,
    output: String,
}

fn finish(launched: Result<Launched, Failure>) -> Outcome {
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

fn wait_readable(fd: i32) {
    let mut fds = [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }];
    assert_eq!(sys::poll::poll(&mut fds, 20_000).expect("poll"), 1, "nothing came within 20 s");
}

fn read_all(fd: &OwnedFd) -> String {
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

/// Runs a test in a process with one thread, in a mount namespace of its own.
fn alone(name: &str, test: impl FnOnce(&mut World)) {
    let (read, write) = sys::fd::pipe2(0).expect("a pipe");
    let Some(pid) = sys::process::fork().expect("fork") else {
        drop(read);
        std::panic::set_hook(Box::new(move |info| {
            let mut text = String::new();
            let _ = write!(text, "{info}");
            drop(sys::fd::write_all(write.as_fd(), text.as_bytes()));
        }));
        // The mount namespace keeps what a failed test leaves; the world itself is removed by its parent.
        sys::process::unshare(libc::CLONE_NEWNS).expect("root");
        sys::mount::mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None).expect("root");
        test(&mut World::new(name));
        sys::process::exit(0);
    };
    drop(write);
    let words = read_all(&read);
    let status = sys::process::waitpid(pid, 0).expect("our child").expect("waited").1;
    assert_eq!(status, ExitStatus::Code(0), "{words}");
}

#[test]
fn a_program_runs_as_pid_1_of_its_own_root() {
    alone("pid1", |world| {
        let outcome = world.sh("echo $$; hostname; ls -d /proc/1 /sys/kernel /dev/null /dev/pts/ptmx; ls -a /");
        assert_eq!(outcome.failure, None);
        assert_eq!(outcome.status, ExitStatus::Code(0), "{outcome:?}");
        assert!(outcome.output.starts_with("1\ntest\n/dev/null\n/dev/pts/ptmx\n/proc/1\n/sys/kernel\n"), "{outcome:?}");
        assert!(!outcome.output.contains("usr"), "{outcome:?}");
    });
}

#[test]
fn exit_codes_and_streams_come_back() {
    alone("streams", |world| {
        let outcome = world.sh("echo out; echo err >&2; cat; exit 7");
        assert_eq!((outcome.status, outcome.output.as_str()), (ExitStatus::Code(7), "out\nerr\n"));
    });
}

#[test]
fn a_missing_program_is_127_and_a_directory_126() {
    alone("missing", |world| {
        for (program, step, code) in [
            ("nosuch", Step::NotInPath, 127),
            ("/nosuch", Step::LookupStat, 127),
            ("/bin", Step::Lookup, 126),
            ("/etc/passwd", Step::Lookup, 126),
        ] {
            world.argv = vec![program.into()];
            let failure = world.run().failure.expect("no such program");
            assert_eq!(failure.step, step, "{failure:?}");
            assert_eq!(failure.explain(Phase::Create).1, code, "{failure:?}");
        }
    });
}

#[test]
fn a_program_that_the_kernel_refuses_ends_with_255_and_says_why_on_stderr() {
    alone("format", |world| {
        let script = world.path.join("layer/bin/odd");
        std::fs::write(&script, "no format at all").expect("writable");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
        world.argv = vec!["odd".into()];
        let outcome = world.run();
        assert_eq!((outcome.failure, outcome.status), (None, ExitStatus::Code(255)));
        assert_eq!(outcome.output, "exec /bin/odd: exec format error\n");
    });
}

#[test]
fn rights_are_docker_s_default_ones() {
    alone("rights", |world| {
        let outcome = world.sh("grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; ls /proc/self/fd; env");
        let expected = world.own.capabilities & super::capabilities::DEFAULT;
        for line in [
            format!("CapPrm:\t{expected:016x}\n"),
            format!("CapEff:\t{expected:016x}\n"),
            format!("CapBnd:\t{expected:016x}\n"),
            "CapInh:\t0000000000000000\n".into(),
            "CapAmb:\t0000000000000000\n".into(),
            "NoNewPrivs:\t0\n".into(),
            "Groups:\t0 \n".into(),
            // 3 is ls's own.
            "\n0\n1\n2\n3\n".into(),
            "HOSTNAME=test\n".into(),
            "HOME=/root\n".into(),
        ] {
            assert!(outcome.output.contains(&line), "{line:?} in {outcome:?}");
        }
        world.config.user = "bob".into();
        let outcome = world.sh("id; grep Cap /proc/self/status; cd; echo $HOME");
        assert!(outcome.output.starts_with("uid=1000(bob) gid=1001(bob) groups=50(extra),1001(bob)\n"), "{outcome:?}");
        assert!(outcome.output.contains("CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"), "{outcome:?}");
        assert!(outcome.output.contains(&format!("CapBnd:\t{expected:016x}\n")), "{outcome:?}");
    });
}

#[test]
fn symlinks_of_the_image_lead_nowhere() {
    alone("symlinks", |world| {
        let canary = world.path.join("canary");
        std::fs::create_dir(&canary).expect("writable");
        std::fs::remove_dir_all(world.path.join("layer/etc")).expect("ours");
        for name in ["dev", "proc", "sys", "etc", "data"] {
            std::os::unix::fs::symlink(&canary, world.path.join("layer").join(name)).expect("ours");
        }
        std::fs::write(world.path.join("file"), "bound").expect("writable");
        let bind = |source: &str, target: &str| MountInput {
            target: target.into(),
            source: MountSource::Path(world.path.join(source)),
            read_only: false,
            propagation: Propagation::default(),
            recursive: true,
            read_only_recursive: true,
            subpath: None,
            create_source: false,
        };
        world.mounts = vec![bind("file", "/data/x/file"), bind("file", "/etc/hosts")];
        let outcome = world.sh("cat /data/x/file /etc/hosts; ls -d /proc/1 /dev/null");
        assert_eq!(outcome.output, "boundbound/dev/null\n/proc/1\n", "{outcome:?}");
        assert_eq!(std::fs::read_dir(&canary).expect("still there").count(), 0);
    });
}

#[test]
fn a_terminal_is_the_container_s_own() {
    alone("tty", |world| {
        world.config.tty = true;
        world.host.console_size = [33, 99];
        let outcome = world.sh("tty; ls -l /dev/console | grep -c ^c; echo $TERM; stat -c %t:%T /dev/console; busybox stty size");
        assert_eq!(outcome.output, "/dev/pts/0\n1\nxterm\n88:0\n33 99\n", "{outcome:?}");
    });
}

#[test]
fn masked_and_read_only_paths_hold() {
    alone("masks", |world| {
        world.host.readonly_rootfs = true;
        let outcome = world.sh(
            "cat /proc/kcore | busybox wc -c; ls /sys/firmware; touch /x 2>&1; touch /dev/shm/x; echo 1 2>&1 > /proc/sys/kernel/core_pattern;
             echo c 2>/dev/null > /proc/sysrq-trigger; mount | grep -c ' / overlay ro'; busybox chmod 0 /proc/kcore 2>&1",
        );
        assert!(outcome.output.starts_with("0\ntouch: /x: Read-only file system\n"), "{outcome:?}");
        assert!(outcome.output.contains("kcore: Read-only file system"), "{outcome:?}");
        assert_eq!(
            std::fs::metadata("/dev/null").map(|meta| std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777).ok(),
            Some(0o666)
        );
    });
}

#[test]
fn an_exec_joins_the_container() {
    alone("exec", |world| {
        let running = world.running();
        let sh = |script: &str| vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let argv = sh("hostname; cat /proc/1/cmdline; echo; ls /proc/self/fd; grep CapBnd /proc/self/status; pwd; echo $A $HOME; id -u");
        let environment = ["A=1".to_owned()];
        let exec = ExecInput { environment: &environment, user: "bob", workdir: "/etc", ..exec_of(&argv) };
        let outcome = world.exec(&running, &exec);
        let bounding = world.own.capabilities & super::capabilities::DEFAULT;
        let expected = format!("test\nsleep\x001000\x00\n0\n1\n2\n3\nCapBnd:\t{bounding:016x}\n/etc\n1 /home/bob\n1000\n");
        assert_eq!((outcome.failure, outcome.output.as_str()), (None, expected.as_str()));

        let argv = sh("grep CapEff /proc/self/status; exit 3");
        let outcome = world.exec(&running, &ExecInput { privileged: true, ..exec_of(&argv) });
        assert_eq!(outcome.output, format!("CapEff:\t{:016x}\n", world.own.capabilities));
        assert_eq!(outcome.status, ExitStatus::Code(3));

        let argv = sh("tty; busybox stty size; echo $TERM");
        let outcome = world.exec(&running, &ExecInput { terminal: Some(Terminal { rows: 20, columns: 70 }), ..exec_of(&argv) });
        assert_eq!(outcome.output, "/dev/pts/0\n20 70\nxterm\n");

        let argv = vec!["nosuch".to_owned()];
        let (error, code) = world.exec(&running, &exec_of(&argv)).failure.expect("no such program").explain(Phase::Exec);
        assert!(error.message.ends_with("exec: \"nosuch\": executable file not found in $PATH: unknown") && code == 127, "{error}");
        let argv = sh("true");
        let failure = world.exec(&running, &ExecInput { workdir: "/nosuch", ..exec_of(&argv) }).failure.expect("no such directory");
        assert_eq!((failure.step, failure.explain(Phase::Exec).1), (Step::Chdir, 127));
    });
}

/// Not a test of anything but patience: `cargo test --release … -- --ignored --nocapture start_time`.
#[test]
#[ignore = "a measurement"]
fn start_time() {
    alone("time", |world| {
        world.argv = vec!["/bin/true".into()];
        let mut times = Vec::new();
        for _ in 0..200 {
            let begin = std::time::Instant::now();
            let plan = world.plan();
            let planned = begin.elapsed();
            let mut launched = launch(&plan).expect("the daemon's half");
            let cloned = begin.elapsed();
            launched.channel.send_go().expect("a channel");
            loop {
                wait_readable(launched.channel.as_fd().as_raw_fd());
                match launched.channel.read_report().expect("a report") {
                    Some(Report::Running) => break,
                    Some(Report::Failed(failure)) => panic!("{failure}"),
                    _ => {}
                }
            }
            let running = begin.elapsed();
            drop(sys::process::waitpid(launched.pid, 0));
            times.push((begin.elapsed(), planned, cloned, running));
        }
        times.sort();
        let text = format!("{world_times:?}\n{}\n", world.plan(), world_times = times[times.len() / 2]);
        drop(sys::fd::write_all(std::io::stderr().as_fd(), text.as_bytes()));
    });
}
