//! What this kernel's cgroups can limit: decides warnings at create and update, and the fields of `/info`.

use super::hierarchy::{Hierarchy, Version};
use serde::Serialize;
use std::fs;

/// The abilities that requests are checked against; the names follow the reference's `SysInfo`.
#[allow(clippy::struct_excessive_bools)] // it is a table of yes and no
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Support {
    pub memory_limit: bool,
    pub swap_limit: bool,
    pub memory_reservation: bool,
    pub oom_kill_disable: bool,
    pub memory_swappiness: bool,
    pub kernel_memory: bool,
    pub kernel_memory_tcp: bool,
    pub cpu_shares: bool,
    /// Period and quota.
    pub cpu_cfs: bool,
    pub cpu_realtime: bool,
    pub cpuset: bool,
    /// Usable processors, as the kernel lists them ("0-3,7").
    pub cpus: String,
    /// Usable memory nodes.
    pub mems: String,
    pub pids_limit: bool,
    pub blkio_weight: bool,
    pub blkio_weight_device: bool,
    /// v2 weights are BFQ's (`io.bfq.weight`), as there is no `io.weight`.
    pub bfq: bool,
    pub blkio_read_bps: bool,
    pub blkio_write_bps: bool,
    pub blkio_read_iops: bool,
    pub blkio_write_iops: bool,
    /// Device access can be denied: v1's devices tree, or v2's programs.
    pub devices: bool,
    pub cgroup_namespaces: bool,
    /// Processors that the daemon may run on.
    pub processors: u32,
}

/// The files that answer the questions; a trait, so that the answers can be tested without a kernel.
pub(crate) trait Files {
    fn exists(&self, path: &str) -> bool;
    fn read(&self, path: &str) -> Option<String>;
}

/// The host's own files.
pub(crate) struct HostFiles;

impl Files for HostFiles {
    fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(path).is_ok()
    }
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    }
}

impl Support {
    /// Asks the kernel. `sample` is a v2 cgroup that is not the top one and has its controllers enabled: the top lacks the limits' files.
    pub fn probe(hierarchy: &Hierarchy, sample: Option<&str>) -> Support {
        Support::ask(hierarchy, sample, &HostFiles)
    }

    pub(crate) fn ask(hierarchy: &Hierarchy, sample: Option<&str>, files: &dyn Files) -> Support {
        let mut support = match hierarchy.version {
            Version::V2 => Support::v2(hierarchy, sample, files),
            Version::V1 | Version::Hybrid => Support::v1(hierarchy, files),
        };
        support.cgroup_namespaces = files.exists("/proc/self/ns/cgroup");
        support.processors = allowed_processors(&files.read("/proc/self/status").unwrap_or_default());
        support
    }

    fn v1(hierarchy: &Hierarchy, files: &dyn Files) -> Support {
        let point = |controller: &str| hierarchy.tree_of(controller).map(|i| hierarchy.trees[i].point.as_str());
        let file = |controller: &str, name: &str| point(controller).is_some_and(|point| files.exists(&format!("{point}/{name}")));
        let line = |name: &str| point("cpuset").and_then(|point| files.read(&format!("{point}/{name}"))).unwrap_or_default();
        Support {
            memory_limit: point("memory").is_some(),
            swap_limit: file("memory", "memory.memsw.limit_in_bytes"),
            memory_reservation: file("memory", "memory.soft_limit_in_bytes"),
            oom_kill_disable: file("memory", "memory.oom_control"),
            memory_swappiness: file("memory", "memory.swappiness"),
            kernel_memory: file("memory", "memory.kmem.limit_in_bytes"),
            kernel_memory_tcp: file("memory", "memory.kmem.tcp.limit_in_bytes"),
            cpu_shares: file("cpu", "cpu.shares"),
            cpu_cfs: file("cpu", "cpu.cfs_quota_us"),
            cpu_realtime: file("cpu", "cpu.rt_period_us"),
            cpuset: point("cpuset").is_some(),
            cpus: line("cpuset.cpus"),
            mems: line("cpuset.mems"),
            pids_limit: point("pids").is_some(),
            blkio_weight: file("blkio", "blkio.weight"),
            blkio_weight_device: file("blkio", "blkio.weight_device"),
            blkio_read_bps: file("blkio", "blkio.throttle.read_bps_device"),
            blkio_write_bps: file("blkio", "blkio.throttle.write_bps_device"),
            blkio_read_iops: file("blkio", "blkio.throttle.read_iops_device"),
            blkio_write_iops: file("blkio", "blkio.throttle.write_iops_device"),
            devices: point("devices").is_some(),
            ..Support::default()
        }
    }

