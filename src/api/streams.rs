//! /containers/{id}/attach and /containers/{id}/logs.

use super::{Reply, Request};
use crate::container::log::json_file::open_segments;
use crate::container::log::read::tail_starts;
use crate::container::log::read::{self, Want};
use crate::container::record::Status;
use crate::container::streams::{AttachWant, DetachKeys};
use crate::daemon::Daemon;
use crate::error::{Error, Result};

const RAW: &str = "application/vnd.docker.raw-stream";
const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// The content type of a stream: since 1.42 it tells frames from raw bytes, where the client upgrades.
pub fn content_type(tty: bool, minor: u16) -> &'static str {
    if tty || minor < 42 { RAW } else { MULTIPLEXED }
}

/// Docker's detach keys: comma-separated characters and `ctrl-x`; "" for the default.
pub fn detach_keys(text: &str) -> Result<Vec<u8>> {
    if text.is_empty() {
        return Ok(vec![16, 17]); // ctrl-p, ctrl-q
    }
    let key = |part: &str| match part.as_bytes() {
        [byte] => Some(*byte),
        _ => match part.strip_prefix("ctrl-").map(str::as_bytes) {
            Some([c @ b'a'..=b'z']) => Some(c - b'a' + 1),
            Some([b'@']) => Some(0),
            Some([c @ (b'[' | b'\\' | b']' | b'^' | b'_')]) => Some(c - b'@'),
            _ => None,
        },
    };
    let parts = text.split(',').map(|part| key(part).ok_or_else(|| Error::invalid(format!("Invalid detach keys ({text}) provided"))));
    parts.collect()
}

/// POST /containers/{id}/attach.
pub fn attach(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let keys = detach_keys(request.query.get("detachKeys"))?;
    let id = daemon.containers.resolve(request.param(0))?;
    let container = daemon.containers.find(&id)?;
    if container.record.state.status == Status::Paused {
        return Err(Error::conflict(format!("container {id} is paused, unpause the container before attach")));
    }
    if container.record.state.status == Status::Restarting {
        return Err(crate::container::lifecycle::restarting(&id));
    }
    let (tty, open_stdin, hub) = (container.record.config.tty, container.record.config.open_stdin, container.hub);
    let query = &request.query;
    let (stream, logs) = (query.flag("stream"), query.flag("logs"));
    let want = AttachWant {
        stdin: query.flag("stdin") && open_stdin,
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        detach: if tty { DetachKeys::new(keys) } else { None },
    };
    let content = if request.head.upgrade.is_some() { content_type(tty, request.minor) } else { RAW };
    let conn = request.conn;
    let upgrade = request.head.upgrade.clone();
    daemon.with_conn(conn, |connection| connection.hijack(upgrade.as_deref(), content));
    if logs {
        let replay = Want { stdout: want.stdout, stderr: want.stderr, tty, ..Want::default() };
        daemon.replay_log(&id, conn, &replay);
    }
    if stream {
        daemon.attach(hub, conn, want);
        daemon.emit_container(&id, "attach", &[]);
    } else {
        let now = daemon.now_ms();
        daemon.with_conn(conn, |connection| connection.close_soon(now));
    }
    Ok(Reply::Parked)
}

/// Whether logs is followed: then the loop serves it, else a worker.
fn want_of(daemon: &Daemon, request: &Request) -> Result<(crate::container::record::Id, Want)> {
    let query = &request.query;
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        return Err(Error::invalid("Bad parameters: you must choose at least one stream"));
    }
    let id = daemon.containers.resolve(request.param(0))?;
    let container = daemon.containers.find(&id)?;
    let now = crate::sys::time::realtime_ns();
    let time = |name: &str| match query.get(name) {
        "" | "0" => Ok(None),
        text => crate::timestamp::parse_query(text, now).map(Some),
    };
    let tail = match query.get("tail") {
        "" | "all" => None,
        text => text.parse::<i64>().ok().and_then(|n| u64::try_from(n).ok()),
    };
    if container.record.host.log_config.kind == "none" {
        return Err(Error::not_implemented("configured logging driver does not support reading"));
    }
    Ok((
        id,
        Want {
            stdout,
            stderr,
            timestamps: query.flag("timestamps"),
            details: query.flag("details"),
            tty: container.record.config.tty,
            since_ns: time("since")?,
            until_ns: time("until")?,
            tail,
        },
    ))
}

/// GET /containers/{id}/logs.
pub fn logs(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let (id, want) = want_of(daemon, request)?;
    let container = daemon.containers.find(&id)?;
    let live = container.record.state.is_running() || container.starting;
    let hub = container.hub;
    let content = content_type(want.tty, request.minor);
    let current = daemon.hubs.get(hub).and_then(|hub| hub.log.as_ref()).map_or(1 << 20, |log| log.current().number);
    let segments = open_segments(&daemon.log_path(&id), current);
    let follow = request.query.flag("follow");
    if !follow || !live {
        return daemon.serve_by_worker(request, read::job(segments, want, content));
    }
    let starts = tail_starts(&segments, want.tail).map_err(|e| Error::io("read the log", &e))?;
    let conn = request.conn;
    daemon.with_conn(conn, |connection| connection.start_stream(200, &[("Content-Type".into(), content.into())]));
    daemon.follow_log(id, conn, want, segments, starts);
    Ok(Reply::Parked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_spelled_as_docker_spells_them() {
        assert_eq!(detach_keys("").unwrap(), [16, 17]);
        assert_eq!(detach_keys("ctrl-a,x,ctrl-[").unwrap(), [1, b'x', 27]);
        assert!(detach_keys("ctrl-aa").is_err() && detach_keys("xy").is_err());
    }
}
