//! Published ports: what was asked for, and which host ports are taken.

use crate::container::config::{PortMap, Set};
use crate::error::{Error, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where ports are chosen from when the kernel's own range cannot be read.
pub const EPHEMERAL: (u16, u16) = (32768, 60999);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    fn parse(text: &str) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.name().eq_ignore_ascii_case(text))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port inside a container: "80/tcp".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerPort {
    pub port: u16,
    pub protocol: Protocol,
}

impl ContainerPort {
    /// "80", "80/tcp", "53/udp".
    pub fn parse(text: &str) -> Result<ContainerPort> {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let refuse = || Error::invalid(format!("invalid port specification: \"{port}\""));
        let protocol = Protocol::parse(protocol).ok_or_else(|| Error::invalid(format!("invalid protocol: {protocol}")))?;
        Ok(ContainerPort { port: number(port).ok_or_else(refuse)?, protocol })
    }
}

impl fmt::Display for ContainerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

/// One binding as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    pub container: ContainerPort,
    /// `None` = every address of the host, both families.
    pub host: Option<IpAddr>,
    /// First and last host port to choose from; (0, 0) = any ephemeral one.
    pub range: (u16, u16),
}

/// Everything that HostConfig.PortBindings and PublishAllPorts ask for; ports with a fixed host port come first, so that a
/// choice never takes one of them.
pub fn bindings(map: Option<&PortMap>, exposed: &Set, publish_all: bool) -> Result<Vec<Binding>> {
    let mut list = Vec::new();
    let mut bound = BTreeSet::new();
    for (port, hosts) in map.into_iter().flatten() {
        let container = ContainerPort::parse(port)?;
        if container.port == 0 {
            return Err(Error::invalid(format!("invalid port specification: \"{port}\"")));
        }
        for host in hosts.iter().flatten() {
            list.push(Binding { container, host: host_address(&host.host_ip)?, range: range(&host.host_port)? });
            bound.insert(container);
        }
    }
    if publish_all {
        for port in exposed.keys() {
            for container in exposed_ports(port)? {
                if !bound.contains(&container) {
                    list.push(Binding { container, host: None, range: (0, 0) });
                }
            }
        }
    }
    list.sort_by_key(|b| (b.range.0 != b.range.1 || b.range.0 == 0, b.range.0 == 0, b.container));
    list.dedup();
    Ok(list)
}

/// A key of ExposedPorts, which may be a range: "8000-8002/tcp".
pub fn exposed_ports(text: &str) -> Result<Vec<ContainerPort>> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let refuse = || Error::invalid(format!("invalid port specification: \"{text}\""));
    let protocol = Protocol::parse(protocol).ok_or_else(refuse)?;
    let (first, last) = (number(first).ok_or_else(refuse)?, number(last).ok_or_else(refuse)?);
    if first > last {
        return Err(refuse());
    }
    Ok((first..=last).map(|port| ContainerPort { port, protocol }).collect())
}

fn host_address(text: &str) -> Result<Option<IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse().map(Some).map_err(|_| Error::invalid(format!("invalid IP address: {text}")))
}

fn range(text: &str) -> Result<(u16, u16)> {
    if text.is_empty() {
        return Ok((0, 0));
    }
    let refuse = || Error::invalid(format!("invalid port specification: \"{text}\""));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last && (first > 0 || last == 0) => Ok((first, last)),
        _ => Err(refuse()),
    }
}

/// Digits only: no sign, no spaces.
fn number(text: &str) -> Option<u16> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// The kernel's ephemeral range, from the text of `net.ipv4.ip_local_port_range`.
pub fn ephemeral_range(sysctl: &str) -> (u16, u16) {
    let mut numbers = sysctl.split_whitespace().map(number);
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(first), Some(last)) if first > 0 && first <= last => (first, last),
        _ => EPHEMERAL,
    }
}

/// The host ports that containers have. The kernel's own answer to bind(2) comes on top: it knows all other programs.
#[derive(Clone, Debug)]
pub struct Allocator {
    taken: BTreeSet<(Protocol, IpAddr, u16)>,
    ephemeral: (u16, u16),
    /// The port last chosen, so that a freed port is not handed out again at once.
    last: BTreeMap<(Protocol, (u16, u16)), u16>,
}

impl Allocator {
    pub fn new(ephemeral: (u16, u16)) -> Allocator {
        Allocator { taken: BTreeSet::new(), ephemeral, last: BTreeMap::new() }
    }

    /// Takes one port, the same on all of `hosts`. `bind` opens what makes the port really ours and fails with an io error
    /// when another program has it; with a range to choose from the next port is tried then.
    pub fn claim<T>(
        &mut self,
        hosts: &[IpAddr],
        protocol: Protocol,
        range: (u16, u16),
        mut bind: impl FnMut(u16) -> std::io::Result<T>,
    ) -> Result<(u16, T)> {
        let (first, last) = if range == (0, 0) { self.ephemeral } else { range };
        let start = match self.last.get(&(protocol, (first, last))) {
            Some(port) if *port < last => port + 1,
            _ => first,
        };
        let mut failure = None;
        for port in (start..=last).chain(first..start) {
            if let Some(host) = hosts.iter().find(|host| self.is_taken(protocol, **host, port)) {
                failure.get_or_insert_with(|| already_allocated(*host, port));
                continue;
            }
            match bind(port) {
                Ok(bound) => {
                    self.taken.extend(hosts.iter().map(|host| (protocol, *host, port)));
                    if first != last {
                        self.last.insert((protocol, (first, last)), port);
                    }
                    return Ok((port, bound));
                }
                Err(cause) if first != last && cause.raw_os_error() == Some(libc::EADDRINUSE) => {}
                Err(cause) => {
                    let host = std::net::SocketAddr::new(hosts.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port);
                    return Err(Error::io(format!("failed to bind host port {host}/{protocol}"), &cause));
                }
            }
        }
        match failure {
            Some(refusal) if first == last => Err(refusal),
            _ => Err(Error::new(Kind::System, "all ports are allocated")),
        }
    }

