//! The daemon's settings: dockerd's flag names and daemon.json keys, from one table.

use serde_json::Value;
use std::collections::BTreeMap;

/// What a setting's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Flag,
    Int,
    /// Bytes with an optional unit (k, m, g).
    Bytes,
    /// May be given several times; a JSON list.
    List,
    /// `key=value`, several times; a JSON object of strings.
    Map,
}

/// One setting.
pub struct Setting {
    pub flag: &'static str,
    pub short: Option<char>,
    /// The key in daemon.json, "" for settings that only flags have.
    pub key: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub help: &'static str,
}

const fn setting(flag: &'static str, key: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Setting {
    Setting { flag, short: None, key, kind, default, help }
}

const fn short(short: char, mut setting: Setting) -> Setting {
    setting.short = Some(short);
    setting
}

/// Every setting there is, in the order of `--help`.
pub const SETTINGS: &[Setting] = &[
    setting("cgroup-parent", "cgroup-parent", Kind::Text, "", "Parent cgroup of all containers"),
    setting("config-file", "", Kind::Text, "/etc/docker/daemon.json", "Configuration file"),
    setting("data-root", "data-root", Kind::Text, "/var/lib/coracle", "Directory of images, containers, volumes"),
    short('D', setting("debug", "debug", Kind::Flag, "false", "Log at debug level")),
    setting("default-cgroupns-mode", "default-cgroupns-mode", Kind::Text, "", "Default cgroup namespace: host or private"),
    setting("default-ipc-mode", "default-ipc-mode", Kind::Text, "private", "Default IPC mode: shareable or private"),
    setting("default-runtime", "default-runtime", Kind::Text, "runc", "Default runtime's name"),
    setting("default-shm-size", "default-shm-size", Kind::Bytes, "64m", "Default size of /dev/shm"),
    setting("default-ulimit", "default-ulimits", Kind::Map, "", "Default ulimits: name=soft[:hard]"),
    setting("cdi-spec-dir", "cdi-spec-dirs", Kind::List, "", "Directories of CDI specs (default: /etc/cdi, /var/run/cdi)"),
    setting("exec-opt", "exec-opts", Kind::List, "", "Runtime options: native.cgroupdriver=cgroupfs|systemd"),
    setting("exec-root", "exec-root", Kind::Text, "/run/coracle", "Directory of runtime state"),
    short('G', setting("group", "group", Kind::Text, "docker", "Group of the Unix socket")),
    short('H', setting("host", "hosts", Kind::List, "", "Where to listen: unix://, tcp://, fd://")),
    setting("init", "init", Kind::Flag, "false", "Run an init in every container"),
    setting("label", "labels", Kind::List, "", "Labels of this engine: key=value"),
    setting("log-driver", "log-driver", Kind::Text, "json-file", "Default log driver"),
    short('l', setting("log-level", "log-level", Kind::Text, "info", "debug, info, warn, error, fatal")),
    setting("log-opt", "log-opts", Kind::Map, "", "Default log options: key=value"),
    setting("no-new-privileges", "no-new-privileges", Kind::Flag, "false", "Set no_new_privs in every container"),
    short('p', setting("pidfile", "pidfile", Kind::Text, "", "PID file (default: coracle.pid in the exec root)")),
    setting("seccomp-profile", "seccomp-profile", Kind::Text, "builtin", "Default seccomp profile: builtin, unconfined or a path"),
    setting("shutdown-timeout", "shutdown-timeout", Kind::Int, "15", "Seconds that containers get at an orderly stop"),
    setting("storage-driver", "storage-driver", Kind::Text, "overlay2", "overlay2 or vfs"),
    setting("userns-remap", "userns-remap", Kind::Text, "", "User and group of remapped user namespaces"),
    // Networks.
    setting("allow-direct-routing", "allow-direct-routing", Kind::Flag, "false", "Let other hosts route to containers' unpublished ports"),
    setting("bip", "bip", Kind::Text, "", "Address of the default bridge, CIDR"),
    short('b', setting("bridge", "bridge", Kind::Text, "", "Bridge of the default network; made when it does not exist; none: no network")),
    setting("default-address-pool", "default-address-pools", Kind::List, "", "Pools for networks: base=CIDR,size=N"),
    setting("default-gateway", "default-gateway", Kind::Text, "", "IPv4 gateway of the default bridge"),
    setting("default-gateway-v6", "default-gateway-v6", Kind::Text, "", "IPv6 gateway of the default bridge"),
    setting("dns", "dns", Kind::List, "", "Default DNS servers"),
    setting("dns-opt", "dns-opts", Kind::List, "", "Default DNS options"),
    setting("dns-search", "dns-search", Kind::List, "", "Default DNS search domains"),
    setting("fixed-cidr", "fixed-cidr", Kind::Text, "", "IPv4 range for containers on the default bridge"),
    setting("fixed-cidr-v6", "fixed-cidr-v6", Kind::Text, "", "IPv6 subnet of the default bridge"),
    setting("host-gateway-ip", "host-gateway-ips", Kind::List, "", "Addresses that host-gateway stands for"),
    setting("icc", "icc", Kind::Flag, "true", "Let containers on the default bridge reach one another"),
    setting("ip", "ip", Kind::Text, "0.0.0.0", "Default host address of published ports"),
    setting("ip-forward", "ip-forward", Kind::Flag, "true", "Turn on net.ipv4.ip_forward"),
    setting("ip-masq", "ip-masq", Kind::Flag, "true", "Masquerade what leaves the default bridge"),
    setting("ip6tables", "ip6tables", Kind::Flag, "true", "Write ip6tables rules"),
    setting("iptables", "iptables", Kind::Flag, "true", "Write iptables rules"),
    setting("ipv6", "ipv6", Kind::Flag, "false", "IPv6 on the default bridge"),
    setting("mtu", "mtu", Kind::Int, "0", "MTU of the default bridge"),
    setting("port-publishing", "port-publishing", Kind::Text, "nat", "How ports are published: nat or proxy"),
    setting("userland-proxy", "userland-proxy", Kind::Flag, "true", "Publish ports on loopback by a proxy"),
    // Registries.
    setting("insecure-registry", "insecure-registries", Kind::List, "", "Registries without TLS or with unverified TLS: host or CIDR"),
    setting("keep-blobs", "keep-blobs", Kind::Flag, "false", "Keep the compressed layers as they were pulled"),
    setting("max-concurrent-downloads", "max-concurrent-downloads", Kind::Int, "3", "Layers pulled at once"),
    setting("max-concurrent-uploads", "max-concurrent-uploads", Kind::Int, "5", "Layers pushed at once"),
    setting("max-download-attempts", "max-download-attempts", Kind::Int, "5", "Tries for each layer"),
    setting("registry-mirror", "registry-mirrors", Kind::List, "", "Mirrors of Docker Hub"),
];

