//! Owner, attributes, mode and times of what was just made: in this order, as each call undoes part of the later ones.

use super::walk::failed;
use crate::error::Result;
use crate::sys::{self, fs};
use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

/// What an entry says about its inode.
pub struct Metadata {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Access and modification.
    pub times: [libc::timespec; 2],
}

/// Whether an archive may set, and is given, this extended attribute. Everything else belongs to the host:
/// `trusted.` to overlay, `system.` to the file system, the rest of `security.` to its policy.
pub fn allowed_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.") && name.len() > 5 || name == b"security.capability"
}

/// Dresses an open file or directory. A directory's times are set later again, when it is complete.
pub fn dress(fd: BorrowedFd, metadata: &Metadata, xattrs: &[(Vec<u8>, Vec<u8>)], path: &[u8]) -> Result<()> {
    fs::fchownat(fd, c"", metadata.uid, metadata.gid, libc::AT_EMPTY_PATH).map_err(|e| failed("lchown", path, &e))?;
    // After chown, which clears security.capability.
    for (name, value) in xattrs.iter().filter(|(name, _)| allowed_xattr(name)) {
        let c_name = sys::cstring(name).map_err(|e| failed("lsetxattr", path, &e))?;
        match fs::fsetxattr(fd, &c_name, value, 0) {
            // The file system has none, or not for this kind of file: the reference goes on without.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTSUP | libc::EPERM)) => {}
            done => done.map_err(|e| failed("lsetxattr", path, &e))?,
        }
    }
    // After chown, which clears setuid and setgid.
    fs::fchmod(fd, metadata.mode).map_err(|e| failed("chmod", path, &e))?;
    fs::futimens(fd, &metadata.times).map_err(|e| failed("chtimes", path, &e))
}

/// Dresses a symbolic link: it has no mode.
pub fn dress_link(dir: BorrowedFd, name: &CStr, metadata: &Metadata, path: &[u8]) -> Result<()> {
    owner(dir, name, metadata).map_err(|e| failed("lchown", path, &e))?;
    fs::utimensat(dir, name, &metadata.times, libc::AT_SYMLINK_NOFOLLOW).map_err(|e| failed("lutimes", path, &e))
}

/// Dresses a device or fifo, which is not opened, as that has effects.
pub fn dress_node(dir: BorrowedFd, name: &CStr, metadata: &Metadata, path: &[u8]) -> Result<()> {
    owner(dir, name, metadata).map_err(|e| failed("lchown", path, &e))?;
    fs::fchmodat(dir, name, metadata.mode).map_err(|e| failed("chmod", path, &e))?;
    fs::utimensat(dir, name, &metadata.times, libc::AT_SYMLINK_NOFOLLOW).map_err(|e| failed("chtimes", path, &e))
}

fn owner(dir: BorrowedFd, name: &CStr, metadata: &Metadata) -> io::Result<()> {
    fs::fchownat(dir, name, metadata.uid, metadata.gid, libc::AT_SYMLINK_NOFOLLOW)
}
