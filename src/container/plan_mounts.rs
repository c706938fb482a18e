//! The plan's mounts: which, with which attributes, in which order.

use super::cgroup::devices::{Kind, Node};
use super::config::Labels;
use super::plan::{CgroupView, Member, Mode, Overlay, PlanInput, c, c_path};
use super::plan_process::{INIT_PATH, clean_absolute};
use crate::error::{Error, Result};
use crate::sys::mount::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME, MountAttr, PRIVATE, SHARED, SLAVE,
};
use serde::{Deserialize, Serialize};
use std::ffi::{CStr, CString};
use std::path::PathBuf;

const QUIET: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV;

/// A mount that the container's configuration asks for, its source already found.
#[derive(Clone, Debug)]
pub struct MountInput {
    /// Absolute, in the container.
    pub target: String,
    pub source: MountSource,
    pub read_only: bool,
    pub propagation: Propagation,
    /// Mounts below the source come along ("rbind"; not with BindOptions.NonRecursive).
    pub recursive: bool,
    /// A read-only bind makes the mounts below it read-only too (not with BindOptions.ReadOnlyNonRecursive).
    pub read_only_recursive: bool,
    /// Only this part of the source, resolved inside it.
    pub subpath: Option<String>,
    /// A missing source directory is made on the host (HostConfig.Binds, CreateMountpoint).
    pub create_source: bool,
}

/// Where a mount's content comes from.
#[derive(Clone, Debug)]
pub enum MountSource {
    /// A path of this host: a bind, or a volume's directory.
    Path(PathBuf),
    /// As `Path`, with MOUNT_ATTR_NOSUID and the like on the mount itself.
    Restricted { path: PathBuf, attributes: u64 },
    /// A new tmpfs; options as "size=64m,mode=1777,exec".
    Tmpfs(String),
    /// An image's layers, top first; always read-only.
    Image(Vec<PathBuf>),
}

/// How mounts made later travel between a bind and its source. The container's side of `mount_namespaces(7)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    RecursivePrivate,
    Private,
    RecursiveSlave,
    Slave,
    RecursiveShared,
    Shared,
}

impl Propagation {
    /// "rprivate" and the others; "" is the default.
    pub fn parse(text: &str) -> Result<Propagation> {
        Ok(match text {
            "" | "rprivate" => Propagation::RecursivePrivate,
            "private" => Propagation::Private,
            "rslave" => Propagation::RecursiveSlave,
            "slave" => Propagation::Slave,
            "rshared" => Propagation::RecursiveShared,
            "shared" => Propagation::Shared,
            _ => return Err(Error::invalid(format!("invalid propagation mode: {text}"))),
        })
    }

    fn flag(self) -> (u64, bool) {
        match self {
            Propagation::RecursivePrivate => (PRIVATE, true),
            Propagation::Private => (PRIVATE, false),
            Propagation::RecursiveSlave => (SLAVE, true),
            Propagation::Slave => (SLAVE, false),
            Propagation::RecursiveShared => (SHARED, true),
            Propagation::Shared => (SHARED, false),
        }
    }
}

/// One element of the container's mount table. Targets are absolute in the container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Mount {
    /// A new file system on a place that must be a real directory.
    New(FileSystem),
    /// As `New`; the child holds on to it for sysctls and labels.
    Proc(FileSystem),
    /// A tmpfs with the device nodes, links and directories of /dev.
    Devices(Devices),
    /// A new tmpfs on a place of the user's choice; with its mount point's mode unless `mode=` is given.
    Tmpfs(FileSystem),
    /// cgroup v1: a tmpfs with the container's own directory of each hierarchy.
    Hierarchies(Hierarchies),
    /// The /dev/shm of another container.
    SharedMemory {
        owner: Member,
        target: CString,
    },
    Bind(Bind),
    /// The overlay of this index of the plan, read-only.
    Image {
        overlay: usize,
        subpath: Option<CString>,
        target: CString,
    },
}

/// A file system to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    pub kind: CString,
    /// What mount tables show as its source.
    pub source: CString,
    /// key and value, or a flag without one.
    pub options: Vec<(CString, Option<CString>)>,
    /// MOUNT_ATTR_*.
    pub attributes: u64,
    pub target: CString,
}