    /// A port on every address stands in the way of the same port on one address, and the other way round.
    fn is_taken(&self, protocol: Protocol, host: IpAddr, port: u16) -> bool {
        let any: IpAddr = if host.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.taken.contains(&(protocol, host, port))
            || self.taken.contains(&(protocol, any, port))
            || (host == any && self.taken.iter().any(|(p, h, n)| (*p, *n) == (protocol, port) && h.is_ipv4() == host.is_ipv4()))
    }

    /// Gives a port back.
    pub fn release(&mut self, host: IpAddr, protocol: Protocol, port: u16) {
        self.taken.remove(&(protocol, host, port));
    }
}

fn already_allocated(host: IpAddr, port: u16) -> Error {
    Error::new(Kind::System, format!("Bind for {host}:{port} failed: port is already allocated"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::config::{Empty, PortBinding};

    const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

    fn map(entries: &[(&str, &str, &str)]) -> PortMap {
        let mut map = PortMap::new();
        for (port, ip, host) in entries {
            let binding = PortBinding { host_ip: (*ip).into(), host_port: (*host).into() };
            map.entry((*port).into()).or_insert_with(|| Some(Vec::new())).as_mut().unwrap().push(binding);
        }
        map
    }

    #[test]
    fn bindings_are_read() {
        let exposed = Set::from([("53/udp".to_string(), Empty {}), ("90-91".to_string(), Empty {})]);
        let map = map(&[("80", "", ""), ("80/tcp", "127.0.0.1", "8080"), ("53/udp", "::1", "5000-5010")]);
        let list = bindings(Some(&map), &exposed, true).unwrap();
        let text: Vec<String> = list.iter().map(|b| format!("{:?} {:?} {}", b.host.map(|h| h.to_string()), b.range, b.container)).collect();
        assert_eq!(
            text,
            [
                "Some(\"127.0.0.1\") (8080, 8080) 80/tcp",
                "Some(\"::1\") (5000, 5010) 53/udp",
                "None (0, 0) 80/tcp",
                "None (0, 0) 90/tcp",
                "None (0, 0) 91/tcp",
            ]
        );
    }

    #[test]
    fn malformed_bindings_are_refused() {
        for (port, ip, host) in [
            ("x/tcp", "", ""),
            ("80/icmp", "", ""),
            ("70000", "", ""),
            ("0", "", ""),
            ("+80", "", ""),
            ("80", "nowhere", ""),
            ("80", "", "a"),
            ("80", "", "90-80"),
            ("80", "", "-1"),
            ("80", "", "0-10"),
            ("80", "", "1-70000"),
        ] {
            let refusal = bindings(Some(&map(&[(port, ip, host)])), &Set::new(), false).unwrap_err();
            assert_eq!(refusal.kind, Kind::InvalidParameter, "{port} {ip} {host}");
        }
        let refusal = bindings(Some(&map(&[("80", "", "x")])), &Set::new(), false).unwrap_err();
        assert_eq!(refusal.message, "invalid port specification: \"x\"");
    }

    #[test]
    fn conflicts_are_told_in_the_references_words() {
        let mut ports = Allocator::new(EPHEMERAL);
        let free = |_| Ok(());
        assert_eq!(ports.claim(&[ANY4, ANY6], Protocol::Tcp, (80, 80), free).unwrap().0, 80);
        let refusal = ports.claim(&[ANY4], Protocol::Tcp, (80, 80), free).unwrap_err();
        assert_eq!(refusal.message, "Bind for 0.0.0.0:80 failed: port is already allocated");
        assert!(ports.claim(&["127.0.0.1".parse().unwrap()], Protocol::Tcp, (80, 80), free).is_err());
        ports.claim(&[ANY4], Protocol::Udp, (80, 80), free).unwrap();
        ports.release(ANY4, Protocol::Tcp, 80);
        ports.claim(&[ANY4], Protocol::Tcp, (80, 80), free).unwrap();
        assert!(ports.claim(&[ANY6], Protocol::Tcp, (80, 80), free).is_err());
        let busy = |_| Err::<(), _>(std::io::Error::from_raw_os_error(libc::EADDRINUSE));
        let refusal = ports.claim(&[ANY4], Protocol::Tcp, (81, 81), busy).unwrap_err();
        assert_eq!(refusal.message, "failed to bind host port 0.0.0.0:81/tcp: address already in use");
    }

    #[test]
    fn ranges_go_round_and_skip_what_others_have() {
        let mut ports = Allocator::new((100, 103));
        let others = |port| if port == 101 { Err(std::io::Error::from_raw_os_error(libc::EADDRINUSE)) } else { Ok(()) };
        let mut next = || ports.claim(&[ANY4], Protocol::Tcp, (0, 0), others).map(|(port, ())| port);
        assert_eq!((next().unwrap(), next().unwrap(), next().unwrap()), (100, 102, 103));
        assert_eq!(next().unwrap_err().message, "all ports are allocated");
        ports.release(ANY4, Protocol::Tcp, 102);
        assert_eq!(ports.claim(&[ANY4], Protocol::Tcp, (0, 0), others).unwrap().0, 102);
    }

    #[test]
    fn the_ephemeral_range_is_the_kernels() {
        assert_eq!(ephemeral_range("40000\t50000\n"), (40000, 50000));
        assert_eq!(ephemeral_range(""), EPHEMERAL);
    }
}
