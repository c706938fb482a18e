//! Forked workers: blocking code in a process of its own, which owns its client's socket and reports to the daemon
//! over a control socket. A worker never touches the daemon's state but through messages.

mod client;
pub mod message;

use crate::error::{Error, Result};
use crate::http::Head;
use crate::http::response::{CommonHeaders, Response};
use crate::sys;
use crate::sys::process::Pid;
use client::Client;
use message::{Answer, Message};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

/// What a worker does. `run` may block as it likes; an error before the answer's head is the error answer, an error
/// after it is the stream's last line.
pub struct Job {
    /// For process lists and the log: "load", "pull busybox".
    pub title: String,
    pub run: Box<dyn FnOnce(&mut Context) -> Result<()>>,
    /// Descriptors besides the client's and the control socket that the worker needs.
    pub keep: Vec<RawFd>,
}

impl Job {
    pub fn new(title: impl Into<String>, run: impl FnOnce(&mut Context) -> Result<()> + 'static) -> Job {
        Job { title: title.into(), run: Box::new(run), keep: Vec::new() }
    }
}

/// A client that moves to a worker: its socket, what was read already, and the head that was parsed.
pub struct Handoff<'a> {
    pub socket: BorrowedFd<'a>,
    pub input: Vec<u8>,
    pub head: Head,
    pub common: Rc<CommonHeaders>,
}

/// A started worker, as the daemon sees it.
pub struct Started {
    pub pid: Pid,
    /// The daemon's end of the control socket, non-blocking. Closing it ends the worker.
    pub control: OwnedFd,
}

/// A message on the control socket; `id` is repeated by the answer, 0 wants none.
#[derive(Debug, Serialize, Deserialize)]
pub struct Framed<T> {
    pub id: u64,
    pub body: T,
}

/// Bytes of one control message.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Forks a worker (redisFork's order: the channel first, then fork, then the child's rights before its work).
pub fn fork_worker(number: u64, job: Job, client: Option<Handoff>, original_mask: &libc::sigset_t) -> io::Result<Started> {
    let (ours, theirs) = sys::socket::socketpair(libc::SOCK_SEQPACKET)?;
    sys::fd::set_nonblocking(ours.as_fd(), true)?;
    let parent = sys::process::getpid();
    if let Some(pid) = sys::process::fork()? {
        return Ok(Started { pid, control: ours });
    }
    // The child from here on. It leaves by _exit alone: nothing of the daemon's that it copied may be flushed or dropped.
    let mut keep = job.keep.clone();
    keep.push(theirs.as_raw_fd());
    keep.extend(client.as_ref().map(|c| c.socket.as_raw_fd()));
    std::mem::forget(ours);
    let code = match settle(parent, &keep, original_mask, &job.title) {
        Ok(()) => run(number, job, client, theirs),
        Err(e) => {
            log::error!("worker {}: {e}", job.title);
            1
        }
    };
    sys::process::exit(code);
}

/// The child's first steps: die with the daemon, own nothing that was not given, take signals again.
fn settle(parent: Pid, keep: &[RawFd], original_mask: &libc::sigset_t, title: &str) -> io::Result<()> {
    sys::security::set_pdeathsig(libc::SIGKILL)?;
    if sys::process::getppid() != parent {
        return Err(io::Error::other("the daemon is gone"));
    }
    sys::fd::close_all_but(keep)?;
    sys::process::reset_signals();
    sys::process::ignore_signal(libc::SIGPIPE);
    sys::poll::sigprocmask(original_mask)?;
    if let Ok(name) = CString::new(format!("coracle: {title}")) {
        sys::security::set_name(&name);
    }
    Ok(())
}

fn run(number: u64, job: Job, client: Option<Handoff>, control: OwnedFd) -> i32 {
    let client = client.map(|handoff| Client::new(handoff.socket, handoff.input, handoff.head, handoff.common));
    let mut context = Context { number, control, next_id: 1, client };
    match (job.run)(&mut context) {
        Ok(()) => {
            context.finish();
            0
        }
        Err(error) => {
            log::debug!("worker {}: {error}", job.title);
            context.fail(&error);
            1
        }
    }
}

/// What a worker's code works with.
pub struct Context {
    /// Unique among this daemon's workers: names the worker's own place under staging/.
    pub number: u64,
    control: OwnedFd,
    next_id: u64,
    client: Option<Client>,
}

impl Context {
    /// The request's body, decoded from its transfer coding; a truncated one is an error, never an end.
    pub fn body(&mut self) -> &mut dyn Read {
        match &mut self.client {
            Some(client) => client,
            None => Box::leak(Box::new(io::empty())),
        }
    }

    /// Answers whole and is done with the client.
    pub fn respond(&mut self, response: &Response) -> Result<()> {
        self.tell(&Message::HeadSent)?;
        self.with_client(|client| client.respond(response))
    }

