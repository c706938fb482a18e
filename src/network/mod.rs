//! Networks: netlink, bridges, addresses, ports, firewall, DNS.

pub mod netlink;
