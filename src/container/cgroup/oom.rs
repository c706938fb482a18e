//! A descriptor that becomes ready when a cgroup runs out of memory.

use super::files;
use crate::sys::{fd, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What to wait for in poll or epoll, and how to take note of it.
///
/// Readiness means "look at [`oom_kills`](super::Cgroup::oom_kills)": v1 also speaks when the cgroup is removed, v2 for every event of memory.
pub struct OomWatch {
    fd: OwnedFd,
    v2: bool,
}

impl OomWatch {
    pub(super) fn open(dir: BorrowedFd, v2: bool) -> io::Result<OomWatch> {
        if v2 {
            // Not inotify: a user may have 128 of those, and there is one of these per container.
            let fd = fd::openat(dir, c"memory.events", libc::O_RDONLY | libc::O_NONBLOCK, 0)?;
            let watch = OomWatch { fd, v2 };
            watch.acknowledge()?;
            return Ok(watch);
        }
        let event = poll::eventfd()?;
        let control = fd::openat(dir, c"memory.oom_control", libc::O_RDONLY, 0)?;
        files::write(dir, "cgroup.event_control", &format!("{} {}", event.as_raw_fd(), control.as_raw_fd()))?;
        Ok(OomWatch { fd: event, v2 })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The events to ask for: POLLPRI on v2 (these files are always readable), POLLIN on v1. Epoll's flags have the same values.
    pub fn events(&self) -> i16 {
        if self.v2 { libc::POLLPRI } else { libc::POLLIN }
    }

    /// Makes it wait for the next event.
    pub fn acknowledge(&self) -> io::Result<()> {
        let mut buf = [0; 512];
        let done = if self.v2 { fd::pread(self.fd.as_fd(), &mut buf, 0) } else { fd::read(self.fd.as_fd(), &mut buf[..8]) };
        match done {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
            _ => Ok(()),
        }
    }
}
