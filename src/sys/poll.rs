//! Waiting: poll, epoll, eventfd, signalfd.

use super::{check, owned, retry};
use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `poll(2)`: the number of ready entries; EINTR is reported as 0.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: c_int) -> io::Result<usize> {
    let count = libc::nfds_t::try_from(fds.len()).unwrap_or(0);
    // SAFETY: the kernel writes `revents` of exactly `count` entries of the slice.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), count, timeout_ms) }) {
        Ok(n) => Ok(usize::try_from(n).unwrap_or(0)),
        Err(e) if e.raw_os_error() == Some(libc::EINTR) => Ok(0),
        Err(e) => Err(e),
    }
}

/// `epoll_create1(2)`.
pub fn epoll_create1() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(owned)
}

/// `epoll_ctl(2)`: EPOLL_CTL_ADD, _MOD or _DEL with the caller's `data`. The number is the kernel's key, so it comes raw;
/// one that is not open is EBADF.
pub fn epoll_ctl(epoll: BorrowedFd, operation: c_int, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: `event` is live and only read.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
}

/// `epoll_wait(2)` without waiting: appends (data, events), at most 256.
pub fn epoll_ready(epoll: BorrowedFd, ready: &mut Vec<(u64, u32)>) -> io::Result<()> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 256];
    // SAFETY: the kernel writes at most 256 events into the array.
    let n = retry(|| check(unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 256, 0) }))?;
    let n = usize::try_from(n).unwrap_or(0);
    ready.extend(events[..n].iter().map(|event| (event.u64, event.events)));
    Ok(())
}

/// `eventfd(2)`, non-blocking.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(owned)
}

/// The set of all signals.
pub fn all_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the whole set.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: initialised by the call above.
    unsafe { set.assume_init() }
}

/// The set of all signals but these.
pub fn all_signals_but(excepted: &[c_int]) -> libc::sigset_t {
    let mut set = all_signals();
    for signal in excepted {
        // SAFETY: `set` is a live, initialised set; a number that is no signal is refused.
        unsafe { libc::sigdelset(&raw mut set, *signal) };
    }
    set
}

/// The empty set.
pub fn no_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the call above.
    unsafe { set.assume_init() }
}

/// `sigprocmask(SIG_SETMASK)`; returns the previous mask.
pub fn sigprocmask(set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut old = MaybeUninit::uninit();
    // SAFETY: `set` is only read; the kernel fills `old`.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, old.as_mut_ptr()) })?;
    // SAFETY: filled by the successful call.
    Ok(unsafe { old.assume_init() })
}

/// `signalfd4(2)` over `set`, non-blocking.
pub fn signalfd(set: &libc::sigset_t) -> io::Result<OwnedFd> {
    // SAFETY: `set` is only read.
    check(unsafe { libc::signalfd(-1, set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }).map(owned)
}

/// The next signal number waiting in a signalfd; `None` when there is none.
pub fn read_signal(signalfd: BorrowedFd) -> io::Result<Option<c_int>> {
    let mut info: MaybeUninit<libc::signalfd_siginfo> = MaybeUninit::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the kernel writes at most `size` bytes, the size of the struct.
    match super::check_size(unsafe { libc::read(signalfd.as_raw_fd(), info.as_mut_ptr().cast(), size) }) {
        Ok(n) if n == size => {
            // SAFETY: the read filled the whole struct.
            let info = unsafe { info.assume_init() };
            Ok(Some(info.ssi_signo.cast_signed()))
        }
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(e) => Err(e),
    }
}
