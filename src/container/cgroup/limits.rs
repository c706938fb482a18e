//! Resource limits as files and values: what a `Resources` comes to on v1 and on v2, and what changes from one to the next.
//!
//! Files and units are those of the kernel's `admin-guide/cgroup-v1` and `admin-guide/cgroup-v2.rst`; where v2 counts otherwise than
//! the API, the numbers are converted as runc does, so that a container gets the same share under either engine.

use super::support::Support;
use crate::container::config::{Resources, ThrottleDevice, WeightDevice};
use crate::error::Result;

/// One limit: a file of a controller, and the text to write. `None` is "as the parent has it" (v1 cpusets begin empty).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub controller: &'static str,
    pub file: &'static str,
    pub value: Option<String>,
}

/// Finds the numbers of a block device named in a throttle or weight ([`super::devices::numbers`] on a real host).
pub type Numbers<'a> = &'a dyn Fn(&str) -> Result<(u32, u32)>;

/// CFS period where none is given, in microseconds: the kernel's default, and the one for NanoCpus.
const PERIOD_US: i64 = 100_000;

/// What `new` asks for beyond the kernel's defaults, in the order of writing.
pub fn initial(v2: bool, support: &Support, new: &Resources, numbers: Numbers) -> Result<Vec<Setting>> {
    table(v2, support, new, numbers)
}

/// What must be written to come from `old` to `new`, in an order that no intermediate state is refused.
///
/// Limits of single block devices stay as they are: no update names any, and the devices may be gone by now.
pub fn changes(v2: bool, support: &Support, old: &Resources, new: &Resources) -> Result<Vec<Setting>> {
    let before = table(v2, support, &without_block_devices(old), &|_| Ok((0, 0)))?;
    let mut after = table(v2, support, &without_block_devices(new), &|_| Ok((0, 0)))?;
    let lost: Vec<Setting> = before
        .iter()
        .filter(|had| !after.iter().any(|has| has.file == had.file))
        .filter_map(|had| default_of(had.file).map(|text| Setting { value: Some(text.to_owned()), ..*had }))
        .collect();
    after.retain(|has| !before.contains(has));
    after.extend(lost);
    if !v2 {
        order_memory(old, &mut after);
        order_bandwidth(old, new, &mut after);
    }
    Ok(after)
}

fn without_block_devices(resources: &Resources) -> Resources {
    Resources {
        blkio_weight_device: None,
        blkio_device_read_bps: None,
        blkio_device_write_bps: None,
        blkio_device_read_iops: None,
        blkio_device_write_iops: None,
        ..resources.clone()
    }
}

fn table(v2: bool, support: &Support, resources: &Resources, numbers: Numbers) -> Result<Vec<Setting>> {
    let mut table = Table(Vec::new());
    if v2 {
        table.v2(support, resources, numbers)?
    } else {
        table.v1(support, resources, numbers)?
    }
    Ok(table.0)
}

struct Table(Vec<Setting>);

impl Table {
    fn set(&mut self, controller: &'static str, file: &'static str, value: impl ToString) {
        self.0.push(Setting { controller, file, value: Some(value.to_string()) });
    }

