//! Files in and out of a container's root: stat, copy out, copy in, export; each in a jail of its own.
//!
//! The caller gives the [`Policy`] whose root is the container's: the mount namespace of a running one, a detached overlay
//! of a stopped one (volumes mounted by [`Policy::prepare`]). Nothing of the container is executed or trusted; paths are
//! resolved in its root by the kernel, magic links refused, so that it may exchange what it likes meanwhile.

use super::apply::{self, Summary};
use super::jail::{self, Policy};
use super::write::{self, Writer};
use crate::error::{Error, Kind, Result};
use crate::sys::{self, fd, fs};
use crate::timestamp;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// What the header `X-Docker-Container-Path-Stat` carries, as JSON in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// The path's last component.
    pub name: String,
    /// Bytes.
    pub size: i64,
    /// Permissions and kind as Go's `os.FileMode` has them.
    pub mode: u32,
    /// RFC 3339.
    pub mtime: String,
    /// Where a symbolic link finally leads, within the container's root; else empty.
    #[serde(rename = "linkTarget")]
    pub link_target: String,
}

/// Hears where a copy in goes, once all links are resolved and "/" is the container's root. It may refuse (read-only roots
/// and volumes), or name the owner of everything.
pub type Decide<'a> = Box<dyn FnOnce(&str) -> Result<Option<(u32, u32)>> + 'a>;

/// `HEAD /containers/{id}/archive`. A path that does not exist is [`Kind::NotFound`].
pub fn stat(policy: Policy, path: &str) -> Result<PathStat> {
    let report = jail::start(policy, |_| {
        let stat = stat_inside(path)?;
        serde_json::to_vec(&stat).map_err(|e| Error::system(format!("report: {e}")))
    })?;
    serde_json::from_slice(&report.finish()?).map_err(|e| Error::system(format!("report: {e}")))
}

/// `GET /containers/{id}/archive`: the tar of `path`, whose entries start with its last component.
pub fn copy_out(policy: Policy, path: &str, out: &mut dyn Write) -> Result<()> {
    jail::stream_out(policy, out, |out, _| {
        let path = Requested::new(path);
        let options = write::Options { live: true, ..write::Options::default() };
        let mut writer = Writer::new(out);
        let base = path.base().as_bytes();
        if path.open()?.1.st_mode & libc::S_IFMT == libc::S_IFDIR {
            let directory = path.follow(libc::O_RDONLY | libc::O_DIRECTORY)?;
            writer.tree(directory.as_fd(), c".", base, &options)?;
        } else {
            let parent = Requested { clean: path.parent().to_owned(), follow: true };
            let parent = parent.follow(libc::O_RDONLY | libc::O_DIRECTORY)?;
            writer.tree(parent.as_fd(), &cstring(path.base())?, base, &options)?;
        }
        writer.finish().map(|_| Vec::new())
    })
    .map(drop)
}

/// `PUT /containers/{id}/archive`: unpacks the plain tar `source` (decompress before) into the directory `path`.
pub fn copy_in(policy: Policy, path: &str, source: &mut dyn Read, options: &apply::Options, decide: Decide) -> Result<Summary> {
    let report = jail::stream_in(policy, source, |input, prisoner| {
        let path = Requested { follow: true, ..Requested::new(path) };
        let directory = path.follow(libc::O_PATH)?;
        let stat = fd::fstat(directory.as_fd()).map_err(|e| path.failed("stat", &e))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(Error::invalid("extraction point is not a directory"));
        }
        let resolved = path.resolved()?;
        let owner = decide(&resolved)?;
        let directory = path.follow(libc::O_RDONLY | libc::O_DIRECTORY)?;
        let options = apply::Options { destination: resolved, owner: owner.or(options.owner), ..options.clone() };
        let summary = apply::apply(input, directory.as_fd(), None, &options, &mut (), prisoner)?;
        serde_json::to_vec(&summary).map_err(|e| Error::system(format!("report: {e}")))
    })?;
    serde_json::from_slice(&report).map_err(|e| Error::system(format!("report: {e}")))
}

