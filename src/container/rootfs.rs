//! Paths inside a root: opened by descriptor, never joined as strings (SECURITY-NOTES §0, cause 1).

use crate::sys;
use crate::sys::fd::{RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS};
use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Symbolic links that one path may lead through, as the kernel's own limit.
const LINKS_MAX: usize = 40;

/// What a missing mount point is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    Directory,
    File,
}

/// Opens `path` (with or without a leading slash) as if `root` were "/": `..`, absolute and relative links stay inside.
pub fn open_in_root(root: BorrowedFd, path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    sys::fd::openat2(root, path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
}

/// As [`open_in_root`], refusing every symbolic link with ELOOP: for places that must be what they are called (/proc, /dev, /sys).
pub fn open_plain(root: BorrowedFd, path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    sys::fd::openat2(root, path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS)
}

/// The content of a regular file under `root`, at most `max` bytes of it. Anything else than a regular file is EINVAL; a FIFO or
/// device is never waited for.
pub fn read_regular(root: BorrowedFd, path: &CStr, max: usize) -> io::Result<Vec<u8>> {
    let file = open_in_root(root, path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY)?;
    let stat = sys::fd::fstat(file.as_fd())?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let expected = usize::try_from(stat.st_size).unwrap_or(0).min(max);
    let mut content = vec![0; expected + 1];
    let mut filled = 0;
    // One byte more than the size: a file that grows or lies about its size (/proc) is read on, to the bound.
    loop {
        let n = sys::fd::read(file.as_fd(), &mut content[filled..])?;
        filled += n;
        if n == 0 || filled >= max {
            content.truncate(filled.min(max));
            return Ok(content);
        }
        if filled == content.len() {
            content.resize((filled * 2).min(max + 1), 0);
        }
    }
}

/// Opens a mount's target with O_PATH, making what is missing of it (mode 0755, owned by the caller).
pub fn mount_point(root: BorrowedFd, path: &CStr, make: Make) -> io::Result<OwnedFd> {
    match open_in_root(root, path, libc::O_PATH) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => walk(root, path, Some(make)),
        done => done,
    }
}

/// Opens a directory with O_PATH, making what is missing of it.
pub fn make_directories(root: BorrowedFd, path: &CStr) -> io::Result<OwnedFd> {
    match open_in_root(root, path, libc::O_PATH | libc::O_DIRECTORY) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => walk(root, path, Some(Make::Directory)),
        done => done,
    }
}

/// Goes down from `root` one component at a time, never following a link by the kernel's hand: links are read and walked here, so
/// that a dangling one leads to a directory made inside the root, as the reference does. `..` at the root stays there.
fn walk(root: BorrowedFd, path: &CStr, make: Option<Make>) -> io::Result<OwnedFd> {
    let mut todo: Vec<Vec<u8>> = components(path.to_bytes());
    let mut stack: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == b".." {
            stack.pop();
            continue;
        }
        let name = sys::cstring(name)?;
        let parent = stack.last().map_or(root, AsFd::as_fd);
        let last = todo.is_empty();
        let entry = match sys::fd::openat(parent, &name, libc::O_PATH | libc::O_NOFOLLOW, 0) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                let Some(make) = make else { return Err(e) };
                create(parent, &name, if last { make } else { Make::Directory })?
            }
            entry => entry?,
        };
        match sys::fd::fstat(entry.as_fd())?.st_mode & libc::S_IFMT {
            libc::S_IFLNK => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let target = sys::fs::readlinkat(entry.as_fd(), c"")?;
                if target.first() == Some(&b'/') {
                    stack.clear();
                }
                todo.extend(components(&target));
            }
            libc::S_IFDIR => stack.push(entry),
            _ if last => return Ok(entry),
            _ => return Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        }
    }
    match stack.pop() {
        Some(found) => Ok(found),
        None => sys::fd::openat(root, c".", libc::O_PATH, 0),
    }
}

/// The parts of a path in reverse, so that the next one is popped.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").rev().map(<[u8]>::to_vec).collect()
}

/// Makes one entry and opens it; the loser of a race opens what the winner made.
fn create(parent: BorrowedFd, name: &CStr, make: Make) -> io::Result<OwnedFd> {
    let made = match make {
        Make::Directory => sys::fs::mkdirat(parent, name, 0o755),
        Make::File => sys::fd::openat(parent, name, libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY, 0o755).map(drop),
    };
    match made {
        Err(e) if e.raw_os_error() != Some(libc::EEXIST) => Err(e),
        _ => sys::fd::openat(parent, name, libc::O_PATH | libc::O_NOFOLLOW, 0),
    }
}

