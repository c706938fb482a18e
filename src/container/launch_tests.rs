//! What a container's first process and an exec find around them.

use super::capabilities::DEFAULT;
use super::launch::launch;
use super::plan::{Network, Placement, Seccomp};
use super::plan_mounts::{MountInput, MountSource, Propagation};
use super::plan_process::{ExecInput, Terminal};
use super::report::{Phase, Report, Step};
use super::test_world::{alone, exec_of, finish, wait_readable};
use crate::sys;
use crate::sys::process::ExitStatus;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

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
        let expected = world.own.capabilities & DEFAULT;
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
        let bounding = world.own.capabilities & DEFAULT;
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

/// A measurement, in turn with the least that a container can be (clone, overlay, proc, tmpfs, pivot_root, exec):
/// `cargo test --release --lib start_time -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn start_time() {
    alone("time", |world| {
        world.argv = vec!["/bin/true".into()];
        let (mut bare, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            let begin = std::time::Instant::now();
            bare_start(world);
            bare.push(begin.elapsed());
            let begin = std::time::Instant::now();
            let plan = world.plan();
            let planned = begin.elapsed();
            let mut launched = launch(&plan).expect("the daemon's half");
            let cloned = begin.elapsed();
            launched.channel.send_go().expect("a channel");
            while !matches!(launched.channel.read_report().expect("a report"), Some(Report::Running)) {
                wait_readable(launched.channel.as_fd().as_raw_fd());
            }
            let running = begin.elapsed();
            drop(sys::process::waitpid(launched.pid, 0));
            whole.push((begin.elapsed(), planned, cloned, running));
        }
        bare.sort();
        whole.sort();
        let middle = bare.len() / 2;
        let text = format!("bare {:?} {:?}; whole (planned, cloned, running) {:?} {:?}\n", bare[0], bare[middle], whole[0], whole[middle]);
        drop(sys::fd::write_all(std::io::stderr().as_fd(), text.as_bytes()));
    });
}

fn bare_start(world: &super::test_world::World) {
    use crate::sys::mount;
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWNET;
    let plan = world.plan();
    let path = |path: &std::path::Path| sys::cstring(path.as_os_str().as_encoded_bytes()).expect("no NUL");
    let text = |paths: &[std::ffi::CString]| paths.iter().map(|path| path.to_string_lossy().into_owned()).collect::<Vec<_>>().join(":");
    let root = &plan.overlays[0];
    let options =
        format!("lowerdir={},upperdir={},workdir={},index=off,xino=off", text(&root.lower), world.upper.display(), world.work.display());
    let (options, target) = (sys::cstring(options).expect("no NUL"), path(&world.path.join("init")));
    let cloned = sys::process::clone3(u64::from(flags.cast_unsigned()), None, libc::SIGCHLD).expect("root");
    let Some((pid, _)) = cloned else {
        let deed = || -> std::io::Result<()> {
            mount::mount(None, c"/", None, libc::MS_SLAVE | libc::MS_REC, None)?;
            mount::mount(Some(c"overlay"), &target, Some(c"overlay"), 0, Some(&options))?;
            sys::fs::chdir(&target)?;
            mount::mount(Some(c"proc"), c"proc", Some(c"proc"), 0, None)?;
            mount::mount(Some(c"tmpfs"), c"dev", Some(c"tmpfs"), 0, None)?;
            mount::pivot_root(c".", c".")?;
            mount::umount2(c".", libc::MNT_DETACH)
        };
        if deed().is_ok() {
            let none = sys::process::Pointers::new::<std::ffi::CString>(&[]);
            let words = [c"true".to_owned()];
            sys::process::execve(c"/bin/true", &sys::process::Pointers::new(&words), &none);
        }
        sys::process::exit(99);
    };
    let status = sys::process::waitpid(pid, 0).expect("our child").expect("waited").1;
    assert_eq!(status, ExitStatus::Code(0));
}

