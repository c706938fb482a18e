//! A container's `/etc/resolv.conf`: read from the host's, overridden, filtered, and written with the reference's comments.

use std::fmt::Write;
use std::net::IpAddr;

/// Where a container's embedded resolver listens.
pub const EMBEDDED: &str = "127.0.0.11";
/// A file larger than this is not read to its end, bytes.
pub const MAX_FILE: usize = 64 * 1024;
const FALLBACK_V4: [&str; 2] = ["8.8.8.8", "8.8.4.4"];
const FALLBACK_V6: [&str; 2] = ["2001:4860:4860::8888", "2001:4860:4860::8844"];

/// A name server, with the scope of a link-local one ("fe80::1%eth0").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub address: IpAddr,
    pub zone: String,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.address)?;
        if self.zone.is_empty() { Ok(()) } else { write!(f, "%{}", self.zone) }
    }
}

/// An upstream of the embedded resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub server: Server,
    /// Reached from the host's network namespace: it is the host's loopback, or of a family that the container lacks.
    pub from_host: bool,
}

/// What a file says, in the order in which it is written.
#[derive(Clone, Debug, Default)]
pub struct ResolvConf {
    source: String,
    servers: Vec<Server>,
    search: Vec<String>,
    options: Vec<String>,
    other: Vec<String>,
    invalid: Vec<String>,
    overrides: Vec<&'static str>,
    ndots_from: &'static str,
    transform: &'static str,
    used_default: bool,
    upstreams: Vec<Upstream>,
}

/// What the client or the daemon's configuration says instead of the host's file; empty lists leave it as it is.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub servers: Vec<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of the file at `source` (a path, for the comment).
    pub fn parse(text: &str, source: &str) -> ResolvConf {
        let mut conf = ResolvConf { source: source.to_string(), ..ResolvConf::default() };
        for line in text.lines() {
            conf.read_line(line);
        }
        if conf.option("ndots").is_some() {
            conf.ndots_from = "host";
        }
        conf
    }

    fn read_line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { return };
        if first.starts_with('#') || first.starts_with(';') {
            return;
        }
        let rest: Vec<String> = words.map(str::to_string).collect();
        match first {
            "nameserver" | "domain" | "search" | "options" if rest.is_empty() => {}
            "nameserver" => match server(&rest[0]) {
                Some(server) => self.servers.push(server),
                None => self.invalid.push(rest[0].clone()),
            },
            "domain" | "search" => self.search = rest,
            "options" => self.options.extend(rest),
            _ => self.other.push(line.to_string()),
        }
    }

    /// Applies overrides; a search list of "." means none.
    pub fn apply(&mut self, overrides: &Overrides) {
        if !overrides.servers.is_empty() {
            self.servers = overrides.servers.iter().filter_map(|s| server(s)).collect();
            self.overrides.push("nameservers");
        }
        if !overrides.search.is_empty() {
            self.search = overrides.search.iter().filter(|s| *s != ".").cloned().collect();
            self.overrides.push("search");
        }
        if !overrides.options.is_empty() {
            self.options.clone_from(&overrides.options);
            self.overrides.push("options");
            self.ndots_from = if self.option("ndots").is_some() { "override" } else { "" };
        }
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find_map(|option| {
            let (key, value) = option.split_once(':').unwrap_or((option, ""));
            (key == name).then_some(value)
        })
    }

    /// For the default bridge: what only the host can reach is dropped, and public servers stand in when nothing is left.
    pub fn for_default_bridge(&mut self, ipv6: bool) {
        self.transform = "legacy";
        if self.overrides.contains(&"nameservers") {
            return;
        }
        self.servers.retain(|server| !server.address.is_loopback() && (server.address.is_ipv4() || ipv6));
        if self.servers.is_empty() {
            self.servers = fallback(ipv6);
            self.used_default = true;
        }
    }

    /// For networks with the embedded resolver: it becomes the only server, the others its upstreams, which are returned.
    pub fn for_embedded(&mut self, ipv6: bool) -> Vec<Upstream> {
        self.transform = "internal resolver";
        let chosen = self.overrides.contains(&"nameservers");
        let servers = std::mem::take(&mut self.servers);
        self.upstreams = servers
            .into_iter()
            .map(|server| {
                // A server that was chosen for the container is the container's to reach, loopback or not.
                let host_only = server.address.is_loopback() || (server.address.is_ipv6() && !ipv6) || !server.zone.is_empty();
                Upstream { from_host: !chosen && host_only, server }
            })
            .collect();
        if self.upstreams.is_empty() {
            self.upstreams = fallback(ipv6).into_iter().map(|server| Upstream { server, from_host: false }).collect();
            self.used_default = true;
        }
        self.servers.extend(server(EMBEDDED));
        self.options.retain(|option| match option.split_once(':') {
            Some(("ndots", value)) => value.parse::<u32>().is_ok(),
            _ => option != "ndots",
        });
        if self.option("ndots").is_none() {
            self.options.push("ndots:0".into());
            self.ndots_from = "internal";
        }
        self.upstreams.clone()
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = String::from(
            "# Generated by Docker Engine.\n# This file can be edited; Docker Engine will not make further changes once it\n\
             # has been modified.\n\n",
        );
        // Writing to a String cannot fail.
        for server in &self.servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.search.is_empty() {
            let _ = writeln!(text, "search {}", self.search.join(" "));
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        for line in &self.other {
            let _ = writeln!(text, "{line}");
        }
        let transform = if self.transform.is_empty() { String::new() } else { format!(" ({})", self.transform) };
        let _ = writeln!(text, "\n# Based on host file: '{}'{transform}", self.source);
        if self.used_default {
            text.push_str("# Used default nameservers.\n");
        }
        if !self.upstreams.is_empty() {
            let list: Vec<String> =
                self.upstreams.iter().map(|u| if u.from_host { format!("host({})", u.server) } else { u.server.to_string() }).collect();
            let _ = writeln!(text, "# ExtServers: [{}]", list.join(" "));
        }
        if !self.invalid.is_empty() {
            let _ = writeln!(text, "# Invalid nameservers: [{}]", self.invalid.join(" "));
        }
        let _ = writeln!(text, "# Overrides: [{}]", self.overrides.join(" "));
        if !self.ndots_from.is_empty() {
            let _ = writeln!(text, "# Option ndots from: {}", self.ndots_from);
        }
        text
    }

    /// True when the only server is systemd-resolved's stub, whose real upstreams are in another file.
    pub fn is_systemd_stub(&self) -> bool {
        matches!(&self.servers[..], [only] if only.address == IpAddr::from([127, 0, 0, 53]))
    }

    /// The servers, for keeping default pools away from them.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }
}

