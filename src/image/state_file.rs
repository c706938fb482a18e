//! State files: one JSON document with a version and a checksum, so that a torn one is known as torn.
//!
//! A file looks like `{"version":1,"checksum":"sha256:…","state":{…}}`; the checksum covers the bytes of `state`.
//! Files change by rename alone. Where a previous generation is kept, it is the same name with `.prev` appended.

use super::digest::Digest;
use crate::sys;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::ffi::CStr;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Largest state file that is read: 64 MiB.
pub const STATE_MAX: u64 = 64 << 20;

/// Why a state file was not understood.
#[derive(Debug)]
pub enum Damage {
    /// Unreadable: the call's error.
    Io(io::Error),
    /// Empty, cut short, not JSON, or its checksum differs.
    Torn,
    /// Written by another generation of this program.
    Version(u32),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Io(cause) => f.write_str(&crate::error::strerror(cause)),
            Damage::Torn => f.write_str("torn or damaged"),
            Damage::Version(version) => write!(f, "has the unknown version {version}"),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    version: u32,
    checksum: Digest,
    #[serde(borrow)]
    state: &'a RawValue,
}

/// The bytes of a state file.
pub fn encode<T: Serialize>(version: u32, state: &T) -> Vec<u8> {
    let state = serde_json::value::to_raw_value(state).expect("state types have string keys and no failing serializers");
    let envelope = Envelope { version, checksum: Digest::of(state.get().as_bytes()), state: &state };
    let mut bytes = serde_json::to_vec(&envelope).expect("an envelope of a number, a digest and raw JSON");
    bytes.push(b'\n');
    bytes
}

/// The state in a file's bytes.
pub fn decode<T: DeserializeOwned>(version: u32, bytes: &[u8]) -> Result<T, Damage> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|_| Damage::Torn)?;
    if Digest::of(envelope.state.get().as_bytes()) != envelope.checksum {
        return Err(Damage::Torn);
    }
    if envelope.version != version {
        return Err(Damage::Version(envelope.version));
    }
    serde_json::from_str(envelope.state.get()).map_err(|_| Damage::Torn)
}

/// Reads a state file by path; `Ok(None)` when there is none.
pub fn read<T: DeserializeOwned>(version: u32, path: &Path) -> Result<Option<T>, Damage> {
    use std::os::unix::ffi::OsStrExt;
    let path = sys::cstring(path.as_os_str().as_bytes()).map_err(Damage::Io)?;
    match read_regular(sys::fd::AT_FDCWD, &path, STATE_MAX) {
        Ok(bytes) => decode(version, &bytes).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Damage::Io(e)),
    }
}

/// Reads a whole regular file below `dir`: never follows a last symbolic link, never waits at a FIFO, never reads a device.
/// More than `max` bytes is EFBIG; anything but a regular file is EINVAL.
pub fn read_regular(dir: BorrowedFd, name: &CStr, max: u64) -> io::Result<Vec<u8>> {
    let fd = sys::fd::openat(dir, name, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY, 0)?;
    let stat = sys::fd::fstat(fd.as_fd())?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let too_big = || io::Error::from_raw_os_error(libc::EFBIG);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size > max {
        return Err(too_big());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).map_err(|_| too_big())?);
    // One byte more than allowed, in case the file grows while it is read.
    std::fs::File::from(fd).take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(too_big()) } else { Ok(bytes) }
}

/// Writes a file durably and atomically, waiting for the disk: temporary file, fsync, rename, fsync of the directory.
/// For workers and for the daemon's start; the loop uses `Daemon::write_state`.
pub fn write_durably(dir: BorrowedFd, name: &CStr, bytes: &[u8]) -> io::Result<()> {
    let temporary = sys::cstring([b".", name.to_bytes(), b".new"].concat())?;
    let written = (|| {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_NOFOLLOW;
        let fd = sys::fd::openat(dir, &temporary, flags, 0o600)?;
        sys::fd::write_all(fd.as_fd(), bytes)?;
        sys::fd::fsync(fd.as_fd())?;
        sys::fs::renameat2(dir, &temporary, dir, name, 0)
    })();
    if let Err(cause) = written {
        // A full disk must not stay fuller by our leftover.
        let _ = sys::fs::unlinkat(dir, &temporary, 0);
        return Err(cause);
    }
    sys::fd::fsync(dir)
}

/// Keeps the present generation of `name` as `name.prev`, by a hard link and a rename: nothing is copied, nothing waits.
pub fn keep_previous(dir: BorrowedFd, name: &CStr) -> io::Result<()> {
    let previous = sys::cstring([name.to_bytes(), b".prev"].concat())?;
    let link = sys::cstring([b".", name.to_bytes(), b".link"].concat())?;
    let _ = sys::fs::unlinkat(dir, &link, 0);
    match sys::fs::linkat(dir, name, dir, &link, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    sys::fs::renameat2(dir, &link, dir, &previous, 0)?;
    // rename(2) does nothing when both names are one file already: the link is left then.
    let _ = sys::fs::unlinkat(dir, &link, 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type State = BTreeMap<String, u32>;

    fn state() -> State {
        State::from([("a".into(), 1)])
    }

    #[test]
    fn comes_back_as_it_went() {
        assert_eq!(decode::<State>(1, &encode(1, &state())).unwrap(), state());
    }

    #[test]
    fn knows_a_torn_file_at_every_length() {
        let bytes = encode(1, &state());
        // The last byte is the newline, which carries nothing.
        for n in 0..bytes.len() - 1 {
            assert!(matches!(decode::<State>(1, &bytes[..n]), Err(Damage::Torn)), "{n} bytes");
        }
        for n in 0..bytes.len() - 1 {
            let mut flipped = bytes.clone();
            flipped[n] ^= 1;
            assert!(decode::<State>(1, &flipped).is_err(), "byte {n} flipped");
        }
    }

    #[test]
    fn knows_another_generation() {
        assert!(matches!(decode::<State>(1, &encode(2, &state())), Err(Damage::Version(2))));
    }

    #[test]
    fn reads_regular_files_only() {
        let dir = crate::image::scratch::Scratch::new("read-regular");
        let fd = dir.fd();
        write_durably(fd.as_fd(), c"file", b"12345").unwrap();
        assert_eq!(read_regular(fd.as_fd(), c"file", 5).unwrap(), b"12345");
        assert_eq!(read_regular(fd.as_fd(), c"file", 4).unwrap_err().raw_os_error(), Some(libc::EFBIG));
        sys::fs::mknodat(fd.as_fd(), c"fifo", libc::S_IFIFO | 0o600, 0).unwrap();
        assert_eq!(read_regular(fd.as_fd(), c"fifo", 5).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        sys::fs::symlinkat(c"file", fd.as_fd(), c"link").unwrap();
        assert_eq!(read_regular(fd.as_fd(), c"link", 5).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert!(read_regular(fd.as_fd(), c"missing", 5).is_err());
    }

    #[test]
    fn keeps_the_generation_before() {
        let dir = crate::image::scratch::Scratch::new("generations");
        let fd = dir.fd();
        keep_previous(fd.as_fd(), c"s").unwrap();
        write_durably(fd.as_fd(), c"s", b"one").unwrap();
        keep_previous(fd.as_fd(), c"s").unwrap();
        keep_previous(fd.as_fd(), c"s").unwrap();
        write_durably(fd.as_fd(), c"s", b"two").unwrap();
        assert_eq!(read_regular(fd.as_fd(), c"s.prev", 9).unwrap(), b"one");
        assert_eq!(read_regular(fd.as_fd(), c"s", 9).unwrap(), b"two");
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["s", "s.prev"]);
    }
}
