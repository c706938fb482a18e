//! What a container has used: raw numbers from the kernel's files, and the API's `ContainerStatsResponse` parts made of them.
//!
//! The numbers of v1 and v2 differ, and so do the answers; both are as the reference gives them.

use super::files;
use super::group::Cgroup;
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// User-space ticks per second in `cpuacct.stat` and `/proc/stat`: 100 on every architecture that Linux has.
const TICK_NS: u64 = 10_000_000;

/// One sample. `None` where the controller is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub v2: bool,
    pub cpu: Option<Cpu>,
    pub memory: Option<Memory>,
    pub pids: Option<Pids>,
    pub blkio: Option<Blkio>,
}

/// Nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub total: u64,
    /// v1 only: one per possible processor.
    pub per_cpu: Vec<u64>,
    pub kernel: u64,
    pub user: u64,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_time: u64,
}

/// Bytes, but for the event counters in `stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub usage: u64,
    /// v1 only.
    pub max_usage: u64,
    /// `u64::MAX` where v2 says "max".
    pub limit: u64,
    /// v1: refused charges. v2: times that the limit made the kernel look for a victim.
    pub failures: u64,
    /// `memory.stat` as the kernel gives it.
    pub stat: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    pub current: u64,
    /// 0 on v1 and `u64::MAX` on v2 without a limit, as the reference says it.
    pub limit: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blkio {
    pub bytes: Vec<BlkioEntry>,
    /// v1 only.
    pub operations: Vec<BlkioEntry>,
}

/// One device and direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlkioEntry {
    pub major: u64,
    pub minor: u64,
    /// "Read", "Write", "Sync", "Async", "Discard", "Total" on v1; "read", "write" on v2.
    pub op: String,
    pub value: u64,
}

/// The host's side of the sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCpu {
    /// Nanoseconds that all processors together have spent, idle time included.
    pub usage: u64,
    pub online: u32,
}

impl HostCpu {
    /// From `/proc/stat`.
    pub fn read() -> Result<HostCpu> {
        let text = fs::read_to_string("/proc/stat").map_err(|e| Error::io("read /proc/stat", &e))?;
        HostCpu::parse(&text).ok_or_else(|| Error::system("invalid number of cpu fields"))
    }

    fn parse(stat: &str) -> Option<HostCpu> {
        let mut host = HostCpu::default();
        for line in stat.lines().take_while(|line| line.starts_with("cpu")) {
            match line.strip_prefix("cpu ") {
                Some(fields) => {
                    // user nice system idle iowait irq softirq
                    let ticks: Option<Vec<u64>> = fields.split_whitespace().take(7).map(|n| n.parse().ok()).collect();
                    let ticks = ticks.filter(|ticks| ticks.len() == 7)?;
                    host.usage = ticks.iter().sum::<u64>().saturating_mul(TICK_NS);
                }
                None => host.online += 1,
            }
        }
        Some(host)
    }
}

/// The machine's memory in bytes (`MemTotal`): what a container without a limit is shown to have.
pub fn machine_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

impl Cgroup {
    /// Reads a sample: a dozen small files on v1, eight on v2.
    pub fn stats(&self) -> io::Result<Stats> {
        let v2 = self.facts().hierarchy.version.is_v2();
        let get = |controller: &str, file: &str| match self.read(controller, file) {
            Ok(text) => Ok(Some(text)),
            // A controller that is not mounted or not enabled.
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(e) => Err(e),
        };
        if v2 { Stats::v2(&get) } else { Stats::v1(&get) }
    }
}

type Get<'a> = &'a dyn Fn(&str, &str) -> io::Result<Option<String>>;