/// `GET /containers/{id}/export`: the whole root, without what is mounted in it.
pub fn export(policy: Policy, out: &mut dyn Write) -> Result<()> {
    jail::stream_out(policy, out, |out, _| {
        let root = fd::open(c"/", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(|e| Error::io("open /", &e))?;
        let mut writer = Writer::new(out);
        let options = write::Options { live: true, hide_mounts: true, ..write::Options::default() };
        writer.tree(root.as_fd(), c".", b"", &options)?;
        writer.finish().map(|_| Vec::new())
    })
    .map(drop)
}

fn stat_inside(path: &str) -> Result<PathStat> {
    let path = Requested::new(path);
    let (_, stat) = path.open()?;
    let link = stat.st_mode & libc::S_IFMT == libc::S_IFLNK;
    #[allow(clippy::useless_conversion)] // 32 bits wide on some targets
    let (seconds, nanoseconds) = (i64::from(stat.st_mtime), i64::from(stat.st_mtime_nsec));
    let mtime = seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
    Ok(PathStat {
        name: path.base().to_owned(),
        size: stat.st_size,
        mode: go_mode(stat.st_mode),
        mtime: timestamp::rfc3339(mtime),
        link_target: if link { path.resolved()? } else { String::new() },
    })
}

/// A path as the client wrote it, made absolute and cleaned of "..", ".", "//".
struct Requested {
    clean: String,
    /// It ended with "/" or "/.", so a link at its end is followed.
    follow: bool,
}

impl Requested {
    fn new(path: &str) -> Requested {
        let mut clean: Vec<&str> = Vec::new();
        for component in path.split('/') {
            match component {
                "" | "." => {}
                ".." => drop(clean.pop()),
                name => clean.push(name),
            }
        }
        let follow = path.ends_with('/') || path == "." || path.ends_with("/.");
        let mut clean = format!("/{}", clean.join("/"));
        if path.ends_with("/.") || path == "." {
            clean.push_str(if clean == "/" { "." } else { "/." });
        }
        Requested { clean, follow }
    }

    /// The last component; "/" for the root, "." when the path says so.
    fn base(&self) -> &str {
        match self.clean.rsplit('/').next() {
            Some("") | None => "/",
            Some(base) => base,
        }
    }

    fn parent(&self) -> &str {
        match self.clean.rfind('/') {
            Some(0) | None => "/",
            Some(slash) => &self.clean[..slash],
        }
    }

    fn failed(&self, call: &str, cause: &io::Error) -> Error {
        let error = Error::io(format!("{call} {}", self.clean), cause);
        match cause.raw_os_error() {
            Some(libc::ENOENT) => Error::new(Kind::NotFound, error.message),
            Some(libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG | libc::EINVAL) => Error::invalid(error.message),
            _ => error,
        }
    }

    fn open_with(&self, path: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
        let root = fd::open(c"/", libc::O_PATH | libc::O_DIRECTORY, 0)?;
        fd::openat2(root.as_fd(), &sys::cstring(path)?, flags, 0, fd::RESOLVE_IN_ROOT | fd::RESOLVE_NO_MAGICLINKS)
    }

    /// The path itself, a link at its end not followed unless it was written so; with its attributes.
    fn open(&self) -> Result<(OwnedFd, libc::stat64)> {
        let flags = if self.follow { libc::O_PATH | libc::O_DIRECTORY } else { libc::O_PATH | libc::O_NOFOLLOW };
        let opened = self.open_with(&self.clean, flags).map_err(|e| self.failed("lstat", &e))?;
        let stat = fd::fstat(opened.as_fd()).map_err(|e| self.failed("lstat", &e))?;
        Ok((opened, stat))
    }

    fn follow(&self, flags: libc::c_int) -> Result<OwnedFd> {
        self.open_with(&self.clean, flags).map_err(|e| self.failed("open", &e))
    }

    /// The path with all links followed, as far as it exists, always within the root.
    fn resolved(&self) -> Result<String> {
        let mut rest: Vec<String> = self.clean.split('/').filter(|c| !matches!(*c, "" | ".")).rev().map(str::to_owned).collect();
        let mut path = String::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                path.truncate(path.rfind('/').unwrap_or(0));
                continue;
            }
            let target = self
                .open_with(if path.is_empty() { "/" } else { &path }, libc::O_PATH | libc::O_DIRECTORY)
                .and_then(|parent| fs::readlinkat(parent.as_fd(), &sys::cstring(&name)?));
            let Ok(target) = target else {
                path = format!("{path}/{name}");
                continue;
            };
            links += 1;
            if links > 255 || rest.len() > 4096 {
                return Err(self.failed("readlink", &io::Error::from_raw_os_error(libc::ELOOP)));
            }
            let target = String::from_utf8_lossy(&target).into_owned();
            if target.starts_with('/') {
                path.clear();
            }
            rest.extend(target.split('/').filter(|c| !matches!(*c, "" | ".")).rev().map(str::to_owned));
        }
        Ok(if path.is_empty() { "/".to_owned() } else { path })
    }
}

fn cstring(name: &str) -> Result<CString> {
    sys::cstring(name).map_err(|e| Error::invalid(format!("lstat {name}: {}", crate::error::strerror(&e))))
}

