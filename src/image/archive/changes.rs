//! What a container changed: its overlay upper directory against the image's layers, and how much space trees take.
//!
//! The rules are those of the reference's tree comparison (kind, mode, owner, device; size and time of what is no
//! directory; file capabilities), applied to what overlay shows, without mounting it and without reading contents.

use super::apply::is_whiteout;
use super::walk::failed;
use crate::error::Result;
use crate::sys::{fd, fs};
use std::collections::{BTreeMap, HashSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The numbers are the API's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    Modified = 0,
    Added = 1,
    Deleted = 2,
}

impl ChangeKind {
    /// As `docker diff` prints it.
    pub fn letter(self) -> char {
        match self {
            ChangeKind::Modified => 'C',
            ChangeKind::Added => 'A',
            ChangeKind::Deleted => 'D',
        }
    }
}

/// One changed path, absolute in the container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    pub path: Vec<u8>,
    pub kind: ChangeKind,
}

/// Compares `upper` with `lowers` (topmost first). Parents come before what is in them, names in byte order.
/// Needs CAP_SYS_ADMIN, to see opaque marks.
pub fn changes(upper: BorrowedFd, lowers: &[BorrowedFd]) -> Result<Vec<Change>> {
    let mut comparison = Comparison { found: Vec::new() };
    let lowers = lowers.iter().map(|lower| fd::dup_cloexec(*lower, 3)).collect::<io::Result<Vec<_>>>();
    comparison.directory(upper, &lowers.map_err(|e| failed("dup", b"", &e))?, &mut Vec::new())?;
    Ok(comparison.found)
}

struct Comparison {
    found: Vec<Change>,
}

/// What the layers below show under one name.
#[derive(Default)]
struct Below {
    /// The topmost one's attributes, and the layer's directory that holds it.
    first: Option<(libc::stat64, usize)>,
    /// When it is a directory: all that overlay merges, topmost first.
    directories: Vec<OwnedFd>,
}

impl Comparison {
    /// `path` is the directory's own, without a slash at its end; it is restored.
    fn directory(&mut self, upper: BorrowedFd, lowers: &[OwnedFd], path: &mut Vec<u8>) -> Result<()> {
        let mut names = names(upper, path)?;
        if !lowers.is_empty() && is_opaque(upper) {
            // Everything below is gone, except what was made again.
            for name in merged_names(lowers, path)? {
                names.entry(name).or_insert(false);
            }
        }
        for (name, in_upper) in names {
            let length = path.len();
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
            if in_upper {
                self.name(upper, &name, lowers, path)?;
            } else {
                self.found.push(Change { path: path.clone(), kind: ChangeKind::Deleted });
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn name(&mut self, upper: BorrowedFd, name: &CStr, lowers: &[OwnedFd], path: &mut Vec<u8>) -> Result<()> {
        let stat = match fs::fstatat(upper, name, libc::AT_SYMLINK_NOFOLLOW) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()), // the container goes on meanwhile
            done => done.map_err(|e| failed("lstat", path, &e))?,
        };
        let below = below(lowers, name, path)?;
        let at = self.found.len();
        let kind = match &below.first {
            Some(_) if is_whiteout(&stat) => Some(ChangeKind::Deleted),
            None if is_whiteout(&stat) => None,
            None => Some(ChangeKind::Added),
            Some((old, layer)) => {
                let differ = differ(old, &stat) || capability(upper, name, &stat) != capability(lowers[*layer].as_fd(), name, old);
                differ.then_some(ChangeKind::Modified)
            }
        };
        if let Some(kind) = kind {
            self.found.push(Change { path: path.clone(), kind });
        }
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            match fd::openat(upper, name, libc::O_DIRECTORY | libc::O_NOFOLLOW, 0) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => return Ok(()),
                opened => {
                    let inner = opened.map_err(|e| failed("open", path, &e))?;
                    self.directory(inner.as_fd(), &below.directories, path)?;
                }
            }
            // A directory with changes in it is changed.
            if kind.is_none() && self.found.len() > at {
                self.found.insert(at, Change { path: path.clone(), kind: ChangeKind::Modified });
            }
        }
        Ok(())
    }
}

