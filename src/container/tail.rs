//! The end of every start: identity, limits, rights, filters, and execve. The same for a container's first process and for an exec;
//! the order is the one tried out in DESIGN §4, and each paragraph says why it stands where it stands.

use super::cgroup::devices::{Kind, Node};
use super::plan::SYS_ADMIN;
use super::plan::Seccomp;
use super::plan_process::{Process, Sysctl, Terminal};
use super::report::{At, Failure, Step, child as say};
use super::rootfs;
use super::user::{self, Identity};
use crate::sys;
use crate::sys::fd::{AT_FDCWD, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV};
use crate::sys::process::Pointers;
use crate::sys::security::Capabilities;
use std::convert::Infallible;
use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const DEVPTS_MAGIC: i64 = 0x1cd1;
const CLOSE_RANGE_CLOEXEC: u32 = 4;

/// The child's ends of its standard streams. A terminal takes all three places.
#[derive(Debug, Default)]
pub struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub terminal: Option<OwnedFd>,
}

/// Becomes the program. `root` is the container's root, which is this process's too; `proc` its procfs by descriptor, without which
/// no label is written.
pub fn execute(
    process: &Process,
    root: BorrowedFd,
    proc: Option<BorrowedFd>,
    channel: BorrowedFd,
    streams: Streams,
) -> Result<Infallible, Failure> {
    // Looked up here, inside the root, at the time of the start.
    let identity = user::resolve(root, &process.user)?;
    if process.make_workdir {
        rootfs::make_directories(root, &process.workdir).at(Step::Workdir, process.workdir.to_string_lossy())?;
    }
    let arguments = Pointers::new(&process.argv);
    let home = CString::new([b"HOME=", identity.home.to_bytes()].concat()).unwrap_or_default();
    let mut environment: Vec<&CStr> = process.environment.iter().map(CString::as_c_str).collect();
    if process.home_from_passwd {
        environment.push(&home);
    }
    let environment = Pointers::new(&environment);

    // A session of its own, so that the terminal can be its controlling one and no signal of another's reaches it.
    sys::process::setsid().at(Step::Streams, "session")?;
    place_streams(root, &streams, identity.uid)?;
    drop(streams);

    for limit in &process.rlimits {
        sys::process::setrlimit(limit.resource, limit.soft, limit.hard).at(Step::Rlimit, limit.resource)?;
    }
    sys::fs::umask(0o022);

    // As root, and only if that is refused (a file system that squashes root) as the user: as the reference does.
    let early = match sys::fs::chdir(&process.workdir) {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => false,
        entered => entered.map(|()| true).at(Step::Chdir, process.workdir.to_string_lossy())?,
    };
    if let Some(proc) = proc {
        write_labels(proc, process)?;
    }
    // After the labels, one of which is for it.
    match sys::security::keyctl_join_session_keyring(&process.keyring) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {}
        joined => joined.at(Step::Keyring, "")?,
    }

    become_user(process, &identity)?;

    if !early {
        sys::fs::chdir(&process.workdir).at(Step::Chdir, process.workdir.to_string_lossy())?;
    }
    // A directory of the host, reached through some descriptor, has no path here.
    if sys::fs::getcwd().is_ok_and(|path| path.first() != Some(&b'/')) {
        return Err(Failure::new(Step::OutsideRoot, "", 0));
    }
    let program = find_program(process)?;

    if process.no_new_privileges {
        sys::security::set_no_new_privs().at(Step::NoNewPrivileges, "")?;
    }
    sys::fd::close_range(3, u32::MAX, CLOSE_RANGE_CLOEXEC).at(Step::Descriptors, "")?;
    say::send_executing(channel)?;
    // Last, so that the filter only has to allow execve, and what is said of its failure.
    if let Seccomp::Filter { program, flags } = &process.seccomp {
        sys::security::seccomp_set_filter(program, *flags).at(Step::Seccomp, "")?;
    }
    let cause = sys::process::execve(&program, &arguments, &environment);

    // The program was found but the kernel can't run it (no interpreter, wrong architecture). As in the reference the start has
    // succeeded by now: the container's own stderr says why it ended.
    let words = format!("exec {}: {}\n", program.to_string_lossy(), crate::error::strerror(&cause));
    drop(sys::fd::write_all(io::stderr().as_fd(), words.as_bytes()));
    sys::process::exit(255)
}