/// st_mode as Go's `os.FileMode` (io/fs).
fn go_mode(mode: libc::mode_t) -> u32 {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 1 << 31,
        libc::S_IFLNK => 1 << 27,
        libc::S_IFBLK => 1 << 26,
        libc::S_IFCHR => 1 << 26 | 1 << 21,
        libc::S_IFIFO => 1 << 25,
        libc::S_IFSOCK => 1 << 24,
        _ => 0,
    };
    let special = [(libc::S_ISUID, 23), (libc::S_ISGID, 22), (libc::S_ISVTX, 20)];
    special.iter().filter(|(bit, _)| mode & bit != 0).fold(kind | (mode & 0o777), |all, (_, shift)| all | 1 << shift)
}

#[cfg(test)]
mod tests {
    use super::super::jail::Root;
    use super::*;
    use crate::image::scratch::Scratch;
    use crate::sys::mount;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// A stopped container's root: a detached overlay.
    fn overlay(base: &Path) -> OwnedFd {
        let context = mount::fsopen(c"overlay").unwrap();
        for (key, dir) in [(c"lowerdir", "lower"), (c"upperdir", "upper"), (c"workdir", "work")] {
            std::fs::create_dir_all(base.join(dir)).unwrap();
            let value = sys::cstring(base.join(dir).to_str().unwrap()).unwrap();
            mount::fsconfig_string(context.as_fd(), key, &value).unwrap();
        }
        mount::fsconfig_create(context.as_fd()).unwrap();
        mount::fsmount(context.as_fd(), 0).unwrap()
    }

    fn names(tar: &[u8]) -> Vec<String> {
        let mut reader = super::super::reader::Reader::new(tar, super::super::reader::Limits::default());
        let mut names = Vec::new();
        while let Some(entry) = reader.next(&mut ()).unwrap() {
            names.push(String::from_utf8(entry.path).unwrap());
        }
        names
    }

    #[test]
    fn a_stopped_containers_files_go_in_and_out() {
        let scratch = Scratch::new("archive-overlay-copy");
        let base = scratch.path();
        std::fs::create_dir_all(base.join("lower/etc/sub")).unwrap();
        std::fs::write(base.join("lower/etc/sub/file"), "from below").unwrap();
        symlink("/etc/sub", base.join("lower/link")).unwrap();
        symlink("../../../nowhere/x", base.join("lower/broken")).unwrap();
        std::fs::create_dir_all(base.join("lower/proc")).unwrap();
        let see = |path: &str| {
            let root = overlay(base);
            stat(Policy::new(Root::Mount(root.as_fd())), path)
        };
        let link = see("/link").unwrap();
        assert_eq!((link.name.as_str(), link.link_target.as_str(), link.mode), ("link", "/etc/sub", 1 << 27 | 0o777));
        assert_eq!(see("broken").unwrap().link_target, "/nowhere/x");
        let directory = see("/link/").unwrap();
        assert_eq!((directory.name.as_str(), directory.mode), ("link", 1 << 31 | 0o755));
        assert_eq!(see("/x/../etc/sub/file").unwrap().size, 10);
        assert_eq!(see("/absent").unwrap_err().kind, Kind::NotFound);
        let out = |path: &str| {
            let root = overlay(base);
            let mut tar = Vec::new();
            copy_out(Policy::new(Root::Mount(root.as_fd())), path, &mut tar).map(|()| names(&tar))
        };
        assert_eq!(out("/etc").unwrap(), ["etc/", "etc/sub/", "etc/sub/file"]);
        assert_eq!(out("/etc/.").unwrap(), ["./", "./sub/", "./sub/file"]);
        assert_eq!(out("/etc/sub/file").unwrap(), ["file"]);
        assert_eq!(out("/link").unwrap(), ["link"]);
        assert_eq!(out("/link/").unwrap(), ["link/", "link/file"]);
        assert_eq!(out("/").unwrap()[..3], ["/", "/broken", "/etc/"]);
        assert_eq!(out("/etc/sub/file/").unwrap_err().kind, Kind::InvalidParameter);
        let tar = super::super::tests::Tar::default().file("new", b"into a link").end();
        let put = |path: &str, decide: Decide| {
            let root = overlay(base);
            copy_in(Policy::new(Root::Mount(root.as_fd())), path, &mut tar.as_slice(), &apply::Options::copy(path), decide)
        };
        put("/link", Box::new(|path| if path == "/etc/sub" { Ok(None) } else { Err(Error::system(path)) })).unwrap();
        assert_eq!(std::fs::read(base.join("upper/etc/sub/new")).unwrap(), b"into a link");
        let refused = put("/etc", Box::new(|_| Err(Error::invalid("container rootfs is marked read-only")))).unwrap_err();
        assert_eq!(refused.message, "container rootfs is marked read-only");
        assert_eq!(put("/etc/sub/file", Box::new(|_| Ok(None))).unwrap_err().message, "extraction point is not a directory");
        assert_eq!(put("/absent", Box::new(|_| Ok(None))).unwrap_err().kind, Kind::NotFound);
    }

