//! The deed: interfaces into a container's namespace, its addresses, routes and resolver, and out again.
//!
//! Runs in the daemon while the container's child mounts; a veth pair, its settings and its routes are a dozen messages.

use super::firewall::GatewayMode;
use super::hosts;
use super::manager::{Networks, parent_name};
use super::model::{Driver, Network};
use super::netlink::address::{InterfaceSetup, Route, interface_setup, loopback_up};
use super::netlink::{Socket, link};
use super::sandbox::{Endpoint, Sandbox};
use super::{netns, nftables};
use crate::error::{Error, Result};
use crate::sys;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The embedded resolver's address inside every container.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Sockets of an embedded resolver, inside its container's namespace.
#[derive(Debug)]
pub struct ResolverSockets {
    pub udp: OwnedFd,
    pub tcp: OwnedFd,
}

impl Networks {
    /// Brings a planned container's interfaces into the namespace of its process. The resolver's sockets are the caller's to serve.
    /// On failure the caller releases the sandbox, which takes away what was made.
    pub fn attach(&mut self, container: &str, pid: libc::pid_t) -> Result<Option<ResolverSockets>> {
        let namespace = netns::of_process(pid).map_err(|e| Error::io("open the container's network namespace", &e))?;
        let sandbox = self.sandbox(container)?;
        for endpoint in &sandbox.endpoints {
            self.make_interface(endpoint, namespace.as_fd())?;
        }
        let wants_resolver = sandbox.upstreams.is_some();
        let sockets = netns::inside(namespace.as_fd(), || -> Result<Option<ResolverSockets>> {
            let socket = Socket::route().map_err(|e| Error::io("netlink", &e))?;
            socket.execute("bring up lo", &loopback_up())?;
            for endpoint in &sandbox.endpoints {
                set_up(&socket, sandbox, endpoint)?;
            }
            wants_resolver.then(open_resolver).transpose()
        })
        .map_err(|e| Error::io("enter the container's network namespace", &e))??;
        let names: Vec<_> = sandbox
            .endpoints
            .iter()
            .map(|e| (e.network.clone(), e.names.clone(), e.addresses.iter().map(|a| a.address).collect::<Vec<_>>()))
            .collect();
        for (network, names, addresses) in names {
            if let Some(zone) = self.zones.get_mut(&network) {
                zone.add(&names, &addresses);
            }
        }
        if let Some(sandbox) = self.sandboxes.get_mut(container) {
            sandbox.netns = Some(namespace);
        }
        Ok(sockets)
    }

    fn sandbox(&self, container: &str) -> Result<&Sandbox> {
        self.sandboxes.get(container).ok_or_else(|| Error::system(format!("container {container} has no network plan")))
    }

    fn make_interface(&self, endpoint: &Endpoint, namespace: BorrowedFd) -> Result<()> {
        let network =
            self.list.get(&endpoint.network).ok_or_else(|| Error::not_found(format!("network {} not found", endpoint.network)))?;
        let mtu = network.mtu();
        let inner = link::NewLink {
            mtu,
            mac: endpoint.mac,
            netns: link::Netns::Fd(namespace.as_raw_fd()),
            ..link::NewLink::named(&endpoint.interface)
        };
        let what = format!("create {} for network {}", endpoint.interface, network.name);
        match network.driver {
            Driver::Bridge => {
                let bridge = self.link(&network.bridge_name())?;
                let mtu = if mtu == 0 { bridge.mtu } else { mtu };
                let host = link::NewLink { mtu, master: Some(bridge.index), up: true, ..link::NewLink::named(&endpoint.host_interface) };
                self.route().execute(what, &link::new_veth(&host, &link::NewLink { mtu, ..inner }))?;
                if self.filter.hairpin || !network.icc() {
                    let port = self.link(&endpoint.host_interface)?.index;
                    if self.filter.hairpin {
                        self.route().execute("set hairpin mode", &link::set_hairpin(port, true))?;
                    }
                    // Frames between ports of one bridge pass no packet filter unless br_netfilter is loaded; isolation needs nothing.
                    if !network.icc() {
                        self.route().execute("isolate the bridge port", &link::set_isolated(port))?;
                    }
                }
            }
            Driver::Macvlan => {
                let parent = self.link(&parent_name(network))?.index;
                let mode = match network.options.get("macvlan_mode").map(String::as_str) {
                    Some("private") => 1,
                    Some("vepa") => 2,
                    Some("passthru") => 8,
                    _ => 4,
                };
                self.route().execute(what, &link::new_macvlan(&inner, parent, mode))?;
            }
            Driver::Ipvlan => {
                let parent = self.link(&parent_name(network))?.index;
                let mode = match network.options.get("ipvlan_mode").map(String::as_str) {
                    Some("l3") => 1,
                    Some("l3s") => 2,
                    _ => 0,
                };
                let flag = match network.options.get("ipvlan_flag").map(String::as_str) {
                    Some("private") => 1,
                    Some("vepa") => 2,
                    _ => 0,
                };
                self.route().execute(what, &link::new_ipvlan(&inner, parent, mode, flag))?;
            }
            Driver::Host | Driver::Null => {}
        }
        Ok(())
    }

