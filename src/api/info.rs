//! GET /info: the engine, its host, and what it can do there.

use super::{Reply, Request};
use crate::container::record::Status;
use crate::container::security_opt;
use crate::daemon::Daemon;
use crate::error::Result;
use crate::http::Response;
use serde_json::{Map, Value, json};

/// A line of /proc/sys/kernel: uname(2)'s fields, where they need no call of our own.
pub fn kernel(what: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/kernel/{what}")).map(|text| text.trim().to_string()).unwrap_or_default()
}

fn memory_total() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<i64>().ok()).unwrap_or(0) * 1024
}

/// A field of /etc/os-release, as the reference shows it.
fn os_release(name: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").or_else(|_| std::fs::read_to_string("/usr/lib/os-release")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(|value| value.trim_matches(['"', '\'']).to_string())
}

/// The type of the file system under a path, from the mount that holds it.
fn backing_file_system(path: &std::path::Path) -> String {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let path = path.to_string_lossy();
    let under = |point: &str| point == "/" || *path == *point || path.strip_prefix(point).is_some_and(|rest| rest.starts_with('/'));
    let mounts = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.nth(1)?, words.next()?))
    });
    let longest = mounts.filter(|(point, _)| under(point)).max_by_key(|(point, _)| point.len());
    match longest.map(|(_, kind)| kind) {
        Some("ext4" | "ext3" | "ext2") => "extfs".into(),
        Some(kind) => kind.to_string(),
        None => "unknown".into(),
    }
}

/// The proxies of this process, their passwords hidden.
fn proxy(name: &str) -> String {
    let value = std::env::var(name.to_uppercase()).or_else(|_| std::env::var(name)).unwrap_or_default();
    match value.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?.1))) {
        Some((scheme, host)) => format!("{scheme}://xxxxx:xxxxx@{host}"),
        None => value,
    }
}

fn counts(daemon: &Daemon) -> [usize; 4] {
    let count = |wanted: &dyn Fn(Status) -> bool| daemon.containers.iter().filter(|c| wanted(c.record.state.status)).count();
    let running = count(&|status| matches!(status, Status::Running | Status::Restarting));
    let paused = count(&|status| status == Status::Paused);
    let all = daemon.containers.len();
    [all, running, paused, all - running - paused]
}

