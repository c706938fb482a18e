//! A network as it is kept and shown; nothing here touches the kernel.

use super::firewall::{BridgeRules, GatewayMode, Side};
use super::prefix::Prefix;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

pub type Labels = BTreeMap<String, String>;

pub const OPTION_BRIDGE_NAME: &str = "com.docker.network.bridge.name";
pub const OPTION_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
pub const OPTION_ICC: &str = "com.docker.network.bridge.enable_icc";
pub const OPTION_HOST_BINDING_V4: &str = "com.docker.network.bridge.host_binding_ipv4";
pub const OPTION_HOST_BINDING_V6: &str = "com.docker.network.bridge.host_binding_ipv6";
pub const OPTION_GATEWAY_MODE_V4: &str = "com.docker.network.bridge.gateway_mode_ipv4";
pub const OPTION_GATEWAY_MODE_V6: &str = "com.docker.network.bridge.gateway_mode_ipv6";
pub const OPTION_INHIBIT_V4: &str = "com.docker.network.bridge.inhibit_ipv4";
pub const OPTION_DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
pub const OPTION_MTU: &str = "com.docker.network.driver.mtu";
pub const OPTION_HOST_V4: &str = "com.docker.network.host_ipv4";
pub const OPTION_HOST_V6: &str = "com.docker.network.host_ipv6";
pub const OPTION_IFACE_PREFIX: &str = "com.docker.network.container_iface_prefix";

/// The names that no client can create or remove.
pub const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    #[default]
    Bridge,
    Host,
    Null,
    Macvlan,
    Ipvlan,
}

impl Driver {
    pub fn name(self) -> &'static str {
        match self {
            Driver::Bridge => "bridge",
            Driver::Host => "host",
            Driver::Null => "null",
            Driver::Macvlan => "macvlan",
            Driver::Ipvlan => "ipvlan",
        }
    }

    pub fn parse(name: &str) -> Option<Driver> {
        [Driver::Bridge, Driver::Host, Driver::Null, Driver::Macvlan, Driver::Ipvlan].into_iter().find(|d| d.name() == name)
    }
}

/// One subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub subnet: Prefix,
    #[serde(default)]
    pub range: Option<Prefix>,
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Addresses that nobody gets, by name.
    #[serde(default)]
    pub auxiliary: BTreeMap<String, IpAddr>,
    /// The client chose the subnet: fixed addresses are allowed.
    #[serde(default)]
    pub chosen: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub id: String,
    pub name: String,
    pub created_ns: i64,
    pub driver: Driver,
    pub ipv4: bool,
    pub ipv6: bool,
    pub internal: bool,
    pub attachable: bool,
    pub config_only: bool,
    /// Name of the configuration network that this one was made from; empty = none.
    pub config_from: String,
    pub ipam_driver: String,
    /// `None` prints as null.
    pub ipam_options: Option<Labels>,
    pub pools: Vec<Pool>,
    pub options: Labels,
    pub labels: Labels,
}

impl Network {
    pub fn is_predefined(&self) -> bool {
        PREDEFINED.contains(&self.name.as_str())
    }

    /// Name of the bridge interface.
    pub fn bridge_name(&self) -> String {
        match self.options.get(OPTION_BRIDGE_NAME) {
            Some(name) if !name.is_empty() => name.clone(),
            _ => format!("br-{}", self.id.get(..12).unwrap_or(&self.id)),
        }
    }

    /// Whether the engine's default bridge.
    pub fn is_default_bridge(&self) -> bool {
        self.name == "bridge"
    }

    /// A boolean option; create has checked its spelling.
    pub fn flag(&self, option: &str, default: bool) -> bool {
        self.options.get(option).and_then(|text| parse_bool(text)).unwrap_or(default)
    }