    /// Connects a container that runs to one more network. The endpoint is recorded when all is done.
    pub fn connect(&mut self, container: &str, endpoint: Endpoint) -> Result<Option<ResolverSockets>> {
        let sandbox = self.sandbox(container)?;
        let namespace = sandbox.netns.as_ref().ok_or_else(|| Error::conflict(format!("container {container} has no network namespace")))?;
        self.make_interface(&endpoint, namespace.as_fd())?;
        let wants_resolver = sandbox.resolver == 0 && !endpoint.names.is_empty();
        let outcome = netns::inside(namespace.as_fd(), || -> Result<Option<ResolverSockets>> {
            let socket = Socket::route().map_err(|e| Error::io("netlink", &e))?;
            set_up(&socket, sandbox, &endpoint)?;
            wants_resolver.then(open_resolver).transpose()
        })
        .map_err(|e| Error::io("enter the container's network namespace", &e));
        let sockets = match outcome {
            Ok(Ok(sockets)) => sockets,
            Ok(Err(failure)) | Err(failure) => {
                self.remove_interface(container, &endpoint);
                return Err(failure);
            }
        };
        if let Some(zone) = self.zones.get_mut(&endpoint.network) {
            zone.add(&endpoint.names, &endpoint.addresses.iter().map(|a| a.address).collect::<Vec<_>>());
        }
        let sandbox = self.sandboxes.get_mut(container).ok_or_else(|| Error::system("the container has just gone"))?;
        let records = sandbox.own_records(&endpoint);
        edit_hosts(sandbox, |text| hosts::with_records(text, &records));
        sandbox.endpoints.push(endpoint);
        self.reroute(container)?;
        Ok(sockets)
    }

    /// Takes a container that runs out of a network.
    pub fn disconnect(&mut self, container: &str, network: &str) -> Result<Endpoint> {
        let sandbox = self.sandboxes.get_mut(container).ok_or_else(|| Error::system("the container has just gone"))?;
        let at = sandbox
            .endpoints
            .iter()
            .position(|e| e.network == network)
            .ok_or_else(|| Error::system(format!("container {container} is not connected to the network")))?;
        let endpoint = sandbox.endpoints.remove(at);
        let records = sandbox.own_records(&endpoint);
        edit_hosts(sandbox, |text| hosts::without_records(&text, &records));
        self.remove_interface(container, &endpoint);
        self.forget_endpoint(&endpoint);
        self.reroute(container)?;
        Ok(endpoint)
    }

    fn remove_interface(&self, container: &str, endpoint: &Endpoint) {
        if !endpoint.host_interface.is_empty() {
            return self.delete_link(&endpoint.host_interface);
        }
        let Some(namespace) = self.sandboxes.get(container).and_then(|s| s.netns.as_ref()) else { return };
        let removed = netns::inside(namespace.as_fd(), || {
            let socket = Socket::route()?;
            let _ = socket.execute(format!("delete {}", endpoint.interface), &link::delete_link(&endpoint.interface));
            Ok::<_, std::io::Error>(())
        });
        if let Err(e) = removed.and_then(|r| r) {
            log::error!("remove {} of container {container}: {e}", endpoint.interface);
        }
    }

    /// Sets the default routes again after the networks of a running container have changed.
    fn reroute(&self, container: &str) -> Result<()> {
        let sandbox = self.sandbox(container)?;
        let Some(namespace) = &sandbox.netns else { return Ok(()) };
        netns::inside(namespace.as_fd(), || -> Result<()> {
            let socket = Socket::route().map_err(|e| Error::io("netlink", &e))?;
            for v4 in [true, false] {
                if let Some(gateway) = sandbox.default_endpoint(v4).and_then(|e| e.gateway(v4)) {
                    let route = super::netlink::address::add_route(&Route::default_via(gateway));
                    socket.execute(format!("set default route via {gateway}"), &route)?;
                }
            }
            Ok(())
        })
        .map_err(|e| Error::io("enter the container's network namespace", &e))?
    }

    /// What a container's interfaces have carried, by name.
    pub fn counters(&self, container: &str) -> BTreeMap<String, link::Counters> {
        let Some(namespace) = self.sandboxes.get(container).and_then(|s| s.netns.as_ref()) else { return BTreeMap::new() };
        let links = netns::inside(namespace.as_fd(), || Socket::route().ok().and_then(|socket| link::links(&socket).ok()));
        links.ok().flatten().unwrap_or_default().into_iter().filter(|l| l.name != "lo").map(|l| (l.name, l.counters)).collect()
    }

