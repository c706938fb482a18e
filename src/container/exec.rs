//! Execs: further processes in running containers, and what is remembered of them.

use super::exec_launch::launch_exec;
use super::lifecycle::{LaunchError, not_running};
use super::plan::{ExecPlan, Placement};
use super::plan_process::{ExecInput, Terminal};
use super::process::Owner;
use super::record::{Id, Status};
use super::report::{Failure, Phase};
use super::streams::HubId;
use crate::daemon::{Daemon, Then, Timer};
use crate::error::{Error, Result};
use crate::sys::process::ExitStatus;
use serde::Deserialize;
use serde_json::{Value, json};
use std::rc::Rc;

/// A finished exec is forgotten after five minutes, as with the reference.
const KEPT_MS: u64 = 5 * 60 * 1000;
/// Execs of one container that were made and not started.
const MAX_PENDING: usize = 1024;

/// The body of exec's creation.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ExecConfig {
    pub user: String,
    pub privileged: bool,
    pub tty: bool,
    /// Rows, columns.
    pub console_size: Option<[u16; 2]>,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    pub detach_keys: String,
    pub env: Option<Vec<String>>,
    pub working_dir: String,
    pub cmd: Vec<String>,
}

/// One exec instance.
pub struct Exec {
    pub container: Id,
    pub config: ExecConfig,
    pub hub: HubId,
    /// In the daemon's pid namespace; 0 before the start.
    pub pid: i32,
    pub started: bool,
    pub running: bool,
    pub exit_code: Option<i32>,
    then: Option<Then<Result<()>>>,
    /// A health check's: its result goes to the container's health.
    probe: bool,
}

impl Daemon {
    /// Makes an exec instance; nothing runs yet.
    pub fn create_exec(&mut self, container: &Id, config: ExecConfig) -> Result<String> {
        if config.cmd.is_empty() {
            return Err(Error::invalid("No exec command specified"));
        }
        self.check_execable(container)?;
        let pending = self.execs.values().filter(|exec| exec.container == *container && !exec.started).count();
        if pending >= MAX_PENDING {
            return Err(Error::conflict(format!("container {container} has {pending} execs that were never started")));
        }
        for pair in config.env.iter().flatten() {
            if pair.is_empty() || pair.starts_with('=') {
                return Err(Error::invalid(format!("invalid environment variable: {pair}")));
            }
        }
        let id: Rc<str> = crate::hex::random_id().map_err(|e| Error::io("make an id", &e))?.into();
        let hub = self.make_hub(config.tty, true, id.clone());
        let label = command_label(&config);
        self.execs.insert(
            id.clone(),
            Exec {
                container: container.clone(),
                config,
                hub,
                pid: 0,
                started: false,
                running: false,
                exit_code: None,
                then: None,
                probe: false,
            },
        );
        self.containers.find_mut(container)?.execs.push(id.clone());
        self.emit_container(container, &format!("exec_create: {label}"), &[("execID", id.to_string())]);
        Ok(id.to_string())
    }

    fn check_execable(&self, id: &Id) -> Result<()> {
        let container = self.containers.find(id)?;
        match container.record.state.status {
            Status::Running if container.process.is_some() => Ok(()),
            Status::Paused => Err(Error::conflict(format!("container {id} is paused, unpause the container before exec"))),
            Status::Restarting => Err(super::lifecycle::restarting(id)),
            _ => Err(not_running(id)),
        }
    }

    /// Checks that an exec can be started, before its connection is made raw.
    pub fn check_exec_start(&self, id: &str) -> Result<()> {
        let exec = self.execs.get(id).ok_or_else(|| no_such_exec(id))?;
        if exec.exit_code.is_some() {
            return Err(Error::conflict(format!("exec {id} has already run")));
        }
        if exec.started {
            return Err(Error::conflict(format!("exec {id} has already started")));
        }
        self.check_execable(&exec.container)
    }

    /// Starts an exec; `then` learns whether its program was executed.
    pub fn start_exec(&mut self, id: &Rc<str>, then: Then<Result<()>>) {
        if let Err(error) = self.check_exec_start(id) {
            return then(self, Err(error));
        }
        let Some(exec) = self.execs.get_mut(id) else { return then(self, Err(no_such_exec(id))) };
        exec.started = true;
        exec.then = Some(then);
        let (container, label) = (exec.container.clone(), command_label(&exec.config));
        self.emit_container(&container, &format!("exec_start: {label}"), &[("execID", id.to_string())]);
        if let Err(failed) = self.try_launch_exec(id) {
            let (error, code) = match failed {
                LaunchError::Refused(error) => (error, 126),
                LaunchError::Failed(failure) => failure.explain(Phase::Exec),
            };
            self.finish_exec(id, code, Some(error));
        }
    }

