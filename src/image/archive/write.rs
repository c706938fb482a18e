//! Trees become tar streams: exports, copies out, layers from an overlay's upper directory, and the archives of `save`.
//!
//! Names come in byte order, hard links refer to the first name, sockets are left out, as the reference does; unlike it,
//! times keep their nanoseconds, `user.` attributes are kept, and large holes stay holes.

use super::apply::is_whiteout;
use super::encode::{Item, encode};
use super::header::{BLOCK, Kind, Time};
use super::recipe::Record;
use super::stream::Stream;
use super::walk::failed;
use super::{from_io, place};
use crate::error::{Error, Result};
use crate::image::digest::Sha256;
use crate::sys::{fd, fs};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How a tree is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Overlay's whiteouts and opaque marks become `.wh.` names. Needs CAP_SYS_ADMIN, to see the marks.
    pub whiteouts: bool,
    /// What is mounted in the tree is left out; its mount points appear empty.
    pub hide_mounts: bool,
    /// A file that vanishes or shrinks meanwhile is left out or padded (a running container); else it is an error.
    pub live: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub entries: u64,
    /// Sizes of files and links, each inode once, in bytes.
    pub content_bytes: u64,
}

/// A tar stream in the making.
pub struct Writer<'a> {
    stream: Stream<'a>,
    record: Option<&'a mut dyn Record>,
    /// First names of inodes with several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    totals: Totals,
}

