//! What a starting child tells the daemon over its channel, and the words that clients read when a start fails.
//!
//! The channel is a close-on-exec SEQPACKET pair. The child sends at most: the pty master, "ready", then either a failure
//! (step, errno, object) or "executing". An end of file after "executing" means that execve has happened; without it, that
//! the child died on the way. Failures are rendered in the words of dockerd 28 and runc 1.3, here and nowhere else.

use crate::error::{Error, Kind, strerror};
use crate::sys;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Where a start failed. The order is the order of events; the number travels in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// The daemon's half: the overlay as a detached mount.
    Overlay,
    /// The daemon's half: pipes, channel, cgroup descriptor.
    Prepare,
    /// The daemon's half: entering another pid namespace for its children.
    EnterPidNamespace,
    Clone,
    OomScore,
    IdMap,
    // The child's half.
    Cgroup,
    JoinNamespace,
    SharedMemory,
    BindSource,
    BindSubpath,
    Propagation,
    Root,
    Mount,
    MountPoint,
    Device,
    Mask,
    ReadonlyPath,
    ReadonlyRoot,
    Terminal,
    PivotRoot,
    Hostname,
    Domainname,
    Go,
    Network,
    Sysctl,
    Workdir,
    UserUnknown,
    GroupUnknown,
    ExtraGroupUnknown,
    IdRange,
    UserFile,
    Streams,
    Rlimit,
    Keyring,
    Groups,
    Capabilities,
    SetUser,
    Chdir,
    OutsideRoot,
    NotInPath,
    LookupStat,
    Lookup,
    NoNewPrivileges,
    Label,
    Descriptors,
    Seccomp,
    /// The child ended before it could execute its program or say why.
    Died,
}

impl Step {
    const ALL: [Step; 48] = [
        Step::Overlay,
        Step::Prepare,
        Step::EnterPidNamespace,
        Step::Clone,
        Step::OomScore,
        Step::IdMap,
        Step::Cgroup,
        Step::JoinNamespace,
        Step::SharedMemory,
        Step::BindSource,
        Step::BindSubpath,
        Step::Propagation,
        Step::Root,
        Step::Mount,
        Step::MountPoint,
        Step::Device,
        Step::Mask,
        Step::ReadonlyPath,
        Step::ReadonlyRoot,
        Step::Terminal,
        Step::PivotRoot,
        Step::Hostname,
        Step::Domainname,
        Step::Go,
        Step::Network,
        Step::Sysctl,
        Step::Workdir,
        Step::UserUnknown,
        Step::GroupUnknown,
        Step::ExtraGroupUnknown,
        Step::IdRange,
        Step::UserFile,
        Step::Streams,
        Step::Rlimit,
        Step::Keyring,
        Step::Groups,
        Step::Capabilities,
        Step::SetUser,
        Step::Chdir,
        Step::OutsideRoot,
        Step::NotInPath,
        Step::LookupStat,
        Step::Lookup,
        Step::NoNewPrivileges,
        Step::Label,
        Step::Descriptors,
        Step::Seccomp,
        Step::Died,
    ];
}

/// A start that failed: the step, its errno, and the object it was about (a path, a name, or runc's own phrase).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub step: Step,
    pub object: String,
    /// 0 where the step alone says everything.
    pub errno: i32,
}

/// Whose start failed; dockerd words the two differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A container's first process.
    Create,
    /// A process in a running container.
    Exec,
}

impl Failure {
    pub fn new(step: Step, object: impl Into<String>, errno: i32) -> Failure {
        Failure { step, object: object.into(), errno }
    }

    /// The error for the API and the container's (or exec's) exit code: 126, 127, or 128 where nothing better is known.
    pub fn explain(&self, phase: Phase) -> (Error, i32) {
        let mut message = self.message(phase);
        let lower = message.to_lowercase();
        // The same order and the same tests on the text as the reference: clients see its quirks.
        let (kind, code) = if lower.contains("permission denied") {
            (Kind::InvalidParameter, 126)
        } else if lower.contains("is a directory") {
            message.push_str(": permission denied");
            (Kind::InvalidParameter, 126)
        } else if lower.contains("not a directory") {
            message.push_str(
                ": Are you trying to mount a directory onto a file (or vice-versa)? \
                 Check if the specified host path exists and is the expected type",
            );
            (Kind::InvalidParameter, 127)
        } else if lower.contains("executable file not found") || lower.contains("no such file or directory") {
            (Kind::InvalidParameter, 127)
        } else {
            (Kind::System, 128)
        };
        match self.step {
            // Looked up by dockerd itself, before any runtime is asked: no exit code of its own, and never the client's fault.
            Step::UserUnknown | Step::GroupUnknown | Step::ExtraGroupUnknown | Step::IdRange | Step::UserFile => {
                (Error::system(self.cause()), if phase == Phase::Exec { 126 } else { 128 })
            }
            Step::Workdir => (Error::system(self.cause()), 128),
            _ => (Error::new(kind, message), code),
        }
    }

