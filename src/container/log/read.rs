//! Reading a log that nobody follows: a worker's job, from descriptors that the daemon opened.

use super::Stream;
use super::entry::{self, Entry};
use super::json_file::Segment;
use crate::error::{Error, Result};
use crate::sys;
use crate::worker::{Context, Job};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

/// What a client wants of a log.
#[derive(Clone, Debug, Default)]
pub struct Want {
    pub stdout: bool,
    pub stderr: bool,
    pub timestamps: bool,
    pub details: bool,
    /// Raw text instead of frames: the container has a terminal.
    pub tty: bool,
    pub since_ns: Option<i64>,
    pub until_ns: Option<i64>,
    /// Entries from the end; `None` for all.
    pub tail: Option<u64>,
}

impl Want {
    /// Appends an entry to `out` as the client wants it. False: it is beyond `until`, and nothing later will be wanted.
    pub fn render(&self, entry: &Entry, out: &mut Vec<u8>) -> bool {
        if self.until_ns.is_some_and(|until| entry.time_ns > until) {
            return false;
        }
        let wanted = if entry.stderr { self.stderr } else { self.stdout };
        if !wanted || self.since_ns.is_some_and(|since| entry.time_ns < since) {
            return true;
        }
        let mut prefix = String::new();
        if self.timestamps {
            prefix = format!("{} ", crate::timestamp::rfc3339_fixed(entry.time_ns));
        }
        if self.details && !entry.attributes.is_empty() {
            prefix.push_str(&details(&entry.attributes));
            prefix.push(' ');
        } else if self.details {
            prefix.push(' ');
        }
        if !self.tty {
            let stream = if entry.stderr { Stream::Stderr } else { Stream::Stdout };
            out.extend_from_slice(&stream.frame(prefix.len() + entry.text.len()));
        }
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(&entry.text);
        true
    }
}

/// `attrs` as the API prints them: `k=v,k2=v2`, query-escaped, in order of their keys.
fn details(attributes: &str) -> String {
    let Ok(serde_json::Value::Object(map)) = serde_json::from_str(attributes) else { return String::new() };
    let escape = |text: &str| {
        let mut escaped = String::new();
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
                b' ' => escaped.push('+'),
                other => escaped.push_str(&format!("%{other:02X}")),
            }
        }
        escaped
    };
    let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{}={}", escape(k), escape(v.as_str().unwrap_or_default()))).collect();
    pairs.join(",")
}

const BLOCK: usize = 256 * 1024;

/// The offset at which the last `lines` lines of a file start, and how many lines it has of them.
fn tail_of(segment: &Segment, lines: u64) -> io::Result<(u64, u64)> {
    let mut end = u64::try_from(sys::fd::fstat(segment.fd.as_fd())?.st_size).unwrap_or(0);
    let (mut buf, mut found) = (vec![0; 64 * 1024], 0);
    let mut first = true;
    while end > 0 {
        let start = end.saturating_sub(buf.len() as u64);
        let length = usize::try_from(end - start).unwrap_or(buf.len());
        let n = sys::fd::pread(segment.fd.as_fd(), &mut buf[..length], i64::try_from(start).unwrap_or(0))?;
        for at in memchr::memrchr_iter(b'\n', &buf[..n]) {
            // The newline that ends the file starts no line.
            if first && start + at as u64 + 1 == end {
                first = false;
                continue;
            }
            first = false;
            found += 1;
            if found == lines {
                return Ok((start + at as u64 + 1, lines));
            }
        }
        end = start;
    }
    Ok((0, found + u64::from(!first)))
}

/// Where to start in each segment, for `tail` lines over all of them (the last is the newest).
pub fn tail_starts(segments: &[Rc<Segment>], tail: Option<u64>) -> io::Result<Vec<Option<u64>>> {
    let Some(mut left) = tail else { return Ok(vec![Some(0); segments.len()]) };
    let mut starts = vec![None; segments.len()];
    for (i, segment) in segments.iter().enumerate().rev() {
        if left == 0 {
            // The newest file is read from its end, for those who follow it.
            if i + 1 == segments.len() {
                let size = u64::try_from(sys::fd::fstat(segment.fd.as_fd())?.st_size).unwrap_or(0);
                starts[i] = Some(size);
            }
            break;
        }
        let (start, found) = tail_of(segment, left)?;
        starts[i] = Some(start);
        left -= found;
    }
    Ok(starts)
}

