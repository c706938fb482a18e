//! The json-file driver's writer: one file, rotated by size. Segments are numbered, so that followers know theirs.

use super::Stream;
use super::entry;
use super::split::Splitter;
use crate::sys;
use crate::timestamp;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Rotation is on by default: bytes per file, and files in all.
const DEFAULT_MAX_SIZE: u64 = 10_000_000;
const DEFAULT_MAX_FILES: u32 = 3;

/// One file of a log, open for reading; the number grows with each rotation.
#[derive(Debug)]
pub struct Segment {
    pub number: u64,
    pub fd: OwnedFd,
}

/// Where a log is: segment number and byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub segment: u64,
    pub offset: u64,
}

/// The driver's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonFileOptions {
    pub max_size: u64,
    pub max_files: u32,
    /// `attrs` of each entry: a JSON object's text, or "".
    pub attributes: String,
}

impl Default for JsonFileOptions {
    fn default() -> JsonFileOptions {
        JsonFileOptions { max_size: DEFAULT_MAX_SIZE, max_files: DEFAULT_MAX_FILES, attributes: String::new() }
    }
}

/// The writer of one container's log.
#[derive(Debug)]
pub struct JsonFile {
    path: PathBuf,
    options: JsonFileOptions,
    write: OwnedFd,
    current: Rc<Segment>,
    size: u64,
    splitters: [Splitter; 2],
    batch: Vec<u8>,
    /// Lines that could not be written (a full disk); told once when writing works again.
    lost: u64,
}

