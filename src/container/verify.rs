//! Checks of a container's configuration before anything is made, in the reference's words.

use super::config::{Config, HostConfig, MountSpec, RestartPolicy};
use super::signal;
use crate::error::{Error, Result};

/// Checks the portable part, and puts it into its normal form.
pub fn config(config: &mut Config) -> Result<()> {
    if !config.working_dir.is_empty() {
        // A relative one is the image's doing or the client's: refused as the reference refuses it.
        if !config.working_dir.starts_with('/') {
            return Err(Error::invalid(format!(
                "the working directory '{}' is invalid, it needs to be an absolute path",
                config.working_dir
            )));
        }
        config.working_dir = clean(&config.working_dir);
    }
    for pair in config.env.iter().flatten() {
        if pair.is_empty() || pair.starts_with('=') {
            return Err(Error::invalid(format!("invalid environment variable: {pair}")));
        }
    }
    if !config.stop_signal.is_empty() && signal::parse(&config.stop_signal).is_none() {
        return Err(Error::invalid(format!("invalid signal: {}", config.stop_signal)));
    }
    plain("hostname", &config.hostname)?;
    plain("domainname", &config.domainname)?;
    if config.hostname.len() > 64 {
        return Err(Error::invalid(format!("invalid hostname format: {}", config.hostname)));
    }
    for port in config.exposed_ports.keys() {
        port_spec(port)?;
    }
    if let Some(health) = &config.healthcheck {
        let durations = [
            ("Interval", health.interval),
            ("Timeout", health.timeout),
            ("StartPeriod", health.start_period),
            ("StartInterval", health.start_interval),
        ];
        for (name, ns) in durations {
            if ns != 0 && ns < 1_000_000 {
                return Err(Error::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
            }
        }
        if health.retries < 0 {
            return Err(Error::invalid("Retries in Healthcheck cannot be negative"));
        }
    }
    Ok(())
}

/// Checks the host's part.
pub fn host(host: &mut HostConfig, minor: u16) -> Result<()> {
    restart_policy(&host.restart_policy)?;
    if host.auto_remove && !matches!(host.restart_policy.name.as_str(), "" | "no") {
        return Err(Error::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    if !matches!(host.isolation.as_str(), "" | "default") {
        return Err(Error::invalid(format!("invalid isolation '{}' on linux", host.isolation)));
    }
    let resources = &host.resources;
    for (name, set) in [
        ("CPUCount", resources.cpu_count != 0),
        ("CPUPercent", resources.cpu_percent != 0),
        ("IOMaximumIOps", resources.io_maximum_iops != 0),
        ("IOMaximumBandwidth", resources.io_maximum_bandwidth != 0),
    ] {
        if set {
            return Err(Error::invalid(format!("invalid option: {name} is only supported on Windows")));
        }
    }
    if host.shm_size < 0 {
        return Err(Error::invalid("SHM size can not be less than 0"));
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Error::invalid(format!("Invalid value {}, range for oom score adj is [-1000, 1000]", host.oom_score_adj)));
    }
    modes(host)?;
    for extra in host.extra_hosts.iter().flatten() {
        plain("ExtraHosts", extra)?;
        let valid = extra.split_once([':', '=']).is_some_and(|(name, address)| {
            !name.is_empty() && (address == "host-gateway" || address.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok())
        });
        if !valid {
            return Err(Error::invalid(format!("bad format for add-host: {extra:?}")));
        }
    }
    for server in host.dns.iter().flatten() {
        if server.parse::<std::net::IpAddr>().is_err() {
            return Err(Error::invalid(format!("invalid IP address: {server}")));
        }
    }
    for text in host.dns_search.iter().chain(host.dns_options.iter()).flatten() {
        plain("Dns", text)?;
    }
    for (port, bindings) in host.port_bindings.iter().flatten() {
        port_spec(port)?;
        for binding in bindings.iter().flatten() {
            if !binding.host_ip.is_empty() && binding.host_ip.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err() {
                return Err(Error::invalid(format!("invalid IP address: {}", binding.host_ip)));
            }
            if !binding.host_port.is_empty() {
                range(&binding.host_port).ok_or_else(|| Error::invalid(format!("invalid port specification: {:?}", binding.host_port)))?;
            }
        }
    }
    for mount in host.mounts.iter().flatten() {
        mount_spec(mount)?;
    }
    log_config(host)?;
    let _ = minor;
    Ok(())
}

/// Checks a restart policy.
pub fn restart_policy(policy: &RestartPolicy) -> Result<()> {
    match policy.name.as_str() {
        "always" | "unless-stopped" | "no" if policy.maximum_retry_count > 0 => {
            Err(Error::invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'"))
        }
        "" if policy.maximum_retry_count != 0 => {
            Err(Error::invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'"))
        }
        _ if policy.maximum_retry_count < 0 => Err(Error::invalid(match policy.name.as_str() {
            "on-failure" => "invalid restart policy: maximum retry count cannot be negative",
            _ => "invalid restart policy: maximum retry count can only be used with 'on-failure' and cannot be negative",
        })),
        "" | "no" | "always" | "unless-stopped" | "on-failure" => Ok(()),
        other => Err(Error::invalid(format!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ))),
    }
}

/// Closed enumerations: what can't be understood is refused here, not at start.
fn modes(host: &HostConfig) -> Result<()> {
    let container = |mode: &str| mode.strip_prefix("container:").is_some_and(|name| !name.is_empty());
    let known = |mode: &str, words: &[&str]| words.contains(&mode);
    if !known(&host.pid_mode, &["", "host"]) && !container(&host.pid_mode) {
        return Err(Error::invalid(format!("invalid PID mode: {}", host.pid_mode)));
    }
    if !known(&host.ipc_mode, &["", "none", "private", "shareable", "host"]) && !container(&host.ipc_mode) {
        return Err(Error::invalid(format!("invalid IPC mode: {}", host.ipc_mode)));
    }
    if !known(&host.uts_mode, &["", "host"]) {
        return Err(Error::invalid(format!("invalid UTS mode: {}", host.uts_mode)));
    }
    if !known(&host.userns_mode, &["", "host"]) {
        return Err(Error::invalid("invalid user namespace mode"));
    }
    if !known(&host.cgroupns_mode, &["", "host", "private"]) {
        return Err(Error::invalid(format!("invalid cgroup namespace mode: {}", host.cgroupns_mode)));
    }
    if host.network_mode == "container:" {
        return Err(Error::invalid("Invalid network mode: invalid container format container:<name|id>"));
    }
    if container(&host.network_mode) && !host.uts_mode.is_empty() {
        return Err(Error::invalid("conflicting options: hostname and the network mode"));
    }
    Ok(())
}

fn mount_spec(mount: &MountSpec) -> Result<()> {
    let invalid = |why: String| Err(Error::invalid(format!("invalid mount config for type {:?}: {why}", mount.kind)));
    if !matches!(mount.kind.as_str(), "bind" | "volume" | "tmpfs" | "image") {
        return match mount.kind.as_str() {
            "npipe" | "cluster" => Err(Error::not_implemented(format!("mount type {} is not supported by this engine", mount.kind))),
            other => Err(Error::invalid(format!("mount type unknown: {other:?}"))),
        };
    }
    if mount.target.is_empty() {
        return invalid("field Target must not be empty".into());
    }
    if !mount.target.starts_with('/') {
        return invalid(format!("invalid mount path: '{}' mount path must be absolute", mount.target));
    }
    if clean(&mount.target) == "/" {
        return invalid("invalid specification: destination can't be '/'".into());
    }
    match mount.kind.as_str() {
        "bind" if mount.source.is_empty() => invalid("field Source must not be empty".into()),
        "bind" if !mount.source.starts_with('/') => invalid(format!("invalid mount path: '{}' mount path must be absolute", mount.source)),
        "tmpfs" if !mount.source.is_empty() => invalid("field Source must not be specified".into()),
        "image" if mount.source.is_empty() => invalid("field Source must not be empty".into()),
        kind => {
            let other = [
                ("BindOptions", mount.bind_options.is_some(), "bind"),
                ("VolumeOptions", mount.volume_options.is_some(), "volume"),
                ("TmpfsOptions", mount.tmpfs_options.is_some(), "tmpfs"),
                ("ImageOptions", mount.image_options.is_some(), "image"),
            ];
            match other.iter().find(|(_, set, of)| *set && *of != kind) {
                Some((name, ..)) => invalid(format!("field {name} must not be specified")),
                None => Ok(()),
            }
        }
    }
}

fn log_config(host: &HostConfig) -> Result<()> {
    let log = &host.log_config;
    match log.kind.as_str() {
        "" | "json-file" | "none" => {}
        "local" | "syslog" | "journald" | "gelf" | "fluentd" | "awslogs" | "splunk" | "gcplogs" | "etwlogs" => {
            return Err(Error::not_implemented(format!("log driver {} is not supported by this engine", log.kind)));
        }
        other => {
            return Err(Error::invalid(format!("error looking up logging plugin {other}: plugin \"{other}\" not found")));
        }
    }
    if matches!(log.kind.as_str(), "" | "json-file") {
        for key in log.config.iter().flatten().map(|(key, _)| key.as_str()) {
            let known =
                ["max-file", "max-size", "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size"];
            if !known.contains(&key) {
                return Err(Error::invalid(format!("unknown log opt '{key}' for json-file log driver")));
            }
        }
    }
    Ok(())
}

/// "80", "80/tcp", "8000-8010/udp".
fn port_spec(text: &str) -> Result<()> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol.to_ascii_lowercase().as_str(), "tcp" | "udp" | "sctp") {
        return Err(Error::invalid(format!("invalid port specification: invalid proto: {protocol}")));
    }
    match range(port) {
        Some(_) => Ok(()),
        None => Err(Error::invalid(format!("invalid port specification: {text:?}"))),
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let digits = |t: &str| if t.bytes().all(|b| b.is_ascii_digit()) { t.parse::<u16>().ok() } else { None };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (digits(first)?, digits(last)?);
    (first <= last).then_some((first, last))
}

/// No control bytes in what lands in a file that others read line by line.
fn plain(what: &str, text: &str) -> Result<()> {
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(format!("invalid {what}: {text:?} contains a control character")));
    }
    Ok(())
}