    fn v1(&mut self, support: &Support, r: &Resources, numbers: Numbers) -> Result<()> {
        if r.memory > 0 {
            self.set("memory", "memory.limit_in_bytes", r.memory);
        }
        // After the limit: the sum may not be below it.
        if r.memory_swap > 0 && support.swap_limit {
            self.set("memory", "memory.memsw.limit_in_bytes", r.memory_swap);
        }
        if r.memory_reservation > 0 {
            self.set("memory", "memory.soft_limit_in_bytes", r.memory_reservation);
        }
        if let Some(swappiness) = r.memory_swappiness {
            self.set("memory", "memory.swappiness", swappiness);
        }
        if r.oom_kill_disable == Some(true) {
            self.set("memory", "memory.oom_control", 1);
        }
        if r.cpu_shares > 0 {
            self.set("cpu", "cpu.shares", r.cpu_shares);
        }
        let (period, quota) = cpu_bandwidth(r);
        if let Some(period) = period {
            self.set("cpu", "cpu.cfs_period_us", period);
        }
        if let Some(quota) = quota {
            self.set("cpu", "cpu.cfs_quota_us", quota);
        }
        if r.cpu_realtime_period != 0 {
            self.set("cpu", "cpu.rt_period_us", r.cpu_realtime_period);
        }
        if r.cpu_realtime_runtime != 0 {
            self.set("cpu", "cpu.rt_runtime_us", r.cpu_realtime_runtime);
        }
        if !r.cpuset_cpus.is_empty() || !r.cpuset_mems.is_empty() {
            // A v1 cpuset takes no task until both are set.
            let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            self.0.push(Setting { controller: "cpuset", file: "cpuset.cpus", value: given(&r.cpuset_cpus) });
            self.0.push(Setting { controller: "cpuset", file: "cpuset.mems", value: given(&r.cpuset_mems) });
        }
        if let Some(limit) = r.pids_limit.filter(|limit| *limit > 0) {
            self.set("pids", "pids.max", limit);
        }
        if r.blkio_weight > 0 {
            self.set("blkio", "blkio.weight", r.blkio_weight);
        }
        for WeightDevice { path, weight } in r.blkio_weight_device.iter().flatten() {
            let (major, minor) = numbers(path)?;
            self.set("blkio", "blkio.weight_device", format_args!("{major}:{minor} {weight}"));
        }
        for (file, list) in [
            ("blkio.throttle.read_bps_device", &r.blkio_device_read_bps),
            ("blkio.throttle.write_bps_device", &r.blkio_device_write_bps),
            ("blkio.throttle.read_iops_device", &r.blkio_device_read_iops),
            ("blkio.throttle.write_iops_device", &r.blkio_device_write_iops),
        ] {
            for ThrottleDevice { path, rate } in list.iter().flatten() {
                let (major, minor) = numbers(path)?;
                self.set("blkio", file, format_args!("{major}:{minor} {rate}"));
            }
        }
        Ok(())
    }

    fn v2(&mut self, support: &Support, r: &Resources, numbers: Numbers) -> Result<()> {
        if r.memory > 0 {
            self.set("memory", "memory.max", r.memory);
        }
        // v2 counts swap alone, the API memory and swap together.
        if r.memory_swap > 0 && support.swap_limit {
            self.set("memory", "memory.swap.max", r.memory_swap.saturating_sub(r.memory).max(0));
        }
        if r.memory_reservation > 0 {
            self.set("memory", "memory.low", r.memory_reservation);
        }
        if r.cpu_shares > 0 {
            self.set("cpu", "cpu.weight", cpu_weight(r.cpu_shares));
        }
        match cpu_bandwidth(r) {
            (None, None) => {}
            (period, Some(quota)) if quota > 0 => self.set("cpu", "cpu.max", format_args!("{quota} {}", period.unwrap_or(PERIOD_US))),
            (period, _) => self.set("cpu", "cpu.max", format_args!("max {}", period.unwrap_or(PERIOD_US))),
        }
        if !r.cpuset_cpus.is_empty() {
            self.set("cpuset", "cpuset.cpus", &r.cpuset_cpus);
        }
        if !r.cpuset_mems.is_empty() {
            self.set("cpuset", "cpuset.mems", &r.cpuset_mems);
        }
        if let Some(limit) = r.pids_limit.filter(|limit| *limit > 0) {
            self.set("pids", "pids.max", limit);
        }
        if r.blkio_weight > 0 {
            let (file, weight) = io_weight(support, r.blkio_weight);
            self.set("io", file, weight);
        }
        for WeightDevice { path, weight } in r.blkio_weight_device.iter().flatten() {
            let (major, minor) = numbers(path)?;
            let (file, weight) = io_weight(support, *weight);
            self.set("io", file, format_args!("{major}:{minor} {weight}"));
        }
        for (key, list) in [
            ("rbps", &r.blkio_device_read_bps),
            ("wbps", &r.blkio_device_write_bps),
            ("riops", &r.blkio_device_read_iops),
            ("wiops", &r.blkio_device_write_iops),
        ] {
            for ThrottleDevice { path, rate } in list.iter().flatten() {
                let (major, minor) = numbers(path)?;
                // 0 lifts the limit in the API; v2 refuses 0 and says "max".
                let rate = if *rate == 0 { "max".to_owned() } else { rate.to_string() };
                self.set("io", "io.max", format_args!("{major}:{minor} {key}={rate}"));
            }
        }
        Ok(())
    }
}

