//! Checks `Resources` against what the kernel can do, in the reference's words: refusals, warnings, and what is discarded with them.

use super::plan::{self, Driver, Facts};
use super::support::Support;
use super::{devices, systemd};
use crate::container::config::{HostConfig, Resources, Ulimit};
use crate::error::{Error, Result};
use std::ops::RangeInclusive;

/// Bytes; room for what starts a container at all.
const MIN_MEMORY: i64 = 6 << 20;

/// Clears what this kernel can't do and says so in the warnings; refuses what is wrong. At `update`, absent values mean "as before".
pub fn resources(r: &mut Resources, support: &Support, update: bool) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    limits_alone(r, support)?;
    // The command line's way to say "unset".
    if r.memory_swappiness == Some(-1) {
        r.memory_swappiness = None;
    }
    memory(r, support, update, &mut warnings)?;
    processors(r, support, &mut warnings)?;
    cpuset(r, support, &mut warnings)?;
    blkio(r, support, &mut warnings)?;
    Ok(warnings)
}

/// The rest of HostConfig that concerns the sandbox's limits: out of range or malformed is refused here, at create, and not at start.
pub fn host_config(host: &HostConfig, facts: &Facts) -> Result<()> {
    if host.shm_size < 0 {
        return Err(Error::invalid("SHM size can not be less than 0"));
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Error::invalid(format!("Invalid value {}, range for oom score adj is [-1000, 1000]", host.oom_score_adj)));
    }
    if !host.resources.cgroup_parent.is_empty() {
        match facts.driver {
            Driver::Cgroupfs => drop(plan::clean_parent(&host.resources.cgroup_parent)?),
            Driver::Systemd => drop(systemd::slice_path(&host.resources.cgroup_parent)?),
        }
    }
    devices::check(host)?;
    ulimits(host.resources.ulimits.as_deref().unwrap_or_default())
}

/// What create fills in before the checks: shares within the kernel's range, twice the memory as memory and swap, a definite OomKillDisable.
pub fn adapt(r: &mut Resources, adjust_cpu_shares: bool) {
    // Before API 1.19 shares out of range were silently moved into it.
    if adjust_cpu_shares && r.cpu_shares > 0 {
        r.cpu_shares = r.cpu_shares.clamp(2, 262_144);
    }
    if r.memory > 0 && r.memory_swap == 0 {
        r.memory_swap = r.memory.saturating_mul(2);
    }
    if r.oom_kill_disable.is_none() {
        r.oom_kill_disable = Some(false);
    }
}

/// The checks that the reference makes before it knows of any container.
fn limits_alone(r: &Resources, support: &Support) -> Result<()> {
    if r.io_maximum_bandwidth != 0 {
        return Err(Error::invalid("invalid option: QoS maximum bandwidth configuration is not supported on linux"));
    }
    if r.io_maximum_iops != 0 {
        return Err(Error::invalid("invalid option: QoS maximum IOPs configuration is not supported on linux"));
    }
    if (r.cpu_realtime_period != 0 || r.cpu_realtime_runtime != 0) && !support.cpu_realtime {
        return Err(Error::invalid("kernel does not support CPU real-time scheduler"));
    }
    if r.cpu_realtime_period != 0 && r.cpu_realtime_runtime > r.cpu_realtime_period {
        return Err(Error::invalid("cpu real-time runtime cannot be higher than cpu real-time period"));
    }
    if r.cpu_shares < 0 {
        return Err(Error::invalid(format!("invalid CPU shares ({}): value must be a positive integer", r.cpu_shares)));
    }
    Ok(())
}

