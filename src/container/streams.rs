//! The streams of a running process: its pipes or pty are read once and fanned out to the log and to attached clients;
//! what clients type goes to its stdin.
//!
//! A client that falls behind stalls nobody: it goes on from the log file at its own pace, or, where there is no readable
//! log, is disconnected at 1 MiB.

use super::log::Stream;
use super::log::json_file::JsonFile;
use super::log::read::Want;
use crate::daemon::{ConnId, Daemon, Source};
use crate::poll::{Interest, Token};
use crate::sys;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// Bytes read from one stream in one turn of the loop.
const TURN: usize = 64 * 1024;
/// An attached client's unread output beyond which it is disconnected, where there is no log to go on from.
const MAX_BEHIND: usize = 1 << 20;
/// What all clients of one stream together may leave unread in our memory: each has its share before it goes on from the log.
const SHARED_BUDGET: usize = 2 << 20;
/// Bytes of stdin that wait for the process; beyond, its client's socket is not read.
const MAX_STDIN: usize = 256 * 1024;

/// A process's streams; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HubId(pub u64);

/// A client attached to a hub.
struct Attached {
    conn: ConnId,
    stdout: bool,
    stderr: bool,
    stdin: bool,
    detach: Option<DetachKeys>,
}

/// Recognises the detach sequence in what a client types.
pub struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// `None` for an empty sequence.
    pub fn new(keys: Vec<u8>) -> Option<DetachKeys> {
        (!keys.is_empty()).then_some(DetachKeys { keys, matched: 0 })
    }

    /// Passes typed bytes through; true when the sequence is complete. Bytes of a broken-off match are given back.
    fn filter(&mut self, data: &[u8], out: &mut Vec<u8>) -> bool {
        for byte in data {
            if *byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return true;
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.matched]);
            self.matched = usize::from(*byte == self.keys[0]);
            if self.matched == 0 {
                out.push(*byte);
            }
        }
        false
    }
}

struct Pipe {
    fd: OwnedFd,
    token: Token,
}

struct Stdin {
    pipe: Option<Pipe>,
    queue: VecDeque<u8>,
    /// No more will come: the pipe is closed when the queue is written.
    ended: bool,
    /// Who is not read while the queue is full.
    paused: Vec<ConnId>,
}

/// The streams of one process.
pub struct Hub {
    pub tty: bool,
    outputs: [Option<Pipe>; 2],
    /// The pty's master, kept for resizing; its output is `outputs[0]`.
    stdin: Stdin,
    attached: Vec<Attached>,
    /// The container's log; `None` for execs and for drivers that keep none.
    pub log: Option<JsonFile>,
    /// The first bytes of output, for a health check's result.
    pub capture: Option<Vec<u8>>,
    /// The id under which followers know the log.
    pub log_name: Rc<str>,
    /// Close stdin when its client has finished (StdinOnce; always for execs).
    pub stdin_once: bool,
    /// Terminal size asked for before there was a terminal: rows, columns.
    pub size: Option<(u16, u16)>,
    ended: bool,
}

/// All hubs, and which one a connection is attached to.
#[derive(Default)]
pub struct Hubs {
    hubs: HashMap<HubId, Hub>,
    by_conn: HashMap<ConnId, HubId>,
}

impl Hubs {
    pub fn get(&self, id: HubId) -> Option<&Hub> {
        self.hubs.get(&id)
    }

    pub fn get_mut(&mut self, id: HubId) -> Option<&mut Hub> {
        self.hubs.get_mut(&id)
    }

    pub fn of_conn(&self, conn: ConnId) -> Option<HubId> {
        self.by_conn.get(&conn).copied()
    }

    pub fn len(&self) -> usize {
        self.hubs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hubs.is_empty()
    }
}

impl Hub {
    /// Whether a process's output is still open.
    pub fn is_open(&self) -> bool {
        self.outputs.iter().any(Option::is_some)
    }

    pub fn attached_count(&self) -> usize {
        self.attached.len()
    }

    fn master(&self) -> Option<&OwnedFd> {
        if self.tty { self.outputs[0].as_ref().map(|pipe| &pipe.fd) } else { None }
    }

