//! Descriptors: open, read, write, duplicate, close ranges.

use super::{check, check_long, check_size, crash, owned, owned_long, retry};
use std::ffi::{CStr, c_int, c_uint};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `openat(2)` relative to `dir`; O_CLOEXEC is always added.
pub fn openat(dir: BorrowedFd, path: &CStr, flags: c_int, mode: libc::mode_t) -> io::Result<OwnedFd> {
    if flags & (libc::O_CREAT | libc::O_TRUNC) != 0 {
        crash::point();
    }
    retry(|| {
        // SAFETY: `path` is NUL-terminated and outlives the call; `dir` is open for its lifetime.
        check(unsafe { libc::openat(dir.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC, c_uint::from(mode)) })
    })
    .map(owned)
}

/// `open(2)`; O_CLOEXEC is always added.
pub fn open(path: &CStr, flags: c_int, mode: libc::mode_t) -> io::Result<OwnedFd> {
    openat(AT_FDCWD, path, flags, mode)
}

/// The current working directory, as a directory descriptor argument.
// SAFETY: AT_FDCWD is a constant that the kernel knows; it is never closed through a BorrowedFd.
pub const AT_FDCWD: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) };

/// Borrows a descriptor by number, for the few places that keep one beside its owner (a forked worker's client).
pub fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: callers pass a descriptor that stays open for as long as the result is used; a closed one gives EBADF, not
    // memory errors.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Resolve flags of `openat2(2)`.
pub const RESOLVE_NO_XDEV: u64 = 0x01;
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_BENEATH: u64 = 0x08;
pub const RESOLVE_IN_ROOT: u64 = 0x10;

/// `openat2(2)` (Linux 5.6); O_CLOEXEC is always added. EAGAIN (a racing rename) is retried a bounded number of times.
pub fn openat2(dir: BorrowedFd, path: &CStr, flags: c_int, mode: u64, resolve: u64) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    let how = OpenHow { flags, mode, resolve };
    let mut races = 0;
    loop {
        // SAFETY: `path` is NUL-terminated, `how` is a live struct open_how of the size given; both only read.
        let result = unsafe { libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), &raw const how, size_of::<OpenHow>()) };
        match check_long(result) {
            Ok(fd) => return owned_long(fd),
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && races < 128 => races += 1,
            Err(e) => return Err(e),
        }
    }
}

/// `read(2)`.
pub fn read(fd: BorrowedFd, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
    retry(|| check_size(unsafe { libc::read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) }))
}

/// `write(2)`.
pub fn write(fd: BorrowedFd, buf: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads at most `buf.len()` bytes from `buf`.
    retry(|| check_size(unsafe { libc::write(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len()) }))
}

/// `pread(2)`.
pub fn pread(fd: BorrowedFd, buf: &mut [u8], offset: i64) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
    retry(|| check_size(unsafe { libc::pread64(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), offset) }))
}

/// `pwrite(2)`.
pub fn pwrite(fd: BorrowedFd, buf: &[u8], offset: i64) -> io::Result<usize> {
    // SAFETY: the kernel reads at most `buf.len()` bytes from `buf`.
    retry(|| check_size(unsafe { libc::pwrite64(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len(), offset) }))
}

/// `preadv2(2)` with one buffer and RWF_NOWAIT: EAGAIN when the bytes are not in the page cache.
pub fn pread_nowait(fd: BorrowedFd, buf: &mut [u8], offset: i64) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: one iovec over `buf`, which the kernel fills with at most its length.
    retry(|| check_size(unsafe { libc::preadv2(fd.as_raw_fd(), &raw const iov, 1, offset, libc::RWF_NOWAIT) }))
}

/// `writev(2)`.
pub fn writev(fd: BorrowedFd, slices: &[io::IoSlice]) -> io::Result<usize> {
    let count = c_int::try_from(slices.len()).unwrap_or(1024);
    // SAFETY: IoSlice is guaranteed to have the layout of struct iovec; the kernel only reads.
    retry(|| check_size(unsafe { libc::writev(fd.as_raw_fd(), slices.as_ptr().cast(), count) }))
}

/// Writes all of `buf` to a blocking descriptor.
pub fn write_all(fd: BorrowedFd, mut buf: &[u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match write(fd, buf)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => buf = &buf[n..],
        }
    }
    Ok(())
}

/// `pipe2(2)`: (read end, write end); O_CLOEXEC is always added.
pub fn pipe2(flags: c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors that the kernel writes.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), flags | libc::O_CLOEXEC) })?;
    Ok((owned(ends[0]), owned(ends[1])))
}

