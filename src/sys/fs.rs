//! Names, metadata, directories: everything `*at()`.

use super::{check, check_size, crash};
use std::ffi::{CStr, CString, c_int, c_uint};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

/// `mkdirat(2)`.
pub fn mkdirat(dir: BorrowedFd, path: &CStr, mode: libc::mode_t) -> io::Result<()> {
    crash::point();
    // SAFETY: `path` is NUL-terminated and only read.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), path.as_ptr(), mode) }).map(drop)
}

/// `mknodat(2)`; `mode` carries the file type.
pub fn mknodat(dir: BorrowedFd, path: &CStr, mode: libc::mode_t, device: libc::dev_t) -> io::Result<()> {
    crash::point();
    // SAFETY: `path` is NUL-terminated and only read.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), path.as_ptr(), mode, device) }).map(drop)
}

/// `symlinkat(2)`.
pub fn symlinkat(target: &CStr, dir: BorrowedFd, path: &CStr) -> io::Result<()> {
    crash::point();
    // SAFETY: both strings are NUL-terminated and only read.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), path.as_ptr()) }).map(drop)
}

/// `linkat(2)`; `flags` may be AT_EMPTY_PATH or AT_SYMLINK_FOLLOW.
pub fn linkat(from_dir: BorrowedFd, from: &CStr, to_dir: BorrowedFd, to: &CStr, flags: c_int) -> io::Result<()> {
    crash::point();
    // SAFETY: both strings are NUL-terminated and only read.
    check(unsafe { libc::linkat(from_dir.as_raw_fd(), from.as_ptr(), to_dir.as_raw_fd(), to.as_ptr(), flags) }).map(drop)
}

/// `unlinkat(2)`; `flags` may be AT_REMOVEDIR.
pub fn unlinkat(dir: BorrowedFd, path: &CStr, flags: c_int) -> io::Result<()> {
    crash::point();
    // SAFETY: `path` is NUL-terminated and only read.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), path.as_ptr(), flags) }).map(drop)
}

/// `renameat2(2)`; `flags` may be RENAME_NOREPLACE or RENAME_EXCHANGE.
pub fn renameat2(from_dir: BorrowedFd, from: &CStr, to_dir: BorrowedFd, to: &CStr, flags: c_uint) -> io::Result<()> {
    crash::point();
    // SAFETY: both strings are NUL-terminated and only read.
    check(unsafe { libc::renameat2(from_dir.as_raw_fd(), from.as_ptr(), to_dir.as_raw_fd(), to.as_ptr(), flags) }).map(drop)
}

/// `readlinkat(2)`, at most PATH_MAX bytes.
pub fn readlinkat(dir: BorrowedFd, path: &CStr) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; 4096];
    // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
    let n = check_size(unsafe { libc::readlinkat(dir.as_raw_fd(), path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })?;
    buf.truncate(n);
    Ok(buf)
}

/// `fstatat(2)`; `flags` may be AT_SYMLINK_NOFOLLOW or AT_EMPTY_PATH.
pub fn fstatat(dir: BorrowedFd, path: &CStr, flags: c_int) -> io::Result<libc::stat64> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: `path` is NUL-terminated; the kernel fills one struct stat64.
    check(unsafe { libc::fstatat64(dir.as_raw_fd(), path.as_ptr(), stat.as_mut_ptr(), flags) })?;
    // SAFETY: the call succeeded, so the struct is initialised.
    Ok(unsafe { stat.assume_init() })
}

