//! /containers/{id}/exec and /exec/{id}.

use super::streams::{content_type, detach_keys};
use super::{Reply, Request};
use crate::container::exec::{ExecConfig, no_such_exec};
use crate::container::streams::{AttachWant, DetachKeys};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::http::Response;
use serde::Deserialize;
use serde_json::json;
use std::rc::Rc;

/// POST /containers/{id}/exec.
pub fn create(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let config: ExecConfig = request.json()?;
    detach_keys(&config.detach_keys)?;
    let id = daemon.containers.resolve(request.param(0))?;
    let exec = daemon.create_exec(&id, config)?;
    Ok(Response::json(201, &json!({"Id": exec})).into())
}

/// The body of exec's start.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct StartBody {
    detach: bool,
    tty: bool,
    console_size: Option<[u16; 2]>,
}

/// POST /exec/{id}/start.
pub fn start(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let body: StartBody = request.json_or_default()?;
    let id: Rc<str> = Rc::from(request.param(0));
    daemon.check_exec_start(&id)?;
    let exec = daemon.execs.get_mut(&id).ok_or_else(|| no_such_exec(&id))?;
    if let Some(size) = body.console_size {
        if !body.tty && request.minor >= 42 {
            return Err(Error::invalid("console size is only allowed with a TTY"));
        }
        exec.config.console_size = Some(size);
    }
    let (conn, minor) = (request.conn, request.minor);
    if body.detach {
        daemon.start_exec(
            &id,
            Box::new(move |daemon, result| match result {
                Ok(()) => daemon.respond(conn, &Response::empty(200)),
                Err(error) => daemon.fail(conn, &error, minor),
            }),
        );
        return Ok(Reply::Parked);
    }
    let config = &exec.config;
    let keys = detach_keys(&config.detach_keys)?;
    let (tty, hub) = (config.tty, exec.hub);
    let want = AttachWant {
        stdin: config.attach_stdin,
        stdout: config.attach_stdout,
        stderr: config.attach_stderr,
        detach: if tty { DetachKeys::new(keys) } else { None },
    };
    let upgrade = request.head.upgrade.clone();
    let content = if upgrade.is_some() { content_type(tty, minor) } else { "application/vnd.docker.raw-stream" };
    daemon.with_conn(conn, |connection| connection.hijack(upgrade.as_deref(), content));
    daemon.attach(hub, conn, want);
    daemon.start_exec(&id, Box::new(|_, _| {}));
    Ok(Reply::Parked)
}

/// GET /exec/{id}/json.
pub fn inspect(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    Ok(Response::json(200, &daemon.inspect_exec(request.param(0))?).into())
}

/// POST /exec/{id}/resize.
pub fn resize(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let (rows, columns) = super::containers::size_of(request)?;
    let id = request.param(0);
    let exec = daemon.execs.get(id).ok_or_else(|| no_such_exec(id))?;
    if !exec.running && exec.exit_code.is_some() {
        return Err(Error::conflict(format!("exec {id} is not running")));
    }
    let hub = exec.hub;
    if let Some(hub) = daemon.hubs.get_mut(hub) {
        hub.resize(rows, columns).map_err(|e| Error::io("resize", &e))?;
    }
    Ok(Response::empty(200).into())
}