    fn try_launch_exec(&mut self, id: &Rc<str>) -> std::result::Result<(), LaunchError> {
        let exec = self.execs.get(id).ok_or_else(|| no_such_exec(id))?;
        let (config, hub) = (exec.config.clone(), exec.hub);
        let container = exec.container.clone();
        let target = self.member_of(&format!("container:{container}"))?.ok_or_else(|| not_running(&container))?;
        let placement = match self.running_cgroups.get(&container) {
            Some(group) => Placement::of(group, Some(target.pid)).map_err(|e| Error::io("open the container's cgroup", &e))?,
            None => Placement::default(),
        };
        let record = self.containers.find(&container)?.record.clone();
        let parts = self.plan_parts(&record)?;
        let shared = parts.container(&record, &self.own);
        let attached = config.attach_stdin;
        let [rows, columns] = config.console_size.unwrap_or_default();
        let input = ExecInput {
            argv: &config.cmd,
            environment: config.env.as_deref().unwrap_or_default(),
            user: &config.user,
            workdir: &config.working_dir,
            terminal: config.tty.then_some(Terminal { rows, columns }),
            stdin: attached,
            privileged: config.privileged,
        };
        let plan = ExecPlan::new(&shared, &input, target, placement)?;
        let launched = launch_exec(&plan)?;
        let pid = launched.pid;
        self.adopt_process(Owner::Exec(id.clone()), launched, hub, attached);
        if let Some(exec) = self.execs.get_mut(id) {
            exec.pid = pid;
        }
        Ok(())
    }

    pub(super) fn exec_is_running(&self, id: &str) -> bool {
        self.execs.get(id).is_some_and(|exec| exec.running)
    }

    pub(super) fn on_exec_running(&mut self, id: &Rc<str>, _number: u64) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        exec.running = true;
        if let Some(then) = exec.then.take() {
            then(self, Ok(()));
        }
    }

    pub(super) fn on_exec_failed(&mut self, id: &Rc<str>, failure: &Failure) {
        let (error, code) = failure.explain(Phase::Exec);
        self.finish_exec(id, code, Some(error));
    }

    pub(super) fn on_exec_exit(&mut self, id: &Rc<str>, status: ExitStatus) {
        self.finish_exec(id, status.code(), None);
    }

    fn finish_exec(&mut self, id: &Rc<str>, code: i32, error: Option<Error>) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        exec.running = false;
        exec.exit_code = Some(code);
        let (hub, container, then) = (exec.hub, exec.container.clone(), exec.then.take());
        if let (Some(then), Some(error)) = (then, error) {
            // As the reference: a client that is attached reads the reason on its stream.
            self.say_on_stdout(hub, &format!("{}\r\n", error.message));
            then(self, Err(error));
        }
        self.drain_hub(hub);
        if self.execs.get(id).is_some_and(|exec| exec.probe) {
            let output = self.hubs.get_mut(hub).and_then(|hub| hub.capture.take()).unwrap_or_default();
            self.on_probe_exit(&container, id, code, String::from_utf8_lossy(&output).into_owned());
        }
        self.emit_container(&container, "exec_die", &[("execID", id.to_string()), ("exitCode", code.to_string())]);
        self.after(KEPT_MS, Timer::ForgetExec(id.clone()));
    }

    /// Makes an exec a health check's probe: what it writes is kept for its result.
    pub(super) fn make_probe(&mut self, id: &Rc<str>) {
        if let Some(exec) = self.execs.get_mut(id) {
            exec.probe = true;
            if let Some(hub) = self.hubs.get_mut(exec.hub) {
                hub.capture = Some(Vec::new());
            }
        }
    }

    /// Ends a running exec.
    pub(super) fn kill_exec(&mut self, id: &Rc<str>) {
        let number = self.processes.iter().find(|(_, process)| matches!(&process.owner, Owner::Exec(exec) if exec == id)).map(|(n, _)| *n);
        if let Some(number) = number {
            let _ = self.signal_process(number, libc::SIGKILL);
        }
    }

    /// A finished exec has been kept long enough.
    pub(crate) fn forget_exec(&mut self, id: &Rc<str>) {
        if let Some(exec) = self.execs.remove(id) {
            self.drop_hub(exec.hub);
            if let Some(container) = self.containers.get_mut(&exec.container) {
                container.execs.retain(|e| e != id);
            }
        }
    }

    /// The container is gone, and its execs with it.
    pub(super) fn forget_execs(&mut self, id: &Id) {
        let of: Vec<Rc<str>> = self.execs.iter().filter(|(_, exec)| exec.container == *id).map(|(id, _)| id.clone()).collect();
        for exec in of {
            self.forget_exec(&exec);
        }
    }

    /// GET /exec/{id}/json.
    pub fn inspect_exec(&self, id: &str) -> Result<Value> {
        let exec = self.execs.get(id).ok_or_else(|| no_such_exec(id))?;
        let config = &exec.config;
        let keys = crate::api::streams::detach_keys(&config.detach_keys).unwrap_or_default();
        let (program, arguments) = config.cmd.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
        Ok(json!({
            "ID": id,
            "Running": exec.running,
            "ExitCode": exec.exit_code,
            "ProcessConfig": {
                "tty": config.tty, "entrypoint": program, "arguments": arguments, "privileged": config.privileged, "user": config.user,
            },
            "OpenStdin": config.attach_stdin,
            "OpenStderr": config.attach_stderr,
            "OpenStdout": config.attach_stdout,
            "CanRemove": false,
            "ContainerID": &*exec.container,
            "DetachKeys": if config.detach_keys.is_empty() { String::new() } else { String::from_utf8_lossy(&keys).into_owned() },
            "Pid": exec.pid,
        }))
    }
}

/// The program and its arguments, as the events name them.
fn command_label(config: &ExecConfig) -> String {
    config.cmd.join(" ")
}

pub fn no_such_exec(id: &str) -> Error {
    Error::not_found(format!("No such exec instance: {id}"))
}
