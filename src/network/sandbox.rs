//! A container's place in its networks: decided before it starts, released when it ends.
//!
//! [`Networks::plan_sandbox`] takes addresses and host ports and writes the container's files; every failure gives all of it back.
//! What the kernel has to be told is in `attach`.

use super::create::{check_endpoint, endpoint_sysctl, mac_text, parse_mac};
use super::firewall::{Family, GatewayMode, PortRules, Rule, port_rules};
use super::hosts::{self, Record};
use super::manager::Networks;
use super::model::{Driver, Network};
use super::netlink::link::Mac;
use super::ports::{self, Binding, Protocol};
use super::prefix::Prefix;
use super::resolv_conf::{Overrides, ResolvConf, Upstream};
use super::settings::Publishing;
use crate::container::config::{Config, EndpointSettings, HostConfig, PortBinding, PortMap};
use crate::error::{Error, Result};
use crate::sys;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What a start asks of its networks.
pub struct Request<'a> {
    pub container: &'a str,
    /// Without the slash.
    pub name: &'a str,
    pub config: &'a Config,
    pub host: &'a HostConfig,
    /// The container's networks by name, as they were asked for.
    pub endpoints: &'a BTreeMap<String, EndpointSettings>,
    /// The directory that holds `hosts`, `hostname` and `resolv.conf`.
    pub files: PathBuf,
}

/// Whose network namespace a container lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    Own,
    Host,
    /// That of the container with this id or name.
    Of(String),
}

/// HostConfig.NetworkMode.
pub fn namespace_of(mode: &str) -> Namespace {
    match mode.strip_prefix("container:") {
        Some(other) => Namespace::Of(other.to_string()),
        None if mode == "host" => Namespace::Host,
        None => Namespace::Own,
    }
}

/// One interface of a container.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub id: String,
    /// The network's id and name.
    pub network: String,
    pub network_name: String,
    pub driver: Driver,
    /// Inside the container.
    pub interface: String,
    /// The host's end; empty where there is none.
    pub host_interface: String,
    pub mac: Option<Mac>,
    /// Each with its subnet's length.
    pub addresses: Vec<Prefix>,
    /// Default gateways that the network offers.
    pub gateways: Vec<IpAddr>,
    /// DNS names, the first for reverse questions; empty on the default bridge.
    pub names: Vec<String>,
    /// Names of other containers → the names by which this one knows them.
    pub links: BTreeMap<String, String>,
    /// (protocol family, group, name, value) of `com.docker.network.endpoint.sysctls`.
    pub sysctls: Vec<(String, String, String, String)>,
    pub priority: i64,
    pub internal: bool,
    pub settings: EndpointSettings,
}

impl Endpoint {
    pub fn address(&self, v4: bool) -> Option<Prefix> {
        self.addresses.iter().copied().find(|a| a.is_v4() == v4)
    }

    pub fn gateway(&self, v4: bool) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|g| g.is_ipv4() == v4)
    }

    /// The API's view: what was asked for, and what it was given.
    pub fn view(&self) -> EndpointSettings {
        let mut view = self.settings.clone();
        let text = |address: Option<IpAddr>| address.map(|a| a.to_string()).unwrap_or_default();
        view.network_id.clone_from(&self.network);
        view.endpoint_id.clone_from(&self.id);
        view.mac_address = self.mac.map(mac_text).unwrap_or_default();
        view.gateway = text(self.gateway(true));
        view.ipv6_gateway = text(self.gateway(false));
        view.ip_address = text(self.address(true).map(|a| a.address));
        view.ip_prefix_len = self.address(true).map_or(0, |a| a.length);
        view.global_ipv6_address = text(self.address(false).map(|a| a.address));
        view.global_ipv6_prefix_len = self.address(false).map_or(0, |a| a.length);
        view.dns_names = (!self.names.is_empty()).then(|| self.names.clone());
        view
    }
}

/// A published port as it came to be.
#[derive(Debug)]
pub struct Published {
    pub container_port: u16,
    pub protocol: Protocol,
    pub host: IpAddr,
    pub host_port: u16,
    /// Where it leads.
    pub target: SocketAddr,
    pub bridge: String,
    pub mode: GatewayMode,
    /// Bound (and for tcp listening) in the host's namespace: it makes the port ours. The proxy takes it over; routed networks have none.
    pub socket: Option<OwnedFd>,
}

