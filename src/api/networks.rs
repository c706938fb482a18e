//! Networks: list, inspect, create, delete, prune.

use super::filters::Filters;
use super::{Reply, Request};
use crate::container::config::EndpointSettings;
use crate::daemon::{ConnId, Daemon, Then};
use crate::error::{Error, Kind, Result};
use crate::http::Response;
use crate::network::create::CreateRequest;
use crate::network::model::{Driver, Network};
use crate::network::sandbox::Sandbox;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// GET /networks.
pub fn list(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let filters = request.filters()?;
    filters.validate(&["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let dangling = filters.boolean("dangling")?;
    if let Some(kind) = filters.get("type").iter().find(|kind| !matches!(kind.as_str(), "custom" | "builtin")) {
        return Err(Error::invalid(format!("invalid filter: 'type'='{kind}'")));
    }
    let networks = &daemon.networks;
    let used = |network: &Network| networks.sandboxes.values().any(|s| s.endpoints.iter().any(|e| e.network == network.id));
    let views: Vec<Value> = networks
        .list
        .values()
        .filter(|n| matches(n, &filters) && dangling.is_none_or(|wanted| wanted == (!n.is_predefined() && !used(n))))
        // Before 1.28 the list showed the containers too.
        .map(|n| n.view(if request.minor < 28 { containers(daemon, &n.id) } else { Map::new() }))
        .collect();
    Ok(Response::json(200, &views).into())
}

fn matches(network: &Network, filters: &Filters) -> bool {
    let kind = if network.is_predefined() { "builtin" } else { "custom" };
    filters.exact("driver", network.driver.name())
        && filters.exact("scope", "local")
        && filters.exact("type", kind)
        && filters.any("id", |want| super::filters::resembles(want, &network.id))
        && filters.any("name", |want| super::filters::resembles(want, &network.name))
        && filters.labels("label", Some(&network.labels))
}

/// The endpoints of running containers in a network, as inspect shows them.
fn containers(daemon: &Daemon, network: &str) -> Map<String, Value> {
    let endpoint = |sandbox: &Sandbox| {
        let endpoint = sandbox.endpoints.iter().find(|e| e.network == network)?;
        let prefix = |v4: bool| endpoint.address(v4).map(|a| a.to_string()).unwrap_or_default();
        let view = json!({
            "Name": sandbox.name,
            "EndpointID": endpoint.id,
            "MacAddress": endpoint.mac.map(crate::network::create::mac_text).unwrap_or_default(),
            "IPv4Address": prefix(true),
            "IPv6Address": prefix(false),
        });
        Some((sandbox.container.clone(), view))
    };
    daemon.networks.sandboxes.values().filter_map(endpoint).collect()
}

/// GET /networks/{id}.
pub fn inspect(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let verbose = request.query.flag("verbose");
    let scope = request.query.get("scope");
    let network = daemon.networks.find(request.param(0))?;
    if !scope.is_empty() && scope != "local" {
        return Err(Error::not_found(format!("network {} not found", request.param(0))));
    }
    let mut view = network.view(containers(daemon, &network.id));
    if verbose && let Value::Object(map) = &mut view {
        map.insert("Services".into(), json!({}));
    }
    Ok(Response::json(200, &view).into())
}

/// POST /networks/create. Answered when the network's rules are in force and it is on disk.
pub fn create(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let body: CreateRequest = request.json()?;
    let network = daemon.networks.create(body)?;
    let (conn, minor) = (request.conn, request.minor);
    let then_network = network.clone();
    daemon.add_network_rules(
        &network,
        Box::new(move |daemon, outcome| match outcome {
            Ok(()) => daemon.save_new_network(&then_network, conn, minor),
            Err(failure) => daemon.undo_network(&then_network, &failure, conn, minor),
        }),
    );
    Ok(Reply::Parked)
}

/// DELETE /networks/{id}.
pub fn delete(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let id = daemon.networks.find(request.param(0))?.id.clone();
    let network = daemon.networks.delete(&id)?;
    daemon.remove_network_rules(&network);
    daemon.emit_network("destroy", &network.id, &network.name, network.driver, None);
    let (conn, minor) = (request.conn, request.minor);
    daemon.save_networks(conn, minor, Response::empty(204));
    Ok(Reply::Parked)
}

/// The body of connect and disconnect.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Membership {
    container: String,
    endpoint_config: Option<EndpointSettings>,
    force: bool,
}

/// POST /networks/{id}/connect.
pub fn connect(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let body: Membership = request.json()?;
    let network = daemon.networks.find(request.param(0))?.clone();
    let id = daemon.containers.resolve(&body.container)?;
    let then = answer(request);
    daemon.connect_container(&id, &network, body.endpoint_config.unwrap_or_default(), then);
    Ok(Reply::Parked)
}

/// POST /networks/{id}/disconnect. With force, a container that is gone is none of the client's worry.
pub fn disconnect(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let body: Membership = request.json()?;
    let network = daemon.networks.find(request.param(0))?.clone();
    let id = match daemon.containers.resolve(&body.container) {
        Err(refusal) if body.force && refusal.kind == Kind::NotFound => return Ok(Response::empty(200).into()),
        found => found?,
    };
    let then = answer(request);
    daemon.disconnect_container(&id, &network, then);
    Ok(Reply::Parked)
}

fn answer(request: &Request) -> Then<Result<()>> {
    let (conn, minor) = (request.conn, request.minor);
    Box::new(move |daemon, outcome| match outcome {
        Ok(()) => daemon.respond(conn, &Response::empty(200)),
        Err(refusal) => daemon.fail(conn, &refusal, minor),
    })
}

/// POST /networks/prune.
pub fn prune(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let filters = request.filters()?;
    filters.validate(&["label", "label!", "until"])?;
    let until = match filters.get("until") {
        [] => None,
        [one] => Some(crate::timestamp::parse_query(one, crate::sys::time::realtime_ns())?),
        _ => return Err(Error::invalid("more than one until filter specified")),
    };
    let candidates: Vec<String> = daemon
        .networks
        .list
        .values()
        .filter(|n| !n.is_predefined() && !n.config_only && until.is_none_or(|until| n.created_ns <= until))
        .filter(|n| filters.labels("label", Some(&n.labels)))
        .filter(|n| !filters.has("label!") || !filters.labels("label!", Some(&n.labels)))
        .map(|n| n.id.clone())
        .collect();
    let mut deleted = Vec::new();
    for id in candidates {
        // What is in use is left alone.
        if let Ok(network) = daemon.networks.delete(&id) {
            daemon.remove_network_rules(&network);
            daemon.emit_network("destroy", &network.id, &network.name, network.driver, None);
            deleted.push(network.name);
        }
    }
    daemon.emit("network", "prune", "", BTreeMap::from([("reclaimed".to_string(), "0".to_string())]));
    let list = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    daemon.save_networks(request.conn, request.minor, Response::json(200, &json!({ "NetworksDeleted": list })));
    Ok(Reply::Parked)
}

impl Daemon {
    fn save_new_network(&mut self, network: &Network, conn: ConnId, minor: u16) {
        let (bytes, path, network) = (self.networks.encode(), self.networks.path.clone(), network.clone());
        self.write_state(path, bytes, move |daemon, saved| match saved {
            Ok(()) => {
                daemon.emit_network("create", &network.id, &network.name, network.driver, None);
                daemon.respond(conn, &Response::json(201, &json!({ "Id": network.id, "Warning": "" })));
            }
            Err(e) => daemon.undo_network(&network, &Error::io("save the network", &e), conn, minor),
        });
    }

    fn undo_network(&mut self, network: &Network, failure: &Error, conn: ConnId, minor: u16) {
        if let Ok(network) = self.networks.delete(&network.id) {
            self.remove_network_rules(&network);
        }
        self.fail(conn, failure, minor);
    }

    /// Answers when what there is, is on disk.
    pub(crate) fn save_networks(&mut self, conn: ConnId, minor: u16, response: Response) {
        let (bytes, path) = (self.networks.encode(), self.networks.path.clone());
        self.write_state(path, bytes, move |daemon, saved| match saved {
            Ok(()) => daemon.respond(conn, &response),
            Err(e) => daemon.fail(conn, &Error::io("save the networks", &e), minor),
        });
    }
}

/// The network drivers there are, for `/info`.
pub fn drivers() -> Vec<&'static str> {
    let mut names: Vec<&str> = [Driver::Bridge, Driver::Host, Driver::Ipvlan, Driver::Macvlan, Driver::Null].map(Driver::name).to_vec();
    names.sort_unstable();
    names
}