/// Takes over a descriptor that came by number over execve; EBADF when there is none.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    Ok(owned(number))
}

/// `dup3(2)` onto a chosen number; the new descriptor is inherited by exec unless O_CLOEXEC is in `flags`.
pub fn dup3(from: BorrowedFd, to: RawFd, flags: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed; `to` is the caller's to overwrite.
    retry(|| check(unsafe { libc::dup3(from.as_raw_fd(), to, flags) })).map(drop)
}

/// `fcntl(F_DUPFD_CLOEXEC)` at or above `least`.
pub fn dup_cloexec(fd: BorrowedFd, least: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) }).map(owned)
}

/// `fcntl(F_SETFL)`, adding or removing O_NONBLOCK.
pub fn set_nonblocking(fd: BorrowedFd, on: bool) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// `fcntl(F_SETFD)`, adding or removing FD_CLOEXEC.
pub fn set_cloexec(fd: BorrowedFd, on: bool) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, if on { libc::FD_CLOEXEC } else { 0 }) }).map(drop)
}

/// `fcntl(F_SETPIPE_SZ)`; the kernel rounds up and returns what it gave.
pub fn set_pipe_size(fd: BorrowedFd, bytes: c_int) -> io::Result<c_int> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) })
}

/// `close_range(2)` (Linux 5.9); `flags` may be CLOSE_RANGE_CLOEXEC (4).
pub fn close_range(first: u32, last: u32, flags: c_uint) -> io::Result<()> {
    // SAFETY: no memory is passed. Descriptors owned by live values may be closed: callers are children about to exec or exit.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Closes every descriptor from 3 up that is not in `keep`. For forked children, which own nothing else.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd >= 3).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// `fstat(2)`.
pub fn fstat(fd: BorrowedFd) -> io::Result<libc::stat64> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: the kernel fills one struct stat64.
    check(unsafe { libc::fstat64(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the struct is initialised.
    Ok(unsafe { stat.assume_init() })
}

/// `fsync(2)`: blocks; never called by the loop.
pub fn fsync(fd: BorrowedFd) -> io::Result<()> {
    crash::point();
    // SAFETY: no memory is passed.
    retry(|| check(unsafe { libc::fsync(fd.as_raw_fd()) })).map(drop)
}

/// `syncfs(2)`: blocks; never called by the loop.
pub fn syncfs(fd: BorrowedFd) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syncfs(fd.as_raw_fd()) }).map(drop)
}

/// `ftruncate(2)`.
pub fn ftruncate(fd: BorrowedFd, length: i64) -> io::Result<()> {
    crash::point();
    // SAFETY: no memory is passed.
    retry(|| check(unsafe { libc::ftruncate64(fd.as_raw_fd(), length) })).map(drop)
}

/// `lseek(2)`.
pub fn lseek(fd: BorrowedFd, offset: i64, whence: c_int) -> io::Result<u64> {
    // SAFETY: no memory is passed.
    let at = unsafe { libc::lseek64(fd.as_raw_fd(), offset, whence) };
    u64::try_from(at).map_err(|_| io::Error::last_os_error())
}

/// `posix_fadvise(2)`; returns the errno as an error.
pub fn fadvise(fd: BorrowedFd, offset: i64, length: i64, advice: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::posix_fadvise64(fd.as_raw_fd(), offset, length, advice) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// `flock(2)`.
pub fn flock(fd: BorrowedFd, operation: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    retry(|| check(unsafe { libc::flock(fd.as_raw_fd(), operation) })).map(drop)
}

/// `memfd_create(2)`; MFD_CLOEXEC is always added.
pub fn memfd_create(name: &CStr, flags: c_uint) -> io::Result<OwnedFd> {
    // SAFETY: `name` is NUL-terminated and only read.
    check(unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) }).map(owned)
}

/// `fcntl(F_ADD_SEALS)` of a memory file.
pub fn add_seals(fd: BorrowedFd, seals: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

/// `splice(2)` between two descriptors of which one is a pipe.
pub fn splice(from: BorrowedFd, to: BorrowedFd, length: usize, flags: c_uint) -> io::Result<usize> {
    let none = std::ptr::null_mut();
    // SAFETY: both offsets are null, so no memory is passed.
    retry(|| check_size(unsafe { libc::splice(from.as_raw_fd(), none, to.as_raw_fd(), none, length, flags) }))
}

/// `sendfile(2)` from the file's current position.
pub fn sendfile(to: BorrowedFd, from: BorrowedFd, length: usize) -> io::Result<usize> {
    // SAFETY: the offset is null, so no memory is passed.
    retry(|| check_size(unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), std::ptr::null_mut(), length) }))
}