/// The networks of one container that runs or is about to.
#[derive(Debug)]
pub struct Sandbox {
    pub container: String,
    pub name: String,
    pub endpoints: Vec<Endpoint>,
    pub published: Vec<Published>,
    /// Exposed ports, which inspect lists with null.
    pub exposed: Vec<String>,
    pub files: PathBuf,
    /// `hostname` and its domain, for the hosts file.
    pub own_names: String,
    /// Upstreams of the embedded resolver; `None` = no embedded resolver.
    pub upstreams: Option<Vec<Upstream>>,
    /// What was asked for besides: for connecting later.
    pub dns: Overrides,
    /// The container's namespace, once there is one.
    pub netns: Option<OwnedFd>,
    pub ipv6: bool,
    /// Number of the embedded resolver in the loop; 0 = none.
    pub resolver: u64,
    /// The packet filter's rules of its ports are in force.
    pub rules_in_force: bool,
    /// The address that its ports lead to came from this network.
    pub port_network: String,
}

impl Sandbox {
    /// NetworkSettings.Ports.
    pub fn ports(&self) -> PortMap {
        let mut map: PortMap = self.exposed.iter().map(|port| (port.clone(), None)).collect();
        for published in &self.published {
            let key = format!("{}/{}", published.container_port, published.protocol);
            let binding = PortBinding { host_ip: published.host.to_string(), host_port: published.host_port.to_string() };
            map.entry(key).or_default().get_or_insert_with(Vec::new).push(binding);
        }
        map
    }

    pub fn rules(&self, family: Family, settings: &super::firewall::Settings) -> Vec<Rule> {
        let of_family = self.published.iter().filter(|p| Family::of(p.host) == family);
        of_family.flat_map(|p| port_rules(&p.rules(), settings)).collect()
    }

    /// Takes the published ports out, with what it takes to undo their rules.
    pub(super) fn without_ports(&mut self) -> Sandbox {
        Sandbox {
            container: self.container.clone(),
            name: self.name.clone(),
            endpoints: Vec::new(),
            published: std::mem::take(&mut self.published),
            exposed: Vec::new(),
            files: PathBuf::new(),
            own_names: String::new(),
            upstreams: None,
            dns: Overrides::default(),
            netns: None,
            ipv6: self.ipv6,
            resolver: 0,
            rules_in_force: std::mem::take(&mut self.rules_in_force),
            port_network: std::mem::take(&mut self.port_network),
        }
    }

    /// The endpoint that the default route of a family goes through.
    pub fn default_endpoint(&self, v4: bool) -> Option<&Endpoint> {
        let usable = |e: &&Endpoint| !e.internal && e.gateway(v4).is_some();
        // The highest priority; then a network with both families; then the first by name.
        let rank = |e: &&Endpoint| (std::cmp::Reverse(e.priority), e.gateways.len() < 2, e.network_name.clone());
        self.endpoints.iter().filter(usable).min_by_key(rank)
    }

    /// The container's own lines of its hosts file.
    pub fn own_records(&self, endpoint: &Endpoint) -> Vec<Record> {
        endpoint.addresses.iter().map(|a| Record { address: a.address, names: self.own_names.clone() }).collect()
    }
}

impl Published {
    pub fn rules(&self) -> PortRules {
        PortRules {
            bridge: self.bridge.clone(),
            protocol: self.protocol.name(),
            host: self.host,
            host_port: self.host_port,
            container: self.target.ip(),
            container_port: self.container_port,
            mode: self.mode,
        }
    }
}

