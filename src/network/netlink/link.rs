//! Links: bridges, veth pairs, macvlan, ipvlan, vlan; what they are set to, and what there is.

use super::message::{attribute, attributes, text_of, u32_at};
use super::{Failure, Message, Reply, Socket};
use super::{
    IFLA_ADDRESS, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU,
    IFLA_NET_NS_FD, IFLA_NET_NS_PID, IFLA_PROTINFO, IFLA_STATS64,
};
use std::os::fd::RawFd;

const VETH_INFO_PEER: u16 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_FLAGS: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
/// Length of `struct ifinfomsg`.
const IFINFO: usize = 16;
/// NLM_F_CREATE | NLM_F_EXCL.
const CREATE: u16 = 0x600;

/// A MAC address.
pub type Mac = [u8; 6];

/// The longest interface name (IFNAMSIZ without its NUL), in bytes.
pub const NAME_MAX: usize = 15;

/// The network namespace in which a link is to be born.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netns {
    /// Where the sending socket lives.
    Here,
    Pid(libc::pid_t),
    Fd(RawFd),
}

/// What every new link can be told at once.
#[derive(Clone, Debug)]
pub struct NewLink<'a> {
    pub name: &'a str,
    /// 0 = the kernel's default.
    pub mtu: u32,
    pub mac: Option<Mac>,
    /// Index of the bridge it joins.
    pub master: Option<u32>,
    pub up: bool,
    pub netns: Netns,
}

impl<'a> NewLink<'a> {
    pub fn named(name: &'a str) -> NewLink<'a> {
        NewLink { name, mtu: 0, mac: None, master: None, up: false, netns: Netns::Here }
    }

    fn header(&self) -> [u8; IFINFO] {
        ifinfo(0, 0, self.up.then_some(true))
    }

    fn attributes(&self, message: Message) -> Message {
        let message = message
            .text(IFLA_IFNAME, self.name)
            .when((self.mtu != 0).then_some(self.mtu), |m, mtu| m.u32(IFLA_MTU, mtu))
            .when(self.mac, |m, mac| m.attr(IFLA_ADDRESS, &mac))
            .when(self.master, |m, master| m.u32(IFLA_MASTER, master));
        match self.netns {
            Netns::Here => message,
            Netns::Pid(pid) => message.attr(IFLA_NET_NS_PID, &pid.to_ne_bytes()),
            Netns::Fd(fd) => message.attr(IFLA_NET_NS_FD, &fd.to_ne_bytes()),
        }
    }
}

/// `struct ifinfomsg`: family, index (0 = by name), up (`None` = as it is).
fn ifinfo(family: u8, index: u32, up: Option<bool>) -> [u8; IFINFO] {
    let mut part = [0; IFINFO];
    part[0] = family;
    part[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Some(up) = up {
        let iff_up = libc::IFF_UP.cast_unsigned().to_ne_bytes();
        if up {
            part[8..12].copy_from_slice(&iff_up);
        }
        part[12..16].copy_from_slice(&iff_up);
    }
    part
}

fn create(link: &NewLink, kind: &str, data: impl FnOnce(Message) -> Message) -> Vec<u8> {
    let message = Message::new(libc::RTM_NEWLINK, CREATE).fixed(&link.header());
    link.attributes(message).nest(IFLA_LINKINFO, |m| m.text(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, data)).finish()
}

/// A bridge.
pub fn new_bridge(link: &NewLink) -> Vec<u8> {
    create(link, "bridge", |m| m)
}

/// A dummy interface: the parent of `internal` macvlan and ipvlan networks.
pub fn new_dummy(link: &NewLink) -> Vec<u8> {
    create(link, "dummy", |m| m)
}

/// A veth pair in one message; the peer may be born in another namespace. A peer can't be up at birth: its partner is not there yet.
pub fn new_veth(link: &NewLink, peer: &NewLink) -> Vec<u8> {
    create(link, "veth", |m| m.nest(VETH_INFO_PEER, |m| peer.attributes(m.fixed(&ifinfo(0, 0, None)))))
}

/// A macvlan on `parent`; mode bits: private 1, vepa 2, bridge 4, passthru 8.
pub fn new_macvlan(link: &NewLink, parent: u32, mode: u32) -> Vec<u8> {
    on_parent(link, parent, "macvlan", |m| m.u32(IFLA_MACVLAN_MODE, mode))
}

/// An ipvlan on `parent`; mode: l2 0, l3 1, l3s 2; flag: bridge 0, private 1, vepa 2.
pub fn new_ipvlan(link: &NewLink, parent: u32, mode: u16, flags: u16) -> Vec<u8> {
    on_parent(link, parent, "ipvlan", |m| m.u16(IFLA_IPVLAN_MODE, mode).u16(IFLA_IPVLAN_FLAGS, flags))
}

/// A VLAN sub-interface of `parent`.
pub fn new_vlan(link: &NewLink, parent: u32, id: u16) -> Vec<u8> {
    on_parent(link, parent, "vlan", |m| m.u16(IFLA_VLAN_ID, id))
}

fn on_parent(link: &NewLink, parent: u32, kind: &str, data: impl FnOnce(Message) -> Message) -> Vec<u8> {
    let message = Message::new(libc::RTM_NEWLINK, CREATE).fixed(&link.header()).u32(IFLA_LINK, parent);
    link.attributes(message).nest(IFLA_LINKINFO, |m| m.text(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, data)).finish()
}

/// A change to an existing link.
#[derive(Clone, Debug, Default)]
pub struct Change<'a> {
    pub up: Option<bool>,
    pub name: Option<&'a str>,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    /// 0 = leave the bridge.
    pub master: Option<u32>,
    pub alias: Option<&'a str>,
}

pub fn set_link(index: u32, change: &Change) -> Vec<u8> {
    Message::new(libc::RTM_NEWLINK, 0)
        .fixed(&ifinfo(0, index, change.up))
        .when(change.name, |m, name| m.text(IFLA_IFNAME, name))
        .when(change.mtu, |m, mtu| m.u32(IFLA_MTU, mtu))
        .when(change.mac, |m, mac| m.attr(IFLA_ADDRESS, &mac))
        .when(change.master, |m, master| m.u32(IFLA_MASTER, master))
        .when(change.alias, |m, alias| m.text(IFLA_IFALIAS, alias))
        .finish()
}

/// Hairpin mode of a bridge port: frames may leave by the port they came in.
pub fn set_hairpin(index: u32, on: bool) -> Vec<u8> {
    let family = u8::try_from(libc::AF_BRIDGE).unwrap_or(7);
    Message::new(libc::RTM_SETLINK, 0)
        .fixed(&ifinfo(family, index, None))
        .nest(IFLA_PROTINFO, |m| m.u8(IFLA_BRPORT_MODE, u8::from(on)))
        .finish()
}

/// Isolation of a bridge port: it reaches the bridge itself, and no other isolated port (Linux 4.18).
pub fn set_isolated(index: u32) -> Vec<u8> {
    let family = u8::try_from(libc::AF_BRIDGE).unwrap_or(7);
    Message::new(libc::RTM_SETLINK, 0).fixed(&ifinfo(family, index, None)).nest(IFLA_PROTINFO, |m| m.u8(IFLA_BRPORT_ISOLATED, 1)).finish()
}

/// Deletes a link by name; a veth takes its peer along.
pub fn delete_link(name: &str) -> Vec<u8> {
    Message::new(libc::RTM_DELLINK, 0).fixed(&ifinfo(0, 0, None)).text(IFLA_IFNAME, name).finish()
}

/// A link, as far as we care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// IFLA_INFO_KIND: "bridge", "veth" …; empty for hardware.
    pub kind: String,
    pub mtu: u32,
    pub mac: Option<Mac>,
    /// Index of its bridge; 0 = none.
    pub master: u32,
    /// Index of its parent or peer, which may be in another namespace; 0 = none.
    pub parent: u32,
    pub up: bool,
    pub alias: String,
    pub counters: Counters,
}

