//! The map of the API: method, pattern, versions, handler. `{id}` is one segment, `{name...}` one or more.

use super::{Reply, Request, archive, build, containers, disk, exec, images, info, networks, registry, streams, swarm, system, volumes};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::http::{Method, query};
use crate::worker::Job;

/// Runs in the loop, body read.
pub type Now = fn(&mut Daemon, &Request) -> Result<Reply>;
/// Makes the job of a worker, which reads the body itself.
pub type Worker = fn(&mut Daemon, &Request) -> Result<Job>;

#[derive(Clone, Copy)]
pub enum Handler {
    Now(Now),
    Worker(Worker),
}

/// One line of the map.
pub struct Route {
    pub method: &'static str,
    pub pattern: &'static str,
    /// First and last minor version that have it.
    pub since: u16,
    pub until: u16,
    pub kind: Handler,
}

const fn now(method: &'static str, pattern: &'static str, handler: Now) -> Route {
    Route { method, pattern, since: 0, until: u16::MAX, kind: Handler::Now(handler) }
}

const fn worker(method: &'static str, pattern: &'static str, handler: Worker) -> Route {
    Route { method, pattern, since: 0, until: u16::MAX, kind: Handler::Worker(handler) }
}

/// Every route, by resource.
pub const ROUTES: &[&[Route]] = &[SYSTEM, CONTAINERS, IMAGES, NETWORKS, REGISTRY, BUILD, VOLUMES, SWARM];

const SYSTEM: &[Route] = &[
    now("GET", "/_ping", system::ping),
    now("HEAD", "/_ping", system::ping),
    now("GET", "/version", system::version),
    now("GET", "/info", info::info),
    now("GET", "/events", system::events),
    now("GET", "/plugins", system::plugins),
];

const IMAGES: &[Route] = &[
    now("GET", "/images/json", images::list),
    now("GET", "/images/{name...}/json", images::inspect),
    now("GET", "/images/{name...}/history", images::history),
    now("POST", "/images/{name...}/tag", images::tag),
    now("DELETE", "/images/{name...}", images::delete),
    now("POST", "/images/prune", images::prune),
    worker("POST", "/images/create", images::create),
    worker("POST", "/images/load", images::load),
    worker("POST", "/images/{name...}/insert", images::insert),
    now("GET", "/images/viz", images::viz),
    worker("POST", "/commit", images::commit),
    worker("GET", "/system/df", disk::usage),
    worker("GET", "/images/get", images::save),
    worker("GET", "/images/{name...}/get", images::save),
];

const REGISTRY: &[Route] = &[
    worker("POST", "/images/{name...}/push", registry::push),
    worker("POST", "/auth", registry::auth),
    worker("GET", "/images/search", registry::search),
    worker("GET", "/distribution/{name...}/json", registry::distribution),
];

const CONTAINERS: &[Route] = &[
    now("GET", "/containers/json", containers::list),
    now("POST", "/containers/create", containers::create),
    now("POST", "/containers/prune", containers::prune),
    now("GET", "/containers/{id}/json", containers::inspect),
    now("GET", "/containers/{id}/logs", streams::logs),
    now("GET", "/containers/{id}/stats", containers::stats),
    now("GET", "/containers/{id}/top", containers::top),
    now("POST", "/containers/{id}/update", containers::update),
    now("POST", "/containers/{id}/start", containers::start),
    now("POST", "/containers/{id}/stop", containers::stop),
    now("POST", "/containers/{id}/restart", containers::restart),
    now("POST", "/containers/{id}/kill", containers::kill),
    now("POST", "/containers/{id}/pause", containers::pause),
    now("POST", "/containers/{id}/unpause", containers::unpause),
    now("POST", "/containers/{id}/wait", containers::wait),
    now("POST", "/containers/{id}/attach", streams::attach),
    now("POST", "/containers/{id}/resize", containers::resize),
    now("POST", "/containers/{id}/rename", containers::rename),
    now("DELETE", "/containers/{id}", containers::remove),
    worker("GET", "/containers/{id}/archive", archive::get),
    worker("HEAD", "/containers/{id}/archive", archive::stat),
    worker("PUT", "/containers/{id}/archive", archive::put),
    worker("GET", "/containers/{id}/export", archive::export),
    worker("GET", "/containers/{id}/changes", archive::list_changes),
    now("POST", "/containers/{id}/exec", exec::create),
    now("POST", "/exec/{id}/start", exec::start),
    now("GET", "/exec/{id}/json", exec::inspect),
    now("POST", "/exec/{id}/resize", exec::resize),
];

