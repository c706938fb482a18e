//! Networks: netlink, bridges, addresses, ports, firewall, DNS.
