//! `coracle stage`: a fresh process between the daemon and a child that others can see from its first moment on.
//!
//! A child of the daemon carries a copy of the daemon's memory until its execve. Being undumpable hides that from everyone but those who
//! hold SYS_PTRACE: an exec into a privileged container, or a container in the pid namespace of another, would show it. So the daemon
//! forks where nobody looks, and executes itself; the fresh process has nothing in its memory but the plan, enters the pid namespace, and
//! makes the child as the daemon's own (CLONE_PARENT). Descriptors travel by number.

use super::child::{self, Inherited};
use super::exec_launch;
use super::launch::enter_and_clone;
use super::plan::{ExecPlan, LaunchPlan, Placement};
use super::tail::Streams;
use crate::sys;
use crate::sys::process::{Pid, Pointers};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// What the fresh process is told. Everything else that it has is code.
#[derive(Serialize, Deserialize)]
struct Order<P> {
    plan: P,
    channel: RawFd,
    overlays: Vec<RawFd>,
    stdin: Option<RawFd>,
    stdout: Option<RawFd>,
    stderr: Option<RawFd>,
}

/// As `launch`'s clone, by way of a stage.
pub(super) fn start_launch(plan: &LaunchPlan, channel: &OwnedFd, overlays: &[OwnedFd], streams: &Streams) -> io::Result<(Pid, OwnedFd)> {
    let mut keep = of_placement(&plan.cgroup);
    keep.extend(plan.joins.iter().map(|join| join.namespace.as_raw_fd()));
    keep.extend(plan.pid_namespace.iter().map(|member| member.pidfd.as_raw_fd()));
    keep.extend(plan.mounts.iter().filter_map(|mount| match mount {
        super::plan_mounts::Mount::SharedMemory { owner, .. } => Some(owner.pidfd.as_raw_fd()),
        _ => None,
    }));
    start("launch", plan, channel, overlays, streams, keep)
}

/// As `launch_exec`'s clone, by way of a stage.
pub(super) fn start_exec(plan: &ExecPlan, channel: &OwnedFd, streams: &Streams) -> io::Result<(Pid, OwnedFd)> {
    let mut keep = of_placement(&plan.cgroup);
    keep.push(plan.target.pidfd.as_raw_fd());
    start("exec", plan, channel, &[], streams, keep)
}

fn of_placement(placement: &Placement) -> Vec<RawFd> {
    let join = placement.join.iter();
    join.flat_map(|join| join.files.iter().chain(&join.directory)).map(AsRawFd::as_raw_fd).collect()
}

/// Waits for the stage's answer: a millisecond of our own code, which nobody else can delay.
fn start(
    kind: &str,
    plan: &impl Serialize,
    channel: &OwnedFd,
    overlays: &[OwnedFd],
    streams: &Streams,
    mut keep: Vec<RawFd>,
) -> io::Result<(Pid, OwnedFd)> {
    let number = |fd: &Option<OwnedFd>| fd.as_ref().map(AsRawFd::as_raw_fd);
    let order = Order {
        plan,
        channel: channel.as_raw_fd(),
        overlays: overlays.iter().map(AsRawFd::as_raw_fd).collect(),
        stdin: number(&streams.stdin),
        stdout: number(&streams.stdout),
        stderr: number(&streams.stderr),
    };
    keep.push(order.channel);
    keep.extend(order.overlays.iter().chain(&order.stdin).chain(&order.stdout).chain(&order.stderr));
    let text = sys::fd::memfd_create(c"plan", 0)?;
    sys::fd::write_all(text.as_fd(), &serde_json::to_vec(&order)?)?;
    sys::fd::lseek(text.as_fd(), 0, libc::SEEK_SET)?;
    let (ours, theirs) = sys::socket::socketpair(libc::SOCK_SEQPACKET)?;
    keep.extend([text.as_raw_fd(), theirs.as_raw_fd()]);
    let words = ["coracle".to_owned(), "stage".to_owned(), kind.to_owned(), text.as_raw_fd().to_string(), theirs.as_raw_fd().to_string()];
    let words = words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
    let Some(stage) = sys::process::fork()? else {
        let inherit = |fd: &RawFd| sys::fd::adopt(*fd).and_then(|fd| sys::fd::set_cloexec(ManuallyDrop::new(fd).as_fd(), false));
        if keep.iter().all(|fd| inherit(fd).is_ok()) {
            // The magic link, not a path: it leads to the daemon's own binary wherever that is mounted.
            sys::process::execve(c"/proc/self/exe", &Pointers::new(&words), &Pointers::new::<CString>(&[]));
        }
        sys::process::exit(127);
    };
    drop(theirs);
    let mut answer = [0; 4];
    let received = sys::socket::recv_with_fds(ours.as_fd(), &mut answer);
    sys::process::waitpid(stage, 0)?;
    match received? {
        (4, mut fds) if fds.len() == 1 => Ok((Pid::from_ne_bytes(answer), fds.remove(0))),
        (4, _) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(answer))),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The face `coracle stage`. Of use to the daemon only; returns the exit status.
