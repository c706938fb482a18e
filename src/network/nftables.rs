//! nf_tables by netlink, by hand: the address translation that the embedded resolver needs inside a container's namespace.
//!
//! A transaction is one datagram: a begin message, tables, chains and rules, an end message; it holds or fails as a whole.

use super::netlink::message::flag;
use super::netlink::{Failure, Message, Socket};
use std::net::Ipv4Addr;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const NEWCHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEWRULE: u16 = (SUBSYSTEM << 8) | 6;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;

const REGISTER_1: u32 = 1;
const REGISTER_2: u32 = 2;
/// NF_INET_LOCAL_OUT.
const HOOK_OUTPUT: u32 = 3;
/// NF_IP_PRI_NAT_DST.
const PRIORITY_DNAT: i32 = -100;

/// The table's name in the container's namespace.
const TABLE: &str = "docker-dns";

/// Sends what goes to `resolver` port 53 to the ports where it really listens, so that the container's own port 53 stays free.
/// Acts in the network namespace where `socket` (NETLINK_NETFILTER) was opened; replies are translated back by connection tracking.
pub fn redirect_dns(socket: &Socket, resolver: Ipv4Addr, udp_port: u16, tcp_port: u16) -> Result<(), Failure> {
    let create = flag(libc::NLM_F_CREATE | libc::NLM_F_ACK);
    let message = |kind: u16, flags: u16| Message::new(kind, flags).fixed(&header(libc::AF_INET, 0));
    let chain = message(NEWCHAIN, create)
        .text(CHAIN_TABLE, TABLE)
        .text(CHAIN_NAME, "output")
        .nest(CHAIN_HOOK, |m| m.be32(HOOK_NUMBER, HOOK_OUTPUT).be32(HOOK_PRIORITY, PRIORITY_DNAT.cast_unsigned()))
        .text(CHAIN_TYPE, "nat");
    let rule = |protocol: u8, port: u16| {
        message(NEWRULE, create | flag(libc::NLM_F_APPEND))
            .text(RULE_TABLE, TABLE)
            .text(RULE_CHAIN, "output")
            .nest(RULE_EXPRESSIONS, |m| {
                let m = equals(network_header(m, 16, 4), &resolver.octets());
                let m = equals(layer4_protocol(m), &[protocol]);
                let m = equals(transport_header(m, 2, 2), &53u16.to_be_bytes());
                let m = immediate(immediate(m, REGISTER_1, &resolver.octets()), REGISTER_2, &port.to_be_bytes());
                translate_destination(m)
            })
            .finish()
    };
    let bare = |kind: u16| Message::new(kind, 0).fixed(&header(libc::AF_UNSPEC, SUBSYSTEM)).finish();
    let transaction = [
        bare(BATCH_BEGIN),
        message(NEWTABLE, create).text(TABLE_NAME, TABLE).finish(),
        chain.finish(),
        rule(17, udp_port),
        rule(6, tcp_port),
        bare(BATCH_END),
    ];
    socket.batch("redirect port 53 to the embedded resolver", &transaction)
}

/// `struct nfgenmsg`: family, version 0, resource id in network byte order.
fn header(family: libc::c_int, resource: u16) -> [u8; 4] {
    let id = resource.to_be_bytes();
    [u8::try_from(family).unwrap_or(0), 0, id[0], id[1]]
}

fn expression(m: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    m.nest(LIST_ELEMENT, |m| m.text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data))
}

/// NFTA_PAYLOAD_*: loads header bytes into register 1.
fn payload(m: Message, base: u32, offset: u32, length: u32) -> Message {
    expression(m, "payload", |m| m.be32(1, REGISTER_1).be32(2, base).be32(3, offset).be32(4, length))
}

fn network_header(m: Message, offset: u32, length: u32) -> Message {
    payload(m, 1, offset, length)
}

fn transport_header(m: Message, offset: u32, length: u32) -> Message {
    payload(m, 2, offset, length)
}

/// NFTA_META_*: NFT_META_L4PROTO into register 1.
fn layer4_protocol(m: Message) -> Message {
    expression(m, "meta", |m| m.be32(1, REGISTER_1).be32(2, 16))
}

/// NFTA_CMP_*: goes on only when register 1 holds `value`.
fn equals(m: Message, value: &[u8]) -> Message {
    expression(m, "cmp", |m| m.be32(1, REGISTER_1).be32(2, 0).nest(3, |m| m.attr(DATA_VALUE, value)))
}

/// NFTA_IMMEDIATE_*: a constant into a register.
fn immediate(m: Message, register: u32, value: &[u8]) -> Message {
    expression(m, "immediate", |m| m.be32(1, register).nest(2, |m| m.attr(DATA_VALUE, value)))
}

/// NFTA_NAT_*: NFT_NAT_DNAT of IPv4 to the address in register 1 and the port in register 2.
fn translate_destination(m: Message) -> Message {
    let family = libc::AF_INET.cast_unsigned();
    expression(m, "nat", |m| m.be32(1, 1).be32(2, family).be32(3, REGISTER_1).be32(5, REGISTER_2))
}

#[cfg(test)]
mod tests {
    use super::super::netlink::{address, tests::in_new_netns};
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn port_53_is_answered_elsewhere_and_stays_free() {
        in_new_netns(|| {
            Socket::route().unwrap().execute("lo", &address::loopback_up()).unwrap();
            let udp = UdpSocket::bind("127.0.0.11:0").unwrap();
            let tcp = TcpListener::bind("127.0.0.11:0").unwrap();
            let ports = (udp.local_addr().unwrap().port(), tcp.local_addr().unwrap().port());
            match redirect_dns(&Socket::netfilter().unwrap(), Ipv4Addr::new(127, 0, 0, 11), ports.0, ports.1) {
                Err(e) if matches!(e.errno(), libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => return eprintln!("skipped: no nf_tables: {e}"),
                done => done.unwrap(),
            }
            // The container's own server takes every port 53 there is.
            let (_own_udp, _own_tcp) = (UdpSocket::bind("0.0.0.0:53").unwrap(), TcpListener::bind("0.0.0.0:53").unwrap());
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect("127.0.0.11:53").unwrap();
            client.send(b"question").unwrap();
            let mut buf = [0; 16];
            let (n, from) = udp.recv_from(&mut buf).unwrap();
            assert_eq!(&buf[..n], b"question");
            udp.send_to(b"answer", from).unwrap();
            assert_eq!(client.recv(&mut buf).map(|n| buf[..n].to_vec()).unwrap(), b"answer");

            let mut client = TcpStream::connect("127.0.0.11:53").unwrap();
            let (mut server, _) = tcp.accept().unwrap();
            server.write_all(b"answer").unwrap();
            drop(server);
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert_eq!(text, "answer");
        });
    }
}
