//! COPY and ADD: sources found below a root that is never left, hashed for the cache, and unpacked into the new layer by
//! a jailed process.

use super::cache::{entry_hash, sources_name};
use super::dockerfile::Copy;
use super::glob::{Glob, has_wildcards};
use super::ignore::clean;
use crate::container::rootfs::{make_directories, open_in_root};
use crate::error::{Error, Result, strerror};
use crate::image::archive::apply::{self, Options};
use crate::image::archive::decompress::Decompressor;
use crate::image::archive::encode::Item;
use crate::image::archive::header::Time;
use crate::image::archive::jail::{self, Policy, Root};
use crate::image::archive::write::{Options as WriteOptions, Writer};
use crate::image::digest::{Digest, HashingReader};
use crate::registry::process::Produced;
use crate::sys;
use crate::sys::fs::Directory;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Directories below one source that are walked into.
const DEPTH_MAX: usize = 256;

/// One thing to copy.
#[derive(Clone, Debug)]
pub enum Source {
    /// Relative to the root; a directory's contents are copied, a file as itself.
    Path { path: String, directory: bool, hash: String },
    /// A here-document.
    Text { name: String, content: String },
}

/// Everything that a COPY or ADD takes, found and hashed.
#[derive(Clone, Debug)]
pub struct Found {
    pub sources: Vec<Source>,
    /// The sources' name in history and cache: "file:…", "dir:…", "multi:…".
    pub hash: String,
}

/// Finds the sources of a step below `root`; `context`: the build's own, for the words of a refusal.
pub fn find(root: BorrowedFd, copy: &Copy, keyword: &str, context: bool) -> Result<Found> {
    let fail = |e: Error| Error::new(e.kind, format!("{keyword} failed: {}", e.message));
    let mut sources = Vec::new();
    for source in &copy.sources {
        sources.extend(find_one(root, source, context).map_err(fail)?);
    }
    for heredoc in &copy.heredocs {
        sources.push(Source::Text { name: heredoc.name.clone(), content: heredoc.text() });
    }
    if sources.is_empty() {
        return Err(fail(Error::invalid("no source files were specified")));
    }
    if sources.len() > 1 && !copy.dest.ends_with('/') {
        return Err(Error::invalid(format!(
            "When using {keyword} with more than one source file, the destination must be a directory and end with a /"
        )));
    }
    let hashes: Vec<String> = sources
        .iter()
        .map(|source| match source {
            Source::Path { hash, .. } => hash.clone(),
            Source::Text { name, content } => {
                let content = Digest::of(content.as_bytes());
                format!("file:{}", entry_hash(name, 'f', 0o644, (0, 0), b"", Some(content)).hex())
            }
        })
        .collect();
    Ok(Found { hash: sources_name(&hashes), sources })
}

fn find_one(root: BorrowedFd, source: &str, context: bool) -> Result<Vec<Source>> {
    let wanted = clean(&format!("/{source}"));
    let wanted = wanted.trim_start_matches('/');
    if !has_wildcards(source) {
        return path_source(root, if wanted.is_empty() { "." } else { wanted }, context).map(|found| vec![found]);
    }
    let glob = Glob::file(wanted).map_err(|e| Error::invalid(e.to_string()))?;
    let mut names = Vec::new();
    list(root, "", 0, &mut |path, _| {
        if glob.matches(path) {
            names.push(path.to_owned());
        }
        Ok(())
    })?;
    names.iter().map(|name| path_source(root, name, context)).collect()
}

