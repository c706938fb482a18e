//! The state machine: start, run, stop, kill, pause, exit, restart; every transition with its events.
//!
//! `Created → Starting → Running ⇄ Paused → Exited`, `Restarting`, `Removing`, `Dead`. Nothing here waits: what takes time goes
//! on in a continuation.

use super::record::{Id, Status, Stopping, WaitCondition, Waiter};
use super::report::{Failure, Phase};
use crate::daemon::{ConnId, Daemon, Then, Timer};
use crate::error::{Error, Kind, Result};
use crate::sys;
use crate::sys::process::ExitStatus;
use serde_json::json;

/// Restart back-off: first wait, and the longest.
const BACKOFF_FIRST_MS: u64 = 100;
const BACKOFF_MAX_MS: u64 = 60_000;
/// A container that ran this long starts its back-off anew.
const RAN_WELL_MS: u64 = 10_000;
/// How long a client waits for the death of what was sent SIGKILL.
const KILL_WAIT_MS: u64 = 10_000;

impl Daemon {
    /// An event of a container, with extra attributes.
    pub fn emit_container(&mut self, id: &str, action: &str, extra: &[(&str, String)]) {
        let Some(container) = self.containers.get(id) else { return };
        let mut attributes = container.attributes();
        attributes.extend(extra.iter().map(|(name, value)| (name.to_string(), value.clone())));
        let id = container.record.id.clone();
        self.emit("container", action, &id, attributes);
    }

    /// Starts a container; `then` learns whether its program was executed.
    pub fn start_container(&mut self, id: &Id, then: Then<Result<()>>) {
        if let Err(error) = self.check_startable(id) {
            return then(self, Err(error));
        }
        if let Some(container) = self.containers.get_mut(id) {
            container.starting = true;
            container.ending_by_request = false;
            container.backoff_ms = 0;
            container.failures = 0;
            if let Some(timer) = container.restart_timer.take() {
                self.timers.cancel(timer);
            }
        }
        self.start_waiters.entry(id.clone()).or_default().push(then);
        self.begin_launch(id);
    }

    /// Volumes that are mounted on use come first; they may take their time.
    fn begin_launch(&mut self, id: &Id) {
        let Some(container) = self.containers.get(id) else { return };
        let mounted = self.mounted_volumes(&container.record);
        if mounted.is_empty() {
            return self.begin_scope(id);
        }
        let target = id.clone();
        self.mount_volumes(
            mounted,
            Box::new(move |daemon, result| match result {
                Ok(()) => daemon.begin_scope(&target),
                Err(error) => daemon.finish_failed_start(&target, error, 128),
            }),
        );
    }

    /// With the systemd driver the container's unit comes before the container.
    fn begin_scope(&mut self, id: &Id) {
        if !self.needs_scope() {
            return self.launch_container(id);
        }
        let target = id.clone();
        self.start_scope(
            id,
            Box::new(move |daemon, result| match result {
                Ok(()) => daemon.launch_container(&target),
                Err(error) => daemon.finish_failed_start(&target, error, 128),
            }),
        );
    }

    fn check_startable(&self, id: &str) -> Result<()> {
        let container = self.containers.find(id)?;
        match container.record.state.status {
            Status::Paused => Err(Error::conflict("cannot start a paused container, try unpause instead")),
            Status::Running => Err(Error::new(Kind::NotModified, "container is already running")),
            _ if container.starting => Err(Error::new(Kind::NotModified, "container is already being started")),
            Status::Removing | Status::Dead => Err(Error::conflict("container is marked for removal and cannot be started")),
            _ if container.removing => Err(Error::conflict("container is marked for removal and cannot be started")),
            Status::Created | Status::Exited | Status::Restarting => Ok(()),
        }
    }

    /// Decides the plan and clones: what goes wrong here goes the way of every failed start.
    fn launch_container(&mut self, id: &Id) {
        if let Err(failed) = self.try_launch(id) {
            let (error, code) = match failed {
                LaunchError::Refused(error) => (error, 128),
                LaunchError::Failed(failure) => failure.explain(Phase::Create),
            };
            self.finish_failed_start(id, error, code);
        }
    }

