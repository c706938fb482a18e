//! Creating networks and joining them: what clients may ask for, refused in the reference's words before anything is done.

use super::model::*;
use super::prefix::Prefix;
use crate::container::config::EndpointSettings;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The body of POST /networks/create.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CreateRequest {
    pub name: String,
    pub driver: String,
    pub scope: String,
    #[serde(rename = "EnableIPv4")]
    pub enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: Option<bool>,
    #[serde(rename = "IPAM")]
    pub ipam: Option<IpamRequest>,
    pub internal: bool,
    pub attachable: bool,
    pub ingress: bool,
    pub config_only: bool,
    pub config_from: Option<ConfigFrom>,
    pub options: Labels,
    pub labels: Labels,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ConfigFrom {
    pub network: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct IpamRequest {
    pub driver: String,
    pub options: Option<Labels>,
    pub config: Vec<PoolRequest>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PoolRequest {
    pub subnet: String,
    #[serde(rename = "IPRange")]
    pub ip_range: String,
    pub gateway: String,
    pub auxiliary_addresses: BTreeMap<String, String>,
}

/// Several complaints in one message, as the reference joins them.
fn joined(complaints: &[String]) -> String {
    match complaints {
        [one] => one.trim().to_string(),
        all => format!("* {}", all.iter().map(|c| c.replace('\n', "\n\t")).collect::<Vec<_>>().join("\n* ")),
    }
}

/// Names start with a letter or digit and stay with letters, digits, `_`, `.`, `-`: they are shown, matched and used as DNS suffix.
pub fn check_name(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::invalid("invalid name: name is empty"));
    }
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if starts_well && name.len() <= 255 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        return Ok(());
    }
    Err(Error::invalid(format!("Invalid network name ({}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name.escape_debug())))
}

/// Decides a create request as far as it can be without the other networks: pools hold only what the client chose.
pub fn plan(request: CreateRequest, id: String, created_ns: i64) -> Result<Network> {
    if PREDEFINED.contains(&request.name.as_str()) || request.name == "default" {
        return Err(Error::forbidden(format!("operation is not permitted on predefined {} network ", request.name)));
    }
    check_name(&request.name)?;
    if request.driver == "overlay" || request.ingress || request.scope == "swarm" || request.scope == "global" {
        return Err(Error::forbidden(
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
        ));
    }
    let name = if request.driver.is_empty() || request.driver == "default" { "bridge" } else { request.driver.as_str() };
    let driver = Driver::parse(name).ok_or_else(|| Error::not_found(format!("plugin \"{name}\" not found")))?;
    if matches!(driver, Driver::Host | Driver::Null) && !request.config_only {
        return Err(Error::forbidden(format!("only one instance of \"{}\" network is allowed", driver.name())));
    }
    if let (true, Some(_)) = (request.config_only, &request.config_from) {
        return Err(Error::forbidden("a configuration network cannot depend on another configuration network"));
    }
    let flag = |given: Option<bool>, option: &str, default: bool| match (given, request.options.get(option)) {
        (Some(given), _) => Ok(given),
        (None, Some(text)) => parse_bool(text).ok_or_else(|| Error::invalid(format!("driver-opt \"{option}\" is not a valid bool"))),
        (None, None) => Ok(default),
    };
    let ipv4 = flag(request.enable_ipv4, "com.docker.network.enable_ipv4", true)?;
    let ipv6 = flag(request.enable_ipv6, "com.docker.network.enable_ipv6", false)?;
    if !ipv4 && !ipv6 && !request.config_only && driver == Driver::Bridge {
        return Err(Error::invalid("IPv4 or IPv6 must be enabled"));
    }
    let ipam = request.ipam.unwrap_or_default();
    if !matches!(ipam.driver.as_str(), "" | "default" | "null") {
        return Err(Error::invalid(format!("error while creating network: plugin \"{}\" not found", ipam.driver)));
    }
    let pools: Vec<Pool> = check_pools(&ipam.config, ipv6)?.into_iter().filter(|p| if p.subnet.is_v4() { ipv4 } else { ipv6 }).collect();
    if driver == Driver::Bridge && [true, false].iter().any(|v4| pools.iter().filter(|p| p.subnet.is_v4() == *v4).count() > 1) {
        return Err(Error::forbidden("bridge driver doesn't support multiple subnets"));
    }
    check_options(driver, &request.options)?;
    let network = Network {
        id,
        name: request.name,
        created_ns,
        driver,
        ipv4,
        ipv6,
        internal: request.internal,
        attachable: request.attachable,
        config_only: request.config_only,
        config_from: request.config_from.map(|from| from.network).unwrap_or_default(),
        ipam_driver: if ipam.driver.is_empty() { "default".into() } else { ipam.driver },
        ipam_options: ipam.options,
        pools,
        options: request.options,
        labels: request.labels,
    };
    if (network.gateway_mode(true) == super::firewall::GatewayMode::Isolated
        || network.gateway_mode(false) == super::firewall::GatewayMode::Isolated)
        && !network.internal
    {
        return Err(Error::invalid("gateway mode 'isolated' can only be used for an internal network"));
    }
    Ok(network)
}

fn check_pools(requests: &[PoolRequest], ipv6: bool) -> Result<Vec<Pool>> {
    let (mut pools, mut complaints) = (Vec::new(), Vec::new());
    for request in requests {
        let Ok(subnet) = request.subnet.parse::<Prefix>() else {
            complaints.push(format!("invalid subnet {}: invalid CIDR block notation", request.subnet));
            continue;
        };
        if !subnet.is_v4() && !ipv6 {
            continue;
        }
        if subnet != subnet.masked() {
            complaints.push(format!("invalid subnet {subnet}: it should be {}", subnet.masked()));
        }
        let range = check_range(&request.ip_range, subnet, &mut complaints);
        let gateway = match check_address(&request.gateway, subnet) {
            Ok(gateway) => gateway,
            Err(why) => {
                complaints.push(format!("invalid gateway {}: {why}", request.gateway));
                None
            }
        };
        let mut auxiliary = BTreeMap::new();
        for (name, address) in &request.auxiliary_addresses {
            match check_address(address, subnet) {
                Ok(address) => auxiliary.extend(address.map(|a| (name.clone(), a))),
                Err(why) => complaints.push(format!("invalid auxiliary address {name}: {why}")),
            }
        }
        pools.push(Pool { subnet: subnet.masked(), range, gateway, auxiliary, chosen: true });
    }
    if complaints.is_empty() { Ok(pools) } else { Err(Error::invalid(format!("invalid network config:\n{}", joined(&complaints)))) }
}

fn family_name(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

fn check_range(text: &str, subnet: Prefix, complaints: &mut Vec<String>) -> Option<Prefix> {
    if text.is_empty() {
        return None;
    }
    let Ok(range) = text.parse::<Prefix>() else {
        complaints.push(format!("invalid ip-range {text}: invalid CIDR block notation"));
        return None;
    };
    if range.is_v4() != subnet.is_v4() {
        complaints.push(format!("invalid ip-range {text}: parent subnet is an {} block", family_name(subnet.is_v4())));
        return None;
    }
    if range.length < subnet.length {
        complaints.push(format!("invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}"));
    }
    if range != range.masked() {
        complaints.push(format!("invalid ip-range {range}: it should be {}", range.masked()));
    }
    if !subnet.overlaps(&range) {
        complaints.push(format!("invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range"));
    }
    Some(range.masked())
}

fn check_address(text: &str, subnet: Prefix) -> std::result::Result<Option<IpAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let address: IpAddr = text.parse().map_err(|_| "invalid address".to_string())?;
    if address.is_ipv4() != subnet.is_v4() {
        return Err(format!("parent subnet is an {} block", family_name(subnet.is_v4())));
    }
    if !subnet.contains(address) {
        return Err(format!("parent subnet {subnet} doesn't contain this address"));
    }
    Ok(Some(address))
}

fn check_options(driver: Driver, options: &Labels) -> Result<()> {
    let wrong = |key: &str, value: &str, why: String| Error::invalid(format!("failed to parse {key} value: {value:?} ({why})"));
    for (key, value) in options {
        match key.as_str() {
            OPTION_MASQUERADE | OPTION_ICC | OPTION_INHIBIT_V4 | OPTION_DEFAULT_BRIDGE if parse_bool(value).is_none() => {
                return Err(wrong(key, value, format!("strconv.ParseBool: parsing {value:?}: invalid syntax")));
            }
            OPTION_MTU if !value.parse::<u32>().is_ok_and(|mtu| mtu <= 65535) => {
                return Err(wrong(key, value, format!("strconv.Atoi: parsing {value:?}: invalid syntax")));
            }
            OPTION_GATEWAY_MODE_V4 | OPTION_GATEWAY_MODE_V6 if parse_gateway_mode(value).is_none() => {
                return Err(Error::invalid(format!("unknown gateway mode {value}")));
            }
            OPTION_HOST_BINDING_V4 | OPTION_HOST_BINDING_V6 | OPTION_HOST_V4 | OPTION_HOST_V6
                if !value.is_empty() && value.parse::<IpAddr>().is_err() =>
            {
                return Err(wrong(key, value, "nil ip".into()));
            }
            OPTION_BRIDGE_NAME | OPTION_IFACE_PREFIX | "parent" if !value.is_empty() && !is_interface_name(value) => {
                return Err(Error::invalid(format!("invalid interface name {:?}", value)));
            }
            _ => {}
        }
    }
    let modes: &[&str] = match driver {
        Driver::Macvlan => &["", "bridge", "private", "vepa", "passthru"],
        Driver::Ipvlan => &["", "l2", "l3", "l3s"],
        _ => return Ok(()),
    };
    let key = if driver == Driver::Macvlan { "macvlan_mode" } else { "ipvlan_mode" };
    match options.get(key) {
        Some(mode) if !modes.contains(&mode.as_str()) => Err(Error::invalid(format!(
            "requested {} mode '{mode}' is not valid, '{}' mode is the {} driver default",
            driver.name(),
            modes[1],
            driver.name()
        ))),
        _ => Ok(()),
    }
}

/// A name that the kernel takes for an interface, and iptables in its rules.
pub fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-@".contains(&b))
}

/// A configuration network's settings for a network made from it.
pub fn apply_configuration(network: &mut Network, from: &Network) -> Result<()> {
    if !from.config_only {
        return Err(Error::forbidden(format!("{} is not a configuration network", from.name)));
    }
    if !network.pools.is_empty() || network.options.keys().any(|k| !from.options.contains_key(k)) || network.internal {
        return Err(Error::forbidden("user-specified configurations are not supported if the network depends on a configuration network"));
    }
    (network.ipv4, network.ipv6, network.internal) = (from.ipv4, from.ipv6, from.internal);
    network.pools.clone_from(&from.pools);
    network.options.clone_from(&from.options);
    network.ipam_options.clone_from(&from.ipam_options);
    for (key, value) in &from.labels {
        network.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    Ok(())
}

/// Checks what a client asks for its endpoint in `network` (`None` = not known yet).
pub fn check_endpoint(name: &str, network: Option<&Network>, endpoint: &EndpointSettings) -> Result<()> {
    let mut complaints = Vec::new();
    let ipam = endpoint.ipam_config.clone().unwrap_or_default();
    let user_defined = !matches!(name, "default" | "bridge" | "host" | "none") && !name.starts_with("container:");
    let fixed = !ipam.ipv4_address.is_empty() || !ipam.ipv6_address.is_empty();
    if !user_defined && fixed {
        complaints.push("user specified IP address is supported on user defined networks only".to_string());
    }
    if !user_defined && endpoint.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
        complaints.push("network-scoped alias is supported only for containers in user defined networks".to_string());
    }
    for (text, v4) in [(&ipam.ipv4_address, true), (&ipam.ipv6_address, false)] {
        if text.is_empty() {
            continue;
        }
        match text.parse::<IpAddr>() {
            Ok(address) if address.is_ipv4() == v4 && !address.is_unspecified() => {
                if let Some(network) = network {
                    complaints.extend(check_fixed_address(network, address));
                }
            }
            _ => complaints.push(format!("invalid {} address: {text}", family_name(v4))),
        }
    }
    for text in ipam.link_local_ips.iter().flatten() {
        if !text.parse::<IpAddr>().is_ok_and(|address| !address.is_unspecified()) {
            complaints.push(format!("invalid link-local IP address: {text}"));
        }
    }
    if !endpoint.mac_address.is_empty() && parse_mac(&endpoint.mac_address).is_none() {
        return Err(Error::invalid(format!("invalid MAC address {}", endpoint.mac_address)));
    }
    for alias in endpoint.aliases.iter().flatten().chain(endpoint.links.iter().flatten()) {
        if alias.is_empty() || alias.chars().any(|c| c.is_control() || c.is_whitespace()) {
            complaints.push(format!("invalid alias {:?}", alias));
        }
    }
    let options = endpoint.driver_opts.clone().unwrap_or_default();
    if let Some(name) = options.get("com.docker.network.endpoint.ifname")
        && !is_interface_name(name)
    {
        complaints.push(format!("invalid interface name {name:?}"));
    }
    for sysctl in options.get("com.docker.network.endpoint.sysctls").map(|s| s.split(',')).into_iter().flatten() {
        if endpoint_sysctl(sysctl).is_none() {
            complaints.push(format!(
                "unrecognised network interface sysctl '{sysctl}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', 'X' must be 'ipv4', 'ipv6' or 'mpls'"
            ));
        }
    }
    if complaints.is_empty() { Ok(()) } else { Err(Error::invalid(format!("invalid endpoint settings:\n{}", joined(&complaints)))) }
}

fn check_fixed_address(network: &Network, address: IpAddr) -> Option<String> {
    let mut chosen = network.pools.iter().filter(|pool| pool.chosen && pool.subnet.is_v4() == address.is_ipv4()).peekable();
    if chosen.peek().is_none() {
        return Some("user specified IP address is supported only when connecting to networks with user configured subnets".into());
    }
    let inside = chosen.any(|pool| pool.subnet.contains(address));
    (!inside).then(|| format!("no configured subnet or ip-range contain the IP address {address}"))
}

/// `net.X.Y.IFNAME.Z=V` as (X, Y, Z, V), safe to be used in a path.
pub fn endpoint_sysctl(text: &str) -> Option<(&str, &str, &str, &str)> {
    let (name, value) = text.split_once('=')?;
    let parts: Vec<&str> = name.splitn(5, '.').collect();
    let [net, x, y, interface, z] = parts[..] else { return None };
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let known = net == "net" && matches!(x, "ipv4" | "ipv6" | "mpls") && matches!(interface, "IFNAME" | "ifname");
    (known && plain(y) && plain(z) && !value.is_empty() && !value.chars().any(char::is_control)).then_some((x, y, z, value))
}

/// "02:42:ac:11:00:02"; hyphens are read, too.
pub fn parse_mac(text: &str) -> Option<super::netlink::link::Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// The text of a MAC address.
pub fn mac_text(mac: super::netlink::link::Mac) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn create(json: &str) -> Result<Network> {
        plan(serde_json::from_str(json).unwrap(), "f".repeat(64), 0)
    }

    #[test]
    fn plain_networks_are_bridges() {
        let network =
            create(r#"{"Name":"n","IPAM":{"Config":[{"Subnet":"10.1.0.0/16","IPRange":"10.1.2.0/24","Gateway":"10.1.0.9"}]}}"#).unwrap();
        assert_eq!((network.driver, network.ipv4, network.ipv6), (Driver::Bridge, true, false));
        assert_eq!(network.pools[0].range.unwrap().to_string(), "10.1.2.0/24");
    }

    #[test]
    fn refusals_are_the_references() {
        for (json, kind, message) in [
            (r#"{"Name":"bridge"}"#, Kind::Forbidden, "operation is not permitted on predefined bridge network "),
            (r#"{"Name":" "}"#, Kind::InvalidParameter, "invalid name: name is empty"),
            (r#"{"Name":"../x"}"#, Kind::InvalidParameter, "Invalid network name (../x), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
            (r#"{"Name":"n","Driver":"nope"}"#, Kind::NotFound, "plugin \"nope\" not found"),
            (r#"{"Name":"n","Driver":"host"}"#, Kind::Forbidden, "only one instance of \"host\" network is allowed"),
            (
                r#"{"Name":"n","IPAM":{"Config":[{"Subnet":"10.1.0.1/16"}]}}"#,
                Kind::InvalidParameter,
                "invalid network config:\ninvalid subnet 10.1.0.1/16: it should be 10.1.0.0/16",
            ),
            (
                r#"{"Name":"n","IPAM":{"Config":[{"Subnet":"x"},{"Subnet":"10.1.0.0/16","Gateway":"10.2.0.1"}]}}"#,
                Kind::InvalidParameter,
                "invalid network config:\n* invalid subnet x: invalid CIDR block notation\n* invalid gateway 10.2.0.1: parent subnet 10.1.0.0/16 doesn't contain this address",
            ),
            (
                r#"{"Name":"n","Options":{"com.docker.network.bridge.enable_icc":"x"}}"#,
                Kind::InvalidParameter,
                "failed to parse com.docker.network.bridge.enable_icc value: \"x\" (strconv.ParseBool: parsing \"x\": invalid syntax)",
            ),
            (
                r#"{"Name":"n","Options":{"com.docker.network.bridge.name":"a b"}}"#,
                Kind::InvalidParameter,
                "invalid interface name \"a b\"",
            ),
        ] {
            let refusal = create(json).unwrap_err();
            assert_eq!((refusal.kind, refusal.message.as_str()), (kind, message));
        }
    }

    #[test]
    fn endpoints_are_checked() {
        let mut network = create(r#"{"Name":"n","IPAM":{"Config":[{"Subnet":"10.1.0.0/16"}]}}"#).unwrap();
        let endpoint = |json: &str| serde_json::from_str::<EndpointSettings>(json).unwrap();
        let fixed = endpoint(r#"{"IPAMConfig":{"IPv4Address":"10.1.0.9"},"Aliases":["a"]}"#);
        check_endpoint("n", Some(&network), &fixed).unwrap();
        let outside = endpoint(r#"{"IPAMConfig":{"IPv4Address":"10.2.0.9"}}"#);
        let message = |refusal: Error| refusal.message;
        assert_eq!(
            message(check_endpoint("n", Some(&network), &outside).unwrap_err()),
            "invalid endpoint settings:\nno configured subnet or ip-range contain the IP address 10.2.0.9"
        );
        network.pools[0].chosen = false;
        assert!(message(check_endpoint("n", Some(&network), &fixed).unwrap_err()).contains("user configured subnets"));
        assert_eq!(
            message(check_endpoint("bridge", None, &fixed).unwrap_err()),
            "invalid endpoint settings:\n* user specified IP address is supported on user defined networks only\n\
             * network-scoped alias is supported only for containers in user defined networks"
        );
        for bad in [
            r#"{"Aliases":["a\nb"]}"#,
            r#"{"MacAddress":"x"}"#,
            r#"{"DriverOpts":{"com.docker.network.endpoint.sysctls":"net.ipv4.conf.eth0.a=1"}}"#,
        ] {
            assert_eq!(check_endpoint("n", Some(&network), &endpoint(bad)).unwrap_err().kind, Kind::InvalidParameter, "{bad}");
        }
    }

    #[test]
    fn endpoint_sysctls_are_plain() {
        assert_eq!(endpoint_sysctl("net.ipv4.conf.IFNAME.log_martians=1"), Some(("ipv4", "conf", "log_martians", "1")));
        for bad in ["net.ipv4.conf.IFNAME.../x=1", "net.ipv4.conf.IFNAME.a/b=1", "net.core.conf.IFNAME.a=1", "net.ipv4..IFNAME.a=1", "x"] {
            assert_eq!(endpoint_sysctl(bad), None, "{bad}");
        }
    }

    #[test]
    fn macs() {
        assert_eq!(parse_mac("02:42:AC:11:00:02").map(mac_text).as_deref(), Some("02:42:ac:11:00:02"));
        for bad in ["02:42:ac:11:00", "02:42:ac:11:00:02:03", "+2:42:ac:11:00:02", ""] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
