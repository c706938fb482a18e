//! Networks: netlink, bridges, addresses, ports, firewall, DNS.

pub mod attach;
pub mod create;
pub mod dns;
pub mod firewall;
pub mod hosts;
pub mod ipam;
pub mod manager;
pub mod model;
pub mod netlink;
pub mod netns;
pub mod nftables;
pub mod ports;
pub mod prefix;
pub mod resolv_conf;
pub mod sandbox;
pub mod serve;
pub mod settings;
