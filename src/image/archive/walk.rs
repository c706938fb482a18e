//! Paths of an archive, walked below one directory: component by component, each opened without following links.
//!
//! Symbolic links on the way (a layer may have `lib -> usr/lib` and then `lib/x`) are resolved here, in our own words,
//! and never lead above the root. The directories of the last path stay open, as neighbours usually come together.

use super::header::{NAME_MAX, PATH_MAX};
use crate::error::{Error, Kind, Result};
use crate::sys::{self, fd, fs};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Deepest directory that an archive may name; each level of the current path is one open descriptor.
pub const DEPTH_MAX: usize = 512;
/// Links followed in one path, as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// A path as it is meant: no leading slash, no "." and "..", no empty component. "" is the root.
///
/// Absolute names count from the root, as with the reference; ".." that would leave the root is refused.
pub fn clean(path: &[u8], destination: &str) -> Result<Vec<u8>> {
    let mut clean: Vec<&[u8]> = Vec::new();
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if clean.pop().is_none() {
                    let name = String::from_utf8_lossy(path);
                    return Err(Error::invalid(format!("{name:?} is outside of {destination:?}")));
                }
            }
            name if name.len() > NAME_MAX => return Err(too_long(path)),
            name => clean.push(name),
        }
    }
    if path.len() > PATH_MAX || clean.len() > DEPTH_MAX {
        return Err(too_long(path));
    }
    Ok(clean.join(&b'/'))
}

fn too_long(path: &[u8]) -> Error {
    let shown: String = String::from_utf8_lossy(path).chars().take(64).collect();
    Error::invalid(format!("open {shown}…: file name too long"))
}

/// The parent and the last component of a clean path; `None` for the root.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    })
}

/// What a failed call on a path of the archive means: broken input, or a failure of ours or of the disk.
pub fn failed(call: &str, path: &[u8], cause: &io::Error) -> Error {
    let what = format!("{call} /{}", String::from_utf8_lossy(path));
    let error = Error::io(what, cause);
    match cause.raw_os_error() {
        Some(
            libc::ENOENT | libc::ENOTDIR | libc::EISDIR | libc::EEXIST | libc::ELOOP | libc::ENAMETOOLONG | libc::EINVAL | libc::EMLINK,
        ) => Error::new(Kind::InvalidParameter, error.message),
        _ => error,
    }
}

/// What to do about a parent directory that does not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// ENOENT.
    Refuse,
    /// Make it, mode 0755, owned by root, as the reference does.
    Create,
}

/// A root directory and the open directories of the path that was walked last.
pub struct Walk<'a> {
    root: BorrowedFd<'a>,
    open: Vec<(Vec<u8>, OwnedFd)>,
}

