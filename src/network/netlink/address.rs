//! Addresses, routes and neighbours; and the messages that make a container's interface usable.

use super::link::{self, Change, Mac};
use super::message::{attributes, flag, u32_at};
use super::{Failure, Message, Reply, Socket};
use crate::network::prefix::Prefix;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// Lengths of struct ifaddrmsg, rtmsg, ndmsg.
const IFADDR: usize = 8;
const RTMSG: usize = 12;

fn family(address: IpAddr) -> u8 {
    u8::try_from(if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }).unwrap_or(0)
}

fn octets(address: IpAddr) -> ([u8; 16], usize) {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes = v6.octets(),
    }
    (bytes, if address.is_ipv4() { 4 } else { 16 })
}

fn put(message: Message, kind: u16, address: IpAddr) -> Message {
    let (bytes, length) = octets(address);
    message.attr(kind, &bytes[..length])
}

fn address_header(address: Prefix, index: u32) -> [u8; IFADDR] {
    let scope = match address.address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => libc::RT_SCOPE_LINK,
        IpAddr::V4(v4) if v4.is_link_local() => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    let mut part = [0; IFADDR];
    part[..4].copy_from_slice(&[family(address.address), address.length, 0, scope]);
    part[4..].copy_from_slice(&index.to_ne_bytes());
    part
}

/// Adds an address. IPv4 gets its broadcast address; IPv6 is usable at once (NODAD): our own allocation is what makes it unique.
pub fn add_address(index: u32, address: Prefix) -> Vec<u8> {
    let create = flag(libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
    let message = Message::new(libc::RTM_NEWADDR, create).fixed(&address_header(address, index));
    let message = put(put(message, IFA_LOCAL, address.address), IFA_ADDRESS, address.address);
    match address.address {
        IpAddr::V4(v4) => message.when(broadcast(v4, address.length), |m, b| put(m, IFA_BROADCAST, b.into())).finish(),
        IpAddr::V6(_) => message.u32(IFA_FLAGS, libc::IFA_F_NODAD).finish(),
    }
}

/// Removes an address.
pub fn delete_address(index: u32, address: Prefix) -> Vec<u8> {
    let message = Message::new(libc::RTM_DELADDR, 0).fixed(&address_header(address, index));
    put(put(message, IFA_LOCAL, address.address), IFA_ADDRESS, address.address).finish()
}

fn broadcast(address: Ipv4Addr, length: u8) -> Option<Ipv4Addr> {
    let host_bits = u32::MAX.checked_shr(length.into()).unwrap_or(0);
    (host_bits > 1).then(|| Ipv4Addr::from(u32::from(address) | host_bits))
}

/// A route to add or remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The unspecified address with length 0 is the default route.
    pub to: Prefix,
    pub gateway: Option<IpAddr>,
    /// 0 = whichever interface reaches the gateway.
    pub interface: u32,
}

impl Route {
    /// The default route of the gateway's family.
    pub fn default_via(gateway: IpAddr) -> Route {
        Route { to: everything(gateway.is_ipv4()), gateway: Some(gateway), interface: 0 }
    }

    /// The default route of a family through an interface, without a gateway.
    pub fn default_on(interface: u32, v4: bool) -> Route {
        Route { to: everything(v4), gateway: None, interface }
    }
}

fn everything(v4: bool) -> Prefix {
    let address = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Prefix { address, length: 0 }
}

pub fn add_route(route: &Route) -> Vec<u8> {
    route_message(libc::RTM_NEWROUTE, flag(libc::NLM_F_CREATE | libc::NLM_F_REPLACE), route)
}

pub fn delete_route(route: &Route) -> Vec<u8> {
    route_message(libc::RTM_DELROUTE, 0, route)
}