impl Networks {
    /// Checks at create what can be known without starting: modes, networks, endpoints, ports.
    pub fn check_create(&self, request: &Request) -> Result<()> {
        let mode = mode_name(&request.host.network_mode);
        ports::bindings(request.host.port_bindings.as_ref(), &request.config.exposed_ports, false)?;
        for text in request.host.extra_hosts.iter().flatten() {
            self.extra_host(text)?;
        }
        check_resolver(request.host)?;
        if request.config.hostname.chars().chain(request.config.domainname.chars()).any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Error::invalid(format!("invalid hostname format: {:?}", request.config.hostname)));
        }
        if matches!(namespace_of(mode), Namespace::Of(_)) {
            return Ok(());
        }
        for (name, endpoint) in request.endpoints {
            check_endpoint(name, self.find(name).ok(), endpoint)?;
        }
        Ok(())
    }

    /// Decides and takes everything for a start, and writes the container's files.
    pub fn plan_sandbox(&mut self, request: &Request) -> Result<()> {
        let host = request.host;
        let mut sandbox = Sandbox {
            container: request.container.to_string(),
            name: request.name.to_string(),
            endpoints: Vec::new(),
            published: Vec::new(),
            exposed: request
                .config
                .exposed_ports
                .keys()
                .flat_map(|p| ports::exposed_ports(p).unwrap_or_default())
                .map(|p| p.to_string())
                .collect(),
            files: request.files.clone(),
            own_names: hosts::own_names(&request.config.hostname, &request.config.domainname),
            upstreams: None,
            dns: self.resolver_overrides(host),
            netns: None,
            ipv6: self.host_ipv6,
            resolver: 0,
            rules_in_force: false,
            port_network: String::new(),
        };
        // A start that was not released (it cannot be, but leaks would last until the next boot).
        self.forget_sandbox(request.container);
        let planned = self.plan_into(&mut sandbox, request);
        // Whatever happened, what was taken is recorded, so that one release gives everything back.
        self.sandboxes.insert(request.container.to_string(), sandbox);
        if planned.is_err() {
            self.forget_sandbox(request.container);
        }
        planned
    }

    fn plan_into(&mut self, sandbox: &mut Sandbox, request: &Request) -> Result<()> {
        let mode = mode_name(&request.host.network_mode);
        let own = namespace_of(mode) == Namespace::Own;
        if own && !request.config.network_disabled {
            for (number, (name, settings)) in in_order(mode, request.endpoints).into_iter().enumerate() {
                let endpoint = self.plan_endpoint(sandbox, request.config, &name, settings, number)?;
                sandbox.endpoints.push(endpoint);
            }
            self.publish(sandbox, request)?;
        }
        self.write_files(sandbox, request)
    }

    /// Takes the addresses of one endpoint. `number` counts the container's interfaces.
    pub(super) fn plan_endpoint(
        &mut self,
        sandbox: &Sandbox,
        config: &Config,
        name: &str,
        settings: EndpointSettings,
        number: usize,
    ) -> Result<Endpoint> {
        // A network that was made anew under the same name keeps its users.
        let term = if settings.network_id.is_empty() || self.find(&settings.network_id).is_err() { name } else { &settings.network_id };
        let network = self.find(term)?.clone();
        if network.config_only {
            return Err(Error::forbidden(format!("configuration network {} cannot be joined", network.name)));
        }
        if sandbox.endpoints.iter().any(|e| e.network == network.id) {
            return Err(Error::forbidden(format!("endpoint with name {} already exists in network {}", sandbox.name, network.name)));
        }
        check_endpoint(&network.name, Some(&network), &settings)?;
        let id = crate::hex::random_id().map_err(|e| Error::io("getrandom", &e))?;
        let options = settings.driver_opts.clone().unwrap_or_default();
        let mut endpoint = Endpoint {
            host_interface: if network.driver == Driver::Bridge { format!("veth{}", &id[..7]) } else { String::new() },
            id,
            network: network.id.clone(),
            network_name: network.name.clone(),
            driver: network.driver,
            interface: options
                .get("com.docker.network.endpoint.ifname")
                .cloned()
                .unwrap_or_else(|| self.interface_name(sandbox, &network, number)),
            mac: parse_mac(&settings.mac_address).or_else(|| parse_mac(&config.mac_address).filter(|_| number == 0)),
            addresses: Vec::new(),
            gateways: Vec::new(),
            names: Vec::new(),
            links: links_of(&settings),
            sysctls: options
                .get("com.docker.network.endpoint.sysctls")
                .map(|list| {
                    list.split(',').filter_map(endpoint_sysctl).map(|(a, b, c, d)| (a.into(), b.into(), c.into(), d.into())).collect()
                })
                .unwrap_or_default(),
            priority: settings.gw_priority,
            internal: network.internal,
            settings,
        };
        if matches!(network.driver, Driver::Host | Driver::Null) {
            return Ok(endpoint);
        }
        if let Err(refusal) = self.take_addresses(&network, &mut endpoint) {
            for address in &endpoint.addresses {
                self.addresses.release(*address, address.address);
            }
            return Err(refusal);
        }
        if endpoint.mac.is_none() && network.driver != Driver::Ipvlan {
            endpoint.mac = Some(derived_mac(&endpoint)?);
        }
        if !network.is_default_bridge() {
            endpoint.names = dns_names(sandbox, config, &endpoint.settings);
        }
        Ok(endpoint)
    }

    fn interface_name(&self, sandbox: &Sandbox, network: &Network, number: usize) -> String {
        let taken = |name: &String| sandbox.endpoints.iter().any(|e| e.interface == *name);
        let mut names = (number..).map(|n| format!("{}{n}", network.interface_prefix()));
        names.find(|name| !taken(name)).unwrap_or_default()
    }

    fn take_addresses(&mut self, network: &Network, endpoint: &mut Endpoint) -> Result<()> {
        let ipam = endpoint.settings.ipam_config.clone().unwrap_or_default();
        for v4 in [true, false] {
            let wanted: Option<IpAddr> = if v4 { &ipam.ipv4_address } else { &ipam.ipv6_address }.parse().ok();
            let pools = network.pools.iter().filter(|p| p.subnet.is_v4() == v4);
            let mut candidates = pools.filter(|p| wanted.is_none_or(|w| p.subnet.contains(w))).peekable();
            if candidates.peek().is_none() {
                continue;
            }
            let mut outcome = Err(Error::system("no pool"));
            for pool in candidates {
                outcome = self.addresses.claim(pool.subnet, pool.range, wanted).map(|address| (address, pool));
                if outcome.is_ok() {
                    break;
                }
            }
            let (address, pool) = outcome.map_err(|refusal| match (refusal.kind, v4) {
                (crate::error::Kind::Unavailable, _) => Error::new(
                    refusal.kind,
                    format!(
                        "no available IPv{} addresses on this network's address pools: {} ({})",
                        if v4 { 4 } else { 6 },
                        network.name,
                        network.id
                    ),
                ),
                _ => refusal,
            })?;
            endpoint.addresses.push(Prefix::new(address, pool.subnet.length));
            let chosen = pool.auxiliary.get("DefaultGatewayIPv4").or_else(|| pool.auxiliary.get("DefaultGatewayIPv6"));
            if !network.internal {
                endpoint.gateways.extend(chosen.copied().or(pool.gateway));
            }
        }
        Ok(())
    }

    /// Binds the host ports. They lead to the container's address in the network of its default route.
    fn publish(&mut self, sandbox: &mut Sandbox, request: &Request) -> Result<()> {
        let bindings = ports::bindings(request.host.port_bindings.as_ref(), &request.config.exposed_ports, request.host.publish_all_ports)?;
        let bridge = |e: &&Endpoint| e.driver == Driver::Bridge && !e.internal;
        let chosen = sandbox.default_endpoint(true).filter(bridge).or_else(|| sandbox.default_endpoint(false).filter(bridge));
        let chosen = chosen.or_else(|| sandbox.endpoints.iter().find(bridge)).cloned();
        let Some(endpoint) = chosen else { return Ok(()) };
        sandbox.port_network.clone_from(&endpoint.network);
        let network = self.find(&endpoint.network)?.clone();
        for binding in bindings {
            self.publish_one(sandbox, &network, &endpoint, &binding).map_err(|refusal| {
                let what = format!("driver failed programming external connectivity on endpoint {} ({})", sandbox.name, endpoint.id);
                Error::new(refusal.kind, format!("failed to set up container networking: {what}: {}", refusal.message))
            })?;
        }
        Ok(())
    }

    fn publish_one(&mut self, sandbox: &mut Sandbox, network: &Network, endpoint: &Endpoint, binding: &Binding) -> Result<()> {
        let (v4, v6) = (endpoint.address(true).map(|a| a.address), endpoint.address(false).map(|a| a.address));
        let proxied = self.settings.userland_proxy || self.settings.publishing == Publishing::Proxy;
        let hosts: Vec<IpAddr> = match binding.host.or(self.settings.default_ip.filter(|_| network.is_default_bridge())) {
            Some(host) => vec![host],
            None => {
                let of = |v4: bool, any: IpAddr| network.host_binding(v4).unwrap_or(any);
                let mut hosts = Vec::new();
                if v4.is_some() {
                    hosts.push(of(true, Ipv4Addr::UNSPECIFIED.into()));
                }
                if self.host_ipv6 && (v6.is_some() || (v4.is_some() && proxied && network.host_binding(true).is_none())) {
                    hosts.push(of(false, Ipv6Addr::UNSPECIFIED.into()));
                }
                hosts
            }
        };
        // The kernel translates within a family; the proxy also from IPv6 to IPv4.
        let target = |host: IpAddr| if host.is_ipv6() { v6.or(v4.filter(|_| proxied)) } else { v4 };
        let hosts: Vec<IpAddr> = hosts.into_iter().filter(|h| target(*h).is_some()).collect();
        let routed = |host: &IpAddr| network.gateway_mode(host.is_ipv4()) == GatewayMode::Routed;
        let (open, translated): (Vec<IpAddr>, Vec<IpAddr>) = hosts.into_iter().partition(|host| routed(host));
        let protocol = binding.container.protocol;
        let mut add = |host: IpAddr, host_port: u16, socket: Option<OwnedFd>| {
            if let Some(address) = target(host) {
                sandbox.published.push(Published {
                    container_port: binding.container.port,
                    protocol,
                    host,
                    host_port,
                    target: SocketAddr::new(address, binding.container.port),
                    bridge: network.bridge_name(),
                    mode: network.gateway_mode(host.is_ipv4()),
                    socket,
                });
            }
        };
        for host in open {
            add(host, 0, None);
        }
        if translated.is_empty() {
            return Ok(());
        }
        let listen = proxied;
        let bind_all =
            |port: u16| translated.iter().map(|host| bind_port(*host, port, protocol, listen)).collect::<std::io::Result<Vec<_>>>();
        let (port, sockets) = self.ports.claim(&translated, protocol, binding.range, bind_all)?;
        for (host, socket) in translated.iter().zip(sockets) {
            add(*host, port, socket);
        }
        Ok(())
    }

    fn write_files(&mut self, sandbox: &mut Sandbox, request: &Request) -> Result<()> {
        let embedded = sandbox.endpoints.iter().any(|e| !e.names.is_empty());
        let with_v6 = sandbox.endpoints.iter().any(|e| e.address(false).is_some());
        let (conf, upstreams) = resolver_file(&sandbox.dns, embedded, with_v6, sandbox.endpoints.is_empty());
        // Only internal networks: nothing is asked outside on its behalf (CVE-2024-29018).
        let only_internal = sandbox.endpoints.iter().all(|e| e.internal);
        sandbox.upstreams = upstreams.map(|list| if only_internal { Vec::new() } else { list });
        let mut extra = Vec::new();
        for text in request.host.extra_hosts.iter().flatten() {
            extra.extend(self.extra_host(text)?);
        }
        extra.extend(self.legacy_links(sandbox, request.host)?);
        let own: Vec<Record> = sandbox.endpoints.iter().flat_map(|e| sandbox.own_records(e)).collect();
        let hosts_text = if namespace_of(mode_name(&request.host.network_mode)) == Namespace::Host {
            host_file(&extra)
        } else {
            hosts::render(sandbox.ipv6, &extra, &own)
        };
        let write = |name: &str, text: &str| {
            let path = sandbox.files.join(name);
            // In place: the file may be mounted in a container.
            std::fs::write(&path, text).map_err(|e| Error::io(format!("write {}", path.display()), &e))
        };
        write("hosts", &hosts_text)?;
        write("resolv.conf", &conf)?;
        write("hostname", &format!("{}\n", request.config.hostname))
    }

    /// A running container gets its embedded resolver: it was connected to its first network with names.
    pub(super) fn write_resolver(&mut self, container: &str) {
        let Some(sandbox) = self.sandboxes.get_mut(container) else { return };
        let with_v6 = sandbox.endpoints.iter().any(|e| e.address(false).is_some());
        let (conf, upstreams) = resolver_file(&sandbox.dns, true, with_v6, false);
        sandbox.upstreams = upstreams;
        let path = sandbox.files.join("resolv.conf");
        if let Err(e) = std::fs::write(&path, conf) {
            log::error!("{}: {e}", path.display());
        }
    }

    /// "name:address" or "name=address"; the address may be `host-gateway`.
    fn extra_host(&self, text: &str) -> Result<Vec<Record>> {
        let bad = || Error::invalid(format!("bad format for add-host: {text:?}"));
        let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(bad)?;
        if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace() || c == '#') {
            return Err(bad());
        }
        let record = |address: IpAddr| Record { address, names: name.to_string() };
        if address == "host-gateway" {
            return Ok(self.host_gateways().into_iter().map(record).collect());
        }
        let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
        bare.parse()
            .map(|address| vec![record(address)])
            .map_err(|_| Error::invalid(format!("invalid IP address in add-host: {address:?}")))
    }

    /// HostConfig.Links on the default bridge: lines for the others in this one's hosts file.
    fn legacy_links(&self, sandbox: &Sandbox, host: &HostConfig) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let Some(own) = sandbox.endpoints.iter().find(|e| e.names.is_empty() && e.driver == Driver::Bridge) else { return Ok(records) };
        for link in host.links.iter().flatten() {
            let (name, alias) = link.split_once(':').unwrap_or((link, link));
            let name = name.trim_start_matches('/');
            let alias = alias.rsplit('/').next().unwrap_or(alias);
            let other = self.sandboxes.values().find(|s| s.name == name || (name.len() >= 12 && s.container.starts_with(name)));
            let other = other
                .ok_or_else(|| Error::invalid(format!("Cannot link to a non running container: /{name} AS /{}/{alias}", sandbox.name)))?;
            let Some(endpoint) = other.endpoints.iter().find(|e| e.network == own.network) else { continue };
            let mut names = vec![alias];
            names.extend(other.own_names.rsplit(' ').next());
            if alias != other.name {
                names.push(&other.name);
            }
            records.extend(endpoint.addresses.iter().map(|a| Record { address: a.address, names: names.join(" ") }));
        }
        Ok(records)
    }

    fn resolver_overrides(&self, host: &HostConfig) -> Overrides {
        let pick = |own: &Option<Vec<String>>, default: &Vec<String>| match own {
            Some(list) if !list.is_empty() => list.clone(),
            _ => default.clone(),
        };
        Overrides {
            servers: pick(&host.dns, &self.settings.dns.servers),
            search: pick(&host.dns_search, &self.settings.dns.search),
            options: pick(&host.dns_options, &self.settings.dns.options),
        }
    }

    /// Gives back all that a container had in this table: addresses, ports, names. Sockets close with it.
    pub fn forget_sandbox(&mut self, container: &str) -> Option<Sandbox> {
        let sandbox = self.sandboxes.remove(container)?;
        for endpoint in &sandbox.endpoints {
            self.forget_endpoint(endpoint);
        }
        for published in sandbox.published.iter().filter(|p| p.host_port != 0) {
            self.ports.release(published.host, published.protocol, published.host_port);
        }
        Some(sandbox)
    }

    pub(super) fn forget_endpoint(&mut self, endpoint: &Endpoint) {
        let addresses: Vec<IpAddr> = endpoint.addresses.iter().map(|a| a.address).collect();
        for address in &endpoint.addresses {
            self.addresses.release(*address, address.address);
        }
        if let Some(zone) = self.zones.get_mut(&endpoint.network) {
            zone.remove(&endpoint.names, &addresses);
        }
    }
}

