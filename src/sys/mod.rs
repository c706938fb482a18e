//! The only `unsafe`: one thin function per system call, named exactly as the call.
//!
//! Types in: `&CStr`, `BorrowedFd`; out: `io::Result`. EINTR is retried where a retry is right, never on
//! `close`. No policy lives here; composites with an effect name are in [`fd`] and [`process`].
#![allow(unsafe_code)]

pub mod aio;
pub mod bpf;
pub mod crash;
pub mod fd;
pub mod fs;
pub mod mount;
pub mod poll;
#[cfg(test)]
pub mod probe;
pub mod process;
pub mod security;
pub mod socket;
pub mod time;
pub mod tty;

use std::ffi::{CString, c_int, c_long};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Turns a C result (-1 and errno) into `io::Result`.
pub(crate) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`check`], for `syscall(2)` and calls that return `ssize_t`.
pub(crate) fn check_long(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`check`], for byte counts.
pub(crate) fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            done => return done,
        }
    }
}

/// Takes ownership of a descriptor that a call has just returned.
pub(crate) fn owned(fd: c_int) -> OwnedFd {
    // SAFETY: callers pass a descriptor fresh from a successful system call; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// As [`owned`], from `syscall(2)`'s wide result.
pub(crate) fn owned_long(fd: c_long) -> io::Result<OwnedFd> {
    c_int::try_from(fd).map(owned).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))
}

/// A C string from bytes; an inner NUL is EINVAL, as no path or argument can carry one.
pub fn cstring(bytes: impl AsRef<[u8]>) -> io::Result<CString> {
    CString::new(bytes.as_ref()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