    /// Bytes; 0 = the kernel's default.
    pub fn mtu(&self) -> u32 {
        self.options.get(OPTION_MTU).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    pub fn icc(&self) -> bool {
        self.flag(OPTION_ICC, true)
    }

    pub fn gateway_mode(&self, v4: bool) -> GatewayMode {
        let option = self.options.get(if v4 { OPTION_GATEWAY_MODE_V4 } else { OPTION_GATEWAY_MODE_V6 });
        option.and_then(|text| parse_gateway_mode(text)).unwrap_or_default()
    }

    /// Where ports are published when a binding names no address; `None` = everywhere.
    pub fn host_binding(&self, v4: bool) -> Option<IpAddr> {
        let option = self.options.get(if v4 { OPTION_HOST_BINDING_V4 } else { OPTION_HOST_BINDING_V6 });
        option.and_then(|text| text.parse().ok()).filter(|address: &IpAddr| !address.is_unspecified())
    }

    pub fn pool(&self, v4: bool) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.subnet.is_v4() == v4)
    }

    /// Prefix of interface names inside containers.
    pub fn interface_prefix(&self) -> &str {
        self.options.get(OPTION_IFACE_PREFIX).map_or("eth", String::as_str)
    }

    /// The host has an address in the network.
    pub fn host_has_address(&self, v4: bool) -> bool {
        self.gateway_mode(v4) != GatewayMode::Isolated && !(v4 && self.flag(OPTION_INHIBIT_V4, false))
    }

    /// What the packet filter has to know; `None` for what is no bridge.
    pub fn firewall(&self, allow_direct_routing: bool) -> Option<BridgeRules> {
        if self.driver != Driver::Bridge || self.config_only {
            return None;
        }
        let side = |pool: &Pool| {
            let v4 = pool.subnet.is_v4();
            let source = self.options.get(if v4 { OPTION_HOST_V4 } else { OPTION_HOST_V6 }).and_then(|text| text.parse().ok());
            Side { subnet: pool.subnet.masked(), mode: self.gateway_mode(v4), source }
        };
        Some(BridgeRules {
            bridge: self.bridge_name(),
            sides: self.pools.iter().map(side).collect(),
            internal: self.internal,
            icc: self.icc(),
            masquerade: self.flag(OPTION_MASQUERADE, true),
            direct_routing: allow_direct_routing,
        })
    }

    /// The API's view; `containers` are the endpoints of running ones (empty in lists).
    pub fn view(&self, containers: Map<String, Value>) -> Value {
        let config: Vec<Value> = self
            .pools
            .iter()
            .map(|pool| {
                let mut entry = Map::new();
                entry.insert("Subnet".into(), json!(pool.subnet.to_string()));
                if let Some(range) = pool.range {
                    entry.insert("IPRange".into(), json!(range.to_string()));
                }
                if let Some(gateway) = pool.gateway {
                    entry.insert("Gateway".into(), json!(gateway.to_string()));
                }
                if !pool.auxiliary.is_empty() {
                    entry.insert("AuxiliaryAddresses".into(), json!(pool.auxiliary));
                }
                Value::Object(entry)
            })
            .collect();
        let has_addresses = !matches!(self.driver, Driver::Host | Driver::Null);
        json!({
            "Name": self.name,
            "Id": self.id,
            "Created": crate::timestamp::rfc3339(self.created_ns),
            "Scope": "local",
            "Driver": self.driver.name(),
            "EnableIPv4": self.ipv4,
            "EnableIPv6": self.ipv6,
            "IPAM": {
                "Driver": self.ipam_driver,
                "Options": self.ipam_options,
                "Config": if has_addresses { json!(config) } else { Value::Null },
            },
            "Internal": self.internal,
            "Attachable": self.attachable,
            "Ingress": false,
            "ConfigFrom": {"Network": self.config_from},
            "ConfigOnly": self.config_only,
            "Containers": containers,
            "Options": self.options,
            "Labels": self.labels,
        })
    }
}

/// Go's strconv.ParseBool.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

pub fn parse_gateway_mode(text: &str) -> Option<GatewayMode> {
    match text {
        "" | "nat" => Some(GatewayMode::Nat),
        "nat-unprotected" => Some(GatewayMode::NatUnprotected),
        "routed" => Some(GatewayMode::Routed),
        "isolated" => Some(GatewayMode::Isolated),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_the_references() {
        let network = Network {
            id: "0123456789abcdef".into(),
            name: "mynet".into(),
            ipam_driver: "default".into(),
            ipam_options: Some(Labels::new()),
            ipv4: true,
            pools: vec![Pool {
                subnet: "172.18.0.0/16".parse().unwrap(),
                range: None,
                gateway: Some("172.18.0.1".parse().unwrap()),
                auxiliary: BTreeMap::new(),
                chosen: false,
            }],
            ..Network::default()
        };
        let view = network.view(Map::new());
        assert_eq!(
            view["IPAM"],
            json!({"Driver": "default", "Options": {}, "Config": [{"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}]})
        );
        assert_eq!((network.bridge_name().as_str(), view["Driver"].as_str()), ("br-0123456789ab", Some("bridge")));
        let kept: Network = serde_json::from_str(&serde_json::to_string(&network).unwrap()).unwrap();
        assert_eq!(kept, network);
    }
}
