//! What the engine says of itself: ping, version, info, events.

use super::info::kernel;
use super::{MAX_MINOR, Reply, Request};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::http::Response;
use serde_json::json;

/// GET and HEAD /_ping.
pub fn ping(_: &mut Daemon, _: &Request) -> Result<Reply> {
    let response = Response::text(200, "OK")
        .with_header("Builder-Version", "1")
        .with_header("Cache-Control", "no-cache, no-store, must-revalidate")
        .with_header("Pragma", "no-cache")
        .with_header("Swarm", "inactive");
    Ok(response.into())
}

/// OPTIONS on any path.
pub fn options(_: &mut Daemon, _: &Request) -> Result<Reply> {
    Ok(Response::empty(200).into())
}

/// The architecture in Go's words.
pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// GET /version.
pub fn version(daemon: &mut Daemon, _: &Request) -> Result<Reply> {
    let built = "2025-11-05T14:43:33.000000000+00:00";
    let (commit, go, api, min) = ("89c5e8f", "go1.25.3", format!("1.{MAX_MINOR}"), "1.24");
    let kernel = kernel("osrelease");
    let details = json!({
        "ApiVersion": api, "Arch": go_arch(), "BuildTime": built, "Experimental": "false", "GitCommit": commit,
        "GoVersion": go, "KernelVersion": kernel, "MinAPIVersion": min, "Os": "linux",
    });
    let _ = daemon;
    Ok(Response::json(
        200,
        &json!({
            "Platform": {"Name": "Coracle"},
            "Components": [
                {"Name": "Engine", "Version": crate::DOCKER_VERSION, "Details": details},
                {"Name": "coracle", "Version": env!("CARGO_PKG_VERSION"), "Details": {"GitCommit": ""}},
            ],
            "Version": crate::DOCKER_VERSION, "ApiVersion": api, "MinAPIVersion": min, "GitCommit": commit, "GoVersion": go,
            "Os": "linux", "Arch": go_arch(), "KernelVersion": kernel, "BuildTime": built,
        }),
    )
    .into())
}

/// GET /plugins.
pub fn plugins(_: &mut Daemon, _: &Request) -> Result<Reply> {
    Ok(Response::json(200, &json!([])).into())
}

/// GET /events.
pub fn events(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let filters = request.filters()?;
    filters.validate(&[
        "config",
        "container",
        "daemon",
        "event",
        "image",
        "label",
        "network",
        "node",
        "plugin",
        "scope",
        "secret",
        "service",
        "type",
        "volume",
    ])?;
    let now = crate::sys::time::realtime_ns();
    let time = |name: &str| match request.query.get(name) {
        "" | "0" => Ok(None),
        text => crate::timestamp::parse_query(text, now).map(Some),
    };
    let (since, until) = (time("since")?, time("until")?);
    if let (Some(since), Some(until)) = (since, until)
        && until < since
    {
        return Err(Error::invalid(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            request.query.get("since"),
            request.query.get("until")
        )));
    }
    daemon.follow_events(request.conn, filters, since, until);
    Ok(Reply::Parked)
}
