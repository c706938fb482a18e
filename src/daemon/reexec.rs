//! The daemon runs from a copy of its binary that nobody can write to.
//!
//! A container that gets hold of `/proc/<pid>/exe` of one of our processes must not be able to open the binary for writing
//! (CVE-2019-5736's class). So the daemon re-executes itself at start through a detached, read-only clone of its binary's own
//! mount, which costs no memory; where the kernel refuses that (an initramfs root), through a sealed memory file.

use crate::sys;
use crate::sys::mount::{MOUNT_ATTR_RDONLY, MountAttr, OPEN_TREE_CLONE};
use crate::sys::process::Pointers;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Set in the re-executed process: the binary's path, which /proc/self/exe does not tell any more.
pub const SELF: &str = "CORACLE_SELF";

/// Re-executes this process from its read-only copy. Comes back when it is there already, or with a warning when it can't be.
pub fn from_read_only_copy() {
    if std::env::var_os(SELF).is_some() {
        return;
    }
    if let Err(e) = reexecute() {
        log::warn!("run from a read-only copy of the binary: {e}; running from the binary itself");
    }
}

fn reexecute() -> io::Result<()> {
    let path = std::env::current_exe()?;
    let copy = read_only_clone(&path).or_else(|e| {
        log::debug!("clone the binary's mount: {e}; copying it into sealed memory");
        sealed_copy(&path)
    })?;
    let arguments = std::env::args_os().map(|arg| sys::cstring(arg.as_bytes())).collect::<io::Result<Vec<CString>>>()?;
    let own = [(SELF.into(), path.into_os_string())];
    let pair = |(name, value): (std::ffi::OsString, std::ffi::OsString)| sys::cstring([name.as_bytes(), b"=", value.as_bytes()].concat());
    let environment = std::env::vars_os().chain(own).map(pair).collect::<io::Result<Vec<CString>>>()?;
    Err(sys::process::fexecve(copy.as_fd(), &Pointers::new(&arguments), &Pointers::new(&environment)))
}

fn read_only_clone(path: &Path) -> io::Result<OwnedFd> {
    let path = sys::cstring(path.as_os_str().as_bytes())?;
    let tree = sys::mount::open_tree(sys::fd::AT_FDCWD, &path, OPEN_TREE_CLONE)?;
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    sys::mount::mount_setattr(tree.as_fd(), c"", libc::AT_EMPTY_PATH.cast_unsigned(), &attr)?;
    Ok(tree)
}

fn sealed_copy(path: &Path) -> io::Result<OwnedFd> {
    let memory = sys::fd::memfd_create(c"coracle", libc::MFD_ALLOW_SEALING)?;
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => sys::fd::write_all(memory.as_fd(), &buffer[..n])?,
        }
    }
    sys::fd::add_seals(memory.as_fd(), libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL)?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_copies_refuse_to_be_written() {
        let path = std::env::current_exe().unwrap();
        for copy in [read_only_clone(&path).unwrap(), sealed_copy(&path).unwrap()] {
            let name = sys::cstring(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy))).unwrap();
            let opened = sys::fd::open(&name, libc::O_WRONLY, 0);
            let written = opened.and_then(|fd| sys::fd::write(fd.as_fd(), b"x"));
            assert!(written.is_err(), "the copy took a write");
        }
    }
}