    fn message(&self, phase: Phase) -> String {
        let cause = self.cause();
        match (phase, self.step) {
            (_, Step::UserUnknown | Step::GroupUnknown | Step::ExtraGroupUnknown | Step::IdRange | Step::UserFile | Step::Workdir) => cause,
            (Phase::Exec, _) => format!("OCI runtime exec failed: exec failed: unable to start container process: {cause}: unknown"),
            (Phase::Create, Step::Overlay) => format!("failed to create task for container: {cause}"),
            (Phase::Create, Step::Rlimit | Step::Died | Step::Clone | Step::Prepare | Step::IdMap | Step::OomScore) => {
                format!("{CREATE_PREFIX}{cause}: unknown")
            }
            (Phase::Create, _) => format!("{CREATE_PREFIX}error during container init: {cause}: unknown"),
        }
    }

    /// The failure without dockerd's prefixes, as runc's init says it.
    fn cause(&self) -> String {
        let Failure { step, object, errno } = self;
        let errno = strerror(&io::Error::from_raw_os_error(*errno));
        match step {
            Step::Overlay => format!("failed to mount overlay at {object}: {errno}"),
            Step::Prepare => format!("unable to create {object}: {errno}"),
            Step::EnterPidNamespace => format!("unable to join pid namespace of {object}: {errno}"),
            Step::Clone => format!("unable to start init: {errno}"),
            Step::OomScore => format!("error setting oom score for ready process: write {object}: {errno}"),
            Step::IdMap => format!("unable to write {object}: {errno}"),
            Step::Cgroup => format!("error adding process to cgroup {object}: {errno}"),
            Step::JoinNamespace => format!("failed to setns into {object} namespace: {errno}"),
            Step::SharedMemory => format!("unable to share /dev/shm of {object}: {errno}"),
            Step::BindSource | Step::Mount => format!("error mounting {object}: {errno}"),
            Step::BindSubpath => format!("failed to safe open subpath {object}: {errno}"),
            Step::Propagation => format!("error preparing rootfs: unable to change propagation of {object}: {errno}"),
            Step::Root => format!("error preparing rootfs: {object}: {errno}"),
            Step::MountPoint => format!("error mounting {object}: create mountpoint: {errno}"),
            Step::Device => format!("error creating device nodes: {object}: {errno}"),
            Step::Mask => format!("can't mask path {object}: {errno}"),
            Step::ReadonlyPath => format!("can't make {object:?} read-only: {errno}"),
            Step::ReadonlyRoot => format!("error setting rootfs as readonly: {errno}"),
            Step::Terminal => format!("error setting up console: {object}: {errno}"),
            Step::PivotRoot => format!("error jailing process inside rootfs: pivot_root {object}: {errno}"),
            Step::Hostname => format!("sethostname: {errno}"),
            Step::Domainname => format!("setdomainname: {errno}"),
            Step::Go => format!("read init-p: {errno}"),
            Step::Network => format!("failed to set up container networking: {object}: {errno}"),
            Step::Sysctl => format!("open sysctl {object} file: {errno}"),
            Step::Workdir if self.errno == libc::ENOTDIR => format!("Cannot mkdir: {object} is not a directory"),
            Step::Workdir => format!("mkdir {object}: {errno}"),
            Step::UserUnknown => format!("unable to find user {object}: no matching entries in passwd file"),
            Step::GroupUnknown => format!("unable to find group {object}: no matching entries in group file"),
            Step::ExtraGroupUnknown => format!("Unable to find group {object}"),
            Step::IdRange => "uids and gids must be in range 0-2147483647".to_owned(),
            Step::UserFile => format!("unable to find user: open {object}: {errno}"),
            Step::Streams => format!("unable to set up {object}: {errno}"),
            Step::Rlimit => format!("error setting rlimits for ready process: error setting rlimit type {object}: {errno}"),
            Step::Keyring => format!("unable to join session keyring: {errno}"),
            Step::Groups => format!("unable to setgroups: {errno}"),
            Step::Capabilities => format!("unable to apply caps: {errno}"),
            Step::SetUser => format!("unable to setup user: {errno}"),
            Step::Chdir => format!("chdir to cwd ({object:?}) set in config.json failed: {errno}"),
            Step::OutsideRoot => {
                "current working directory is outside of container mount namespace root -- possible container breakout detected".to_owned()
            }
            Step::NotInPath => format!("exec: {object:?}: executable file not found in $PATH"),
            Step::LookupStat => format!("exec: {object:?}: stat {object}: {errno}"),
            Step::Lookup => format!("exec: {object:?}: {errno}"),
            Step::NoNewPrivileges => format!("prctl(SET_NO_NEW_PRIVS): {errno}"),
            Step::Label => format!("unable to apply {object}: {errno}"),
            Step::Descriptors => format!("error closing exec fds: {errno}"),
            Step::Seccomp => format!("unable to init seccomp: error loading seccomp filter into kernel: {errno}"),
            Step::Died => "container init was OOM-killed (memory limit too low?)".to_owned(),
        }
    }
}