/// CFS period and quota in microseconds, where the request says anything of them.
pub fn cpu_bandwidth(r: &Resources) -> (Option<i64>, Option<i64>) {
    if r.nano_cpus > 0 {
        // NanoCpus · period / 10⁹; the product fits i128 whatever the client sends.
        let quota = i128::from(r.nano_cpus) * i128::from(PERIOD_US) / 1_000_000_000;
        return (Some(PERIOD_US), i64::try_from(quota).ok());
    }
    ((r.cpu_period != 0).then_some(r.cpu_period), (r.cpu_quota != 0).then_some(r.cpu_quota))
}

/// 2…262144 onto 1…10000, as runc.
pub fn cpu_weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// 10…1000 onto 1…10000, as runc; BFQ's own file counts to 1000 as the API does.
fn io_weight(support: &Support, weight: u16) -> (&'static str, u32) {
    match support.bfq {
        true => ("io.bfq.weight", u32::from(weight)),
        false => ("io.weight", 1 + u32::from(weight.clamp(10, 1000) - 10) * 9999 / 990),
    }
}

/// The text that takes a limit away again; `None` for what can't be taken away.
fn default_of(file: &str) -> Option<&'static str> {
    Some(match file {
        "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes" | "memory.soft_limit_in_bytes" | "cpu.cfs_quota_us" => "-1",
        "memory.oom_control" | "memory.low" => "0",
        "cpu.shares" => "1024",
        "cpu.cfs_period_us" => "100000",
        "cpu.weight" => "100",
        "cpu.max" => "max 100000",
        "memory.max" | "memory.swap.max" | "pids.max" => "max",
        _ => return None,
    })
}

/// v1 refuses a limit above limit-and-swap at every instant: the one that makes room goes first.
fn order_memory(old: &Resources, settings: &mut [Setting]) {
    let at = |file: &str| settings.iter().position(|s| s.file == file);
    let (Some(limit), Some(sum)) = (at("memory.limit_in_bytes"), at("memory.memsw.limit_in_bytes")) else { return };
    let number = |i: usize| settings[i].value.as_deref().and_then(|text| text.parse::<i64>().ok()).filter(|n| *n > 0).unwrap_or(i64::MAX);
    let old_sum = if old.memory_swap > 0 { old.memory_swap } else { i64::MAX };
    let sum_first = number(limit) > old_sum;
    if sum_first != (sum < limit) {
        settings.swap(limit, sum);
    }
}

