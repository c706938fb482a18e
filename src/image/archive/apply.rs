//! The applier: tar entries become a tree below a directory descriptor.
//!
//! It replaces, merges, refuses and reports as the reference's `Untar` does. It may run inside a jail, whose root is then
//! the directory; nothing here depends on it: paths are walked by [`Walk`] and last components are never followed.

use super::from_io;
use super::header::{Entry, Kind, Time};
use super::place::{self, Metadata};
use super::reader::{Limits, Reader};
use super::recipe::Record;
use super::walk::{Missing, Walk, clean, failed, name_of, split};
use crate::error::{Error, Result};
use crate::sys::{self, fd, fs};
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How entries become files.
#[derive(Clone, Debug)]
pub struct Options {
    pub limits: Limits,
    /// `.wh.` names become overlay's whiteouts and opaque marks (layers).
    pub whiteouts: bool,
    /// Device nodes are made (layers); else they are passed over. Fifos are made in any case.
    pub devices: bool,
    /// A directory does not replace a file, nor a file a directory (`noOverwriteDirNonDir` of the archive endpoint).
    pub keep_kinds: bool,
    /// Everything belongs to this uid and gid instead of the archive's.
    pub owner: Option<(u32, u32)>,
    /// Stop before the file system is full. Not for containers' own files: they may fill their disk by themselves.
    pub reserve: bool,
    /// The directory as messages name it, "/" or "/tmp/x".
    pub destination: String,
}

impl Options {
    /// For the layers of images.
    pub fn layer() -> Options {
        let destination = "/".to_owned();
        Options { limits: Limits::default(), whiteouts: true, devices: true, keep_kinds: false, owner: None, reserve: true, destination }
    }

    /// For `PUT /containers/{id}/archive` into the directory that the client calls `destination`.
    pub fn copy(destination: &str) -> Options {
        Options { whiteouts: false, devices: false, reserve: false, destination: destination.to_owned(), ..Options::layer() }
    }

    /// For build contexts: as the reference, everything belongs to root.
    pub fn context() -> Options {
        Options { whiteouts: false, devices: false, owner: Some((0, 0)), ..Options::layer() }
    }
}

/// Zeros become holes by blocks of this many bytes: the archives of others write holes out, and disks need not hold them.
const HOLE: usize = 64 * 1024;
/// What a piece of the stream has of a block becomes one too, from this size on.
const HOLE_MIN: usize = 4096;
static ZEROS: [u8; HOLE] = [0; HOLE];

/// The first run of `bytes`, which go to offset `at`: whether it becomes a hole, and its length.
fn next_run(bytes: &[u8], at: u64) -> (bool, usize) {
    let empty = |block: &[u8]| block.len() >= HOLE_MIN && *block == ZEROS[..block.len()];
    let first = HOLE - usize::try_from(at % HOLE as u64).unwrap_or(0);
    let mut end = first.min(bytes.len());
    if empty(&bytes[..end]) {
        return (true, end);
    }
    while end < bytes.len() {
        let next = (end + HOLE).min(bytes.len());
        if empty(&bytes[end..next]) {
            break;
        }
        end = next;
    }
    (false, end)
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub entries: u64,
    /// Bytes of the uncompressed stream.
    pub stream_bytes: u64,
    /// Sizes of the files and links in the tree, each inode once: what the API calls a layer's size.
    pub content_bytes: u64,
}

/// Sets what the jail may not set itself.
pub trait Marker {
    /// Marks the directory `path` (resolved, relative to the tree) as opaque for overlay.
    fn mark_opaque(&mut self, path: &[u8], directory: BorrowedFd) -> Result<()>;
}

/// For a process that holds CAP_SYS_ADMIN itself.
pub struct MarkDirectly;

impl Marker for MarkDirectly {
    fn mark_opaque(&mut self, path: &[u8], directory: BorrowedFd) -> Result<()> {
        fs::fsetxattr(directory, c"trusted.overlay.opaque", b"y", 0).map_err(|e| failed("setxattr trusted.overlay.opaque", path, &e))
    }
}

