//! Mounts, old and new API. Flags of the new API (Linux 5.2 and later) that libc lacks are named here.

use super::{check, check_long, crash, owned_long};
use std::ffi::{CStr, c_int, c_uint, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

pub const FSOPEN_CLOEXEC: c_uint = 1;
pub const FSMOUNT_CLOEXEC: c_uint = 1;
pub const OPEN_TREE_CLONE: c_uint = 1;
pub const AT_RECURSIVE: c_uint = 0x8000;
pub const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x04;
pub const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;
pub const MOUNT_ATTR_RDONLY: u64 = 0x01;
pub const MOUNT_ATTR_NOSUID: u64 = 0x02;
pub const MOUNT_ATTR_NODEV: u64 = 0x04;
pub const MOUNT_ATTR_NOEXEC: u64 = 0x08;
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
pub const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
pub const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// MS_PRIVATE, MS_SLAVE and MS_SHARED as `mount_setattr(2)` takes them: 64 bits wide on every target.
pub const PRIVATE: u64 = 1 << 18;
pub const SLAVE: u64 = 1 << 19;
pub const SHARED: u64 = 1 << 20;

fn or_null(text: Option<&CStr>) -> *const libc::c_char {
    text.map_or(ptr::null(), CStr::as_ptr)
}

/// `mount(2)`.
pub fn mount(source: Option<&CStr>, target: &CStr, fstype: Option<&CStr>, flags: c_ulong, data: Option<&CStr>) -> io::Result<()> {
    crash::point();
    // SAFETY: every string is NUL-terminated or null, and only read.
    check(unsafe { libc::mount(or_null(source), target.as_ptr(), or_null(fstype), flags, or_null(data).cast()) }).map(drop)
}

/// `umount2(2)`.
pub fn umount2(target: &CStr, flags: c_int) -> io::Result<()> {
    crash::point();
    // SAFETY: `target` is NUL-terminated and only read.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
}

/// `pivot_root(2)`.
pub fn pivot_root(new_root: &CStr, put_old: &CStr) -> io::Result<()> {
    // SAFETY: both strings are NUL-terminated and only read.
    check_long(unsafe { libc::syscall(libc::SYS_pivot_root, new_root.as_ptr(), put_old.as_ptr()) }).map(drop)
}

/// `fsopen(2)` (Linux 5.2); FSOPEN_CLOEXEC is always added.
pub fn fsopen(fstype: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `fstype` is NUL-terminated and only read.
    check_long(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) }).and_then(owned_long)
}

/// `fsconfig(2)` FSCONFIG_SET_STRING.
pub fn fsconfig_string(context: BorrowedFd, key: &CStr, value: &CStr) -> io::Result<()> {
    // SAFETY: both strings are NUL-terminated and only read.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 1, key.as_ptr(), value.as_ptr(), 0) };
    check_long(result).map(drop)
}

/// `fsconfig(2)` FSCONFIG_SET_FLAG.
pub fn fsconfig_flag(context: BorrowedFd, key: &CStr) -> io::Result<()> {
    let none: *const libc::c_char = ptr::null();
    // SAFETY: `key` is NUL-terminated and only read; the value is null, as a flag's must be.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 0, key.as_ptr(), none, 0) };
    check_long(result).map(drop)
}

/// `fsconfig(2)` FSCONFIG_SET_FD.
pub fn fsconfig_fd(context: BorrowedFd, key: &CStr, fd: BorrowedFd) -> io::Result<()> {
    let none: *const libc::c_char = ptr::null();
    // SAFETY: `key` is NUL-terminated and only read; the value is null, the descriptor goes in the last argument.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 5, key.as_ptr(), none, fd.as_raw_fd()) };
    check_long(result).map(drop)
}

/// `fsconfig(2)` FSCONFIG_CMD_CREATE: makes the superblock.
pub fn fsconfig_create(context: BorrowedFd) -> io::Result<()> {
    let none: *const libc::c_char = ptr::null();
    // SAFETY: key and value are null, as the command wants.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 6, none, none, 0) };
    check_long(result).map(drop)
}

/// `fsmount(2)`: a detached mount; FSMOUNT_CLOEXEC is always added.
pub fn fsmount(context: BorrowedFd, attributes: u64) -> io::Result<OwnedFd> {
    let attributes = c_uint::try_from(attributes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: no memory is passed.
    check_long(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) }).and_then(owned_long)
}

/// `open_tree(2)`; OPEN_TREE_CLOEXEC is always added. With OPEN_TREE_CLONE the result is a detached copy.
pub fn open_tree(dir: BorrowedFd, path: &CStr, flags: c_uint) -> io::Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC.cast_unsigned();
    // SAFETY: `path` is NUL-terminated and only read.
    check_long(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) }).and_then(owned_long)
}

/// `move_mount(2)`.
pub fn move_mount(from_dir: BorrowedFd, from: &CStr, to_dir: BorrowedFd, to: &CStr, flags: c_uint) -> io::Result<()> {
    // SAFETY: both strings are NUL-terminated and only read.
    let result =
        unsafe { libc::syscall(libc::SYS_move_mount, from_dir.as_raw_fd(), from.as_ptr(), to_dir.as_raw_fd(), to.as_ptr(), flags) };
    check_long(result).map(drop)
}

/// What `mount_setattr(2)` changes (struct mount_attr of linux/mount.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE or 0.
    pub propagation: u64,
    pub userns_fd: u64,
}

/// `mount_setattr(2)` (Linux 5.12); `flags` may be AT_RECURSIVE and AT_EMPTY_PATH.
pub fn mount_setattr(dir: BorrowedFd, path: &CStr, flags: c_uint, attr: &MountAttr) -> io::Result<()> {
    let size = size_of::<MountAttr>();
    // SAFETY: `path` is NUL-terminated, `attr` a live struct of the size given; both only read.
    let result = unsafe { libc::syscall(libc::SYS_mount_setattr, dir.as_raw_fd(), path.as_ptr(), flags, ptr::from_ref(attr), size) };
    check_long(result).map(drop)
}