fn number(text: Option<String>) -> u64 {
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

impl Stats {
    fn v1(get: Get) -> io::Result<Stats> {
        let mut stats = Stats::default();
        if let Some(total) = get("cpuacct", "cpuacct.usage")? {
            let split = get("cpuacct", "cpuacct.stat")?.unwrap_or_default();
            let throttling = get("cpu", "cpu.stat")?.unwrap_or_default();
            let per_cpu = get("cpuacct", "cpuacct.usage_percpu")?.unwrap_or_default();
            stats.cpu = Some(Cpu {
                total: number(Some(total)),
                per_cpu: per_cpu.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
                kernel: files::keyed(&split, "system").unwrap_or(0).saturating_mul(TICK_NS),
                user: files::keyed(&split, "user").unwrap_or(0).saturating_mul(TICK_NS),
                periods: files::keyed(&throttling, "nr_periods").unwrap_or(0),
                throttled_periods: files::keyed(&throttling, "nr_throttled").unwrap_or(0),
                throttled_time: files::keyed(&throttling, "throttled_time").unwrap_or(0),
            });
        }
        if let Some(stat) = get("memory", "memory.stat")? {
            stats.memory = Some(Memory {
                usage: number(get("memory", "memory.usage_in_bytes")?),
                max_usage: number(get("memory", "memory.max_usage_in_bytes")?),
                limit: number(get("memory", "memory.limit_in_bytes")?),
                failures: number(get("memory", "memory.failcnt")?),
                stat: keys(&stat),
            });
        }
        if let Some(current) = get("pids", "pids.current")? {
            stats.pids = Some(Pids { current: number(Some(current)), limit: number(get("pids", "pids.max")?) });
        }
        // With what the container's own sub-cgroups did, where the kernel (4.20) sums that up.
        let sum = |file: &str| match get("blkio", &format!("{file}_recursive"))? {
            Some(text) => Ok(Some(text)),
            None => get("blkio", file),
        };
        if let Some(bytes) = sum("blkio.throttle.io_service_bytes")? {
            let operations = sum("blkio.throttle.io_serviced")?.unwrap_or_default();
            stats.blkio = Some(Blkio { bytes: v1_entries(&bytes), operations: v1_entries(&operations) });
        }
        Ok(stats)
    }

    fn v2(get: Get) -> io::Result<Stats> {
        let mut stats = Stats { v2: true, ..Stats::default() };
        if let Some(stat) = get("cpu", "cpu.stat")? {
            let ns = |key: &str| files::keyed(&stat, key).unwrap_or(0).saturating_mul(1000);
            stats.cpu = Some(Cpu {
                total: ns("usage_usec"),
                per_cpu: Vec::new(),
                kernel: ns("system_usec"),
                user: ns("user_usec"),
                periods: files::keyed(&stat, "nr_periods").unwrap_or(0),
                throttled_periods: files::keyed(&stat, "nr_throttled").unwrap_or(0),
                throttled_time: ns("throttled_usec"),
            });
        }
        let or_max = |text: Option<String>| text.and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX);
        if let Some(stat) = get("memory", "memory.stat")? {
            stats.memory = Some(Memory {
                usage: number(get("memory", "memory.current")?),
                max_usage: 0,
                limit: or_max(get("memory", "memory.max")?),
                failures: files::keyed(&get("memory", "memory.events")?.unwrap_or_default(), "oom").unwrap_or(0),
                stat: keys(&stat),
            });
        }
        if let Some(current) = get("pids", "pids.current")? {
            stats.pids = Some(Pids { current: number(Some(current)), limit: or_max(get("pids", "pids.max")?) });
        }
        if let Some(io) = get("io", "io.stat")? {
            stats.blkio = Some(Blkio { bytes: v2_entries(&io), operations: Vec::new() });
        }
        Ok(stats)
    }
}

/// A flat keyed file as a map.
fn keys(text: &str) -> BTreeMap<String, u64> {
    text.lines().filter_map(|line| line.split_once(' ')).filter_map(|(key, n)| Some((key.to_owned(), n.trim().parse().ok()?))).collect()
}

/// "8:0 Read 4096" lines; the last line, "Total 4096", names no device and is left out.
fn v1_entries(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut parts = line.split(' ');
        let (major, minor) = parts.next()?.split_once(':')?;
        let (op, value) = (parts.next()?, parts.next()?);
        Some(BlkioEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, op: op.to_owned(), value: value.parse().ok()? })
    };
    text.lines().filter_map(entry).collect()
}

