//! Which containers a list's filters select.

use super::record::{Container, Status};
use crate::api::filters::Filters;
use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// The filters that lists of containers know.
pub const ACCEPTED: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// Checked filters, with what they refer to looked up.
pub struct Selection<'a> {
    filters: &'a Filters,
    before_ns: Option<i64>,
    since_ns: Option<i64>,
    exited: Vec<i32>,
    ancestors: Vec<String>,
}

impl<'a> Selection<'a> {
    pub fn new(daemon: &Daemon, filters: &'a Filters) -> Result<Selection<'a>> {
        filters.validate(ACCEPTED)?;
        for status in filters.get("status") {
            if !["created", "running", "paused", "restarting", "removing", "exited", "dead"].contains(&status.as_str()) {
                return Err(Error::invalid(format!(
                    "invalid value for container state ({status}): must be one of created, running, paused, restarting, removing, exited, dead"
                )));
            }
        }
        for health in filters.get("health") {
            if !["none", "starting", "healthy", "unhealthy"].contains(&health.as_str()) {
                return Err(Error::invalid(format!(
                    "invalid value for health status ({health}): must be one of none, starting, healthy, unhealthy"
                )));
            }
        }
        let mut exited = Vec::new();
        for code in filters.get("exited") {
            exited.push(code.parse().map_err(|_| Error::invalid(format!("invalid filter 'exited=[{code}]'")))?);
        }
        let created = |name: &str| -> Result<Option<i64>> {
            match filters.get(name).last() {
                None => Ok(None),
                Some(reference) => {
                    let id = daemon.containers.resolve(reference)?;
                    Ok(daemon.containers.get(&id).map(|container| container.record.created_ns))
                }
            }
        };
        let ancestors =
            filters.get("ancestor").iter().filter_map(|name| daemon.images.resolve(name).ok()).map(|image| image.id.to_string());
        Ok(Selection { filters, before_ns: created("before")?, since_ns: created("since")?, exited, ancestors: ancestors.collect() })
    }

    /// Whether states are asked for by name, so that stopped containers are listed too.
    pub fn names_states(&self) -> bool {
        self.filters.has("status") || self.filters.has("exited")
    }

    pub fn matches(&self, daemon: &Daemon, container: &Container) -> bool {
        let Selection { filters, before_ns, since_ns, exited, ancestors } = self;
        let record = &container.record;
        let state = &record.state;
        let name = |want: &String| {
            // The slash is part of the name that patterns see; plain text is looked for anywhere in it.
            let full = format!("/{}", record.name);
            match (want.strip_prefix('^'), want.strip_suffix('$')) {
                (Some(start), None) => full.starts_with(start) || record.name.starts_with(start),
                (None, Some(end)) => full.ends_with(end),
                (Some(start), Some(_)) => {
                    let exact = start.strip_suffix('$').unwrap_or(start);
                    full == exact || record.name == exact
                }
                (None, None) => full.contains(want.as_str()),
            }
        };
        filters.any("id", |want| record.id.starts_with(want.as_str()))
            && filters.any("name", name)
            && filters.labels("label", record.config.labels.as_ref())
            && filters.any("status", |want| state.status.name() == want)
            && (exited.is_empty() || (state.status == Status::Exited && state.finished_ns.is_some() && exited.contains(&state.exit_code)))
            && before_ns.is_none_or(|before| record.created_ns < before)
            && since_ns.is_none_or(|since| record.created_ns > since)
            && (filters.get("ancestor").is_empty() || ancestors.contains(&record.image) || self.descends(daemon, record))
            && filters.any("network", |want| {
                record.networks.iter().any(|(name, endpoint)| {
                    name == want || (!endpoint.network_id.is_empty() && endpoint.network_id.starts_with(want.as_str()))
                })
            })
            && filters.any("volume", |want| record.mounts.iter().any(|mount| mount.name == *want || mount.destination == *want))
            && filters.any("publish", |want| record.host.port_bindings.iter().flatten().any(|(port, _)| port_matches(port, want)))
            && filters.any("expose", |want| record.config.exposed_ports.keys().any(|port| port_matches(port, want)))
            && filters.any("health", |want| want == container.health_status())
            && filters.any("isolation", |want| want == "default" || want.is_empty())
            && filters.boolean("is-task").ok().flatten() != Some(true)
    }

    /// Whether the container's image was made from one of the named ones here.
    fn descends(&self, daemon: &Daemon, record: &super::record::Record) -> bool {
        let mut id = record.image.parse().ok();
        for _ in 0..128 {
            let Some(image) = id.and_then(|id| daemon.images.get(id)) else { return false };
            if self.ancestors.contains(&image.id.to_string()) {
                return true;
            }
            id = image.extra.parent;
        }
        false
    }
}

/// "80" means 80/tcp; "8000-8010" any port of the range.
fn port_matches(port: &str, want: &str) -> bool {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let (wanted, wanted_protocol) = want.split_once('/').unwrap_or((want, "tcp"));
    let (first, last) = wanted.split_once('-').unwrap_or((wanted, wanted));
    match (number.parse::<u16>(), first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(number), Ok(first), Ok(last)) => protocol == wanted_protocol && (first..=last).contains(&number),
        _ => false,
    }
}