    /// The child failed before its program ran.
    pub(crate) fn on_start_failed(&mut self, id: &Id, failure: &Failure) {
        let (error, code) = match self.refusals.remove(id) {
            Some(error) => (error, 128),
            None => failure.explain(Phase::Create),
        };
        self.finish_failed_start(id, error, code);
    }

    fn finish_failed_start(&mut self, id: &Id, error: Error, code: i32) {
        self.release_container_resources(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        container.starting = false;
        container.process = None;
        let was_restarting = container.record.state.status == Status::Restarting;
        let state = &mut container.record.state;
        state.pid = 0;
        state.exit_code = code;
        state.error = error.message.clone();
        if was_restarting {
            state.status = Status::Exited;
        }
        let hub = container.hub;
        let auto_remove = container.record.host.auto_remove;
        self.save_container_lazily(id);
        self.drain_hub(hub);
        self.emit_container(id, "die", &[("exitCode", code.to_string()), ("execDuration", "0".into())]);
        for then in self.start_waiters.remove(id).unwrap_or_default() {
            then(self, Err(error.clone()));
        }
        self.answer_waiters(id, code, Some(&error.message), false);
        if auto_remove {
            self.auto_remove(id);
        }
    }

    /// The child has made its mounts and waits: its network is finished before it goes on.
    pub(crate) fn on_ready_for_go(&mut self, number: u64) {
        if let Some(super::process::Process { owner: super::process::Owner::Container(id), .. }) = self.processes.get(&number) {
            let id = id.clone();
            self.let_scope_go(&id);
        }
        self.attach_container_network(number);
    }

    /// The program runs.
    pub(crate) fn on_container_running(&mut self, id: &Id, number: u64) {
        let pid = self.processes.get(&number).map_or(0, |process| process.pid);
        let (now_ns, now_ms) = (sys::time::realtime_ns(), self.now_ms());
        let Some(container) = self.containers.get_mut(id) else { return };
        container.starting = false;
        container.process = Some(number);
        container.started_ms = now_ms;
        let state = &mut container.record.state;
        state.status = Status::Running;
        state.pid = pid;
        state.exit_code = 0;
        state.error.clear();
        state.oom_killed = false;
        state.started_ns = Some(now_ns);
        container.record.manually_stopped = false;
        let depends = !matches!(container.record.host.restart_policy.name.as_str(), "" | "no");
        self.emit_container(id, "start", &[]);
        let waiters = self.start_waiters.remove(id).unwrap_or_default();
        if depends {
            self.save_container(id, move |daemon, saved| {
                let result = saved.map_err(|e| Error::io("save the container's state", &e));
                for then in waiters {
                    then(daemon, result.clone());
                }
            });
        } else {
            self.save_container_lazily(id);
            for then in waiters {
                then(self, Ok(()));
            }
        }
        self.on_started(id);
    }

    /// The first process has ended; its output is all read.
    pub(crate) fn on_container_exit(&mut self, id: &Id, status: ExitStatus) {
        let (now_ns, now_ms) = (sys::time::realtime_ns(), self.now_ms());
        let oom_killed = self.was_oom_killed(id);
        self.on_stopped(id);
        self.release_container_resources(id);
        let shutting_down = self.is_stopping();
        let Some(container) = self.containers.get_mut(id) else { return };
        let code = status.code();
        let ran_ms = now_ms.saturating_sub(container.started_ms);
        container.process = None;
        let state = &mut container.record.state;
        state.pid = 0;
        state.exit_code = code;
        state.oom_killed = oom_killed;
        state.finished_ns = Some(now_ns);
        state.status = Status::Exited;
        let wait_ms = if shutting_down { None } else { container.next_restart(code, ran_ms) };
        if wait_ms.is_some() {
            container.record.state.status = Status::Restarting;
            container.record.restart_count += 1;
        }
        let (auto_remove, stopping) = (container.record.host.auto_remove, container.stopping.take());
        if oom_killed {
            self.emit_container(id, "oom", &[]);
        }
        let seconds = (ran_ms / 1000).to_string();
        self.emit_container(id, "die", &[("exitCode", code.to_string()), ("execDuration", seconds)]);
        if !auto_remove {
            self.save_container_lazily(id);
        }
        self.answer_waiters(id, code, None, false);
        if let Some(stopping) = stopping {
            if let Some(timer) = stopping.timer {
                self.timers.cancel(timer);
            }
            for then in stopping.then {
                then(self, Ok(()));
            }
        }
        match wait_ms {
            Some(wait_ms) => {
                let timer = self.after(wait_ms, Timer::Restart(id.clone()));
                if let Some(container) = self.containers.get_mut(id) {
                    container.restart_timer = Some(timer);
                }
            }
            None if auto_remove && !shutting_down => self.auto_remove(id),
            None => {}
        }
    }

    /// A restart by policy is due.
    pub(crate) fn on_restart_due(&mut self, id: &Id) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.restart_timer = None;
        if container.record.state.status != Status::Restarting || container.starting {
            return;
        }
        container.starting = true;
        self.begin_launch(id);
    }

