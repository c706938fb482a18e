//! The locked-in half of a worker: a forked process whose root is the directory that hostile bytes may touch, and whose
//! capabilities suffice to make files there and for nothing else.
//!
//! What it may not do itself, marking a directory opaque for overlay, it asks of the process outside, by path: the one
//! outside walks that path below the tree without following anything. (A descriptor would have to be proved to lie below
//! the tree; a path that is opened beneath it is there by construction.)

use super::apply::{MarkDirectly, Marker};
use super::from_io;
use super::walk::failed;
use crate::error::{Error, Kind, Result};
use crate::sys::{self, fd, fs, mount, process, security, socket};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the jailed process sees as "/".
pub enum Root<'a> {
    /// A directory of the host; mounts below it are not taken along.
    Directory(BorrowedFd<'a>),
    /// A detached mount (`fsmount`, `open_tree`), which is used up.
    Mount(BorrowedFd<'a>),
    /// A mount namespace, or the pidfd of a process in it: its root.
    Namespace(BorrowedFd<'a>),
}

/// Who may do what in a jail.
pub struct Policy<'a> {
    pub root: Root<'a>,
    /// CAP_MKNOD: for layers only.
    pub devices: bool,
    /// Where opaque marks may be asked for.
    pub tree: Option<BorrowedFd<'a>>,
    /// Runs inside the new root before the capabilities go: mounts of volumes, for example.
    pub prepare: Option<Box<dyn FnOnce() -> Result<()> + 'a>>,
    /// Descriptors that stay open. None of them may be a directory outside the root.
    pub keep: Vec<RawFd>,
}

impl<'a> Policy<'a> {
    pub fn new(root: Root<'a>) -> Policy<'a> {
        Policy { root, devices: false, tree: None, prepare: None, keep: Vec::new() }
    }
}

/// Capabilities of capability.h that making files takes.
const CHOWN: u8 = 0;
const DAC_OVERRIDE: u8 = 1;
const FOWNER: u8 = 3;
const FSETID: u8 = 4;
const MKNOD: u8 = 27;
const SETFCAP: u8 = 31;

/// Bytes of one message; a report must fit.
const MESSAGE_MAX: usize = 64 * 1024;

/// Descriptors that a walk of the deepest path and of the deepest removal may hold.
const DESCRIPTORS: u64 = 4096;

/// The process outside: it serves marks and waits for the report. Dropping it kills the one inside.
pub struct Jail<'a> {
    pid: process::Pid,
    control: OwnedFd,
    tree: Option<BorrowedFd<'a>>,
    reaped: bool,
}

/// The process inside, as its work sees it.
pub struct Prisoner {
    control: OwnedFd,
}

/// Forks, locks the child in, and runs `body` there; its result is the report (at most 60 KiB) that [`Jail::finish`] gives.
pub fn start<'a>(policy: Policy<'a>, body: impl FnOnce(&mut Prisoner) -> Result<Vec<u8>>) -> Result<Jail<'a>> {
    // A feeder learns from EPIPE that the child is gone, and then asks it why.
    process::ignore_signal(libc::SIGPIPE);
    let (ours, theirs) = socket::socketpair(libc::SOCK_SEQPACKET).map_err(|e| Error::io("socketpair", &e))?;
    let tree = policy.tree;
    let parent = process::getpid();
    if let Some(pid) = process::fork().map_err(|e| Error::io("fork", &e))? {
        drop(theirs);
        return Ok(Jail { pid, control: ours, tree, reaped: false });
    }
    // The child. It leaves by _exit alone.
    let mut prisoner = Prisoner { control: theirs };
    let report = catch_unwind(AssertUnwindSafe(|| {
        lock(policy, parent, &prisoner)?;
        body(&mut prisoner)
    }));
    let message = match report {
        Ok(Ok(report)) => [b"R", report.as_slice()].concat(),
        Ok(Err(error)) => encode(&error),
        Err(_) => process::exit(101),
    };
    let sent = socket::send(prisoner.control.as_fd(), &message[..message.len().min(MESSAGE_MAX)], libc::MSG_NOSIGNAL);
    process::exit(i32::from(sent.is_err()))
}

