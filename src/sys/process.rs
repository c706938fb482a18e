//! Processes: fork, clone, wait, exec, namespaces, credentials, limits.

use super::{check, check_long, crash, owned, owned_long, retry};
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

pub type Pid = libc::pid_t;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// `_exit(code)`.
    Code(i32),
    /// Killed by a signal (its number).
    Signal(i32),
}

impl ExitStatus {
    /// The shell's and Docker's number: the code, or 128 + signal.
    pub fn code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
        }
    }

    fn from_wait(status: c_int) -> ExitStatus {
        if libc::WIFSIGNALED(status) { ExitStatus::Signal(libc::WTERMSIG(status)) } else { ExitStatus::Code(libc::WEXITSTATUS(status)) }
    }
}

/// `fork(2)`: `None` in the child. Safe here because the daemon has one thread: no lock can be held by another.
pub fn fork() -> io::Result<Option<Pid>> {
    crash::point();
    // SAFETY: this process has a single thread, so the child may go on with ordinary Rust code.
    match check(unsafe { libc::fork() })? {
        0 => {
            crash::disarm();
            Ok(None)
        }
        pid => Ok(Some(pid)),
    }
}

/// struct clone_args of linux/sched.h (Linux 5.7's size, with `cgroup`).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// clone3's flag for a cgroup descriptor (Linux 5.7).
pub const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `clone3(2)` without CLONE_VM: a fork into new namespaces. `None` in the child; the parent gets pid and pidfd.
/// `exit_signal` is SIGCHLD, or 0 for a child that only its pidfd tells of.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd>, exit_signal: c_int) -> io::Result<Option<(Pid, OwnedFd)>> {
    crash::point();
    let mut pidfd: c_int = -1;
    let mut args = CloneArgs {
        flags: flags | u64::from(libc::CLONE_PIDFD.cast_unsigned()),
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: u64::from(exit_signal.cast_unsigned()),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: `args` is live and of the size given; the kernel writes only `pidfd`. Memory is copied, not shared, as CLONE_VM
    // is never in `flags`, and this process has a single thread, so the child may go on with ordinary Rust code.
    match check_long(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })? {
        0 => {
            crash::disarm();
            Ok(None)
        }
        pid => Ok(Some((Pid::try_from(pid).unwrap_or(0), owned(pidfd)))),
    }
}

/// `waitpid(2)`: `None` when WNOHANG was given and nothing has changed.
pub fn waitpid(pid: Pid, options: c_int) -> io::Result<Option<(Pid, ExitStatus)>> {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    let pid = retry(|| check(unsafe { libc::waitpid(pid, &raw mut status, options) }))?;
    Ok((pid != 0).then(|| (pid, ExitStatus::from_wait(status))))
}

/// `kill(2)`.
pub fn kill(pid: Pid, signal: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// `pidfd_open(2)`.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    check_long(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).and_then(owned_long)
}

/// `pidfd_send_signal(2)`.
pub fn pidfd_send_signal(pidfd: BorrowedFd, signal: c_int) -> io::Result<()> {
    let info: *const libc::siginfo_t = ptr::null();
    // SAFETY: the info is null, so no memory is passed.
    check_long(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) }).map(drop)
}

/// `_exit(2)`: leaves without running exit handlers or flushing buffers that were copied by fork.
pub fn exit(code: c_int) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// `getpid(2)`.
pub fn getpid() -> Pid {
    // SAFETY: cannot fail.
    unsafe { libc::getpid() }
}

/// `getppid(2)`.
pub fn getppid() -> Pid {
    // SAFETY: cannot fail.
    unsafe { libc::getppid() }
}

/// `geteuid(2)`.
pub fn geteuid() -> libc::uid_t {
    // SAFETY: cannot fail.
    unsafe { libc::geteuid() }
}

/// `setsid(2)`.
pub fn setsid() -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::setsid() }).map(drop)
}

/// `setpgid(2)`.
pub fn setpgid(pid: Pid, group: Pid) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::setpgid(pid, group) }).map(drop)
}

/// `unshare(2)`.
pub fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed; the process has one thread.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// `setns(2)` with a namespace descriptor or a pidfd.
pub fn setns(fd: BorrowedFd, flags: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }).map(drop)
}

/// `sethostname(2)`.
pub fn sethostname(name: &[u8]) -> io::Result<()> {
    // SAFETY: `name.len()` bytes are read.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// `setdomainname(2)`.
pub fn setdomainname(name: &[u8]) -> io::Result<()> {
    // SAFETY: `name.len()` bytes are read.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Pointers to C strings, null-terminated, as exec wants them.
pub struct Pointers<'a> {
    list: Vec<*const c_char>,
    _strings: std::marker::PhantomData<&'a CStr>,
}

impl<'a> Pointers<'a> {
    pub fn new<S: AsRef<CStr>>(strings: &'a [S]) -> Pointers<'a> {
        let list = strings.iter().map(|s| s.as_ref().as_ptr()).chain([ptr::null()]).collect();
        Pointers { list, _strings: std::marker::PhantomData }
    }
}

/// `execve(2)`: returns only the error.
pub fn execve(path: &CStr, args: &Pointers, environment: &Pointers) -> io::Error {
    // SAFETY: `path` is NUL-terminated; both lists are null-terminated arrays of live C strings.
    unsafe { libc::execve(path.as_ptr(), args.list.as_ptr(), environment.list.as_ptr()) };
    io::Error::last_os_error()
}

/// `execveat(2)` with AT_EMPTY_PATH: executes an open descriptor; returns only the error.
pub fn fexecve(fd: BorrowedFd, args: &Pointers, environment: &Pointers) -> io::Error {
    // SAFETY: the path is an empty C string; both lists are null-terminated arrays of live C strings.
    unsafe {
        libc::syscall(libc::SYS_execveat, fd.as_raw_fd(), c"".as_ptr(), args.list.as_ptr(), environment.list.as_ptr(), libc::AT_EMPTY_PATH)
    };
    io::Error::last_os_error()
}

/// `setgroups(2)`: exactly these.
pub fn setgroups(groups: &[libc::gid_t]) -> io::Result<()> {
    // SAFETY: `groups.len()` ids are read.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }).map(drop)
}

/// `setresgid(2)` of all three.
pub fn setresgid(gid: libc::gid_t) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::setresgid(gid, gid, gid) }).map(drop)
}

/// `setresuid(2)` of all three.
pub fn setresuid(uid: libc::uid_t) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::setresuid(uid, uid, uid) }).map(drop)
}

/// `prlimit(2)` of this process: sets `resource` and returns nothing.
pub fn setrlimit(resource: c_uint, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is live and only read; the old limit is not asked for.
    check(unsafe { libc::prlimit64(0, resource, &raw const limit, ptr::null_mut()) }).map(drop)
}

/// `prlimit(2)` of this process: (soft, hard) of `resource`.
pub fn getrlimit(resource: c_uint) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one struct rlimit64; no new limit is given.
    check(unsafe { libc::prlimit64(0, resource, ptr::null(), &raw mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Sets the calling thread's errno (for readdir, whose end is told by errno alone).
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: always a valid pointer to this thread's errno.
    let location = unsafe { libc::__errno_location() };
    // SAFETY: as above; the write is of its own type.
    unsafe { *location = errno };
}

/// Restores the default disposition of every signal that may be changed.
pub fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL runs no code of ours; SIGKILL, SIGSTOP and libc's own are refused, harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Ignores one signal.
pub fn ignore_signal(signal: c_int) {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}