    /// Signals a running container.
    pub fn kill_container(&mut self, id: &Id, signal: i32) -> Result<()> {
        let container = self.containers.find_mut(id)?;
        if !container.record.state.is_running() {
            return Err(not_running(id));
        }
        let Some(number) = container.process else { return Err(not_running(id)) };
        let fatal = signal == libc::SIGKILL
            || Some(signal) == super::signal::parse(&container.record.config.stop_signal)
            || signal == libc::SIGTERM;
        if fatal {
            container.record.manually_stopped = true;
            container.ending_by_request = true;
        }
        let paused = container.record.state.status == Status::Paused;
        self.signal_process(number, signal).map_err(|e| Error::io(format!("signal container {id}"), &e))?;
        if paused && signal == libc::SIGKILL {
            self.thaw(id)?;
        }
        self.emit_container(id, "kill", &[("signal", signal.to_string())]);
        Ok(())
    }

    /// Stops a container: its signal, then after `timeout_s` SIGKILL (negative: never). `then` learns of the end.
    pub fn stop_container(&mut self, id: &Id, signal: Option<i32>, timeout_s: Option<i64>, then: Then<Result<()>>) {
        if self.call_off_restart(id) {
            return then(self, Ok(()));
        }
        let outcome = self.begin_stop_container(id, signal, timeout_s);
        match outcome {
            Ok(()) => {
                if let Some(stopping) = self.containers.get_mut(id).and_then(|container| container.stopping.as_mut()) {
                    stopping.then.push(then);
                }
            }
            Err(error) => then(self, Err(error)),
        }
    }

    /// Between two runs, the next one is called off; true when that is what the stop meant.
    fn call_off_restart(&mut self, id: &Id) -> bool {
        let Some(container) = self.containers.get_mut(id).filter(|c| c.record.state.status == Status::Restarting && !c.starting) else {
            return false;
        };
        if let Some(timer) = container.restart_timer.take() {
            self.timers.cancel(timer);
        }
        container.record.state.status = Status::Exited;
        container.record.manually_stopped = true;
        let code = container.record.state.exit_code;
        self.save_container_lazily(id);
        self.answer_waiters(id, code, None, false);
        true
    }

    fn begin_stop_container(&mut self, id: &Id, signal: Option<i32>, timeout_s: Option<i64>) -> Result<()> {
        let container = self.containers.find_mut(id)?;
        let Some(number) = container.process.filter(|_| container.record.state.is_running()) else {
            return Err(Error::new(Kind::NotModified, "container is already stopped"));
        };
        container.record.manually_stopped = true;
        container.ending_by_request = true;
        let config = &container.record.config;
        let signal = signal.or_else(|| super::signal::parse(&config.stop_signal)).unwrap_or(libc::SIGTERM);
        let timeout_s = timeout_s.or(config.stop_timeout).unwrap_or(10);
        let paused = container.record.state.status == Status::Paused;
        let first = container.stopping.is_none();
        if first {
            container.stopping = Some(Stopping { timer: None, then: Vec::new() });
        }
        self.signal_process(number, signal).map_err(|e| Error::io(format!("signal container {id}"), &e))?;
        self.emit_container(id, "kill", &[("signal", signal.to_string())]);
        if paused {
            self.thaw(id)?;
        }
        if first && timeout_s >= 0 {
            let timer = self.after(u64::try_from(timeout_s).unwrap_or(10).saturating_mul(1000), Timer::StopTimeout(id.clone()));
            if let Some(stopping) = self.containers.get_mut(id).and_then(|container| container.stopping.as_mut()) {
                stopping.timer = Some(timer);
            }
        }
        Ok(())
    }

