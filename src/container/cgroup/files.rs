//! Small kernel files below a directory descriptor: read whole, write whole.

use crate::sys::{cstring, fd, fs};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// No cgroup file that is read here is larger; `cgroup.procs` of a huge container is read in pieces by its own function.
const MAX: usize = 1 << 20;

/// Opens a directory below `dir` without following links.
pub fn open_dir(dir: BorrowedFd, path: &str) -> io::Result<OwnedFd> {
    fd::openat(dir, cstring(path)?.as_c_str(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0)
}

/// The file's whole text.
pub fn read(dir: BorrowedFd, path: &str) -> io::Result<String> {
    let file = fd::openat(dir, cstring(path)?.as_c_str(), libc::O_RDONLY | libc::O_NOFOLLOW, 0)?;
    let mut text = vec![0; 4096];
    let mut length = 0;
    loop {
        if length == text.len() {
            if length >= MAX {
                return Err(io::Error::from_raw_os_error(libc::EFBIG));
            }
            text.resize(length * 2, 0);
        }
        match fd::read(file.as_fd(), text.get_mut(length..).unwrap_or_default())? {
            0 => break,
            n => length += n,
        }
    }
    text.truncate(length);
    String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// One write(2) of the whole text, which is how the kernel wants its settings.
pub fn write(dir: BorrowedFd, path: &str, text: &str) -> io::Result<()> {
    let file = fd::openat(dir, cstring(path)?.as_c_str(), libc::O_WRONLY | libc::O_NOFOLLOW, 0)?;
    fd::write(file.as_fd(), text.as_bytes()).map(drop)
}

/// mkdir; one that is there already is no error.
pub fn ensure_dir(dir: BorrowedFd, path: &str) -> io::Result<()> {
    match fs::mkdirat(dir, cstring(path)?.as_c_str(), 0o755) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// The names of the directories in `dir`.
pub fn subdirectories(dir: BorrowedFd, path: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::Directory::from_fd(open_dir(dir, path)?)? {
        let entry = entry?;
        if entry.kind == libc::DT_DIR {
            names.extend(entry.name.into_string());
        }
    }
    Ok(names)
}

/// The value of a line "key value" in a flat keyed file.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
