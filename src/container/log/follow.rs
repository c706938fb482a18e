//! Following a log from the loop: each follower reads the file at its own pace, and nobody buffers for it.
//!
//! A follower holds the descriptors of the segments from its own one on, so that rotation takes nothing away from it; one
//! that falls ten segments behind gets an error line and is ended.

use super::Stream;
use super::entry;
use super::json_file::{Position, Segment};
use super::read::Want;
use crate::daemon::{ConnId, Daemon, Timer};
use crate::sys;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

/// Bytes read for one follower in one turn of the loop.
const TURN: usize = 64 * 1024;
const MAX_SEGMENTS: usize = 10;
/// Bytes of the log that attach's `logs` replays.
const REPLAY: u64 = 1 << 20;

/// One connection that follows a log.
pub struct Follower {
    pub conn: ConnId,
    want: Want,
    segments: VecDeque<(Rc<Segment>, u64)>,
    carry: Vec<u8>,
    /// Bytes of stdout's and stderr's next entry that the client has already (it was attached before).
    skip: [usize; 2],
    /// The container has ended: what is in the files is all there will be.
    ended: bool,
    /// A raw connection that is ended by closing, not a chunked answer.
    raw: bool,
    overrun: bool,
}

/// All followers, by the log's owner (a container id).
#[derive(Default)]
pub struct Followers {
    by_conn: HashMap<ConnId, (Rc<str>, Follower)>,
    by_log: HashMap<Rc<str>, Vec<ConnId>>,
    /// Followers with more to read right now.
    busy: Vec<ConnId>,
}

impl Followers {
    pub fn has_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    pub fn is_follower(&self, conn: ConnId) -> bool {
        self.by_conn.contains_key(&conn)
    }

    pub fn forget(&mut self, conn: ConnId) {
        if let Some((log, _)) = self.by_conn.remove(&conn)
            && let Some(list) = self.by_log.get_mut(&log)
        {
            list.retain(|c| *c != conn);
            if list.is_empty() {
                self.by_log.remove(&log);
            }
        }
    }

    /// New entries, or the end, of a log.
    pub fn wake(&mut self, log: &str) {
        if let Some(list) = self.by_log.get(log) {
            self.busy.extend_from_slice(list);
        }
    }

    /// Rotation has opened a new segment.
    pub fn rotated(&mut self, log: &str, segment: &Rc<Segment>) {
        for conn in self.by_log.get(log).into_iter().flatten() {
            if let Some((_, follower)) = self.by_conn.get_mut(conn) {
                follower.segments.push_back((segment.clone(), 0));
                follower.overrun |= follower.segments.len() > MAX_SEGMENTS;
            }
        }
    }

    fn add(&mut self, log: Rc<str>, follower: Follower) {
        self.by_log.entry(log.clone()).or_default().push(follower.conn);
        self.busy.push(follower.conn);
        self.by_conn.insert(follower.conn, (log, follower));
    }
}

impl Daemon {
    /// Makes a streaming connection a follower, from `starts` in `segments` on.
    pub fn follow_log(&mut self, log: Rc<str>, conn: ConnId, want: Want, segments: Vec<Rc<Segment>>, starts: Vec<Option<u64>>) {
        let segments = segments.into_iter().zip(starts).filter_map(|(segment, start)| Some((segment, start?))).collect();
        let follower = Follower { conn, want, segments, carry: Vec::new(), skip: [0; 2], ended: false, raw: false, overrun: false };
        self.followers.add(log, follower);
    }

    /// An attached client that fell behind goes on from the log, at the position up to which it has everything but the
    /// unfinished lines' first `skip` bytes.
    pub fn follow_from(&mut self, log: Rc<str>, conn: ConnId, want: Want, segment: Rc<Segment>, at: Position, skip: [usize; 2]) {
        let segments = VecDeque::from([(segment, at.offset)]);
        let follower = Follower { conn, want, segments, carry: Vec::new(), skip, ended: false, raw: true, overrun: false };
        self.followers.add(log, follower);
    }

    /// Sends what is logged so far to a raw connection that attaches with `logs`, by a bounded read: the last mebibyte.
    pub fn replay_log(&mut self, id: &str, conn: ConnId, want: &Want) {
        let Some(hub) = self.containers.get(id).map(|container| container.hub) else { return };
        let current = self.hubs.get(hub).and_then(|hub| hub.log.as_ref()).map_or(1, |log| log.current().number);
        for segment in super::json_file::open_segments(&self.log_path(id), current).into_iter().rev().take(1) {
            let size = sys::fd::fstat(segment.fd.as_fd()).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
            let start = size.saturating_sub(REPLAY);
            let mut follower = Follower {
                conn,
                want: want.clone(),
                segments: VecDeque::from([(segment, start)]),
                carry: Vec::new(),
                skip: [0; 2],
                ended: true,
                raw: true,
                overrun: false,
            };
            let (mut scratch, mut out) = (vec![0; TURN], Vec::new());
            while matches!(follower.read(&mut scratch, &mut out), Progress::More) {}
            self.with_conn(conn, |connection| connection.send(&[&out]));
        }
    }