/// Holes smaller than this in sum, in bytes, are written as zeros, which every reader understands: a layer with a sparse map
/// can be loaded by the reference, but never saved or pushed by it again ("could not verify layer data").
const HOLES_MIN: u64 = 1 << 30;
/// A file with more data regions than this is written whole.
const REGIONS_MAX: usize = 4096;

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut dyn Write) -> Writer<'a> {
        Writer { stream: Stream::new(out, false), record: None, links: HashMap::new(), totals: Totals::default() }
    }

    /// As [`Writer::new`]; also digests the stream and tells `record` what it consists of.
    pub fn recording(out: &'a mut dyn Write, record: &'a mut dyn Record) -> Writer<'a> {
        Writer { stream: Stream::new(out, true), record: Some(record), links: HashMap::new(), totals: Totals::default() }
    }

    /// Writes what `name` in `directory` is, under the name `rebase`. "" writes only the entries of
    /// a directory, not itself; "/" gives absolute names, which clients expect of a copied root. `name` is not followed when it is a link; "." is the directory.
    pub fn tree(&mut self, directory: BorrowedFd, name: &CStr, rebase: &[u8], options: &Options) -> Result<()> {
        let source = if name == c"." { Vec::new() } else { name.to_bytes().to_vec() };
        self.node(directory, name, rebase, &source, options)
    }

    /// Writes one file from memory.
    pub fn bytes(&mut self, item: &Item, content: &[u8]) -> Result<()> {
        self.stream_item(&Item { size: content.len() as u64, ..item.clone() }, |out| {
            out.write_all(content).map_err(|e| from_io("write", e))
        })
    }

    /// Writes an entry without content.
    pub fn entry(&mut self, item: &Item) -> Result<()> {
        let (head, _) = encode(item)?;
        self.totals.entries += 1;
        self.framing(&head)
    }

    /// Writes one file of `item.size` bytes that `body` produces; another count is an error.
    pub fn stream_item(&mut self, item: &Item, body: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        self.entry(item)?;
        let start = self.stream.size();
        body(&mut Inner { stream: &mut self.stream })?;
        if self.stream.size() - start != item.size {
            return Err(Error::system(format!("archive/tar: wrong size of {}", String::from_utf8_lossy(item.path))));
        }
        self.pad(item.size)
    }

    /// Writes the end mark; what was written, and the digest's hasher when [`Writer::recording`].
    pub fn finish(mut self) -> Result<(Totals, Option<Sha256>, u64)> {
        self.framing(&[0; 2 * BLOCK])?;
        let (hasher, size) = self.stream.finish()?;
        Ok((self.totals, hasher, size))
    }

    fn framing(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(record) = &mut self.record {
            record.framing(bytes)?;
        }
        self.stream.put(bytes)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let padding = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
        self.framing(&[0; BLOCK][..padding])
    }

    /// One name: `path` in the archive, `source` below the tree (what a recipe refers to).
    fn node(&mut self, dir: BorrowedFd, name: &CStr, path: &[u8], source: &[u8], options: &Options) -> Result<()> {
        let stat = match fs::fstatat(dir, name, libc::AT_SYMLINK_NOFOLLOW) {
            Err(e) if options.live && e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            done => done.map_err(|e| failed("lstat", source, &e))?,
        };
        let mut item = item_of(&stat, path);
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => self.directory(dir, name, item, source, options),
            libc::S_IFREG => {
                if self.linked(&stat, &mut item)? {
                    return Ok(());
                }
                self.file(dir, name, item, source, options)
            }
            libc::S_IFLNK => {
                if self.linked(&stat, &mut item)? {
                    return Ok(());
                }
                let target = fs::readlinkat(dir, name).map_err(|e| failed("readlink", source, &e))?;
                self.totals.content_bytes += target.len() as u64;
                self.entry(&Item { kind: Kind::Symlink, link: &target, mode: 0o777, ..item })
            }
            // Before links: overlay gives all its whiteouts one inode.
            libc::S_IFCHR if options.whiteouts && is_whiteout(&stat) => {
                let marked = whiteout_name(path);
                self.entry(&Item { path: &marked, mode: 0o600, ..item })
            }
            libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO => {
                if self.linked(&stat, &mut item)? {
                    return Ok(());
                }
                let kind = match stat.st_mode & libc::S_IFMT {
                    libc::S_IFCHR => Kind::CharDevice,
                    libc::S_IFBLK => Kind::BlockDevice,
                    _ => Kind::Fifo,
                };
                let device = if kind == Kind::Fifo { (0, 0) } else { (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)) };
                self.entry(&Item { kind, device, ..item })
            }
            // A socket is nothing without its process.
            _ => Ok(()),
        }
    }

    /// Writes a later name of an inode as a link to its first; true when done.
    fn linked(&mut self, stat: &libc::stat64, item: &mut Item) -> Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        match self.links.entry((stat.st_dev, stat.st_ino)) {
            std::collections::hash_map::Entry::Occupied(first) => {
                let target = first.get().clone();
                self.entry(&Item { kind: Kind::HardLink, link: &target, size: 0, ..item.clone() })?;
                Ok(true)
            }
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(item.path.to_vec());
                Ok(false)
            }
        }
    }

    fn directory(&mut self, dir: BorrowedFd, name: &CStr, item: Item, source: &[u8], options: &Options) -> Result<()> {
        let listed = match open(dir, name, libc::O_DIRECTORY, options) {
            Err(e) if options.live && e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            // A mount point: shown, not entered.
            Err(e) if options.hide_mounts && e.raw_os_error() == Some(libc::EXDEV) => None,
            done => Some(done.map_err(|e| failed("open", source, &e))?),
        };
        let slashed = if item.path.ends_with(b"/") { item.path.to_vec() } else { [item.path, b"/"].concat() };
        let xattrs = listed.as_ref().map_or(Ok(Vec::new()), |fd| xattrs(fd.as_fd(), source))?;
        if !item.path.is_empty() {
            self.entry(&Item { kind: Kind::Directory, path: &slashed, size: 0, xattrs: &xattrs, ..item.clone() })?;
        }
        let Some(listed) = listed else { return Ok(()) };
        if options.whiteouts && fs::fgetxattr(listed.as_fd(), c"trusted.overlay.opaque").is_ok_and(|v| v == b"y") {
            let opaque = if item.path.is_empty() { b".wh..wh..opq".to_vec() } else { [&slashed, &b".wh..wh..opq"[..]].concat() };
            self.entry(&Item { path: &opaque, mode: item.mode & 0o777, size: 0, mtime: Time::default(), ..item.clone() })?;
        }
        let copy = fd::dup_cloexec(listed.as_fd(), 3).map_err(|e| failed("dup", source, &e))?;
        let mut names: Vec<CString> = Vec::new();
        for child in fs::Directory::from_fd(copy).map_err(|e| failed("readdir", source, &e))? {
            names.push(child.map_err(|e| failed("readdir", source, &e))?.name);
        }
        names.sort_unstable();
        let below = |of: &[u8], name: &CStr| match of.last() {
            None | Some(b'/') => [of, name.to_bytes()].concat(),
            Some(_) => [of, b"/", name.to_bytes()].concat(),
        };
        for name in names {
            self.node(listed.as_fd(), &name, &below(item.path, &name), &below(source, &name), options)?;
        }
        Ok(())
    }

    fn file(&mut self, dir: BorrowedFd, name: &CStr, item: Item, source: &[u8], options: &Options) -> Result<()> {
        let file = match open(dir, name, libc::O_NONBLOCK, options) {
            Err(e) if options.live && e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            // A file mounted on a file: what lies below can't be seen; the reference shows its own empty one.
            Err(e) if options.hide_mounts && e.raw_os_error() == Some(libc::EXDEV) => {
                return self.entry(&Item { size: 0, mode: 0o755, uid: 0, gid: 0, ..item });
            }
            done => done.map_err(|e| failed("open", source, &e))?,
        };
        // What was opened counts: the name may have been exchanged.
        let stat = fd::fstat(file.as_fd()).map_err(|e| failed("stat", source, &e))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return if options.live { Ok(()) } else { Err(failed("open", source, &io::Error::from_raw_os_error(libc::ESTALE))) };
        }
        let item = item_of(&stat, item.path);
        let xattrs = xattrs(file.as_fd(), source)?;
        let regions = data_regions(file.as_fd(), &stat);
        let item = Item { xattrs: &xattrs, sparse: regions.as_deref(), ..item };
        let (head, stored) = encode(&item)?;
        self.totals.entries += 1;
        self.totals.content_bytes += item.size;
        self.framing(&head)?;
        let whole = [(0, item.size)];
        let crc = self.content(file.as_fd(), regions.as_deref().unwrap_or(&whole), source, options)?;
        if let Some(record) = self.record.as_mut().filter(|_| stored > 0) {
            match &regions {
                Some(regions) => record.regions(source, regions, crc)?,
                None => record.content(source, stored, crc)?,
            }
        }
        self.pad(stored)
    }

    fn content(&mut self, file: BorrowedFd, regions: &[(u64, u64)], source: &[u8], options: &Options) -> Result<u32> {
        let hash = self.record.is_some();
        let mut crc = crc32fast::Hasher::new();
        for (offset, length) in regions {
            let (mut at, mut left) = (*offset, *length);
            while left > 0 {
                let room = self.stream.room(left)?;
                let position = i64::try_from(at).map_err(|_| Error::system("file too large"))?;
                let mut count = fd::pread(file, room, position).map_err(|e| failed("read", source, &e))?;
                if count == 0 {
                    if !options.live {
                        return Err(Error::system(format!("/{} changed while it was read", String::from_utf8_lossy(source))));
                    }
                    room.fill(0);
                    count = room.len();
                }
                if hash {
                    crc.update(&room[..count]);
                }
                self.stream.advance(count);
                at += count as u64;
                left -= count as u64;
            }
        }
        Ok(crc.finalize())
    }
}