fn path_source(root: BorrowedFd, path: &str, context: bool) -> Result<Source> {
    let c_path = sys::cstring(path).map_err(|e| Error::io("name a source", &e))?;
    let missing = |e: &io::Error| {
        let why = if e.raw_os_error() == Some(libc::ENOENT) { "file does not exist".to_owned() } else { strerror(e) };
        let prefix = if context { "file not found in build context or excluded by .dockerignore: " } else { "" };
        Error::invalid(format!("{prefix}stat {path}: {why}"))
    };
    let fd = open_in_root(root, &c_path, libc::O_PATH).map_err(|e| missing(&e))?;
    let stat = sys::fd::fstat(fd.as_fd()).map_err(|e| missing(&e))?;
    let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let hash = if directory {
        let mut hashes = Vec::new();
        let base = open_in_root(root, &c_path, libc::O_RDONLY | libc::O_DIRECTORY).map_err(|e| missing(&e))?;
        list(base.as_fd(), "", 0, &mut |name, dir| {
            hashes.push(hash_entry(dir, name)?.hex());
            Ok(())
        })?;
        hashes.sort();
        format!("dir:{}", Digest::of(hashes.join(",").as_bytes()).hex())
    } else {
        let name = path.rsplit('/').next().unwrap_or(path);
        format!("file:{}", hash_file(name, &stat, root, &c_path)?.hex())
    };
    Ok(Source::Path { path: path.into(), directory, hash })
}

/// Calls `visit` with each path below `dir` (and the directory that its last component is in), sorted within directories.
fn list(dir: BorrowedFd, prefix: &str, depth: usize, visit: &mut dyn FnMut(&str, BorrowedFd) -> Result<()>) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(Error::invalid(format!("{prefix}: directories are nested too deeply")));
    }
    let failed = |e: &io::Error| Error::io(format!("read directory {prefix:?}"), e);
    let again = sys::fd::openat(dir, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(|e| failed(&e))?;
    let mut names: Vec<CString> = Vec::new();
    for entry in Directory::from_fd(again).map_err(|e| failed(&e))? {
        names.push(entry.map_err(|e| failed(&e))?.name);
    }
    names.sort();
    for name in names {
        let shown = name.to_string_lossy();
        let path = if prefix.is_empty() { shown.into_owned() } else { format!("{prefix}/{shown}") };
        visit(&path, dir)?;
        let stat = sys::fs::fstatat(dir, &name, libc::AT_SYMLINK_NOFOLLOW).map_err(|e| failed(&e))?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            let below = sys::fd::openat(dir, &name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0).map_err(|e| failed(&e))?;
            list(below.as_fd(), &path, depth + 1, visit)?;
        }
    }
    Ok(())
}

fn hash_entry(dir: BorrowedFd, path: &str) -> Result<Digest> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let c_name = sys::cstring(name).map_err(|e| Error::io("name a source", &e))?;
    let failed = |e: &io::Error| Error::io(format!("read {path}"), e);
    let stat = sys::fs::fstatat(dir, &c_name, libc::AT_SYMLINK_NOFOLLOW).map_err(|e| failed(&e))?;
    let owner = (stat.st_uid, stat.st_gid);
    let mode = stat.st_mode & 0o7777;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Ok(entry_hash(path, 'd', mode, owner, b"", None)),
        libc::S_IFLNK => {
            let target = sys::fs::readlinkat(dir, &c_name).map_err(|e| failed(&e))?;
            Ok(entry_hash(path, 'l', mode, owner, &target, None))
        }
        libc::S_IFREG => {
            let fd = sys::fd::openat(dir, &c_name, libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK, 0).map_err(|e| failed(&e))?;
            Ok(entry_hash(path, 'f', mode, owner, b"", Some(content(fd, path)?)))
        }
        other => Ok(entry_hash(path, 'o', other, owner, format!("{}", stat.st_rdev).as_bytes(), None)),
    }
}

fn hash_file(name: &str, stat: &libc::stat64, root: BorrowedFd, path: &CStr) -> Result<Digest> {
    let owner = (stat.st_uid, stat.st_gid);
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Ok(entry_hash(name, 'o', stat.st_mode, owner, b"", None));
    }
    let fd = open_in_root(root, path, libc::O_RDONLY | libc::O_NONBLOCK).map_err(|e| Error::io(format!("open {name}"), &e))?;
    Ok(entry_hash(name, 'f', stat.st_mode & 0o7777, owner, b"", Some(content(fd, name)?)))
}

fn content(fd: OwnedFd, name: &str) -> Result<Digest> {
    HashingReader::new(File::from(fd)).finish().map(|(digest, _)| digest).map_err(|e| Error::io(format!("read {name}"), &e))
}