/// "8:0 rbytes=4096 wbytes=0 rios=1 …" lines: two entries for each device.
fn v2_entries(text: &str) -> Vec<BlkioEntry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut parts = line.split(' ');
        let Some((Ok(major), Ok(minor))) =
            parts.next().and_then(|device| device.split_once(':')).map(|(major, minor)| (major.parse(), minor.parse()))
        else {
            continue;
        };
        let fields: Vec<&str> = parts.collect();
        for (op, key) in [("read", "rbytes="), ("write", "wbytes=")] {
            let value = fields.iter().find_map(|field| field.strip_prefix(key)?.parse().ok()).unwrap_or(0);
            entries.push(BlkioEntry { major, minor, op: op.to_owned(), value });
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::super::stats_json::{CpuStats, stats_json};
    use super::*;
    use serde_json::{Value, json};

    fn fixture(files: &'static [(&'static str, &'static str)]) -> impl Fn(&str, &str) -> io::Result<Option<String>> {
        move |_, file| Ok(files.iter().find(|(name, _)| *name == file).map(|(_, text)| (*text).to_owned()))
    }

    const V1: &[(&str, &str)] = &[
        ("cpuacct.usage", "5000000123\n"),
        ("cpuacct.usage_percpu", "2000000000 3000000123 \n"),
        ("cpuacct.stat", "user 100\nsystem 20\n"),
        ("cpu.stat", "nr_periods 7\nnr_throttled 3\nthrottled_time 9000\n"),
        ("memory.stat", "cache 4096\nrss 8192\nhierarchical_memsw_limit 5\nswap 1\ntotal_rss 8192\n"),
        ("memory.usage_in_bytes", "12288\n"),
        ("memory.max_usage_in_bytes", "20480\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.failcnt", "0\n"),
        ("pids.current", "2\n"),
        ("pids.max", "max\n"),
        ("blkio.throttle.io_service_bytes", "8:0 Read 4096\n8:0 Write 0\n8:0 Total 4096\nTotal 4096\n"),
        ("blkio.throttle.io_serviced", "Total 0\n"),
    ];

    const V2: &[(&str, &str)] = &[
        ("cpu.stat", "usage_usec 5000\nuser_usec 4000\nsystem_usec 1000\nnr_periods 2\nnr_throttled 1\nthrottled_usec 30\n"),
        ("memory.stat", "anon 4096\nfile 8192\nanon_thp 0\n"),
        ("memory.current", "12288\n"),
        ("memory.max", "max\n"),
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n"),
        ("pids.current", "1\n"),
        ("pids.max", "max\n"),
        ("io.stat", "8:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=0 dios=0\n"),
    ];

    fn answer(stats: &Stats) -> Value {
        let host = HostCpu { usage: 77, online: 2 };
        serde_json::to_value(stats_json(stats, host, 1 << 30, CpuStats::default())).unwrap()
    }

    #[test]
    fn v1_sample_in_the_references_shape() {
        let answer = answer(&Stats::v1(&fixture(V1)).unwrap());
        assert_eq!(
            answer["cpu_stats"],
            json!({"cpu_usage": {"total_usage": 5_000_000_123u64, "percpu_usage": [2_000_000_000u64, 3_000_000_123u64],
                "usage_in_kernelmode": 200_000_000, "usage_in_usermode": 1_000_000_000},
                "system_cpu_usage": 77, "online_cpus": 2,
                "throttling_data": {"periods": 7, "throttled_periods": 3, "throttled_time": 9000}})
        );
        let memory = &answer["memory_stats"];
        assert_eq!((&memory["limit"], &memory["max_usage"]), (&json!(1 << 30), &json!(20480)));
        assert!(memory.get("failcnt").is_none() && memory["stats"].get("swap").is_none());
        assert_eq!(memory["stats"].as_object().unwrap().len(), 32);
        assert_eq!(memory["stats"]["hierarchical_memsw_limit"], 5);
        assert_eq!(answer["pids_stats"], json!({"current": 2}));
        let read = json!({"major": 8, "minor": 0, "op": "Read", "value": 4096});
        assert_eq!(answer["blkio_stats"]["io_service_bytes_recursive"][0], read);
        assert_eq!(answer["blkio_stats"]["io_service_bytes_recursive"].as_array().unwrap().len(), 3);
        assert_eq!(answer["blkio_stats"]["io_serviced_recursive"], json!([]));
    }

    #[test]
    fn v2_sample_in_the_references_shape() {
        let answer = answer(&Stats::v2(&fixture(V2)).unwrap());
        let usage = json!({"total_usage": 5_000_000, "usage_in_kernelmode": 1_000_000, "usage_in_usermode": 4_000_000});
        assert_eq!(answer["cpu_stats"]["cpu_usage"], usage);
        assert_eq!(answer["cpu_stats"]["throttling_data"]["throttled_time"], 30_000);
        assert_eq!((&answer["memory_stats"]["limit"], &answer["memory_stats"]["failcnt"]), (&json!(1 << 30), &json!(2)));
        assert_eq!(answer["memory_stats"]["stats"].as_object().unwrap().len(), 31);
        assert_eq!(answer["pids_stats"], json!({"current": 1, "limit": u64::MAX}));
        assert_eq!(answer["blkio_stats"]["io_service_bytes_recursive"][1], json!({"major": 8, "minor": 0, "op": "write", "value": 512}));
        assert_eq!(answer["blkio_stats"]["io_serviced_recursive"], Value::Null);
    }

    #[test]
    fn nothing_mounted_gives_the_shape_of_a_stopped_container() {
        let answer = serde_json::to_value(super::super::stats_json::StatsJson::default()).unwrap();
        assert_eq!((&answer["pids_stats"], &answer["memory_stats"], &answer["storage_stats"]), (&json!({}), &json!({}), &json!({})));
        assert!(answer["cpu_stats"].get("system_cpu_usage").is_none());
        assert_eq!(answer["cpu_stats"]["throttling_data"]["periods"], 0);
    }

    #[test]
    fn the_hosts_time_is_the_sum_of_seven_fields() {
        let host = HostCpu::parse("cpu  1 2 3 4 5 6 7 100 200 300\ncpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 0 0 0 0 0 0 0\nintr 5\n").unwrap();
        assert_eq!(host, HostCpu { usage: 28 * TICK_NS, online: 2 });
        assert!(HostCpu::parse("cpu  1 2 3\n").is_none());
    }
}