/// `fstatfs(2)`.
pub fn fstatfs(fd: BorrowedFd) -> io::Result<libc::statfs64> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: the kernel fills one struct statfs64.
    check(unsafe { libc::fstatfs64(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the struct is initialised.
    Ok(unsafe { stat.assume_init() })
}

/// `fchownat(2)`; `flags` may be AT_SYMLINK_NOFOLLOW or AT_EMPTY_PATH.
pub fn fchownat(dir: BorrowedFd, path: &CStr, uid: libc::uid_t, gid: libc::gid_t, flags: c_int) -> io::Result<()> {
    crash::point();
    // SAFETY: `path` is NUL-terminated and only read.
    check(unsafe { libc::fchownat(dir.as_raw_fd(), path.as_ptr(), uid, gid, flags) }).map(drop)
}

/// `fchmod(2)`.
pub fn fchmod(fd: BorrowedFd, mode: libc::mode_t) -> io::Result<()> {
    crash::point();
    // SAFETY: no memory is passed.
    check(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }).map(drop)
}

/// `fchmodat(2)`; follows symbolic links, so the caller must know that `path` is none.
pub fn fchmodat(dir: BorrowedFd, path: &CStr, mode: libc::mode_t) -> io::Result<()> {
    crash::point();
    // SAFETY: `path` is NUL-terminated and only read.
    check(unsafe { libc::fchmodat(dir.as_raw_fd(), path.as_ptr(), mode, 0) }).map(drop)
}

/// `utimensat(2)`; access then modification time.
pub fn utimensat(dir: BorrowedFd, path: &CStr, times: &[libc::timespec; 2], flags: c_int) -> io::Result<()> {
    crash::point();
    // SAFETY: `path` is NUL-terminated, `times` is an array of two; both only read.
    check(unsafe { libc::utimensat(dir.as_raw_fd(), path.as_ptr(), times.as_ptr(), flags) }).map(drop)
}

/// `futimens(3)`; access then modification time.
pub fn futimens(fd: BorrowedFd, times: &[libc::timespec; 2]) -> io::Result<()> {
    crash::point();
    // SAFETY: `times` is an array of two and only read.
    check(unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) }).map(drop)
}

/// `fsetxattr(2)`.
pub fn fsetxattr(fd: BorrowedFd, name: &CStr, value: &[u8], flags: c_int) -> io::Result<()> {
    crash::point();
    // SAFETY: `name` is NUL-terminated; `value.len()` bytes of `value` are read.
    check(unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) }).map(drop)
}

/// `lsetxattr(2)`, for what can't be opened (symbolic links, devices): path relative to the working directory or /proc/self/fd.
pub fn lsetxattr(path: &CStr, name: &CStr, value: &[u8], flags: c_int) -> io::Result<()> {
    crash::point();
    // SAFETY: both strings are NUL-terminated; `value.len()` bytes of `value` are read.
    check(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) }).map(drop)
}

/// `fgetxattr(2)`, at most 64 KiB (the kernel's XATTR_SIZE_MAX).
pub fn fgetxattr(fd: BorrowedFd, name: &CStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0; 65536];
    // SAFETY: `name` is NUL-terminated; the kernel writes at most `value.len()` bytes.
    let n = check_size(unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) })?;
    value.truncate(n);
    Ok(value)
}

/// `lgetxattr(2)`, at most 64 KiB.
pub fn lgetxattr(path: &CStr, name: &CStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0; 65536];
    // SAFETY: both strings are NUL-terminated; the kernel writes at most `value.len()` bytes.
    let n = check_size(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) })?;
    value.truncate(n);
    Ok(value)
}

/// `llistxattr(2)`: the attribute names (the kernel's XATTR_LIST_MAX is 64 KiB).
pub fn llistxattr(path: &CStr) -> io::Result<Vec<CString>> {
    let mut list = vec![0u8; 65536];
    // SAFETY: `path` is NUL-terminated; the kernel writes at most `list.len()` bytes.
    let n = check_size(unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) })?;
    Ok(list[..n].split(|b| *b == 0).filter(|name| !name.is_empty()).filter_map(|name| CString::new(name).ok()).collect())
}