/// Where things go.
pub struct Target<'a> {
    /// Absolute; a trailing slash means a directory.
    pub dest: &'a str,
    /// Everything belongs to these; `None` keeps the sources' own.
    pub owner: Option<(u32, u32)>,
    /// Permissions of everything that is copied; `None` keeps the sources' own.
    pub mode: Option<u32>,
    /// Local archives are unpacked (ADD).
    pub unpack: bool,
}

/// Copies everything into the layer; `merged` makes a fresh view of it (used up by each jail).
pub fn perform(found: &Found, root: BorrowedFd, target: &Target, merged: &dyn Fn() -> Result<OwnedFd>) -> Result<()> {
    for source in &found.sources {
        let (base, names) = one(source, root, target, merged()?)?;
        if let Some(mode) = target.mode {
            set_modes(merged()?.as_fd(), &base, &names, mode)?;
        }
    }
    Ok(())
}

/// Sets the permissions of what was copied; links have none.
fn set_modes(view: BorrowedFd, base: &str, names: &[String], mode: u32) -> Result<()> {
    for name in names {
        let failed = |e: io::Error| Error::io(format!("chmod {name}"), &e);
        let path = sys::cstring(format!("{base}/{name}")).map_err(failed)?;
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let fd = open_in_root(view, &path, flags).map_err(failed)?;
        if sys::fd::fstat(fd.as_fd()).map_err(failed)?.st_mode & libc::S_IFMT != libc::S_IFLNK {
            let path = crate::container::rootfs::path_of(fd.as_fd());
            sys::fs::fchmodat(sys::fd::AT_FDCWD, &path, mode).map_err(failed)?;
        }
    }
    Ok(())
}

/// Copies one source; where it went, and the names there.
fn one(source: &Source, root: BorrowedFd, target: &Target, view: OwnedFd) -> Result<(String, Vec<String>)> {
    let c = |text: &str| sys::cstring(text).map_err(|e| Error::io("name a destination", &e));
    let dest = target.dest.trim_end_matches('/');
    let is_directory = |path: &str| Ok::<bool, Error>(open_in_root(view.as_fd(), &c(path)?, libc::O_PATH | libc::O_DIRECTORY).is_ok());
    let into = target.dest.ends_with('/') || is_directory(if dest.is_empty() { "/" } else { dest })?;
    let file_place = |name: &str| match (into, dest.rsplit_once('/')) {
        (true, _) => (dest.to_owned(), name.to_owned()),
        (false, Some((parent, last))) => (parent.to_owned(), last.to_owned()),
        (false, None) => (String::new(), dest.to_owned()),
    };
    let mut names = Vec::new();
    let (base, mut stream): (String, Box<dyn Read>) = match source {
        Source::Path { path, directory: true, .. } => {
            let dir =
                open_in_root(root, &c(path)?, libc::O_RDONLY | libc::O_DIRECTORY).map_err(|e| Error::io(format!("open {path}"), &e))?;
            if target.mode.is_some() {
                list(dir.as_fd(), "", 0, &mut |name, _| {
                    names.push(name.to_owned());
                    Ok(())
                })?;
            }
            let produced = Produced::start(move |out| {
                let mut out = File::from(out);
                let mut writer = Writer::new(&mut out);
                writer.tree(dir.as_fd(), c".", b"", &WriteOptions::default())?;
                writer.finish().map(drop)
            })?;
            (dest.to_owned(), Box::new(produced))
        }
        Source::Path { path, .. } => {
            let name = path.rsplit('/').next().unwrap_or(path).to_owned();
            let open =
                || open_in_root(root, &c(path)?, libc::O_RDONLY | libc::O_NONBLOCK).map_err(|e| Error::io(format!("open {path}"), &e));
            if target.unpack && is_archive(open()?)? {
                let plain = Decompressor::new(File::from(open()?)).map_err(|e| Error::io(format!("read {path}"), &e))?;
                let unpack = Target { owner: None, mode: None, ..*target };
                return apply_stream(&mut { plain }, dest, &unpack, view).map(|()| (dest.to_owned(), names));
            }
            let (base, name) = file_place(&name);
            names.push(name.clone());
            let file = open()?;
            let stat = sys::fd::fstat(file.as_fd()).map_err(|e| Error::io(format!("stat {path}"), &e))?;
            let produced = Produced::start(move |out| {
                let mut out = File::from(out);
                let mut writer = Writer::new(&mut out);
                let mtime = Time { seconds: stat.st_mtime, nanoseconds: 0 };
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let item =
                    Item { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, ..Item::file(name.as_bytes(), size, mtime) };
                writer.stream_item(&item, |out| {
                    io::copy(&mut File::from(file).take(size), out).map(drop).map_err(|e| Error::io("read a source", &e))
                })?;
                writer.finish().map(drop)
            })?;
            (base, Box::new(produced))
        }
        Source::Text { name, content } => {
            let (base, name) = file_place(name);
            names.push(name.clone());
            let content = content.clone();
            let produced = Produced::start(move |out| {
                let mut out = File::from(out);
                let mut writer = Writer::new(&mut out);
                let now = Time { seconds: sys::time::realtime_ns() / 1_000_000_000, nanoseconds: 0 };
                writer.bytes(&Item::file(name.as_bytes(), 0, now), content.as_bytes())?;
                writer.finish().map(drop)
            })?;
            (base, Box::new(produced))
        }
    };
    apply_stream(&mut stream, &base, target, view)?;
    Ok((base, names))
}

