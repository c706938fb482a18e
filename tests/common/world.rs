//! A world of a test's own (directories, socket, cgroup, network namespace) and the daemon that lives in it.

use super::http::{Answer, Connection};
use super::{image, leftovers};
use coracle::sys::process::kill;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// CORACLE_TEST_AGAINST=dockerd runs the tests against Docker's own daemon, to learn whether it is they who are wrong.
pub fn against_dockerd() -> bool {
    std::env::var_os("CORACLE_TEST_AGAINST").is_some_and(|name| name == "dockerd")
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// One test's own place on this machine. Dropped: everything in it is ended and removed.
pub struct World {
    /// Unique on this machine; names the directory and the cgroup.
    pub name: String,
    pub dir: PathBuf,
    pub socket: PathBuf,
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    pub pid_file: PathBuf,
}

impl World {
    pub fn new() -> World {
        assert_eq!(coracle::sys::process::geteuid(), 0, "the tests make namespaces, mounts and cgroups: run them as root (make test)");
        let name = format!("coracle-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).expect("our own directory");
        World {
            socket: dir.join("docker.sock"),
            data_root: dir.join("data"),
            exec_root: dir.join("exec"),
            pid_file: dir.join("daemon.pid"),
            name,
            dir,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// `coracle daemon` with the flags that keep it inside this world, before `extra`.
    /// It dies with the thread that starts it, has a network namespace of its own, and its log is `daemon.log`.
    pub fn daemon_command(&self, extra: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "ip link set lo up; exec \"$@\"", "sh"]);
        if against_dockerd() {
            let config = self.path("none.json");
            fs::write(&config, "{}").expect("the world can be written");
            command
                .args(["dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--config-file"])
                .arg(config);
        } else {
            command.arg(env!("CARGO_BIN_EXE_coracle")).args(["daemon", "--debug"]);
        }
        command.arg("-H").arg(format!("unix://{}", self.socket.display()));
        command.arg("--data-root").arg(&self.data_root).arg("--exec-root").arg(&self.exec_root);
        command.arg("--pidfile").arg(&self.pid_file).arg("--cgroup-parent").arg(format!("/{}", self.name));
        command.args(extra);
        let log = fs::OpenOptions::new().append(true).create(true).open(self.path("daemon.log")).expect("the world can be written");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("descriptors are left")).stderr(log);
        command.env_remove("DOCKER_HOST").env_remove("CORACLE_CRASH_AT").env_remove("NOTIFY_SOCKET");
        command
    }
}

impl Drop for World {
    fn drop(&mut self) {
        leftovers::end_everything(self);
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("---- the end of the daemon's log, {} ----\n{last}\n----", self.dir.display());
        }
        if std::env::var_os("CORACLE_KEEP").is_none()
            && let Err(e) = fs::remove_dir_all(&self.dir)
            && !std::thread::panicking()
        {
            panic!("{}: {e}", self.dir.display());
        }
    }
}

/// A running daemon. Dropped: SIGTERM, and then nothing of it may be left.
pub struct Daemon {
    pub world: World,
    child: Option<Child>,
}

impl Daemon {
    /// A daemon in a new world.
    #[track_caller]
    pub fn new() -> Daemon {
        Daemon::start(World::new(), &[])
    }

    /// A daemon in a new world with the image `busybox`.
    #[track_caller]
    pub fn with_busybox() -> Daemon {
        let daemon = Daemon::new();
        image::import_busybox(&daemon);
        daemon
    }

    /// A daemon in a new world with the image `probe`, which holds busybox and the probe.
    #[track_caller]
    pub fn with_probe() -> Daemon {
        let daemon = Daemon::new();
        image::import_probe(&daemon);
        daemon
    }

    /// Starts a daemon in `world` and waits until its socket takes a connection.
    #[track_caller]
    pub fn start(world: World, extra: &[&str]) -> Daemon {
        let command = world.daemon_command(extra);
        Daemon::start_command(world, command)
    }