/// "default" and "" mean the default bridge.
pub fn mode_name(mode: &str) -> &str {
    if matches!(mode, "" | "default") { "bridge" } else { mode }
}

/// The network of the mode first, the others by name: the order of the interfaces.
fn in_order(mode: &str, endpoints: &BTreeMap<String, EndpointSettings>) -> Vec<(String, EndpointSettings)> {
    let is_mode = |name: &str| mode_name(name) == mode;
    let mut list: Vec<(String, EndpointSettings)> =
        endpoints.iter().map(|(name, settings)| (mode_name(name).to_string(), settings.clone())).collect();
    if !list.iter().any(|(name, settings)| is_mode(name) || (!settings.network_id.is_empty() && settings.network_id.starts_with(mode))) {
        list.push((mode.to_string(), EndpointSettings::default()));
    }
    list.sort_by_key(|(name, _)| (!is_mode(name), name.clone()));
    list
}

/// The names by which a container is found, the first for reverse questions.
fn dns_names(sandbox: &Sandbox, config: &Config, settings: &EndpointSettings) -> Vec<String> {
    let short = sandbox.container.get(..12).unwrap_or(&sandbox.container).to_string();
    let mut names = vec![sandbox.name.clone()];
    names.extend(settings.aliases.iter().flatten().cloned());
    names.extend([short, config.hostname.clone()]);
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
    names
}

