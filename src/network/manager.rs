//! All networks of this engine: which there are, their addresses, and their bridges on the host.
//!
//! Decisions and state; the daemon's loop drives it. Links are changed through one netlink socket in the host's namespace.

use super::create::{self, CreateRequest};
use super::firewall::{self, Family, Rule};
use super::ipam::Addresses;
use super::model::*;
use super::netlink::{self, Failure, address, link};
use super::ports;
use super::prefix::Prefix;
use super::resolv_conf::ResolvConf;
use super::sandbox::Sandbox;
use super::settings::{Publishing, Settings};
use crate::error::{Error, Result};
use crate::image::state_file;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

const STATE_VERSION: u32 = 1;
/// Marks links that we made, so that only they are ever deleted.
const ALIAS: &str = "coracle";

pub struct Networks {
    pub settings: Settings,
    /// By id.
    pub list: BTreeMap<String, Network>,
    pub addresses: Addresses,
    pub ports: ports::Allocator,
    /// By container id: those that run, or are about to.
    pub sandboxes: HashMap<String, Sandbox>,
    /// The names of each user-defined network, by its id.
    pub zones: HashMap<String, super::dns::Zone>,
    pub path: PathBuf,
    route: netlink::Socket,
    /// Settings of the packet filter.
    pub filter: firewall::Settings,
    /// The host has IPv6 at all.
    pub host_ipv6: bool,
}

impl Networks {
    /// Reads `networks.json` below `data_root` and makes what every engine has; nothing on the host is changed yet.
    pub fn open(settings: Settings, data_root: &Path) -> std::result::Result<Networks, String> {
        let path = data_root.join("networks.json");
        let kept: Vec<Network> = match state_file::read(STATE_VERSION, &path) {
            Ok(kept) => kept.unwrap_or_default(),
            Err(damage) => {
                let lost = data_root.join("lost");
                let _ = std::fs::create_dir_all(&lost);
                let _ = std::fs::rename(&path, lost.join("networks.json"));
                log::error!("networks.json is damaged ({damage}); it is kept in {}, user-defined networks are gone", lost.display());
                Vec::new()
            }
        };
        let route = netlink::Socket::route().map_err(|e| format!("netlink: {}", crate::error::strerror(&e)))?;
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let filter =
            firewall::Settings { hairpin: !settings.userland_proxy && settings.publishing == Publishing::Translate, forward_drop: false };
        let mut networks = Networks {
            addresses: Addresses::new(settings.pools.clone()),
            ports: ports::Allocator::new(ports::ephemeral_range(&range)),
            list: BTreeMap::new(),
            sandboxes: HashMap::new(),
            zones: HashMap::new(),
            path,
            route,
            filter,
            host_ipv6: Path::new("/proc/net/if_inet6").exists(),
            settings,
        };
        networks.restore(kept)?;
        Ok(networks)
    }

    /// The file's content.
    pub fn encode(&self) -> Vec<u8> {
        state_file::encode(STATE_VERSION, &self.list.values().collect::<Vec<_>>())
    }

    fn restore(&mut self, kept: Vec<Network>) -> std::result::Result<(), String> {
        let (predefined, own): (Vec<_>, Vec<_>) = kept.into_iter().partition(Network::is_predefined);
        for network in own {
            if let Err(refusal) = self.claim_pools(&network) {
                log::error!("network {} is not restored: {refusal}", network.name);
                continue;
            }
            self.insert(network);
        }
        for (name, driver) in [("host", Driver::Host), ("none", Driver::Null)] {
            let network = match predefined.iter().find(|n| n.name == name) {
                Some(kept) => kept.clone(),
                None => Network { ipv4: true, ..new_predefined(name, driver).map_err(|e| e.to_string())? },
            };
            self.insert(network);
        }
        if self.settings.bridge.is_some() {
            let kept = predefined.into_iter().find(|n| n.name == "bridge");
            let network = self.default_bridge(kept).map_err(|e| format!("default bridge: {e}"))?;
            self.insert(network);
        }
        Ok(())
    }

    fn insert(&mut self, network: Network) {
        if !network.is_default_bridge() && !matches!(network.driver, Driver::Host | Driver::Null) {
            self.zones.insert(network.id.clone(), super::dns::Zone::new(&network.name));
        }
        self.list.insert(network.id.clone(), network);
    }