const VOLUMES: &[Route] = &[
    now("GET", "/volumes", volumes::list),
    now("POST", "/volumes/create", volumes::create),
    now("POST", "/volumes/prune", volumes::prune),
    now("GET", "/volumes/{name}", volumes::inspect),
    now("DELETE", "/volumes/{name}", volumes::remove),
    now("PUT", "/volumes/{name}", volumes::update),
];

const NETWORKS: &[Route] = &[
    now("GET", "/networks", networks::list),
    now("GET", "/networks/{id}", networks::inspect),
    now("POST", "/networks/create", networks::create),
    now("POST", "/networks/prune", networks::prune),
    now("POST", "/networks/{id}/connect", networks::connect),
    now("POST", "/networks/{id}/disconnect", networks::disconnect),
    now("DELETE", "/networks/{id}", networks::delete),
];

const BUILD: &[Route] = &[
    worker("POST", "/build", build::build),
    now("POST", "/build/prune", build::prune),
    now("POST", "/build/cancel", build::cancel),
    now("POST", "/session", build::no_buildkit),
    now("POST", "/grpc", build::no_buildkit),
];

const SWARM: &[Route] = &[
    now("POST", "/swarm/init", swarm::unsupported),
    now("POST", "/swarm/join", swarm::unsupported),
    now("GET", "/swarm", swarm::not_a_manager),
    now("GET", "/swarm/unlockkey", swarm::not_a_manager),
    now("POST", "/swarm/leave", swarm::not_part),
    now("POST", "/swarm/update", swarm::not_a_manager),
    now("POST", "/swarm/unlock", swarm::not_part),
    now("GET", "/services", swarm::not_a_manager),
    now("POST", "/services/create", swarm::not_a_manager),
    now("GET", "/services/{id}", swarm::not_a_manager),
    now("DELETE", "/services/{id}", swarm::not_a_manager),
    now("POST", "/services/{id}/update", swarm::not_a_manager),
    now("GET", "/services/{id}/logs", swarm::not_a_manager),
    now("GET", "/nodes", swarm::not_a_manager),
    now("GET", "/nodes/{id}", swarm::not_a_manager),
    now("DELETE", "/nodes/{id}", swarm::not_a_manager),
    now("POST", "/nodes/{id}/update", swarm::not_a_manager),
    now("GET", "/tasks", swarm::not_a_manager),
    now("GET", "/tasks/{id}", swarm::not_a_manager),
    now("GET", "/tasks/{id}/logs", swarm::not_a_manager),
    now("GET", "/secrets", swarm::not_a_manager),
    now("POST", "/secrets/create", swarm::not_a_manager),
    now("GET", "/secrets/{id}", swarm::not_a_manager),
    now("DELETE", "/secrets/{id}", swarm::not_a_manager),
    now("POST", "/secrets/{id}/update", swarm::not_a_manager),
    now("GET", "/configs", swarm::not_a_manager),
    now("POST", "/configs/create", swarm::not_a_manager),
    now("GET", "/configs/{id}", swarm::not_a_manager),
    now("DELETE", "/configs/{id}", swarm::not_a_manager),
    now("POST", "/configs/{id}/update", swarm::not_a_manager),
    now("GET", "/plugins/privileges", swarm::no_plugins),
    now("POST", "/plugins/pull", swarm::no_plugins),
    now("POST", "/plugins/create", swarm::no_plugins),
    now("GET", "/plugins/{name...}/json", swarm::no_such_plugin),
    now("DELETE", "/plugins/{name...}", swarm::no_such_plugin),
    now("POST", "/plugins/{name...}/enable", swarm::no_such_plugin),
    now("POST", "/plugins/{name...}/disable", swarm::no_such_plugin),
    now("POST", "/plugins/{name...}/upgrade", swarm::no_such_plugin),
    now("POST", "/plugins/{name...}/push", swarm::no_such_plugin),
    now("POST", "/plugins/{name...}/set", swarm::no_such_plugin),
];

