//! A container's files as a worker gets to see them: the mount namespace of a running one, a detached overlay with its
//! volumes of a stopped one. Decided in the daemon as plain data, opened in the worker.

use super::overlay;
use super::plan::Overlay;
use super::record::Status;
use super::rootfs::{self, Make};
use super::user::{self, UserSpec};
use crate::daemon::Daemon;
use crate::error::{Error, Kind, Result};
use crate::image::archive::jail::{Policy, Root};
use crate::sys;
use crate::sys::mount::{MOUNT_ATTR_RDONLY, MountAttr, PRIVATE};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a worker needs to know of a container's files.
pub struct View {
    pub id: String,
    /// A running container's process.
    pub pidfd: Option<OwnedFd>,
    /// Host directories: the container's own changes, and what lies below, top first.
    pub upper: PathBuf,
    pub lowers: Vec<PathBuf>,
    work: PathBuf,
    volumes: Vec<Volume>,
    read_only: bool,
    user: String,
}

struct Volume {
    source: PathBuf,
    destination: String,
    writable: bool,
}

impl View {
    /// `verb` is what a container that is going may not be asked for ("export").
    pub fn of(daemon: &Daemon, id: &str, verb: &str) -> Result<View> {
        let container = daemon.containers.find(id)?;
        let record = &container.record;
        let refused = |how: &str| Err(Error::conflict(format!("You cannot {verb} container {id} which {how}")));
        match record.state.status {
            Status::Dead => return refused("is Dead"),
            Status::Removing => return refused("is being removed"),
            _ if container.removing => return refused("is being removed"),
            _ => {}
        }
        // Opened here, where nobody else reaps: the number still means this process.
        let pidfd = match record.state.is_running() {
            true => Some(sys::process::pidfd_open(record.state.pid).map_err(|e| Error::io("pidfd_open", &e))?),
            false => None,
        };
        let dir = daemon.container_dir(id);
        let mut lowers = vec![daemon.data_root.join("init-layer")];
        lowers.extend(daemon.layer_dirs(record)?);
        let host_paths = record.mounts.iter().filter(|mount| matches!(mount.kind.as_str(), "bind" | "volume"));
        let volumes = host_paths.map(|mount| Volume {
            source: PathBuf::from(&mount.source),
            destination: mount.destination.clone(),
            writable: mount.rw,
        });
        Ok(View {
            id: id.to_string(),
            pidfd,
            upper: dir.join("upper"),
            lowers,
            work: dir.join("work"),
            volumes: volumes.collect(),
            read_only: record.host.readonly_rootfs,
            user: record.config.user.clone(),
        })
    }

    /// The root to lock a process into. `root` keeps what must stay open meanwhile.
    pub fn open(&self) -> Result<OpenView<'_>> {
        if self.pidfd.is_some() {
            return Ok(OpenView { view: self, root: None, volumes: Vec::new() });
        }
        let path = |path: &Path| sys::cstring(path.as_os_str().as_bytes()).map_err(|e| Error::io("path", &e));
        let lower = self.lowers.iter().map(|lower| path(lower)).collect::<Result<_>>()?;
        let overlay = Overlay { lower, upper: Some(path(&self.upper)?), work: Some(path(&self.work)?) };
        let root = overlay::mount(&overlay).map_err(|e| Error::io("mount overlay", &e))?;
        // Copies of the mounts, taken while this is still the host's namespace.
        let mut volumes = Vec::new();
        for volume in &self.volumes {
            let flags = sys::mount::OPEN_TREE_CLONE | sys::mount::AT_RECURSIVE;
            match sys::mount::open_tree(sys::fd::AT_FDCWD, &path(&volume.source)?, flags) {
                Ok(tree) => volumes.push((tree, volume)),
                // A bind's source that is gone: the container could not start either, but its own files can be had.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => return Err(Error::io(format!("open {}", volume.source.display()), &e)),
            }
        }
        volumes.sort_by_key(|(_, volume)| volume.destination.matches('/').count());
        Ok(OpenView { view: self, root: Some(root), volumes })
    }

    /// Refuses what may not be written, in the reference's words.
    pub fn check_writable(&self, path: &str) -> Result<()> {
        let holds = |volume: &&Volume| Path::new(path).starts_with(&volume.destination);
        match self.volumes.iter().find(holds) {
            Some(volume) if !volume.writable => Err(Error::invalid("mounted volume is marked read-only")),
            None if self.read_only => Err(Error::invalid("container rootfs is marked read-only")),
            _ => Ok(()),
        }
    }

    /// The container's user by its own files; to be called where "/" is its root.
    pub fn owner(&self) -> Result<Option<(u32, u32)>> {
        if self.user.is_empty() {
            return Ok(None);
        }
        let wrong = |e: super::report::Failure| Error::invalid(e.to_string());
        let spec = UserSpec::parse(&self.user, &[]).map_err(wrong)?;
        let root = sys::fd::open(c"/", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(|e| Error::io("open /", &e))?;
        let identity = user::resolve(root.as_fd(), &spec).map_err(wrong)?;
        Ok(Some((identity.uid, identity.gid)))
    }
}

/// A view whose parts are open in this process.
pub struct OpenView<'a> {
    view: &'a View,
    root: Option<OwnedFd>,
    volumes: Vec<(OwnedFd, &'a Volume)>,
}

impl OpenView<'_> {
    /// For one jail: a detached mount is used up by it.
    pub fn policy(&self) -> Result<Policy<'_>> {
        let Some(root) = &self.root else {
            let pidfd = self.view.pidfd.as_ref().ok_or_else(|| Error::new(Kind::System, "the container has no root"))?;
            return Ok(Policy::new(Root::Namespace(pidfd.as_fd())));
        };
        let mut policy = Policy::new(Root::Mount(root.as_fd()));
        policy.prepare = Some(Box::new(|| {
            let root = sys::fd::open(c"/", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(|e| Error::io("open /", &e))?;
            self.volumes.iter().try_for_each(|(tree, volume)| attach(root.as_fd(), tree, volume))
        }));
        Ok(policy)
    }
}

/// Mounts a volume in the root that this process has entered.
fn attach(root: BorrowedFd, tree: &OwnedFd, volume: &Volume) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(format!("mount {}", volume.destination), &e);
    let target = CString::new(volume.destination.as_str()).map_err(|_| Error::invalid("invalid mount path"))?;
    let make = if rootfs::is_directory(tree.as_fd()).map_err(failed)? { Make::Directory } else { Make::File };
    let set = if volume.writable { 0 } else { MOUNT_ATTR_RDONLY };
    let attr = MountAttr { set, propagation: PRIVATE, ..MountAttr::default() };
    let flags = sys::mount::AT_RECURSIVE | libc::AT_EMPTY_PATH.cast_unsigned();
    sys::mount::mount_setattr(tree.as_fd(), c"", flags, &attr).map_err(failed)?;
    let point = rootfs::mount_point(root, &target, make).map_err(failed)?;
    let flags = sys::mount::MOVE_MOUNT_F_EMPTY_PATH | sys::mount::MOVE_MOUNT_T_EMPTY_PATH;
    sys::mount::move_mount(tree.as_fd(), c"", point.as_fd(), c"", flags).map_err(failed)
}
