//! The daemon's network settings, read from its options once, and refused in one place.

use super::ipam::{DefaultPool, default_pools, unique_local_pool};
use super::prefix::Prefix;
use super::resolv_conf::Overrides;
use crate::daemon::options::Options;
use std::net::IpAddr;

/// How ports are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publishing {
    /// Translated by the kernel, with a proxy for loopback.
    Translate,
    /// By the proxy alone: host firewalls see the traffic on INPUT.
    Proxy,
}

#[derive(Clone, Debug)]
pub struct Settings {
    /// Interface of the default bridge; `None` = there is no default bridge network.
    pub bridge: Option<String>,
    /// The bridge is the administrator's: it is used, not made.
    pub bridge_is_given: bool,
    pub bip: Option<Prefix>,
    pub bip6: Option<Prefix>,
    pub fixed_cidr: Option<Prefix>,
    pub fixed_cidr6: Option<Prefix>,
    pub gateway: Option<IpAddr>,
    pub gateway6: Option<IpAddr>,
    pub icc: bool,
    pub masquerade: bool,
    pub forward: bool,
    pub iptables: bool,
    pub ip6tables: bool,
    pub ipv6: bool,
    /// Bytes; 0 = the kernel's default.
    pub mtu: u32,
    /// Where ports are published when nothing is said; `None` = everywhere.
    pub default_ip: Option<IpAddr>,
    pub userland_proxy: bool,
    pub publishing: Publishing,
    pub direct_routing: bool,
    pub host_gateways: Vec<IpAddr>,
    pub pools: Vec<DefaultPool>,
    pub dns: Overrides,
}

impl Settings {
    pub fn load(options: &Options) -> Result<Settings, String> {
        let bridge = options.text("bridge");
        let address = |flag: &str| parse::<IpAddr>(flag, options.text(flag));
        let prefix = |flag: &str| match options.text(flag) {
            "" => Ok(None),
            text => text.parse::<Prefix>().map(Some).map_err(|()| format!("invalid CIDR address for --{flag}: {text}")),
        };
        if !bridge.is_empty() && bridge != "none" && !super::create::is_interface_name(bridge) {
            return Err(format!("invalid interface name for --bridge: {bridge}"));
        }
        let bip = prefix("bip")?;
        if !bridge.is_empty() && bip.is_some() {
            return Err("you specified -b & --bip, mutually exclusive options. Please specify only one".into());
        }
        let (bip, bip6) = if bip.is_some_and(|p| !p.is_v4()) { (None, bip) } else { (bip, None) };
        let default_ip = address("ip")?.filter(|ip| !ip.is_unspecified());
        let publishing = match options.text("port-publishing") {
            "nat" | "" => Publishing::Translate,
            "proxy" => Publishing::Proxy,
            other => return Err(format!("invalid value for --port-publishing: {other:?}; it is nat or proxy")),
        };
        Ok(Settings {
            bridge: match bridge {
                "none" => None,
                "" => Some("docker0".into()),
                name => Some(name.into()),
            },
            bridge_is_given: !bridge.is_empty() && bridge != "docker0",
            bip,
            bip6,
            fixed_cidr: prefix("fixed-cidr")?,
            fixed_cidr6: prefix("fixed-cidr-v6")?,
            gateway: address("default-gateway")?,
            gateway6: address("default-gateway-v6")?,
            icc: options.flag("icc"),
            masquerade: options.flag("ip-masq"),
            forward: options.flag("ip-forward"),
            iptables: options.flag("iptables"),
            ip6tables: options.flag("ip6tables"),
            ipv6: options.flag("ipv6"),
            mtu: u32::try_from(options.int("mtu")).unwrap_or(0),
            default_ip,
            userland_proxy: options.flag("userland-proxy"),
            publishing,
            direct_routing: options.flag("allow-direct-routing"),
            host_gateways: options
                .list("host-gateway-ip")
                .iter()
                .map(|t| t.parse().map_err(|_| format!("invalid --host-gateway-ip: {t}")))
                .collect::<Result<_, _>>()?,
            pools: pools(options.list("default-address-pool"))?,
            dns: Overrides {
                servers: options.list("dns").to_vec(),
                search: options.list("dns-search").to_vec(),
                options: options.list("dns-opt").to_vec(),
            },
        })
    }
}

fn parse<T: std::str::FromStr>(flag: &str, text: &str) -> Result<Option<T>, String> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| format!("invalid value for --{flag}: {text}")) }
}

/// `base=10.10.0.0/16,size=24`; the reference's own pools when none is given, and always one for IPv6.
fn pools(list: &[String]) -> Result<Vec<DefaultPool>, String> {
    let mut pools = Vec::new();
    for text in list {
        let wrong = || format!("invalid default address pool: {text}");
        let (mut base, mut size) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("base", value)) => base = value.parse::<Prefix>().ok(),
                Some(("size", value)) => size = value.parse::<u8>().ok(),
                _ => return Err(wrong()),
            }
        }
        let (base, size) = base.zip(size).ok_or_else(wrong)?;
        if size < base.length || size > if base.is_v4() { 32 } else { 128 } {
            return Err(wrong());
        }
        pools.push(DefaultPool { base: base.masked(), size });
    }
    if pools.is_empty() {
        pools = default_pools();
    }
    if pools.iter().all(|pool| pool.base.is_v4()) {
        let machine = std::fs::read("/etc/machine-id").or_else(|_| std::fs::read("/proc/sys/kernel/random/boot_id")).unwrap_or_default();
        pools.push(unique_local_pool(&machine));
    }
    Ok(pools)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_read_and_checked() {
        let read = |text: &str| pools(&[text.to_string()]);
        assert_eq!(read("base=10.10.0.0/16,size=24").unwrap()[0], DefaultPool { base: "10.10.0.0/16".parse().unwrap(), size: 24 });
        for bad in ["base=10.10.0.0/16", "base=10.10.0.0/16,size=8", "base=x,size=24", "10.0.0.0/8", "base=10.10.0.0/16,size=33"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(pools(&[]).unwrap().iter().filter(|p| !p.base.is_v4()).count(), 1);
    }
}