    /// The default bridge network follows the daemon's settings; only its id, its time and, if nothing else decides, its subnet are kept.
    fn default_bridge(&mut self, kept: Option<Network>) -> Result<Network> {
        let settings = self.settings.clone();
        let interface = settings.bridge.clone().unwrap_or_default();
        let old = kept.unwrap_or(new_predefined("bridge", Driver::Bridge)?);
        let present = link::link(&self.route, &interface)?;
        let assigned = match &present {
            Some(link) => address::addresses(&self.route)?.into_iter().filter(|a| a.interface == link.index).map(|a| a.address).collect(),
            None => Vec::new(),
        };
        let on_bridge = |v4: bool| {
            assigned
                .iter()
                .copied()
                .find(|p: &Prefix| p.is_v4() == v4 && !matches!(p.address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        };
        let mut pools = Vec::new();
        let remembered = |v4: bool| old.pool(v4).and_then(|p| p.gateway.map(|g| Prefix::new(g, p.subnet.length)));
        let wanted = settings.bip.or_else(|| on_bridge(true)).or_else(|| remembered(true));
        pools.push(self.default_pool(wanted, settings.fixed_cidr, settings.gateway, true)?);
        if settings.ipv6 {
            let wanted = settings.bip6.or_else(|| on_bridge(false)).or_else(|| remembered(false));
            // The reference's --fixed-cidr-v6 is the subnet itself where no address is given.
            let subnet = wanted.or(settings
                .fixed_cidr6
                .map(|p| Prefix { address: super::prefix::from_bits(false, super::prefix::bits(p.first()) + 1), ..p }));
            pools.push(self.default_pool(subnet, settings.fixed_cidr6, settings.gateway6, false)?);
        }
        let mut options = Labels::from([
            (OPTION_DEFAULT_BRIDGE.to_string(), "true".to_string()),
            (OPTION_ICC.into(), settings.icc.to_string()),
            (OPTION_MASQUERADE.into(), settings.masquerade.to_string()),
            (OPTION_HOST_BINDING_V4.into(), settings.default_ip.map_or("0.0.0.0".into(), |ip| ip.to_string())),
            (OPTION_BRIDGE_NAME.into(), interface),
        ]);
        options.insert(OPTION_MTU.into(), if settings.mtu == 0 { 1500 } else { settings.mtu }.to_string());
        Ok(Network { ipv4: true, ipv6: settings.ipv6, pools, options, ..old })
    }

    fn default_pool(&mut self, wanted: Option<Prefix>, range: Option<Prefix>, gateway: Option<IpAddr>, v4: bool) -> Result<Pool> {
        let subnet = match wanted {
            Some(address) => {
                self.addresses.claim_subnet(address, None)?;
                address.masked()
            }
            None => {
                let reserved = self.reserved()?;
                self.addresses.claim_default(v4, &reserved)?
            }
        };
        let own = wanted.filter(|w| w.address != w.first() || w.length >= 31).map(|w| w.address);
        let bridge = self.addresses.claim(subnet, None, own)?;
        let mut auxiliary = BTreeMap::new();
        if let Some(gateway) = gateway.filter(|g| *g != bridge) {
            self.addresses.claim(subnet, None, Some(gateway))?;
            auxiliary.insert("DefaultGatewayIPv4".into(), gateway);
        }
        Ok(Pool { subnet, range: range.filter(|r| subnet.overlaps(r) && *r != subnet), gateway: Some(bridge), auxiliary, chosen: false })
    }

    /// What new subnets must stay away from: the host's routes and its name servers.
    fn reserved(&self) -> Result<Vec<Prefix>> {
        let routes = address::routes(&self.route)?;
        let mut reserved: Vec<Prefix> =
            routes.into_iter().filter(|r| r.route.to.length > 0 && r.table == libc::RT_TABLE_MAIN).map(|r| r.route.to).collect();
        let conf = ResolvConf::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), "");
        reserved.extend(conf.servers().iter().map(|s| Prefix::new(s.address, if s.address.is_ipv4() { 32 } else { 128 })));
        Ok(reserved)
    }

    /// By full id, name, or unique prefix of an id.
    pub fn find(&self, term: &str) -> Result<&Network> {
        if let Some(network) = self.list.get(term) {
            return Ok(network);
        }
        if let Some(network) = self.list.values().find(|n| n.name == term) {
            return Ok(network);
        }
        let mut by_prefix = self.list.values().filter(|n| crate::hex::is_id_prefix(term) && n.id.starts_with(term));
        match (by_prefix.next(), by_prefix.count()) {
            (Some(network), 0) => Ok(network),
            (Some(_), others) => {
                Err(Error::invalid(format!("network {term} is ambiguous ({} matches found based on ID prefix)", others + 1)))
            }
            (None, _) => Err(Error::not_found(format!("network {term} not found"))),
        }
    }