    /// The stop signal did not do: SIGKILL.
    pub(crate) fn on_stop_timeout(&mut self, id: &Id) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(number) = container.process else { return };
        if let Some(stopping) = &mut container.stopping {
            stopping.timer = None;
            log::info!("container {} did not end on its stop signal; it is killed", container.record.name);
            let _ = self.signal_process(number, libc::SIGKILL);
            self.emit_container(id, "kill", &[("signal", libc::SIGKILL.to_string())]);
        }
    }

    /// Kills with SIGKILL and has `then` wait for the end, as the reference's kill does.
    pub fn kill_and_wait(&mut self, id: &Id, then: Then<Result<()>>) {
        if let Err(error) = self.kill_container(id, libc::SIGKILL) {
            return then(self, Err(error));
        }
        let timer = self.after(KILL_WAIT_MS, Timer::KillTimeout(id.clone()));
        if let Some(container) = self.containers.get_mut(id) {
            let stopping = container.stopping.get_or_insert_with(|| Stopping { timer: None, then: Vec::new() });
            if let Some(old) = stopping.timer.replace(timer) {
                self.timers.cancel(old);
            }
            stopping.then.push(then);
        }
    }

    /// SIGKILL did not end it in time (a process in uninterruptible sleep): its clients are told.
    pub(crate) fn on_kill_timeout(&mut self, id: &Id) {
        let Some(stopping) = self.containers.get_mut(id).and_then(|container| container.stopping.take()) else { return };
        for then in stopping.then {
            then(self, Err(Error::system(format!("container {id} did not end within 10 seconds of SIGKILL"))));
        }
    }

    /// Stop, then start.
    pub fn restart_container(&mut self, id: &Id, signal: Option<i32>, timeout_s: Option<i64>, then: Then<Result<()>>) {
        let target = id.clone();
        let start = move |daemon: &mut Daemon, stopped: Result<()>| match stopped {
            Err(error) if error.kind != Kind::NotModified => then(daemon, Err(error)),
            _ => {
                if let Some(container) = daemon.containers.get_mut(&target) {
                    container.record.manually_stopped = false;
                }
                let id = target.clone();
                daemon.start_container(
                    &target,
                    Box::new(move |daemon, started| {
                        if started.is_ok() {
                            daemon.emit_container(&id, "restart", &[]);
                        }
                        then(daemon, started);
                    }),
                );
            }
        };
        // An auto-remove container survives its own restart.
        let hold = self.containers.get_mut(id).is_some_and(|c| std::mem::replace(&mut c.record.host.auto_remove, false));
        let held = id.clone();
        self.stop_container(
            id,
            signal,
            timeout_s,
            Box::new(move |daemon, result| {
                if hold && let Some(container) = daemon.containers.get_mut(&held) {
                    container.record.host.auto_remove = true;
                }
                start(daemon, result);
            }),
        );
    }

    /// A client has typed the detach keys.
    pub(crate) fn on_detach_keys(&mut self, hub: super::streams::HubId) {
        let container = self.containers.iter().find(|container| container.hub == hub).map(super::record::Container::id);
        if let Some(id) = container {
            self.emit_container(&id, "detach", &[]);
        }
    }

    pub fn pause_container(&mut self, id: &Id) -> Result<()> {
        let container = self.containers.find(id)?;
        match container.record.state.status {
            Status::Running => {}
            Status::Paused => return Err(Error::conflict(format!("container {id} is already paused"))),
            Status::Restarting => return Err(restarting(id)),
            _ => return Err(not_running(id)),
        }
        self.freeze(id)?;
        self.set_status(id, Status::Paused);
        self.emit_container(id, "pause", &[]);
        Ok(())
    }

    pub fn unpause_container(&mut self, id: &Id) -> Result<()> {
        if self.containers.find(id)?.record.state.status != Status::Paused {
            return Err(Error::conflict(format!("container {id} is not paused")));
        }
        self.thaw(id)?;
        self.emit_container(id, "unpause", &[]);
        Ok(())
    }

    /// Thaws and notes it; without an event, as a stop of a paused container has none.
    fn thaw(&mut self, id: &Id) -> Result<()> {
        self.thaw_cgroup(id)?;
        self.set_status(id, Status::Running);
        Ok(())
    }

    fn set_status(&mut self, id: &Id, status: Status) {
        if let Some(container) = self.containers.get_mut(id) {
            container.record.state.status = status;
            self.save_container_lazily(id);
        }
    }

    /// Parks a connection until a container has reached a condition; the head is sent at once.
    pub fn wait_container(&mut self, id: &Id, conn: ConnId, condition: WaitCondition) {
        self.with_conn(conn, |connection| connection.start_stream(200, &[("Content-Type".into(), "application/json".into())]));
        let Some(container) = self.containers.get_mut(id) else { return };
        let state = &container.record.state;
        let stopped = !state.is_running() && !container.starting && state.status != Status::Restarting;
        if condition == WaitCondition::NotRunning && stopped {
            let (code, error) = (state.exit_code, state.error.clone());
            let error = (!error.is_empty()).then_some(error);
            return self.answer_waiter(conn, code, error.as_deref());
        }
        container.waiters.push(Waiter { conn, condition });
    }

    /// Answers those whose condition has come: an exit, or the removal.
    pub(crate) fn answer_waiters(&mut self, id: &str, code: i32, error: Option<&str>, removed: bool) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let restarting = container.record.state.status == Status::Restarting;
        let due = |waiter: &Waiter| match waiter.condition {
            WaitCondition::Removed => removed,
            WaitCondition::NextExit => true,
            WaitCondition::NotRunning => !restarting,
        };
        let (ready, rest): (Vec<Waiter>, Vec<Waiter>) = std::mem::take(&mut container.waiters).into_iter().partition(due);
        container.waiters = rest;
        for waiter in ready {
            self.answer_waiter(waiter.conn, code, error);
        }
    }

    fn answer_waiter(&mut self, conn: ConnId, code: i32, error: Option<&str>) {
        let mut body = json!({"StatusCode": code});
        if let Some(error) = error {
            body["Error"] = json!({"Message": error});
        }
        let now = self.now_ms();
        self.with_conn(conn, |connection| {
            connection.send(&[format!("{body}\n").as_bytes()]);
            connection.finish_stream(now);
        });
    }
}