fn lock(policy: Policy, parent: process::Pid, prisoner: &Prisoner) -> Result<()> {
    let step = |what: &'static str| move |e: io::Error| Error::io(what, &e);
    security::set_pdeathsig(libc::SIGKILL).map_err(step("prctl PDEATHSIG"))?;
    if process::getppid() != parent {
        process::exit(1);
    }
    security::set_name(c"coracle: jail");
    enter(&policy.root)?;
    if let Some(prepare) = policy.prepare {
        prepare()?;
    }
    // The root's own descriptor is a way out of it: only what was named stays.
    let keep: Vec<RawFd> = policy.keep.iter().copied().chain([prisoner.control.as_raw_fd()]).collect();
    fd::close_all_but(&keep).map_err(step("close_range"))?;
    let (soft, hard) = process::getrlimit(libc::RLIMIT_NOFILE).map_err(step("getrlimit"))?;
    process::setrlimit(libc::RLIMIT_NOFILE, soft.max(DESCRIPTORS).min(hard), hard).map_err(step("setrlimit"))?;
    fs::umask(0);
    let mut allowed: u64 = [CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP].iter().map(|c| 1 << c).sum();
    if policy.devices {
        allowed |= 1 << MKNOD;
    }
    cut_capabilities(allowed).map_err(step("cut capabilities"))
}

/// Makes `root` the root and working directory of this process, in a mount namespace of its own.
pub fn enter(root: &Root) -> Result<()> {
    let step = |what: &'static str| move |e: io::Error| Error::io(what, &e);
    let tree = match root {
        Root::Namespace(namespace) => {
            process::setns(*namespace, libc::CLONE_NEWNS).map_err(step("setns"))?;
            return Ok(());
        }
        // Cloned before unshare: afterwards the descriptor would belong to another mount namespace.
        Root::Directory(directory) => {
            let flags = mount::OPEN_TREE_CLONE | libc::AT_EMPTY_PATH.cast_unsigned();
            mount::open_tree(*directory, c"", flags).map_err(step("open_tree"))?
        }
        Root::Mount(detached) => fd::dup_cloexec(*detached, 3).map_err(step("dup"))?,
    };
    process::unshare(libc::CLONE_NEWNS).map_err(step("unshare"))?;
    mount::mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None).map_err(step("make mounts private"))?;
    mount::move_mount(tree.as_fd(), c"", fd::AT_FDCWD, c"/", mount::MOVE_MOUNT_F_EMPTY_PATH).map_err(step("move_mount"))?;
    fs::fchdir(tree.as_fd()).map_err(step("chdir"))?;
    match mount::pivot_root(c".", c".") {
        // Both "." now: the old root lies over the new one and goes.
        Ok(()) => mount::umount2(c".", libc::MNT_DETACH).map_err(step("umount"))?,
        // On an initramfs the root can't be pivoted away.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            mount::mount(Some(c"."), c"/", None, libc::MS_MOVE, None).map_err(step("move mount to /"))?;
            fs::chroot(c".").map_err(step("chroot"))?;
        }
        Err(e) => return Err(Error::io("pivot_root", &e)),
    }
    fs::chdir(c"/").map_err(step("chdir"))?;
    let (inside, wanted) = (fs::fstatat(fd::AT_FDCWD, c"/", 0), fd::fstat(tree.as_fd()));
    match (inside, wanted) {
        (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) => Ok(()),
        _ => Err(Error::system("the new root is not the directory that was asked for")),
    }
}

fn cut_capabilities(allowed: u64) -> io::Result<()> {
    let mut capability = 0;
    // EINVAL comes after the kernel's last one.
    while let Ok(held) = security::capbset_read(capability) {
        if held && allowed & 1 << capability == 0 {
            security::capbset_drop(capability)?;
        }
        capability += 1;
    }
    security::clear_ambient()?;
    let allowed = allowed & security::capget()?.permitted;
    security::capset(security::Capabilities { effective: allowed, permitted: allowed, inheritable: 0 })?;
    security::set_no_new_privs()
}