/// The settings of this run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    values: BTreeMap<&'static str, Vec<String>>,
    /// Whether `--help` was asked for.
    pub help: bool,
}

fn find(flag: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.flag == flag)
}

impl Options {
    /// Flags first, then the configuration file; a setting in both is an error, as is an unknown key.
    pub fn load(args: &[String]) -> Result<Options, String> {
        let mut options = Options::from_flags(args)?;
        if options.help {
            return Ok(options);
        }
        let path = options.text("config-file").to_string();
        match std::fs::read(&path) {
            Ok(bytes) => options.merge_file(&path, &bytes)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !options.is_set("config-file") => {}
            Err(e) => return Err(format!("unable to configure the Docker daemon with file {path}: {}", crate::error::strerror(&e))),
        }
        if super::logger::level(options.text("log-level")).is_none() {
            return Err(format!("invalid logging level: {}", options.text("log-level")));
        }
        // Before anything is made: a daemon that can't listen must leave no bridge behind.
        let known = |host: &&String| host.split_once("://").is_none_or(|(scheme, _)| matches!(scheme, "unix" | "tcp" | "fd"));
        if let Some(host) = options.list("host").iter().find(|host| !known(host)) {
            return Err(format!("invalid bind address ({host}): should be unix://, tcp:// or fd://"));
        }
        if !matches!(options.text("log-driver"), "json-file" | "none") {
            return Err(format!("log driver {} is not supported by this engine", options.text("log-driver")));
        }
        Ok(options)
    }

