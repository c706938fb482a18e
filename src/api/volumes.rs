//! /volumes.

use super::{Reply, Request};
use crate::container::config::Labels;
use crate::daemon::Daemon;
use crate::error::{Error, Kind, Result};
use crate::http::Response;
use crate::volume::{self, Volume};
use serde::Deserialize;
use serde_json::{Value, json};

/// GET /volumes.
pub fn list(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let filters = request.filters()?;
    filters.validate(&["dangling", "driver", "label", "name"])?;
    let dangling = filters.boolean("dangling")?;
    let selected = |volume: &&Volume| {
        filters.any("name", |want| volume.name.contains(want.as_str()))
            && filters.exact("driver", "local")
            && filters.labels("label", volume.labels.as_ref())
            && dangling.is_none_or(|want| daemon.volume_users(&volume.name, None).is_empty() == want)
    };
    let volumes: Vec<Value> = daemon.volumes.iter().filter(selected).map(|volume| daemon.volumes.to_json(volume)).collect();
    Ok(Response::json(200, &json!({"Volumes": volumes, "Warnings": Value::Null})).into())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct CreateBody {
    name: String,
    driver: String,
    driver_opts: Option<Labels>,
    labels: Option<Labels>,
    cluster_volume_spec: Option<Value>,
}

/// POST /volumes/create.
pub fn create(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let body: CreateBody = request.json_or_default()?;
    if body.cluster_volume_spec.is_some() {
        return Err(Error::new(
            Kind::Unavailable,
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
        ));
    }
    let mut labels = body.labels;
    let name = match body.name.as_str() {
        "" => {
            labels.get_or_insert_default().insert(volume::ANONYMOUS.into(), String::new());
            crate::hex::random_id().map_err(|e| Error::io("make an id", &e))?
        }
        name => name.to_string(),
    };
    let wrap = |e: Error| Error::new(e.kind, format!("create {name}: {}", e.message));
    if !matches!(body.driver.as_str(), "" | "local") {
        let driver = &body.driver;
        return Err(wrap(Error::not_found(format!("error looking up volume plugin {driver}: plugin \"{driver}\" not found"))));
    }
    volume::check_name(&name).map_err(wrap)?;
    if let Some(options) = &body.driver_opts {
        volume::check_options(options).map_err(wrap)?;
    }
    if let Some(volume) = daemon.volumes.get(&name) {
        return Ok(Response::json(201, &daemon.volumes.to_json(volume)).into());
    }
    let volume = Volume { name, created_ns: crate::sys::time::realtime_ns(), labels, options: body.driver_opts };
    let (file, from, to) = daemon.volumes.build(&volume)?;
    let (conn, minor) = (request.conn, request.minor);
    daemon.rename_durably(file, from, to, move |daemon, made| match made {
        Ok(()) => {
            let (name, answer) = (volume.name.clone(), daemon.volumes.to_json(&volume));
            daemon.volumes.enter(volume);
            daemon.emit("volume", "create", &name, [("driver".to_string(), "local".to_string())].into());
            daemon.respond(conn, &Response::json(201, &answer));
        }
        Err(e) => daemon.fail(conn, &Error::io(format!("create volume {}", volume.name), &e), minor),
    });
    Ok(Reply::Parked)
}

/// GET /volumes/{name}.
pub fn inspect(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let volume = daemon.volumes.find(request.param(0))?;
    Ok(Response::json(200, &daemon.volumes.to_json(volume)).into())
}

/// DELETE /volumes/{name}.
pub fn remove(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let name = request.param(0);
    match daemon.remove_volume(name, None) {
        Err(e) if e.kind == Kind::NotFound && request.query.flag("force") => {}
        other => other?,
    }
    Ok(Response::empty(204).into())
}

/// PUT /volumes/{name}: for cluster volumes, of which there are none without a swarm.
pub fn update(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    daemon.volumes.find(request.param(0))?;
    Err(Error::new(Kind::Unavailable, "volume update only valid for cluster volumes, but swarm is unavailable"))
}

/// POST /volumes/prune. Since 1.42 only anonymous ones, unless `all` says otherwise.
pub fn prune(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let filters = request.filters()?;
    filters.validate(&["all", "label", "label!"])?;
    let all = filters.boolean("all")?.unwrap_or(request.minor < 42);
    let selected = |volume: &&Volume| {
        (all || volume.is_anonymous())
            && filters.labels("label", volume.labels.as_ref())
            && (filters.get("label!").is_empty() || !filters.labels("label!", volume.labels.as_ref()))
            && daemon.volume_users(&volume.name, None).is_empty()
    };
    let names: Vec<String> = daemon.volumes.iter().filter(selected).map(|volume| volume.name.clone()).collect();
    let mut deleted = Vec::new();
    for name in names {
        match daemon.remove_volume(&name, None) {
            Ok(()) => deleted.push(name),
            Err(e) => log::warn!("prune volume {name}: {e}"),
        }
    }
    daemon.emit("volume", "prune", "", [("reclaimed".to_string(), "0".to_string())].into());
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    Ok(Response::json(200, &json!({"VolumesDeleted": deleted, "SpaceReclaimed": 0})).into())
}
