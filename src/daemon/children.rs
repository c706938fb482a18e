//! Children: one table, one reaper, one done-handler per kind.

use super::{ConnId, Daemon, Source, Then};
use crate::container::remove::RemoveOptions;
use crate::error::Error;
use crate::poll::{Interest, Ready, Token};
use crate::sys;
use crate::sys::process::{ExitStatus, Pid};
use crate::worker::message::{Answer, Message};
use crate::worker::{self, Framed, Handoff, Job};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What a child is.
pub enum Child {
    /// A worker, by its number.
    Worker(u64),
    /// A container's or exec's process, by its number.
    Process(u64),
    /// A short helper with a continuation on exit.
    Helper { name: String, then: Then<ExitStatus> },
}

/// A running worker.
pub struct Worker {
    pub pid: Pid,
    pub title: String,
    control: OwnedFd,
    control_token: Token,
    client: Option<WatchedClient>,
    head_sent: bool,
    answered: bool,
    cancelled: bool,
    /// Containers that go when the worker does.
    owns: Vec<String>,
    /// Runs when the worker is gone; true when it ended well.
    then: Option<Then<bool>>,
}

struct WatchedClient {
    socket: OwnedFd,
    token: Token,
    minor: u16,
}

/// The table of children.
#[derive(Default)]
pub struct Children {
    table: HashMap<Pid, Child>,
    pub(super) workers: HashMap<u64, Worker>,
    /// Exits of pids that nobody has claimed yet, with the time (ms): a child may end before its entry is made.
    unclaimed: HashMap<Pid, (ExitStatus, u64)>,
}

impl Children {
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// Ends every worker, by SIGKILL: what they were making is in staging.
    pub fn kill_workers(&mut self) {
        for worker in self.workers.values_mut() {
            worker.cancelled = true;
            let _ = sys::process::kill(worker.pid, libc::SIGKILL);
        }
    }
}

impl Daemon {
    /// Enters a child into the table; one that ended before is served at once.
    pub fn claim_child(&mut self, pid: Pid, child: Child) {
        self.children.table.insert(pid, child);
        if let Some((status, _)) = self.children.unclaimed.remove(&pid) {
            self.on_exit(pid, status);
        }
    }