/// The container's /dev.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    pub tmpfs: FileSystem,
    /// Below /dev, parents first.
    pub directories: Vec<CString>,
    /// (name below /dev, node)
    pub nodes: Vec<(CString, Node)>,
    /// (name below /dev, target)
    pub links: Vec<(CString, CString)>,
    /// Whether there is an empty file "console" to bind the terminal on.
    pub console: bool,
}

/// The container's /sys/fs/cgroup on cgroup v1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchies {
    pub tmpfs: FileSystem,
    /// (name below /sys/fs/cgroup, the container's directory on the host)
    pub binds: Vec<(CString, CString)>,
    /// (name, target): "cpu" → "cpu,cpuacct" where two controllers share a hierarchy.
    pub links: Vec<(CString, CString)>,
    pub read_only: bool,
}

/// A bind mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bind {
    pub source: CString,
    pub subpath: Option<CString>,
    pub create_source: bool,
    pub recursive: bool,
    pub target: CString,
    /// Set on the top mount only.
    pub attributes: MountAttr,
    /// Set on it and all mounts below.
    pub recursive_attributes: MountAttr,
}

impl Bind {
    fn plain(source: CString, target: CString, read_only: bool) -> Bind {
        let set = if read_only { MOUNT_ATTR_RDONLY } else { 0 };
        let recursive_attributes = MountAttr { set, propagation: PRIVATE, ..MountAttr::default() };
        Bind {
            source,
            subpath: None,
            create_source: false,
            recursive: false,
            target,
            attributes: MountAttr::default(),
            recursive_attributes,
        }
    }
}

impl Mount {
    pub fn target(&self) -> &CStr {
        match self {
            Mount::New(fs) | Mount::Proc(fs) | Mount::Tmpfs(fs) => &fs.target,
            Mount::Devices(devices) => &devices.tmpfs.target,
            Mount::Hierarchies(cgroups) => &cgroups.tmpfs.target,
            Mount::SharedMemory { target, .. } | Mount::Image { target, .. } => target,
            Mount::Bind(bind) => &bind.target,
        }
    }
}

/// Every overlay: the root's, then one per image mount.
pub(super) fn overlays(input: &PlanInput) -> Result<Vec<Overlay>> {
    let root = &input.root;
    let mut lower = vec![c_path(root.init_layer)?];
    for layer in root.layers {
        lower.push(c_path(layer)?);
    }
    let mut all = vec![Overlay { lower, upper: Some(c_path(root.upper)?), work: Some(c_path(root.work)?) }];
    for mount in input.mounts {
        if let MountSource::Image(layers) = &mount.source {
            let lower = layers.iter().map(|layer| c_path(layer)).collect::<Result<_>>()?;
            all.push(Overlay { lower, upper: None, work: None });
        }
    }
    Ok(all)
}

/// The whole mount table: the engine's own file systems first, then what the user asked for, shallow targets before deep ones. Where
/// the user mounts over one of ours, ours is left out.
pub(super) fn mounts(input: &PlanInput, ipc: Mode, init: bool) -> Result<Vec<Mount>> {
    let host = input.container.host;
    let mut user = user_mounts(input)?;
    let taken = |path: &str| user.iter().any(|mount: &Mount| mount.target().to_bytes() == path.as_bytes());
    let (own_dev, own_sys) = (!taken("/dev"), !taken("/sys"));
    let sys_attributes = QUIET | if host.privileged { 0 } else { MOUNT_ATTR_RDONLY };
    let mut all = vec![Mount::Proc(file_system(c"proc", c"proc", &[], QUIET, "/proc")?)];
    if own_dev {
        all.push(Mount::Devices(devices(input)?));
        if !taken("/dev/pts") {
            let options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
            all.push(Mount::New(file_system(c"devpts", c"devpts", &options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, "/dev/pts")?));
        }
    }
    if own_sys {
        all.push(Mount::New(file_system(c"sysfs", c"sysfs", &[], sys_attributes, "/sys")?));
        if !taken("/sys/fs/cgroup") {
            all.extend(cgroups(&input.cgroup.view, input.private_cgroupns, input.container.writable_cgroups)?);
        }
    }
    if own_dev && !taken("/dev/mqueue") {
        all.push(Mount::New(file_system(c"mqueue", c"mqueue", &[], QUIET, "/dev/mqueue")?));
    }
    if own_dev && !taken("/dev/shm") {
        all.extend(shm(input, ipc)?);
    }
    if init && let Some(binary) = input.init_binary {
        user.push(Mount::Bind(Bind::plain(c_path(binary)?, c(INIT_PATH)?, true)));
    }
    // A stable sort: of two mounts at the same depth, the one that was asked for first is mounted first.
    user.sort_by_key(|mount| mount.target().to_bytes().iter().filter(|b| **b == b'/').count());
    all.extend(user);
    Ok(all)
}