/// A route and the values of its parameters.
pub struct Found {
    pub route: &'static Route,
    pub params: Vec<String>,
}

/// Finds the route of a path (version prefix taken off). OPTIONS is answered for every path.
pub fn find(method: &Method, path: &str, minor: u16) -> Result<Found> {
    if *method == Method::Options {
        return Ok(Found { route: &OPTIONS, params: Vec::new() });
    }
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    for route in ROUTES.iter().flat_map(|table| table.iter()) {
        if route.method == method.as_str()
            && (route.since..=route.until).contains(&minor)
            && let Some(raw) = matches(route.pattern, &segments)
        {
            let params = raw.iter().map(|text| decode(text)).collect::<Result<Vec<_>>>()?;
            return Ok(Found { route, params });
        }
    }
    Err(Error::not_found("page not found"))
}

const OPTIONS: Route = now("OPTIONS", "", system::options);

/// Decoded once; what could not stand in a name is refused here for all of them.
fn decode(raw: &str) -> Result<String> {
    let text = query::decode(raw, false).map_err(|refusal| Error::invalid(refusal.message))?;
    if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err(Error::invalid("control byte in the path"));
    }
    Ok(text)
}

/// The raw parameters when the segments fit the pattern.
fn matches(pattern: &str, segments: &[&str]) -> Option<Vec<String>> {
    let wanted: Vec<&str> = pattern.trim_start_matches('/').split('/').collect();
    let mut params = Vec::new();
    let spare = match wanted.iter().any(|w| w.ends_with("...}")) {
        true => segments.len().checked_sub(wanted.len())?,
        false if segments.len() == wanted.len() => 0,
        false => return None,
    };
    let mut rest = segments;
    for want in wanted {
        let take = if want.ends_with("...}") { 1 + spare } else { 1 };
        let (head, tail) = rest.split_at_checked(take)?;
        rest = tail;
        if want.starts_with('{') {
            if head.iter().any(|s| s.is_empty()) {
                return None;
            }
            params.push(head.join("/"));
        } else if head != [want] {
            return None;
        }
    }
    Some(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_segments_and_spans() {
        let split = |path: &'static str| path.split('/').collect::<Vec<_>>();
        assert_eq!(matches("/containers/{id}/json", &split("containers/abc/json")), Some(vec!["abc".into()]));
        assert_eq!(matches("/containers/{id}/json", &split("containers/a/b/json")), None);
        assert_eq!(matches("/images/{name...}/json", &split("images/a/b:c/json")), Some(vec!["a/b:c".into()]));
        assert_eq!(matches("/images/{name...}/json", &split("images/json")), None);
        assert_eq!(matches("/images/{name...}/json", &split("images//json")), None);
    }

    #[test]
    fn no_line_of_the_map_hides_another() {
        let all: Vec<&Route> = ROUTES.iter().flat_map(|t| t.iter()).collect();
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert!(
                    a.method != b.method || a.pattern != b.pattern || a.until < b.since || b.until < a.since,
                    "{} {}",
                    a.method,
                    a.pattern
                );
            }
        }
    }
}