/// struct rtnl_link_stats64, the first eight fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
}

/// All links of the socket's namespace.
pub fn links(socket: &Socket) -> Result<Vec<Link>, Failure> {
    let replies = socket.dump("list links", Message::new(libc::RTM_GETLINK, 0).fixed(&ifinfo(0, 0, None)))?;
    Ok(replies.iter().filter_map(parse).collect())
}

/// The link of that name; `None` when there is none.
pub fn link(socket: &Socket, name: &str) -> Result<Option<Link>, Failure> {
    let request = Message::new(libc::RTM_GETLINK, 0).fixed(&ifinfo(0, 0, None)).text(IFLA_IFNAME, name).finish();
    match socket.execute(format!("look up link {name}"), &request) {
        Ok(replies) => Ok(replies.iter().find_map(parse)),
        // A name that no link can have is ERANGE or EINVAL.
        Err(failure) if matches!(failure.errno(), libc::ENODEV | libc::ERANGE) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn parse(reply: &Reply) -> Option<Link> {
    if reply.kind != libc::RTM_NEWLINK {
        return None;
    }
    let mut link =
        Link { index: u32_at(&reply.payload, 4)?, up: u32_at(&reply.payload, 8)? & libc::IFF_UP.cast_unsigned() != 0, ..Link::default() };
    for (kind, value) in attributes(reply.payload.get(IFINFO..)?) {
        match kind {
            IFLA_IFNAME => link.name = text_of(value).to_string(),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_MASTER => link.master = u32_at(value, 0)?,
            IFLA_LINK => link.parent = u32_at(value, 0)?,
            IFLA_IFALIAS => link.alias = text_of(value).to_string(),
            IFLA_LINKINFO => link.kind = attribute(value, IFLA_INFO_KIND).map(text_of).unwrap_or_default().to_string(),
            IFLA_STATS64 => link.counters = counters(value).unwrap_or_default(),
            _ => {}
        }
    }
    Some(link)
}

fn counters(value: &[u8]) -> Option<Counters> {
    let nth = |n: usize| Some(u64::from_ne_bytes(value.get(n * 8..n * 8 + 8)?.try_into().ok()?));
    Some(Counters {
        rx_packets: nth(0)?,
        tx_packets: nth(1)?,
        rx_bytes: nth(2)?,
        tx_bytes: nth(3)?,
        rx_errors: nth(4)?,
        tx_errors: nth(5)?,
        rx_dropped: nth(6)?,
        tx_dropped: nth(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_new_netns;
    use super::*;

    #[test]
    fn a_veth_is_born_on_its_bridge() {
        in_new_netns(|| {
            let socket = Socket::route().unwrap();
            let mac = [2, 0x42, 0xac, 17, 0, 1];
            let bridge = NewLink { mac: Some(mac), up: true, mtu: 1400, ..NewLink::named("br0") };
            socket.execute("create br0", &new_bridge(&bridge)).unwrap();
            let br0 = link(&socket, "br0").unwrap().unwrap();
            assert_eq!((br0.kind.as_str(), br0.mac, br0.mtu, br0.up), ("bridge", Some(mac), 1400, true));

            let host = NewLink { master: Some(br0.index), up: true, mtu: 1400, ..NewLink::named("vethaaaaaaa") };
            let peer = NewLink { mtu: 1400, mac: Some([2, 0x42, 0xac, 17, 0, 2]), ..NewLink::named("eth0") };
            socket.execute("create veth", &new_veth(&host, &peer)).unwrap();
            let host = link(&socket, "vethaaaaaaa").unwrap().unwrap();
            let eth0 = link(&socket, "eth0").unwrap().unwrap();
            assert_eq!((host.master, host.up, host.parent, host.mtu), (br0.index, true, eth0.index, 1400));
            assert_eq!(eth0.mac, Some([2, 0x42, 0xac, 17, 0, 2]));
            socket.execute("hairpin", &set_hairpin(host.index, true)).unwrap();

            let change = Change { up: Some(true), name: Some("eth7"), alias: Some("port"), ..Change::default() };
            socket.execute("rename", &set_link(eth0.index, &change)).unwrap();
            let eth7 = link(&socket, "eth7").unwrap().unwrap();
            assert_eq!((eth7.up, eth7.alias.as_str()), (true, "port"));
            socket.execute("delete", &delete_link("vethaaaaaaa")).unwrap();
            assert_eq!(link(&socket, "eth7").unwrap(), None);
            assert!(links(&socket).unwrap().iter().any(|l| l.name == "lo"));
        });
    }

    #[test]
    fn macvlan_ipvlan_and_vlan_sit_on_a_parent() {
        in_new_netns(|| {
            let socket = Socket::route().unwrap();
            let parent = NewLink { up: true, ..NewLink::named("parent") };
            socket.execute("parent", &new_veth(&parent, &NewLink::named("far"))).unwrap();
            let parent = link(&socket, "parent").unwrap().unwrap().index;
            for (kind, message) in [
                ("vlan", new_vlan(&NewLink::named("m0"), parent, 10)),
                ("macvlan", new_macvlan(&NewLink::named("m0"), parent, 4)),
                ("ipvlan", new_ipvlan(&NewLink::named("m0"), parent, 0, 0)),
                ("dummy", new_dummy(&NewLink::named("m0"))),
            ] {
                match socket.execute(kind, &message) {
                    Ok(_) => {
                        let made = link(&socket, "m0").unwrap().unwrap();
                        assert_eq!((made.kind.as_str(), made.parent), (kind, if kind == "dummy" { 0 } else { parent }));
                        socket.execute("delete", &delete_link("m0")).unwrap();
                    }
                    Err(e) if e.errno() == libc::EOPNOTSUPP => eprintln!("skipped: this kernel has no {kind}"),
                    Err(e) => panic!("{e}"),
                }
            }
        });
    }

    #[test]
    fn refusals_carry_the_errno_and_the_kernels_words() {
        in_new_netns(|| {
            let socket = Socket::route().unwrap();
            let twice = new_bridge(&NewLink::named("br0"));
            socket.execute("create br0", &twice).unwrap();
            assert_eq!(socket.execute("create br0", &twice).unwrap_err().errno(), libc::EEXIST);
            let small = NewLink { mtu: 1, ..NewLink::named("br1") };
            let refusal = socket.execute("create br1", &new_bridge(&small)).unwrap_err();
            assert!(refusal.to_string().starts_with("create br1: "), "{refusal}");
            assert!(!refusal.detail.is_empty(), "{refusal}");
            assert_eq!(link(&socket, "a-name-that-is-too-long").unwrap(), None);
        });
    }
}