/// Unpacks the tar stream `source` (plain) into `root`. `spares`, where replaced contents that a recipe needs are kept
/// under `spare/`, is the layer's directory; without a recipe it is not used.
pub fn apply(
    source: &mut dyn Read,
    root: BorrowedFd,
    spares: Option<BorrowedFd>,
    options: &Options,
    record: &mut dyn Record,
    marker: &mut dyn Marker,
) -> Result<Summary> {
    let mut reader = Reader::new(source, options.limits);
    let mut applier = Applier {
        walk: Walk::new(root),
        root,
        spares,
        options,
        record,
        marker,
        summary: Summary::default(),
        times: DirectoryTimes::default(),
        unchecked: 0,
    };
    applier.check_space()?;
    while let Some(entry) = reader.next(&mut *applier.record)? {
        applier.summary.entries += 1;
        applier.entry(&entry, &mut reader)?;
    }
    applier.set_directory_times()?;
    applier.summary.stream_bytes = reader.taken();
    Ok(applier.summary)
}

struct Applier<'a> {
    walk: Walk<'a>,
    root: BorrowedFd<'a>,
    spares: Option<BorrowedFd<'a>>,
    options: &'a Options,
    record: &'a mut dyn Record,
    marker: &'a mut dyn Marker,
    summary: Summary,
    times: DirectoryTimes,
    /// Bytes written since the free space was looked at.
    unchecked: u64,
}

/// Times of directories, set when nothing will be made in them any more. Paths lie one after another in one buffer.
#[derive(Default)]
struct DirectoryTimes {
    paths: Vec<u8>,
    list: Vec<(usize, [libc::timespec; 2])>,
}

/// Bytes of paths that wait for their times; when more come, the first ones are set early.
const TIMES_BYTES: usize = 16 << 20;

/// How much is written between two looks at the free space.
const SPACE_STEP: u64 = 32 << 20;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