fn file_system(kind: &CStr, source: &CStr, options: &[(&str, &str)], attributes: u64, target: &str) -> Result<FileSystem> {
    let option = |(key, value): &(&str, &str)| Ok((c(key)?, if value.is_empty() { None } else { Some(c(value)?) }));
    let options = options.iter().map(option).collect::<Result<_>>()?;
    Ok(FileSystem { kind: kind.to_owned(), source: source.to_owned(), options, attributes, target: c(target)? })
}

fn shm(input: &PlanInput, ipc: Mode) -> Result<Option<Mount>> {
    let size = if input.container.host.shm_size > 0 { input.container.host.shm_size } else { input.default_shm_size };
    let options = [("mode", "1777"), ("size", &size.to_string())];
    Ok(Some(match (ipc, &input.ipc_of) {
        (Mode::Named("none"), _) => return Ok(None),
        (Mode::Named("host"), _) => Mount::Bind(Bind::plain(c("/dev/shm")?, c("/dev/shm")?, false)),
        (Mode::Container, Some(owner)) => Mount::SharedMemory { owner: owner.clone(), target: c("/dev/shm")? },
        _ => Mount::New(file_system(c"tmpfs", c"shm", &options, QUIET, "/dev/shm")?),
    }))
}

/// The nodes that every container has (SECURITY-NOTES §2), all 0666 root:root.
const DEFAULT_NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

fn devices(input: &PlanInput) -> Result<Devices> {
    let mut nodes: Vec<(String, Node)> = Vec::new();
    for (name, major, minor) in DEFAULT_NODES {
        let node = Node { path: format!("/dev/{name}"), kind: Kind::Char, major, minor, mode: 0o666, uid: 0, gid: 0, access: 0 };
        nodes.push((name.to_owned(), node));
    }
    for node in input.devices {
        let path = clean_absolute(&node.path)?;
        let Some(name) = path.strip_prefix("/dev/") else { continue };
        // Ours are file systems and links of the container's own; the host's (privileged) must not replace them.
        if matches!(
            name.split('/').next(),
            Some("pts" | "shm" | "mqueue" | "ptmx" | "console" | "fd" | "stdin" | "stdout" | "stderr" | "core")
        ) {
            continue;
        }
        nodes.retain(|(other, _)| other != name);
        nodes.push((name.to_owned(), node.clone()));
    }
    let mut directories: Vec<String> = ["pts", "mqueue", "shm"].map(str::to_owned).to_vec();
    for (name, _) in &nodes {
        for (at, _) in name.match_indices('/') {
            if !directories.iter().any(|known| *known == name[..at]) {
                directories.push(name[..at].to_owned());
            }
        }
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("core", "/proc/kcore"),
        ("ptmx", "pts/ptmx"),
    ];
    let options = [("mode", "755"), ("size", "65536k")];
    Ok(Devices {
        tmpfs: file_system(c"tmpfs", c"tmpfs", &options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME, "/dev")?,
        directories: directories.iter().map(c).collect::<Result<_>>()?,
        nodes: nodes.into_iter().map(|(name, node)| Ok((c(name)?, node))).collect::<Result<_>>()?,
        links: links.iter().map(|(name, target)| Ok((c(name)?, c(target)?))).collect::<Result<_>>()?,
        console: input.container.config.tty,
    })
}

