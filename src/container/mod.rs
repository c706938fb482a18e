//! Containers: configuration, state machine, launch plan and child, streams, logs, exec.

pub mod age;
pub mod apparmor;
mod attach;
pub mod capabilities;
pub mod cdi;
pub mod cgroup;
mod child;
pub mod config;
pub mod confine;
pub mod create;
pub mod exec;
pub mod exec_launch;
pub mod health;
pub mod init;
pub mod inspect;
pub mod launch;
#[cfg(test)]
mod launch_tests;
pub mod lifecycle;
pub mod log;
pub mod mounts;
#[cfg(test)]
mod mounts_tests;
pub mod names;
pub(crate) mod overlay;
pub mod plan;
pub mod plan_mounts;
mod plan_print;
pub mod plan_process;
pub mod process;
pub mod record;
pub mod remove;
pub mod report;
pub mod rootfs;
pub mod save;
mod scope;
pub mod seccomp;
pub mod security_opt;
pub mod select;
pub mod selinux;
pub mod signal;
pub mod stage;
pub mod start;
pub mod stats;
pub mod streams;
pub mod table;
mod tail;
#[cfg(test)]
mod test_world;
pub mod top;
pub mod update;
pub mod user;
pub mod verify;
pub mod view;