/// Puts the streams on 0, 1 and 2; they belong to the user, who may open them again by name.
fn place_streams(root: BorrowedFd, streams: &Streams, uid: u32) -> Result<(), Failure> {
    if let Some(tty) = &streams.terminal {
        sys::tty::set_controlling(tty.as_fd()).at(Step::Terminal, "make it controlling")?;
    }
    let null;
    let stdin = match streams.terminal.as_ref().or(streams.stdin.as_ref()) {
        Some(stdin) => stdin,
        None => {
            null = null_input(root).at(Step::Streams, "stdin")?;
            &null
        }
    };
    let places: [(c_int, Option<&OwnedFd>); 3] = [
        (0, Some(stdin)),
        (1, streams.terminal.as_ref().or(streams.stdout.as_ref())),
        (2, streams.terminal.as_ref().or(streams.stderr.as_ref()).or(streams.stdout.as_ref())),
    ];
    for (number, stream) in places {
        let stream = stream.ok_or_else(|| Failure::new(Step::Streams, "streams", libc::EBADF))?;
        sys::fd::dup3(stream.as_fd(), number, 0).at(Step::Streams, "streams")?;
    }
    for own in [&streams.stdin, &streams.stdout, &streams.stderr, &streams.terminal].into_iter().flatten() {
        sys::fs::fchownat(own.as_fd(), c"", uid, u32::MAX, libc::AT_EMPTY_PATH).at(Step::Streams, "streams")?;
    }
    Ok(())
}

/// The container's /dev/null, if it is that; else an input that has ended.
fn null_input(root: BorrowedFd) -> io::Result<OwnedFd> {
    let is_null = |fd: BorrowedFd| {
        sys::fd::fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == sys::fs::makedev(1, 3))
    };
    let opened = rootfs::open_plain(root, c"dev/null", libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY);
    match opened {
        Ok(null) if is_null(null.as_fd()) => {
            sys::fd::set_nonblocking(null.as_fd(), false)?;
            Ok(null)
        }
        _ => sys::fd::pipe2(0).map(|(read, _)| read),
    }
}

/// From root of everything to the process's own rights.
fn become_user(process: &Process, identity: &Identity) -> Result<(), Failure> {
    // Exactly these groups, even when there are none: the daemon's own must not stay.
    sys::process::setgroups(&identity.groups).at(Step::Groups, "")?;
    // While CAP_SETPCAP is still there.
    for capability in &process.dropped {
        sys::security::capbset_drop(*capability).at(Step::Capabilities, "")?;
    }
    // KEEPCAPS: loading the filter below needs SYS_ADMIN, which setuid would take away.
    sys::security::set_keepcaps(true).at(Step::Capabilities, "")?;
    sys::process::setresgid(identity.gid).at(Step::SetUser, "")?;
    sys::process::setresuid(identity.uid).at(Step::SetUser, "")?;
    sys::security::set_keepcaps(false).at(Step::Capabilities, "")?;
    sys::security::clear_ambient().at(Step::Capabilities, "")?;
    // Whoever is not root has nothing from here on: what follows is checked as it will be for the program. execve computes the final
    // sets from the bounding set (root), or empties them (others).
    let own = if identity.uid == 0 { process.capabilities } else { 0 };
    let set = own | SYS_ADMIN;
    sys::security::capset(Capabilities { effective: set, permitted: set, inheritable: 0 }).at(Step::Capabilities, "")
}

/// argv[0] as execvp would find it, with Go's distinctions in the errors.
fn find_program(process: &Process) -> Result<CString, Failure> {
    let name = process.argv.first().map_or(c"", CString::as_c_str);
    let text = || name.to_string_lossy();
    if name.to_bytes().contains(&b'/') {
        let stat = sys::fs::fstatat(AT_FDCWD, name, 0).at(Step::LookupStat, text())?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            return Err(Failure::new(Step::Lookup, text(), libc::EISDIR));
        }
        sys::fs::faccessat(AT_FDCWD, name, libc::X_OK).at(Step::Lookup, text())?;
        return Ok(name.to_owned());
    }
    let candidates = process.search.iter().filter(|_| !name.is_empty());
    for directory in candidates {
        let path = CString::new([directory.to_bytes(), b"/", name.to_bytes()].concat()).unwrap_or_default();
        let is_file = |stat: libc::stat64| stat.st_mode & libc::S_IFMT != libc::S_IFDIR;
        if sys::fs::fstatat(AT_FDCWD, &path, 0).is_ok_and(is_file) && sys::fs::faccessat(AT_FDCWD, &path, libc::X_OK).is_ok() {
            return Ok(path);
        }
    }
    Err(Failure::new(Step::NotInPath, text(), 0))
}