/// GET /info.
pub fn info(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let options = &daemon.options;
    let [all, running, paused, stopped] = counts(daemon);
    let driver = options.text("storage-driver");
    let runtime = json!({"path": "coracle", "status": {"org.opencontainers.runtime-spec.features": "{}"}});
    let insecure: Map<String, Value> = options
        .list("insecure-registry")
        .iter()
        .filter(|entry| !entry.contains('/'))
        .map(|host| (host.clone(), json!({"Name": host, "Mirrors": [], "Secure": false, "Official": false})))
        .collect();
    let mut index = Map::from_iter([(
        "docker.io".to_string(),
        json!({"Name": "docker.io", "Mirrors": options.list("registry-mirror"), "Secure": true, "Official": true}),
    )]);
    index.extend(insecure);
    let networks: Vec<&str> = vec!["bridge", "host", "ipvlan", "macvlan", "null"];
    let mut value = json!({
        "ID": daemon.id,
        "Containers": all, "ContainersRunning": running, "ContainersPaused": paused, "ContainersStopped": stopped,
        "Images": daemon.images.images().count(),
        "Driver": driver,
        "DriverStatus": [
            ["Backing Filesystem", backing_file_system(&daemon.data_root)],
            ["Supports d_type", "true"], ["Using metacopy", "false"], ["Native Overlay Diff", "true"], ["userxattr", "false"],
        ],
        "DockerRootDir": daemon.data_root,
        "Plugins": {"Volume": ["local"], "Network": networks, "Authorization": null, "Log": ["json-file", "none"]},
        "IPv4Forwarding": kernel("../net/ipv4/ip_forward") == "1",
        "Debug": options.flag("debug"),
        "NFd": std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        "NGoroutines": 1,
        "SystemTime": crate::timestamp::rfc3339(crate::sys::time::realtime_ns()),
        "LoggingDriver": options.text("log-driver"),
        "NEventsListener": daemon.events.subscriber_count(),
        "KernelVersion": kernel("osrelease"),
        "OperatingSystem": os_release("PRETTY_NAME").unwrap_or_else(|| "Linux".into()),
        "OSVersion": os_release("VERSION_ID").unwrap_or_default(),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": std::iter::once("::1/128").chain(std::iter::once("127.0.0.0/8")).map(str::to_string)
                .chain(options.list("insecure-registry").iter().filter(|entry| entry.contains('/')).cloned()).collect::<Vec<_>>(),
            "IndexConfigs": index,
            "Mirrors": options.list("registry-mirror"),
        },
    });
    let discovered: Vec<Value> = daemon.cdi_devices().into_iter().map(|id| json!({"Source": "cdi", "ID": id})).collect();
    let host = json!({
        "NCPU": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "MemTotal": memory_total(),
        "GenericResources": null,
        "HttpProxy": proxy("http_proxy"), "HttpsProxy": proxy("https_proxy"), "NoProxy": proxy("no_proxy"),
        "Name": kernel("hostname"),
        "Labels": options.list("label"),
        "ExperimentalBuild": false,
        "ServerVersion": crate::DOCKER_VERSION,
        "Runtimes": {"runc": runtime, "io.containerd.runc.v2": runtime, "coracle": runtime},
        "DefaultRuntime": options.text("default-runtime"),
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "", "RemoteManagers": null},
        "LiveRestoreEnabled": false,
        "Isolation": "",
        "InitBinary": "docker-init",
        "ContainerdCommit": {"ID": ""}, "RuncCommit": {"ID": ""}, "InitCommit": {"ID": ""},
        "SecurityOptions": security(daemon),
        "CDISpecDirs": daemon.cdi_directories(),
        "DiscoveredDevices": &discovered,
        "Warnings": null,
    });
    if let (Value::Object(all), Value::Object(rest)) = (&mut value, host) {
        all.extend(rest);
    }
    let mut warnings = Vec::new();
    if let Some(cgroups) = &daemon.cgroups {
        let facts = cgroups.facts();
        let fields = facts.support.info(facts.hierarchy.version, facts.driver.name());
        if let (Value::Object(all), Ok(Value::Object(fields))) = (&mut value, serde_json::to_value(fields)) {
            all.extend(fields);
        }
        warnings.extend(facts.support.warnings(facts.hierarchy.version));
    } else {
        warnings.push("WARNING: No cgroups: containers run without limits".to_string());
    }
    if daemon.listeners.iter().any(|listener| listener.tcp) {
        warnings.push("[DEPRECATION NOTICE]: API is accessible over TCP without TLS: whoever reaches it is root on this host".to_string());
    }
    if !warnings.is_empty() {
        value["Warnings"] = json!(warnings);
    }
    if request.minor < 42
        && let Value::Object(map) = &mut value
    {
        map.remove("CDISpecDirs");
    }
    if (request.minor < 50 || discovered.is_empty())
        && let Value::Object(map) = &mut value
    {
        map.remove("DiscoveredDevices");
    }
    Ok(Response::json(200, &value).into())
}

fn security(daemon: &Daemon) -> Vec<String> {
    let options = &daemon.options;
    security_opt::info(security_opt::Support {
        apparmor: daemon.apparmor,
        seccomp: Some(options.text("seccomp-profile")),
        // Labels are not applied.
        selinux: false,
        userns_remap: options.is_set("userns-remap"),
        cgroup_namespaces: daemon.cgroups.as_ref().is_some_and(|cgroups| cgroups.facts().hierarchy.version.is_v2()),
        no_new_privileges: options.flag("no-new-privileges"),
    })
}