    /// As [`start`](Self::start), with a command that may have been changed.
    #[track_caller]
    pub fn start_command(world: World, mut command: Command) -> Daemon {
        let child = command.spawn().expect("setpriv (util-linux) starts");
        let mut daemon = Daemon { world, child: Some(child) };
        daemon.wait_ready();
        daemon
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        let end = Instant::now() + Duration::from_secs(20);
        while !self.answers() {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                self.child = None;
                panic!("the daemon ended before its socket was there: {status}");
            }
            assert!(Instant::now() < end, "no socket within 20 s");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether a daemon answers. A connection alone is no sign: a child of one that was killed may hold its listener for a moment.
    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut socket = UnixStream::connect(&self.world.socket)?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            socket.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
            let mut first = [0; 5];
            socket.read_exact(&mut first)?;
            Ok(&first == b"HTTP/")
        };
        ask().unwrap_or(false)
    }

    pub fn pid(&self) -> i32 {
        let child = self.child.as_ref().expect("the daemon runs");
        i32::try_from(child.id()).expect("pids are small")
    }

    pub fn signal(&self, signal: i32) {
        kill(self.pid(), signal).expect("the daemon is our child and not yet waited for");
    }

    /// Waits for the daemon's own end, as after a crash point.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("the daemon runs");
        let status = super::eventually("the daemon's end", limit, || child.try_wait().expect("our child"));
        self.child = None;
        status
    }

    /// True while the daemon has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_none()))
    }

    /// SIGKILL, and the end waited for. Containers are left to the next start.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait_exit(Duration::from_secs(10));
        // A child that was just forked holds the listening socket until it, too, is killed.
        super::eventually("the socket's end", Duration::from_secs(10), || UnixStream::connect(&self.world.socket).is_err().then_some(()));
    }

    /// Starts the daemon again in the same world, after [`kill`](Self::kill) or [`stop`](Self::stop).
    #[track_caller]
    pub fn start_again(&mut self, extra: &[&str]) {
        let command = self.world.daemon_command(extra);
        self.start_again_with(command);
    }

    /// As [`start_again`](Self::start_again), with a command that may have been changed.
    #[track_caller]
    pub fn start_again_with(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "one daemon at a time");
        self.child = Some(command.spawn().expect("setpriv (util-linux) starts"));
        self.wait_ready();
    }

    /// Starts the daemon without waiting for its socket.
    #[track_caller]
    pub fn start_unready(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "one daemon at a time");
        self.child = Some(command.spawn().expect("setpriv (util-linux) starts"));
    }

    /// Waits for the socket or for the daemon's end; true when it takes connections.
    #[track_caller]
    pub fn wait_ready_or_exit(&mut self) -> bool {
        super::eventually("a socket or an end", Duration::from_secs(20), || {
            if self.answers() {
                return Some(true);
            }
            (!self.is_running()).then_some(false)
        })
    }

    /// SIGTERM; the daemon ends orderly, with status 0, in time.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        let status = self.wait_exit(Duration::from_secs(30));
        assert!(status.success(), "the daemon ended with {status} (signal {:?})", status.signal());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.world.path("daemon.log")).unwrap_or_default()
    }

    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::open(&self.world.socket)
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut connection = self.connect();
        connection.request(method, target, headers, body);
        connection.read_answer_to(method)
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Answer {
        self.request("GET", target, &[], b"")
    }

    #[track_caller]
    pub fn delete(&self, target: &str) -> Answer {
        self.request("DELETE", target, &[], b"")
    }

    /// POST without a body.
    #[track_caller]
    pub fn post(&self, target: &str) -> Answer {
        self.request("POST", target, &[], b"")
    }

    #[track_caller]
    pub fn post_json(&self, target: &str, body: &Value) -> Answer {
        self.request("POST", target, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// Creates a container with network none (unless the body says otherwise) and gives its id.
    #[track_caller]
    pub fn create(&self, name: &str, mut config: Value) -> String {
        if config.pointer("/HostConfig/NetworkMode").is_none() {
            config["HostConfig"]["NetworkMode"] = json!("none");
        }
        let answer = self.post_json(&format!("/containers/create?name={name}"), &config).expect(201).json();
        answer["Id"].as_str().expect("an id").to_owned()
    }

    /// Creates and starts a busybox container with this command; gives its id.
    #[track_caller]
    pub fn run(&self, name: &str, command: &[&str]) -> String {
        let id = self.create(name, json!({"Image": "busybox", "Cmd": command}));
        self.post(&format!("/containers/{id}/start")).expect(204);
        id
    }

    /// Waits until the container is not running; its exit code.
    #[track_caller]
    pub fn wait(&self, id: &str) -> i64 {
        self.post(&format!("/containers/{id}/wait")).expect(200).json()["StatusCode"].as_i64().expect("a code")
    }

    /// Stdout and stderr from the container's log; with a terminal all is stdout.
    #[track_caller]
    pub fn logs(&self, id: &str) -> (String, String) {
        let answer = self.get(&format!("/containers/{id}/logs?stdout=1&stderr=1")).expect(200);
        if answer.header("Content-Type") == Some("application/vnd.docker.raw-stream") {
            return (answer.text(), String::new());
        }
        let (out, err) = super::demultiplex(&answer.body);
        (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned())
    }

    /// Creates, starts and waits; gives (exit code, stdout, stderr) and removes the container.
    #[track_caller]
    pub fn run_to_end(&self, config: Value) -> (i64, String, String) {
        let id = self.create("", config);
        self.post(&format!("/containers/{id}/start")).expect(204);
        let code = self.wait(&id);
        let (out, err) = self.logs(&id);
        self.remove(&id);
        (code, out, err)
    }

    #[track_caller]
    pub fn inspect(&self, id: &str) -> Value {
        self.get(&format!("/containers/{id}/json")).expect(200).json()
    }

    #[track_caller]
    pub fn remove(&self, id: &str) {
        self.delete(&format!("/containers/{id}?force=1&v=1")).expect(204);
    }

    /// How many descriptors the daemon holds.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the daemon runs").count()
    }

    /// The directory of a container on disk.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.world.data_root.join("containers").join(id)
    }

    pub fn socket(&self) -> &Path {
        &self.world.socket
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(child) = &mut self.child {
                let _ = child.kill();
                let _ = child.wait();
            }
            return;
        }
        if self.child.is_some() {
            // What was deleted or failed is cleared in the background; that has an end.
            let end = Instant::now() + Duration::from_secs(10);
            while !leftovers::staging(&self.world).is_empty() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.stop();
        }
        // dockerd keeps cgroups and leaves mounts; that is not ours to judge.
        if !against_dockerd() {
            leftovers::assert_nothing_left(&self.world);
        }
    }
}
