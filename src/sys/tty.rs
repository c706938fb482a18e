//! Terminals: pty pairs, window size.

use super::{check, owned};
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// TIOCSPTLCK with 0: unlocks a pty master's slave.
pub fn unlockpt(master: BorrowedFd) -> io::Result<()> {
    let unlocked: c_int = 0;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }).map(drop)
}

/// TIOCGPTPEER (Linux 4.13): the slave, opened through the master, so that no path is resolved.
pub fn ptpeer(master: BorrowedFd, flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the argument is a plain number.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags | libc::O_CLOEXEC) }).map(owned)
}

/// TIOCGPTN: the slave's number in its devpts.
pub fn ptsname_number(master: BorrowedFd) -> io::Result<u32> {
    let mut number: c_int = 0;
    // SAFETY: the kernel writes one int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) })?;
    Ok(number.cast_unsigned())
}

/// TIOCSCTTY: makes `tty` the controlling terminal of this session.
pub fn set_controlling(tty: BorrowedFd) -> io::Result<()> {
    // SAFETY: the argument is a plain number.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// `tcsetpgrp(3)`: the terminal's foreground process group.
pub fn tcsetpgrp(tty: BorrowedFd, group: libc::pid_t) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::tcsetpgrp(tty.as_raw_fd(), group) }).map(drop)
}

/// TIOCSWINSZ: character rows and columns.
pub fn set_window_size(tty: BorrowedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one struct winsize.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// TIOCGWINSZ: (rows, columns).
pub fn window_size(tty: BorrowedFd) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one struct winsize.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}