/// Whether a descriptor is a directory.
pub fn is_directory(fd: BorrowedFd) -> io::Result<bool> {
    Ok(sys::fd::fstat(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Fills an empty directory with what lies over every image: the places that the engine itself mounts on, as real directories and
/// files, so that no image's symbolic link is ever a mount target, and so that they never show up as the container's changes.
/// It is one overlay layer, shared by all containers, read-only.
pub fn fill_init_layer(layer: BorrowedFd) -> io::Result<()> {
    for dir in [c"dev", c"dev/pts", c"dev/shm", c"proc", c"sys", c"etc"] {
        exists(sys::fs::mkdirat(layer, dir, 0o755))?;
        sys::fs::fchmodat(layer, dir, 0o755)?;
    }
    for file in [c".dockerenv", c"etc/hosts", c"etc/hostname", c"etc/resolv.conf", c"dev/console"] {
        let made = sys::fd::openat(layer, file, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW, 0o755);
        exists(made.and_then(|file| sys::fs::fchmod(file.as_fd(), 0o755)))?;
    }
    exists(sys::fs::symlinkat(c"/proc/mounts", layer, c"etc/mtab"))
}

fn exists(made: io::Result<()>) -> io::Result<()> {
    match made {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        made => made,
    }
}

/// "/proc/self/fd/N" of a descriptor, for the few calls that know only paths.
pub fn path_of(fd: BorrowedFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let path = std::env::temp_dir().join(format!("coracle-rootfs-{name}-{}", std::process::id()));
            std::fs::create_dir_all(path.join("root")).unwrap();
            Dir(path)
        }
        fn root(&self) -> OwnedFd {
            sys::fd::open(&sys::cstring(self.0.join("root").to_str().unwrap()).unwrap(), libc::O_PATH | libc::O_DIRECTORY, 0).unwrap()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn mount_points_are_made_inside_the_root_only() {
        let dir = Dir::new("made");
        let root = dir.root();
        symlink("/outside/deep", dir.0.join("root/abs")).unwrap();
        symlink("../../../up", dir.0.join("root/rel")).unwrap();
        mount_point(root.as_fd(), c"/abs/x", Make::Directory).unwrap();
        mount_point(root.as_fd(), c"/rel/f", Make::File).unwrap();
        mount_point(root.as_fd(), c"a/../../b/./c", Make::Directory).unwrap();
        assert!(dir.0.join("root/outside/deep/x").is_dir());
        assert!(dir.0.join("root/up/f").is_file());
        assert!(dir.0.join("root/b/c").is_dir());
        assert!(!dir.0.join("up").exists() && !std::path::Path::new("/outside").exists());
    }

    #[test]
    fn a_file_in_the_way_is_not_a_directory() {
        let dir = Dir::new("file");
        std::fs::write(dir.0.join("root/f"), "").unwrap();
        let error = mount_point(dir.root().as_fd(), c"/f/x", Make::Directory).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
    }

    #[test]
    fn a_link_loop_ends() {
        let dir = Dir::new("loop");
        symlink("b", dir.0.join("root/a")).unwrap();
        symlink("a", dir.0.join("root/b")).unwrap();
        let error = walk(dir.root().as_fd(), c"/a/x", Some(Make::Directory)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn only_regular_files_are_read_and_only_to_the_bound() {
        let dir = Dir::new("read");
        let root = dir.root();
        std::fs::write(dir.0.join("root/f"), vec![b'x'; 5000]).unwrap();
        assert_eq!(read_regular(root.as_fd(), c"f", 100).unwrap().len(), 100);
        assert_eq!(read_regular(root.as_fd(), c"f", 5000).unwrap().len(), 5000);
        assert_eq!(read_regular(root.as_fd(), c"f", 1 << 20).unwrap().len(), 5000);
        sys::fs::mknodat(root.as_fd(), c"fifo", libc::S_IFIFO | 0o600, 0).unwrap();
        assert_eq!(read_regular(root.as_fd(), c"fifo", 100).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        symlink("/dev/zero", dir.0.join("root/zero")).unwrap();
        assert_eq!(read_regular(root.as_fd(), c"zero", 100).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn the_init_layer_has_real_directories() {
        let dir = Dir::new("init");
        fill_init_layer(dir.root().as_fd()).unwrap();
        fill_init_layer(dir.root().as_fd()).unwrap();
        assert!(dir.0.join("root/dev/pts").is_dir() && dir.0.join("root/etc/resolv.conf").is_file());
    }
}