/// The job that sends what is wanted of the segments to its client.
pub fn job(segments: Vec<Rc<Segment>>, want: Want, content_type: &'static str) -> Job {
    let keep = segments.iter().map(|segment| segment.fd.as_raw_fd()).collect();
    let mut job = Job::new("logs", move |context| send(context, &segments, &want, content_type));
    job.keep = keep;
    job
}

fn send(context: &mut Context, segments: &[Rc<Segment>], want: &Want, content_type: &str) -> Result<()> {
    let failed = |e: io::Error| Error::io("read the log", &e);
    let starts = tail_starts(segments, want.tail).map_err(failed)?;
    context.start(200, content_type)?;
    let mut out = Vec::with_capacity(BLOCK * 2);
    for (segment, start) in segments.iter().zip(starts) {
        let Some(start) = start else { continue };
        if !send_segment(segment, start, want, &mut out, context.writer()).map_err(failed)? {
            break;
        }
    }
    context.writer().write_all(&out).map_err(failed)
}

fn send_segment(segment: &Segment, start: u64, want: &Want, out: &mut Vec<u8>, writer: &mut dyn Write) -> io::Result<bool> {
    let (mut offset, mut carry, mut buf) = (start, Vec::new(), vec![0; BLOCK]);
    loop {
        let n = sys::fd::pread(segment.fd.as_fd(), &mut buf, i64::try_from(offset).unwrap_or(i64::MAX))?;
        if n == 0 {
            return Ok(true);
        }
        offset += n as u64;
        let mut data = &buf[..n];
        while let Some(end) = memchr::memchr(b'\n', data) {
            let entry = if carry.is_empty() {
                entry::parse(&data[..end])
            } else {
                carry.extend_from_slice(&data[..end]);
                entry::parse(&std::mem::take(&mut carry))
            };
            data = &data[end + 1..];
            if entry.is_some_and(|entry| !want.render(&entry, out)) {
                return Ok(false);
            }
        }
        carry.extend_from_slice(data);
        if carry.len() > 1 << 20 {
            carry.clear(); // no entry is that long: the file is not one of ours
        }
        if out.len() >= BLOCK {
            writer.write_all(out)?;
            out.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::log::json_file::{JsonFile, JsonFileOptions, open_segments};

    #[test]
    fn tail_counts_lines_over_rotated_files() {
        let dir = std::env::temp_dir().join(format!("coracle-tail-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let options = JsonFileOptions { max_size: 300, max_files: 9, attributes: String::new() };
        let mut file = JsonFile::open(&dir.join("x.log"), options).unwrap();
        for i in 0..10 {
            file.feed(Stream::Stdout, format!("{i}\n").as_bytes(), &mut |_| {});
        }
        let segments = open_segments(file.path(), file.current().number);
        for tail in [0, 1, 4, 7, 10, 50] {
            let want = Want { stdout: true, tty: true, tail: Some(tail), ..Want::default() };
            let mut out = Vec::new();
            for (segment, start) in segments.iter().zip(tail_starts(&segments, want.tail).unwrap()) {
                if let Some(start) = start {
                    send_segment(segment, start, &want, &mut out, &mut io::sink()).unwrap();
                }
            }
            let lines = String::from_utf8(out).unwrap();
            let expected: String = (10 - tail.min(10)..10).map(|i| format!("{i}\n")).collect();
            assert_eq!(lines, expected, "{tail}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn details_are_escaped_and_sorted() {
        assert_eq!(details(r#"{"b":"x y","a":"1,2"}"#), "a=1%2C2,b=x+y");
    }
}