    /// SIGCHLD: reap until nobody is left.
    pub(super) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = sys::process::waitpid(-1, libc::WNOHANG) {
            self.on_exit(pid, status);
        }
        let now = self.now_ms();
        self.children.unclaimed.retain(|_, (_, at)| *at + 60_000 > now);
    }

    fn on_exit(&mut self, pid: Pid, status: ExitStatus) {
        match self.children.table.remove(&pid) {
            Some(Child::Worker(number)) => self.on_worker_exit(number, status),
            Some(Child::Process(number)) => self.on_process_exit(number, status),
            Some(Child::Helper { name, then }) => {
                log::debug!("helper {name}: {status:?}");
                then(self, status);
            }
            None => {
                let now = self.now_ms();
                self.children.unclaimed.insert(pid, (status, now));
            }
        }
    }

    /// Forks a helper that runs `work` and exits with its code; `then` gets the status. For what must not block the loop.
    pub fn fork_helper(
        &mut self,
        name: &str,
        work: impl FnOnce() -> i32,
        then: impl FnOnce(&mut Daemon, ExitStatus) + 'static,
    ) -> io::Result<()> {
        match sys::process::fork()? {
            None => sys::process::exit(work()),
            Some(pid) => {
                self.claim_child(pid, Child::Helper { name: name.to_string(), then: Box::new(then) });
                Ok(())
            }
        }
    }

    /// Starts a worker without a client; `then` learns whether it ended well.
    pub fn start_worker(&mut self, job: Job, then: impl FnOnce(&mut Daemon, bool) + 'static) -> io::Result<u64> {
        let number = self.unique();
        let title = job.title.clone();
        let started = worker::fork_worker(number, job, None, &self.original_mask)?;
        self.enter_worker(number, title, started, None, Some(Box::new(then)));
        Ok(number)
    }

    /// Hands a client over to a worker.
    pub(super) fn hand_over(&mut self, id: ConnId, head: crate::http::Head, minor: u16, job: Job) {
        let Some(client) = self.clients.remove(&id) else { return };
        self.poller.remove(client.token);
        let (socket, input) = client.connection.into_parts();
        let number = self.unique();
        let title = job.title.clone();
        let handoff = Handoff { socket: socket.as_fd(), input, head, common: self.common.clone() };
        match worker::fork_worker(number, job, Some(handoff), &self.original_mask) {
            Ok(started) => {
                let token = self.poller.add(socket.as_fd(), Source::WorkerClient(number), Interest::NONE);
                self.enter_worker(number, title, started, Some(WatchedClient { socket, token, minor }), None);
            }
            Err(e) => {
                log::error!("fork worker {title}: {e}");
                self.answer_for_worker(&socket, &Error::io(format!("fork worker {title}"), &e), minor);
            }
        }
    }

    /// As a worker's route, for a handler that finds out only later that its answer takes long.
    pub fn serve_by_worker(&mut self, request: &crate::api::Request, job: Job) -> crate::error::Result<crate::api::Reply> {
        let mut head = request.head.clone();
        head.framing = crate::http::Framing::None; // its body is read
        self.hand_over(request.conn, head, request.minor, job);
        Ok(crate::api::Reply::Parked)
    }

    fn enter_worker(
        &mut self,
        number: u64,
        title: String,
        started: worker::Started,
        client: Option<WatchedClient>,
        then: Option<Then<bool>>,
    ) {
        let control_token = self.poller.add(started.control.as_fd(), Source::WorkerControl(number), Interest::READ);
        log::debug!("worker {number} ({title}) is pid {}", started.pid);
        let worker = Worker {
            pid: started.pid,
            title,
            control: started.control,
            control_token,
            client,
            head_sent: false,
            answered: false,
            cancelled: false,
            owns: Vec::new(),
            then,
        };
        self.children.workers.insert(number, worker);
        self.claim_child(started.pid, Child::Worker(number));
    }

    /// A worker's messages, at most 32 a turn.
    pub(super) fn on_worker_message(&mut self, number: u64) {
        for _ in 0..32 {
            let Some(worker) = self.children.workers.get(&number) else { return };
            let mut buf = std::mem::take(&mut self.scratch);
            let received = sys::socket::recv_with_fds(worker.control.as_fd(), &mut buf[..worker::MAX_MESSAGE]);
            let message = match &received {
                Ok((0, _)) | Err(_) => None,
                Ok((n, _)) => Some(serde_json::from_slice::<Framed<Message>>(&buf[..*n])),
            };
            self.scratch = buf;
            match message {
                Some(Ok(framed)) => {
                    let sockets = received.map(|(_, sockets)| sockets).unwrap_or_default();
                    self.on_message(number, framed, sockets);
                }
                Some(Err(e)) => {
                    log::error!("worker {number} sent a message that is none ({e}); it is killed");
                    self.cancel_worker(number);
                    return;
                }
                None => {
                    if !matches!(&received, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
                        // The worker has closed its end: its exit follows.
                        self.poller.set_interest(worker.control_token, Interest::NONE);
                        if received.is_ok() {
                            self.poller.remove(worker.control_token);
                        }
                    }
                    return;
                }
            }
        }
    }

    fn on_message(&mut self, number: u64, framed: Framed<Message>, sockets: Vec<OwnedFd>) {
        log::trace!("worker {number} says {:?}", framed.body);
        let id = framed.id;
        match framed.body {
            Message::HeadSent => {
                if let Some(worker) = self.children.workers.get_mut(&number) {
                    worker.head_sent = true;
                }
            }
            Message::Answered => {
                if let Some(worker) = self.children.workers.get_mut(&number) {
                    worker.answered = true;
                }
            }
            Message::Event { kind, action, id: actor, attributes } => {
                self.emit(&kind, &action, &actor, attributes);
                self.answer_worker(number, id, Ok(Answer::Done));
            }
            Message::Image(message) => self.on_image_message(number, id, message),
            Message::Connect => {
                for socket in sockets {
                    self.adopt_connection(socket);
                }
                self.answer_worker(number, id, Ok(Answer::Done));
            }
            Message::Owns { container } => {
                if let Some(worker) = self.children.workers.get_mut(&number) {
                    worker.owns.push(container);
                }
                self.answer_worker(number, id, Ok(Answer::Done));
            }
        }
    }

    /// Answers a worker's question; an answer nobody waits for any more is dropped.
    pub fn answer_worker(&mut self, number: u64, id: u64, answer: crate::error::Result<Answer>) {
        if id == 0 {
            return;
        }
        let Some(worker) = self.children.workers.get(&number) else { return };
        let body = answer.unwrap_or_else(|e| Answer::Error { kind: e.kind, message: e.message });
        let sent = serde_json::to_vec(&Framed { id, body })
            .map_err(io::Error::other)
            .and_then(|bytes| sys::socket::send(worker.control.as_fd(), &bytes, 0));
        if let Err(e) = sent {
            log::error!("answer worker {number}: {e}; it is killed");
            self.cancel_worker(number);
        }
    }

    /// Ends a worker on purpose: its client is gone, or it is broken.
    pub fn cancel_worker(&mut self, number: u64) {
        if let Some(worker) = self.children.workers.get_mut(&number) {
            worker.cancelled = true;
            let _ = sys::process::kill(worker.pid, libc::SIGKILL);
        }
    }

    pub(super) fn on_worker_client(&mut self, number: u64, ready: Ready) {
        if ready.hangup {
            // What it has said already is heard first.
            self.on_worker_message(number);
            if self.children.workers.get(&number).is_some_and(|worker| worker.answered) {
                return self.unwatch_client(number);
            }
            if let Some(worker) = self.children.workers.get(&number) {
                log::info!("worker {} cancelled: its client is gone", worker.title);
                if let Some(client) = &worker.client {
                    self.poller.remove(client.token);
                }
            }
            self.cancel_worker(number);
        }
    }

    /// Its client may go unnoticed.
    fn unwatch_client(&mut self, number: u64) {
        if let Some(client) = self.children.workers.get(&number).and_then(|worker| worker.client.as_ref()) {
            self.poller.remove(client.token);
        }
    }

    fn on_worker_exit(&mut self, number: u64, status: ExitStatus) {
        // What it said last is still in the socket.
        self.on_worker_message(number);
        let Some(worker) = self.children.workers.remove(&number) else { return };
        self.poller.remove(worker.control_token);
        if let Some(client) = &worker.client {
            self.poller.remove(client.token);
        }
        self.image_worker_gone(number);
        self.remove_owned(&worker.owns);
        let well = status == ExitStatus::Code(0);
        if let (ExitStatus::Signal(signal), false) = (status, worker.cancelled) {
            log::error!("worker {} killed by signal {signal}; what it was making is discarded", worker.title);
        }
        if let Some(client) = worker.client
            && !worker.head_sent
            && !worker.cancelled
        {
            let error = Error::system(format!("worker {} ended without an answer ({status:?})", worker.title));
            self.answer_for_worker(&client.socket, &error, client.minor);
        }
        if let Some(then) = worker.then {
            then(self, well);
        }
    }

    /// Removes what a worker's containers have left; one that is gone already is as it should be.
    fn remove_owned(&mut self, containers: &[String]) {
        for name in containers {
            let Ok(id) = self.containers.resolve(name) else { continue };
            let options = RemoveOptions { force: true, volumes: true };
            let report = move |_: &mut Daemon, removed: crate::error::Result<()>| {
                if let Err(e) = removed {
                    log::warn!("remove a worker's container: {e}");
                }
            };
            self.remove_container(&id, options, Box::new(report));
        }
    }

    /// The answer in place of a worker that gave none: one try, as the buffer of a fresh socket takes it.
    fn answer_for_worker(&self, socket: &OwnedFd, error: &Error, minor: u16) {
        let mut out = Vec::new();
        crate::api::error_response(error, minor).write(&mut out, &self.common, 1, false, false);
        if let Err(e) = sys::socket::send(socket.as_fd(), &out, 0) {
            log::debug!("answer on descriptor {}: {e}", socket.as_raw_fd());
        }
        let _ = sys::socket::shutdown(socket.as_fd(), libc::SHUT_WR);
    }
}
