//! Layers on their way, several at once: each in a process of its own that downloads, inflates, hashes and unpacks in
//! one pass. The pull worker hears of them by pipes and tells the client.

use super::client::Client;
use super::manifest::Descriptor;
use crate::error::{Error, Result};
use crate::image::archive::ingest::{Expect, ingest_layer};
use crate::image::digest::Digest;
use crate::image::layer::{Blob, LayerMeta};
use crate::image::work::{Staged, Work};
use crate::sys;
use crate::sys::process::Pid;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Between two progress reports of one layer.
const TICK: Duration = Duration::from_millis(100);
/// Bytes of one report: writes up to PIPE_BUF are whole.
const REPORT_MAX: usize = 4096;

/// A layer to fetch.
pub struct Wanted {
    pub descriptor: Descriptor,
    pub diff: Digest,
    pub parent: Option<Digest>,
    /// Domain and path of the repository, remembered for pushes.
    pub repository: String,
}

/// What a fetching process says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    /// Bytes of the compressed blob so far.
    Downloading(u64),
    /// Waits so many seconds before it tries again.
    Retrying(u64),
    /// The layer is whole in staging, verified and synced.
    Done(LayerMeta),
    Failed(String),
}

/// A running fetch.
pub struct Fetch {
    /// The layer's directory in the worker's place.
    pub name: String,
    pid: Pid,
    pipe: OwnedFd,
    unread: Vec<u8>,
    ended: bool,
}

impl Fetch {
    /// Starts a process for one layer.
    pub fn start(client: &Client, work: &mut Work, wanted: &Wanted) -> Result<Fetch> {
        let failed = |e: std::io::Error| Error::io("start a download", &e);
        let (name, dir) = work.directory()?;
        let (pipe, report) = sys::fd::pipe2(libc::O_CLOEXEC).map_err(failed)?;
        let parent = sys::process::getpid();
        if let Some(pid) = sys::process::fork().map_err(failed)? {
            return Ok(Fetch { name, pid, pipe, unread: Vec::new(), ended: false });
        }
        // The child. Its parent's death ends it; it leaves by _exit alone.
        std::mem::forget(pipe);
        let alone = sys::security::set_pdeathsig(libc::SIGKILL).is_ok() && sys::process::getppid() == parent;
        if alone {
            let outcome = fetch(&mut client.sibling(), work, name, wanted, dir.as_fd(), report.as_fd());
            let last = outcome.map_or_else(|e| Report::Failed(e.message), Report::Done);
            send(report.as_fd(), &last);
        }
        sys::process::exit(0);
    }

    pub fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads what has come; blocks when nothing has. An end without a last report is a failure.
    pub fn reports(&mut self) -> Vec<Report> {
        let mut buffer = [0; 65536];
        let count = sys::fd::read(self.pipe.as_fd(), &mut buffer).unwrap_or(0);
        self.unread.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let mut reports: Vec<Report> = Vec::new();
        while let Some(end) = self.unread.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(report) => reports.push(report),
                Err(e) => reports.push(Report::Failed(format!("report of a download: {e}"))),
            }
        }
        if count == 0 && !self.ended {
            reports.push(Report::Failed("download ended unexpectedly".into()));
        }
        self.ended |= reports.iter().any(|r| matches!(r, Report::Done(_) | Report::Failed(_)));
        reports
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        if !self.ended {
            // An already dead process is no failure.
            let _ = sys::process::kill(self.pid, libc::SIGKILL);
        }
        let _ = sys::process::waitpid(self.pid, 0);
    }
}

fn send(pipe: BorrowedFd, report: &Report) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    if line.len() >= REPORT_MAX {
        line = serde_json::to_vec(&Report::Failed("download failed".into())).unwrap_or_default();
    }
    line.push(b'\n');
    // A reader that is gone has no use for the report.
    let _ = sys::fd::write_all(pipe, &line);
}

fn fetch(client: &mut Client, work: &Work, name: String, wanted: &Wanted, dir: BorrowedFd, report: BorrowedFd) -> Result<LayerMeta> {
    let Descriptor { digest, size, urls, media_type, .. } = &wanted.descriptor;
    let expect = Expect { compressed_digest: Some(*digest), compressed_size: Some(*size), diff_id: Some(wanted.diff), ..Expect::default() };
    let mut blob = client.blob(*digest, *size).without_digest().with_urls(urls).on_retry(|left| send(report, &Report::Retrying(left)));
    let mut told = Instant::now();
    let mut progress = |bytes| {
        if told.elapsed() >= TICK || bytes == *size {
            told = Instant::now();
            send(report, &Report::Downloading(bytes));
        }
    };
    let layer = ingest_layer(&mut blob, &expect, dir, &mut progress)?;
    // Reads on to the end that the registry meant: one byte more is a lie about the size.
    if blob.read(&mut [0]).map_err(|e| Error::system(super::transport::words(&e)))? > 0 {
        return Err(Error::invalid("layer is larger than its descriptor says"));
    }
    let known = Blob { digest: *digest, size: *size, media_type: media_type.clone(), repositories: vec![wanted.repository.clone()] };
    let meta = work.describe(&Staged { name, layer }, wanted.parent, Some(known))?;
    work.sync()?;
    Ok(meta)
}