fn cgroups(view: &CgroupView, private: bool, writable: bool) -> Result<Option<Mount>> {
    let read_only = if writable { 0 } else { MOUNT_ATTR_RDONLY };
    match view {
        CgroupView::Nothing => Ok(None),
        // A new mount of cgroup2 in the first cgroup namespace would set the options of the one superblock, the host's (nsdelegate and
        // others): there it is a bind. In a namespace of its own the kernel ignores them.
        CgroupView::V2 if !private => {
            let mut bind = Bind::plain(c("/sys/fs/cgroup")?, c("/sys/fs/cgroup")?, false);
            bind.recursive_attributes.set = QUIET | read_only;
            Ok(Some(Mount::Bind(bind)))
        }
        CgroupView::V2 => Ok(Some(Mount::New(file_system(c"cgroup2", c"cgroup", &[], QUIET | read_only, "/sys/fs/cgroup")?))),
        CgroupView::V1(directories) => {
            let mut binds = Vec::new();
            let mut links = Vec::new();
            for directory in directories {
                binds.push((c(&directory.hierarchy)?, c_path(&directory.directory)?));
                for controller in directory.hierarchy.split(',').filter(|name| *name != directory.hierarchy) {
                    links.push((c(controller)?, c(&directory.hierarchy)?));
                }
            }
            let tmpfs = file_system(c"tmpfs", c"cgroup", &[("mode", "755")], QUIET, "/sys/fs/cgroup")?;
            Ok(Some(Mount::Hierarchies(Hierarchies { tmpfs, binds, links, read_only: !writable })))
        }
    }
}

fn user_mounts(input: &PlanInput) -> Result<Vec<Mount>> {
    let mut all = Vec::new();
    let mut overlay = 0;
    for mount in input.mounts {
        let target = c(check_target(&mount.target)?)?;
        let subpath = mount.subpath.as_deref().filter(|path| !path.is_empty()).map(c).transpose()?;
        all.push(match &mount.source {
            MountSource::Path(source) => bind(mount, c_path(source)?, subpath, target, 0),
            MountSource::Restricted { path, attributes } => bind(mount, c_path(path)?, subpath, target, *attributes),
            MountSource::Tmpfs(options) => Mount::Tmpfs(tmpfs(options, mount.read_only, target)?),
            MountSource::Image(_) => {
                overlay += 1;
                Mount::Image { overlay, subpath, target }
            }
        });
    }
    for (target, options) in input.container.host.tmpfs.iter().flat_map(Labels::iter) {
        all.push(Mount::Tmpfs(tmpfs(options, false, c(check_target(target)?)?)?));
    }
    let files = [("/etc/resolv.conf", input.resolv_file), ("/etc/hostname", input.hostname_file), ("/etc/hosts", input.hosts_file)];
    for (target, file) in files {
        let Some(file) = file else { continue };
        if !all.iter().any(|mount| mount.target().to_bytes() == target.as_bytes()) {
            all.push(Mount::Bind(Bind::plain(c_path(file)?, c(target)?, input.container.host.readonly_rootfs)));
        }
    }
    Ok(all)
}

fn bind(mount: &MountInput, source: CString, subpath: Option<CString>, target: CString, restrictions: u64) -> Mount {
    let (flag, below) = mount.propagation.flag();
    let read_only = if mount.read_only { MOUNT_ATTR_RDONLY } else { 0 };
    let mut attributes = MountAttr::default();
    let mut recursive_attributes = MountAttr::default();
    if below { &mut recursive_attributes } else { &mut attributes }.propagation = flag;
    attributes.set = restrictions;
    if mount.read_only_recursive { &mut recursive_attributes } else { &mut attributes }.set |= read_only;
    Mount::Bind(Bind {
        source,
        subpath,
        create_source: mount.create_source,
        recursive: mount.recursive,
        target,
        attributes,
        recursive_attributes,
    })
}

/// A target in the container: absolute, not the root, and not inside /proc but for the few files that tools like to fake.
fn check_target(target: &str) -> Result<String> {
    const FAKED: [&str; 9] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/net/dev",
    ];
    if !target.starts_with('/') {
        return Err(Error::invalid(format!("invalid mount path: '{target}' mount path must be absolute")));
    }
    let clean = clean_absolute(target)?;
    if clean == "/" {
        return Err(Error::invalid("invalid specification: destination can't be '/'"));
    }
    if (clean == "/proc" || clean.starts_with("/proc/")) && !FAKED.contains(&clean.as_str()) {
        return Err(Error::invalid(format!("{clean:?} cannot be mounted because it is inside /proc")));
    }
    Ok(clean)
}