/// Looks a name up in the layers as overlay does: a whiteout or a file ends the search, an opaque directory does after itself.
fn below(lowers: &[OwnedFd], name: &CStr, path: &[u8]) -> Result<Below> {
    let mut below = Below::default();
    for (i, lower) in lowers.iter().enumerate() {
        let stat = match fs::fstatat(lower.as_fd(), name, libc::AT_SYMLINK_NOFOLLOW) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => continue,
            done => done.map_err(|e| failed("lstat", path, &e))?,
        };
        let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if is_whiteout(&stat) || (!directory && below.first.is_some()) {
            break;
        }
        below.first.get_or_insert((stat, i));
        if !directory {
            break;
        }
        let opened = fd::openat(lower.as_fd(), name, libc::O_DIRECTORY | libc::O_NOFOLLOW, 0).map_err(|e| failed("open", path, &e))?;
        let last = is_opaque(opened.as_fd());
        below.directories.push(opened);
        if last {
            break;
        }
    }
    Ok(below)
}

fn is_opaque(directory: BorrowedFd) -> bool {
    fs::fgetxattr(directory, c"trusted.overlay.opaque").is_ok_and(|value| value == b"y")
}

fn list(directory: BorrowedFd, path: &[u8]) -> Result<Vec<CString>> {
    let copy = fd::openat(directory, c".", libc::O_DIRECTORY, 0).map_err(|e| failed("open", path, &e))?;
    let entries = fs::Directory::from_fd(copy).map_err(|e| failed("readdir", path, &e))?;
    entries.map(|entry| entry.map(|e| e.name).map_err(|e| failed("readdir", path, &e))).collect()
}

fn names(upper: BorrowedFd, path: &[u8]) -> Result<BTreeMap<CString, bool>> {
    Ok(list(upper, path)?.into_iter().map(|name| (name, true)).collect())
}

/// The names that overlay shows of merged directories.
fn merged_names(lowers: &[OwnedFd], path: &[u8]) -> Result<Vec<CString>> {
    let (mut seen, mut shown) = (HashSet::new(), Vec::new());
    for lower in lowers {
        for name in list(lower.as_fd(), path)? {
            if seen.insert(name.clone()) {
                let stat = fs::fstatat(lower.as_fd(), &name, libc::AT_SYMLINK_NOFOLLOW).map_err(|e| failed("lstat", path, &e))?;
                if !is_whiteout(&stat) {
                    shown.push(name);
                }
            }
        }
    }
    Ok(shown)
}

/// Whether two inodes differ as the reference sees it. Times of directories change with any name in them and say nothing;
/// a time without nanoseconds may have come from an old archive.
fn differ(old: &libc::stat64, new: &libc::stat64) -> bool {
    let same_time =
        old.st_mtime == new.st_mtime && (old.st_mtime_nsec == new.st_mtime_nsec || old.st_mtime_nsec == 0 || new.st_mtime_nsec == 0);
    (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (new.st_mode, new.st_uid, new.st_gid, new.st_rdev)
        || (old.st_mode & libc::S_IFMT != libc::S_IFDIR && (!same_time || old.st_size != new.st_size))
}

fn capability(dir: BorrowedFd, name: &CStr, stat: &libc::stat64) -> Option<Vec<u8>> {
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return None;
    }
    let file = fd::openat(dir, name, libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK, 0).ok()?;
    fs::fgetxattr(file.as_fd(), c"security.capability").ok()
}

/// The sizes of all that is no directory below `root`, each inode once, in bytes; mounts below it are not entered.
/// What vanishes meanwhile counts nothing.
pub fn size_of(root: BorrowedFd) -> Result<u64> {
    let device = fd::fstat(root).map_err(|e| failed("stat", b"", &e))?.st_dev;
    size_below(root, device, &mut HashSet::new())
}

fn size_below(directory: BorrowedFd, device: libc::dev_t, seen: &mut HashSet<(libc::dev_t, libc::ino64_t)>) -> Result<u64> {
    let mut total = 0;
    for name in list(directory, b"")? {
        let Ok(stat) = fs::fstatat(directory, &name, libc::AT_SYMLINK_NOFOLLOW) else { continue };
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            let inner = fd::openat(directory, &name, libc::O_DIRECTORY | libc::O_NOFOLLOW, 0);
            if let (Ok(inner), true) = (inner, stat.st_dev == device) {
                total += size_below(inner.as_fd(), device, seen)?;
            }
        } else if stat.st_nlink < 2 || seen.insert((stat.st_dev, stat.st_ino)) {
            total += u64::try_from(stat.st_size).unwrap_or(0);
        }
    }
    Ok(total)
}
