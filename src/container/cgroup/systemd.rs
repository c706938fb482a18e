//! The systemd driver: a container's cgroup as a transient scope, asked of systemd over D-Bus (org.freedesktop.systemd1(5)).
//!
//! A scope must hold a process when it starts. A worker starts it around itself (`Bus::connect()?.start_scope(&scope, getpid())`) and
//! stays until the container's first process is in; then everything goes as without systemd: [`Cgroups::create`](super::Cgroups::create)
//! writes what the plan says into the directories that exist by now, and the child joins. When the last process is gone the unit ends
//! by itself. Limits go to systemd as properties too ([`Bus::set_properties`](super::Bus::set_properties), before the files are
//! written), or its next reload would write its own defaults over ours.

use super::limits::cpu_bandwidth;
use crate::container::config::Resources;
use crate::error::{Error, Result};
use std::fmt;

/// A unit to start: its name, and what systemd shall know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// "docker-<id>.scope".
    pub name: String,
    /// "system.slice".
    pub slice: String,
    /// In the order in which they are sent.
    pub properties: Vec<(&'static str, Property)>,
}

/// A property's value, in the D-Bus types that systemd uses for these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Property {
    Text(String),
    Flag(bool),
    /// Bytes, microseconds, weights; `u64::MAX` is "infinity".
    Number(u64),
    /// A bit mask of processors or memory nodes, lowest first.
    Mask(Vec<u8>),
    Pids(Vec<u32>),
}

impl Scope {
    pub(super) fn new(id: &str, slice: &str, v2: bool, resources: &Resources) -> Scope {
        let mut properties = vec![
            ("Description", Property::Text(format!("coracle container {id}"))),
            ("Slice", Property::Text(slice.to_owned())),
            ("Delegate", Property::Flag(true)),
            ("DefaultDependencies", Property::Flag(false)),
            // A scope whose process was killed counts as failed, and would stay.
            ("CollectMode", Property::Text("inactive-or-failed".to_owned())),
        ];
        let accounting = if v2 { "IOAccounting" } else { "BlockIOAccounting" };
        for name in ["MemoryAccounting", "CPUAccounting", "TasksAccounting", accounting] {
            properties.push((name, Property::Flag(true)));
        }
        properties.extend(limits(v2, resources));
        Scope { name: format!("docker-{id}.scope"), slice: slice.to_owned(), properties }
    }
}

/// The limits that systemd keeps for a unit; the others are written to the files alone.
pub fn limits(v2: bool, r: &Resources) -> Vec<(&'static str, Property)> {
    let mut list = Vec::new();
    let mut number = |name: &'static str, value: i64| {
        // -1 is the API's "unlimited".
        list.push((name, Property::Number(u64::try_from(value).unwrap_or(u64::MAX))));
    };
    if r.memory > 0 {
        number(if v2 { "MemoryMax" } else { "MemoryLimit" }, r.memory);
    }
    if v2 && r.memory_reservation > 0 {
        number("MemoryLow", r.memory_reservation);
    }
    if v2 && r.memory_swap > 0 {
        number("MemorySwapMax", r.memory_swap.saturating_sub(r.memory).max(0));
    }
    if r.cpu_shares > 0 {
        match v2 {
            true => number("CPUWeight", super::limits::cpu_weight(r.cpu_shares)),
            false => number("CPUShares", r.cpu_shares),
        }
    }
    let (period, quota) = cpu_bandwidth(r);
    if let Some(period) = period {
        number("CPUQuotaPeriodUSec", period);
    }
    if let Some(quota) = quota {
        number("CPUQuotaPerSecUSec", per_second(quota, period));
    }
    if let Some(limit) = r.pids_limit.filter(|limit| *limit != 0) {
        number("TasksMax", limit);
    }
    if v2 {
        for (name, text) in [("AllowedCPUs", &r.cpuset_cpus), ("AllowedMemoryNodes", &r.cpuset_mems)] {
            if let Some(mask) = mask(text) {
                list.push((name, Property::Mask(mask)));
            }
        }
    }
    list
}

/// Microseconds of processor time per second; systemd keeps hundredths, so that they are rounded up. -1 is unlimited.
fn per_second(quota_us: i64, period_us: Option<i64>) -> i64 {
    if quota_us <= 0 {
        return -1;
    }
    let period = i128::from(period_us.filter(|period| *period > 0).unwrap_or(100_000));
    let exact = i128::from(quota_us) * 1_000_000 / period;
    i64::try_from((exact + 9_999) / 10_000 * 10_000).unwrap_or(i64::MAX)
}

/// "0-2,4" as a bit mask; `None` when empty or not such a list.
fn mask(text: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for range in super::validate::number_list(text, 8192).ok()? {
        for n in range {
            let byte = usize::try_from(n / 8).ok()?;
            mask.resize(mask.len().max(byte + 1), 0u8);
            *mask.get_mut(byte)? |= 1 << (n % 8);
        }
    }
    (!mask.is_empty()).then_some(mask)
}

/// Where a slice lies below every mount point: "a-b.slice" is "/a.slice/a-b.slice" (systemd.slice(5)). The reference's words for others.
pub fn slice_path(slice: &str) -> Result<String> {
    let bad = || Error::invalid("cgroup-parent for systemd cgroup should be a valid slice named as \"xxx.slice\"");
    let name = slice.strip_suffix(".slice").filter(|name| !name.is_empty()).ok_or_else(bad)?;
    if name == "-" {
        return Ok(String::new());
    }
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.:\\@".contains(&b));
    if slice.len() > 255 || !name.split('-').all(plain) {
        return Err(bad());
    }
    let mut path = String::new();
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push('/');
        path.push_str(&name[..end]);
        path.push_str(".slice");
    }
    Ok(path)
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start {} in {}", self.name, self.slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_nest_by_their_dashes() {
        assert_eq!(slice_path("system.slice").unwrap(), "/system.slice");
        assert_eq!(slice_path("a-b-c.slice").unwrap(), "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(slice_path("-.slice").unwrap(), "");
        for bad in ["", ".slice", "/docker", "a--b.slice", "-a.slice", "a/b.slice", "a-.slice", "a\n.slice", "../x.slice"] {
            assert!(slice_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_become_properties() {
        let r = Resources {
            memory: 100,
            memory_swap: 150,
            nano_cpus: 333_000_000,
            pids_limit: Some(-1),
            cpuset_cpus: "0-2,9".into(),
            ..Resources::default()
        };
        let v2 = limits(true, &r);
        let of = |name: &str| v2.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
        assert_eq!(of("MemoryMax"), Some(Property::Number(100)));
        assert_eq!(of("MemorySwapMax"), Some(Property::Number(50)));
        assert_eq!(of("CPUQuotaPerSecUSec"), Some(Property::Number(340_000)));
        assert_eq!(of("TasksMax"), Some(Property::Number(u64::MAX)));
        assert_eq!(of("AllowedCPUs"), Some(Property::Mask(vec![0b111, 0b10])));
        assert!(limits(true, &Resources::default()).is_empty());
    }
}
