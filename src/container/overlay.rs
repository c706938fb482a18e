//! The container's overlay, as a detached mount: no path on this host ever shows it, and it goes away with its last holder.
//!
//! Made with the daemon's own credentials, as inside a user namespace an overlay would ignore the layers' own opaque marks.

use super::plan::Overlay;
use crate::sys;
use crate::sys::mount::{MOUNT_ATTR_RDONLY, MountAttr, PRIVATE};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What a kernel's own defaults must not decide: each of these features makes upper directories that can't be renamed into layers.
const EXPLICIT: [(&CStr, &CStr); 4] = [(c"index", c"off"), (c"metacopy", c"off"), (c"redirect_dir", c"off"), (c"xino", c"off")];

/// Mounts an overlay, detached.
pub fn mount(overlay: &Overlay) -> io::Result<OwnedFd> {
    match overlay.lower.as_slice() {
        // One layer and nothing to write to: the kernel makes no overlay of that; a read-only copy of its mount does the same.
        [only] if overlay.upper.is_none() => read_only_tree(only),
        _ => match by_context(overlay) {
            // EINVAL is "lowerdir+" before Linux 6.5, and a path longer than 255 bytes.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => by_mount(overlay),
            done => done,
        },
    }
}

fn read_only_tree(path: &CStr) -> io::Result<OwnedFd> {
    let tree = sys::mount::open_tree(sys::fd::AT_FDCWD, path, sys::mount::OPEN_TREE_CLONE)?;
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, propagation: PRIVATE, ..MountAttr::default() };
    sys::mount::mount_setattr(tree.as_fd(), c"", libc::AT_EMPTY_PATH.cast_unsigned(), &attr)?;
    Ok(tree)
}

/// `fsopen(2)` and its kin (`lowerdir+` since Linux 6.5): one call per layer, so that their number is not bound by a page.
fn by_context(overlay: &Overlay) -> io::Result<OwnedFd> {
    let context = sys::mount::fsopen(c"overlay")?;
    let set = |key: &CStr, value: &CStr| sys::mount::fsconfig_string(context.as_fd(), key, value);
    set(c"source", c"overlay")?;
    for layer in &overlay.lower {
        set(c"lowerdir+", layer)?;
    }
    if let (Some(upper), Some(work)) = (&overlay.upper, &overlay.work) {
        set(c"upperdir", upper)?;
        set(c"workdir", work)?;
    }
    for (key, value) in EXPLICIT {
        set(key, value)?;
    }
    sys::mount::fsconfig_create(context.as_fd())?;
    sys::mount::fsmount(context.as_fd(), if overlay.upper.is_none() { MOUNT_ATTR_RDONLY } else { 0 })
}

/// `mount(2)` by a short-lived child in a mount namespace of its own, which sends a detached copy back. Before Linux 6.5.
fn by_mount(overlay: &Overlay) -> io::Result<OwnedFd> {
    let (base, options) = options(overlay);
    let target = overlay.upper.as_ref().or(overlay.lower.first()).ok_or(io::ErrorKind::InvalidInput)?;
    let (ours, theirs) = sys::socket::socketpair(libc::SOCK_SEQPACKET)?;
    let Some(pid) = sys::process::fork()? else {
        let outcome = mount_and_send(&base, &options, target, &theirs);
        sys::process::exit(outcome.err().and_then(|e| e.raw_os_error()).unwrap_or(0));
    };
    drop(theirs);
    let received = sys::socket::recv_with_fds(ours.as_fd(), &mut [0; 1]);
    let status = sys::process::waitpid(pid, 0)?;
    match received?.1.pop() {
        Some(tree) => Ok(tree),
        None => Err(io::Error::from_raw_os_error(status.map_or(libc::EIO, |(_, status)| status.code()))),
    }
}

fn mount_and_send(base: &CStr, options: &CStr, target: &CStr, to: &OwnedFd) -> io::Result<()> {
    sys::process::unshare(libc::CLONE_NEWNS)?;
    sys::mount::mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None)?;
    sys::fs::chdir(base)?;
    sys::mount::mount(Some(c"overlay"), target, Some(c"overlay"), 0, Some(options))?;
    let tree = sys::mount::open_tree(sys::fd::AT_FDCWD, target, sys::mount::OPEN_TREE_CLONE)?;
    sys::socket::send_with_fds(to.as_fd(), b"o", &[tree.as_raw_fd()]).map(drop)
}