    /// Sets the terminal's size now, or when there will be one.
    pub fn resize(&mut self, rows: u16, columns: u16) -> io::Result<()> {
        self.size = Some((rows, columns));
        match self.master() {
            Some(master) => sys::tty::set_window_size(master.as_fd(), rows, columns),
            None => Ok(()),
        }
    }
}

/// Bytes of each of `clients` that share a stream.
pub(super) fn share(clients: usize) -> usize {
    (SHARED_BUDGET / clients.max(1)).clamp(8 * 1024, MAX_BEHIND)
}

/// What an attaching client asks for.
#[derive(Default)]
pub struct AttachWant {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub detach: Option<DetachKeys>,
}

impl Daemon {
    /// A new hub, without a process yet.
    pub fn make_hub(&mut self, tty: bool, stdin_once: bool, log_name: Rc<str>) -> HubId {
        let id = HubId(self.unique());
        let stdin = Stdin { pipe: None, queue: VecDeque::new(), ended: false, paused: Vec::new() };
        let hub = Hub {
            tty,
            outputs: [None, None],
            stdin,
            attached: Vec::new(),
            log: None,
            capture: None,
            log_name,
            stdin_once,
            size: None,
            ended: false,
        };
        self.hubs.hubs.insert(id, hub);
        id
    }

    /// Connects a hub to its process's pipes (all non-blocking).
    pub fn connect_pipes(&mut self, id: HubId, stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) {
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        hub.ended = false;
        for (n, fd) in [stdout, stderr].into_iter().enumerate() {
            hub.outputs[n] = fd.and_then(|fd| {
                let token = self.poller.add_idle(fd.as_fd(), Source::Output(id, n), Interest::READ).ok()?;
                Some(Pipe { fd, token })
            });
        }
        if let Some(fd) = stdin {
            // A reader that is gone shows as an error on write; nothing is asked for until there is something to write.
            if let Ok(token) = self.poller.add_idle(fd.as_fd(), Source::Stdin(id), Interest::NONE) {
                self.poller.set_interest(token, Interest::NONE);
                hub.stdin.pipe = Some(Pipe { fd, token });
            }
        }
        self.write_stdin(id);
    }

    /// Connects a hub to its process's terminal.
    pub fn connect_pty(&mut self, id: HubId, master: OwnedFd, wants_stdin: bool) {
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        if let Some((rows, columns)) = hub.size {
            let _ = sys::tty::set_window_size(master.as_fd(), rows, columns);
        }
        let input = if wants_stdin { sys::fd::dup_cloexec(master.as_fd(), 3).ok() } else { None };
        self.connect_pipes(id, input, Some(master), None);
    }

    /// Says something on the stdout of whoever is attached: why a process did not start.
    pub fn say_on_stdout(&mut self, id: HubId, text: &str) {
        let Some(hub) = self.hubs.hubs.get(&id) else { return };
        let header = Stream::Stdout.frame(text.len());
        let header: &[u8] = if hub.tty { &[] } else { &header };
        for conn in hub.attached.iter().map(|a| a.conn).collect::<Vec<_>>() {
            self.with_conn(conn, |connection| connection.send(&[header, text.as_bytes()]));
        }
    }

    /// Attaches a connection that is raw by now.
    pub fn attach(&mut self, id: HubId, conn: ConnId, want: AttachWant) {
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        hub.attached.push(Attached { conn, stdin: want.stdin, stdout: want.stdout, stderr: want.stderr, detach: want.detach });
        self.hubs.by_conn.insert(conn, id);
        self.touched.push(conn);
    }

    /// A stream of a process is readable.
    pub(crate) fn on_output(&mut self, id: HubId, n: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        self.read_output(id, n, &mut scratch);
        self.scratch = scratch;
    }