/// "container:alias" → alias → container.
fn links_of(settings: &EndpointSettings) -> BTreeMap<String, String> {
    let pair = |link: &String| {
        let (name, alias) = link.split_once(':').unwrap_or((link, link));
        (alias.to_ascii_lowercase(), name.to_ascii_lowercase())
    };
    settings.links.iter().flatten().map(pair).collect()
}

/// From the IPv4 address, so that a neighbour's table stays right when an address gets a new owner; random without one.
fn derived_mac(endpoint: &Endpoint) -> Result<Mac> {
    if let Some(IpAddr::V4(v4)) = endpoint.address(true).map(|a| a.address) {
        let [a, b, c, d] = v4.octets();
        return Ok([2, 0x42, a, b, c, d]);
    }
    let mut mac = [0; 6];
    sys::security::getrandom(&mut mac).map_err(|e| Error::io("getrandom", &e))?;
    mac[0] = mac[0] & 0xfc | 2;
    Ok(mac)
}

/// A socket that makes a host port ours. SCTP has none: only the kernel's translation serves it.
fn bind_port(host: IpAddr, port: u16, protocol: Protocol, listen: bool) -> std::io::Result<Option<OwnedFd>> {
    let kind = match protocol {
        Protocol::Tcp => libc::SOCK_STREAM,
        Protocol::Udp => libc::SOCK_DGRAM,
        Protocol::Sctp => return Ok(None),
    };
    let family = if host.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = sys::socket::socket(family, kind | libc::SOCK_NONBLOCK, 0)?;
    if protocol == Protocol::Tcp {
        sys::socket::setsockopt_int(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    }
    if host.is_ipv6() {
        sys::socket::setsockopt_int(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    sys::socket::bind(socket.as_fd(), &sys::socket::SockAddr::inet(SocketAddr::new(host, port)))?;
    if protocol == Protocol::Tcp && listen {
        sys::socket::listen(socket.as_fd(), 1024)?;
    }
    Ok(Some(socket))
}

/// DNS settings that end up in a file: no control characters, nothing that starts a line of its own.
fn check_resolver(host: &HostConfig) -> Result<()> {
    for server in host.dns.iter().flatten() {
        server
            .parse::<IpAddr>()
            .map_err(|_| Error::invalid(format!("bad nameserver address {server:?}: ParseAddr({server:?}): unable to parse IP")))?;
    }
    for text in host.dns_search.iter().flatten().chain(host.dns_options.iter().flatten()) {
        if text.is_empty() || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Error::invalid(format!("invalid DNS setting {text:?}")));
        }
    }
    Ok(())
}

/// The host's resolver file for this container, and the upstreams of the embedded resolver.
fn resolver_file(dns: &Overrides, embedded: bool, ipv6: bool, plain: bool) -> (String, Option<Vec<Upstream>>) {
    let read = |path: &str| ResolvConf::parse(&read_bounded(Path::new(path)), path);
    let mut conf = read("/etc/resolv.conf");
    if conf.is_systemd_stub() && !plain {
        conf = read("/run/systemd/resolve/resolv.conf");
    }
    conf.apply(dns);
    let upstreams = if embedded {
        Some(conf.for_embedded(ipv6))
    } else {
        if !plain {
            conf.for_default_bridge(ipv6);
        }
        None
    };
    (conf.render(), upstreams)
}

fn read_bounded(path: &Path) -> String {
    use std::io::Read;
    let mut text = String::new();
    let limit = u64::try_from(super::resolv_conf::MAX_FILE).unwrap_or(0);
    let _ = std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text));
    text
}

/// A container in the host's namespace sees the host's own hosts file, and what it asked for besides.
fn host_file(extra: &[Record]) -> String {
    let text = read_bounded(Path::new("/etc/hosts"));
    let text = if text.is_empty() || text.ends_with('\n') { text } else { format!("{text}\n") };
    hosts::with_records(text, extra)
}