fn route_message(kind: u16, flags: u16, route: &Route) -> Vec<u8> {
    let mut part = [0; RTMSG];
    part[0] = family(route.to.address);
    part[1] = route.to.length;
    part[4] = libc::RT_TABLE_MAIN;
    part[5] = libc::RTPROT_BOOT;
    // A deletion matches any scope with "nowhere".
    part[6] = match (kind, route.gateway) {
        (libc::RTM_DELROUTE, _) => libc::RT_SCOPE_NOWHERE,
        (_, None) => libc::RT_SCOPE_LINK,
        (_, Some(_)) => libc::RT_SCOPE_UNIVERSE,
    };
    part[7] = libc::RTN_UNICAST;
    let mut message = Message::new(kind, flags).fixed(&part);
    if route.to.length > 0 {
        message = put(message, RTA_DST, route.to.address);
    }
    message
        .when(route.gateway, |m, gateway| put(m, RTA_GATEWAY, gateway))
        .when((route.interface != 0).then_some(route.interface), |m, index| m.u32(RTA_OIF, index))
        .finish()
}

/// A permanent neighbour entry.
pub fn add_neighbour(index: u32, address: IpAddr, mac: Mac) -> Vec<u8> {
    let mut part = [0; 12];
    part[0] = family(address);
    part[4..8].copy_from_slice(&index.to_ne_bytes());
    part[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    let message = Message::new(libc::RTM_NEWNEIGH, flag(libc::NLM_F_CREATE | libc::NLM_F_REPLACE)).fixed(&part);
    put(message, NDA_DST, address).attr(NDA_LLADDR, &mac).finish()
}

/// An address that some interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub interface: u32,
    pub address: Prefix,
}

/// All addresses of the socket's namespace.
pub fn addresses(socket: &Socket) -> Result<Vec<Assigned>, Failure> {
    let replies = socket.dump("list addresses", Message::new(libc::RTM_GETADDR, 0).fixed(&[0; IFADDR]))?;
    Ok(replies.iter().filter_map(parse_address).collect())
}

fn parse_address(reply: &Reply) -> Option<Assigned> {
    let (v4, length) = (*reply.payload.first()? == family(Ipv4Addr::UNSPECIFIED.into()), *reply.payload.get(1)?);
    let interface = u32_at(&reply.payload, 4)?;
    let mut found = None;
    for (kind, value) in attributes(reply.payload.get(IFADDR..)?) {
        // IFA_LOCAL is the interface's own where both are there (point-to-point).
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && found.is_none()) {
            found = address_of(v4, value);
        }
    }
    Some(Assigned { interface, address: Prefix { address: found?, length } })
}

fn address_of(v4: bool, value: &[u8]) -> Option<IpAddr> {
    if v4 { Some(<[u8; 4]>::try_from(value).ok()?.into()) } else { Some(<[u8; 16]>::try_from(value).ok()?.into()) }
}

/// A route that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    pub route: Route,
    pub table: u8,
    /// RTN_UNICAST, RTN_LOCAL …
    pub kind: u8,
    pub metric: u32,
    pub source: Option<IpAddr>,
}

/// All routes of the socket's namespace, every table below 256.
pub fn routes(socket: &Socket) -> Result<Vec<Present>, Failure> {
    let replies = socket.dump("list routes", Message::new(libc::RTM_GETROUTE, 0).fixed(&[0; RTMSG]))?;
    Ok(replies.iter().filter_map(parse_route).collect())
}

fn parse_route(reply: &Reply) -> Option<Present> {
    let part = reply.payload.get(..RTMSG)?;
    let v4 = match i32::from(part[0]) {
        libc::AF_INET => true,
        libc::AF_INET6 => false,
        _ => return None,
    };
    let mut to = everything(v4);
    to.length = part[1];
    let mut present = Present { route: Route { to, gateway: None, interface: 0 }, table: part[4], kind: part[7], metric: 0, source: None };
    for (kind, value) in attributes(reply.payload.get(RTMSG..)?) {
        match kind {
            RTA_DST => present.route.to.address = address_of(v4, value)?,
            RTA_GATEWAY => present.route.gateway = address_of(v4, value),
            RTA_OIF => present.route.interface = u32_at(value, 0)?,
            RTA_PRIORITY => present.metric = u32_at(value, 0)?,
            RTA_PREFSRC => present.source = address_of(v4, value),
            _ => {}
        }
    }
    Some(present)
}