/// The body of one entry as a `Write`.
struct Inner<'a, 'b> {
    stream: &'a mut Stream<'b>,
}

impl Write for Inner<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.put(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a name without following it, and with `hide_mounts` without leaving the mount (EXDEV).
fn open(dir: BorrowedFd, name: &CStr, flags: libc::c_int, options: &Options) -> io::Result<OwnedFd> {
    let flags = flags | libc::O_RDONLY | libc::O_NOFOLLOW;
    if options.hide_mounts { fd::openat2(dir, name, flags, 0, fd::RESOLVE_NO_XDEV) } else { fd::openat(dir, name, flags, 0) }
}

fn item_of<'a>(stat: &libc::stat64, path: &'a [u8]) -> Item<'a> {
    let size = if stat.st_mode & libc::S_IFMT == libc::S_IFREG { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
    #[allow(clippy::useless_conversion)] // 32 bits wide on some targets
    let mtime = Time { seconds: i64::from(stat.st_mtime), nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    Item { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, ..Item::file(path, size, mtime) }
}

/// "a/b" as "a/.wh.b".
fn whiteout_name(path: &[u8]) -> Vec<u8> {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => [&path[..=slash], b".wh.", &path[slash + 1..]].concat(),
        None => [b".wh.", path].concat(),
    }
}

fn xattrs(fd: BorrowedFd, source: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match fs::flistxattr(fd) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTSUP) => return Ok(Vec::new()),
        done => done.map_err(|e| failed("llistxattr", source, &e))?,
    };
    let mut list = Vec::new();
    for name in names.iter().filter(|name| place::allowed_xattr(name.to_bytes())) {
        match fs::fgetxattr(fd, name) {
            Ok(value) => list.push((name.to_bytes().to_vec(), value)),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EPERM)) => {}
            Err(e) => return Err(failed("lgetxattr", source, &e)),
        }
    }
    list.sort();
    Ok(list)
}

/// Where a file has data, when its holes are worth a map.
fn data_regions(file: BorrowedFd, stat: &libc::stat64) -> Option<Vec<(u64, u64)>> {
    let size = u64::try_from(stat.st_size).ok()?;
    let allocated = u64::try_from(stat.st_blocks).ok()?.saturating_mul(512);
    if size.saturating_sub(allocated) < HOLES_MIN {
        return None;
    }
    let mut regions = Vec::new();
    let mut at = 0u64;
    while at < size {
        let start = match fd::lseek(file, i64::try_from(at).ok()?, libc::SEEK_DATA) {
            Ok(start) => start,
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => break, // nothing but hole up to the end
            Err(_) => return None,
        };
        let end = fd::lseek(file, i64::try_from(start).ok()?, libc::SEEK_HOLE).ok()?.min(size);
        if end <= start || regions.len() >= REGIONS_MAX {
            return None;
        }
        regions.push((start, end - start));
        at = end;
    }
    let stored: u64 = regions.iter().map(|r| r.1).sum();
    (size - stored >= HOLES_MIN).then_some(regions)
}