pub fn main(args: &[String]) -> i32 {
    let fd = |at: usize| args.get(at).and_then(|text| text.parse().ok()).filter(|fd| *fd > 2).and_then(|fd| sys::fd::adopt(fd).ok());
    let (Some(kind), Some(text), Some(answer)) = (args.first(), fd(1), fd(2)) else {
        eprintln!("coracle stage is started by the daemon only");
        return 2;
    };
    let mut order = Vec::new();
    let cloned = io::Read::read_to_end(&mut std::fs::File::from(text), &mut order).and_then(|_| match kind.as_str() {
        "exec" => exec(&order, &answer),
        _ => launch(&order, &answer),
    });
    let sent = match cloned {
        Ok((pid, pidfd)) => sys::socket::send_with_fds(answer.as_fd(), &pid.to_ne_bytes(), &[pidfd.as_raw_fd()]),
        Err(cause) => sys::socket::send(answer.as_fd(), &cause.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes(), 0),
    };
    i32::from(sent.is_err())
}

fn launch(order: &[u8], answer: &OwnedFd) -> io::Result<(Pid, OwnedFd)> {
    // Never dropped: a descriptor may stand in the plan twice, and the process ends anyway.
    let order: ManuallyDrop<Order<LaunchPlan>> = ManuallyDrop::new(serde_json::from_slice(order)?);
    let overlays = order.overlays.iter().map(|fd| sys::fd::adopt(*fd)).collect::<io::Result<_>>()?;
    let inherited = Inherited { channel: sys::fd::adopt(order.channel)?, overlays, streams: streams(&order)? };
    match enter_and_clone(order.plan.clone_flags, order.plan.pid_namespace.as_ref(), &order.plan.cgroup)? {
        Some(cloned) => Ok(cloned),
        None => {
            sys::fd::set_cloexec(answer.as_fd(), true)?;
            child::run(&order.plan, inherited)
        }
    }
}

fn exec(order: &[u8], answer: &OwnedFd) -> io::Result<(Pid, OwnedFd)> {
    let order: ManuallyDrop<Order<ExecPlan>> = ManuallyDrop::new(serde_json::from_slice(order)?);
    let (channel, streams) = (sys::fd::adopt(order.channel)?, streams(&order)?);
    match enter_and_clone(0, Some(&order.plan.target), &order.plan.cgroup)? {
        Some(cloned) => Ok(cloned),
        None => {
            sys::fd::set_cloexec(answer.as_fd(), true)?;
            exec_launch::run(&order.plan, channel, streams)
        }
    }
}

fn streams<P>(order: &Order<P>) -> io::Result<Streams> {
    let own = |fd: Option<RawFd>| fd.map(sys::fd::adopt).transpose();
    Ok(Streams { stdin: own(order.stdin)?, stdout: own(order.stdout)?, stderr: own(order.stderr)?, terminal: None })
}

/// A descriptor as its number.
pub(super) mod descriptor {
    use super::{AsRawFd, Deserialize, OwnedFd, RawFd, sys};
    use serde::de::Error;
    use serde::{Deserializer, Serializer};
    use std::rc::Rc;

    pub fn serialize<S: Serializer>(fd: &Rc<OwnedFd>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i32(fd.as_raw_fd())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Rc<OwnedFd>, D::Error> {
        sys::fd::adopt(RawFd::deserialize(from)?).map(Rc::new).map_err(D::Error::custom)
    }
}

/// The way into a cgroup, as numbers.
pub(super) mod join {
    use super::{AsRawFd, Deserialize, RawFd, Serialize, sys};
    use crate::container::cgroup::Join;
    use serde::de::Error;
    use serde::{Deserializer, Serializer};
    use std::rc::Rc;

    pub fn serialize<S: Serializer>(join: &Option<Rc<Join>>, to: S) -> Result<S::Ok, S::Error> {
        let numbers = join.as_ref().map(|join| {
            let files: Vec<RawFd> = join.files.iter().map(AsRawFd::as_raw_fd).collect();
            (join.directory.as_ref().map(AsRawFd::as_raw_fd), files)
        });
        numbers.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Rc<Join>>, D::Error> {
        let Some((directory, files)) = Option::<(Option<RawFd>, Vec<RawFd>)>::deserialize(from)? else { return Ok(None) };
        let directory = directory.map(sys::fd::adopt).transpose().map_err(D::Error::custom)?;
        let files = files.into_iter().map(sys::fd::adopt).collect::<Result<_, _>>().map_err(D::Error::custom)?;
        Ok(Some(Rc::new(Join { directory, files })))
    }
}

/// A filter, instruction by instruction.
pub(super) mod program {
    use super::{Deserialize, Serialize};
    use crate::sys::security::BpfInstruction;
    use serde::{Deserializer, Serializer};
    use std::rc::Rc;

    pub fn serialize<S: Serializer>(program: &Rc<[BpfInstruction]>, to: S) -> Result<S::Ok, S::Error> {
        program.as_ref().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Rc<[BpfInstruction]>, D::Error> {
        Vec::deserialize(from).map(Rc::from)
    }
}