    /// Reads one turn's worth; false when there is no more for now, or for ever.
    fn read_output(&mut self, id: HubId, n: usize, scratch: &mut [u8]) -> bool {
        let Some(hub) = self.hubs.hubs.get(&id) else { return false };
        let Some(pipe) = hub.outputs[n].as_ref() else { return false };
        let size = TURN.min(scratch.len()).min(share(hub.attached.len()));
        match sys::fd::read(pipe.fd.as_fd(), &mut scratch[..size]) {
            Ok(0) => {
                self.end_output(id, n);
                false
            }
            Ok(length) => {
                self.fan_out(id, n, &scratch[..length]);
                true
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
            // A pty whose last slave is closed says EIO.
            Err(_) => {
                self.end_output(id, n);
                false
            }
        }
    }

    fn fan_out(&mut self, id: HubId, n: usize, data: &[u8]) {
        let stream = if n == 0 { Stream::Stdout } else { Stream::Stderr };
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        if let Some(log) = &mut hub.log {
            let (followers, name) = (&mut self.followers, &hub.log_name);
            log.feed(stream, data, &mut |segment| followers.rotated(name, segment));
            followers.wake(name);
        }
        if let Some(kept) = &mut hub.capture {
            let room = super::health::MAX_OUTPUT.saturating_sub(kept.len());
            kept.extend_from_slice(&data[..data.len().min(room)]);
        }
        let header = stream.frame(data.len());
        let header: &[u8] = if hub.tty { &[] } else { &header };
        let most = if hub.log.is_some() { share(hub.attached.len()) } else { MAX_BEHIND };
        let mut behind = Vec::new();
        for client in hub.attached.iter().filter(|a| if n == 0 { a.stdout } else { a.stderr }) {
            let Some(served) = self.clients.get_mut(&client.conn) else { continue };
            served.connection.send(&[header, data]);
            self.touched.push(client.conn);
            if served.connection.pending() > most {
                behind.push(client.conn);
            }
        }
        for conn in behind {
            self.take_off(id, conn);
        }
    }

    /// Takes a client that is too far behind off the live stream.
    fn take_off(&mut self, id: HubId, conn: ConnId) {
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        let Some(client) = hub.attached.iter_mut().find(|a| a.conn == conn) else { return };
        match &hub.log {
            Some(log) => {
                let want = Want { stdout: client.stdout, stderr: client.stderr, tty: hub.tty, ..Want::default() };
                (client.stdout, client.stderr) = (false, false);
                let skip = [log.carried(Stream::Stdout), log.carried(Stream::Stderr)];
                let (segment, at, name) = (log.current().clone(), log.position(), hub.log_name.clone());
                log::debug!("an attached client is behind and goes on from the log");
                self.follow_from(name, conn, want, segment, at, skip);
            }
            None => {
                log::warn!("an attached client is {MAX_BEHIND} bytes behind, there is no log to go on from, and it is disconnected");
                self.drop_conn(conn);
            }
        }
    }

    fn end_output(&mut self, id: HubId, n: usize) {
        let stream = if n == 0 { Stream::Stdout } else { Stream::Stderr };
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        if let Some(pipe) = hub.outputs[n].take() {
            self.poller.remove(pipe.token);
        }
        if let Some(log) = &mut hub.log {
            let (followers, name) = (&mut self.followers, &hub.log_name);
            log.end(stream, &mut |segment| followers.rotated(name, segment));
            followers.wake(name);
        }
    }

    /// The process has ended: what it wrote last is read and passed on, then its clients are closed.
    pub fn drain_hub(&mut self, id: HubId) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for n in [0, 1] {
            // A pipe holds at most a mebibyte; whoever still writes to it is not waited for.
            for _ in 0..512 {
                if !self.read_output(id, n, &mut scratch) {
                    break;
                }
            }
            self.end_output(id, n);
        }
        self.scratch = scratch;
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        hub.ended = true;
        hub.stdin.queue.clear();
        hub.stdin.ended = false;
        if let Some(pipe) = hub.stdin.pipe.take() {
            self.poller.remove(pipe.token);
        }
        hub.log = None;
        let (attached, name) = (std::mem::take(&mut hub.attached), hub.log_name.clone());
        let now = self.now_ms();
        for client in attached {
            self.hubs.by_conn.remove(&client.conn);
            if !self.followers.is_follower(client.conn) {
                self.with_conn(client.conn, |connection| connection.close_soon(now));
            }
        }
        self.end_followers(&name);
    }

    /// Forgets a hub: its container or exec is gone.
    pub fn drop_hub(&mut self, id: HubId) {
        self.drain_hub(id);
        self.hubs.hubs.remove(&id);
    }