fn memory(r: &mut Resources, support: &Support, update: bool, warnings: &mut Vec<String>) -> Result<()> {
    let mut warn = |text: &str| warnings.push(text.to_owned());
    if r.memory != 0 && r.memory < MIN_MEMORY {
        return Err(Error::invalid("Minimum memory limit allowed is 6MB"));
    }
    if r.memory > 0 && !support.memory_limit {
        warn("Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.");
        r.memory = 0;
        r.memory_swap = -1;
    }
    if r.memory > 0 && r.memory_swap != -1 && !support.swap_limit {
        warn("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.");
        r.memory_swap = -1;
    }
    if r.memory > 0 && r.memory_swap > 0 && r.memory_swap < r.memory {
        return Err(Error::invalid("Minimum memoryswap limit should be larger than memory limit, see usage"));
    }
    if r.memory == 0 && r.memory_swap > 0 && !update {
        return Err(Error::invalid("You should always set the Memory limit when using Memoryswap limit, see usage"));
    }
    if r.memory_swappiness.is_some() && !support.memory_swappiness {
        warn("Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.");
        r.memory_swappiness = None;
    }
    if let Some(value) = r.memory_swappiness.filter(|value| !(0..=100).contains(value)) {
        return Err(Error::invalid(format!("Invalid value: {value}, valid memory swappiness range is 0-100")));
    }
    if r.memory_reservation > 0 && !support.memory_reservation {
        warn("Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.");
        r.memory_reservation = 0;
    }
    if r.memory_reservation > 0 && r.memory_reservation < MIN_MEMORY {
        return Err(Error::invalid("Minimum memory reservation allowed is 6MB"));
    }
    if r.memory > 0 && r.memory_reservation > 0 && r.memory < r.memory_reservation {
        return Err(Error::invalid("Minimum memory limit can not be less than memory reservation limit, see usage"));
    }
    if r.kernel_memory > 0 && !support.kernel_memory {
        warn("Your kernel does not support kernel memory limit capabilities or the cgroup is not mounted. Limitation discarded.");
        r.kernel_memory = 0;
    }
    if r.kernel_memory > 0 && r.kernel_memory < MIN_MEMORY {
        return Err(Error::invalid("Minimum kernel memory limit allowed is 6MB"));
    }
    if !support.oom_kill_disable {
        // No point in warning those who want the killer anyway.
        if r.oom_kill_disable == Some(true) {
            warn("Your kernel does not support OomKillDisable. OomKillDisable discarded.");
        }
        r.oom_kill_disable = None;
    }
    if r.oom_kill_disable == Some(true) && r.memory == 0 {
        warn(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.",
        );
    }
    if !support.pids_limit {
        if r.pids_limit.is_some_and(|limit| limit > 0) {
            warn("Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.");
        }
        r.pids_limit = None;
    }
    Ok(())
}