const CREATE_PREFIX: &str = "failed to create task for container: failed to create shim task: \
     OCI runtime create failed: runc create failed: unable to start container process: ";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause())
    }
}

impl std::error::Error for Failure {}

/// Names the step and the object of a system call that may fail; the object is only formatted when it does.
pub trait At<T> {
    fn at(self, step: Step, object: impl fmt::Display) -> Result<T, Failure>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: Step, object: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|cause| Failure::new(step, object.to_string(), cause.raw_os_error().unwrap_or(libc::EIO)))
    }
}

/// What the daemon reads from a starting child.
#[derive(Debug)]
pub enum Report {
    /// Mounts stand, the child waits for go. Only sent when the plan asks for it.
    ReadyForGo,
    /// The master of the container's own pty, non-blocking.
    Pty(OwnedFd),
    /// The start failed; the child is about to exit.
    Failed(Failure),
    /// The program was executed. The channel has nothing more to say.
    Running,
}

const READY: u8 = b'R';
const PTY: u8 = b'P';
const FAILED: u8 = b'F';
const EXECUTING: u8 = b'X';
const GO: u8 = b'G';

/// A failure's object is cut to this many bytes.
const OBJECT_MAX: usize = 4096;

/// The daemon's end of the channel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    executing: bool,
    finished: bool,
}

