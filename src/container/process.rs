//! Running processes: containers' first ones and execs. One table, one path from launch to exit.

use super::launch::Launched;
use super::record::Id;
use super::report::{Channel, Failure, Report, Step};
use super::streams::HubId;
use crate::daemon::children::Child;
use crate::daemon::{Daemon, Source};
use crate::poll::{Interest, Token};
use crate::sys;
use crate::sys::process::{ExitStatus, Pid};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// Whose process it is.
#[derive(Clone, Debug)]
pub enum Owner {
    Container(Id),
    Exec(Rc<str>),
}

/// A process from its clone to its exit.
pub struct Process {
    pub owner: Owner,
    pub pid: Pid,
    pub pidfd: Rc<OwnedFd>,
    pub hub: HubId,
    channel: Option<(Channel, Token)>,
    wants_stdin: bool,
    /// The program has been executed.
    pub running: bool,
    failure: Option<Failure>,
}

impl Daemon {
    /// Takes a launched child in: its channel, its streams, its exit. It still waits for [`Daemon::send_go`].
    pub fn adopt_process(&mut self, owner: Owner, launched: Launched, hub: HubId, wants_stdin: bool) -> u64 {
        let number = self.unique();
        let Launched { pid, pidfd, channel, stdin, stdout, stderr } = launched;
        let token = self.poller.add(channel.as_fd(), Source::Launch(number), Interest::READ);
        let process =
            Process { owner, pid, pidfd: Rc::new(pidfd), hub, channel: Some((channel, token)), wants_stdin, running: false, failure: None };
        self.processes.insert(number, process);
        self.connect_pipes(hub, stdin, stdout, stderr);
        self.claim_child(pid, Child::Process(number));
        number
    }

    /// Lets a launched child go on to its program, with more netlink messages for its own namespace.
    pub fn send_go(&mut self, number: u64, netlink: &[Vec<u8>]) {
        let Some(Process { channel: Some((channel, _)), pidfd, .. }) = self.processes.get(&number) else { return };
        if let Err(e) = channel.send_go_with(netlink) {
            log::error!("send go to process {number}: {e}; it is killed");
            let _ = sys::process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Gives a start up that was refused on our side: the child ends, and its owner learns why.
    pub fn abort_launch(&mut self, number: u64, failure: Failure) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        let _ = sys::process::pidfd_send_signal(process.pidfd.as_fd(), libc::SIGKILL);
        process.failure = Some(failure);
        self.close_channel(number);
    }

    fn close_channel(&mut self, number: u64) {
        if let Some((_, token)) = self.processes.get_mut(&number).and_then(|process| process.channel.take()) {
            self.poller.remove(token);
        }
    }

    /// A starting child has said something.
    pub(crate) fn on_launch_report(&mut self, number: u64) {
        loop {
            let Some(process) = self.processes.get_mut(&number) else { return };
            let Some((channel, _)) = &mut process.channel else { return };
            let report = match channel.read_report() {
                Ok(None) => return,
                Ok(Some(report)) => report,
                Err(e) => Report::Failed(Failure::new(Step::Died, e.to_string(), e.raw_os_error().unwrap_or(libc::EIO))),
            };
            match report {
                Report::ReadyForGo => self.on_ready_for_go(number),
                Report::Pty(master) => {
                    let (hub, wants_stdin) = (process.hub, process.wants_stdin);
                    self.connect_pty(hub, master, wants_stdin);
                }
                Report::Failed(failure) => {
                    process.failure = Some(failure);
                    self.close_channel(number);
                }
                Report::Running => {
                    process.running = true;
                    let owner = process.owner.clone();
                    self.close_channel(number);
                    match owner {
                        Owner::Container(id) => self.on_container_running(&id, number),
                        Owner::Exec(id) => self.on_exec_running(&id, number),
                    }
                }
            }
        }
    }

    /// A process has ended: its last reports are heard and its last output is passed on before its owner learns of it.
    pub(crate) fn on_process_exit(&mut self, number: u64, status: ExitStatus) {
        self.on_launch_report(number);
        self.close_channel(number);
        let Some(process) = self.processes.remove(&number) else { return };
        if !process.running {
            let failure = process.failure.unwrap_or_else(|| Failure::new(Step::Died, "", 0));
            match process.owner {
                Owner::Container(id) => self.on_start_failed(&id, &failure),
                Owner::Exec(id) => self.on_exec_failed(&id, &failure),
            }
            return;
        }
        self.drain_hub(process.hub);
        match process.owner {
            Owner::Container(id) => self.on_container_exit(&id, status),
            Owner::Exec(id) => self.on_exec_exit(&id, status),
        }
    }

    /// Sends a signal to a process; one that is gone is no error.
    pub fn signal_process(&self, number: u64, signal: i32) -> std::io::Result<()> {
        let Some(process) = self.processes.get(&number) else { return Ok(()) };
        match sys::process::pidfd_send_signal(process.pidfd.as_fd(), signal) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }
}
