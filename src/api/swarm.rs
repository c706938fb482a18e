//! Swarm, services, nodes, tasks, secrets, configs, plugins: the answers of an engine that is in no swarm.

use super::{Reply, Request};
use crate::daemon::Daemon;
use crate::error::{Error, Kind, Result};

/// Every route that only a manager can serve.
pub fn not_a_manager(_: &mut Daemon, _: &Request) -> Result<Reply> {
    Err(Error::new(
        Kind::Unavailable,
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    ))
}

/// Leaving what one is not part of.
pub fn not_part(_: &mut Daemon, _: &Request) -> Result<Reply> {
    Err(Error::new(Kind::Unavailable, "This node is not part of a swarm"))
}

/// Becoming a swarm is not what this engine does.
pub fn unsupported(_: &mut Daemon, _: &Request) -> Result<Reply> {
    Err(Error::not_implemented("this engine has no swarm mode"))
}

pub fn no_plugins(_: &mut Daemon, _: &Request) -> Result<Reply> {
    Err(Error::not_implemented("this engine has no managed plugins"))
}

pub fn no_such_plugin(_: &mut Daemon, request: &Request) -> Result<Reply> {
    Err(Error::not_found(format!("plugin {:?} not found", request.param(0))))
}