impl Channel {
    /// A pair: the daemon's end (non-blocking) and the child's.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = sys::socket::socketpair(libc::SOCK_SEQPACKET)?;
        sys::fd::set_nonblocking(ours.as_fd(), true)?;
        Ok((Channel { socket: ours, executing: false, finished: false }, theirs))
    }

    /// The next report; `None` when there is none yet. After `Failed` or `Running` the channel is done.
    pub fn read_report(&mut self) -> io::Result<Option<Report>> {
        let mut buf = [0; OBJECT_MAX + 16];
        loop {
            if self.finished {
                return Ok(None);
            }
            let (n, mut fds) = match sys::socket::recv_with_fds(self.socket.as_fd(), &mut buf) {
                Ok(message) => message,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // The child died with our go unread.
                Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => (0, Vec::new()),
                Err(e) => return Err(e),
            };
            match buf[..n].split_first() {
                None => {
                    self.finished = true;
                    let died = || Report::Failed(Failure::new(Step::Died, "", 0));
                    return Ok(Some(if self.executing { Report::Running } else { died() }));
                }
                Some((&READY, [])) => return Ok(Some(Report::ReadyForGo)),
                Some((&EXECUTING, [])) => self.executing = true,
                Some((&PTY, [])) if fds.len() == 1 => {
                    let master = fds.remove(0);
                    sys::fd::set_nonblocking(master.as_fd(), true)?;
                    return Ok(Some(Report::Pty(master)));
                }
                Some((&FAILED, failure)) => {
                    self.finished = true;
                    return Ok(Some(Report::Failed(decode(failure).ok_or(io::ErrorKind::InvalidData)?)));
                }
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    /// Lets the child go on to its program. May be sent before the child is ready, even right after the launch.
    pub fn send_go(&self) -> io::Result<()> {
        self.send_go_with(&[])
    }

    /// As [`Channel::send_go`], with further netlink messages (each complete and aligned, with NLM_F_ACK) that the child sends in its own
    /// network namespace after those of its plan. At most 64 KiB in all.
    pub fn send_go_with(&self, netlink: &[Vec<u8>]) -> io::Result<()> {
        let mut message = vec![GO, 0, 0, 0];
        message.extend(netlink.iter().flatten());
        match sys::socket::send(self.socket.as_fd(), &message, 0) {
            Ok(_) => Ok(()),
            // The child is gone already; its report says why.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN)) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The child's words. Each is one message; a failure to send is not reported, as there is nobody to tell.
pub mod child {
    use super::{At, BorrowedFd, EXECUTING, FAILED, Failure, GO, OBJECT_MAX, PTY, READY, Step, sys};
    use std::os::fd::AsRawFd;

    pub fn send_failure(channel: BorrowedFd, failure: &Failure) {
        let mut message = vec![FAILED, failure.step as u8];
        message.extend(failure.errno.to_ne_bytes());
        message.extend(failure.object.bytes().take(OBJECT_MAX));
        drop(sys::socket::send(channel, &message, 0));
    }

    pub fn send_pty(channel: BorrowedFd, master: BorrowedFd) -> Result<(), Failure> {
        sys::socket::send_with_fds(channel, &[PTY], &[master.as_raw_fd()]).at(Step::Terminal, "send").map(drop)
    }

    pub fn send_ready(channel: BorrowedFd) -> Result<(), Failure> {
        sys::socket::send(channel, &[READY], 0).at(Step::Go, "").map(drop)
    }

    pub fn send_executing(channel: BorrowedFd) -> Result<(), Failure> {
        sys::socket::send(channel, &[EXECUTING], 0).at(Step::Go, "").map(drop)
    }

    /// Waits for go; the netlink messages that came with it. An end of file means that the daemon has given the start up.
    pub fn wait_for_go(channel: BorrowedFd) -> Result<Vec<u8>, Failure> {
        let mut message = vec![0; 65536];
        let n = sys::socket::recv(channel, &mut message, 0).at(Step::Go, "")?;
        message.truncate(n);
        if message.first() != Some(&GO) || n < 4 {
            return Err(Failure::new(Step::Go, "", libc::EPIPE));
        }
        Ok(message.split_off(4))
    }
}

fn decode(message: &[u8]) -> Option<Failure> {
    let (step, rest) = message.split_first()?;
    let (errno, object) = rest.split_first_chunk()?;
    let step = *Step::ALL.get(usize::from(*step))?;
    Some(Failure { step, object: String::from_utf8_lossy(object).into_owned(), errno: i32::from_ne_bytes(*errno) })
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_survives_the_wire() {
        for (n, step) in Step::ALL.iter().enumerate() {
            assert_eq!(*step as usize, n);
            let (mut ours, theirs) = Channel::pair().unwrap();
            let failure = Failure::new(*step, "/some/where", libc::EACCES);
            child::send_failure(theirs.as_fd(), &failure);
            let Some(Report::Failed(got)) = ours.read_report().unwrap() else { panic!("no failure") };
            assert_eq!(got, failure);
        }
        assert_eq!(Step::ALL.len(), Step::Died as usize + 1);
    }

    #[test]
    fn end_of_file_means_running_only_after_executing() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        assert!(ours.read_report().unwrap().is_none());
        child::send_executing(theirs.as_fd()).unwrap();
        assert!(ours.read_report().unwrap().is_none());
        drop(theirs);
        assert!(matches!(ours.read_report().unwrap(), Some(Report::Running)));
        assert!(ours.read_report().unwrap().is_none());

        let (mut ours, theirs) = Channel::pair().unwrap();
        ours.send_go().unwrap();
        drop(theirs);
        assert!(matches!(ours.read_report().unwrap(), Some(Report::Failed(Failure { step: Step::Died, .. }))));
    }

    #[test]
    fn a_missing_program_is_told_in_the_reference_s_words() {
        let (error, code) = Failure::new(Step::NotInPath, "nosuch", 0).explain(Phase::Create);
        assert_eq!(
            error.message,
            "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to \
             start container process: error during container init: exec: \"nosuch\": executable file not found in $PATH: unknown"
        );
        assert_eq!((error.kind, code), (Kind::InvalidParameter, 127));

        let (error, code) = Failure::new(Step::Lookup, "/tmp", libc::EISDIR).explain(Phase::Exec);
        assert_eq!(
            error.message,
            "OCI runtime exec failed: exec failed: unable to start container process: exec: \"/tmp\": is a directory: unknown: \
             permission denied"
        );
        assert_eq!((error.kind, code), (Kind::InvalidParameter, 126));

        let (error, code) = Failure::new(Step::UserUnknown, "bob", 0).explain(Phase::Create);
        assert_eq!(error.message, "unable to find user bob: no matching entries in passwd file");
        assert_eq!((error.kind, code), (Kind::System, 128));
    }

    #[test]
    fn go_carries_netlink_messages() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send_go_with(&[vec![1; 20], vec![2; 8]]).unwrap();
        let netlink = child::wait_for_go(theirs.as_fd()).unwrap();
        assert_eq!((netlink.len(), netlink[0], netlink[20]), (28, 1, 2));
        drop(ours);
        assert_eq!(child::wait_for_go(theirs.as_fd()).unwrap_err().errno, libc::EPIPE);
    }
}