    /// Claims the subnets and fixed addresses of a network whose pools are complete.
    fn claim_pools(&mut self, network: &Network) -> Result<()> {
        if network.config_only {
            return Ok(());
        }
        for pool in &network.pools {
            self.addresses.claim_subnet(pool.subnet, pool.range)?;
            for address in pool.gateway.iter().chain(pool.auxiliary.values()) {
                // An auxiliary address may be the gateway's.
                let _ = self.addresses.claim(pool.subnet, None, Some(*address));
            }
        }
        Ok(())
    }

    fn release_pools(&mut self, network: &Network) {
        for pool in network.pools.iter().filter(|_| !network.config_only) {
            for address in pool.gateway.iter().chain(pool.auxiliary.values()) {
                self.addresses.release(pool.subnet, *address);
            }
            self.addresses.release_subnet(pool.subnet, pool.range);
        }
    }

    /// Creates a network and its bridge; the caller makes it durable and writes its rules. Nothing is left when it fails.
    pub fn create(&mut self, request: CreateRequest) -> Result<Network> {
        let id = crate::hex::random_id().map_err(|e| Error::io("getrandom", &e))?;
        let mut network = create::plan(request, id, crate::sys::time::realtime_ns())?;
        if self.list.values().any(|n| n.name == network.name) {
            return Err(Error::conflict(format!("network with name {} already exists", network.name)));
        }
        if !network.config_from.is_empty() {
            let from = self.find(&network.config_from)?.clone();
            create::apply_configuration(&mut network, &from)?;
        }
        if network.config_only {
            self.insert(network.clone());
            return Ok(network);
        }
        if network.driver == Driver::Bridge {
            let bridge = network.bridge_name();
            if let Some(other) = self.list.values().find(|n| n.driver == Driver::Bridge && !n.config_only && n.bridge_name() == bridge) {
                return Err(Error::forbidden(format!(
                    "cannot create network {} ({bridge}): conflicts with network {} ({bridge}): networks have same bridge name",
                    network.id, other.id
                )));
            }
        }
        self.complete_pools(&mut network)?;
        if let Err(failure) = self.make_links(&network) {
            self.remove_links(&network);
            self.release_pools(&network);
            return Err(failure);
        }
        self.insert(network.clone());
        Ok(network)
    }

    /// Adds the subnets and gateways that the client left open.
    fn complete_pools(&mut self, network: &mut Network) -> Result<()> {
        if network.ipam_driver == "null" {
            network.pools.clear();
            return Ok(());
        }
        let asked = std::mem::take(&mut network.pools);
        for v4 in [true, false] {
            let of_family: Vec<Pool> = asked.iter().filter(|p| p.subnet.is_v4() == v4).cloned().collect();
            let enabled = if v4 { network.ipv4 } else { network.ipv6 };
            if !enabled {
                continue;
            }
            let outcome = if of_family.is_empty() {
                self.reserved()
                    .and_then(|reserved| self.addresses.claim_default(v4, &reserved))
                    .map(|subnet| vec![Pool { subnet, range: None, gateway: None, auxiliary: BTreeMap::new(), chosen: false }])
            } else {
                self.claim_chosen(&of_family).map(|()| of_family)
            };
            match outcome {
                Ok(pools) => network.pools.extend(pools),
                Err(refusal) => {
                    self.release_pools(network);
                    return Err(refusal);
                }
            }
        }
        for pool in 0..network.pools.len() {
            if let Err(refusal) = self.complete_pool(network, pool) {
                self.release_pools(network);
                return Err(refusal);
            }
        }
        Ok(())
    }

    fn claim_chosen(&mut self, pools: &[Pool]) -> Result<()> {
        for (at, pool) in pools.iter().enumerate() {
            if let Err(refusal) = self.addresses.claim_subnet(pool.subnet, pool.range) {
                pools[..at].iter().for_each(|pool| self.addresses.release_subnet(pool.subnet, pool.range));
                return Err(refusal);
            }
        }
        Ok(())
    }

    fn complete_pool(&mut self, network: &mut Network, at: usize) -> Result<()> {
        let host_has_address = network.host_has_address(network.pools[at].subnet.is_v4());
        let pool = &mut network.pools[at];
        for address in pool.auxiliary.values().filter(|a| Some(**a) != pool.gateway) {
            self.addresses.claim(pool.subnet, None, Some(*address))?;
        }
        let layer3 = network.driver == Driver::Ipvlan && network.options.get("ipvlan_mode").is_some_and(|m| m.starts_with("l3"));
        match pool.gateway {
            Some(gateway) => {
                self.addresses.claim(pool.subnet, None, Some(gateway))?;
            }
            None if layer3 || !host_has_address => {}
            None => pool.gateway = Some(self.addresses.claim(pool.subnet, pool.range, None)?),
        }
        Ok(())
    }