    /// The log's container has ended: its followers end when they have read everything.
    pub fn end_followers(&mut self, log: &str) {
        let conns = self.followers.by_log.get(log).cloned().unwrap_or_default();
        for conn in conns {
            if let Some((_, follower)) = self.followers.by_conn.get_mut(&conn) {
                follower.ended = true;
            }
        }
        self.followers.wake(log);
    }

    /// Room in a client's buffer.
    pub(crate) fn wake_follower(&mut self, conn: ConnId) {
        if self.followers.is_follower(conn) {
            self.followers.busy.push(conn);
        }
    }

    /// One turn for every follower that has something to read.
    pub(crate) fn pump_followers(&mut self) {
        let mut busy = std::mem::take(&mut self.followers.busy);
        busy.sort_unstable();
        busy.dedup();
        for conn in busy {
            self.pump_follower(conn);
        }
    }

    fn pump_follower(&mut self, conn: ConnId) {
        let Some(pending) = self.pending(conn) else {
            self.followers.forget(conn);
            return;
        };
        let size = super::super::streams::share(self.followers.by_conn.len()).min(TURN);
        if pending > size / 2 {
            return; // the connection tells when there is room
        }
        let Some((_, follower)) = self.followers.by_conn.get_mut(&conn) else { return };
        let mut out = Vec::new();
        let progress = follower.read(&mut self.scratch[..size], &mut out);
        if !out.is_empty() {
            self.with_conn(conn, |connection| connection.send(&[&out]));
        }
        match progress {
            Progress::More => self.followers.busy.push(conn),
            Progress::Idle => {}
            // The pages are not in memory: the read-ahead that was asked for brings them.
            Progress::Cold => {
                self.after(5, Timer::WakeFollower(conn));
            }
            Progress::Done => self.end_follower(conn, None),
            Progress::Overrun => {
                self.end_follower(conn, Some("log reader is too far behind: rotated files were removed before they were read"));
            }
            Progress::Failed(e) => self.end_follower(conn, Some(&format!("error reading the log: {e}"))),
        }
    }

    fn end_follower(&mut self, conn: ConnId, why: Option<&str>) {
        let Some((_, follower)) = self.followers.by_conn.get(&conn) else { return };
        let raw = follower.raw;
        let now = self.now_ms();
        if let Some(why) = why {
            let line = format!("{why}\n");
            let frame = Stream::Stderr.frame(line.len());
            let frame: &[u8] = if follower.want.tty { &[] } else { &frame };
            self.with_conn(conn, |connection| connection.send(&[frame, line.as_bytes()]));
        }
        self.followers.forget(conn);
        self.with_conn(conn, |connection| if raw { connection.close_soon(now) } else { connection.finish_stream(now) });
    }
}

enum Progress {
    More,
    Idle,
    Cold,
    Done,
    Overrun,
    Failed(io::Error),
}

impl Follower {
    /// Reads one turn's worth.
    fn read(&mut self, scratch: &mut [u8], out: &mut Vec<u8>) -> Progress {
        if self.overrun {
            return Progress::Overrun;
        }
        let Some((segment, offset)) = self.segments.front_mut() else { return Progress::Done };
        let at = i64::try_from(*offset).unwrap_or(i64::MAX);
        let size = scratch.len().min(TURN);
        let n = match sys::fd::pread_nowait(segment.fd.as_fd(), &mut scratch[..size], at) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let _ = sys::fd::fadvise(segment.fd.as_fd(), at, i64::try_from(TURN * 4).unwrap_or(0), libc::POSIX_FADV_WILLNEED);
                return Progress::Cold;
            }
            // File systems without RWF_NOWAIT (tmpfs before 6.1 …) are read plainly: they are memory, or asked for it.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => sys::fd::pread(segment.fd.as_fd(), &mut scratch[..size], at),
            other => other,
        };
        let n = match n {
            Ok(n) => n,
            Err(e) => return Progress::Failed(e),
        };
        if n == 0 {
            if self.segments.len() > 1 {
                self.segments.pop_front();
                return Progress::More;
            }
            return if self.ended { Progress::Done } else { Progress::Idle };
        }
        *offset += n as u64;
        let mut data = &scratch[..n];
        while let Some(end) = memchr::memchr(b'\n', data) {
            let parsed = if self.carry.is_empty() {
                entry::parse(&data[..end])
            } else {
                self.carry.extend_from_slice(&data[..end]);
                entry::parse(&std::mem::take(&mut self.carry))
            };
            data = &data[end + 1..];
            if let Some(mut entry) = parsed {
                let skip = std::mem::take(&mut self.skip[usize::from(entry.stderr)]);
                if skip > 0 {
                    entry.text.drain(..skip.min(entry.text.len()));
                }
                if !self.want.render(&entry, out) {
                    return Progress::Done;
                }
            }
        }
        self.carry.extend_from_slice(data);
        Progress::More
    }
}