    /// A client typed.
    pub(crate) fn on_client_input(&mut self, conn: ConnId, data: &[u8]) {
        let Some(id) = self.hubs.of_conn(conn) else { return };
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        let Some(client) = hub.attached.iter_mut().find(|a| a.conn == conn && a.stdin) else { return };
        let detached = match &mut client.detach {
            Some(keys) => {
                let mut passed = Vec::with_capacity(data.len());
                let detached = keys.filter(data, &mut passed);
                hub.stdin.queue.extend(passed);
                detached
            }
            None => {
                hub.stdin.queue.extend(data);
                false
            }
        };
        self.write_stdin(id);
        if detached {
            self.on_detach_keys(id);
            let now = self.now_ms();
            self.detach(conn);
            self.with_conn(conn, |connection| connection.close_soon(now));
            return;
        }
        if let Some(hub) = self.hubs.hubs.get_mut(&id)
            && hub.stdin.queue.len() > MAX_STDIN
        {
            hub.stdin.paused.push(conn);
            self.with_conn(conn, |connection| connection.pause_input(true));
        }
    }

    /// A client has closed its half.
    pub(crate) fn on_client_input_end(&mut self, conn: ConnId) {
        let Some(id) = self.hubs.of_conn(conn) else { return };
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        let Some(client) = hub.attached.iter().find(|a| a.conn == conn) else { return };
        if client.stdin && hub.stdin_once && !hub.tty {
            hub.stdin.ended = true;
        }
        let has_output = client.stdout || client.stderr;
        self.write_stdin(id);
        if !has_output && !self.followers.is_follower(conn) {
            let now = self.now_ms();
            self.detach(conn);
            self.with_conn(conn, |connection| connection.close_soon(now));
        }
    }

    /// The process takes stdin again.
    pub(crate) fn write_stdin(&mut self, id: HubId) {
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        let Some(pipe) = &hub.stdin.pipe else {
            if hub.ended {
                hub.stdin.queue.clear();
            }
            return;
        };
        let mut broken = false;
        while !hub.stdin.queue.is_empty() {
            let (front, _) = hub.stdin.queue.as_slices();
            match sys::fd::write(pipe.fd.as_fd(), front) {
                Ok(n) => drop(hub.stdin.queue.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        if broken || (hub.stdin.ended && hub.stdin.queue.is_empty()) {
            self.poller.remove(pipe.token);
            hub.stdin.pipe = None;
            hub.stdin.queue.clear();
        } else {
            let interest = if hub.stdin.queue.is_empty() { Interest::NONE } else { Interest::WRITE };
            self.poller.set_interest(pipe.token, interest);
        }
        if hub.stdin.queue.len() <= MAX_STDIN {
            for conn in std::mem::take(&mut hub.stdin.paused) {
                self.with_conn(conn, |connection| connection.pause_input(false));
            }
        }
    }

    /// Takes a connection off its hub, if it is on one. Its leaving does not end the process.
    pub(crate) fn detach(&mut self, conn: ConnId) {
        let Some(id) = self.hubs.by_conn.remove(&conn) else { return };
        let Some(hub) = self.hubs.hubs.get_mut(&id) else { return };
        let had_stdin = hub.attached.iter().any(|a| a.conn == conn && a.stdin);
        hub.attached.retain(|a| a.conn != conn);
        if had_stdin && hub.stdin_once && !hub.tty {
            hub.stdin.ended = true;
            self.write_stdin(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(input: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut keys = DetachKeys::new(vec![16, 17]).unwrap();
        let mut out = Vec::new();
        let done = input.iter().any(|data| keys.filter(data, &mut out));
        (out, done)
    }

    #[test]
    fn detach_keys_are_recognised_across_reads_and_given_back() {
        assert_eq!(typed(&[b"ab\x10\x11"]), (b"ab".to_vec(), true));
        assert_eq!(typed(&[b"a\x10", b"\x11"]), (b"a".to_vec(), true));
        assert_eq!(typed(&[b"a\x10", b"b"]), (b"a\x10b".to_vec(), false));
        assert_eq!(typed(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
    }
}