/// Period and quota are two files, and a parent with a limit of its own refuses a ratio above it at every instant.
fn order_bandwidth(old: &Resources, new: &Resources, settings: &mut [Setting]) {
    let at = |file: &str| settings.iter().position(|s| s.file == file);
    let (Some(period), Some(quota)) = (at("cpu.cfs_period_us"), at("cpu.cfs_quota_us")) else { return };
    let shorter = cpu_bandwidth(new).0.unwrap_or(PERIOD_US) < cpu_bandwidth(old).0.unwrap_or(PERIOD_US);
    if shorter != (quota < period) {
        settings.swap(period, quota);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn support() -> Support {
        Support { swap_limit: true, ..Support::default() }
    }

    #[allow(clippy::unnecessary_wraps)] // the type of `Numbers`
    fn numbers(path: &str) -> Result<(u32, u32)> {
        Ok(if path == "/dev/sda" { (8, 0) } else { (8, 16) })
    }

    fn lines(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|s| format!("{}={}", s.file, s.value.as_deref().unwrap_or("parent"))).collect()
    }

    fn first(v2: bool, resources: &Resources) -> Vec<String> {
        lines(&initial(v2, &support(), resources, &numbers).unwrap())
    }

    fn update(v2: bool, old: &Resources, new: &Resources) -> Vec<String> {
        lines(&changes(v2, &support(), old, new).unwrap())
    }

    #[test]
    fn no_limits_write_nothing() {
        assert!(first(false, &Resources::default()).is_empty());
        assert!(first(true, &Resources::default()).is_empty());
        let unlimited = Resources { pids_limit: Some(-1), oom_kill_disable: Some(false), memory_swap: -1, ..Resources::default() };
        assert!(first(false, &unlimited).is_empty());
        assert!(first(true, &unlimited).is_empty());
    }

    #[test]
    fn memory_comes_before_memory_and_swap() {
        let r = Resources { memory: 1 << 26, memory_swap: 1 << 27, memory_reservation: 1 << 25, ..Resources::default() };
        let v1 = ["memory.limit_in_bytes=67108864", "memory.memsw.limit_in_bytes=134217728", "memory.soft_limit_in_bytes=33554432"];
        assert_eq!(first(false, &r), v1);
        assert_eq!(first(true, &r), ["memory.max=67108864", "memory.swap.max=67108864", "memory.low=33554432"]);
        let alone = lines(&initial(false, &Support::default(), &r, &numbers).unwrap());
        assert!(!alone.iter().any(|line| line.contains("memsw")), "a kernel without swap accounting");
    }

    #[test]
    fn raising_memory_above_the_old_sum_raises_the_sum_first() {
        let r = |memory, memory_swap| Resources { memory, memory_swap, ..Resources::default() };
        let files = |old, new| update(false, &old, &new).iter().map(|l| l.split('=').next().unwrap().to_owned()).collect::<Vec<_>>();
        let (limit, sum) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        assert_eq!(files(r(10, 20), r(30, 60)), [sum, limit]);
        assert_eq!(files(r(30, 60), r(10, 20)), [limit, sum]);
        assert_eq!(files(r(10, 20), r(15, 30)), [limit, sum]);
        assert_eq!(files(r(10, -1), r(30, 60)), [limit, sum]);
        assert_eq!(files(r(10, 20), r(30, -1)), [sum, limit]);
        assert_eq!(files(r(10, 20), r(15, 20)), [limit]);
        assert_eq!(update(true, &r(10, 20), &r(15, 20)), ["memory.max=15", "memory.swap.max=5"]);
        assert_eq!(update(true, &r(10, 20), &r(10, -1)), ["memory.swap.max=max"]);
    }

    #[test]
    fn nano_cpus_become_a_quota_per_100_ms() {
        let r = Resources { nano_cpus: 1_500_000_000, ..Resources::default() };
        assert_eq!(first(false, &r), ["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=150000"]);
        assert_eq!(first(true, &r), ["cpu.max=150000 100000"]);
        let r = Resources { cpu_period: 50_000, cpu_quota: 25_000, ..Resources::default() };
        assert_eq!(first(true, &r), ["cpu.max=25000 50000"]);
        assert_eq!(first(true, &Resources { cpu_quota: -1, ..Resources::default() }), ["cpu.max=max 100000"]);
    }

    #[test]
    fn a_shorter_period_is_written_after_its_quota() {
        let r = |cpu_period, cpu_quota| Resources { cpu_period, cpu_quota, ..Resources::default() };
        assert_eq!(update(false, &r(100_000, 50_000), &r(10_000, 5_000)), ["cpu.cfs_quota_us=5000", "cpu.cfs_period_us=10000"]);
        assert_eq!(update(false, &r(10_000, 5_000), &r(100_000, 50_000)), ["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000"]);
    }

    #[test]
    fn shares_and_weights_are_converted_for_v2() {
        for (shares, weight) in [(2, 1), (1024, 39), (262_144, 10_000), (1, 1)] {
            assert_eq!(first(true, &Resources { cpu_shares: shares, ..Resources::default() }), [format!("cpu.weight={weight}")]);
        }
        for (weight, converted) in [(10, 1), (500, 4950), (1000, 10_000)] {
            assert_eq!(first(true, &Resources { blkio_weight: weight, ..Resources::default() }), [format!("io.weight={converted}")]);
        }
    }

    #[test]
    fn half_a_cpuset_takes_the_rest_from_its_parent_on_v1() {
        let r = Resources { cpuset_cpus: "0-1".into(), ..Resources::default() };
        assert_eq!(first(false, &r), ["cpuset.cpus=0-1", "cpuset.mems=parent"]);
        assert_eq!(first(true, &r), ["cpuset.cpus=0-1"]);
    }

    #[test]
    fn throttles_name_devices_by_number() {
        let throttle = |path: &str, rate| Some(vec![ThrottleDevice { path: path.into(), rate }]);
        let r = Resources {
            blkio_device_read_bps: throttle("/dev/sda", 1024),
            blkio_device_write_iops: throttle("/dev/sdb", 0),
            ..Resources::default()
        };
        assert_eq!(first(false, &r), ["blkio.throttle.read_bps_device=8:0 1024", "blkio.throttle.write_iops_device=8:16 0"]);
        assert_eq!(first(true, &r), ["io.max=8:0 rbps=1024", "io.max=8:16 wiops=max"]);
    }

    #[test]
    fn a_pids_limit_can_be_taken_away() {
        let r = |limit| Resources { pids_limit: Some(limit), ..Resources::default() };
        assert_eq!(update(true, &r(10), &r(-1)), ["pids.max=max"]);
        assert!(update(true, &r(10), &r(10)).is_empty());
    }
}