/// The directory that most layers are in, and the mount options with layers named relative to it: all options share one page, which
/// 127 layers only fit into by short names.
fn options(overlay: &Overlay) -> (CString, CString) {
    let mut base = overlay.lower.last().map_or(Vec::new(), |path| path.to_bytes().to_vec());
    // ".../layers/12/diff" → ".../layers/"
    for _ in 0..2 {
        let end = base.iter().rposition(|b| *b == b'/').unwrap_or(0);
        base.truncate(end);
    }
    base.push(b'/');
    let mut text = b"lowerdir=".to_vec();
    for (n, layer) in overlay.lower.iter().enumerate() {
        if n > 0 {
            text.push(b':');
        }
        let path = layer.to_bytes();
        escape(path.strip_prefix(base.as_slice()).unwrap_or(path), &mut text);
    }
    for (key, path) in [(&b",upperdir="[..], &overlay.upper), (&b",workdir="[..], &overlay.work)] {
        let Some(path) = path else { continue };
        text.extend(key);
        escape(path.to_bytes(), &mut text);
    }
    for (key, value) in EXPLICIT {
        text.push(b',');
        text.extend(key.to_bytes());
        text.push(b'=');
        text.extend(value.to_bytes());
    }
    // No part held a NUL, as each was a C string.
    (CString::new(base).unwrap_or_default(), CString::new(text).unwrap_or_default())
}

fn escape(path: &[u8], into: &mut Vec<u8>) {
    for byte in path {
        if b"\\:,".contains(byte) {
            into.push(b'\\');
        }
        into.push(*byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(lower: &[&str]) -> Overlay {
        let path = |path: &str| CString::new(path).unwrap();
        Overlay { lower: lower.iter().map(|l| path(l)).collect(), upper: Some(path("/d/u,1")), work: Some(path("/d/w")) }
    }

    #[test]
    fn old_mount_options_are_relative_and_escaped() {
        let (base, options) = options(&overlay(&["/r/init", "/r/layers/7/diff", "/r/layers/1:2/diff"]));
        assert_eq!(base.as_c_str(), c"/r/layers/");
        assert_eq!(
            options.to_str().unwrap(),
            "lowerdir=/r/init:7/diff:1\\:2/diff,upperdir=/d/u\\,1,workdir=/d/w,index=off,metacopy=off,redirect_dir=off,xino=off"
        );
    }

    #[test]
    fn an_old_kernel_s_overlay_is_detached_too() {
        crate::container::test_world::alone("old", |world| {
            let plan = world.plan();
            let tree = by_mount(&plan.overlays[0]).unwrap();
            let listed = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!listed.contains("coracle-launch-old"), "{listed}");
            sys::fd::openat(tree.as_fd(), c"written", libc::O_CREAT | libc::O_WRONLY, 0o644).unwrap();
            assert!(world.upper.join("written").is_file());
            assert!(sys::fs::fstatat(tree.as_fd(), c"bin/busybox", 0).is_ok());
            let missing = Overlay { lower: vec![c"/no/such".to_owned(), c"/nor/this".to_owned()], ..plan.overlays[0].clone() };
            assert_eq!(by_mount(&missing).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        });
    }

    #[test]
    fn the_most_layers_fit_into_a_page() {
        let mut layers = vec!["/var/lib/coracle/init".to_owned()];
        layers.extend((0..127).map(|n| format!("/var/lib/coracle/layers/{}/diff", 100_000 + n)));
        let mut overlay = overlay(&layers.iter().map(String::as_str).collect::<Vec<_>>());
        let long = |end: &str| CString::new(format!("/var/lib/coracle/containers/{}/{end}", "f".repeat(64))).unwrap();
        (overlay.upper, overlay.work) = (Some(long("upper")), Some(long("work")));
        assert!(options(&overlay).1.as_bytes().len() < 4096);
    }
}