/// What makes an interface inside a container usable, in the order in which it has to happen.
#[derive(Clone, Debug, Default)]
pub struct InterfaceSetup {
    /// Index inside the container's namespace.
    pub index: u32,
    /// The name it gets; `None` = it was born with the right one.
    pub rename: Option<String>,
    pub addresses: Vec<Prefix>,
    /// Default gateways and others, IPv4 and IPv6.
    pub routes: Vec<Route>,
}

/// The messages, ready to be sent one after the other on a route socket inside the namespace.
pub fn interface_setup(setup: &InterfaceSetup) -> Vec<Vec<u8>> {
    let mut messages = Vec::with_capacity(setup.addresses.len() + setup.routes.len() + 2);
    // Renaming needs the link down on kernels before 6.2; it is down at birth.
    if let Some(name) = &setup.rename {
        messages.push(link::set_link(setup.index, &Change { name: Some(name), ..Change::default() }));
    }
    messages.extend(setup.addresses.iter().map(|address| add_address(setup.index, *address)));
    messages.push(link::set_link(setup.index, &Change { up: Some(true), ..Change::default() }));
    messages.extend(setup.routes.iter().map(add_route));
    messages
}

/// The loopback interface up: its index is 1 in every namespace.
pub fn loopback_up() -> Vec<u8> {
    link::set_link(1, &Change { up: Some(true), ..Change::default() })
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_new_netns;
    use super::*;

    fn prefixed(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn an_interface_is_made_usable() {
        in_new_netns(|| {
            let socket = Socket::route().unwrap();
            socket.execute("lo", &loopback_up()).unwrap();
            socket.execute("bridge", &link::new_bridge(&link::NewLink { up: true, ..link::NewLink::named("br0") })).unwrap();
            let br0 = link::link(&socket, "br0").unwrap().unwrap().index;
            let host = link::NewLink { master: Some(br0), up: true, ..link::NewLink::named("veth0") };
            socket.execute("veth", &link::new_veth(&host, &link::NewLink::named("tmp"))).unwrap();
            let setup = InterfaceSetup {
                index: link::link(&socket, "veth0").unwrap().unwrap().parent,
                rename: Some("eth0".into()),
                addresses: vec![prefixed("172.17.0.2/16"), prefixed("fd00::2/64")],
                routes: vec![Route::default_via("172.17.0.1".parse().unwrap()), Route::default_via("fd00::1".parse().unwrap())],
            };
            for message in interface_setup(&setup) {
                socket.execute("set up eth0", &message).unwrap();
            }
            let eth0 = link::link(&socket, "eth0").unwrap().unwrap();
            assert!(eth0.up);
            let here = addresses(&socket).unwrap();
            for wanted in &setup.addresses {
                assert!(here.contains(&Assigned { interface: eth0.index, address: *wanted }), "{here:?}");
            }
            let routes = routes(&socket).unwrap();
            for gateway in ["172.17.0.1", "fd00::1"] {
                let gateway = Some(gateway.parse().unwrap());
                assert!(routes.iter().any(|r| r.route.to.length == 0 && r.route.gateway == gateway && r.route.interface == eth0.index));
            }
            socket.execute("neighbour", &add_neighbour(eth0.index, "172.17.0.9".parse().unwrap(), [2, 0, 0, 0, 0, 9])).unwrap();
            socket.execute("route", &delete_route(&setup.routes[0])).unwrap();
            socket.execute("address", &delete_address(eth0.index, setup.addresses[0])).unwrap();
            assert!(!addresses(&socket).unwrap().iter().any(|a| a.address == setup.addresses[0]));
        });
    }

    #[test]
    fn broadcast_of_tiny_subnets_is_none() {
        assert_eq!(broadcast(Ipv4Addr::new(10, 0, 0, 1), 31), None);
        assert_eq!(broadcast(Ipv4Addr::new(10, 0, 0, 1), 32), None);
        assert_eq!(broadcast(Ipv4Addr::new(10, 1, 2, 3), 0), Some(Ipv4Addr::BROADCAST));
        assert_eq!(broadcast(Ipv4Addr::new(172, 17, 0, 2), 16), Some(Ipv4Addr::new(172, 17, 255, 255)));
    }
}