fn processors(r: &mut Resources, support: &Support, warnings: &mut Vec<String>) -> Result<()> {
    if r.nano_cpus > 0 && r.cpu_period > 0 {
        return Err(Error::invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set"));
    }
    if r.nano_cpus > 0 && r.cpu_quota > 0 {
        return Err(Error::invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set"));
    }
    if r.nano_cpus > 0 && !support.cpu_cfs {
        let text = "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted";
        return Err(Error::invalid(text));
    }
    let processors = support.processors;
    if r.nano_cpus < 0 || r.nano_cpus > i64::from(processors) * 1_000_000_000 {
        let text = format!("Range of CPUs is from 0.01 to {processors}.00, as there are only {processors} CPUs available");
        return Err(Error::invalid(text));
    }
    if r.cpu_shares > 0 && !support.cpu_shares {
        warnings.push("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.".to_owned());
        r.cpu_shares = 0;
    }
    if (r.cpu_period != 0 || r.cpu_quota != 0) && !support.cpu_cfs {
        warnings.push("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.".to_owned());
        (r.cpu_period, r.cpu_quota) = (0, 0);
    }
    if r.cpu_period != 0 && !(1_000..=1_000_000).contains(&r.cpu_period) {
        return Err(Error::invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"));
    }
    if r.cpu_quota > 0 && r.cpu_quota < 1_000 {
        return Err(Error::invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)"));
    }
    if r.cpu_percent > 0 {
        warnings.push("linux does not support CPU percent. Percent discarded.".to_owned());
        r.cpu_percent = 0;
    }
    Ok(())
}

fn cpuset(r: &mut Resources, support: &Support, warnings: &mut Vec<String>) -> Result<()> {
    if (!r.cpuset_cpus.is_empty() || !r.cpuset_mems.is_empty()) && !support.cpuset {
        warnings.push("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.".to_owned());
        r.cpuset_cpus.clear();
        r.cpuset_mems.clear();
    }
    for (what, subject, asked, available) in
        [("cpus", "CPUs", &r.cpuset_cpus, &support.cpus), ("mems", "memory nodes", &r.cpuset_mems, &support.mems)]
    {
        let had = number_list(available, 0).unwrap_or_default();
        // Bounded, or "0-9223372036854775807" would be walked (CVE-2018-20699); more where the host has more.
        let most = had.iter().map(|range| *range.end()).max().unwrap_or(0).max(8192);
        let wanted = number_list(asked, most).map_err(|why| Error::invalid(format!("Invalid value {asked} for cpuset {what}: {why}")))?;
        let covered = |n: u32| had.iter().any(|range| range.contains(&n));
        if !wanted.into_iter().all(|mut range| range.all(covered)) {
            let text = format!("Requested {subject} are not available - requested {asked}, available: {available}");
            return Err(Error::invalid(text));
        }
    }
    Ok(())
}

/// A list such as "0-2,4" (cpuset(7)'s list format); empty text is the empty list. Numbers above `most` are refused unless it is 0.
pub fn number_list(text: &str, most: u32) -> std::result::Result<Vec<RangeInclusive<u32>>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let malformed = || format!("invalid format: {text}");
    let number = |digits: &str| -> std::result::Result<u32, String> {
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let beyond = || if most == 0 { malformed() } else { format!("value of out range, maximum is {most}") };
        digits.parse().ok().filter(|n| most == 0 || *n <= most).ok_or_else(beyond)
    };
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if last < first {
            return Err(malformed());
        }
        list.push(first..=last);
    }
    Ok(list)
}

fn blkio(r: &mut Resources, support: &Support, warnings: &mut Vec<String>) -> Result<()> {
    if r.blkio_weight > 0 && !support.blkio_weight {
        warnings.push("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.".to_owned());
        r.blkio_weight = 0;
    }
    if r.blkio_weight > 0 && !(10..=1000).contains(&r.blkio_weight) {
        return Err(Error::invalid("Range of blkio weight is from 10 to 1000"));
    }
    if r.blkio_weight_device.as_ref().is_some_and(|list| !list.is_empty()) && !support.blkio_weight_device {
        let text = "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.";
        warnings.push(text.to_owned());
        r.blkio_weight_device = Some(Vec::new());
    }
    for (list, has, what, which) in [
        (&mut r.blkio_device_read_bps, support.blkio_read_bps, "BPS Block I/O read limit", "Block I/O BPS read limit"),
        (&mut r.blkio_device_write_bps, support.blkio_write_bps, "BPS Block I/O write limit", "Block I/O BPS write limit"),
        (&mut r.blkio_device_read_iops, support.blkio_read_iops, "IOPS Block read limit", "Block I/O IOPS read limit"),
        (&mut r.blkio_device_write_iops, support.blkio_write_iops, "IOPS Block write limit", "Block I/O IOPS write limit"),
    ] {
        if !has && list.as_ref().is_some_and(|list| !list.is_empty()) {
            warnings.push(format!("Your kernel does not support {what} or the cgroup is not mounted. {which} discarded."));
            *list = Some(Vec::new());
        }
    }
    Ok(())
}

/// What an update comes to: `new` laid over `had`, where 0, empty and absent change nothing. The reference's refusals.
///
/// `new` has passed [`resources`] with `update`.
pub fn merged(had: &Resources, new: &Resources) -> Result<Resources> {
    let conflict = |text: &str| Err(Error::conflict(text));
    if new.nano_cpus > 0 && had.cpu_period > 0 {
        return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set");
    }
    if new.nano_cpus > 0 && had.cpu_quota > 0 {
        return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set");
    }
    if new.cpu_period > 0 && had.nano_cpus > 0 {
        return conflict("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set");
    }
    if new.cpu_quota > 0 && had.nano_cpus > 0 {
        return conflict("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set");
    }
    // As the reference has it: also where the sum is -1 or was never set.
    if new.memory != 0 && new.memory > had.memory_swap && new.memory_swap == 0 {
        let text = "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time";
        return conflict(text);
    }
    let mut r = had.clone();
    for (to, from) in [
        (&mut r.cpu_shares, new.cpu_shares),
        (&mut r.nano_cpus, new.nano_cpus),
        (&mut r.cpu_period, new.cpu_period),
        (&mut r.cpu_quota, new.cpu_quota),
        (&mut r.memory, new.memory),
        (&mut r.memory_swap, new.memory_swap),
        (&mut r.memory_reservation, new.memory_reservation),
        (&mut r.kernel_memory, new.kernel_memory),
        (&mut r.cpu_realtime_period, new.cpu_realtime_period),
        (&mut r.cpu_realtime_runtime, new.cpu_realtime_runtime),
    ] {
        if from != 0 {
            *to = from;
        }
    }
    for (to, from) in [(&mut r.cpuset_cpus, &new.cpuset_cpus), (&mut r.cpuset_mems, &new.cpuset_mems)] {
        if !from.is_empty() {
            to.clone_from(from);
        }
    }
    if new.blkio_weight != 0 {
        r.blkio_weight = new.blkio_weight;
    }
    if new.pids_limit.is_some() {
        r.pids_limit = new.pids_limit;
    }
    Ok(r)
}

/// The names of ulimits and their numbers for setrlimit(2).
#[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)] // the constants are c_int on musl
const ULIMITS: [(&str, u32); 16] = [
    ("core", libc::RLIMIT_CORE as u32),
    ("cpu", libc::RLIMIT_CPU as u32),
    ("data", libc::RLIMIT_DATA as u32),
    ("fsize", libc::RLIMIT_FSIZE as u32),
    ("locks", libc::RLIMIT_LOCKS as u32),
    ("memlock", libc::RLIMIT_MEMLOCK as u32),
    ("msgqueue", libc::RLIMIT_MSGQUEUE as u32),
    ("nice", libc::RLIMIT_NICE as u32),
    ("nofile", libc::RLIMIT_NOFILE as u32),
    ("nproc", libc::RLIMIT_NPROC as u32),
    ("rss", libc::RLIMIT_RSS as u32),
    ("rtprio", libc::RLIMIT_RTPRIO as u32),
    ("rttime", libc::RLIMIT_RTTIME as u32),
    ("sigpending", libc::RLIMIT_SIGPENDING as u32),
    ("stack", libc::RLIMIT_STACK as u32),
    ("as", libc::RLIMIT_AS as u32),
];

/// The resource's number for setrlimit(2).
pub fn ulimit_number(name: &str) -> Option<u32> {
    ULIMITS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Known names, soft not above hard; -1 is unlimited.
pub fn ulimits(list: &[Ulimit]) -> Result<()> {
    for Ulimit { name, hard, soft } in list {
        if ulimit_number(name).is_none() {
            return Err(Error::invalid(format!("invalid ulimit type: {name}")));
        }
        if *hard < -1 || *soft < -1 {
            return Err(Error::invalid(format!("invalid ulimit argument: {name}={soft}:{hard}")));
        }
        if *hard != -1 && (*soft == -1 || soft > hard) {
            return Err(Error::invalid(format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::hierarchy::Hierarchy;
    use super::super::hierarchy::tests::V2_MOUNTS;
    use super::*;
    use crate::container::config::ThrottleDevice;
    use crate::error::Kind;

    /// A kernel that can do everything, with four processors and one memory node.
    fn able() -> Support {
        Support {
            memory_limit: true,
            swap_limit: true,
            memory_reservation: true,
            oom_kill_disable: true,
            memory_swappiness: true,
            kernel_memory: true,
            kernel_memory_tcp: true,
            cpu_shares: true,
            cpu_cfs: true,
            cpu_realtime: true,
            cpuset: true,
            cpus: "0-3".into(),
            mems: "0".into(),
            pids_limit: true,
            blkio_weight: true,
            blkio_weight_device: true,
            bfq: false,
            blkio_read_bps: true,
            blkio_write_bps: true,
            blkio_read_iops: true,
            blkio_write_iops: true,
            devices: true,
            cgroup_namespaces: true,
            processors: 4,
        }
    }

    /// What everything at once asks for, within bounds.
    fn everything() -> Resources {
        let throttle = || Some(vec![ThrottleDevice { path: "/dev/sda".into(), rate: 1 }]);
        Resources {
            memory: 64 << 20,
            memory_swap: 128 << 20,
            memory_reservation: 32 << 20,
            memory_swappiness: Some(60),
            oom_kill_disable: Some(true),
            pids_limit: Some(10),
            cpu_shares: 512,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpuset_cpus: "0,2-3".into(),
            cpuset_mems: "0".into(),
            blkio_weight: 500,
            blkio_device_read_bps: throttle(),
            blkio_device_write_bps: throttle(),
            blkio_device_read_iops: throttle(),
            blkio_device_write_iops: throttle(),
            ..Resources::default()
        }
    }

    #[test]
    fn an_able_kernel_takes_everything_without_a_word() {
        let mut asked = everything();
        assert_eq!(resources(&mut asked, &able(), false).unwrap(), Vec::<String>::new());
        assert_eq!(asked, everything());
    }

    #[test]
    fn a_kernel_without_cgroups_discards_and_warns_in_order() {
        let mut asked = everything();
        let warnings = resources(&mut asked, &Support { processors: 4, ..Support::default() }, false).unwrap();
        let starts: Vec<&str> = warnings.iter().map(|text| text.trim_start_matches("Your kernel does not support ")).collect();
        let expected = [
            "memory limit capabilities",
            "memory swappiness capabilities",
            "memory soft limit capabilities",
            "OomKillDisable.",
            "PIDs limit capabilities",
            "CPU shares",
            "CPU CFS scheduler. CPU period/quota discarded.",
            "cpuset or",
            "Block I/O weight or",
            "BPS Block I/O read limit or the cgroup is not mounted. Block I/O BPS read limit discarded.",
            "BPS Block I/O write limit",
            "IOPS Block read limit or the cgroup is not mounted. Block I/O IOPS read limit discarded.",
            "IOPS Block write limit",
        ];
        assert_eq!(starts.len(), expected.len(), "{warnings:?}");
        for (text, start) in starts.iter().zip(expected) {
            assert!(text.starts_with(start), "{text}");
        }
        assert_eq!((asked.memory, asked.memory_swap, asked.pids_limit, asked.cpuset_cpus.as_str()), (0, -1, None, ""));
        assert_eq!(asked.blkio_device_read_bps, Some(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_refused_in_the_references_words() {
        let mb = |n: i64| n << 20;
        let cases: [(Resources, &str); 24] = [
            (Resources { memory: mb(6) - 1, ..Resources::default() }, "Minimum memory limit allowed is 6MB"),
            (Resources { memory: -1, ..Resources::default() }, "Minimum memory limit allowed is 6MB"),
            (
                Resources { memory: mb(20), memory_swap: mb(10), ..Resources::default() },
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ),
            (
                Resources { memory_swap: mb(10), ..Resources::default() },
                "You should always set the Memory limit when using Memoryswap limit, see usage",
            ),
            (
                Resources { memory_swappiness: Some(101), ..Resources::default() },
                "Invalid value: 101, valid memory swappiness range is 0-100",
            ),
            (
                Resources { memory_swappiness: Some(-2), ..Resources::default() },
                "Invalid value: -2, valid memory swappiness range is 0-100",
            ),
            (Resources { memory_reservation: 1, ..Resources::default() }, "Minimum memory reservation allowed is 6MB"),
            (
                Resources { memory: mb(10), memory_reservation: mb(11), ..Resources::default() },
                "Minimum memory limit can not be less than memory reservation limit, see usage",
            ),
            (Resources { kernel_memory: 1, ..Resources::default() }, "Minimum kernel memory limit allowed is 6MB"),
            (
                Resources { nano_cpus: 1, cpu_period: 1000, ..Resources::default() },
                "Conflicting options: Nano CPUs and CPU Period cannot both be set",
            ),
            (
                Resources { nano_cpus: 1, cpu_quota: 1000, ..Resources::default() },
                "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
            ),
            (
                Resources { nano_cpus: 4_000_000_001, ..Resources::default() },
                "Range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available",
            ),
            (Resources { nano_cpus: -1, ..Resources::default() }, "Range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available"),
            (
                Resources { cpu_period: 999, ..Resources::default() },
                "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
            ),
            (Resources { cpu_quota: 999, ..Resources::default() }, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
            (
                Resources { cpuset_cpus: "4".into(), ..Resources::default() },
                "Requested CPUs are not available - requested 4, available: 0-3",
            ),
            (
                Resources { cpuset_mems: "0-1".into(), ..Resources::default() },
                "Requested memory nodes are not available - requested 0-1, available: 0",
            ),
            (Resources { cpuset_cpus: "0-".into(), ..Resources::default() }, "Invalid value 0- for cpuset cpus: invalid format: 0-"),
            (Resources { cpuset_cpus: "3-1".into(), ..Resources::default() }, "Invalid value 3-1 for cpuset cpus: invalid format: 3-1"),
            (
                Resources { cpuset_mems: "0-9223372036854775807".into(), ..Resources::default() },
                "Invalid value 0-9223372036854775807 for cpuset mems: value of out range, maximum is 8192",
            ),
            (Resources { blkio_weight: 9, ..Resources::default() }, "Range of blkio weight is from 10 to 1000"),
            (Resources { cpu_shares: -1, ..Resources::default() }, "invalid CPU shares (-1): value must be a positive integer"),
            (
                Resources { cpu_realtime_period: 1, cpu_realtime_runtime: 2, ..Resources::default() },
                "cpu real-time runtime cannot be higher than cpu real-time period",
            ),
            (
                Resources { io_maximum_iops: 1, ..Resources::default() },
                "invalid option: QoS maximum IOPs configuration is not supported on linux",
            ),
        ];
        for (mut asked, words) in cases {
            let refused = resources(&mut asked, &able(), false).unwrap_err();
            assert_eq!((refused.kind, refused.message.as_str()), (Kind::InvalidParameter, words));
        }
    }

    #[test]
    fn swap_accounting_missing_means_memory_without_swap() {
        let mut asked = Resources { memory: 64 << 20, memory_swap: 128 << 20, ..Resources::default() };
        let warnings = resources(&mut asked, &Support { swap_limit: false, ..able() }, false).unwrap();
        assert_eq!(
            warnings,
            ["Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap."]
        );
        assert_eq!(asked.memory_swap, -1);
    }

    #[test]
    fn oom_kill_disable_without_a_limit_is_warned_of() {
        let mut asked = Resources { oom_kill_disable: Some(true), ..Resources::default() };
        let warnings = resources(&mut asked, &able(), false).unwrap();
        assert!(warnings[0].starts_with("OOM killer is disabled for the container, but no memory limit is set"));
        let mut silent = Resources { oom_kill_disable: Some(false), ..Resources::default() };
        assert!(resources(&mut silent, &Support { oom_kill_disable: false, ..able() }, false).unwrap().is_empty());
        assert_eq!(silent.oom_kill_disable, None);
    }

    #[test]
    fn create_doubles_memory_into_swap() {
        let mut asked = Resources { memory: 64 << 20, cpu_shares: 1, ..Resources::default() };
        adapt(&mut asked, true);
        assert_eq!((asked.memory_swap, asked.cpu_shares, asked.oom_kill_disable), (128 << 20, 2, Some(false)));
        let mut given = Resources { memory: 64 << 20, memory_swap: -1, ..Resources::default() };
        adapt(&mut given, false);
        assert_eq!(given.memory_swap, -1);
    }

    #[test]
    fn an_update_lays_over_and_conflicts_are_refused() {
        let had = Resources { memory: 64 << 20, memory_swap: 128 << 20, nano_cpus: 5, ..Resources::default() };
        let new = Resources { memory: 100 << 20, pids_limit: Some(-1), cpuset_cpus: "1".into(), ..Resources::default() };
        let both = merged(&had, &new).unwrap();
        assert_eq!((both.memory, both.memory_swap, both.nano_cpus, both.pids_limit), (100 << 20, 128 << 20, 5, Some(-1)));
        let refused = |new: Resources| merged(&had, &new).unwrap_err();
        let above = refused(Resources { memory: 200 << 20, ..Resources::default() });
        assert_eq!(above.kind, Kind::Conflict);
        assert!(above.message.starts_with("Memory limit should be smaller than already set memoryswap limit"));
        let quota = refused(Resources { cpu_quota: 2000, ..Resources::default() });
        assert_eq!(quota.message, "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set");
    }

    #[test]
    fn the_rest_of_a_host_config_is_checked_at_create() {
        let hierarchy = Hierarchy::parse(V2_MOUNTS, "0::/\n").unwrap();
        let mut facts = Facts { hierarchy, support: able(), driver: Driver::Cgroupfs, parent: "/docker".into() };
        let with = |change: &dyn Fn(&mut HostConfig)| {
            let mut host = HostConfig::default();
            change(&mut host);
            host
        };
        assert!(host_config(&HostConfig::default(), &facts).is_ok());
        let score = host_config(&with(&|host| host.oom_score_adj = 1001), &facts).unwrap_err();
        assert_eq!(score.message, "Invalid value 1001, range for oom score adj is [-1000, 1000]");
        assert!(host_config(&with(&|host| host.shm_size = -1), &facts).is_err());
        assert!(host_config(&with(&|host| host.resources.cgroup_parent = "../x".into()), &facts).is_err());
        assert!(host_config(&with(&|host| host.resources.device_cgroup_rules = Some(vec!["x".into()])), &facts).is_err());
        facts.driver = Driver::Systemd;
        let parent = host_config(&with(&|host| host.resources.cgroup_parent = "/docker".into()), &facts).unwrap_err();
        assert_eq!(parent.message, "cgroup-parent for systemd cgroup should be a valid slice named as \"xxx.slice\"");
    }

    #[test]
    fn ulimits_have_known_names_and_a_soft_limit_below_the_hard_one() {
        let one = |name: &str, soft, hard| ulimits(&[Ulimit { name: name.into(), soft, hard }]);
        assert!(one("nofile", 1024, 2048).is_ok() && one("core", -1, -1).is_ok() && one("core", 0, -1).is_ok());
        assert_eq!(one("files", 1, 1).unwrap_err().message, "invalid ulimit type: files");
        let above = "ulimit soft limit must be less than or equal to hard limit: 2 > 1";
        assert_eq!(one("nofile", 2, 1).unwrap_err().message, above);
        assert!(one("nofile", -1, 1).is_err() && one("nofile", -2, 1).is_err());
    }
}
