//! The networks in the daemon's loop: start and stop, attaching containers, and what is watched.

pub mod containers;
pub mod filter;
pub mod proxy;
pub mod resolver;

use super::firewall::{self, Family};
use super::manager::Networks;
use super::model::{Driver, Network};
use super::sandbox::{Request, Sandbox};
use super::settings::{Publishing, Settings};
use crate::daemon::{Daemon, Then};
use crate::error::{Error, Result};
use crate::poll::Ready;
use std::collections::BTreeMap;

/// A descriptor of the networks in the loop; the number is its owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    ResolverUdp(u64),
    ResolverTcp(u64),
    ResolverClient(u64),
    Upstream(u64),
    ProxyListener(u64),
    ProxyClient(u64),
    ProxyTarget(u64),
    ProxyUdp(u64),
    ProxySession(u64),
}

/// Timers of the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    /// Questions whose upstream has taken too long.
    Resolver,
    /// Sessions of the UDP proxy that have gone quiet.
    Sessions,
}

/// What the loop keeps for the networks.
#[derive(Default)]
pub struct NetworkLoop {
    pub(super) filter: filter::Filter,
    pub(super) resolvers: resolver::Resolvers,
    pub(super) proxies: proxy::Proxies,
}

/// Reads the networks, at the daemon's start.
pub fn open(options: &crate::daemon::options::Options, data_root: &std::path::Path) -> std::result::Result<Networks, String> {
    Networks::open(Settings::load(options)?, data_root)
}

impl Daemon {
    /// Brings the host into shape: forwarding, bridges, rules. Called once, before the first request.
    pub fn start_networks(&mut self) -> std::result::Result<(), String> {
        self.turn_on_forwarding();
        let networks: Vec<Network> = self.networks.list.values().filter(|n| !n.config_only).cloned().collect();
        for network in networks {
            if let Err(failure) = self.networks.make_links(&network) {
                if network.is_default_bridge() {
                    return Err(format!(
                        "Error initializing network controller: error creating default \"bridge\" network: {failure}; --bridge=none goes without"
                    ));
                }
                log::error!("network {}: {failure}", network.name);
            }
        }
        self.start_filter();
        let bytes = self.networks.encode();
        if let Err(e) = self.write_state_lazily(&self.networks.path.clone(), &bytes) {
            log::error!("{}: {e}", self.networks.path.display());
        }
        Ok(())
    }

