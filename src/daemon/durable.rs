//! Durable writes without waiting: temporary file → asynchronous fsync → rename → asynchronous fsync of the directory.
//!
//! Several writes are in flight at once; writes of one path are in order, and those that wait are merged into the last.

use super::{Daemon, Then};
use crate::sys;
use crate::sys::aio::Aio;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

enum Step {
    /// The file is being synced; then it gets its name.
    File { from: PathBuf, to: PathBuf },
    /// The directory is being synced; then it is durable.
    Directory,
}

struct InFlight {
    step: Step,
    /// The path whose next write waits for this one.
    path: PathBuf,
    then: Vec<Then<io::Result<()>>>,
}

/// The writer's state; one per daemon.
pub struct Durable {
    /// `None` where the kernel has no AIO: a forked child syncs instead.
    aio: Option<Aio>,
    next: u64,
    in_flight: HashMap<u64, InFlight>,
    /// Paths with a write in flight, and what waits behind it.
    waiting: HashMap<PathBuf, Option<(Vec<u8>, Vec<Then<io::Result<()>>>)>>,
}

impl Durable {
    pub fn new() -> Durable {
        let aio = Aio::new(256).map_err(|e| log::warn!("no asynchronous fsync: {e}; children sync instead")).ok();
        Durable { aio, next: 1, in_flight: HashMap::new(), waiting: HashMap::new() }
    }

    pub fn eventfd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.aio.as_ref().map(Aio::eventfd)
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }
}

impl Default for Durable {
    fn default() -> Durable {
        Durable::new()
    }
}

fn write_temporary(path: &Path, bytes: &[u8], number: u64) -> io::Result<(OwnedFd, PathBuf)> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".tmp{number}"));
    let temporary = PathBuf::from(name);
    let c_path = sys::cstring(temporary.as_os_str().as_encoded_bytes())?;
    let fd = sys::fd::open(&c_path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_NOFOLLOW, 0o600)?;
    if let Err(e) = sys::fd::write_all(fd.as_fd(), bytes) {
        let _ = std::fs::remove_file(&temporary);
        return Err(e);
    }
    Ok((fd, temporary))
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (sys::cstring(from.as_os_str().as_encoded_bytes())?, sys::cstring(to.as_os_str().as_encoded_bytes())?);
    sys::fs::renameat2(sys::fd::AT_FDCWD, &from, sys::fd::AT_FDCWD, &to, 0)
}

impl Daemon {
    /// Writes a state file durably; `then` runs when it is, or when it failed (and the old content stands).
    pub fn write_state(&mut self, path: PathBuf, bytes: Vec<u8>, then: impl FnOnce(&mut Daemon, io::Result<()>) + 'static) {
        let then: Then<io::Result<()>> = Box::new(then);
        if let Some(waiting) = self.durable.waiting.get_mut(&path) {
            match waiting {
                Some((latest, thens)) => {
                    *latest = bytes;
                    thens.push(then);
                }
                None => *waiting = Some((bytes, vec![then])),
            }
            return;
        }
        self.durable.waiting.insert(path.clone(), None);
        self.start_write(path, &bytes, vec![then]);
    }

    /// Writes a state file by rename, without waiting for the disk: for what may be lost with the power.
    pub fn write_state_lazily(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.durable.next += 1;
        let (_, temporary) = write_temporary(path, bytes, self.durable.next)?;
        rename(&temporary, path)
    }

    fn start_write(&mut self, path: PathBuf, bytes: &[u8], then: Vec<Then<io::Result<()>>>) {
        self.durable.next += 1;
        match write_temporary(&path, bytes, self.durable.next) {
            Ok((fd, temporary)) => {
                let step = Step::File { from: temporary, to: path.clone() };
                self.submit(fd, InFlight { step, path, then });
            }
            Err(e) => self.finish_write(&path, then, Err(e)),
        }
    }

    /// Syncs `files`' last one, renames `from` to `to` and syncs the directory: for a directory built in staging.
    pub fn rename_durably(&mut self, file: OwnedFd, from: PathBuf, to: PathBuf, then: impl FnOnce(&mut Daemon, io::Result<()>) + 'static) {
        let step = Step::File { from, to: to.clone() };
        self.submit(file, InFlight { step, path: to, then: vec![Box::new(then)] });
    }

    fn submit(&mut self, fd: OwnedFd, work: InFlight) {
        self.durable.next += 1;
        let id = self.durable.next;
        let submitted = match &self.durable.aio {
            Some(aio) => aio.submit_fsync(fd.as_fd(), id),
            None => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
        };
        self.durable.in_flight.insert(id, work);
        if submitted.is_err() {
            // No AIO, or its queue is full: a child waits for the disk in our place.
            let synced = self.fork_helper(
                "fsync",
                move || match sys::fd::fsync(fd.as_fd()) {
                    Ok(()) => 0,
                    Err(e) => e.raw_os_error().unwrap_or(libc::EIO) & 0xff,
                },
                move |daemon, status| {
                    let result = if status.code() == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(status.code())) };
                    daemon.on_synced(id, result);
                },
            );
            if let Err(e) = synced {
                self.on_synced(id, Err(e));
            }
        }
    }

    /// The AIO eventfd is readable.
    pub(super) fn on_aio(&mut self) {
        let done = match &self.durable.aio {
            Some(aio) => aio.completions(),
            None => return,
        };
        match done {
            Ok(done) => done.into_iter().for_each(|(id, result)| self.on_synced(id, result)),
            Err(e) => log::error!("asynchronous fsync: {e}"),
        }
    }

    fn on_synced(&mut self, id: u64, result: io::Result<()>) {
        let Some(work) = self.durable.in_flight.remove(&id) else { return };
        let InFlight { step, path, then } = work;
        let next = match (step, result) {
            (Step::File { from, .. }, Err(e)) => {
                let _ = std::fs::remove_file(&from);
                Err(e)
            }
            (Step::File { from, to }, Ok(())) => rename(&from, &to).and_then(|()| {
                let parent = sys::cstring(to.parent().unwrap_or(Path::new("/")).as_os_str().as_encoded_bytes())?;
                sys::fd::open(&parent, libc::O_RDONLY | libc::O_DIRECTORY, 0).map(Some)
            }),
            (Step::Directory, result) => result.map(|()| None),
        };
        match next {
            Ok(Some(directory)) => self.submit(directory, InFlight { step: Step::Directory, path, then }),
            Ok(None) => self.finish_write(&path, then, Ok(())),
            Err(e) => self.finish_write(&path, then, Err(e)),
        }
    }

    fn finish_write(&mut self, path: &Path, then: Vec<Then<io::Result<()>>>, result: io::Result<()>) {
        if let Some(Some((bytes, thens))) = self.durable.waiting.remove(path) {
            self.durable.waiting.insert(path.to_path_buf(), None);
            self.start_write(path.to_path_buf(), &bytes, thens);
        }
        for then in then {
            let result = match &result {
                Ok(()) => Ok(()),
                Err(e) => Err(e.raw_os_error().map_or_else(|| io::Error::other(e.to_string()), io::Error::from_raw_os_error)),
            };
            then(self, result);
        }
    }
}
