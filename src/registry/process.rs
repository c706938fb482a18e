//! A process beside the worker's own, for one layer: it reports by lines on a pipe and ends with its parent.

use crate::error::{Error, Result};
use crate::sys;
use crate::sys::process::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of one report: writes up to PIPE_BUF are whole.
const REPORT_MAX: usize = 4096;
/// Between two reports of progress.
const TICK: Duration = Duration::from_millis(100);

/// What a process says: progress, and at last how it ended.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub enum Report<T> {
    /// Bytes so far.
    Bytes(u64),
    /// Waits so many seconds before it tries again.
    Retrying(u64),
    Done(T),
    Failed(String),
}

/// A started process.
pub struct Running {
    pid: Pid,
    pipe: OwnedFd,
    unread: Vec<u8>,
    ended: bool,
}

impl Running {
    /// Forks; `work` runs in the child and has the pipe to report on.
    pub fn start<T: Serialize>(work: impl FnOnce(BorrowedFd) -> Result<T>) -> Result<Running> {
        let failed = |e: io::Error| Error::io("start a process", &e);
        let (pipe, report) = sys::fd::pipe2(libc::O_CLOEXEC).map_err(failed)?;
        let parent = sys::process::getpid();
        if let Some(pid) = sys::process::fork().map_err(failed)? {
            return Ok(Running { pid, pipe, unread: Vec::new(), ended: false });
        }
        // The child: its parent's death ends it, and it leaves by _exit alone.
        std::mem::forget(pipe);
        if sys::security::set_pdeathsig(libc::SIGKILL).is_ok() && sys::process::getppid() == parent {
            match work(report.as_fd()) {
                Ok(done) => send(report.as_fd(), &Report::Done(done)),
                Err(e) => send(report.as_fd(), &Report::<T>::Failed(e.message)),
            }
        }
        sys::process::exit(0);
    }

    /// The entry for poll.
    pub fn pollfd(&self) -> libc::pollfd {
        libc::pollfd { fd: self.pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 }
    }

    /// Reads what has come; blocks when nothing has. An end without a last report is a failure.
    pub fn reports<T: DeserializeOwned>(&mut self) -> Vec<Report<T>> {
        let mut buffer = [0; 65536];
        let count = sys::fd::read(self.pipe.as_fd(), &mut buffer).unwrap_or(0);
        self.unread.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let mut reports = Vec::new();
        while let Some(end) = self.unread.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            reports.push(serde_json::from_slice(&line).unwrap_or_else(|e| Report::Failed(format!("report of a process: {e}"))));
        }
        if count == 0 && !self.ended {
            reports.push(Report::Failed("a process of the transfer ended unexpectedly".into()));
        }
        self.ended |= reports.iter().any(|r| matches!(r, Report::Done(_) | Report::Failed(_)));
        reports
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            // An already dead process is no failure.
            let _ = sys::process::kill(self.pid, libc::SIGKILL);
        }
        let _ = sys::process::waitpid(self.pid, 0);
    }
}

/// Sends one report; a reader that is gone has no use for it.
pub fn send<T: Serialize>(pipe: BorrowedFd, report: &Report<T>) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    if line.len() >= REPORT_MAX {
        line = serde_json::to_vec(&Report::<()>::Failed("a transfer failed with too long an explanation".into())).unwrap_or_default();
    }
    line.push(b'\n');
    let _ = sys::fd::write_all(pipe, &line);
}

/// Reports bytes, not too often.
pub struct Ticker<'a> {
    pipe: BorrowedFd<'a>,
    last: Instant,
    total: u64,
}

impl<'a> Ticker<'a> {
    pub fn new(pipe: BorrowedFd<'a>, total: u64) -> Ticker<'a> {
        Ticker { pipe, last: Instant::now(), total }
    }

    pub fn tell(&mut self, bytes: u64) {
        if self.last.elapsed() >= TICK || bytes == self.total {
            self.last = Instant::now();
            send(self.pipe, &Report::<()>::Bytes(bytes));
        }
    }
}

/// The output of a process that makes a stream: its end is an end only when the process ended well.
pub struct Produced {
    pid: Option<Pid>,
    pipe: OwnedFd,
}

impl Produced {
    /// Forks; `work` writes the stream.
    pub fn start(work: impl FnOnce(OwnedFd) -> Result<()>) -> Result<Produced> {
        let failed = |e: io::Error| Error::io("start a process", &e);
        let (pipe, output) = sys::fd::pipe2(libc::O_CLOEXEC).map_err(failed)?;
        let parent = sys::process::getpid();
        if let Some(pid) = sys::process::fork().map_err(failed)? {
            return Ok(Produced { pid: Some(pid), pipe });
        }
        std::mem::forget(pipe);
        let alone = sys::security::set_pdeathsig(libc::SIGKILL).is_ok() && sys::process::getppid() == parent;
        let outcome = if alone { work(output) } else { Err(Error::system("the worker is gone")) };
        if let Err(e) = &outcome {
            log::error!("{e}");
        }
        sys::process::exit(i32::from(outcome.is_err()));
    }
}

impl Read for Produced {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = sys::fd::read(self.pipe.as_fd(), buf)?;
        if count == 0
            && !buf.is_empty()
            && let Some(pid) = self.pid.take()
        {
            let ended = sys::process::waitpid(pid, 0)?;
            if ended.is_none_or(|(_, status)| status.code() != 0) {
                return Err(io::Error::other(Error::system("a layer could not be read from the store")));
            }
        }
        Ok(count)
    }
}

impl Drop for Produced {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.take() {
            let _ = sys::process::kill(pid, libc::SIGKILL);
            let _ = sys::process::waitpid(pid, 0);
        }
    }
}