impl Applier<'_> {
    fn entry<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<()> {
        let path = clean(&entry.path, &self.options.destination)?;
        // The root exists and keeps its owner, mode and times, as with the reference.
        let Some((parent, name)) = split(&path) else { return Ok(()) };
        if self.options.whiteouts && name.starts_with(WHITEOUT) {
            return self.whiteout(entry, parent, name);
        }
        match entry.kind {
            Kind::File => self.file(entry, parent, name, reader),
            Kind::Directory => self.directory(entry, parent, name),
            Kind::HardLink => self.hard_link(entry, parent, name),
            Kind::Symlink => self.symlink(entry, parent, name),
            Kind::CharDevice | Kind::BlockDevice if !self.options.devices => Ok(()),
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.node(entry, parent, name),
        }
    }

    fn metadata(&self, entry: &Entry) -> Metadata {
        let (uid, gid) = self.options.owner.unwrap_or((entry.uid, entry.gid));
        let atime = entry.atime.unwrap_or_default().max(entry.mtime);
        Metadata { uid, gid, mode: entry.mode, times: [timespec(atime), timespec(entry.mtime)] }
    }

    fn file<R: Read>(&mut self, entry: &Entry, parent: &[u8], name: &[u8], reader: &mut Reader<R>) -> Result<()> {
        let path = &entry.path;
        let c_name = name_of(name, path)?;
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW;
        let file = self.make("open", entry, parent, name, |dir| fd::openat(dir, &c_name, flags, 0o600))?;
        let mut crc = crc32fast::Hasher::new();
        let mut regions = entry.sparse.iter().flatten().copied();
        // Where the next byte goes, and how many more belong there.
        let (mut at, mut left) = if entry.sparse.is_some() { (0, 0) } else { (0, u64::MAX) };
        let mut stored = 0u64;
        let mut holes = entry.sparse.is_some();
        loop {
            let mut piece = reader.chunk()?;
            if piece.is_empty() {
                break;
            }
            crc.update(piece);
            stored += piece.len() as u64;
            while !piece.is_empty() {
                if left == 0 {
                    (at, left) = regions.next().ok_or_else(super::header::invalid_header)?;
                }
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                let (hole, run) = next_run(&piece[..most], at);
                let count = if hole {
                    run
                } else {
                    let position = i64::try_from(at).map_err(|_| super::header::invalid_header())?;
                    self.unchecked += run as u64;
                    fd::pwrite(file.as_fd(), &piece[..run], position).map_err(|e| failed("write", path, &e))?
                };
                holes |= hole;
                piece = &piece[count..];
                at += count as u64;
                left -= count as u64;
            }
            if self.unchecked > SPACE_STEP {
                self.check_space()?;
            }
        }
        if holes {
            let size = i64::try_from(entry.size).map_err(|_| super::header::invalid_header())?;
            fd::ftruncate(file.as_fd(), size).map_err(|e| failed("truncate", path, &e))?;
        }
        self.summary.content_bytes += entry.size;
        if stored > 0 {
            let resolved = self.walk.resolved(name);
            match &entry.sparse {
                Some(regions) => self.record.regions(&resolved, regions, crc.finalize())?,
                None => self.record.content(&resolved, stored, crc.finalize())?,
            }
        }
        place::dress(file.as_fd(), &self.metadata(entry), &entry.xattrs, path)
    }

    fn directory(&mut self, entry: &Entry, parent: &[u8], name: &[u8]) -> Result<()> {
        let path = &entry.path;
        let c_name = name_of(name, path)?;
        let dir = self.walk.directory(parent, Missing::Create)?;
        let mut opaque = false;
        match fs::mkdirat(dir, &c_name, 0o700) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                let stat = stat(dir, &c_name, path)?;
                if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
                    // A whiteout says that below lies something of this name; the directory must hide that, not merge with it.
                    opaque = self.options.whiteouts && is_whiteout(&stat);
                    self.clear(entry, parent, name, &c_name)?;
                    let dir = self.walk.directory(parent, Missing::Create)?;
                    fs::mkdirat(dir, &c_name, 0o700).map_err(|e| failed("mkdir", path, &e))?;
                }
            }
            Err(e) => return Err(failed("mkdir", path, &e)),
        }
        let mut whole = parent.to_vec();
        if !whole.is_empty() {
            whole.push(b'/');
        }
        whole.extend_from_slice(name);
        let metadata = self.metadata(entry);
        let directory = self.walk.directory(&whole, Missing::Refuse)?;
        place::dress(directory, &metadata, &entry.xattrs, path)?;
        let resolved = self.walk.resolved(b"");
        let resolved = resolved.strip_suffix(b"/").unwrap_or(&resolved);
        if opaque {
            self.marker.mark_opaque(resolved, self.walk.current())?;
        }
        if self.times.paths.len() + resolved.len() > TIMES_BYTES {
            self.set_directory_times()?;
        }
        self.times.paths.extend_from_slice(resolved);
        self.times.list.push((resolved.len(), metadata.times));
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, parent: &[u8], name: &[u8]) -> Result<()> {
        let path = &entry.path;
        let c_name = name_of(name, path)?;
        let target = sys::cstring(&entry.link).map_err(|e| failed("symlink", path, &e))?;
        self.make("symlink", entry, parent, name, |dir| fs::symlinkat(&target, dir, &c_name))?;
        self.summary.content_bytes += entry.link.len() as u64;
        let metadata = self.metadata(entry);
        place::dress_link(self.walk.current(), &c_name, &metadata, path)
    }

    fn node(&mut self, entry: &Entry, parent: &[u8], name: &[u8]) -> Result<()> {
        let path = &entry.path;
        let c_name = name_of(name, path)?;
        let kind = match entry.kind {
            Kind::CharDevice => libc::S_IFCHR,
            Kind::BlockDevice => libc::S_IFBLK,
            _ => libc::S_IFIFO,
        };
        let (major, minor) = entry.device;
        let mode = kind | entry.mode;
        self.make("mknod", entry, parent, name, |dir| fs::mknodat(dir, &c_name, mode, fs::makedev(major, minor)))?;
        let metadata = self.metadata(entry);
        place::dress_node(self.walk.current(), &c_name, &metadata, path)
    }

    fn hard_link(&mut self, entry: &Entry, parent: &[u8], name: &[u8]) -> Result<()> {
        let path = &entry.path;
        let c_name = name_of(name, path)?;
        let target = clean(&entry.link, &self.options.destination)?;
        let Some((target_parent, target_name)) = split(&target) else {
            let link = String::from_utf8_lossy(&entry.link);
            return Err(Error::invalid(format!("invalid hardlink {:?} -> {link:?}", String::from_utf8_lossy(path))));
        };
        let target_name = name_of(target_name, path)?;
        if (target_parent, target_name.to_bytes()) == (parent, name) {
            // A link to itself: the reference removes the name and then misses it.
            return Err(failed("link", path, &io::Error::from_raw_os_error(libc::ENOENT)));
        }
        let target_dir = self.walk.directory(target_parent, Missing::Refuse)?;
        let target_dir = fd::dup_cloexec(target_dir, 3).map_err(|e| failed("link", path, &e))?;
        self.make("link", entry, parent, name, |dir| fs::linkat(target_dir.as_fd(), &target_name, dir, &c_name, 0))
    }

    /// `.wh.name` deletes `name` of the layers below; `.wh..wh..opq` hides all that they have in this directory.
    fn whiteout(&mut self, entry: &Entry, parent: &[u8], name: &[u8]) -> Result<()> {
        let path = &entry.path;
        if name == OPAQUE {
            self.walk.directory(parent, Missing::Create)?;
            let resolved = self.walk.resolved(b"");
            return self.marker.mark_opaque(resolved.strip_suffix(b"/").unwrap_or(&resolved), self.walk.current());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::invalid(format!("invalid whiteout name {:?}", String::from_utf8_lossy(path))));
        }
        if hidden.starts_with(WHITEOUT) {
            return Ok(()); // other `.wh..wh.` names are bookkeeping of aufs
        }
        let c_name = name_of(hidden, path)?;
        let metadata = self.metadata(entry);
        let dir = self.walk.directory(parent, Missing::Create)?;
        match fs::mknodat(dir, &c_name, libc::S_IFCHR, 0) {
            Ok(()) => place::dress_link(dir, &c_name, &metadata, path),
            // The layer itself has the name: what it deletes is only what lies below it.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                if stat(dir, &c_name, path)?.st_mode & libc::S_IFMT == libc::S_IFDIR {
                    let whole = if parent.is_empty() { hidden.to_vec() } else { [parent, b"/", hidden].concat() };
                    self.walk.directory(&whole, Missing::Refuse)?;
                    let resolved = self.walk.resolved(b"");
                    self.marker.mark_opaque(resolved.strip_suffix(b"/").unwrap_or(&resolved), self.walk.current())?;
                }
                Ok(())
            }
            Err(e) => Err(failed("mknod", path, &e)),
        }
    }

    /// Makes a name that must be new; what stands in the way is removed first.
    fn make<T>(&mut self, call: &str, entry: &Entry, parent: &[u8], name: &[u8], make: impl Fn(BorrowedFd) -> io::Result<T>) -> Result<T> {
        let dir = self.walk.directory(parent, Missing::Create)?;
        match make(dir) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                self.clear(entry, parent, name, &name_of(name, &entry.path)?)?;
                let dir = self.walk.directory(parent, Missing::Create)?;
                make(dir).map_err(|e| failed(call, &entry.path, &e))
            }
            done => done.map_err(|e| failed(call, &entry.path, &e)),
        }
    }

    /// Removes what stands at a name that an entry of another kind, or another file, takes. [`Walk::current`] is its directory.
    fn clear(&mut self, entry: &Entry, parent: &[u8], name: &[u8], c_name: &CStr) -> Result<()> {
        let dir = fd::dup_cloexec(self.walk.directory(parent, Missing::Create)?, 3).map_err(|e| failed("open", &entry.path, &e))?;
        let stat = stat(dir.as_fd(), c_name, &entry.path)?;
        let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if self.options.keep_kinds && directory != (entry.kind == Kind::Directory) {
            let below = if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() };
            let shown = format!("{}/{}", self.options.destination.trim_end_matches('/'), String::from_utf8_lossy(&below));
            let destination = &self.options.destination;
            return Err(Error::invalid(if directory {
                format!("cannot overwrite directory {shown:?} with non-directory {destination:?}")
            } else {
                format!("cannot overwrite non-directory {shown:?} with directory {destination:?}")
            }));
        }
        let path = self.walk.resolved(name);
        if directory {
            // Descriptors below what is removed would keep it alive and mislead later entries.
            self.walk.forget();
        }
        self.remove(dir.as_fd(), c_name, &stat, &path)
    }

    /// Removes a tree; contents that the recipe refers to get another name first.
    fn remove(&mut self, dir: BorrowedFd, name: &CStr, stat: &libc::stat64, path: &[u8]) -> Result<()> {
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => {
                let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
                let inner = fd::openat(dir, name, flags, 0).map_err(|e| failed("unlinkat", path, &e))?;
                let listing = fd::dup_cloexec(inner.as_fd(), 3).map_err(|e| failed("unlinkat", path, &e))?;
                for child in fs::Directory::from_fd(listing).map_err(|e| failed("unlinkat", path, &e))? {
                    let child = child.map_err(|e| failed("unlinkat", path, &e))?.name;
                    let child_path = [path, b"/", child.to_bytes()].concat();
                    let child_stat = self::stat(inner.as_fd(), &child, &child_path)?;
                    self.remove(inner.as_fd(), &child, &child_stat, &child_path)?;
                }
                return fs::unlinkat(dir, name, libc::AT_REMOVEDIR).map_err(|e| failed("unlinkat", path, &e));
            }
            libc::S_IFREG if stat.st_size > 0 => self.spare(dir, name, path)?,
            _ => {}
        }
        if stat.st_nlink == 1 && matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFLNK) {
            self.summary.content_bytes = self.summary.content_bytes.saturating_sub(stat.st_size.unsigned_abs());
        }
        fs::unlinkat(dir, name, 0).map_err(|e| failed("unlinkat", path, &e))
    }

    fn spare(&mut self, dir: BorrowedFd, name: &CStr, path: &[u8]) -> Result<()> {
        let Some(layer) = self.spares else { return Ok(()) };
        let Some(number) = self.record.supersede(path)? else { return Ok(()) };
        match fs::mkdirat(layer, c"spare", 0o700) {
            Err(e) if e.raw_os_error() != Some(libc::EEXIST) => return Err(Error::io("mkdir spare", &e)),
            _ => {}
        }
        let spare = sys::cstring(format!("spare/{number}")).map_err(|e| Error::io("link spare", &e))?;
        fs::linkat(dir, name, layer, &spare, 0).map_err(|e| failed("link", path, &e))
    }

    fn set_directory_times(&mut self) -> Result<()> {
        let times = std::mem::take(&mut self.times);
        let mut start = 0;
        for (length, times_of) in &times.list {
            let path = &times.paths[start..start + length];
            start += length;
            // A directory that was replaced since has nothing to get.
            if let Ok(directory) = self.walk.directory(path, Missing::Refuse) {
                fs::utimensat(directory, c".", times_of, 0).map_err(|e| failed("chtimes", path, &e))?;
            }
        }
        Ok(())
    }

    /// Stops before the file system is full, so that the rest of the host goes on: at 5 % or 256 MB left, whichever is less.
    fn check_space(&mut self) -> Result<()> {
        self.unchecked = 0;
        if !self.options.reserve {
            return Ok(());
        }
        let stat = fs::fstatfs(self.root).map_err(|e| Error::io("statfs", &e))?;
        let unit = u64::try_from(stat.f_frsize).unwrap_or(0);
        let reserve = (stat.f_blocks.saturating_mul(unit) / 20).min(256 << 20);
        if stat.f_blocks > 0 && stat.f_bavail.saturating_mul(unit) < reserve {
            return Err(from_io("write", io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }
}

fn timespec(time: Time) -> libc::timespec {
    sys::time::timespec(time.seconds, time.nanoseconds)
}

fn stat(dir: BorrowedFd, name: &CStr, path: &[u8]) -> Result<libc::stat64> {
    fs::fstatat(dir, name, libc::AT_SYMLINK_NOFOLLOW).map_err(|e| failed("lstat", path, &e))
}

/// Overlay's mark for a deleted name: a character device 0:0.
pub(crate) fn is_whiteout(stat: &libc::stat64) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0
}

/// The layer's tree, made empty: mode 0755, owned by root.
pub(crate) fn make_tree(layer: BorrowedFd) -> Result<OwnedFd> {
    fs::mkdirat(layer, c"diff", 0o755).map_err(|e| Error::io("mkdir diff", &e))?;
    let tree = fd::openat(layer, c"diff", libc::O_DIRECTORY | libc::O_NOFOLLOW, 0).map_err(|e| Error::io("open diff", &e))?;
    fs::fchmod(tree.as_fd(), 0o755).map_err(|e| Error::io("chmod diff", &e))?;
    Ok(tree)
}