    /// Sends the head of a streamed answer.
    pub fn start(&mut self, status: u16, content_type: &str) -> Result<()> {
        self.start_with(status, &[("Content-Type".to_string(), content_type.to_string())])
    }

    /// As [`Context::start`], with any headers.
    pub fn start_with(&mut self, status: u16, headers: &[(String, String)]) -> Result<()> {
        self.tell(&Message::HeadSent)?;
        self.with_client(|client| client.start(status, headers))
    }

    /// The streamed answer's body; each write reaches the client before it returns.
    pub fn writer(&mut self) -> &mut dyn Write {
        match &mut self.client {
            Some(client) => client,
            None => Box::leak(Box::new(io::sink())),
        }
    }

    /// Body and writer at once, for jobs that read while they report.
    pub fn client(&mut self) -> Option<&mut Client> {
        self.client.as_mut()
    }

    /// Whether the head of the answer has been sent.
    pub fn started(&self) -> bool {
        self.client.as_ref().is_some_and(Client::started)
    }

    /// One JSON value as a line of the stream (`\r\n`, as the reference's stream formatter ends it).
    pub fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(value).map_err(|e| Error::system(e.to_string()))?;
        crate::http::response::escape_html(&mut bytes);
        bytes.extend_from_slice(b"\r\n");
        self.writer().write_all(&bytes).map_err(|e| Error::io("write to the client", &e))
    }

    fn with_client(&mut self, write: impl FnOnce(&mut Client) -> io::Result<()>) -> Result<()> {
        match &mut self.client {
            Some(client) => write(client).map_err(|e| Error::io("write to the client", &e)),
            None => Ok(()),
        }
    }

    fn fail(&mut self, error: &Error) {
        let Some(client) = &self.client else { return };
        let outcome = if client.started() {
            self.line(&serde_json::json!({"errorDetail": {"message": error.message}, "error": error.message}))
        } else {
            let minor = client.api_minor();
            self.respond(&crate::api::error_response(error, minor))
        };
        if let Err(e) = outcome {
            log::debug!("worker: {e}");
        }
        self.finish();
    }

    /// Ends the answer. A client that is gone by now is nobody's failure.
    fn finish(&mut self) {
        if let Err(e) = self.finish_stream() {
            log::debug!("worker: {e}");
        }
    }

    /// Ends the answer's stream, for a job that leaves by itself.
    pub fn finish_stream(&mut self) -> Result<()> {
        if self.client.is_some() {
            self.tell(&Message::Answered)?;
        }
        self.with_client(Client::finish)
    }

    /// Sends a message that wants no answer.
    pub fn tell(&mut self, message: &Message) -> Result<()> {
        self.send(0, message)
    }

    fn send(&mut self, id: u64, message: &Message) -> Result<()> {
        let bytes = serde_json::to_vec(&Framed { id, body: message }).map_err(|e| Error::system(e.to_string()))?;
        if bytes.len() > MAX_MESSAGE {
            return Err(Error::system(format!("message to the daemon is {} bytes long", bytes.len())));
        }
        sys::socket::send(self.control.as_fd(), &bytes, 0).map(drop).map_err(|e| Error::io("tell the daemon", &e))
    }

    /// A connection of the worker's own to the daemon's API.
    pub fn connect(&mut self) -> Result<UnixStream> {
        let failed = |e: io::Error| Error::io("connect to the daemon", &e);
        let (ours, theirs) = sys::socket::socketpair(libc::SOCK_STREAM).map_err(failed)?;
        sys::fd::set_nonblocking(theirs.as_fd(), true).map_err(failed)?;
        let bytes = serde_json::to_vec(&Framed { id: 0, body: &Message::Connect }).map_err(|e| Error::system(e.to_string()))?;
        sys::socket::send_with_fds(self.control.as_fd(), &bytes, &[theirs.as_raw_fd()]).map_err(failed)?;
        Ok(UnixStream::from(ours))
    }

    /// Asks the daemon and waits for its answer. A refusal comes back as the error it carries.
    pub fn ask(&mut self, message: &Message) -> Result<Answer> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(id, message)?;
        let mut buf = vec![0; MAX_MESSAGE];
        loop {
            let n = sys::socket::recv(self.control.as_fd(), &mut buf, 0).map_err(|e| Error::io("hear the daemon", &e))?;
            if n == 0 {
                sys::process::exit(1); // the daemon is gone or has cancelled us
            }
            let framed: Framed<Answer> =
                serde_json::from_slice(&buf[..n]).map_err(|e| Error::system(format!("answer of the daemon: {e}")))?;
            if framed.id == id {
                return match framed.body {
                    Answer::Error { kind, message } => Err(Error::new(kind, message)),
                    answer => Ok(answer),
                };
            }
        }
    }
}