/// The name of the n-th older file: 0 is the current one.
pub fn rotated(path: &Path, n: u32) -> PathBuf {
    if n == 0 {
        return path.to_path_buf();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

fn open(path: &Path, number: u64) -> io::Result<(OwnedFd, Segment)> {
    let c_path = sys::cstring(path.as_os_str().as_encoded_bytes())?;
    let write = sys::fd::open(&c_path, libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_NOFOLLOW, 0o640)?;
    let read = sys::fd::open(&c_path, libc::O_RDONLY | libc::O_NOFOLLOW, 0)?;
    Ok((write, Segment { number, fd: read }))
}

impl JsonFile {
    /// Opens a container's log for appending.
    pub fn open(path: &Path, options: JsonFileOptions) -> io::Result<JsonFile> {
        let (write, segment) = open(path, 1)?;
        let size = u64::try_from(sys::fd::fstat(write.as_fd())?.st_size).unwrap_or(0);
        let current = Rc::new(segment);
        Ok(JsonFile { path: path.to_path_buf(), options, write, current, size, splitters: Default::default(), batch: Vec::new(), lost: 0 })
    }

    pub fn current(&self) -> &Rc<Segment> {
        &self.current
    }

    /// The end of what is written.
    pub fn position(&self) -> Position {
        Position { segment: self.current.number, offset: self.size }
    }

    /// Bytes of a stream that clients have seen and the log has not: the start of an unfinished line.
    pub fn carried(&self, stream: Stream) -> usize {
        self.splitters[stream as usize - 1].carried()
    }

    /// Logs bytes of a stream; segments that rotation opened meanwhile are told to `rotated`.
    pub fn feed(&mut self, stream: Stream, data: &[u8], rotated: &mut dyn FnMut(&Rc<Segment>)) {
        self.log(stream, Some(data), rotated);
    }

    /// A stream has ended.
    pub fn end(&mut self, stream: Stream, rotated: &mut dyn FnMut(&Rc<Segment>)) {
        self.log(stream, None, rotated);
    }

    fn log(&mut self, stream: Stream, data: Option<&[u8]>, rotated: &mut dyn FnMut(&Rc<Segment>)) {
        let now_ns = sys::time::realtime_ns();
        // One clock for the whole read: formatting it once is most of what makes this fast.
        let (mut formatted_ns, mut formatted) = (now_ns, timestamp::rfc3339(now_ns));
        let mut splitter = std::mem::take(&mut self.splitters[stream as usize - 1]);
        let mut each = |message: super::split::Message| {
            if message.time_ns != formatted_ns {
                formatted_ns = message.time_ns;
                formatted = timestamp::rfc3339(formatted_ns);
            }
            if self.size + self.batch.len() as u64 >= self.options.max_size {
                self.write_batch();
                if let Err(e) = self.rotate() {
                    log::error!("rotate {}: {e}", self.path.display());
                } else {
                    rotated(&self.current);
                }
            }
            entry::append(&mut self.batch, stream, &message, &self.options.attributes, &formatted);
        };
        match data {
            Some(data) => splitter.feed(data, now_ns, &mut each),
            None => splitter.end(now_ns, &mut each),
        }
        self.splitters[stream as usize - 1] = splitter;
        self.write_batch();
        if self.batch.capacity() > 512 * 1024 {
            self.batch = Vec::new();
        }
    }

    /// Writes the batch. What the disk does not take is lost and counted: a log never stops its container.
    fn write_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match sys::fd::write(self.write.as_fd(), &self.batch) {
            Ok(n) if n == self.batch.len() => {
                self.size += n as u64;
                if self.lost > 0 {
                    log::warn!("{}: {} bytes of log were lost while it could not be written", self.path.display(), self.lost);
                    self.lost = 0;
                }
            }
            outcome => {
                // Half an entry is cut off again, or the next one would be glued to it.
                let _ = sys::fd::ftruncate(self.write.as_fd(), i64::try_from(self.size).unwrap_or(i64::MAX));
                if self.lost == 0 {
                    let cause = outcome.err().map_or_else(|| "short write".to_string(), |e| e.to_string());
                    log::error!("{}: {cause}; the log loses lines until it can be written", self.path.display());
                }
                self.lost += self.batch.len() as u64;
            }
        }
        self.batch.clear();
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.options.max_files > 1 {
            for n in (1..self.options.max_files).rev() {
                match std::fs::rename(rotated(&self.path, n - 1), rotated(&self.path, n)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        } else {
            std::fs::remove_file(&self.path)?;
        }
        let (write, segment) = open(&self.path, self.current.number + 1)?;
        (self.write, self.current, self.size) = (write, Rc::new(segment), 0);
        Ok(())
    }

    /// Frees what an idle log does not need.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens what there is of a log, oldest first: the current file last. Numbers count back from `current`.
pub fn open_segments(path: &Path, current: u64) -> Vec<Rc<Segment>> {
    let mut segments = Vec::new();
    for n in 0..64 {
        let Ok(c_path) = sys::cstring(rotated(path, n).as_os_str().as_encoded_bytes()) else { break };
        match sys::fd::open(&c_path, libc::O_RDONLY | libc::O_NOFOLLOW, 0) {
            Ok(fd) => segments.push(Rc::new(Segment { number: current.saturating_sub(u64::from(n)), fd })),
            Err(_) => break,
        }
    }
    segments.reverse();
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_keeps_the_newest_files_and_numbers_segments() {
        let dir = std::env::temp_dir().join(format!("coracle-json-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("x.log");
        let options = JsonFileOptions { max_size: 300, max_files: 2, attributes: String::new() };
        let mut file = JsonFile::open(&path, options).unwrap();
        let mut seen = Vec::new();
        for i in 0..20 {
            file.feed(Stream::Stdout, format!("line {i}\n").as_bytes(), &mut |s| seen.push(s.number));
        }
        assert!(seen.len() > 3 && seen.windows(2).all(|w| w[1] == w[0] + 1));
        assert!(rotated(&path, 1).exists() && !rotated(&path, 2).exists());
        assert!(std::fs::metadata(&path).unwrap().len() < 400);
        file.feed(Stream::Stderr, b"rest", &mut |_| {});
        assert_eq!(file.carried(Stream::Stderr), 4);
        file.end(Stream::Stderr, &mut |_| {});
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"rest\",\"stream\":\"stderr\""));
        assert_eq!(open_segments(&path, file.current().number).len(), 2);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
