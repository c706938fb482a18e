//! Health checks: a probe is an exec like any other, run by a timer; its results make the container's health.

use super::config::Healthcheck;
use super::exec::ExecConfig;
use super::record::{Container, Id};
use crate::daemon::{Daemon, Timer};
use crate::poll::timer::TimerId;
use crate::sys;
use crate::timestamp::rfc3339;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::rc::Rc;

const SECOND_NS: i64 = 1_000_000_000;
const DEFAULT_INTERVAL_NS: i64 = 30 * SECOND_NS;
const DEFAULT_TIMEOUT_NS: i64 = 30 * SECOND_NS;
const DEFAULT_START_INTERVAL_NS: i64 = 5 * SECOND_NS;
const DEFAULT_RETRIES: i64 = 3;
/// Results that inspect shows.
const REMEMBERED: usize = 5;
/// Bytes of a probe's output that are kept.
pub const MAX_OUTPUT: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    pub fn name(self) -> &'static str {
        match self {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        }
    }
}

struct Probe {
    start_ns: i64,
    end_ns: i64,
    exit_code: i32,
    output: String,
}

/// The health of a running container.
pub struct Health {
    pub status: HealthStatus,
    failing_streak: i64,
    log: VecDeque<Probe>,
    started_ns: i64,
    timer: Option<TimerId>,
    /// The probe that runs: its exec and when it began.
    running: Option<(Rc<str>, i64)>,
}

/// The command of a check; `None` when there is none ("NONE", or nothing said).
fn command(check: &Healthcheck, shell: Option<&[String]>) -> Option<Vec<String>> {
    let test = check.test.as_deref()?;
    match test.split_first()? {
        (kind, rest) if kind == "CMD" && !rest.is_empty() => Some(rest.to_vec()),
        (kind, [text, ..]) if kind == "CMD-SHELL" => {
            let mut command = match shell {
                Some(shell) if !shell.is_empty() => shell.to_vec(),
                _ => vec!["/bin/sh".to_string(), "-c".to_string()],
            };
            command.push(text.clone());
            Some(command)
        }
        _ => None,
    }
}

fn or_default(ns: i64, default: i64) -> i64 {
    if ns > 0 { ns } else { default }
}

fn milliseconds(ns: i64) -> u64 {
    u64::try_from(ns / 1_000_000).unwrap_or(0).max(1)
}

impl Container {
    /// "none" without a check, else its state.
    pub fn health_status(&self) -> &str {
        self.health.as_ref().map_or("none", |health| health.status.name())
    }

    /// inspect's State.Health.
    pub fn health_json(&self) -> Option<Value> {
        let health = self.health.as_ref()?;
        let log: Vec<Value> = health
            .log
            .iter()
            .map(|probe| json!({"Start": rfc3339(probe.start_ns), "End": rfc3339(probe.end_ns), "ExitCode": probe.exit_code, "Output": probe.output}))
            .collect();
        Some(json!({"Status": health.status.name(), "FailingStreak": health.failing_streak, "Log": log}))
    }

    /// What the status of lists says of health, in its own brackets.
    pub fn health_suffix(&self) -> &'static str {
        match self.health.as_ref().map(|health| health.status) {
            None => "",
            Some(HealthStatus::Starting) => " (health: starting)",
            Some(HealthStatus::Healthy) => " (healthy)",
            Some(HealthStatus::Unhealthy) => " (unhealthy)",
        }
    }
}

