//! A conversation with systemd: connect, say who we are, start and stop scopes, wait for its answers.
//!
//! It waits (at most [`PATIENCE`]) and so belongs into a worker, never into the loop.

use super::dbus::{Address, Encoder, FIXED_HEADER, Kind, Message, call};
use super::systemd::{Property, Scope};
use crate::error::{Error, Result, strerror};
use crate::sys::process::Pid;
use crate::sys::{fd, poll, process, socket};
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long one request may take; a systemd that is busier is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// The system's bus; where no bus daemon runs, systemd's own socket speaks the same language.
const PLACES: [(&str, bool); 2] = [("/run/dbus/system_bus_socket", true), ("/run/systemd/private", false)];

const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// A connection to systemd.
pub struct Bus {
    socket: OwnedFd,
    /// Whether a bus daemon is in between, which wants names for destinations.
    routed: bool,
    serial: u32,
    deadline: Instant,
    /// What has arrived and is not yet read.
    inbox: Vec<u8>,
    /// Finished jobs seen while waiting for something else: their paths and results.
    jobs: Vec<(String, String)>,
}

impl Bus {
    /// Connects to the system's bus, or else to systemd itself.
    pub fn connect() -> Result<Bus> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for (path, routed) in PLACES {
            match Bus::connect_to(path, routed) {
                Ok(bus) => return Ok(bus),
                Err(e) => failure = e,
            }
        }
        Err(Error::system(format!("connect to systemd: {}", strerror(&failure))))
    }

    fn connect_to(path: &str, routed: bool) -> io::Result<Bus> {
        let socket = socket::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
        socket::connect(socket.as_fd(), &socket::SockAddr::unix(path.as_bytes())?)?;
        let deadline = Instant::now() + PATIENCE;
        let mut bus = Bus { socket, routed, serial: 0, deadline, inbox: Vec::new(), jobs: Vec::new() };
        bus.authenticate()?;
        let told = (|| {
            if routed {
                bus.ask(&bus_daemon("Hello"), "", &Encoder::default())?;
                let mut rule = Encoder::default();
                rule.text(
                    "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
                );
                bus.ask(&bus_daemon("AddMatch"), "s", &rule)?;
            }
            bus.manager("Subscribe", "", &Encoder::default())
        })();
        told.map(|_| bus).map_err(|e| io::Error::other(e.message))
    }

    /// "EXTERNAL": the kernel tells the other side who we are; we only say the same.
    fn authenticate(&mut self) -> io::Result<()> {
        let mut hello = String::from("\0AUTH EXTERNAL ");
        for digit in process::geteuid().to_string().bytes() {
            let _ = write!(hello, "{digit:02x}");
        }
        hello.push_str("\r\n");
        self.send(hello.as_bytes())?;
        let line = loop {
            if let Some(end) = self.inbox.windows(2).position(|pair| pair == b"\r\n") {
                break self.inbox.drain(..end + 2).collect::<Vec<u8>>();
            }
            if self.inbox.len() > 4096 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.receive()?;
        };
        if !line.starts_with(b"OK ") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.send(b"BEGIN\r\n")
    }

    /// Starts the scope with `pid` in it and waits until systemd has made its cgroup. A failed namesake of an earlier life gives way.
    pub fn start_scope(&mut self, scope: &Scope, pid: Pid) -> Result<()> {
        self.deadline = Instant::now() + PATIENCE;
        let pids = Property::Pids(vec![u32::try_from(pid).unwrap_or(0)]);
        let list = || scope.properties.iter().map(|(name, value)| (*name, value)).chain([("PIDs", &pids)]);
        let mut body = Encoder::default();
        body.text(&scope.name).text("replace").properties(list()).no_structs();
        let job = match self.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", &body) {
            Err(e) if e.message.contains("UnitExists") => {
                let mut name = Encoder::default();
                name.text(&scope.name);
                let _ = self.manager("ResetFailedUnit", "s", &name);
                self.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", &body)?
            }
            done => done?,
        };
        let job = job.texts().into_iter().next().ok_or_else(|| Error::system("systemd: no job in its answer"))?;
        match self.result_of(&job)?.as_str() {
            "done" => Ok(()),
            result => Err(Error::system(format!("systemd: start {}: {result}", scope.name))),
        }
    }

    /// Tells systemd of changed limits ([`super::systemd::limits`]); the files are the daemon's to write.
    pub fn set_properties(&mut self, unit: &str, properties: &[(&str, Property)]) -> Result<()> {
        self.deadline = Instant::now() + PATIENCE;
        let mut body = Encoder::default();
        // Runtime: forgotten with the unit.
        body.text(unit).flag(true).properties(properties.iter().map(|(name, value)| (*name, value)));
        self.manager("SetUnitProperties", "sba(sv)", &body).map(drop)
    }

    /// Stops the unit: systemd kills what is left in it and removes its cgroup. One that is gone already is no error.
    pub fn stop(&mut self, unit: &str) -> Result<()> {
        self.deadline = Instant::now() + PATIENCE;
        let mut body = Encoder::default();
        body.text(unit).text("replace");
        match self.manager("StopUnit", "ss", &body) {
            Ok(answer) => match answer.texts().first() {
                Some(job) => self.result_of(job).map(drop),
                None => Ok(()),
            },
            Err(e) if e.message.contains("NoSuchUnit") => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn manager(&mut self, member: &str, signature: &str, body: &Encoder) -> Result<Message> {
        let address =
            Address { destination: Some("org.freedesktop.systemd1"), path: "/org/freedesktop/systemd1", interface: MANAGER, member };
        self.ask(&address, signature, body)
    }

    /// One call and its answer; an error answer becomes "systemd: <member>: <its name>: <its text>".
    fn ask(&mut self, to: &Address, signature: &str, body: &Encoder) -> Result<Message> {
        let failed = |e: &io::Error| Error::system(format!("systemd: {}: {}", to.member, strerror(e)));
        self.serial += 1;
        let serial = self.serial;
        let address = Address { destination: to.destination.filter(|_| self.routed), ..*to };
        self.send(&call(serial, &address, signature, body)).map_err(|e| failed(&e))?;
        loop {
            let message = self.next_message().map_err(|e| failed(&e))?;
            if message.reply_to == serial && message.kind == Kind::Return as u8 {
                return Ok(message);
            }
            if message.reply_to == serial && message.kind == Kind::Error as u8 {
                let text = message.texts().into_iter().next().unwrap_or_default();
                return Err(Error::system(format!("systemd: {}: {}: {text}", to.member, message.error_name)));
            }
            self.note(&message);
        }
    }

    /// Waits for the end of a job. The signal may have come before the answer that names the job.
    fn result_of(&mut self, job: &str) -> Result<String> {
        loop {
            if let Some(at) = self.jobs.iter().position(|(path, _)| path == job) {
                return Ok(self.jobs.swap_remove(at).1);
            }
            let message = self.next_message().map_err(|e| Error::system(format!("systemd: wait for {job}: {}", strerror(&e))))?;
            self.note(&message);
        }
    }

    /// JobRemoved(u id, o job, s unit, s result).
    fn note(&mut self, message: &Message) {
        let finished = message.kind == Kind::Signal as u8 && message.member == "JobRemoved";
        if let (true, [_, job, _, result]) = (finished, message.texts().as_slice()) {
            // Other units' jobs pass by here too: the newest few are enough.
            if self.jobs.len() >= 256 {
                self.jobs.remove(0);
            }
            self.jobs.push((job.clone(), result.clone()));
        }
    }

    fn next_message(&mut self) -> io::Result<Message> {
        loop {
            if let Some(start) = self.inbox.get(..FIXED_HEADER) {
                let length = Message::length(start).ok_or(io::ErrorKind::InvalidData)?;
                if self.inbox.len() >= length {
                    let bytes: Vec<u8> = self.inbox.drain(..length).collect();
                    return Message::parse(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into());
                }
            }
            self.receive()?;
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.wait(libc::POLLOUT)?;
            let sent = socket::send(self.socket.as_fd(), bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)?;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        self.wait(libc::POLLIN)?;
        let mut buf = [0; 4096];
        match fd::read(self.socket.as_fd(), &mut buf)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.inbox.extend(buf.get(..n).unwrap_or_default());
                Ok(())
            }
        }
    }

    fn wait(&self, events: i16) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let timeout = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut set = [libc::pollfd { fd: self.socket.as_raw_fd(), events, revents: 0 }];
        if left.is_zero() || (poll::poll(&mut set, timeout)? == 0 && self.deadline <= Instant::now()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

fn bus_daemon(member: &'static str) -> Address<'static> {
    Address { destination: Some("org.freedesktop.DBus"), path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus", member }
}

#[cfg(test)]
mod tests {
    use super::super::dbus::tests::answer;
    use super::*;
    use crate::container::config::Resources;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    /// Reads the next call off a client's stream.
    fn next_call(stream: &mut UnixStream) -> Message {
        let mut bytes = vec![0; FIXED_HEADER];
        stream.read_exact(&mut bytes).unwrap();
        bytes.resize(Message::length(&bytes).unwrap(), 0);
        stream.read_exact(&mut bytes[FIXED_HEADER..]).unwrap();
        Message::parse(&bytes).unwrap()
    }

    /// Plays systemd for one client: each call is answered as `script` says, in the order given.
    fn systemd(script: Vec<(&'static str, Vec<Vec<u8>>)>) -> (String, std::thread::JoinHandle<()>) {
        let path = std::env::temp_dir().join(format!("coracle-bus-{}-{}", process::getpid(), script.len()));
        let listener = UnixListener::bind(&path).unwrap();
        let name = path.to_str().unwrap().to_owned();
        let played = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::fs::remove_file(&path).unwrap();
            let mut line = [0; 128];
            let n = stream.read(&mut line).unwrap();
            assert!(line[..n].starts_with(b"\0AUTH EXTERNAL 3") && line[..n].ends_with(b"\r\n"));
            stream.write_all(b"OK 0123\r\n").unwrap();
            stream.read_exact(&mut line[..7]).unwrap();
            assert_eq!(&line[..7], b"BEGIN\r\n");
            for (member, answers) in script {
                assert_eq!(next_call(&mut stream).member, member);
                answers.iter().for_each(|bytes| stream.write_all(bytes).unwrap());
            }
        });
        (name, played)
    }

    #[test]
    fn a_scope_starts_though_its_job_ends_before_the_answer_comes() {
        let removed = answer(4, 0, "JobRemoved", "uoss", &["9", "/job/9", "docker-x.scope", "done"]);
        let busy = answer(3, 2, "org.freedesktop.systemd1.UnitExists", "s", &["it is there"]);
        let (path, played) = systemd(vec![
            ("Subscribe", vec![answer(2, 1, "", "", &[])]),
            ("StartTransientUnit", vec![busy]),
            ("ResetFailedUnit", vec![answer(2, 3, "", "", &[])]),
            ("StartTransientUnit", vec![removed, answer(2, 4, "", "o", &["/job/9"])]),
        ]);
        let mut bus = Bus::connect_to(&path, false).unwrap();
        bus.start_scope(&Scope::new("x", "system.slice", true, &Resources::default()), 7).unwrap();
        played.join().unwrap();
    }

    #[test]
    fn a_refusal_is_told_in_systemds_words_and_a_gone_unit_is_stopped() {
        let refused = answer(3, 2, "org.freedesktop.DBus.Error.AccessDenied", "s", &["no"]);
        let gone = answer(3, 3, "org.freedesktop.systemd1.NoSuchUnit", "s", &["gone"]);
        let (path, played) =
            systemd(vec![("Subscribe", vec![answer(2, 1, "", "", &[])]), ("SetUnitProperties", vec![refused]), ("StopUnit", vec![gone])]);
        let mut bus = Bus::connect_to(&path, false).unwrap();
        let told = bus.set_properties("docker-x.scope", &[("TasksMax", Property::Number(5))]).unwrap_err();
        assert_eq!(told.message, "systemd: SetUnitProperties: org.freedesktop.DBus.Error.AccessDenied: no");
        bus.stop("docker-x.scope").unwrap();
        played.join().unwrap();
        assert!(bus.stop("docker-x.scope").unwrap_err().message.starts_with("systemd: StopUnit: "));
    }
}