fn fallback(ipv6: bool) -> Vec<Server> {
    FALLBACK_V4.iter().chain(FALLBACK_V6.iter().filter(|_| ipv6)).filter_map(|text| server(text)).collect()
}

fn server(text: &str) -> Option<Server> {
    let (address, zone) = text.split_once('%').unwrap_or((text, ""));
    let address: IpAddr = address.parse().ok()?;
    let zoned = text.contains('%');
    (!zoned || (address.is_ipv6() && !zone.is_empty())).then(|| Server { address, zone: zone.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str =
        "# c\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver x\noptions edns0\nsearch a.example b.example\nsortlist 1\n";

    #[test]
    fn the_default_bridge_loses_the_hosts_loopback() {
        let mut conf = ResolvConf::parse(HOST, "/etc/resolv.conf");
        conf.for_default_bridge(false);
        assert_eq!(
            conf.render(),
            "# Generated by Docker Engine.\n# This file can be edited; Docker Engine will not make further changes once it\n\
             # has been modified.\n\nnameserver 10.0.0.1\nsearch a.example b.example\noptions edns0\nsortlist 1\n\n\
             # Based on host file: '/etc/resolv.conf' (legacy)\n# Invalid nameservers: [x]\n# Overrides: []\n"
        );
        let mut conf = ResolvConf::parse("nameserver ::1\n", "/etc/resolv.conf");
        conf.for_default_bridge(true);
        assert_eq!(conf.servers().len(), 4);
        assert!(conf.render().contains("# Used default nameservers.\n"));
    }

    #[test]
    fn the_embedded_resolver_takes_over_the_servers() {
        let mut conf = ResolvConf::parse(HOST, "/etc/resolv.conf");
        let upstreams = conf.for_embedded(false);
        assert_eq!(upstreams.iter().map(|u| u.from_host).collect::<Vec<_>>(), [true, false]);
        let text = conf.render();
        assert!(text.contains("\nnameserver 127.0.0.11\nsearch a.example b.example\noptions edns0 ndots:0\n"), "{text}");
        assert!(text.ends_with(
            "# Based on host file: '/etc/resolv.conf' (internal resolver)\n# ExtServers: [host(127.0.0.53) 10.0.0.1]\n\
             # Invalid nameservers: [x]\n# Overrides: []\n# Option ndots from: internal\n"
        ));
    }

    #[test]
    fn overrides_win_and_are_named() {
        let mut conf = ResolvConf::parse(HOST, "/etc/resolv.conf");
        conf.apply(&Overrides { servers: vec!["127.0.0.1".into()], search: vec![".".into()], options: vec!["ndots:2".into()] });
        assert!(!conf.for_embedded(true)[0].from_host);
        let text = conf.render();
        assert!(text.contains("\nnameserver 127.0.0.11\noptions ndots:2\n"), "{text}");
        assert!(text.ends_with("# Overrides: [nameservers search options]\n# Option ndots from: override\n"), "{text}");
    }

    #[test]
    fn an_unusable_ndots_is_replaced() {
        for bad in ["ndots:x", "ndots", "ndots:-1"] {
            let mut conf = ResolvConf::parse(&format!("options {bad}\n"), "f");
            conf.for_embedded(false);
            assert!(conf.render().contains("\noptions ndots:0\n"));
        }
    }
}