    fn v2(hierarchy: &Hierarchy, sample: Option<&str>, files: &dyn Files) -> Support {
        let Some(tree) = hierarchy.entered().first().map(|i| &hierarchy.trees[*i]) else { return Support::default() };
        let on = |controller: &str| tree.has(controller);
        let limit = |name: &str| sample.is_some_and(|dir| files.exists(&format!("{dir}/{name}")));
        let line = |name: &str| {
            let place = format!("{}{}/{name}", tree.point, hierarchy.base);
            files.read(&place).or_else(|| files.read(&format!("{}/{name}", tree.point))).unwrap_or_default()
        };
        // io.weight needs blk-iocost or BFQ in the kernel; the reference promises it wherever there is an io controller, and then fails the start.
        let weight = on("io") && (sample.is_none() || limit("io.weight") || limit("io.bfq.weight"));
        Support {
            memory_limit: on("memory"),
            swap_limit: on("memory") && if sample.is_some() { limit("memory.swap.max") } else { files.exists("/proc/swaps") },
            memory_reservation: on("memory"),
            cpu_shares: on("cpu"),
            cpu_cfs: on("cpu"),
            cpuset: on("cpuset"),
            cpus: if on("cpuset") { line("cpuset.cpus.effective") } else { String::new() },
            mems: if on("cpuset") { line("cpuset.mems.effective") } else { String::new() },
            pids_limit: on("pids"),
            blkio_weight: weight,
            blkio_weight_device: weight,
            bfq: on("io") && limit("io.bfq.weight") && !limit("io.weight"),
            blkio_read_bps: on("io"),
            blkio_write_bps: on("io"),
            blkio_read_iops: on("io"),
            blkio_write_iops: on("io"),
            devices: true,
            ..Support::default()
        }
    }

    /// The resource fields of `/info`.
    pub fn info(&self, version: Version, driver: &'static str) -> Info {
        Info {
            memory_limit: self.memory_limit,
            swap_limit: self.swap_limit,
            kernel_memory_tcp: self.kernel_memory_tcp,
            cpu_cfs_period: self.cpu_cfs,
            cpu_cfs_quota: self.cpu_cfs,
            cpu_shares: self.cpu_shares,
            cpu_set: self.cpuset,
            pids_limit: self.pids_limit,
            oom_kill_disable: self.oom_kill_disable,
            cgroup_driver: driver,
            cgroup_version: version.number(),
        }
    }

    /// The resource lines of `/info`'s Warnings, in the reference's order and words; those on networking come after them.
    pub fn warnings(&self, version: Version) -> Vec<String> {
        let v2 = version.is_v2();
        let lacking = [
            (self.memory_limit, "No memory limit support"),
            (self.swap_limit, "No swap limit support"),
            // Neither exists on v2, and no action of the user's would bring it.
            (self.kernel_memory_tcp || v2, "No kernel memory TCP limit support"),
            (self.oom_kill_disable || v2, "No oom kill disable support"),
            (self.cpu_cfs, "No cpu cfs quota support"),
            (self.cpu_cfs, "No cpu cfs period support"),
            (self.cpu_shares, "No cpu shares support"),
            (self.cpuset, "No cpuset support"),
            // Gone from v1 since Linux 5.0.
            (self.blkio_weight || !v2, "No io.weight support"),
            (self.blkio_weight_device || !v2, "No io.weight (per device) support"),
            (self.blkio_read_bps, if v2 { "No io.max (rbps) support" } else { "No blkio throttle.read_bps_device support" }),
            (self.blkio_write_bps, if v2 { "No io.max (wbps) support" } else { "No blkio throttle.write_bps_device support" }),
            (self.blkio_read_iops, if v2 { "No io.max (riops) support" } else { "No blkio throttle.read_iops_device support" }),
            (self.blkio_write_iops, if v2 { "No io.max (wiops) support" } else { "No blkio throttle.write_iops_device support" }),
        ];
        lacking.iter().filter(|(has, _)| !has).map(|(_, text)| format!("WARNING: {text}")).collect()
    }
}