    /// Packets between interfaces. Where we are the ones who turn it on, everything that is not ours stays as shut as before.
    fn turn_on_forwarding(&mut self) {
        if !self.networks.settings.forward {
            return;
        }
        let mut turned_on = false;
        let mut turn_on = |path: &str| {
            if std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0") {
                match std::fs::write(path, "1") {
                    Ok(()) => turned_on = true,
                    Err(e) => log::error!("{path}: {e}; containers reach nothing outside"),
                }
            }
        };
        turn_on("/proc/sys/net/ipv4/ip_forward");
        if self.networks.list.values().any(|n| n.ipv6) {
            turn_on("/proc/sys/net/ipv6/conf/default/forwarding");
            turn_on("/proc/sys/net/ipv6/conf/all/forwarding");
        }
        self.networks.filter.forward_drop |= turned_on;
    }

    /// The orderly stop: rules and links of ours go. The daemon waits for the program, as nothing else is left to do.
    pub fn stop_networks(&mut self) {
        let containers: Vec<String> = self.networks.sandboxes.keys().cloned().collect();
        for container in containers {
            self.release_network(&container);
        }
        self.stop_filter();
        let networks: Vec<Network> = self.networks.list.values().cloned().collect();
        for network in networks {
            self.networks.remove_links(&network);
        }
    }

    /// Decides a container's networks before it starts: addresses, ports, files.
    pub fn plan_network(&mut self, request: &Request) -> Result<()> {
        self.networks.plan_sandbox(request)
    }

    /// Brings a planned container's interfaces into its process' namespace, serves its ports and names; `then` runs when the packet
    /// filter holds its rules, at once where it needs none. After a failure the caller calls [`Daemon::release_network`].
    pub fn attach_network(&mut self, container: &str, pid: libc::pid_t, then: impl FnOnce(&mut Daemon, Result<()>) + 'static) {
        let sockets = match self.networks.attach(container, pid) {
            Ok(sockets) => sockets,
            Err(failure) => return then(self, Err(network_failure(failure))),
        };
        if let Some(sockets) = sockets {
            self.serve_resolver(container, sockets);
        }
        self.serve_ports(container);
        self.announce(container, "connect");
        self.add_port_rules(container, Box::new(then));
    }

    /// Gives back all that a container had: when it has ended, or its start has failed. Unknown ones are ignored.
    pub fn release_network(&mut self, container: &str) {
        let Some(mut sandbox) = self.networks.forget_sandbox(container) else { return };
        self.end_resolver(sandbox.resolver);
        self.end_ports(container);
        self.networks.remove_interfaces(&sandbox);
        if sandbox.netns.is_some() {
            for endpoint in &sandbox.endpoints {
                self.emit_network("disconnect", &endpoint.network, &endpoint.network_name, endpoint.driver, Some(container));
            }
        }
        self.remove_port_rules(&mut sandbox);
    }

    fn announce(&mut self, container: &str, action: &str) {
        let Some(sandbox) = self.networks.sandboxes.get(container) else { return };
        let list: Vec<_> = sandbox.endpoints.iter().map(|e| (e.network.clone(), e.network_name.clone(), e.driver)).collect();
        for (id, name, driver) in list {
            self.emit_network(action, &id, &name, driver, Some(container));
        }
    }

    pub(crate) fn emit_network(&mut self, action: &str, id: &str, name: &str, driver: Driver, container: Option<&str>) {
        let mut attributes = BTreeMap::from([("name".to_string(), name.to_string()), ("type".to_string(), driver.name().to_string())]);
        if let Some(container) = container {
            attributes.insert("container".into(), container.into());
        }
        self.emit("network", action, id, attributes);
    }

    /// A container's rules into force; `then` at once when it has none.
    fn add_port_rules(&mut self, container: &str, then: Then<Result<()>>) {
        let mut batches = Vec::new();
        if self.networks.settings.publishing == Publishing::Translate
            && let Some(sandbox) = self.networks.sandboxes.get_mut(container)
        {
            for family in [Family::V4, Family::V6] {
                let rules = sandbox.rules(family, &self.networks.filter);
                if !rules.is_empty() && self.network_loop.filter.is_usable(family) {
                    batches.push((family, firewall::add(&rules)));
                }
            }
            sandbox.rules_in_force = !batches.is_empty();
        }
        self.change_filter(batches, then);
    }

    fn remove_port_rules(&mut self, sandbox: &mut Sandbox) {
        if !std::mem::take(&mut sandbox.rules_in_force) {
            return;
        }
        let batches = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| self.network_loop.filter.is_usable(*family))
            .map(|family| (family, sandbox.rules(family, &self.networks.filter)))
            .filter(|(_, rules)| !rules.is_empty())
            .map(|(family, rules)| (family, firewall::remove(&rules)))
            .collect();
        self.change_filter(batches, Box::new(|_, _| {}));
    }

    /// A container leaves the network that its ports lead into: they are closed.
    pub(super) fn unpublish(&mut self, container: &str, network: &str) {
        let Some(sandbox) = self.networks.sandboxes.get_mut(container).filter(|s| s.port_network == network) else { return };
        let mut rest = sandbox.without_ports();
        self.end_ports(container);
        self.remove_port_rules(&mut rest);
        for published in rest.published.iter().filter(|p| p.host_port != 0) {
            self.networks.ports.release(published.host, published.protocol, published.host_port);
        }
    }

    /// The rules of a network that was made.
    pub(crate) fn add_network_rules(&mut self, network: &Network, then: Then<Result<()>>) {
        if network.ipv6 {
            self.turn_on_forwarding();
        }
        let batches = self.network_batches(network, firewall::add);
        self.change_filter(batches, then);
    }

    /// The rules of a network that is gone.
    pub(crate) fn remove_network_rules(&mut self, network: &Network) {
        let batches = self.network_batches(network, firewall::remove);
        self.change_filter(batches, Box::new(|_, _| {}));
    }

    fn network_batches(&self, network: &Network, text: impl Fn(&[firewall::Rule]) -> String) -> Vec<(Family, String)> {
        let Some(rules) = network.firewall(self.networks.settings.direct_routing) else { return Vec::new() };
        [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| self.network_loop.filter.is_usable(*family))
            .map(|family| (family, firewall::network_rules(family, &rules, &self.networks.filter)))
            .filter(|(_, rules)| !rules.is_empty())
            .map(|(family, rules)| (family, text(&rules)))
            .collect()
    }

    /// Something is ready.
    pub(crate) fn on_network_ready(&mut self, watched: Watched, ready: Ready) {
        match watched {
            Watched::ResolverUdp(n) => self.on_resolver_udp(n),
            Watched::ResolverTcp(n) => self.on_resolver_tcp(n),
            Watched::ResolverClient(n) => self.on_resolver_client(n),
            Watched::Upstream(n) => self.on_upstream(n),
            Watched::ProxyListener(n) => self.on_proxy_listener(n),
            Watched::ProxyClient(n) | Watched::ProxyTarget(n) => self.on_proxy_connection(n, ready),
            Watched::ProxyUdp(n) => self.on_proxy_udp(n),
            Watched::ProxySession(n) => self.on_proxy_session(n),
        }
    }

    pub(crate) fn on_network_tick(&mut self, tick: Tick) {
        match tick {
            Tick::Resolver => self.on_resolver_tick(),
            Tick::Sessions => self.on_sessions_tick(),
        }
    }
}

/// The reference's frame around every failure to set up a container's networks.
fn network_failure(failure: Error) -> Error {
    if failure.message.starts_with("failed to set up container networking") {
        return failure;
    }
    Error::new(failure.kind, format!("failed to set up container networking: {}", failure.message))
}
