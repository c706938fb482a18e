//! Containers: configuration, state machine, launch plan and child, streams, logs, exec.

pub mod age;
pub mod apparmor;
pub mod capabilities;
pub mod cgroup;
pub mod config;
pub mod seccomp;
pub mod security_opt;
pub mod selinux;