/// A tmpfs's options as users write them: "rw,size=64m,mode=1777,exec". The later of two contradicting words wins.
pub fn tmpfs_options(options: &str) -> Result<(u64, Vec<(CString, Option<CString>)>)> {
    let mut attributes = QUIET;
    let mut data: Vec<(CString, Option<CString>)> = Vec::new();
    for word in options.split(',').filter(|word| !word.is_empty()) {
        let (set, clear) = match word {
            "ro" => (MOUNT_ATTR_RDONLY, 0),
            "rw" => (0, MOUNT_ATTR_RDONLY),
            "noexec" => (MOUNT_ATTR_NOEXEC, 0),
            "exec" => (0, MOUNT_ATTR_NOEXEC),
            "nosuid" => (MOUNT_ATTR_NOSUID, 0),
            "suid" => (0, MOUNT_ATTR_NOSUID),
            "nodev" => (MOUNT_ATTR_NODEV, 0),
            "dev" => (0, MOUNT_ATTR_NODEV),
            "noatime" => (MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME),
            "atime" | "relatime" | "norelatime" => (0, MOUNT_ATTR_NOATIME | MOUNT_ATTR_STRICTATIME),
            "strictatime" => (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_NOATIME),
            "nostrictatime" => (0, MOUNT_ATTR_STRICTATIME),
            "nodiratime" => (MOUNT_ATTR_NODIRATIME, 0),
            "diratime" => (0, MOUNT_ATTR_NODIRATIME),
            "defaults" | "async" | "sync" | "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable"
            | "runbindable" => (0, 0),
            word => {
                let (key, value) = word.split_once('=').unwrap_or((word, ""));
                if !["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"].contains(&key) || value.is_empty() {
                    return Err(Error::invalid(format!("invalid tmpfs option [{word:?}]")));
                }
                let key = c(key)?;
                data.retain(|(other, _)| *other != key);
                data.push((key, Some(c(value)?)));
                (0, 0)
            }
        };
        attributes = attributes & !clear | set;
    }
    Ok((attributes, data))
}

fn tmpfs(options: &str, read_only: bool, target: CString) -> Result<FileSystem> {
    let (attributes, options) = tmpfs_options(options)?;
    let attributes = attributes | if read_only { MOUNT_ATTR_RDONLY } else { 0 };
    Ok(FileSystem { kind: c"tmpfs".to_owned(), source: c"tmpfs".to_owned(), options, attributes, target })
}

/// HostConfig.MaskedPaths where the client gave none.
pub fn default_masked_paths(possible_cpus: u32) -> Vec<String> {
    let fixed = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ];
    let throttles = (0..possible_cpus).map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
    fixed.into_iter().map(str::to_owned).chain(throttles).collect()
}

/// HostConfig.ReadonlyPaths where the client gave none.
pub fn default_readonly_paths() -> Vec<String> {
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_of_two_tmpfs_words_wins() {
        let (attributes, data) = tmpfs_options("ro,exec,size=1m,rw,size=2m,mode=700,noatime").unwrap();
        assert_eq!(attributes, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOATIME);
        let data: Vec<_> = data.iter().map(|(key, value)| (key.to_str().unwrap(), value.as_ref().unwrap().to_str().unwrap())).collect();
        assert_eq!(data, [("size", "2m"), ("mode", "700")]);
        for bad in ["size", "nosuch", "huge=always", "mode="] {
            assert!(tmpfs_options(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn targets_are_absolute_and_not_ours() {
        assert_eq!(check_target("/a/../b//c/").unwrap(), "/b/c");
        for bad in ["", "a", "/", "/..", "/proc", "/proc/../proc/self", "/proc/sys/kernel"] {
            assert!(check_target(bad).is_err(), "{bad}");
        }
        assert!(check_target("/proc/meminfo").is_ok() && check_target("/processes").is_ok());
    }

    #[test]
    fn propagation_words_are_a_closed_list() {
        assert_eq!(Propagation::parse("rslave").unwrap(), Propagation::RecursiveSlave);
        assert!(Propagation::parse("Shared").is_err());
    }
}
