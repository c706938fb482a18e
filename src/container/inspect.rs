//! A container in the API's shapes: inspect and list.

use super::age::human_duration;
use super::config::{EndpointSettings, PortMap};
use super::record::{Container, State, Status};
use crate::api::filters::Filters;
use crate::daemon::Daemon;
use crate::error::Result;
use crate::sys;
use crate::timestamp::{self, rfc3339};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

fn time_or_zero(ns: Option<i64>) -> String {
    ns.map_or_else(|| timestamp::ZERO.to_string(), rfc3339)
}

/// inspect's State.
fn state_json(container: &Container) -> Value {
    let State { status, pid, exit_code, error, oom_killed, started_ns, finished_ns } = &container.record.state;
    let mut value = json!({
        "Status": status.name(),
        "Running": container.record.state.is_running() || *status == Status::Restarting,
        "Paused": *status == Status::Paused,
        "Restarting": *status == Status::Restarting,
        "OOMKilled": oom_killed,
        "Dead": *status == Status::Dead,
        "Pid": pid,
        "ExitCode": exit_code,
        "Error": error,
        "StartedAt": time_or_zero(*started_ns),
        "FinishedAt": time_or_zero(*finished_ns),
    });
    if let Some(health) = container.health_json() {
        value["Health"] = health;
    }
    value
}

/// "Up 3 minutes", "Exited (0) 2 seconds ago": the Status of lists.
pub fn status_text(container: &Container, now_ns: i64) -> String {
    let state = &container.record.state;
    let since = |ns: Option<i64>| human_duration((now_ns - ns.unwrap_or(now_ns)) / 1_000_000_000);
    match state.status {
        Status::Running => format!("Up {}{}", since(state.started_ns), container.health_suffix()),
        Status::Paused => format!("Up {} (Paused)", since(state.started_ns)),
        Status::Restarting => format!("Restarting ({}) {} ago", state.exit_code, since(state.finished_ns)),
        Status::Removing => "Removal In Progress".into(),
        Status::Dead => "Dead".into(),
        Status::Created => "Created".into(),
        Status::Exited => match state.finished_ns {
            None => "Created".into(),
            finished => format!("Exited ({}) {} ago", state.exit_code, since(finished)),
        },
    }
}

impl Daemon {
    /// GET /containers/{id}/json.
    pub fn inspect_container(&self, container: &Container, minor: u16, size: bool) -> Value {
        let record = &container.record;
        let dir = self.container_dir(&record.id);
        let running = record.state.is_running();
        let has_file = |name: &str| dir.join(name).exists();
        let path = |name: &str| if has_file(name) { dir.join(name).to_string_lossy().into_owned() } else { String::new() };
        let json_log = matches!(record.host.log_config.kind.as_str(), "" | "json-file") && self.log_path(&record.id).exists();
        let execs: Vec<&str> = container.execs.iter().map(|id| &**id).filter(|id| self.exec_is_running(id)).collect();
        let mut value = json!({
            "Id": record.id,
            "Created": rfc3339(record.created_ns),
            "Path": record.path,
            "Args": record.args,
            "State": state_json(container),
            "Image": record.image,
            "ResolvConfPath": path("resolv.conf"),
            "HostnamePath": path("hostname"),
            "HostsPath": path("hosts"),
            "LogPath": if json_log { self.log_path(&record.id).to_string_lossy().into_owned() } else { String::new() },
            "Name": format!("/{}", record.name),
            "RestartCount": record.restart_count,
            "Driver": self.options.text("storage-driver"),
            "Platform": record.platform,
            "MountLabel": "",
            "ProcessLabel": "",
            "AppArmorProfile": record.apparmor,
            "ExecIDs": if execs.is_empty() { Value::Null } else { json!(execs) },
            "HostConfig": record.host,
            "GraphDriver": self.graph_driver(container),
            "Mounts": mounts(container),
            "Config": record.config,
            "NetworkSettings": self.network_settings(container, running),
        });
        if size {
            let (rw, root) = self.container_sizes(container);
            value["SizeRw"] = json!(rw);
            value["SizeRootFs"] = json!(root);
        }
        if minor >= 48 {
            value["ImageManifestDescriptor"] = Value::Null;
            if let Value::Object(map) = &mut value {
                map.remove("ImageManifestDescriptor");
            }
        }
        value
    }

    fn graph_driver(&self, container: &Container) -> Value {
        let dir = self.container_dir(&container.record.id);
        let lowers: Vec<String> =
            self.layer_dirs(&container.record).unwrap_or_default().iter().map(|dir| dir.to_string_lossy().into_owned()).collect();
        let mut lower = vec![self.data_root.join("init-layer").to_string_lossy().into_owned()];
        lower.extend(lowers);
        let mut data = BTreeMap::from([
            ("ID".to_string(), container.record.id.clone()),
            ("LowerDir".to_string(), lower.join(":")),
            ("UpperDir".to_string(), dir.join("upper").to_string_lossy().into_owned()),
            ("WorkDir".to_string(), dir.join("work").to_string_lossy().into_owned()),
        ]);
        if container.record.state.pid > 0 {
            // The root exists in the container's own mount namespace only; this way leads into it.
            data.insert("MergedDir".into(), format!("/proc/{}/root", container.record.state.pid));
        }
        json!({"Name": self.options.text("storage-driver"), "Data": data})
    }

