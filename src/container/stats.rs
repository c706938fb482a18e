//! Statistics of running containers: one sample, or a stream of one a second.

use super::cgroup::stats::{HostCpu, machine_memory};
use super::cgroup::stats_json::{CpuStats, stats_json};
use super::record::Id;
use crate::daemon::{ConnId, Daemon, Timer};
use crate::error::Result;
use crate::http::Response;
use crate::sys;
use crate::timestamp::{self, rfc3339};
use serde_json::{Map, Value, json};

const TICK_MS: u64 = 1000;
/// A client that has this much unread gets no further sample until it has read.
const MAX_PENDING: usize = 256 * 1024;

/// One client's statistics, between its samples.
#[derive(Clone, Debug)]
pub struct Sampling {
    pub conn: ConnId,
    pub container: Id,
    pub stream: bool,
    before: CpuStats,
    read_before: String,
}

impl Daemon {
    /// GET /containers/{id}/stats: `one_shot` answers at once, without an earlier sample; else the first answer has one.
    pub fn begin_stats(&mut self, container: Id, conn: ConnId, stream: bool, one_shot: bool) -> Result<()> {
        let running = self.containers.find(&container)?.record.state.is_running();
        let sampling = Sampling { conn, container, stream, before: CpuStats::default(), read_before: timestamp::ZERO.into() };
        if stream {
            self.with_conn(conn, |connection| connection.start_stream(200, &[("Content-Type".into(), "application/json".into())]));
            self.tick_stats(sampling);
        } else if one_shot || !running {
            let (value, _) = self.sample(&sampling);
            self.respond(conn, &Response::json(200, &value));
        } else {
            // The first sample is the one that the answer's percentages are reckoned from.
            let (value, before) = self.sample(&sampling);
            let read_before = value["read"].as_str().unwrap_or_default().to_string();
            self.after(TICK_MS, Timer::Stats(Box::new(Sampling { before, read_before, ..sampling })));
        }
        Ok(())
    }

    /// A second has passed.
    pub(crate) fn tick_stats(&mut self, sampling: Sampling) {
        let Some(pending) = self.pending(sampling.conn) else { return };
        if self.containers.get(&sampling.container).is_none() {
            let now = self.now_ms();
            return self.with_conn(sampling.conn, |connection| connection.finish_stream(now));
        }
        let (value, before) = self.sample(&sampling);
        if !sampling.stream {
            return self.respond(sampling.conn, &Response::json(200, &value));
        }
        if pending < MAX_PENDING {
            self.with_conn(sampling.conn, |connection| connection.send(&[format!("{value}\n").as_bytes()]));
        }
        let read_before = value["read"].as_str().unwrap_or_default().to_string();
        self.after(TICK_MS, Timer::Stats(Box::new(Sampling { before, read_before, ..sampling })));
    }

    fn sample(&self, sampling: &Sampling) -> (Value, CpuStats) {
        let id = &sampling.container;
        let Some(container) = self.containers.get(id) else { return (Value::Null, CpuStats::default()) };
        let stats = self.running_cgroups.get(id).and_then(|group| group.stats().ok());
        let host = HostCpu::read().ok();
        let now = if container.record.state.is_running() { rfc3339(sys::time::realtime_ns()) } else { timestamp::ZERO.to_string() };
        let (mut value, cpu) = match (stats, host) {
            (Some(stats), Some(host)) => {
                let shape = stats_json(&stats, host, machine_memory(), sampling.before.clone());
                let cpu = shape.cpu_stats.clone();
                (serde_json::to_value(shape).unwrap_or_default(), cpu)
            }
            _ => (
                json!({"pids_stats": {}, "blkio_stats": {}, "num_procs": 0, "storage_stats": {}, "cpu_stats": CpuStats::default(), "precpu_stats": CpuStats::default(), "memory_stats": {}}),
                CpuStats::default(),
            ),
        };
        value["name"] = json!(format!("/{}", container.record.name));
        value["id"] = json!(container.record.id);
        value["read"] = json!(now);
        value["preread"] = json!(sampling.read_before);
        if let Some(networks) = interfaces(container.record.state.pid) {
            value["networks"] = networks;
        }
        (value, cpu)
    }
}

/// The counters of each interface of a process's network namespace but the loopback.
fn interfaces(pid: i32) -> Option<Value> {
    if pid <= 0 {
        return None;
    }
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let mut networks = Map::new();
    for line in text.lines().skip(2) {
        let Some((name, counters)) = line.split_once(':') else { continue };
        let n: Vec<u64> = counters.split_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
        if name.trim() == "lo" || n.len() < 12 {
            continue;
        }
        networks.insert(
            name.trim().to_string(),
            json!({"rx_bytes": n[0], "rx_packets": n[1], "rx_errors": n[2], "rx_dropped": n[3], "tx_bytes": n[8], "tx_packets": n[9], "tx_errors": n[10], "tx_dropped": n[11]}),
        );
    }
    (!networks.is_empty()).then_some(Value::Object(networks))
}