/// `flistxattr(2)`: the attribute names. Most files have none, which costs no buffer of the kernel's maximum (64 KiB).
pub fn flistxattr(fd: BorrowedFd) -> io::Result<Vec<CString>> {
    let mut list = vec![0u8; 1024];
    loop {
        // SAFETY: the kernel writes at most `list.len()` bytes.
        match check_size(unsafe { libc::flistxattr(fd.as_raw_fd(), list.as_mut_ptr().cast(), list.len()) }) {
            Ok(n) => {
                let names = list[..n].split(|b| *b == 0).filter(|name| !name.is_empty());
                return Ok(names.filter_map(|name| CString::new(name).ok()).collect());
            }
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) && list.len() < 65536 => list.resize(65536, 0),
            Err(e) => return Err(e),
        }
    }
}

/// `chdir(2)`.
pub fn chdir(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is NUL-terminated and only read.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// `fchdir(2)`.
pub fn fchdir(fd: BorrowedFd) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fchdir(fd.as_raw_fd()) }).map(drop)
}

/// `getcwd(2)` by the kernel's own word: a directory that can't be reached from the root starts with "(unreachable)".
pub fn getcwd() -> io::Result<Vec<u8>> {
    let mut buf = vec![0u8; 4096];
    // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
    let n = super::check_long(unsafe { libc::syscall(libc::SYS_getcwd, buf.as_mut_ptr(), buf.len()) })?;
    // The count includes the NUL.
    buf.truncate(usize::try_from(n).unwrap_or(1).saturating_sub(1));
    Ok(buf)
}

/// `faccessat(2)` with the real ids, following symbolic links.
pub fn faccessat(dir: BorrowedFd, path: &CStr, mode: c_int) -> io::Result<()> {
    // SAFETY: `path` is NUL-terminated and only read.
    check(unsafe { libc::faccessat(dir.as_raw_fd(), path.as_ptr(), mode, 0) }).map(drop)
}

/// `chroot(2)`.
pub fn chroot(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is NUL-terminated and only read.
    check(unsafe { libc::chroot(path.as_ptr()) }).map(drop)
}

/// `umask(2)`; returns the previous mask.
pub fn umask(mask: libc::mode_t) -> libc::mode_t {
    // SAFETY: no memory is passed; the call cannot fail.
    unsafe { libc::umask(mask) }
}

/// `makedev(3)`.
pub fn makedev(major: u32, minor: u32) -> libc::dev_t {
    libc::makedev(major, minor)
}

/// One directory entry.
pub struct Entry {
    pub name: CString,
    /// DT_DIR, DT_REG …; DT_UNKNOWN where the file system does not say.
    pub kind: u8,
}

/// A directory stream over `getdents64(2)`; "." and ".." are left out.
pub struct Directory {
    stream: *mut libc::DIR,
}

impl Directory {
    /// `fdopendir(3)`: takes the descriptor over.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Directory> {
        let raw = fd.into_raw_fd();
        // SAFETY: `raw` was owned by the caller and now belongs to the stream.
        let stream = unsafe { libc::fdopendir(raw) };
        if stream.is_null() {
            let error = io::Error::last_os_error();
            drop(super::owned(raw));
            return Err(error);
        }
        Ok(Directory { stream })
    }
}

impl Iterator for Directory {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<io::Result<Entry>> {
        loop {
            super::process::set_errno(0);
            // SAFETY: the stream is open until drop.
            let entry = unsafe { libc::readdir64(self.stream) };
            if entry.is_null() {
                let error = io::Error::last_os_error();
                return if error.raw_os_error() == Some(0) { None } else { Some(Err(error)) };
            }
            // SAFETY: readdir64 returned a valid entry, alive until the next call on this stream.
            let kind = unsafe { (*entry).d_type };
            // SAFETY: as above; taking the field's address reads nothing.
            let name = unsafe { (&raw const (*entry).d_name).cast::<libc::c_char>() };
            // SAFETY: d_name is NUL-terminated; it is copied before the next call.
            let name = unsafe { CStr::from_ptr(name) }.to_owned();
            if name.as_bytes() != b"." && name.as_bytes() != b".." {
                return Some(Ok(Entry { name, kind }));
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // SAFETY: the stream is open and used nowhere else.
        unsafe { libc::closedir(self.stream) };
    }
}
