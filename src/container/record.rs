//! A container as the daemon knows it: what is kept on disk, and what lives only while it runs.

use super::config::{Config, EndpointSettings, HostConfig};
use super::streams::HubId;
use crate::daemon::{ConnId, Then};
use crate::error::Result;
use crate::poll::timer::TimerId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A container's full id.
pub type Id = Rc<str>;

/// The states of a container; the names are the API's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Created,
    Running,
    Paused,
    /// Ended, and waiting for its restart.
    Restarting,
    Removing,
    Exited,
    /// Its removal failed half-way.
    Dead,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Removing => "removing",
            Status::Exited => "exited",
            Status::Dead => "dead",
        }
    }
}

/// The state that inspect shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub status: Status,
    /// 0 when no process runs.
    pub pid: i32,
    pub exit_code: i32,
    pub error: String,
    pub oom_killed: bool,
    pub started_ns: Option<i64>,
    pub finished_ns: Option<i64>,
}

impl State {
    /// A process of the container runs (frozen ones too).
    pub fn is_running(&self) -> bool {
        matches!(self.status, Status::Running | Status::Paused)
    }
}

/// A mount of the container as inspect shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MountPoint {
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub source: String,
    pub destination: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    pub mode: String,
    #[serde(rename = "RW")]
    pub rw: bool,
    pub propagation: String,
    /// How it was asked for, where Mounts did: options that the other fields don't show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<super::config::MountSpec>,
}

/// What is written to `containers/<id>/config.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    pub created_ns: i64,
    /// `sha256:…` of the image's configuration.
    pub image: String,
    /// Chain id of the image's top layer: the container stands on it, whatever becomes of the image. `None`: no layers.
    pub top: Option<crate::image::digest::Digest>,
    /// The program and its arguments: entrypoint and command, merged.
    pub path: String,
    pub args: Vec<String>,
    pub config: Config,
    pub host: HostConfig,
    pub networks: BTreeMap<String, EndpointSettings>,
    pub mounts: Vec<MountPoint>,
    pub state: State,
    pub restart_count: i64,
    /// Stopped by a client: unless-stopped leaves it alone.
    pub manually_stopped: bool,
    /// The image's platform, for inspect.
    pub platform: String,
    /// The AppArmor profile in force, for inspect.
    pub apparmor: String,
}

/// Who waits for a container.
pub struct Waiter {
    pub conn: ConnId,
    pub condition: WaitCondition,
}

/// The API's `condition` of wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitCondition {
    NotRunning,
    NextExit,
    Removed,
}

/// A stop under way: the timer of its SIGKILL, and who waits for its end.
pub struct Stopping {
    pub timer: Option<TimerId>,
    pub then: Vec<Then<Result<()>>>,
}

/// A container.
pub struct Container {
    pub record: Record,
    /// The running process, or the one being started.
    pub process: Option<u64>,
    /// Its streams; made with the container, so that clients attach before the start.
    pub hub: HubId,
    pub waiters: Vec<Waiter>,
    pub stopping: Option<Stopping>,
    /// Starts under way wait for the process's report.
    pub starting: bool,
    /// The restart that is due.
    pub restart_timer: Option<TimerId>,
    /// Milliseconds until the next restart by policy.
    pub backoff_ms: u64,
    /// How often the policy has restarted it since it last ran well.
    pub failures: i64,
    pub started_ms: u64,
    /// Removal is under way.
    pub removing: bool,
    /// Exec instances of it, for inspect.
    pub execs: Vec<Rc<str>>,
    pub health: Option<super::health::Health>,
    /// A client asked for the end (stop, kill, restart): restart policies stay out of it.
    pub ending_by_request: bool,
}

impl Container {
    pub fn id(&self) -> Id {
        Rc::from(self.record.id.as_str())
    }

    pub fn short_id(&self) -> &str {
        self.record.id.get(..12).unwrap_or(&self.record.id)
    }

    /// The attributes of its events: image, name and labels.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = self.record.config.labels.clone().unwrap_or_default();
        attributes.insert("image".into(), self.record.config.image.clone());
        attributes.insert("name".into(), self.record.name.clone());
        attributes
    }
}