impl Prisoner {
    /// Asks for an opaque mark and waits for the answer.
    fn ask(&mut self, path: &[u8]) -> io::Result<Result<()>> {
        socket::send(self.control.as_fd(), &[b"O", path].concat(), libc::MSG_NOSIGNAL)?;
        let mut answer = vec![0; MESSAGE_MAX];
        let length = socket::recv(self.control.as_fd(), &mut answer, 0)?;
        Ok(match answer.get(..length) {
            Some([b'R']) => Ok(()),
            Some(message @ [b'E', ..]) => Err(decode(message)),
            _ => Err(Error::system("no answer from outside the jail")),
        })
    }
}

impl Marker for Prisoner {
    fn mark_opaque(&mut self, path: &[u8], _: BorrowedFd) -> Result<()> {
        self.ask(path).map_err(|e| Error::io("ask for an opaque mark", &e))?
    }
}

impl Jail<'_> {
    /// The one inside.
    pub fn pid(&self) -> process::Pid {
        self.pid
    }

    /// Writes all of `bytes` to the child's pipe (`pipe` is non-blocking), serving marks meanwhile, as the child may wait for
    /// one. False when the child reads no more: [`Jail::finish`] says why.
    pub fn feed(&mut self, pipe: BorrowedFd, mut bytes: &[u8]) -> Result<bool> {
        while !bytes.is_empty() {
            match fd::write(pipe, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) => return Ok(false),
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {
                    let mut waits = [
                        libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLOUT, revents: 0 },
                        libc::pollfd { fd: self.control.as_raw_fd(), events: libc::POLLIN, revents: 0 },
                    ];
                    sys::poll::poll(&mut waits, -1).map_err(|e| Error::io("poll", &e))?;
                    if waits[1].revents != 0 && !self.serve()? {
                        return Ok(false);
                    }
                }
                Err(e) => return Err(Error::io("write to the jail", &e)),
            }
        }
        Ok(true)
    }

    /// Serves one message if it asks for a mark; false when it is the report, which stays for [`Jail::finish`].
    fn serve(&mut self) -> Result<bool> {
        let mut message = vec![0; MESSAGE_MAX];
        let length = socket::recv(self.control.as_fd(), &mut message, libc::MSG_PEEK).unwrap_or(0);
        let Some([b'O', path @ ..]) = message.get(..length) else { return Ok(false) };
        let answer = match self.mark(path) {
            Ok(()) => b"R".to_vec(),
            Err(error) => encode(&error),
        };
        let mut taken = [0; 1];
        socket::recv(self.control.as_fd(), &mut taken, 0).map_err(|e| Error::io("receive from the jail", &e))?;
        // A child that is gone already told or will tell why.
        let _ = socket::send(self.control.as_fd(), &answer, libc::MSG_NOSIGNAL);
        Ok(true)
    }

    fn mark(&self, path: &[u8]) -> Result<()> {
        let tree = self.tree.ok_or_else(|| Error::system("no opaque marks in this jail"))?;
        let name = sys::cstring(if path.is_empty() { b"." } else { path }).map_err(|e| failed("open", path, &e))?;
        let resolve = fd::RESOLVE_BENEATH | fd::RESOLVE_NO_SYMLINKS | fd::RESOLVE_NO_MAGICLINKS | fd::RESOLVE_NO_XDEV;
        let directory = fd::openat2(tree, &name, libc::O_RDONLY | libc::O_DIRECTORY, 0, resolve).map_err(|e| failed("open", path, &e))?;
        MarkDirectly.mark_opaque(path, directory.as_fd())
    }

    /// Waits for the report, serving marks until it comes.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        while self.serve()? {}
        let mut message = vec![0; MESSAGE_MAX];
        let length = socket::recv(self.control.as_fd(), &mut message, 0).unwrap_or(0);
        let status = self.reap()?;
        match message.get(..length) {
            Some([b'R', report @ ..]) => Ok(report.to_vec()),
            Some(message @ [b'E', ..]) => Err(decode(message)),
            _ => Err(Error::system(match status {
                process::ExitStatus::Signal(signal) => format!("unpacking process killed by signal {signal}"),
                process::ExitStatus::Code(code) => format!("unpacking process exited with code {code}"),
            })),
        }
    }

    fn reap(&mut self) -> Result<process::ExitStatus> {
        let status = process::waitpid(self.pid, 0).map_err(|e| Error::io("waitpid", &e))?;
        self.reaped = true;
        Ok(status.map_or(process::ExitStatus::Code(0), |(_, status)| status))
    }
}