#[test]
fn a_working_directory_can_t_be_a_descriptor() {
    alone("workdir", |world| {
        for n in 3..16 {
            world.config.working_dir = format!("/proc/self/fd/{n}");
            let outcome = world.sh("pwd");
            assert!(outcome.failure.is_some(), "{n}: {outcome:?}");
        }
        let running = {
            world.config.working_dir = String::new();
            world.running()
        };
        let argv = ["pwd".to_owned()];
        for n in 3..16 {
            let workdir = format!("/proc/self/fd/{n}");
            assert!(world.exec(&running, &ExecInput { workdir: &workdir, ..exec_of(&argv) }).failure.is_some(), "{n}");
        }
        drop(running);
        world.config.working_dir = "/made/here".into();
        assert_eq!(world.sh("pwd").output, "/made/here\n");
        world.config.working_dir = "/etc/passwd".into();
        let (error, _) = world.sh("pwd").failure.expect("no directory").explain(Phase::Create);
        assert_eq!(error.message, "Cannot mkdir: /etc/passwd is not a directory");
    });
}

#[test]
fn the_filter_is_loaded_for_root_and_others_with_and_without_no_new_privileges() {
    alone("seccomp", |world| {
        let profile = super::seccomp::Profile::builtin();
        let filter = super::seccomp::FilterCache::new((6, 1)).get(&profile, DEFAULT).expect("the builtin profile");
        world.argv =
            ["/bin/sh", "-c", "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; busybox unshare -u true 2>&1"].map(str::to_owned).to_vec();
        for (user, no_new_privileges) in [("", false), ("", true), ("bob", false), ("bob", true)] {
            world.config.user = user.into();
            let mut input = world.input();
            input.container.seccomp = Seccomp::Filter { program: Rc::clone(&filter), flags: 0 };
            input.container.no_new_privileges = no_new_privileges;
            let plan = super::plan::LaunchPlan::new(&input).expect("a valid plan");
            let outcome = finish(launch(&plan));
            let expected = format!(
                "NoNewPrivs:\t{}\nSeccomp:\t2\nunshare: unshare(0x4000000): Operation not permitted\n",
                u8::from(no_new_privileges)
            );
            assert_eq!((outcome.failure, outcome.output), (None, expected), "{user}");
        }
    });
}

#[test]
fn networks_and_sysctls() {
    alone("network", |world| {
        world.host.sysctls = Some([("net.core.somaxconn".to_owned(), "77".to_owned())].into());
        let script = "cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_unprivileged_port_start; busybox ip -o link | grep -c UP; ls /sys/class/net";
        let outcome = world.sh(script);
        assert!(outcome.output.starts_with("77\n0\n1\nlo\n"), "{outcome:?}");
        world.host.sysctls = None;

        let own = std::fs::read_link("/proc/self/ns/net").expect("procfs");
        world.argv = ["readlink", "/proc/self/ns/net"].map(str::to_owned).to_vec();
        let mut input = world.input();
        input.network = Network::Host;
        let outcome = finish(launch(&super::plan::LaunchPlan::new(&input).expect("a valid plan")));
        assert_eq!(outcome.output.trim(), own.to_string_lossy());

        let running = world.running();
        world.argv = ["readlink", "/proc/self/ns/net"].map(str::to_owned).to_vec();
        let theirs = std::fs::read_link(format!("/proc/{}/ns/net", running.member.pid)).expect("it runs");
        let second = world.second_upper();
        let mut input = world.input();
        (input.root.upper, input.root.work) = (&second.0, &second.1);
        input.network = Network::Join(Rc::clone(&running.member.pidfd));
        let outcome = finish(launch(&super::plan::LaunchPlan::new(&input).expect("a valid plan")));
        assert_eq!(outcome.output.trim(), theirs.to_string_lossy(), "{outcome:?}");
    });
}