/// A pty from the devpts at the container's /dev/pts; its master goes to the daemon, the slave is returned.
pub fn open_terminal(root: BorrowedFd, channel: BorrowedFd, size: Option<Terminal>) -> Result<OwnedFd, Failure> {
    let master = rootfs::open_plain(root, c"dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY).at(Step::Terminal, "open /dev/pts/ptmx")?;
    let file_system = sys::fs::fstatfs(master.as_fd()).at(Step::Terminal, "statfs /dev/pts/ptmx")?;
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // f_type's width differs between targets
    let magic = file_system.f_type as i64;
    if magic != DEVPTS_MAGIC {
        return Err(Failure::new(Step::Terminal, "/dev/pts/ptmx", libc::ENOTTY));
    }
    sys::tty::unlockpt(master.as_fd()).at(Step::Terminal, "unlock")?;
    // Through the master, so that no path of the container is followed.
    let slave = sys::tty::ptpeer(master.as_fd(), libc::O_RDWR | libc::O_NOCTTY).at(Step::Terminal, "open the pty")?;
    if let Some(Terminal { rows, columns }) = size.filter(|size| (size.rows, size.columns) != (0, 0)) {
        sys::tty::set_window_size(master.as_fd(), rows, columns).at(Step::Terminal, "resize")?;
    }
    say::send_pty(channel, master.as_fd())?;
    Ok(slave)
}

/// Writes one sysctl, below /proc/sys opened before anything of the container could be mounted on it or linked into it.
pub fn write_sysctl(dir: BorrowedFd, sysctl: &Sysctl) -> Result<(), Failure> {
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
    let name = || sysctl.path.to_string_lossy().replace('/', ".");
    match sys::fd::openat2(dir, &sysctl.path, libc::O_WRONLY, 0, resolve) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) && !sysctl.required => Ok(()),
        opened => sys::fd::write_all(opened.at(Step::Sysctl, name())?.as_fd(), &sysctl.value).at(Step::Sysctl, name()),
    }
}

/// The AppArmor profile and the SELinux label that the next execve changes to.
fn write_labels(proc: BorrowedFd, process: &Process) -> Result<(), Failure> {
    let open = |path| sys::fd::openat(proc, path, libc::O_WRONLY, 0);
    if let Some(profile) = &process.apparmor {
        // The specific file is there since Linux 5.8; the older one belongs to whichever module came first.
        let file = open(c"thread-self/attr/apparmor/exec").or_else(|_| open(c"thread-self/attr/exec"));
        let file = file.at(Step::Label, "apparmor profile")?;
        sys::fd::write_all(file.as_fd(), profile.to_bytes()).at(Step::Label, "apparmor profile")?;
    }
    if let Some(label) = &process.selinux {
        for path in [c"thread-self/attr/keycreate", c"thread-self/attr/exec"] {
            let file = open(path).at(Step::Label, "selinux label")?;
            sys::fd::write_all(file.as_fd(), label.to_bytes()).at(Step::Label, "selinux label")?;
        }
    }
    Ok(())
}

/// A node's mode with its type.
pub fn file_mode(node: &Node) -> libc::mode_t {
    node.mode & 0o7777 | if node.kind == Kind::Block { libc::S_IFBLK } else { libc::S_IFCHR }
}

/// A device node outside /dev.
pub fn make_device(root: BorrowedFd, node: &Node) -> Result<(), Failure> {
    let work = || {
        let path = sys::cstring(&node.path)?;
        let split = path.to_bytes().iter().rposition(|b| *b == b'/').ok_or(io::ErrorKind::InvalidInput)?;
        let (parent, name) = (sys::cstring(&path.to_bytes()[..=split])?, sys::cstring(&path.to_bytes()[split + 1..])?);
        let parent = rootfs::make_directories(root, &parent)?;
        match sys::fs::mknodat(parent.as_fd(), &name, file_mode(node), sys::fs::makedev(node.major, node.minor)) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => return Ok(()),
            made => made?,
        }
        sys::fs::fchownat(parent.as_fd(), &name, node.uid, node.gid, libc::AT_SYMLINK_NOFOLLOW)
    };
    work().at(Step::Device, &node.path)
}