    fn from_flags(args: &[String]) -> Result<Options, String> {
        let mut options = Options::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            if arg == "--help" || arg == "-h" {
                options.help = true;
                return Ok(options);
            }
            let (setting, inline) = match arg.strip_prefix("--") {
                Some(long) => {
                    let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_string())));
                    (find(name).ok_or_else(|| format!("unknown flag: --{name}"))?, value)
                }
                None => {
                    let mut letters = arg.strip_prefix('-').ok_or_else(|| format!("unexpected argument: {arg}"))?.chars();
                    let letter = letters.next().ok_or("unexpected argument: -")?;
                    let found = SETTINGS.iter().find(|s| s.short == Some(letter));
                    let setting = found.ok_or_else(|| format!("unknown shorthand flag: '{letter}' in {arg}"))?;
                    let value: String = letters.collect();
                    (setting, (!value.is_empty()).then(|| value.strip_prefix('=').unwrap_or(&value).to_string()))
                }
            };
            let value = match (setting.kind, inline) {
                (_, Some(value)) => value,
                (Kind::Flag, None) => "true".to_string(),
                (_, None) => rest.next().cloned().ok_or_else(|| format!("flag needs an argument: {arg}"))?,
            };
            options.put(setting, value)?;
        }
        Ok(options)
    }

    fn put(&mut self, setting: &'static Setting, value: String) -> Result<(), String> {
        let wrong = |what: &str| format!("invalid argument {value:?} for \"--{}\" flag: {what}", setting.flag);
        match setting.kind {
            Kind::Flag if !matches!(value.as_str(), "true" | "false" | "1" | "0") => return Err(wrong("not a boolean")),
            Kind::Int if value.parse::<i64>().is_err() => return Err(wrong("not a number")),
            Kind::Bytes if parse_bytes(&value).is_none() => return Err(wrong("invalid size")),
            Kind::Map if !value.contains('=') => return Err(wrong("must be key=value")),
            _ => {}
        }
        let values = self.values.entry(setting.flag).or_default();
        if !matches!(setting.kind, Kind::List | Kind::Map) {
            values.clear();
        }
        values.push(value);
        Ok(())
    }

    fn merge_file(&mut self, path: &str, bytes: &[u8]) -> Result<(), String> {
        let failed = |what: String| format!("unable to configure the Docker daemon with file {path}: {what}");
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let value: Value = serde_json::from_slice(bytes).map_err(|e| failed(e.to_string()))?;
        let Value::Object(map) = value else { return Err(failed("not a JSON object".into())) };
        let known = |key: &str| SETTINGS.iter().find(|s| !s.key.is_empty() && s.key == key);
        let unknown: Vec<&str> = map.keys().map(String::as_str).filter(|key| known(key).is_none()).collect();
        if !unknown.is_empty() {
            return Err(failed(format!("the following directives don't match any configuration option: {}", unknown.join(", "))));
        }
        let twice: Vec<&str> = map.keys().map(String::as_str).filter(|key| known(key).is_some_and(|s| self.is_set(s.flag))).collect();
        if !twice.is_empty() {
            return Err(failed(format!(
                "the following directives are specified both as a flag and in the configuration file: {}",
                twice.join(", ")
            )));
        }
        for (key, value) in &map {
            let Some(setting) = known(key) else { continue };
            for text in texts(setting.kind, value).ok_or_else(|| failed(format!("invalid value for {key}: {value}")))? {
                self.put(setting, text).map_err(&failed)?;
            }
        }
        Ok(())
    }

    /// Whether the setting was given, by flag or file.
    pub fn is_set(&self, flag: &str) -> bool {
        self.values.contains_key(flag)
    }

    /// The value as text, or the default.
    pub fn text(&self, flag: &str) -> &str {
        match self.values.get(flag).and_then(|values| values.last()) {
            Some(value) => value,
            None => find(flag).map_or("", |setting| setting.default),
        }
    }

    pub fn flag(&self, flag: &str) -> bool {
        matches!(self.text(flag), "true" | "1")
    }

    pub fn int(&self, flag: &str) -> i64 {
        self.text(flag).parse().unwrap_or(0)
    }

    pub fn bytes(&self, flag: &str) -> i64 {
        parse_bytes(self.text(flag)).unwrap_or(0)
    }

    pub fn list(&self, flag: &str) -> &[String] {
        self.values.get(flag).map_or(&[], Vec::as_slice)
    }

    /// `key=value` pairs.
    pub fn map(&self, flag: &str) -> BTreeMap<String, String> {
        self.list(flag).iter().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }
}

