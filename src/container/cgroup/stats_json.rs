//! [`Stats`] in the API's shape: `cpu_stats`, `memory_stats`, `blkio_stats` and `pids_stats` of `ContainerStatsResponse`.
//!
//! What is left out and what is null follows the reference, as its clients compute percentages from exactly these fields.

use super::stats::{Blkio, BlkioEntry, Cpu, HostCpu, Memory, Pids, Stats};
use serde::Serialize;
use std::collections::BTreeMap;

/// `cpu_stats`; its default is the `precpu_stats` of a first sample.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuStats {
    pub cpu_usage: CpuUsage,
    #[serde(skip_serializing_if = "is_zero")]
    pub system_cpu_usage: u64,
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub online_cpus: u32,
    pub throttling_data: ThrottlingData,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    pub total_usage: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_usage: Vec<u64>,
    pub usage_in_kernelmode: u64,
    pub usage_in_usermode: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ThrottlingData {
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_time: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStats {
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max_usage: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stats: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "is_zero")]
    pub failcnt: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PidsStats {
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

/// The lists that a kernel does not have are null; on v1 those without an entry are empty lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlkioStats {
    pub io_service_bytes_recursive: Option<Vec<BlkioEntry>>,
    pub io_serviced_recursive: Option<Vec<BlkioEntry>>,
    pub io_queue_recursive: Option<Vec<BlkioEntry>>,
    pub io_service_time_recursive: Option<Vec<BlkioEntry>>,
    pub io_wait_time_recursive: Option<Vec<BlkioEntry>>,
    pub io_merged_recursive: Option<Vec<BlkioEntry>>,
    pub io_time_recursive: Option<Vec<BlkioEntry>>,
    pub sectors_recursive: Option<Vec<BlkioEntry>>,
}

/// The cgroup's part of one `ContainerStatsResponse`: flatten it into the answer between `preread` and `networks`; its default is a
/// container that does not run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StatsJson {
    pub pids_stats: PidsStats,
    pub blkio_stats: BlkioStats,
    pub num_procs: u32,
    pub storage_stats: StorageStats,
    pub cpu_stats: CpuStats,
    pub precpu_stats: CpuStats,
    pub memory_stats: MemoryStats,
}

/// Windows only: always `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StorageStats {}

/// Makes the answer's parts. `before` is the previous sample's `cpu_stats` (default for none), `machine_memory` in bytes.
pub fn stats_json(stats: &Stats, host: HostCpu, machine_memory: u64, before: CpuStats) -> StatsJson {
    StatsJson {
        pids_stats: stats.pids.map(|Pids { current, limit }| PidsStats { current, limit }).unwrap_or_default(),
        blkio_stats: stats.blkio.as_ref().map(|blkio| blkio_stats(blkio, stats.v2)).unwrap_or_default(),
        num_procs: 0,
        storage_stats: StorageStats {},
        cpu_stats: cpu_stats(stats.cpu.as_ref(), host),
        precpu_stats: before,
        memory_stats: stats.memory.as_ref().map(|memory| memory_stats(memory, stats.v2, machine_memory)).unwrap_or_default(),
    }
}

fn cpu_stats(cpu: Option<&Cpu>, host: HostCpu) -> CpuStats {
    let cpu = cpu.cloned().unwrap_or_default();
    CpuStats {
        cpu_usage: CpuUsage {
            total_usage: cpu.total,
            percpu_usage: cpu.per_cpu,
            usage_in_kernelmode: cpu.kernel,
            usage_in_usermode: cpu.user,
        },
        system_cpu_usage: host.usage,
        online_cpus: host.online,
        throttling_data: ThrottlingData {
            periods: cpu.periods,
            throttled_periods: cpu.throttled_periods,
            throttled_time: cpu.throttled_time,
        },
    }
}

fn blkio_stats(blkio: &Blkio, v2: bool) -> BlkioStats {
    if v2 {
        // A null where no device was touched, as the reference.
        let bytes = Some(blkio.bytes.clone()).filter(|bytes| !bytes.is_empty());
        return BlkioStats { io_service_bytes_recursive: bytes, ..BlkioStats::default() };
    }
    let none = || Some(Vec::new());
    BlkioStats {
        io_service_bytes_recursive: Some(blkio.bytes.clone()),
        io_serviced_recursive: Some(blkio.operations.clone()),
        io_queue_recursive: none(),
        io_service_time_recursive: none(),
        io_wait_time_recursive: none(),
        io_merged_recursive: none(),
        io_time_recursive: none(),
        sectors_recursive: none(),
    }
}

/// The keys of v1's `memory.stat` that the API shows, under the kernel's names but for the one of swap.
const V1_KEYS: [&str; 32] = [
    "cache",
    "rss",
    "rss_huge",
    "mapped_file",
    "dirty",
    "writeback",
    "pgpgin",
    "pgpgout",
    "pgfault",
    "pgmajfault",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
    "hierarchical_memory_limit",
    "hierarchical_memsw_limit",
    "total_cache",
    "total_rss",
    "total_rss_huge",
    "total_mapped_file",
    "total_dirty",
    "total_writeback",
    "total_pgpgin",
    "total_pgpgout",
    "total_pgfault",
    "total_pgmajfault",
    "total_inactive_anon",
    "total_active_anon",
    "total_inactive_file",
    "total_active_file",
    "total_unevictable",
];

/// As [`V1_KEYS`], for v2. Names that newer kernels have split (workingset_refault) stay, and are 0 there, as in the reference.
const V2_KEYS: [&str; 31] = [
    "anon",
    "file",
    "kernel_stack",
    "slab",
    "sock",
    "shmem",
    "file_mapped",
    "file_dirty",
    "file_writeback",
    "anon_thp",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
    "slab_reclaimable",
    "slab_unreclaimable",
    "pgfault",
    "pgmajfault",
    "workingset_refault",
    "workingset_activate",
    "workingset_nodereclaim",
    "pgrefill",
    "pgscan",
    "pgsteal",
    "pgactivate",
    "pgdeactivate",
    "pglazyfree",
    "pglazyfreed",
    "thp_fault_alloc",
    "thp_collapse_alloc",
];

fn memory_stats(memory: &Memory, v2: bool, machine_memory: u64) -> MemoryStats {
    let keys: &[&'static str] = if v2 { &V2_KEYS } else { &V1_KEYS };
    let limit = if memory.limit > machine_memory && machine_memory > 0 { machine_memory } else { memory.limit };
    MemoryStats {
        usage: memory.usage,
        max_usage: memory.max_usage,
        stats: keys.iter().map(|key| (*key, memory.stat.get(*key).copied().unwrap_or(0))).collect(),
        failcnt: memory.failures,
        limit,
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}