#[test]
fn pid_and_ipc_of_another_container_are_shared() {
    alone("shared", |world| {
        let running = world.running();
        let argv = ["/bin/sh", "-c", "echo hello > /dev/shm/x"].map(str::to_owned);
        assert_eq!(world.exec(&running, &exec_of(&argv)).status, ExitStatus::Code(0));
        world.argv = ["/bin/sh", "-c", "cat /dev/shm/x; cat /proc/1/cmdline; mount | grep -c /dev/shm; readlink /proc/self/ns/ipc"]
            .map(str::to_owned)
            .to_vec();
        world.host.pid_mode = "container:x".into();
        world.host.ipc_mode = "container:x".into();
        let theirs = std::fs::read_link(format!("/proc/{}/ns/ipc", running.member.pid)).expect("it runs");
        let second = world.second_upper();
        let mut input = world.input();
        (input.root.upper, input.root.work) = (&second.0, &second.1);
        (input.pid_of, input.ipc_of) = (Some(running.member.clone()), Some(running.member.clone()));
        let mut plan = super::plan::LaunchPlan::new(&input).expect("a valid plan");
        // This program has no face that is a stage.
        assert!(std::mem::take(&mut plan.staged));
        let outcome = finish(launch(&plan));
        assert_eq!(outcome.output, format!("hello\nsleep\x001000\x001\n{}\n", theirs.display()), "{outcome:?}");
        let input = world.input();
        assert!(super::plan::LaunchPlan::new(&input).is_err());
    });
}

#[test]
fn an_init_reaps_and_the_program_is_its_child() {
    alone("init", |world| {
        world.argv = ["/bin/sh", "-c", "cat /proc/1/cmdline; echo; echo $$; exit 9"].map(str::to_owned).to_vec();
        // Any program stands in for our own binary here: what is tested is the bind and the arguments.
        let stand_in = world.path.join("stand-in");
        std::fs::write(&stand_in, "#!/bin/sh\nshift\n\"$@\"\n").expect("writable");
        std::fs::set_permissions(&stand_in, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
        let mut input = world.input();
        input.init_binary = Some(&stand_in);
        let outcome = finish(launch(&super::plan::LaunchPlan::new(&input).expect("a valid plan")));
        assert_eq!(outcome.status, ExitStatus::Code(9));
        assert!(outcome.output.starts_with("/bin/sh\x00/sbin/docker-init\x00--\x00/bin/sh\x00-c\x00"), "{outcome:?}");
    });
}

#[test]
fn the_container_is_in_its_cgroup_and_sees_only_that() {
    alone("cgroup", |world| {
        let mut cgroups = super::cgroup::Cgroups::open(super::cgroup::Driver::Cgroupfs, &format!("/coracle-launch-{}", std::process::id()))
            .expect("cgroups");
        let resources = super::config::Resources { pids_limit: Some(33), ..Default::default() };
        let devices = super::cgroup::devices::Devices::with(&[]);
        let plan = super::cgroup::plan(cgroups.facts(), "abc", &resources, &devices, &super::cgroup::devices::numbers).expect("a plan");
        let mut group = cgroups.create(&plan).expect("root");
        let placement = Placement::of(&group, None).expect("it exists");
        world.argv = ["/bin/sh", "-c", "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; touch /sys/fs/cgroup/x 2>&1; cat /proc/self/cgroup; echo x > /dev/null && busybox mknod /k c 1 11 && cat /k 2>&1"]
            .map(str::to_owned)
            .to_vec();
        let mut input = world.input();
        input.cgroup = placement;
        let outcome = finish(launch(&super::plan::LaunchPlan::new(&input).expect("a valid plan")));
        let places = group.places();
        drop(group.remove());
        for (_, place) in places {
            drop(std::fs::remove_dir(std::path::Path::new(&place).parent().expect("below the mount point")));
        }
        for line in ["33\n", "touch: /sys/fs/cgroup/x: Read-only file system\n", ":/\n", "cat: can't open '/k': Operation not permitted\n"]
        {
            assert!(outcome.output.contains(line), "{line:?} in {outcome:?}");
        }
        assert!(!outcome.output.contains("abc"), "{outcome:?}");
    });
}