impl super::record::Container {
    /// Milliseconds until the restart that the policy wants after an exit; `None` for no restart.
    fn next_restart(&mut self, code: i32, ran_ms: u64) -> Option<u64> {
        if self.removing || self.ending_by_request {
            return None;
        }
        if ran_ms >= RAN_WELL_MS {
            self.backoff_ms = 0;
        }
        let policy = &self.record.host.restart_policy;
        let wanted = match policy.name.as_str() {
            "always" | "unless-stopped" => true,
            "on-failure" => {
                let limit = policy.maximum_retry_count;
                code != 0 && (limit == 0 || self.failures < limit)
            }
            _ => false,
        };
        if !wanted {
            return None;
        }
        self.failures += 1;
        self.backoff_ms = if self.backoff_ms == 0 { BACKOFF_FIRST_MS } else { (self.backoff_ms * 2).min(BACKOFF_MAX_MS) };
        Some(self.backoff_ms)
    }
}

/// Why a launch did not come about.
pub enum LaunchError {
    /// Refused before anything was made.
    Refused(Error),
    Failed(Failure),
}

impl From<Error> for LaunchError {
    fn from(error: Error) -> LaunchError {
        LaunchError::Refused(error)
    }
}

impl From<Failure> for LaunchError {
    fn from(failure: Failure) -> LaunchError {
        LaunchError::Failed(failure)
    }
}

pub fn not_running(id: &str) -> Error {
    Error::conflict(format!("container {id} is not running"))
}

pub fn restarting(id: &str) -> Error {
    Error::conflict(format!("container {id} is restarting, wait until the container is running"))
}