impl Drop for Jail<'_> {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = process::kill(self.pid, libc::SIGKILL);
            let _ = self.reap();
        }
    }
}

/// Bytes of the pipe into or out of a jail: what an unprivileged process may ask for too.
pub const PIPE_SIZE: libc::c_int = 1 << 20;

/// A pipe as large as it gets, (read end, write end).
pub fn wide_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = fd::pipe2(0).map_err(|e| Error::io("pipe", &e))?;
    // A smaller pipe works too, only slower.
    let _ = fd::set_pipe_size(write.as_fd(), PIPE_SIZE);
    Ok((read, write))
}

/// Runs `body` in a jail with `source` as its input; decompression and digests belong into `source`, outside.
pub fn stream_in(
    mut policy: Policy,
    source: &mut dyn Read,
    body: impl FnOnce(&mut dyn Read, &mut Prisoner) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let (read, write) = wide_pipe()?;
    fd::set_nonblocking(write.as_fd(), true).map_err(|e| Error::io("fcntl", &e))?;
    policy.keep.push(read.as_raw_fd());
    let mut jail = start(policy, |prisoner| body(&mut std::fs::File::from(dup(&read)?), prisoner))?;
    drop(read);
    let mut buffer = vec![0; 256 * 1024];
    let mut ended = false;
    while !ended {
        // Decoders give small pieces; the pipe costs by the write.
        let mut filled = 0;
        while filled < buffer.len() / 2 && !ended {
            match source.read(&mut buffer[filled..]) {
                Ok(0) => ended = true,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The child is killed by the drop: a broken source must not look like a whole one.
                Err(e) => return Err(from_io("read archive", e)),
            }
        }
        if !jail.feed(write.as_fd(), &buffer[..filled])? {
            break;
        }
    }
    drop(write);
    jail.finish()
}

/// Runs `body` in a jail and copies what it writes to `out`.
pub fn stream_out(
    mut policy: Policy,
    out: &mut dyn Write,
    body: impl FnOnce(&mut dyn Write, &mut Prisoner) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let (read, write) = wide_pipe()?;
    policy.keep.push(write.as_raw_fd());
    let jail = start(policy, |prisoner| body(&mut std::fs::File::from(dup(&write)?), prisoner))?;
    drop(write);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match fd::read(read.as_fd(), &mut buffer).map_err(|e| Error::io("read from the jail", &e))? {
            0 => break,
            count => out.write_all(&buffer[..count]).map_err(|e| from_io("write archive", e))?,
        }
    }
    jail.finish()
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().map_err(|e| Error::io("dup", &e))
}

/// The kinds as one byte each, for the way out of the jail.
const KINDS: [Kind; 9] = [
    Kind::InvalidParameter,
    Kind::Unauthorized,
    Kind::Forbidden,
    Kind::NotFound,
    Kind::Conflict,
    Kind::NotModified,
    Kind::NotImplemented,
    Kind::Unavailable,
    Kind::System,
];

fn encode(error: &Error) -> Vec<u8> {
    let kind = KINDS.iter().position(|k| *k == error.kind).and_then(|i| u8::try_from(i).ok()).unwrap_or(8);
    let text = error.message.as_bytes();
    [&[b'E', kind], &text[..text.len().min(8192)]].concat()
}

fn decode(message: &[u8]) -> Error {
    let kind = message.get(1).and_then(|i| KINDS.get(usize::from(*i))).copied().unwrap_or(Kind::System);
    Error::new(kind, String::from_utf8_lossy(message.get(2..).unwrap_or_default()))
}
