//! Networks: netlink, bridges, addresses, ports, firewall, DNS.

pub mod create;
pub mod dns;
pub mod firewall;
pub mod hosts;
pub mod ipam;
pub mod model;
pub mod netlink;
pub mod nftables;
pub mod ports;
pub mod prefix;
pub mod resolv_conf;
