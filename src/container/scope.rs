//! With the systemd driver: the unit around a container. systemd starts no scope without a process in it, and its answer may take a
//! while, so a worker asks for it, and a *holder*, forked by the worker, is that process until the container's own is in.

use super::cgroup::systemd::{Scope, limits};
use super::cgroup::{self, Bus, Driver, devices::Devices};
use super::config::Resources;
use super::record::Id;
use crate::daemon::{Daemon, Then};
use crate::error::{Error, Result};
use crate::sys;
use crate::worker::Job;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Bytes of systemd's complaint that are passed on: one pipe write.
const MAX_COMPLAINT: usize = 1024;

impl Daemon {
    pub(super) fn needs_scope(&self) -> bool {
        self.cgroups.as_ref().is_some_and(|cgroups| cgroups.facts().driver == Driver::Systemd)
    }

    /// Starts the container's scope; it lives by its holder until [`let_scope_go`](Self::let_scope_go).
    pub(super) fn start_scope(&mut self, id: &Id, then: Then<Result<()>>) {
        if let Err((error, then)) = self.try_start_scope(id, then) {
            then(self, Err(error));
        }
    }

    fn try_start_scope(&mut self, id: &Id, then: Then<Result<()>>) -> std::result::Result<(), (Error, Then<Result<()>>)> {
        let scope = match self.scope_of(id) {
            Ok(scope) => scope,
            Err(error) => return Err((error, then)),
        };
        let pipes = sys::fd::pipe2(0).and_then(|gate| Ok((gate, sys::fd::pipe2(libc::O_NONBLOCK)?)));
        let ((gate, go), (complaint, complain)) = match pipes {
            Ok(pipes) => pipes,
            Err(e) => return Err((Error::io("pipe", &e), then)),
        };
        let keep = vec![gate.as_raw_fd(), complain.as_raw_fd()];
        let mut job = Job::new("systemd scope", move |_| {
            let started = hold_scope(&scope, &gate);
            if let Err(error) = &started {
                let text = error.message.as_bytes();
                let _ = sys::fd::write(complain.as_fd(), text.get(..MAX_COMPLAINT).unwrap_or(text));
            }
            started
        });
        job.keep = keep;
        let target = id.clone();
        // Two owners of one continuation: the worker's end, or our failure to start it.
        let then = std::rc::Rc::new(std::cell::Cell::new(Some(then)));
        let later = std::rc::Rc::clone(&then);
        let forked = self.start_worker(job, move |daemon, ok| {
            let Some(then) = later.take() else { return };
            if ok {
                daemon.scope_holders.insert(target, go);
                return then(daemon, Ok(()));
            }
            let mut text = vec![0; MAX_COMPLAINT];
            let length = sys::fd::read(complaint.as_fd(), &mut text).unwrap_or(0);
            let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
            let text = if text.is_empty() { "systemd: the scope was not started".to_owned() } else { text };
            then(daemon, Err(Error::system(text)));
        });
        match (forked, then.take()) {
            (Err(e), Some(then)) => Err((Error::io("fork worker for systemd", &e), then)),
            (_, unused) => {
                then.set(unused);
                Ok(())
            }
        }
    }

    fn scope_of(&self, id: &Id) -> Result<Scope> {
        let none = || Error::system("no systemd scope is needed");
        let resources = &self.containers.find(id)?.record.host.resources;
        let facts = self.cgroups.as_ref().ok_or_else(none)?.facts();
        cgroup::plan(facts, id, resources, &Devices::All, &cgroup::devices::numbers)?.scope.ok_or_else(none)
    }

    /// The container's own process is in the scope, or never will be: the holder leaves.
    pub(super) fn let_scope_go(&mut self, id: &Id) {
        self.scope_holders.remove(id);
    }

    /// Tells systemd of new limits, which it would undo else; they hold already, so that its answer is not waited for.
    pub(super) fn tell_scope(&mut self, id: &Id, resources: &Resources) {
        if !self.needs_scope() || !self.running_cgroups.contains_key(id) {
            return;
        }
        let v2 = self.cgroups.as_ref().is_some_and(|cgroups| cgroups.facts().hierarchy.version.is_v2());
        let (unit, properties) = (format!("docker-{id}.scope"), limits(v2, resources));
        let job = Job::new("systemd scope", move |_| Bus::connect()?.set_properties(&unit, &properties));
        if let Err(e) = self.start_worker(job, |_, _| {}) {
            log::warn!("container {id}: fork worker for systemd: {e}; systemd keeps the old limits for its next reload");
        }
    }
}

/// The worker's part. The holder ends when the daemon closes its end of `gate`, by will or by death.
fn hold_scope(scope: &Scope, gate: &OwnedFd) -> Result<()> {
    let holder = match sys::process::fork().map_err(|e| Error::io("fork", &e))? {
        Some(pid) => pid,
        None => {
            // It holds a copy of the daemon's memory, and nothing of the container may look into it.
            let _ = sys::security::set_dumpable(false);
            let _ = sys::fd::close_all_but(&[gate.as_raw_fd()]);
            let mut nothing = [0];
            let _ = sys::fd::read(gate.as_fd(), &mut nothing);
            sys::process::exit(0)
        }
    };
    let started = Bus::connect().and_then(|mut bus| bus.start_scope(scope, holder));
    if started.is_err() {
        let _ = sys::process::kill(holder, libc::SIGKILL);
    }
    started
}