    /// Removes a network that nothing uses; the caller takes its rules away and makes it durable.
    pub fn delete(&mut self, id: &str) -> Result<Network> {
        let network = self.list.get(id).cloned().ok_or_else(|| Error::not_found(format!("network {id} not found")))?;
        if network.is_predefined() {
            return Err(Error::forbidden(format!("{} is a pre-defined network and cannot be removed", network.name)));
        }
        if let Some(user) = self.list.values().find(|n| network.config_only && n.config_from == network.name) {
            return Err(Error::forbidden(format!("configuration network {:?} is in use by network {:?}", network.name, user.name)));
        }
        let users: Vec<String> = self
            .sandboxes
            .values()
            .flat_map(|s| s.endpoints.iter().filter(|e| e.network == id).map(|e| format!("name:{:?} id:{:?}", s.name, &e.id[..12])))
            .collect();
        if !users.is_empty() {
            return Err(Error::forbidden(format!(
                "error while removing network: network {} has active endpoints ({})",
                network.name,
                users.join(", ")
            )));
        }
        self.list.remove(id);
        self.zones.remove(id);
        self.remove_links(&network);
        self.release_pools(&network);
        Ok(network)
    }

    /// Every rule that there should be in one family.
    pub fn rules(&self, family: Family) -> Vec<Rule> {
        let mut rules: Vec<Rule> = self
            .list
            .values()
            .filter_map(|n| n.firewall(self.settings.direct_routing))
            .flat_map(|n| firewall::network_rules(family, &n, &self.filter))
            .collect();
        for sandbox in self.sandboxes.values() {
            rules.extend(sandbox.rules(family, &self.filter));
        }
        rules
    }

    /// Makes the bridge of a network, if it needs one, and gives it its addresses; what is there already is kept.
    pub fn make_links(&self, network: &Network) -> Result<()> {
        match network.driver {
            Driver::Bridge => self.make_bridge(network),
            Driver::Macvlan | Driver::Ipvlan => self.make_parent(network),
            Driver::Host | Driver::Null => Ok(()),
        }
    }

    fn make_bridge(&self, network: &Network) -> Result<()> {
        let name = network.bridge_name();
        let bridge = match link::link(&self.route, &name)? {
            Some(link) if link.kind == "bridge" => link,
            Some(_) => return Err(Error::forbidden(format!("interface {name} exists and is not a bridge"))),
            None => {
                // An address of its own: without one a bridge takes its lowest port's, and changes with its containers.
                let mut mac = [0; 6];
                crate::sys::security::getrandom(&mut mac).map_err(|e| Error::io("getrandom", &e))?;
                mac[0] = mac[0] & 0xfc | 2;
                let new = link::NewLink { mac: Some(mac), ..link::NewLink::named(&name) };
                self.route.execute(format!("create bridge {name}"), &link::new_bridge(&new))?;
                let made = self.link(&name)?;
                let alias = link::Change { alias: Some(ALIAS), ..link::Change::default() };
                self.route.execute(format!("mark bridge {name}"), &link::set_link(made.index, &alias))?;
                made
            }
        };
        let sysctl = |path: &str, value: &str| {
            let path = format!("/proc/sys/net/{path}");
            if let Err(e) = std::fs::write(&path, value) {
                log::debug!("{path}: {e}");
            }
        };
        if self.host_ipv6 {
            // A container must not be able to route the host by a router advertisement (CVE-2020-13401).
            sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0");
        }
        if self.filter.hairpin {
            sysctl(&format!("ipv4/conf/{name}/route_localnet"), "1");
        }
        let assigned: Vec<Prefix> =
            address::addresses(&self.route)?.into_iter().filter(|a| a.interface == bridge.index).map(|a| a.address).collect();
        for pool in &network.pools {
            let v4 = pool.subnet.is_v4();
            let Some(gateway) = pool.gateway.filter(|_| network.host_has_address(v4)) else { continue };
            let wanted = Prefix::new(gateway, pool.subnet.length);
            if network.is_default_bridge() && v4 && !self.settings.bridge_is_given {
                for old in assigned.iter().filter(|a| a.is_v4() && **a != wanted) {
                    self.route.execute(format!("remove {old} from {name}"), &address::delete_address(bridge.index, *old))?;
                }
            }
            if !assigned.contains(&wanted) {
                self.route.execute(format!("give {wanted} to {name}"), &address::add_address(bridge.index, wanted))?;
            }
        }
        let mtu = network.mtu();
        let change = link::Change {
            up: Some(true),
            mtu: (mtu != 0 && mtu != bridge.mtu && !self.settings.bridge_is_given).then_some(mtu),
            ..link::Change::default()
        };
        self.route.execute(format!("bring up {name}"), &link::set_link(bridge.index, &change))?;
        Ok(())
    }