/// `SystemInfo`'s fields about resources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(clippy::struct_excessive_bools)] // the API's own shape
pub struct Info {
    pub memory_limit: bool,
    pub swap_limit: bool,
    #[serde(rename = "KernelMemoryTCP", skip_serializing_if = "std::ops::Not::not")]
    pub kernel_memory_tcp: bool,
    pub cpu_cfs_period: bool,
    pub cpu_cfs_quota: bool,
    #[serde(rename = "CPUShares")]
    pub cpu_shares: bool,
    #[serde(rename = "CPUSet")]
    pub cpu_set: bool,
    pub pids_limit: bool,
    pub oom_kill_disable: bool,
    pub cgroup_driver: &'static str,
    pub cgroup_version: &'static str,
}

/// The number of processors in `Cpus_allowed` of a `/proc/PID/status`; 1 when it can't be read.
fn allowed_processors(status: &str) -> u32 {
    let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).unwrap_or_default();
    mask.chars().filter_map(|digit| digit.to_digit(16)).map(u32::count_ones).sum::<u32>().max(1)
}

#[cfg(test)]
mod tests {
    use super::super::hierarchy::tests::{V1_MOUNTS, V1_OWN, V2_MOUNTS};
    use super::*;

    struct Fixture(&'static [(&'static str, &'static str)]);

    impl Files for Fixture {
        fn exists(&self, path: &str) -> bool {
            self.read(path).is_some()
        }
        fn read(&self, path: &str) -> Option<String> {
            self.0.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
        }
    }

    #[test]
    fn v1_asks_the_mounted_trees() {
        let hierarchy = Hierarchy::parse(V1_MOUNTS, V1_OWN).unwrap();
        let files = Fixture(&[
            ("/sys/fs/cgroup/memory/memory.oom_control", ""),
            ("/sys/fs/cgroup/cpuset/cpuset.cpus", "0-3"),
            ("/proc/self/status", "Name:\tx\nCpus_allowed:\tf,0000000f\n"),
        ]);
        let support = Support::ask(&hierarchy, None, &files);
        assert!(support.memory_limit && support.oom_kill_disable && support.devices && support.pids_limit);
        assert!(!support.swap_limit && !support.cpu_cfs && !support.blkio_weight);
        assert_eq!((support.cpus.as_str(), support.processors), ("0-3", 8));
        let warnings = support.warnings(hierarchy.version);
        assert_eq!(warnings.first().map(String::as_str), Some("WARNING: No swap limit support"));
        assert!(!warnings.iter().any(|w| w.contains("io.weight")));
    }

    #[test]
    fn v2_asks_a_cgroup_below_the_top() {
        let mut hierarchy = Hierarchy::parse(V2_MOUNTS, "0::/\n").unwrap();
        hierarchy.trees[0].controllers = ["cpu", "memory", "io", "pids"].map(str::to_owned).to_vec();
        let files = Fixture(&[("/sys/fs/cgroup/docker/memory.swap.max", "")]);
        let support = Support::ask(&hierarchy, Some("/sys/fs/cgroup/docker"), &files);
        assert!(support.swap_limit && support.cpu_cfs && support.blkio_read_bps && support.devices);
        assert!(!support.blkio_weight && !support.oom_kill_disable && !support.cpuset);
        let expected = ["WARNING: No cpuset support", "WARNING: No io.weight support", "WARNING: No io.weight (per device) support"];
        assert_eq!(support.warnings(hierarchy.version), expected);
        let info = serde_json::to_value(support.info(hierarchy.version, "cgroupfs")).unwrap();
        assert_eq!((&info["CgroupVersion"], &info["CPUShares"]), (&"2".into(), &true.into()));
        assert!(info.get("KernelMemoryTCP").is_none());
    }
}