/// An absolute path without `.`, `..` and doubled slashes (Go's path.Clean).
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut HostConfig)) -> String {
        let mut value = HostConfig::default();
        change(&mut value);
        host(&mut value, 51).expect_err("refused").message
    }

    #[test]
    fn garbage_in_enumerations_is_refused() {
        assert_eq!(refused(|h| h.pid_mode = "nope".into()), "invalid PID mode: nope");
        assert!(refused(|h| h.restart_policy.name = "sometimes".into()).contains("unknown policy 'sometimes'"));
        assert!(refused(|h| h.isolation = "hyperv".into()).contains("invalid isolation"));
        assert!(refused(|h| h.dns = Some(vec!["1.1.1.1\n".into()])).contains("invalid IP address"));
        assert!(refused(|h| h.extra_hosts = Some(vec!["a:1.1.1.1\nb".into()])).contains("control character"));
    }

    #[test]
    fn log_drivers_that_are_not_there_are_refused_by_name() {
        assert_eq!(refused(|h| h.log_config.kind = "syslog".into()), "log driver syslog is not supported by this engine");
        assert!(refused(|h| h.log_config.kind = "nope".into()).contains("plugin \"nope\" not found"));
    }

    #[test]
    fn working_directories_are_absolute_and_clean() {
        let mut value = Config { working_dir: "/a/../b//c/".into(), ..Config::default() };
        config(&mut value).unwrap();
        assert_eq!(value.working_dir, "/b/c");
        value.working_dir = "rel".into();
        assert_eq!(config(&mut value).unwrap_err().message, "the working directory 'rel' is invalid, it needs to be an absolute path");
    }
}
