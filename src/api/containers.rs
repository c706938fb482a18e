//! /containers: create, list, inspect, and the verbs of their lives.

use super::{Reply, Request};
use crate::container::create::{CreateBody, CreateOptions};
use crate::container::record::{Id, WaitCondition};
use crate::container::remove::RemoveOptions;
use crate::container::signal;
use crate::daemon::{ConnId, Daemon};
use crate::error::{Error, Result};
use crate::http::Response;
use serde_json::json;

/// A continuation that answers 204, or the error.
fn answer_empty(conn: ConnId, minor: u16) -> Box<dyn FnOnce(&mut Daemon, Result<()>)> {
    Box::new(move |daemon, result| match result {
        Ok(()) => daemon.respond(conn, &Response::empty(204)),
        Err(error) => daemon.fail(conn, &error, minor),
    })
}

fn target(daemon: &Daemon, request: &Request) -> Result<Id> {
    daemon.containers.resolve(request.param(0))
}

/// POST /containers/create.
pub fn create(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    if request.body.is_empty() {
        return Err(Error::invalid("invalid JSON: got EOF while reading request body"));
    }
    let body: CreateBody = request.json()?;
    let name = request.query.get("name").to_string();
    let options = CreateOptions { name, platform: request.query.get("platform").to_string(), minor: request.minor };
    let (conn, minor) = (request.conn, request.minor);
    daemon.create_container(
        options,
        body,
        Box::new(move |daemon, created| match created {
            Ok(created) => daemon.respond(conn, &Response::json(201, &json!({"Id": created.id, "Warnings": created.warnings}))),
            Err(error) => daemon.fail(conn, &error, minor),
        }),
    );
    Ok(Reply::Parked)
}

/// GET /containers/json.
pub fn list(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let filters = request.filters()?;
    let limit = request.query.int("limit")?.unwrap_or(0);
    let list = daemon.list_containers(&filters, request.query.flag("all"), limit, request.query.flag("size"), request.minor)?;
    Ok(Response::json(200, &list).into())
}

/// GET /containers/{id}/json.
pub fn inspect(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let id = target(daemon, request)?;
    let container = daemon.containers.find(&id)?;
    Ok(Response::json(200, &daemon.inspect_container(container, request.minor, request.query.flag("size"))).into())
}

/// POST /containers/{id}/start.
pub fn start(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let id = target(daemon, request)?;
    // Since 1.24 a start has no body; `{}` and "null" are what old libraries send.
    if request.minor >= 24 && !matches!(request.body.trim_ascii(), b"" | b"{}" | b"null") {
        return Err(Error::invalid("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"));
    }
    let then = answer_empty(request.conn, request.minor);
    daemon.start_container(&id, then);
    Ok(Reply::Parked)
}

fn signal_of(request: &Request) -> Result<Option<i32>> {
    match request.query.get("signal") {
        "" => Ok(None),
        _ if request.minor < 42 && !request.head.path.ends_with("/kill") => Ok(None),
        text => signal::parse(text).map(Some).ok_or_else(|| Error::invalid(format!("invalid signal: {text}"))),
    }
}

fn timeout_of(request: &Request) -> Result<Option<i64>> {
    request.query.int("t")
}

/// POST /containers/{id}/stop.
pub fn stop(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let (signal, timeout) = (signal_of(request)?, timeout_of(request)?);
    let id = target(daemon, request)?;
    let then = answer_empty(request.conn, request.minor);
    let target = id.clone();
    daemon.stop_container(
        &id,
        signal,
        timeout,
        Box::new(move |daemon, result| {
            if result.is_ok() {
                daemon.emit_container(&target, "stop", &[]);
            }
            then(daemon, result);
        }),
    );
    Ok(Reply::Parked)
}

/// POST /containers/{id}/restart.
pub fn restart(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let (signal, timeout) = (signal_of(request)?, timeout_of(request)?);
    let id = target(daemon, request)?;
    let (conn, minor, name) = (request.conn, request.minor, request.param(0).to_string());
    let then = answer_empty(conn, minor);
    daemon.restart_container(
        &id,
        signal,
        timeout,
        Box::new(move |daemon, result| {
            let result = result.map_err(|e| Error::new(e.kind, format!("Cannot restart container {name}: {}", e.message)));
            then(daemon, result);
        }),
    );
    Ok(Reply::Parked)
}

/// POST /containers/{id}/kill.
pub fn kill(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let name = request.param(0).to_string();
    let wrap = move |e: Error| Error::new(e.kind, format!("cannot kill container: {name}: {}", e.message));
    let signal = match request.query.get("signal") {
        "" => libc::SIGKILL,
        text => signal::parse(text).ok_or_else(|| wrap(Error::invalid(format!("invalid signal: {text}"))))?,
    };
    let id = target(daemon, request).map_err(&wrap)?;
    if signal != libc::SIGKILL {
        daemon.kill_container(&id, signal).map_err(wrap)?;
        return Ok(Response::empty(204).into());
    }
    let then = answer_empty(request.conn, request.minor);
    daemon.kill_and_wait(&id, Box::new(move |daemon, result| then(daemon, result.map_err(wrap))));
    Ok(Reply::Parked)
}

/// POST /containers/{id}/pause.
pub fn pause(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let id = target(daemon, request)?;
    daemon.pause_container(&id)?;
    Ok(Response::empty(204).into())
}

/// POST /containers/{id}/unpause.
pub fn unpause(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let id = target(daemon, request)?;
    daemon.unpause_container(&id)?;
    Ok(Response::empty(204).into())
}