/// A JSON value as the texts that the flag would have been given.
fn texts(kind: Kind, value: &Value) -> Option<Vec<String>> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    };
    match (kind, value) {
        (Kind::List, Value::Array(list)) => list
            .iter()
            .map(|item| match item {
                Value::Object(fields) => {
                    let parts: Option<Vec<String>> = fields.iter().map(|(k, v)| Some(format!("{k}={}", scalar(v)?))).collect();
                    parts.map(|parts| parts.join(","))
                }
                other => scalar(other),
            })
            .collect(),
        (Kind::Map, Value::Object(map)) => map
            .iter()
            .map(|(key, value)| match value {
                Value::Object(limit) => {
                    let (soft, hard) = (limit.get("Soft")?, limit.get("Hard")?);
                    Some(format!("{key}={}:{}", scalar(soft)?, scalar(hard)?))
                }
                other => Some(format!("{key}={}", scalar(other)?)),
            })
            .collect(),
        (Kind::List | Kind::Map, _) => None,
        (_, value) => scalar(value).map(|text| vec![text]),
    }
}

/// Docker's sizes: a number with an optional unit b, k, m, g, t (powers of 1024), maybe followed by `b` or `ib`.
pub fn parse_bytes(text: &str) -> Option<i64> {
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: i64 = whole.parse().ok()?;
    let mut bytes = whole.checked_mul(1 << shift)?;
    if !fraction.is_empty() {
        let digits = &fraction[..fraction.len().min(6)];
        let scale = 10i64.pow(u32::try_from(digits.len()).ok()?);
        bytes = bytes.checked_add(digits.parse::<i64>().ok()?.checked_mul(1 << shift)? / scale)?;
    }
    Some(bytes)
}

/// The text of `coracle daemon --help`.
pub fn usage() -> String {
    let mut text = String::from("Usage:  coracle daemon [OPTIONS]\n\nA self-sufficient runtime for containers.\n\nOptions:\n");
    for setting in SETTINGS {
        let value = match setting.kind {
            Kind::Flag => "",
            Kind::Text => " string",
            Kind::Int => " int",
            Kind::Bytes => " bytes",
            Kind::List => " list",
            Kind::Map => " map",
        };
        let short = setting.short.map_or("    ".to_string(), |c| format!("-{c}, "));
        let default = if matches!(setting.default, "" | "false") { String::new() } else { format!(" (default {})", setting.default) };
        text.push_str(&format!("  {short}--{:<30} {}{default}\n", format!("{}{value}", setting.flag), setting.help));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Result<Options, String> {
        Options::from_flags(&args.iter().map(|a| a.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_take_dockerds_forms() {
        let options = flags(&["-H", "unix:///a", "--host=tcp://b:1", "-D", "--data-root", "/x", "-lwarn", "--icc=false"]).unwrap();
        assert_eq!(options.list("host"), ["unix:///a", "tcp://b:1"]);
        assert!(options.flag("debug") && !options.flag("icc") && options.flag("iptables"));
        assert_eq!((options.text("data-root"), options.text("log-level")), ("/x", "warn"));
        assert_eq!(flags(&["--nope"]).unwrap_err(), "unknown flag: --nope");
        assert!(flags(&["--mtu", "x"]).is_err() && flags(&["--mtu"]).is_err());
    }

    #[test]
    fn the_file_names_what_it_does_not_know() {
        let mut options = Options::default();
        let error = options.merge_file("f", br#"{"nope":1}"#).unwrap_err();
        assert!(error.contains("don't match any configuration option: nope"), "{error}");
        options
            .merge_file("f", br#"{"hosts":["a"],"debug":true,"default-ulimits":{"nofile":{"Name":"nofile","Hard":2,"Soft":1}}}"#)
            .unwrap();
        assert_eq!(
            (options.list("host"), options.flag("debug"), options.text("default-ulimit")),
            (&["a".to_string()][..], true, "nofile=1:2")
        );
        let twice = options.merge_file("f", br#"{"debug":false}"#).unwrap_err();
        assert!(twice.contains("both as a flag and in the configuration file: debug"), "{twice}");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("64m", Some(64 << 20)), ("1.5k", Some(1536)), ("10", Some(10)), ("1x", None), ("", None)] {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
    }
}
