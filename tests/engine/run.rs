//! `docker run` and its flags, with docker's output and exit status.

use crate::common::Daemon;
use std::time::Duration;

/// `docker run --net none` with these arguments.
#[track_caller]
fn run(daemon: &Daemon, args: &[&str]) -> crate::common::cli::Said {
    daemon.docker(&[&["run", "--net", "none"], args].concat())
}

#[test]
fn output_and_status_are_the_programs() {
    let daemon = Daemon::with_busybox();
    let said = run(&daemon, &["--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (3, "out\n", "err\n"));
    assert_eq!(run(&daemon, &["--rm", "busybox", "true"]).expect(0).out, "");
    assert_eq!(run(&daemon, &["--rm", "busybox", "false"]).expect(1).out, "");
    assert_eq!(daemon.docker(&["ps", "-aq"]).expect(0).out, "", "--rm removes");
}

#[test]
fn a_program_killed_by_a_signal_gives_128_and_its_number() {
    let daemon = Daemon::with_busybox();
    run(&daemon, &["--rm", "busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).expect(137);
    run(&daemon, &["-d", "--name", "killed", "busybox", "sleep", "60"]).expect(0);
    daemon.docker(&["kill", "-s", "KILL", "killed"]).expect(0);
    assert_eq!(daemon.docker(&["wait", "killed"]).expect(0).trimmed(), "137");
}

#[test]
fn a_program_that_is_not_there_gives_127() {
    let daemon = Daemon::with_busybox();
    let said = run(&daemon, &["--name", "missing", "busybox", "nosuch"]).expect(127);
    assert!(said.err.contains("exec: \"nosuch\": executable file not found in $PATH"), "{said:?}");
    let said = run(&daemon, &["--rm", "busybox", "/no/such"]).expect(127);
    assert!(said.err.contains("/no/such") && said.err.contains("no such file or directory"), "{said:?}");
    assert_eq!(daemon.docker(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "missing"]).expect(0).trimmed(), "created 127");
}

#[test]
fn a_program_that_may_not_run_gives_126() {
    let daemon = Daemon::with_busybox();
    let said = run(&daemon, &["--rm", "busybox", "/etc/passwd"]).expect(126);
    assert!(said.err.contains("/etc/passwd") && said.err.contains("permission denied"), "{said:?}");
    run(&daemon, &["--rm", "busybox", "/etc"]).expect(126);
}

#[test]
fn an_image_that_is_not_there_gives_125() {
    let daemon = Daemon::new();
    run(&daemon, &["--pull", "never", "nosuch"]).expect(125);
}

#[test]
fn input_reaches_the_program_and_ends() {
    let daemon = Daemon::with_busybox();
    let said = daemon.docker_with_input(&["run", "-i", "--rm", "--net", "none", "busybox", "cat"], b"one\ntwo\n").expect(0);
    assert_eq!(said.out, "one\ntwo\n");
    let much = vec![b'x'; 5_000_000];
    let said = daemon.docker_with_input(&["run", "-i", "--rm", "--net", "none", "busybox", "wc", "-c"], &much).expect(0);
    assert_eq!(said.trimmed(), "5000000");
}

#[test]
fn without_i_there_is_no_input() {
    let daemon = Daemon::with_busybox();
    let said = daemon.docker_with_input(&["run", "--rm", "--net", "none", "busybox", "cat"], b"unread").expect(0);
    assert_eq!(said.out, "");
}

#[test]
fn environment_workdir_hostname_and_entrypoint() {
    let daemon = Daemon::with_busybox();
    let said = run(&daemon, &["--rm", "-e", "A=b c", "-e", "EMPTY=", "--hostname", "boat", "busybox", "env"]).expect(0);
    let mut lines: Vec<&str> = said.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=b c", "EMPTY=", "HOME=/root", "HOSTNAME=boat", "PATH=/bin"]);
    assert_eq!(run(&daemon, &["--rm", "-w", "/tmp", "busybox", "pwd"]).expect(0).out, "/tmp\n");
    assert_eq!(run(&daemon, &["--rm", "-w", "/made/for/it", "busybox", "pwd"]).expect(0).out, "/made/for/it\n");
    assert_eq!(run(&daemon, &["--rm", "--hostname", "boat", "--domainname", "sea", "busybox", "hostname"]).expect(0).out, "boat\n");
    assert_eq!(run(&daemon, &["--rm", "--hostname", "boat", "busybox", "cat", "/etc/hostname"]).expect(0).out, "boat\n");
    assert_eq!(run(&daemon, &["--rm", "--entrypoint", "echo", "busybox", "a", "b"]).expect(0).out, "a b\n");
    let said = run(&daemon, &["--name", "plain", "busybox", "hostname"]).expect(0);
    let id = daemon.docker(&["inspect", "-f", "{{.Id}}", "plain"]).expect(0);
    assert_eq!(said.trimmed(), &id.trimmed()[..12], "the host name is the short id");
}

#[test]
fn users_come_from_the_images_files() {
    let daemon = Daemon::with_busybox();
    let id = |user: &str| run(&daemon, &["--rm", "-u", user, "busybox", "id"]).expect(0).trimmed().to_owned();
    assert_eq!(id("alice"), "uid=1000(alice) gid=1000(users) groups=1000(users),2000(extra)");
    assert_eq!(id("1000"), "uid=1000(alice) gid=1000(users) groups=1000(users),2000(extra)");
    assert_eq!(id("alice:extra"), "uid=1000(alice) gid=2000(extra) groups=2000(extra)");
    assert_eq!(id("1234"), "uid=1234 gid=0(root) groups=0(root)");
    assert_eq!(id("1234:4321"), "uid=1234 gid=4321 groups=4321");
    let home = run(&daemon, &["--rm", "-u", "alice", "busybox", "sh", "-c", "echo $HOME"]).expect(0);
    assert_eq!(home.trimmed(), "/home/alice");
    let said = run(&daemon, &["--rm", "-u", "nosuch", "busybox", "id"]);
    assert!(said.code == 125 || said.code == 126, "{said:?}");
    assert!(said.err.contains("unable to find user nosuch: no matching entries in passwd file"), "{said:?}");
    let said = run(&daemon, &["--rm", "-u", "alice:nosuch", "busybox", "id"]);
    assert!(said.err.contains("unable to find group nosuch: no matching entries in group file"), "{said:?}");
}

#[test]
fn detached_prints_the_id() {
    let daemon = Daemon::with_busybox();
    let said = run(&daemon, &["-d", "--name", "back", "busybox", "sleep", "60"]).expect(0);
    let id = said.trimmed();
    assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id:?}");
    let said = daemon.docker(&["ps", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Image}} {{.Command}} {{.Status}}"]).expect(0);
    assert!(said.out.starts_with(&format!("{id} back busybox \"sleep 60\" Up ")), "{said:?}");
    let said = run(&daemon, &["-d", "--name", "back", "busybox", "true"]).expect(125);
    let words = format!(
        "Conflict. The container name \"/back\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
    );
    assert!(said.err.contains(&words), "{said:?}");
    assert_eq!(daemon.docker(&["rm", "-f", "back"]).expect(0).trimmed(), "back");
}

#[test]
fn a_terminal_is_given_and_resized() {
    let daemon = Daemon::with_busybox();
    let mut terminal = daemon.docker_tty(&["run", "-it", "--rm", "--net", "none", "busybox", "sh"]);
    terminal.expect("# ");
    terminal.send("tty; stty size; echo done-$TERM\r");
    let shown = terminal.expect("done-xterm");
    assert!(shown.contains("/dev/pts/0") && shown.contains("24 80"), "{shown:?}");
    terminal.resize(30, 100);
    terminal.send("while [ \"$(stty size)\" != '30 100' ]; do sleep 0.05; done; echo res\"\"ized\r");
    terminal.expect("resized");
    terminal.send("sleep 100\r");
    terminal.expect("sleep 100");
    std::thread::sleep(Duration::from_millis(200));
    terminal.send("\x03");
    terminal.send("exit 5\r");
    assert_eq!(terminal.finish().0, 5);
}

#[test]
fn a_terminal_without_input_shows_output() {
    let daemon = Daemon::with_busybox();
    let said = run(&daemon, &["-t", "--rm", "busybox", "sh", "-c", "echo one; tty"]).expect(0);
    assert_eq!(said.out, "one\r\n/dev/pts/0\r\n");
}

#[test]
fn detach_keys_leave_the_container_running() {
    let daemon = Daemon::with_busybox();
    let mut terminal = daemon.docker_tty(&["run", "-it", "--name", "left", "--net", "none", "busybox", "sh"]);
    terminal.expect("# ");
    terminal.send("\x10\x11");
    terminal.finish();
    assert_eq!(daemon.docker(&["inspect", "-f", "{{.State.Running}}", "left"]).expect(0).trimmed(), "true");
    let mut terminal = daemon.docker_tty(&["attach", "--detach-keys", "a,b", "left"]);
    terminal.send("echo back-$((40+2))\r");
    terminal.expect("back-42");
    terminal.send("ab");
    terminal.finish();
    assert_eq!(daemon.docker(&["inspect", "-f", "{{.State.Running}}", "left"]).expect(0).trimmed(), "true");
    daemon.docker(&["rm", "-f", "left"]).expect(0);
}

#[test]
fn network_none_has_only_loopback() {
    let daemon = Daemon::with_busybox();
    let said = run(&daemon, &["--rm", "busybox", "ip", "-o", "link"]).expect(0);
    assert_eq!(said.out.lines().count(), 1, "{said:?}");
    assert!(said.out.contains("lo: <LOOPBACK,UP"), "{said:?}");
    run(&daemon, &["--rm", "busybox", "ping", "-c", "1", "127.0.0.1"]).expect(0);
}

#[test]
fn network_host_is_the_hosts() {
    let daemon = Daemon::with_busybox();
    let link = std::fs::read_link(format!("/proc/{}/ns/net", daemon.pid())).expect("the daemon runs");
    let said = daemon.docker(&["run", "--rm", "--net", "host", "busybox", "readlink", "/proc/self/ns/net"]).expect(0);
    assert_eq!(said.trimmed(), link.to_str().expect("ASCII"));
    let said = daemon.docker(&["run", "--rm", "--net", "host", "busybox", "hostname"]).expect(0);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    assert_eq!(said.trimmed(), host.trim());
}

#[test]
fn output_written_right_before_the_end_is_whole() {
    let daemon = Daemon::with_busybox();
    for _ in 0..10 {
        let said = run(&daemon, &["--rm", "busybox", "sh", "-c", "seq 1 20000"]).expect(0);
        assert_eq!(said.out.lines().count(), 20_000);
        assert!(said.out.ends_with("\n20000\n"), "{:?}", &said.out[said.out.len() - 20..]);
    }
}

#[test]
fn a_read_only_root_and_its_writable_places() {
    let daemon = Daemon::with_busybox();
    let said = run(&daemon, &["--rm", "--read-only", "busybox", "touch", "/x"]).expect(1);
    assert!(said.err.contains("Read-only file system"), "{said:?}");
    run(&daemon, &["--rm", "--read-only", "--tmpfs", "/tmp", "busybox", "touch", "/tmp/x", "/dev/shm/x"]).expect(0);
}
