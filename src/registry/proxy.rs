//! HTTP_PROXY, HTTPS_PROXY, NO_PROXY, as Go's programs read them.

use std::net::IpAddr;

/// The proxy for a target, if one applies; `variable` looks up the environment.
pub fn for_target(variable: &dyn Fn(&str) -> Option<String>, https: bool, host: &str, port: u16) -> Option<String> {
    let either = |upper: &str| variable(upper).or_else(|| variable(&upper.to_lowercase())).filter(|value| !value.is_empty());
    let proxy = either(if https { "HTTPS_PROXY" } else { "HTTP_PROXY" })?;
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok();
    if host == "localhost" || address.is_some_and(|ip| ip.is_loopback()) {
        return None;
    }
    let excluded = either("NO_PROXY").unwrap_or_default();
    if excluded.split(',').any(|rule| matches(rule.trim(), &host, address, port)) {
        return None;
    }
    Some(if proxy.contains("://") { proxy } else { format!("http://{proxy}") })
}

fn matches(rule: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    let rule = rule.to_ascii_lowercase();
    if rule.is_empty() {
        return false;
    }
    if rule == "*" {
        return true;
    }
    if let Some(network) = Network::parse(&rule) {
        return address.is_some_and(|ip| network.contains(ip));
    }
    let (name, rule_port) = match rule.rsplit_once(':') {
        Some((name, digits)) if digits.parse::<u16>().is_ok() && !name.contains(':') => (name.to_owned(), digits.parse::<u16>().ok()),
        _ => (rule.clone(), None),
    };
    if rule_port.is_some_and(|p| p != port) {
        return false;
    }
    if let Ok(ip) = name.parse::<IpAddr>() {
        return address == Some(ip);
    }
    let name = name.trim_start_matches('*');
    match name.strip_prefix('.') {
        // ".x" excludes what is below x only
        Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        None => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// An address range such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    pub fn parse(text: &str) -> Option<Network> {
        let (base, bits) = text.split_once('/')?;
        let base: IpAddr = base.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        (bits <= if base.is_ipv4() { 32 } else { 128 }).then_some(Network { base, bits })
    }

    pub fn contains(self, ip: IpAddr) -> bool {
        fn number(ip: IpAddr) -> (u128, u32) {
            match ip {
                IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
                IpAddr::V6(v6) => (v6.to_bits(), 128),
            }
        }
        let ((base, width), (ip, other)) = (number(self.base), number(ip.to_canonical()));
        let shift = width.saturating_sub(u32::from(self.bits));
        width == other && base.checked_shr(shift).unwrap_or(0) == ip.checked_shr(shift).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusions() {
        for (no_proxy, host, port, used) in [
            ("", "r.example", 443, true),
            ("*", "r.example", 443, false),
            ("example", "r.example", 443, false),
            (".example", "example", 443, true),
            ("*.example", "r.example", 443, false),
            ("r.example:5000", "r.example", 443, true),
            ("r.example:443", "r.example", 443, false),
            ("10.0.0.0/8", "10.2.3.4", 443, false),
            ("10.0.0.0/8", "11.2.3.4", 443, true),
            ("a, 1.2.3.4 ", "1.2.3.4", 443, false),
            ("ample", "r.example", 443, true),
            ("", "localhost", 443, false),
            ("", "127.0.0.2", 443, false),
            ("", "[::1]", 443, false),
        ] {
            let env = |name: &str| match name {
                "https_proxy" => Some("p:3128".to_owned()),
                "NO_PROXY" => Some(no_proxy.to_owned()),
                _ => None,
            };
            let proxy = for_target(&env, true, host, port);
            assert_eq!(proxy.as_deref(), used.then_some("http://p:3128"), "{no_proxy} {host}");
            assert_eq!(for_target(&env, false, host, port), None);
        }
    }

    #[test]
    fn networks() {
        assert!(Network::parse("0.0.0.0/0").unwrap().contains("1.2.3.4".parse().unwrap()));
        assert!(Network::parse("fd00::/8").unwrap().contains("fd12::1".parse().unwrap()));
        assert!(!Network::parse("fd00::/8").unwrap().contains("1.2.3.4".parse().unwrap()));
        assert!(Network::parse("127.0.0.0/8").unwrap().contains("::ffff:127.0.0.1".parse().unwrap()));
        assert!(Network::parse("10.0.0.0/33").is_none());
        assert!(Network::parse("::/0").unwrap().contains("::1".parse().unwrap()));
    }
}
