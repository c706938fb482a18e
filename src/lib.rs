//! Coracle: the Docker Engine as one small binary, one thread, one poll loop.
//!
//! Data flows one way: socket → `http` → `api` → the resource → `sys`, and back.

pub mod api;
pub mod build;
pub mod cli;
pub mod container;
pub mod daemon;
pub mod error;
pub mod hex;
pub mod http;
pub mod image;
pub mod json;
pub mod network;
pub mod poll;
pub mod registry;
pub mod sys;
pub mod timestamp;
pub mod volume;
pub mod worker;

/// The Docker Engine whose behaviour and wording this one has; clients parse it.
pub const DOCKER_VERSION: &str = "28.5.2";
