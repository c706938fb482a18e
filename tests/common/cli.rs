//! The stock docker CLI against a test's daemon, through pipes or on a terminal of its own.

use super::Daemon;
use super::http::find;
use coracle::sys::{fd, poll, tty};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Fails, showing everything, unless the exit status is this.
    #[track_caller]
    pub fn expect(self, code: i32) -> Said {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Standard output without the space around it.
    pub fn trimmed(&self) -> &str {
        self.out.trim()
    }
}

impl Daemon {
    /// The docker CLI, pointed at this daemon and at no configuration of the user's; killed after a minute.
    pub fn docker_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--foreground", "-k", "1", "60", "docker"]).args(args);
        command.env("DOCKER_HOST", format!("unix://{}", self.world.socket.display()));
        command.env("DOCKER_CONFIG", self.world.path("docker-config")).env("HOME", &self.world.dir).env("TERM", "dumb");
        command.env_remove("DOCKER_CONTEXT").env_remove("DOCKER_API_VERSION").env_remove("DOCKER_TLS_VERIFY");
        command
    }

    /// Runs the CLI to its end without input.
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> Said {
        self.docker_with_input(args, b"")
    }

    /// Runs the CLI to its end with this input.
    #[track_caller]
    pub fn docker_with_input(&self, args: &[&str], input: &[u8]) -> Said {
        let mut command = self.docker_command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("timeout starts");
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_vec();
        // A command that does not read its input closes it: no failure.
        let feeder = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().expect("our child");
        let _ = feeder.join();
        let said = Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        assert_ne!(said.code, 124, "docker {args:?} did not end within a minute: {said:?}");
        said
    }

    /// Starts the CLI in the background, its output piped.
    #[track_caller]
    pub fn docker_spawn(&self, args: &[&str]) -> Child {
        let mut command = self.docker_command(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("timeout starts")
    }

    /// Starts the CLI on a terminal of its own of 24 rows and 80 columns.
    #[track_caller]
    pub fn docker_tty(&self, args: &[&str]) -> Terminal {
        let master = fd::open(c"/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK, 0).expect("/dev/ptmx opens");
        tty::unlockpt(master.as_fd()).expect("a master");
        tty::set_window_size(master.as_fd(), 24, 80).expect("a master");
        let terminal = tty::ptpeer(master.as_fd(), libc::O_RDWR | libc::O_NOCTTY).expect("a master");
        // setsid --ctty makes the terminal the session's own, so that it hears of changes of size.
        let docker = self.docker_command(args);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(docker.get_program()).args(docker.get_args());
        for (name, value) in docker.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let copy = || Stdio::from(terminal.try_clone().expect("descriptors are left"));
        let child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().expect("setsid (util-linux) starts");
        Terminal { master, child, seen: Vec::new() }
    }
}

/// The far end of a terminal on which a command runs.
pub struct Terminal {
    master: OwnedFd,
    child: Child,
    seen: Vec<u8>,
}

impl Terminal {
    #[track_caller]
    pub fn send(&self, text: &str) {
        fd::write_all(self.master.as_fd(), text.as_bytes()).expect("the terminal takes a line");
    }

    /// Reads until `text` has appeared; gives all that was read up to its end.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(at) = find(&self.seen, text.as_bytes()) {
                let taken: Vec<u8> = self.seen.drain(..at + text.len()).collect();
                return String::from_utf8_lossy(&taken).into_owned();
            }
            let open = self.read(end);
            assert!(open && Instant::now() < end, "no {text:?} in {:?}", String::from_utf8_lossy(&self.seen));
        }
    }

    /// One wait for output; false when the other side is gone.
    fn read(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [libc::pollfd { fd: self.master.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        poll::poll(&mut fds, i32::try_from(left.as_millis()).unwrap_or(i32::MAX)).expect("one descriptor");
        let mut buf = [0; 4096];
        match fd::read(self.master.as_fd(), &mut buf) {
            Ok(n) => {
                self.seen.extend_from_slice(&buf[..n]);
                n > 0
            }
            Err(e) => e.raw_os_error() == Some(libc::EAGAIN),
        }
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        tty::set_window_size(self.master.as_fd(), rows, columns).expect("a master");
    }

    /// Reads to the end; (exit status, the rest of the output).
    #[track_caller]
    pub fn finish(mut self) -> (i32, String) {
        let end = Instant::now() + Duration::from_secs(30);
        let status = loop {
            self.read(Instant::now() + Duration::from_millis(20));
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            assert!(Instant::now() < end, "the command did not end; seen: {:?}", String::from_utf8_lossy(&self.seen));
        };
        while self.read(Instant::now()) && !self.seen.is_empty() && self.has_more() {}
        (status.code().unwrap_or(-1), String::from_utf8_lossy(&self.seen).into_owned())
    }

    fn has_more(&self) -> bool {
        let mut fds = [libc::pollfd { fd: self.master.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        poll::poll(&mut fds, 0).is_ok() && fds[0].revents & libc::POLLIN != 0
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
