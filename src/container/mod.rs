//! Containers: configuration, state machine, launch plan and child, streams, logs, exec.

pub mod age;
pub mod apparmor;
mod attach;
pub mod capabilities;
pub mod cdi;
pub mod cgroup;
mod child;
pub mod config;
pub mod exec_launch;
pub mod init;
pub mod launch;
#[cfg(test)]
mod launch_tests;
mod overlay;
pub mod plan;
pub mod plan_mounts;
mod plan_print;
pub mod plan_process;
pub mod report;
pub mod rootfs;
pub mod seccomp;
pub mod security_opt;
pub mod selinux;
mod tail;
pub mod user;
