//! Where a repository's registry is reached: mirrors, the default registry's real host, insecure registries.

use super::proxy::Network;
use super::resolver::Names;
use crate::image::reference::{DEFAULT_DOMAIN, Reference};
use std::path::PathBuf;

/// The default registry's API host.
const DEFAULT_HOST: &str = "registry-1.docker.io";
/// The default registry's index: search, and what the CLI calls it at login.
pub const INDEX_HOST: &str = "index.docker.io";

/// The daemon's settings that concern registries.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URLs tried before the default registry.
    pub mirrors: Vec<String>,
    /// Hosts ("h:5000") and networks ("10.0.0.0/8") that may be spoken to without TLS or with any certificate.
    pub insecure: Vec<String>,
    pub certs_d: PathBuf,
    pub names: Names,
    /// `--max-concurrent-downloads`, `--max-concurrent-uploads`, `--max-download-attempts`.
    pub downloads: usize,
    pub uploads: usize,
    pub attempts: u32,
    pub user_agent: String,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            mirrors: Vec::new(),
            insecure: Vec::new(),
            certs_d: "/etc/docker/certs.d".into(),
            names: Names::default(),
            downloads: 3,
            uploads: 5,
            attempts: 5,
            user_agent: format!("docker/{} os/linux arch/{}", crate::DOCKER_VERSION, crate::image::config::host_architecture().0),
        }
    }
}

/// One place to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub https: bool,
    /// Host, and port when it is not the scheme's.
    pub host: String,
    /// A mirror's path before `/v2/`, without a trailing slash.
    pub prefix: String,
    /// A mirror gets no credentials and its failures fall through to the next endpoint.
    pub mirror: bool,
    /// Certificates are not checked.
    pub insecure: bool,
}

impl Endpoint {
    pub fn base(&self) -> String {
        format!("{}://{}{}", if self.https { "https" } else { "http" }, self.host, self.prefix)
    }
}

/// The endpoints of a registry by its name in references, in the order to try; `mirrors` for pulls only.
pub fn endpoints(domain: &str, settings: &Settings, mirrors: bool) -> Vec<Endpoint> {
    let mut out = Vec::new();
    if domain == DEFAULT_DOMAIN || domain == INDEX_HOST {
        if mirrors {
            out.extend(settings.mirrors.iter().filter_map(|url| mirror(url, settings)));
        }
        out.push(Endpoint { https: true, host: DEFAULT_HOST.into(), prefix: String::new(), mirror: false, insecure: false });
        return out;
    }
    let insecure = is_insecure(domain, settings);
    let endpoint = |https| Endpoint { https, host: domain.into(), prefix: String::new(), mirror: false, insecure };
    out.push(endpoint(true));
    if insecure {
        out.push(endpoint(false));
    }
    out
}

fn mirror(url: &str, settings: &Settings) -> Option<Endpoint> {
    let (https, rest) = match url.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        _ => return None,
    };
    let (host, prefix) = rest.split_once('/').map_or((rest, ""), |(h, p)| (h, p));
    let prefix = prefix.trim_end_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
    Some(Endpoint { https, host: host.into(), prefix, mirror: true, insecure: is_insecure(host, settings) })
}

/// Loopback, or named by the settings; a network is compared with the addresses that the host's name has.
pub fn is_insecure(host: &str, settings: &Settings) -> bool {
    let bare = host.rsplit_once(':').filter(|(h, port)| port.parse::<u16>().is_ok() && !h.is_empty()).map_or(host, |(h, _)| h);
    if settings.insecure.iter().any(|rule| rule.eq_ignore_ascii_case(host)) {
        return true;
    }
    let networks = settings.insecure.iter().filter_map(|rule| Network::parse(rule));
    let loopback = ["127.0.0.0/8", "::1/128"].into_iter().filter_map(Network::parse);
    let networks: Vec<Network> = networks.chain(loopback).collect();
    let addresses = settings.names.lookup(bare).unwrap_or_default();
    addresses.iter().any(|ip| networks.iter().any(|network| network.contains(*ip)))
}

/// The registry's name as `RepoInfo` and login know it.
pub fn registry_of(reference: &Reference) -> &str {
    reference.domain()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let names = Names { hosts: "/nonexistent".into(), resolv_conf: "/dev/null".into(), port: 1 };
        Settings {
            mirrors: vec!["https://m.example/sub/".into(), "http://127.0.0.1:5001".into(), "junk".into()],
            insecure: vec!["plain.example:5000".into(), "10.0.0.0/8".into()],
            names,
            ..Settings::default()
        }
    }

    #[test]
    fn mirrors_come_first_and_for_the_default_registry_only() {
        let bases: Vec<String> = endpoints("docker.io", &settings(), true).iter().map(Endpoint::base).collect();
        assert_eq!(bases, ["https://m.example/sub", "http://127.0.0.1:5001", "https://registry-1.docker.io"]);
        assert_eq!(endpoints("docker.io", &settings(), false).len(), 1);
    }

    #[test]
    fn insecure_registries_fall_back_to_http() {
        for (host, schemes) in
            [("plain.example:5000", 2), ("10.1.1.1", 2), ("10.1.1.1:80", 2), ("11.1.1.1:443", 1), ("localhost:5000", 2), ("[::1]:5000", 2)]
        {
            assert_eq!(endpoints(host, &settings(), true).len(), schemes, "{host}");
        }
    }
}