    #[test]
    fn a_running_containers_view_is_joined() {
        let scratch = Scratch::new("archive-namespace-copy");
        let fd = scratch.fd();
        for dir in ["etc", "volume"] {
            std::fs::create_dir(scratch.path().join(dir)).unwrap();
        }
        symlink("/volume", scratch.path().join("etc/link")).unwrap();
        // The container: a process in the jail, with a volume that only its namespace has.
        let (hold, release) = fd::pipe2(0).unwrap();
        let (ready, tell) = fd::pipe2(0).unwrap();
        let prepare = || mount::mount(None, c"/volume", Some(c"tmpfs"), 0, None).map_err(|e| Error::io("mount", &e));
        let policy = Policy {
            prepare: Some(Box::new(prepare)),
            keep: vec![hold.as_raw_fd(), tell.as_raw_fd()],
            ..Policy::new(Root::Directory(fd.as_fd()))
        };
        let container = jail::start(policy, |_| {
            std::fs::write("/volume/seen", "only in here").unwrap();
            fd::write(tell.as_fd(), b"!").unwrap();
            fd::read(hold.as_fd(), &mut [0]).unwrap();
            let arrived = std::fs::read("/volume/new").unwrap();
            Ok(arrived)
        })
        .unwrap();
        fd::read(ready.as_fd(), &mut [0]).unwrap();
        let pidfd = sys::process::pidfd_open(container.pid()).unwrap();
        let namespace = || Policy::new(Root::Namespace(pidfd.as_fd()));
        let mut tar = Vec::new();
        copy_out(namespace(), "/etc/link/", &mut tar).unwrap();
        assert_eq!(names(&tar), ["link/", "link/seen"]);
        let tar = super::super::tests::Tar::default().file("new", b"from outside").end();
        copy_in(namespace(), "/etc/link", &mut tar.as_slice(), &apply::Options::copy("/"), Box::new(|_| Ok(None))).unwrap();
        drop(hold);
        drop(release);
        assert_eq!(container.finish().unwrap(), b"from outside");
        assert!(std::fs::read_dir(scratch.path().join("volume")).unwrap().next().is_none());
    }

    #[test]
    fn an_export_hides_what_is_mounted() {
        let scratch = Scratch::new("archive-overlay-export");
        let base = scratch.path();
        std::fs::create_dir_all(base.join("lower/proc")).unwrap();
        std::fs::create_dir_all(base.join("lower/data")).unwrap();
        std::fs::write(base.join("lower/data/below"), "hidden by the mount").unwrap();
        std::fs::write(base.join("lower/file"), "x").unwrap();
        let root = overlay(base);
        let prepare = || {
            for target in [c"/proc", c"/data"] {
                mount::mount(None, target, Some(c"tmpfs"), 0, None).map_err(|e| Error::io("mount", &e))?;
            }
            fd::open(c"/data/mounted", libc::O_CREAT | libc::O_WRONLY, 0o600).map_err(|e| Error::io("open", &e))?;
            Ok(())
        };
        let policy = Policy { prepare: Some(Box::new(prepare)), ..Policy::new(Root::Mount(root.as_fd())) };
        let mut tar = Vec::new();
        export(policy, &mut tar).unwrap();
        assert_eq!(names(&tar), ["data/", "file", "proc/"]);
        assert!(std::fs::read_dir(base.join("upper")).unwrap().next().is_none());
    }

    #[test]
    fn a_full_disk_is_said_plainly() {
        let scratch = Scratch::new("archive-full");
        let fd = scratch.fd();
        let prepare = || mount::mount(None, c"/small", Some(c"tmpfs"), 0, Some(c"size=3m")).map_err(|e| Error::io("mount", &e));
        std::fs::create_dir(scratch.path().join("small")).unwrap();
        let policy = Policy { prepare: Some(Box::new(prepare)), ..Policy::new(Root::Directory(fd.as_fd())) };
        let tar = super::super::tests::Tar::default().file("big", &vec![1; 5 << 20]).end();
        let error = copy_in(policy, "/small", &mut tar.as_slice(), &apply::Options::copy("/small"), Box::new(|_| Ok(None))).unwrap_err();
        assert!(error.kind == Kind::System && error.message.ends_with("no space left on device"), "{error}");
    }
}