    /// Removes what a container's end left on the host. The namespace's own end is gone with it, and usually has taken this along.
    pub fn remove_interfaces(&self, sandbox: &Sandbox) {
        for endpoint in sandbox.endpoints.iter().filter(|e| !e.host_interface.is_empty()) {
            self.delete_link(&endpoint.host_interface);
        }
    }

    /// The network of a bridge has ports in routed mode: nothing is translated.
    pub fn is_routed(network: &Network, v4: bool) -> bool {
        network.gateway_mode(v4) == GatewayMode::Routed
    }
}

fn edit_hosts(sandbox: &Sandbox, edit: impl FnOnce(String) -> String) {
    let path = sandbox.files.join("hosts");
    let edited = std::fs::read_to_string(&path).and_then(|text| std::fs::write(&path, edit(text)));
    if let Err(e) = edited {
        log::error!("{}: {e}", path.display());
    }
}

/// Inside the namespace: an interface's sysctls, addresses, and the default routes that lead through it.
fn set_up(socket: &Socket, sandbox: &Sandbox, endpoint: &Endpoint) -> Result<()> {
    if matches!(endpoint.driver, Driver::Host | Driver::Null) {
        return Ok(());
    }
    let name = &endpoint.interface;
    let index = link::link(socket, name)?.ok_or_else(|| Error::system(format!("{name} was not born in the container")))?.index;
    if sandbox.ipv6 {
        // Without an address of the network's, not even a link-local one: nobody expects IPv6 there.
        let off = if endpoint.address(false).is_some() { "0" } else { "1" };
        let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        if let Err(e) = std::fs::write(&path, off) {
            log::debug!("{path}: {e}");
        }
    }
    for (family, group, key, value) in &endpoint.sysctls {
        let path = format!("/proc/sys/net/{family}/{group}/{name}/{key}");
        std::fs::write(&path, value).map_err(|e| Error::io(format!("failed to write sysctl {path}"), &e))?;
    }
    let mut routes = Vec::new();
    for v4 in [true, false] {
        if sandbox.default_endpoint(v4).is_some_and(|e| e.id == endpoint.id) {
            routes.extend(endpoint.gateway(v4).map(Route::default_via));
        }
    }
    // ipvlan in layer 3 has no gateway: everything leaves by the interface.
    let layer3 = endpoint.driver == Driver::Ipvlan && endpoint.gateways.is_empty() && !endpoint.internal;
    if layer3 && sandbox.default_endpoint(true).is_none() {
        routes.push(Route::default_on(index, true));
    }
    let mut addresses = endpoint.addresses.clone();
    let link_local = endpoint.settings.ipam_config.iter().flat_map(|c| c.link_local_ips.iter().flatten());
    for address in link_local.filter_map(|text| text.parse::<IpAddr>().ok()) {
        addresses.push(super::prefix::Prefix::new(address, if address.is_ipv4() { 16 } else { 64 }));
    }
    for message in interface_setup(&InterfaceSetup { index, rename: None, addresses, routes }) {
        socket.execute(format!("set up {name}"), &message)?;
    }
    Ok(())
}

/// Inside the namespace: the resolver's sockets on free ports, and port 53 of its address led to them.
fn open_resolver() -> Result<ResolverSockets> {
    let redirected = open_resolver_at(0).and_then(|sockets| {
        let port = |fd: BorrowedFd| sys::socket::getsockname(fd).ok().and_then(|a| a.to_inet()).map_or(0, |a| a.port());
        let (udp, tcp) = (port(sockets.udp.as_fd()), port(sockets.tcp.as_fd()));
        let netfilter = Socket::netfilter()?;
        nftables::redirect_dns(&netfilter, RESOLVER, udp, tcp).map_err(|failure| failure.cause)?;
        Ok(sockets)
    });
    redirected
        .or_else(|cause| {
            // No nf_tables: the container's own port 53 on this one address is the price.
            log::debug!("embedded resolver: {cause}; it takes port 53 of {RESOLVER} itself");
            open_resolver_at(53)
        })
        .map_err(|e| Error::io("open the embedded resolver", &e))
}

fn open_resolver_at(port: u16) -> std::io::Result<ResolverSockets> {
    let address = sys::socket::SockAddr::inet(SocketAddr::new(RESOLVER.into(), port));
    let udp = sys::socket::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)?;
    sys::socket::bind(udp.as_fd(), &address)?;
    let tcp = sys::socket::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    sys::socket::bind(tcp.as_fd(), &address)?;
    sys::socket::listen(tcp.as_fd(), 64)?;
    Ok(ResolverSockets { udp, tcp })
}