    /// macvlan and ipvlan sit on the interface that `parent` names; "eth0.10" is made as a VLAN, none means a dummy of our own.
    fn make_parent(&self, network: &Network) -> Result<()> {
        let name = parent_name(network);
        if link::link(&self.route, &name)?.is_some() {
            return Ok(());
        }
        let message = match (network.options.get("parent").filter(|p| !p.is_empty()), name.split_once('.')) {
            (None, _) => link::new_dummy(&link::NewLink { up: true, ..link::NewLink::named(&name) }),
            (Some(_), Some((base, tag))) => {
                let tag: u16 = tag.parse().map_err(|_| Error::invalid(format!("vlan id must be between 1-4094, received: {tag}")))?;
                if !(1..=4094).contains(&tag) {
                    return Err(Error::invalid(format!("vlan id must be between 1-4094, received: {tag}")));
                }
                let base = self.link(base)?;
                link::new_vlan(&link::NewLink { up: true, ..link::NewLink::named(&name) }, base.index, tag)
            }
            (Some(parent), None) => {
                return Err(Error::invalid(format!("invalid subinterface vlan name {parent}, example formatting is eth0.10")));
            }
        };
        self.route.execute(format!("create {name}"), &message)?;
        let made = self.link(&name)?;
        let alias = link::Change { alias: Some(ALIAS), ..link::Change::default() };
        self.route.execute(format!("mark {name}"), &link::set_link(made.index, &alias))?;
        Ok(())
    }

    /// Deletes the links of a network that we made; a parent that another network uses stays.
    pub fn remove_links(&self, network: &Network) {
        let name = match network.driver {
            Driver::Bridge => network.bridge_name(),
            Driver::Macvlan | Driver::Ipvlan => parent_name(network),
            Driver::Host | Driver::Null => return,
        };
        let shared = |n: &&Network| n.id != network.id && matches!(n.driver, Driver::Macvlan | Driver::Ipvlan) && parent_name(n) == name;
        if self.list.values().find(shared).is_some() {
            return;
        }
        match link::link(&self.route, &name) {
            Ok(Some(link)) if link.alias == ALIAS => {
                if let Err(failure) = self.route.execute(format!("delete {name}"), &link::delete_link(&name)) {
                    log::error!("{failure}");
                }
            }
            _ => {}
        }
    }

    /// A link that has to be there.
    pub fn link(&self, name: &str) -> Result<link::Link> {
        link::link(&self.route, name)?.ok_or_else(|| Error::system(format!("interface {name} is not there")))
    }

    /// The netlink socket in the host's namespace.
    pub fn route(&self) -> &netlink::Socket {
        &self.route
    }

    /// Deletes the host's end of what a container had, if it is still there; its namespace's end takes most along.
    pub fn delete_link(&self, name: &str) {
        match self.route.execute(format!("delete {name}"), &link::delete_link(name)) {
            Ok(_) => {}
            Err(Failure { cause, .. }) if cause.raw_os_error() == Some(libc::ENODEV) => {}
            Err(failure) => log::error!("{failure}"),
        }
    }

    /// Addresses that `host-gateway` stands for: as configured, or the default bridge's own.
    pub fn host_gateways(&self) -> Vec<IpAddr> {
        if !self.settings.host_gateways.is_empty() {
            return self.settings.host_gateways.clone();
        }
        let bridge = self.list.values().find(|n| n.is_default_bridge());
        bridge.map(|n| n.pools.iter().filter_map(|p| p.gateway).collect()).unwrap_or_default()
    }
}

/// The interface that macvlan and ipvlan sit on.
pub fn parent_name(network: &Network) -> String {
    match network.options.get("parent") {
        Some(parent) if !parent.is_empty() => parent.clone(),
        _ => format!("dm-{}", network.id.get(..12).unwrap_or(&network.id)),
    }
}

fn new_predefined(name: &str, driver: Driver) -> Result<Network> {
    Ok(Network {
        id: crate::hex::random_id().map_err(|e| Error::io("getrandom", &e))?,
        name: name.into(),
        created_ns: crate::sys::time::realtime_ns(),
        driver,
        ipam_driver: "default".into(),
        ..Network::default()
    })
}