    /// inspect's NetworkSettings.
    fn network_settings(&self, container: &Container, running: bool) -> Value {
        let record = &container.record;
        let networks = self.shown_networks(record);
        let first = networks.get(&record.host.network_mode).cloned().unwrap_or_default();
        let default = if record.host.network_mode == "bridge" { first } else { EndpointSettings::default() };
        let pid = record.state.pid;
        let key = if running && pid > 0 { format!("/proc/{pid}/ns/net") } else { String::new() };
        let ports = self.published_ports(container);
        json!({
            "Bridge": "",
            "SandboxID": if running { record.id.clone() } else { String::new() },
            "SandboxKey": key,
            "Ports": ports,
            "HairpinMode": false,
            "LinkLocalIPv6Address": "",
            "LinkLocalIPv6PrefixLen": 0,
            "SecondaryIPAddresses": Value::Null,
            "SecondaryIPv6Addresses": Value::Null,
            "EndpointID": default.endpoint_id,
            "Gateway": default.gateway,
            "GlobalIPv6Address": default.global_ipv6_address,
            "GlobalIPv6PrefixLen": default.global_ipv6_prefix_len,
            "IPAddress": default.ip_address,
            "IPPrefixLen": default.ip_prefix_len,
            "IPv6Gateway": default.ipv6_gateway,
            "MacAddress": default.mac_address,
            "Networks": networks,
        })
    }

    /// One line of GET /containers/json.
    fn summary(&self, container: &Container, minor: u16, size: bool, now_ns: i64) -> Value {
        let record = &container.record;
        let command = std::iter::once(&record.path).chain(&record.args).map(|arg| quoted(arg)).collect::<Vec<_>>().join(" ");
        let mut networks = Map::new();
        for (name, endpoint) in &self.shown_networks(record) {
            let mut shown = serde_json::to_value(endpoint).unwrap_or_default();
            if minor < 44
                && let Value::Object(map) = &mut shown
            {
                map.remove("DNSNames");
            }
            networks.insert(name.clone(), shown);
        }
        let mut value = json!({
            "Id": record.id,
            "Names": [format!("/{}", record.name)],
            "Image": self.image_shown(container),
            "ImageID": record.image,
            "Command": command,
            "Created": record.created_ns.div_euclid(1_000_000_000),
            "Ports": self.port_list(container),
            "Labels": record.config.labels.clone().unwrap_or_default(),
            "State": record.state.status.name(),
            "Status": status_text(container, now_ns),
            "HostConfig": {"NetworkMode": record.host.network_mode},
            "NetworkSettings": {"Networks": networks},
            "Mounts": mounts(container),
        });
        if size {
            let (rw, root) = self.container_sizes(container);
            value["SizeRw"] = json!(rw);
            value["SizeRootFs"] = json!(root);
        }
        value
    }

    /// The image as it was named; its id once the name means another image.
    fn image_shown(&self, container: &Container) -> String {
        let named = &container.record.config.image;
        match self.images.resolve(named) {
            Ok(image) if image.id.to_string() == container.record.image => named.clone(),
            _ => container.record.image.clone(),
        }
    }

    /// GET /containers/json.
    pub fn list_containers(&self, filters: &Filters, all: bool, limit: i64, size: bool, minor: u16) -> Result<Vec<Value>> {
        let now_ns = sys::time::realtime_ns();
        let selection = super::select::Selection::new(self, filters)?;
        let mut found: Vec<&Container> = self.containers.iter().filter(|container| selection.matches(self, container)).collect();
        found.sort_by_key(|container| std::cmp::Reverse(container.record.created_ns));
        let everything = all || limit > 0 || selection.names_states();
        let shown = found
            .into_iter()
            .filter(|container| everything || container.record.state.is_running() || container.record.state.status == Status::Restarting);
        let limit = usize::try_from(limit).ok().filter(|n| *n > 0).unwrap_or(usize::MAX);
        Ok(shown.take(limit).map(|container| self.summary(container, minor, size, now_ns)).collect())
    }

    /// Bytes of the upper directory, and of the whole file system. Zero until a worker has counted them.
    fn container_sizes(&self, container: &Container) -> (u64, u64) {
        let image = container.record.image.parse().ok().and_then(|id| self.images.get(id)).map_or(0, |image| self.images.size_of(image));
        (0, image)
    }

    /// inspect's Ports: what is exposed, and where it is published.
    fn published_ports(&self, container: &Container) -> PortMap {
        if !container.record.state.is_running() {
            return PortMap::new();
        }
        self.shown_ports(&container.record)
    }

    /// The list's Ports.
    fn port_list(&self, container: &Container) -> Vec<Value> {
        let mut list = Vec::new();
        for (port, bindings) in self.published_ports(container) {
            let (number, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
            let number: u16 = number.parse().unwrap_or(0);
            match bindings.filter(|b| !b.is_empty()) {
                None => list.push(json!({"PrivatePort": number, "Type": protocol})),
                Some(bindings) => list.extend(bindings.iter().map(|binding| {
                    json!({"IP": binding.host_ip, "PrivatePort": number, "PublicPort": binding.host_port.parse::<u16>().unwrap_or(0), "Type": protocol})
                })),
            }
        }
        list
    }
}

fn mounts(container: &Container) -> Vec<Value> {
    let shown = |mount: &super::record::MountPoint| {
        let mut value = serde_json::to_value(mount).unwrap_or_default();
        if let Value::Object(map) = &mut value {
            map.remove("Spec");
        }
        value
    };
    container.record.mounts.iter().map(shown).collect()
}

/// An argument with blanks is shown in quotes, as the reference shows it.
fn quoted(arg: &str) -> String {
    if arg.contains(' ') { format!("'{}'", arg.replace('\'', "\\'")) } else { arg.to_string() }
}