impl<'a> Walk<'a> {
    pub fn new(root: BorrowedFd<'a>) -> Walk<'a> {
        Walk { root, open: Vec::new() }
    }

    /// Forgets what is open; to be called when a directory was removed or replaced.
    pub fn forget(&mut self) {
        self.open.clear();
    }

    /// The directory `path` (clean), all links resolved.
    pub fn directory(&mut self, path: &[u8], missing: Missing) -> Result<BorrowedFd<'_>> {
        let mut wanted = path.split(|b| *b == b'/').filter(|c| !c.is_empty());
        let mut shared = 0;
        let mut rest: Vec<Vec<u8>> = Vec::new();
        for component in wanted.by_ref() {
            if self.open.get(shared).is_some_and(|(name, _)| name == component) {
                shared += 1;
            } else {
                rest.push(component.to_vec());
                break;
            }
        }
        self.open.truncate(shared);
        rest.extend(wanted.map(<[u8]>::to_vec));
        rest.reverse();
        let mut links = 0;
        while let Some(component) = rest.pop() {
            if self.open.len() >= DEPTH_MAX {
                return Err(too_long(path));
            }
            let name = sys::cstring(&component).map_err(|e| failed("open", path, &e))?;
            match self.enter(&name, missing) {
                Ok(directory) => self.open.push((component, directory)),
                Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
                    links += 1;
                    let target = fs::readlinkat(self.current(), &name).map_err(|_| failed("mkdir", path, &not_a_directory()))?;
                    if links > LINKS_MAX {
                        return Err(failed("open", path, &io::Error::from_raw_os_error(libc::ELOOP)));
                    }
                    self.follow(&target, &mut rest, path)?;
                }
                Err(e) => return Err(failed("open", path, &e)),
            }
        }
        Ok(self.current())
    }

    /// Puts a link's target in front of what is still to walk; ".." is taken at once where it stands first.
    fn follow(&mut self, target: &[u8], rest: &mut Vec<Vec<u8>>, path: &[u8]) -> Result<()> {
        if target.first() == Some(&b'/') {
            self.open.clear();
        }
        let mut above = 0;
        let mut names: Vec<&[u8]> = Vec::new();
        for component in target.split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." if names.pop().is_none() => above += 1,
                b".." => {}
                name => names.push(name),
            }
        }
        // Above the root is the root, as in every chroot.
        self.open.truncate(self.open.len().saturating_sub(above));
        if rest.len() + names.len() > DEPTH_MAX {
            return Err(too_long(path));
        }
        rest.extend(names.into_iter().rev().map(<[u8]>::to_vec));
        Ok(())
    }

    fn enter(&self, name: &CStr, missing: Missing) -> io::Result<OwnedFd> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        match fd::openat(self.current(), name, flags, 0) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) && missing == Missing::Create => {
                fs::mkdirat(self.current(), name, 0o755)?;
                let made = fd::openat(self.current(), name, flags, 0)?;
                // mkdir is subject to the umask and to a setgid parent.
                fs::fchownat(made.as_fd(), c"", 0, 0, libc::AT_EMPTY_PATH)?;
                fs::fchmod(made.as_fd(), 0o755)?;
                Ok(made)
            }
            done => done,
        }
    }

    /// The directory that the last walk ended in.
    pub fn current(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.root, |(_, directory)| directory.as_fd())
    }

    /// The path of `name` in [`Walk::current`] with every link resolved.
    pub fn resolved(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::new();
        for (component, _) in &self.open {
            path.extend_from_slice(component);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// Opens a clean path's last component without following it. The root itself can't be opened so.
    pub fn open(&mut self, path: &[u8], flags: libc::c_int) -> Result<OwnedFd> {
        let (parent, name) = split(path).ok_or_else(|| failed("open", path, &io::Error::from_raw_os_error(libc::EISDIR)))?;
        let name = name_of(name, path)?;
        let directory = self.directory(parent, Missing::Refuse)?;
        fd::openat(directory, &name, flags | libc::O_NOFOLLOW, 0).map_err(|e| failed("open", path, &e))
    }
}

/// A component as the kernel wants it.
pub fn name_of(name: &[u8], path: &[u8]) -> Result<CString> {
    sys::cstring(name).map_err(|e| failed("open", path, &e))
}

fn not_a_directory() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTDIR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::scratch::Scratch;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_are_cleaned_and_kept_inside() {
        for (path, expected) in
            [("a/b", "a/b"), ("./a//b/", "a/b"), ("/a/b", "a/b"), ("a/../b", "b"), (".", ""), ("/", ""), ("a/b/../..", "")]
        {
            assert_eq!(clean(path.as_bytes(), "/").unwrap(), expected.as_bytes(), "{path}");
        }
        for path in ["..", "../a", "/..", "a/../../b", "/a/../../b"] {
            let error = clean(path.as_bytes(), "/x").unwrap_err();
            assert_eq!(error.message, format!("{path:?} is outside of \"/x\""));
        }
        assert!(clean(&[b'a'; 256], "/").is_err());
        assert!(clean(&b"a/".repeat(513), "/").is_err());
    }

    #[test]
    fn links_on_the_way_never_lead_out() {
        let scratch = Scratch::new("walk-links");
        let root = scratch.path().join("root");
        std::fs::create_dir_all(root.join("usr/lib")).unwrap();
        std::fs::create_dir(scratch.path().join("outside")).unwrap();
        std::fs::create_dir(root.join("outside")).unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        symlink("../../../outside", root.join("up")).unwrap();
        symlink(scratch.path().join("outside"), root.join("absolute")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let root_fd = fd::open(&sys::cstring(root.to_str().unwrap()).unwrap(), libc::O_DIRECTORY, 0).unwrap();
        let mut walk = Walk::new(root_fd.as_fd());
        walk.directory(b"lib", Missing::Refuse).unwrap();
        assert_eq!(walk.resolved(b"x"), b"usr/lib/x");
        walk.directory(b"up", Missing::Refuse).unwrap();
        assert_eq!(walk.resolved(b"x"), b"outside/x");
        assert!(walk.directory(b"absolute", Missing::Refuse).is_err());
        assert!(walk.directory(b"loop/x", Missing::Create).is_err());
        walk.directory(b"up/new/deep", Missing::Create).unwrap();
        assert!(root.join("outside/new/deep").is_dir());
        assert!(!scratch.path().join("outside/new").exists());
        walk.directory(b"", Missing::Refuse).unwrap();
        assert_eq!(walk.resolved(b"x"), b"x");
    }
}