/// Unpacks a tar stream into the directory `base` of the view, which is made when it is missing.
fn apply_stream(stream: &mut dyn Read, base: &str, target: &Target, view: OwnedFd) -> Result<()> {
    let failed = |e: &io::Error| Error::io(format!("make {base}"), e);
    make_base(view.as_fd(), base, target.owner).map_err(|e| failed(&e))?;
    let inside = sys::cstring(if base.is_empty() { "/" } else { base }).map_err(|e| failed(&e))?;
    let options = Options { owner: target.owner, keep_kinds: true, ..Options::copy(base) };
    let policy = Policy::new(Root::Mount(view.as_fd()));
    jail::stream_in(policy, stream, |input, prisoner| {
        let root = sys::fd::open(c"/", libc::O_PATH, 0).map_err(|e| Error::io("open /", &e))?;
        let dir = open_in_root(root.as_fd(), &inside, libc::O_RDONLY | libc::O_DIRECTORY)
            .map_err(|e| Error::io(format!("open {}", inside.to_string_lossy()), &e))?;
        apply::apply(input, dir.as_fd(), None, &options, &mut (), prisoner)?;
        Ok(Vec::new())
    })
    .map(drop)
}

/// Makes the missing directories of a path; what is new belongs to `owner`.
fn make_base(root: BorrowedFd, base: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut path = String::new();
    for part in base.split('/').filter(|part| !part.is_empty()) {
        path = format!("{path}/{part}");
        let c_path = sys::cstring(path.as_str())?;
        if open_in_root(root, &c_path, libc::O_PATH | libc::O_DIRECTORY).is_err() {
            let made = make_directories(root, &c_path)?;
            if let Some((uid, gid)) = owner {
                sys::fs::fchownat(made.as_fd(), c"", uid, gid, libc::AT_EMPTY_PATH)?;
            }
        }
    }
    Ok(())
}

/// Whether a file is a tar archive, compressed or not.
fn is_archive(fd: OwnedFd) -> Result<bool> {
    let Ok(mut plain) = Decompressor::new(File::from(fd)) else { return Ok(false) };
    let mut block = [0; 512];
    let mut filled = 0;
    while filled < block.len() {
        match plain.read(block.get_mut(filled..).unwrap_or_default()) {
            Ok(0) | Err(_) => return Ok(false),
            Ok(count) => filled += count,
        }
    }
    let sum: u32 = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    let field = String::from_utf8_lossy(block.get(148..156).unwrap_or_default()).into_owned();
    let told = u32::from_str_radix(field.trim_matches(['\0', ' ']), 8);
    Ok(told == Ok(sum) && sum > 256)
}
