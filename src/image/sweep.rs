//! Deleting trees: by descriptors, without following a link, without crossing into another file system.

use crate::sys;
use crate::sys::fs::Directory;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Directories that are open at once; what lies deeper is first moved up.
const DEPTH_MAX: usize = 64;

/// Deletes `name` below `dir` with all that is in it. One that is not there is no error.
pub fn remove_tree(dir: BorrowedFd, name: &CStr) -> io::Result<()> {
    match sys::fs::unlinkat(dir, name, 0) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if is_directory_error(&e) => {}
        Err(e) => return Err(e),
    }
    let top = open_directory(dir, name)?;
    empty(&top)?;
    sys::fs::unlinkat(dir, name, libc::AT_REMOVEDIR)
}

/// unlink(2) of a directory is EISDIR on Linux and EPERM by POSIX.
fn is_directory_error(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EISDIR | libc::EPERM))
}

fn open_directory(dir: BorrowedFd, name: &CStr) -> io::Result<OwnedFd> {
    // A mount point that somebody left here is not ours to empty.
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let resolve = sys::fd::RESOLVE_NO_XDEV | sys::fd::RESOLVE_NO_SYMLINKS | sys::fd::RESOLVE_BENEATH;
    sys::fd::openat2(dir, name, flags, 0, resolve)
}

struct Level {
    dir: OwnedFd,
    entries: Directory,
    name: CString,
}

fn level(dir: OwnedFd, name: CString) -> io::Result<Level> {
    let again = sys::fd::openat(dir.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    Ok(Level { entries: Directory::from_fd(again)?, dir, name })
}

fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut lifted = 0u64;
    loop {
        let before = lifted;
        let root = sys::fd::openat(top.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let mut stack = vec![level(root, CString::default())?];
        while let Some(current) = stack.last_mut() {
            let Some(entry) = current.entries.next() else {
                let Some(done) = stack.pop() else { break };
                if let Some(parent) = stack.last() {
                    sys::fs::unlinkat(parent.dir.as_fd(), &done.name, libc::AT_REMOVEDIR)?;
                }
                continue;
            };
            let name = entry?.name;
            match sys::fs::unlinkat(current.dir.as_fd(), &name, 0) {
                Ok(()) => continue,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) if is_directory_error(&e) => {}
                Err(e) => return Err(e),
            }
            if stack.len() < DEPTH_MAX {
                let parent = stack.last().map(|level| level.dir.as_fd()).ok_or_else(|| io::Error::other("an empty stack"))?;
                let child = open_directory(parent, &name)?;
                stack.push(level(child, name)?);
                continue;
            }
            lifted += 1;
            let target = sys::cstring(format!(".lifted-{lifted}-{}", sys::process::getpid()))?;
            let from = stack.last().map(|level| level.dir.as_fd()).ok_or_else(|| io::Error::other("an empty stack"))?;
            sys::fs::renameat2(from, &name, top.as_fd(), &target, libc::RENAME_NOREPLACE)?;
        }
        // What was lifted while the top was being read may have been missed: look again.
        if lifted == before {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::scratch::Scratch;
    use std::fs;

    #[test]
    fn deletes_trees_and_leaves_what_links_point_to() {
        let scratch = Scratch::new("sweep");
        let at = |path: &str| scratch.path().join(path);
        fs::create_dir_all(at("tree/a/b/c")).unwrap();
        fs::write(at("tree/a/file"), b"x").unwrap();
        fs::write(at("outside"), b"x").unwrap();
        fs::create_dir(at("outside-dir")).unwrap();
        fs::write(at("outside-dir/kept"), b"x").unwrap();
        std::os::unix::fs::symlink(at("outside-dir"), at("tree/a/link")).unwrap();
        std::os::unix::fs::symlink(at("outside-dir"), at("top-link")).unwrap();
        let dir = scratch.fd();
        for name in [c"tree", c"top-link", c"missing"] {
            remove_tree(dir.as_fd(), name).unwrap();
        }
        assert!(!at("tree").exists() && at("outside-dir/kept").exists());
        assert!(at("top-link").symlink_metadata().is_err());
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let scratch = Scratch::new("sweep-deep");
        let dir = scratch.fd();
        sys::fs::mkdirat(dir.as_fd(), c"deep", 0o700).unwrap();
        let mut current = sys::fd::openat(dir.as_fd(), c"deep", libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        for _ in 0..3000 {
            sys::fs::mkdirat(current.as_fd(), c"d", 0o700).unwrap();
            current = sys::fd::openat(current.as_fd(), c"d", libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        }
        drop(current);
        remove_tree(dir.as_fd(), c"deep").unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
