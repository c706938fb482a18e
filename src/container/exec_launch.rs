//! A further process in a running container: the daemon's half, and the child that joins and becomes it.
//!
//! The daemon enters the container's pid namespace for its children only, clones, and is back: the child is its own, and its pid known
//! at once. The child joins everything else through the same pidfd, so that it can't be another process's that it joins.

use super::child::{begin, enter_cgroup};
use super::launch::{Launched, Ours, clone};
use super::plan::ExecPlan;
use super::report::{At, Channel, Failure, Step, child as say};
use super::stage;
use super::tail::{self, Streams};
use crate::sys;
use std::convert::Infallible;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What is joined beside the pid namespace. Those that the container shares with the daemon are joined too, which changes nothing.
const JOINED: c_int = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP;

/// Starts the process. It does not wait for a go; its channel says when it runs, or what failed.
///
/// # Errors
/// The step that failed; nothing is left behind.
pub fn launch_exec(plan: &ExecPlan) -> Result<Launched, Failure> {
    let (channel, theirs) = Channel::pair().at(Step::Prepare, "channel")?;
    let (ours, streams) = Ours::pipes(&plan.process).at(Step::Prepare, "pipes")?;
    let (pid, pidfd) = if plan.staged {
        stage::start_exec(plan, &theirs, &streams).at(Step::Clone, "")?
    } else {
        let Some(cloned) = clone(0, Some(&plan.target), &plan.cgroup)? else {
            drop((channel, ours));
            run(plan, theirs, streams);
        };
        cloned
    };
    Ok(Launched { pid, pidfd, channel, stdin: ours.stdin, stdout: ours.stdout, stderr: ours.stderr })
}

/// Never returns: the process executes its program, or reports and exits.
pub(super) fn run(plan: &ExecPlan, channel: OwnedFd, streams: Streams) -> ! {
    let Err(failure) = start(plan, channel.as_fd(), streams);
    say::send_failure(channel.as_fd(), &failure);
    sys::process::exit(1)
}

fn start(plan: &ExecPlan, channel: BorrowedFd, mut streams: Streams) -> Result<Infallible, Failure> {
    begin()?;
    enter_cgroup(&plan.cgroup)?;
    // Through the host's /proc, which the next call takes away.
    if let Some(score) = plan.oom_score_adj {
        let path = c"/proc/self/oom_score_adj";
        let write = || sys::fd::write_all(sys::fd::open(path, libc::O_WRONLY, 0)?.as_fd(), score.to_string().as_bytes());
        write().at(Step::OomScore, path.to_string_lossy())?;
    }
    sys::process::setns(plan.target.pidfd.as_fd(), JOINED).at(Step::JoinNamespace, "the container's")?;
    let root = sys::fd::open(c"/", libc::O_PATH | libc::O_DIRECTORY, 0).at(Step::Root, "open /")?;
    if plan.process.terminal.is_some() {
        streams.terminal = Some(tail::open_terminal(root.as_fd(), channel, plan.process.terminal)?);
    }
    // Only a label needs it, so only then it is made.
    let proc =
        if plan.process.apparmor.is_some() || plan.process.selinux.is_some() { Some(own_proc().at(Step::Label, "procfs")?) } else { None };
    tail::execute(&plan.process, root.as_fd(), proc.as_ref().map(AsFd::as_fd), channel, streams)
}

/// A procfs attached nowhere: the container's own /proc may have been covered.
fn own_proc() -> io::Result<OwnedFd> {
    let context = sys::mount::fsopen(c"proc")?;
    sys::mount::fsconfig_create(context.as_fd())?;
    sys::mount::fsmount(context.as_fd(), sys::mount::MOUNT_ATTR_NOSUID | sys::mount::MOUNT_ATTR_NODEV | sys::mount::MOUNT_ATTR_NOEXEC)
}
