//! `POST /build`, `/build/prune`, `/build/cancel`; and what speaks of BuildKit.

use super::{Reply, Request, registry};
use crate::build::job::{self, Params};
use crate::container::config::{HostConfig, Resources, Ulimit};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::http::Response;
use crate::image::config::Platform;
use crate::image::reference::Reference;
use crate::registry::auth::{Credentials, decode};
use crate::worker::Job;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::BTreeMap;

/// POST /build.
pub fn build(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let query = &request.query;
    if query.get("version") == "2" {
        return Err(no_buildkit_error());
    }
    if query.flag("squash") {
        return Err(Error::invalid("squash is only supported with experimental mode"));
    }
    if !query.get("outputs").is_empty() && query.get("outputs") != "[]" {
        return Err(Error::invalid("build outputs need BuildKit: set DOCKER_BUILDKIT=0 and leave --output out"));
    }
    let tags = query.all("t").filter(|tag| !tag.is_empty()).map(tag).collect::<Result<Vec<Reference>>>()?;
    let platform = match query.get("platform") {
        "" => None,
        text => Some(Platform::parse(text)?),
    };
    let dockerfile = match query.get("dockerfile") {
        "" => "Dockerfile".to_owned(),
        path => path.trim_start_matches('/').to_owned(),
    };
    let force_remove = query.flag("forcerm");
    let credentials: Option<BTreeMap<String, Credentials>> =
        request.header("x-registry-config").and_then(decode).and_then(|text| serde_json::from_slice(&text).ok());
    let params = Params {
        tags,
        dockerfile,
        remote: query.get("remote").to_owned(),
        quiet: query.flag("q"),
        no_cache: query.flag("nocache"),
        pull: query.flag("pull"),
        remove: force_remove || query.flag_or("rm", true),
        force_remove,
        build_args: parameter(request, "buildargs")?,
        labels: parameter(request, "labels")?,
        target: query.get("target").to_owned(),
        platform,
        host: host(request)?,
        credentials: credentials.unwrap_or_default(),
        settings: registry::settings(daemon, request),
        place: daemon.images.place().clone(),
    };
    Ok(job::job(params))
}

fn tag(text: &str) -> Result<Reference> {
    let reference = Reference::parse(text)?;
    if reference.digest().is_some() {
        return Err(Error::invalid("build tag cannot contain a digest"));
    }
    Ok(reference.or_latest())
}

/// A parameter that is a JSON document; absent ones are empty.
fn parameter<T: DeserializeOwned + Default>(request: &Request, name: &str) -> Result<T> {
    match request.query.get(name) {
        "" | "null" => Ok(T::default()),
        text => serde_json::from_str(text).map_err(|e| Error::invalid(format!("error reading {name}: {e}"))),
    }
}

/// Limits and the like for the containers of RUN.
fn host(request: &Request) -> Result<HostConfig> {
    let query = &request.query;
    let number = |name: &str| query.int(name).map(Option::unwrap_or_default);
    let ulimits: Option<Vec<Ulimit>> = parameter(request, "ulimits")?;
    let extra_hosts: Vec<String> =
        query.all("extrahosts").flat_map(|list| list.split(',')).filter(|h| !h.is_empty()).map(str::to_owned).collect();
    let resources = Resources {
        memory: number("memory")?,
        memory_swap: number("memswap")?,
        cpu_shares: number("cpushares")?,
        cpu_period: number("cpuperiod")?,
        cpu_quota: number("cpuquota")?,
        cpuset_cpus: query.get("cpusetcpus").into(),
        cpuset_mems: query.get("cpusetmems").into(),
        cgroup_parent: query.get("cgroupparent").into(),
        ulimits,
        ..Resources::default()
    };
    Ok(HostConfig {
        resources,
        network_mode: query.get("networkmode").into(),
        shm_size: number("shmsize")?,
        extra_hosts: (!extra_hosts.is_empty()).then_some(extra_hosts),
        ..HostConfig::default()
    })
}

/// POST /build/prune: forgets what steps made; the images themselves are images/prune's.
pub fn prune(daemon: &mut Daemon, _: &Request) -> Result<Reply> {
    let dir = daemon.data_root.join("build-cache");
    let mut deleted = Vec::new();
    for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten().take(100_000) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_file()) && std::fs::remove_file(entry.path()).is_ok() {
            deleted.push(name);
        }
    }
    daemon.emit("builder", "prune", "", BTreeMap::from([("reclaimed".to_owned(), "0".to_owned())]));
    Ok(Response::json(200, &json!({"CachesDeleted": deleted, "SpaceReclaimed": 0})).into())
}

/// POST /build/cancel: a build ends when its client leaves; there is no other handle to it.
pub fn cancel(_: &mut Daemon, request: &Request) -> Result<Reply> {
    if request.query.get("id").is_empty() {
        return Err(Error::invalid("build ID not provided"));
    }
    Ok(Response::empty(200).into())
}

/// POST /session, POST /grpc.
pub fn no_buildkit(_: &mut Daemon, _: &Request) -> Result<Reply> {
    Err(no_buildkit_error())
}

fn no_buildkit_error() -> Error {
    Error::not_implemented("BuildKit is not part of this engine: set DOCKER_BUILDKIT=0 to build with the classic builder")
}
