//! Asynchronous fsync by the kernel's AIO (`io_submit(2)`, IOCB_CMD_FSYNC since Linux 4.18): no thread, no wait.

use super::{check_long, owned};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const IOCB_CMD_FSYNC: u16 = 2;
const IOCB_FLAG_RESFD: u32 = 1;

/// struct iocb of linux/aio_abi.h. `aio_key` and `aio_rw_flags` swap places on big-endian machines; both stay zero here.
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    reqprio: i16,
    fildes: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved2: u64,
    flags: u32,
    resfd: u32,
}

/// struct io_event of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// An AIO context whose completions are told by an eventfd.
pub struct Aio {
    context: libc::c_ulong,
    eventfd: OwnedFd,
}

impl Aio {
    /// `io_setup(2)` for at most `depth` requests in flight.
    pub fn new(depth: u32) -> io::Result<Aio> {
        // SAFETY: no memory is passed.
        let eventfd = owned(super::check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?);
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one aio_context_t (unsigned long), which starts as zero as required.
        check_long(unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) })?;
        Ok(Aio { context, eventfd })
    }

    /// Readable when a completion waits.
    pub fn eventfd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// Starts an fsync of `fd`; `data` comes back with its completion. The descriptor may be closed afterwards: the kernel holds the file.
    pub fn submit_fsync(&self, fd: BorrowedFd, data: u64) -> io::Result<()> {
        let raw = |fd: BorrowedFd| u32::try_from(fd.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF));
        let (fildes, resfd) = (raw(fd)?, raw(self.eventfd.as_fd())?);
        let mut iocb = Iocb {
            data,
            key: 0,
            rw_flags: 0,
            opcode: IOCB_CMD_FSYNC,
            reqprio: 0,
            fildes,
            buf: 0,
            nbytes: 0,
            offset: 0,
            reserved2: 0,
            flags: IOCB_FLAG_RESFD,
            resfd,
        };
        let list = [&raw mut iocb];
        // SAFETY: one pointer to a live iocb, which the kernel copies before it returns (it writes only `key`).
        check_long(unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_ptr()) }).map(drop)
    }

    /// The completions there are, without waiting: (data, result).
    pub fn completions(&self) -> io::Result<Vec<(u64, io::Result<()>)>> {
        let mut counter = [0; 8];
        match super::fd::read(self.eventfd.as_fd(), &mut counter) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        let mut done = Vec::new();
        loop {
            let mut events = [IoEvent::default(); 32];
            let no_wait: *mut libc::timespec = &mut libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the kernel writes at most 32 events into the array; the timeout is a live timespec.
            let n = check_long(unsafe { libc::syscall(libc::SYS_io_getevents, self.context, 0, 32, events.as_mut_ptr(), no_wait) })?;
            let n = usize::try_from(n).unwrap_or(0);
            done.extend(events[..n].iter().map(|event| (event.data, result_of(event.res))));
            if n < events.len() {
                return Ok(done);
            }
        }
    }
}

fn result_of(res: i64) -> io::Result<()> {
    match i32::try_from(-res) {
        Ok(errno) if errno > 0 => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(()),
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is ours; no memory is passed.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
