//! Cgroups on v1, hybrid and v2 hosts: what is there, what a container gets, and the life of one container's cgroup.
//!
//! Decisions are pure: [`Hierarchy::parse`], [`plan()`], [`limits`], [`devices::Devices::with`], [`program::compile`],
//! [`validate`]. Deeds are few: [`Cgroups::create`] and the methods of [`Cgroup`]; none of them waits.

mod bus;
mod dbus;
#[cfg(test)]
mod deeds;
pub mod devices;
mod files;
mod group;
mod groups;
pub mod hierarchy;
pub mod limits;
mod oom;
pub mod plan;
pub mod program;
pub mod stats;
pub mod stats_json;
pub mod support;
pub mod systemd;
pub mod validate;

pub use bus::Bus;
pub use group::{Cgroup, Join};
pub use groups::Cgroups;
pub use hierarchy::{Hierarchy, Version};
pub use oom::OomWatch;
pub use plan::{Driver, Facts, Plan, plan};
pub use stats::{HostCpu, Stats};
pub use stats_json::{CpuStats, StatsJson, stats_json};
pub use support::Support;