impl Daemon {
    /// A container has started: its first probe is due after the (start) interval.
    pub(super) fn start_health(&mut self, id: &Id) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.health = None;
        let config = &container.record.config;
        let Some(check) = &config.healthcheck else { return };
        if command(check, config.shell.as_deref()).is_none() {
            return;
        }
        let started_ns = sys::time::realtime_ns();
        container.health = Some(Health {
            status: HealthStatus::Starting,
            failing_streak: 0,
            log: VecDeque::new(),
            started_ns,
            timer: None,
            running: None,
        });
        self.arm_probe(id);
    }

    fn arm_probe(&mut self, id: &Id) {
        let Some(container) = self.containers.get(id) else { return };
        let (Some(health), Some(check)) = (&container.health, &container.record.config.healthcheck) else { return };
        let in_start = health.status == HealthStatus::Starting && sys::time::realtime_ns() - health.started_ns < check.start_period;
        let wait_ns = if in_start {
            or_default(check.start_interval, DEFAULT_START_INTERVAL_NS)
        } else {
            or_default(check.interval, DEFAULT_INTERVAL_NS)
        };
        let timer = self.after(milliseconds(wait_ns), Timer::Probe(id.clone()));
        if let Some(health) = self.containers.get_mut(id).and_then(|container| container.health.as_mut()) {
            health.timer = Some(timer);
        }
    }

    /// A probe is due.
    pub(crate) fn on_probe_due(&mut self, id: &Id) {
        let Some(container) = self.containers.get(id) else { return };
        let (Some(health), Some(check)) = (&container.health, &container.record.config.healthcheck) else { return };
        if health.running.is_some() {
            return;
        }
        let Some(cmd) = command(check, container.record.config.shell.as_deref()) else { return };
        let timeout_ns = or_default(check.timeout, DEFAULT_TIMEOUT_NS);
        let start_ns = sys::time::realtime_ns();
        let config = ExecConfig {
            cmd,
            attach_stdout: true,
            attach_stderr: true,
            user: container.record.config.user.clone(),
            ..ExecConfig::default()
        };
        let exec: Rc<str> = match self.create_exec(id, config) {
            Ok(exec) => Rc::from(exec),
            // Paused, for example: not the check's fault, and not its result.
            Err(_) => return self.arm_probe(id),
        };
        self.make_probe(&exec);
        if let Some(health) = self.containers.get_mut(id).and_then(|container| container.health.as_mut()) {
            health.running = Some((exec.clone(), start_ns));
        }
        self.after(milliseconds(timeout_ns), Timer::ProbeTimeout(id.clone(), exec.clone()));
        self.start_exec(&exec, Box::new(|_, _| {}));
    }

    /// A probe did not end in time.
    pub(crate) fn on_probe_timeout(&mut self, id: &Id, exec: &Rc<str>) {
        let Some(container) = self.containers.get(id) else { return };
        let runs = container.health.as_ref().and_then(|health| health.running.as_ref()).is_some_and(|(running, _)| running == exec);
        if !runs {
            return;
        }
        let timeout_ns =
            container.record.config.healthcheck.as_ref().map_or(DEFAULT_TIMEOUT_NS, |check| or_default(check.timeout, DEFAULT_TIMEOUT_NS));
        self.kill_exec(exec);
        self.finish_probe(id, -1, format!("Health check exceeded timeout ({})", go_duration(timeout_ns)));
    }

    /// A probe's exec has ended.
    pub(super) fn on_probe_exit(&mut self, id: &Id, exec: &Rc<str>, exit_code: i32, output: String) {
        let current = self.containers.get(id).and_then(|container| container.health.as_ref()).and_then(|health| health.running.as_ref());
        if current.is_some_and(|(running, _)| running == exec) {
            self.finish_probe(id, exit_code, output);
        }
    }

    fn finish_probe(&mut self, id: &Id, exit_code: i32, output: String) {
        let end_ns = sys::time::realtime_ns();
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(check) = container.record.config.healthcheck.clone() else { return };
        let Some(health) = &mut container.health else { return };
        let Some((_, start_ns)) = health.running.take() else { return };
        if health.log.len() == REMEMBERED {
            health.log.pop_front();
        }
        health.log.push_back(Probe { start_ns, end_ns, exit_code, output });
        let before = health.status;
        if exit_code == 0 {
            health.failing_streak = 0;
            health.status = HealthStatus::Healthy;
        } else {
            // Failures of a container that is still starting do not count.
            let in_start = health.status == HealthStatus::Starting && start_ns - health.started_ns < check.start_period;
            if !in_start {
                health.failing_streak += 1;
                if health.failing_streak >= or_default(check.retries, DEFAULT_RETRIES) {
                    health.status = HealthStatus::Unhealthy;
                }
            }
        }
        let status = health.status;
        if status != before {
            self.emit_container(id, &format!("health_status: {}", status.name()), &[]);
        }
        self.arm_probe(id);
    }

    /// The container has ended: no probe is due any more.
    pub(super) fn stop_health(&mut self, id: &Id) {
        let Some(health) = self.containers.get_mut(id).and_then(|container| container.health.as_mut()) else { return };
        health.running = None;
        if let Some(timer) = health.timer.take() {
            self.timers.cancel(timer);
        }
        health.status = HealthStatus::Unhealthy;
    }
}

/// A whole number of seconds or milliseconds as Go prints durations.
fn go_duration(ns: i64) -> String {
    match ns {
        ns if ns % (3600 * SECOND_NS) == 0 => format!("{}h0m0s", ns / (3600 * SECOND_NS)),
        ns if ns >= 60 * SECOND_NS && ns % SECOND_NS == 0 => format!("{}m{}s", ns / (60 * SECOND_NS), ns / SECOND_NS % 60),
        ns if ns % SECOND_NS == 0 => format!("{}s", ns / SECOND_NS),
        ns => format!("{}ms", ns / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_durations() {
        let check = |test: &[&str]| Healthcheck { test: Some(test.iter().map(|t| t.to_string()).collect()), ..Healthcheck::default() };
        assert_eq!(command(&check(&["CMD", "a", "b"]), None).unwrap(), ["a", "b"]);
        assert_eq!(command(&check(&["CMD-SHELL", "x y"]), None).unwrap(), ["/bin/sh", "-c", "x y"]);
        assert_eq!(command(&check(&["CMD-SHELL", "x"]), Some(&["bash".into(), "-ec".into()])).unwrap(), ["bash", "-ec", "x"]);
        assert!(
            command(&check(&["NONE"]), None).is_none() && command(&check(&[]), None).is_none() && command(&check(&["CMD"]), None).is_none()
        );
        assert_eq!(
            (go_duration(30 * SECOND_NS), go_duration(90 * SECOND_NS), go_duration(5_000_000)),
            ("30s".into(), "1m30s".into(), "5ms".into())
        );
    }
}
