//! The daemon's half of a start: what needs its own credentials or its own namespaces, then clone3.
//!
//! Nothing here waits: a detached overlay, three pipes, one socket pair, one clone. What the child says is read from its channel by
//! the loop.

use super::child::{self, Inherited};
use super::overlay;
use super::plan::{LaunchPlan, Member, Placement};
use super::plan_process::Process;
use super::report::{At, Channel, Failure, Step};
use super::stage;
use super::tail::Streams;
use crate::sys;
use crate::sys::process::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// A child on its way to its program. Its exit is reaped like any other child's.
#[derive(Debug)]
pub struct Launched {
    /// In the daemon's pid namespace.
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub channel: Channel,
    /// Our ends of its streams, non-blocking. With a terminal there are none: its master comes over the channel.
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// Starts a container's first process up to the point where it waits for go.
///
/// # Errors
/// The step that failed; nothing is left behind.
pub fn launch(plan: &LaunchPlan) -> Result<Launched, Failure> {
    let mut overlays = Vec::new();
    for overlay in &plan.overlays {
        let name = || overlay.upper.as_ref().or(overlay.lower.first()).map_or_else(String::new, |path| path.to_string_lossy().into_owned());
        overlays.push(overlay::mount(overlay).at(Step::Overlay, name())?);
    }
    let (channel, theirs) = Channel::pair().at(Step::Prepare, "channel")?;
    let (ours, streams) = Ours::pipes(&plan.process).at(Step::Prepare, "pipes")?;
    let (pid, pidfd) = if plan.staged {
        stage::start_launch(plan, &theirs, &overlays, &streams).at(Step::Clone, "")?
    } else {
        let Some(cloned) = clone(plan.clone_flags, plan.pid_namespace.as_ref(), &plan.cgroup)? else {
            drop((channel, ours));
            child::run(plan, Inherited { channel: theirs, overlays, streams });
        };
        cloned
    };
    // The child waits for go, so this comes before anything of the container runs.
    if let Some(score) = plan.oom_score_adj
        && let Err(failure) = write_oom_score(pid, score)
    {
        drop(sys::process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL));
        return Err(failure);
    }
    Ok(Launched { pid, pidfd, channel, stdin: ours.stdin, stdout: ours.stdout, stderr: ours.stderr })
}

/// clone3 into new namespaces, and into a pid namespace that exists if one is given; `None` in the child.
pub(super) fn clone(flags: u64, pid_namespace: Option<&Member>, placement: &Placement) -> Result<Option<(Pid, OwnedFd)>, Failure> {
    let cgroup = placement.join.as_ref().and_then(|join| join.directory.as_ref()).map(AsFd::as_fd);
    let own = match pid_namespace {
        None => None,
        Some(member) => {
            let own = sys::fd::open(c"/proc/self/ns/pid", libc::O_RDONLY, 0).at(Step::EnterPidNamespace, member.pid)?;
            // Changes where children are born; this process stays where it is.
            sys::process::setns(member.pidfd.as_fd(), libc::CLONE_NEWPID).at(Step::EnterPidNamespace, member.pid)?;
            Some(own)
        }
    };
    let cloned = sys::process::clone3(flags, cgroup, libc::SIGCHLD);
    if let (Some(own), Ok(Some(_)) | Err(_)) = (&own, &cloned) {
        sys::process::setns(own.as_fd(), libc::CLONE_NEWPID).at(Step::EnterPidNamespace, "the daemon")?;
    }
    cloned.at(Step::Clone, "")
}

/// As [`clone`], by a process that does nothing else: it stays entered, and the child is its parent's own.
pub(super) fn enter_and_clone(flags: u64, pid_namespace: Option<&Member>, placement: &Placement) -> io::Result<Option<(Pid, OwnedFd)>> {
    if let Some(member) = pid_namespace {
        sys::process::setns(member.pidfd.as_fd(), libc::CLONE_NEWPID)?;
    }
    let cgroup = placement.join.as_ref().and_then(|join| join.directory.as_ref()).map(AsFd::as_fd);
    // With CLONE_PARENT the signal is the parent's own choice: SIGCHLD, as the stage itself was forked.
    sys::process::clone3(flags | u64::from(libc::CLONE_PARENT.cast_unsigned()), cgroup, 0)
}

fn write_oom_score(pid: Pid, score: i32) -> Result<(), Failure> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let write = || {
        let file = sys::fd::open(&sys::cstring(&path)?, libc::O_WRONLY, 0)?;
        sys::fd::write_all(file.as_fd(), score.to_string().as_bytes())
    };
    write().at(Step::OomScore, &path)
}

/// The daemon's ends of a process's streams.
#[derive(Debug, Default)]
pub(super) struct Ours {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl Ours {
    pub(super) fn pipes(process: &Process) -> io::Result<(Ours, Streams)> {
        let (mut ours, mut theirs) = (Ours::default(), Streams::default());
        if process.terminal.is_some() {
            return Ok((ours, theirs));
        }
        if process.stdin {
            let (read, write) = sys::fd::pipe2(0)?;
            sys::fd::set_nonblocking(write.as_fd(), true)?;
            (theirs.stdin, ours.stdin) = (Some(read), Some(write));
        }
        for (own, their) in [(&mut ours.stdout, &mut theirs.stdout), (&mut ours.stderr, &mut theirs.stderr)] {
            let (read, write) = sys::fd::pipe2(0)?;
            sys::fd::set_nonblocking(read.as_fd(), true)?;
            (*own, *their) = (Some(read), Some(write));
        }
        Ok((ours, theirs))
    }
}