/// POST /containers/{id}/wait.
pub fn wait(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let condition = match request.query.get("condition") {
        _ if request.minor < 30 => WaitCondition::NotRunning,
        "" | "not-running" => WaitCondition::NotRunning,
        "next-exit" => WaitCondition::NextExit,
        "removed" => WaitCondition::Removed,
        other => return Err(Error::invalid(format!("invalid condition: {other:?}"))),
    };
    let id = target(daemon, request)?;
    daemon.wait_container(&id, request.conn, condition);
    Ok(Reply::Parked)
}

/// POST /containers/{id}/rename.
pub fn rename(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let id = target(daemon, request)?;
    let then = answer_empty(request.conn, request.minor);
    daemon.rename_container(&id, request.query.get("name"), then);
    Ok(Reply::Parked)
}

/// DELETE /containers/{id}.
pub fn remove(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let id = target(daemon, request)?;
    let options = RemoveOptions { force: request.query.flag("force"), volumes: request.query.flag("v") };
    let then = answer_empty(request.conn, request.minor);
    daemon.remove_container(&id, options, then);
    Ok(Reply::Parked)
}

/// POST /containers/{id}/resize.
pub fn resize(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let (rows, columns) = size_of(request)?;
    let id = target(daemon, request)?;
    let container = daemon.containers.find(&id)?;
    if !container.record.state.is_running() {
        return Err(crate::container::lifecycle::not_running(&id));
    }
    let hub = container.hub;
    if let Some(hub) = daemon.hubs.get_mut(hub) {
        hub.resize(rows, columns).map_err(|e| Error::io("resize", &e))?;
    }
    daemon.emit_container(&id, "resize", &[("height", rows.to_string()), ("width", columns.to_string())]);
    Ok(Response::empty(200).into())
}

/// `h` and `w` of a resize: rows and columns.
pub fn size_of(request: &Request) -> Result<(u16, u16)> {
    let number = |name: &str| {
        let text = request.query.get(name);
        text.parse::<u32>()
            .map_err(|_| {
                Error::invalid(format!(
                    "invalid resize dimensions {name:?} ({text:?}): strconv.ParseUint: parsing {text:?}: invalid syntax"
                ))
            })
            .map(|n| u16::try_from(n).unwrap_or(u16::MAX))
    };
    Ok((number("h")?, number("w")?))
}

/// POST /containers/prune.
pub fn prune(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let filters = request.filters()?;
    filters.validate(&["label", "label!", "until"])?;
    let now = crate::sys::time::realtime_ns();
    let until = match filters.get("until") {
        [] => None,
        [text] => Some(crate::timestamp::parse_query(text, now)?),
        _ => return Err(Error::invalid("more than one until filter specified")),
    };
    let selected = |container: &crate::container::record::Container| {
        let record = &container.record;
        let labels = record.config.labels.as_ref();
        !record.state.is_running()
            && !container.starting
            && !container.removing
            && record.state.status != crate::container::record::Status::Restarting
            && until.is_none_or(|until| record.created_ns <= until)
            && filters.labels("label", labels)
            && (filters.get("label!").is_empty() || !filters.labels("label!", labels))
    };
    let ids: Vec<Id> = daemon.containers.iter().filter(|c| selected(c)).map(|c| c.id()).collect();
    let mut deleted = Vec::new();
    for id in ids {
        daemon.remove_container(&id, RemoveOptions::default(), Box::new(|_, _| {}));
        if daemon.containers.get(&id).is_none() {
            deleted.push(id.to_string());
        }
    }
    daemon.emit("container", "prune", "", [("reclaimed".to_string(), "0".to_string())].into());
    let deleted = if deleted.is_empty() { serde_json::Value::Null } else { json!(deleted) };
    Ok(Response::json(200, &json!({"ContainersDeleted": deleted, "SpaceReclaimed": 0})).into())
}

/// GET /containers/{id}/stats.
pub fn stats(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let id = target(daemon, request)?;
    let stream = request.query.flag_or("stream", true);
    let one_shot = request.minor >= 41 && request.query.flag("one-shot");
    if stream && one_shot {
        return Err(Error::invalid("cannot have stream=true and one-shot=true"));
    }
    daemon.begin_stats(id, request.conn, stream, one_shot)?;
    Ok(Reply::Parked)
}

/// GET /containers/{id}/top.
pub fn top(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let arguments = match request.query.get("ps_args") {
        "" => "-ef",
        given => given,
    };
    let arguments = crate::container::top::check_arguments(arguments)?;
    let id = target(daemon, request)?;
    let pids = daemon.container_pids(&id)?;
    daemon.emit_container(&id, "top", &[]);
    daemon.serve_by_worker(request, crate::container::top::job(pids, arguments))
}

/// The body of update: resources, and the restart policy beside them.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct UpdateBody {
    #[serde(flatten)]
    resources: crate::container::config::Resources,
    #[serde(rename = "RestartPolicy")]
    restart_policy: crate::container::config::RestartPolicy,
}

/// POST /containers/{id}/update.
pub fn update(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let body: UpdateBody = request.json()?;
    let id = target(daemon, request)?;
    let (conn, minor) = (request.conn, request.minor);
    daemon.update_container(
        &id,
        body.resources,
        body.restart_policy,
        Box::new(move |daemon, updated| match updated {
            Ok(warnings) => daemon.respond(conn, &Response::json(200, &json!({"Warnings": warnings}))),
            Err(error) => daemon.fail(conn, &error, minor),
        }),
    );
    Ok(Reply::Parked)
}
