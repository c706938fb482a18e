//! The launch plan: everything about a container's sandbox, decided in the daemon as plain data.
//!
//! `LaunchPlan::new` is a pure function from what is configured; the child that is cloned only carries the plan out
//! (`child.rs`). `Display` prints the calls that it will make. Run, exec, health checks and build steps all come through here,
//! so that none can forget a part of the sandbox.

use super::cgroup::devices::Node;
use super::cgroup::{Cgroup, Join};
use super::config::{Config, HostConfig, Ulimit};
use super::plan_mounts::{self, Mount, MountInput};
use super::plan_process::{self, ExecInput, Process, Sysctl, granted};
use super::selinux::Labels;
use super::stage;
use crate::error::{Error, Result};
use crate::network::netlink::address;
use crate::sys::process::Pid;
use crate::sys::security::{self, BpfInstruction};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ffi::{CString, c_int, c_ulong};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A running process whose namespaces are shared: a container's first process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its number in the daemon's pid namespace; only for messages and /proc.
    pub pid: Pid,
    #[serde(with = "stage::descriptor")]
    pub pidfd: Rc<OwnedFd>,
}

/// The container's network namespace.
#[derive(Clone, Debug)]
pub enum Network {
    /// A new one. `none` is this without interfaces.
    Private,
    /// The daemon's own.
    Host,
    /// Another container's: a namespace descriptor or a pidfd.
    Join(Rc<OwnedFd>),
}

/// Where the child puts itself, and what it sees of that. Limits and device rules are there already.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Placement {
    /// `None`: no cgroups on this host, the child stays in the daemon's.
    #[serde(with = "stage::join")]
    pub join: Option<Rc<Join>>,
    pub view: CgroupView,
}

/// What stands at /sys/fs/cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupView {
    #[default]
    Nothing,
    /// cgroup v1: one directory per mounted hierarchy.
    V1(Vec<V1Directory>),
    V2,
}

/// The container's directory in one cgroup v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct V1Directory {
    /// The hierarchy's name under /sys/fs/cgroup ("memory", "cpu,cpuacct", "systemd").
    pub hierarchy: String,
    /// The directory as the daemon sees it ("/sys/fs/cgroup/memory/docker/<id>").
    pub directory: PathBuf,
}

impl Placement {
    /// Into a container's cgroup. `init` is the container's first process, when it is running already (an exec).
    pub fn of(cgroup: &Cgroup, init: Option<Pid>) -> io::Result<Placement> {
        let directories = cgroup.places().into_iter().map(|(point, directory)| V1Directory {
            hierarchy: point.rsplit('/').next().unwrap_or_default().to_owned(),
            directory: directory.into(),
        });
        let view = if cgroup.is_v2() { CgroupView::V2 } else { CgroupView::V1(directories.collect()) };
        Ok(Placement { join: Some(Rc::new(cgroup.join(init)?)), view })
    }
}

/// The system call filter. Not an Option: whoever makes a plan has to say that there is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Seccomp {
    Unconfined,
    Filter {
        #[serde(with = "stage::program")]
        program: Rc<[BpfInstruction]>,
        /// SECCOMP_FILTER_FLAG_*, as the profile asks for.
        flags: c_ulong,
    },
}

/// One overlay: top layer first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    pub lower: Vec<CString>,
    /// Absent for a read-only view (image mounts).
    pub upper: Option<CString>,
    pub work: Option<CString>,
}

/// What the root is made of.
#[derive(Clone, Copy, Debug)]
pub struct RootInput<'a> {
    /// The directory made by `rootfs::fill_init_layer`, above all layers of the image.
    pub init_layer: &'a Path,
    /// The image's layers, top first.
    pub layers: &'a [PathBuf],
    pub upper: &'a Path,
    pub work: &'a Path,
}

/// A limit of setrlimit(2); `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// Facts about the daemon itself that a plan depends on; read once at its start.
#[derive(Clone, Debug)]
pub struct Own {
    /// What the daemon may give away: permitted and in its bounding set.
    pub capabilities: u64,
    /// The bounding set that a child begins with.
    pub bounding: u64,
    /// The limits that the daemon was started with, where it has raised its own since.
    pub rlimits: Vec<Rlimit>,
    pub oom_score_adj: i32,
    /// Highest possible CPU number + 1, for the masked thermal_throttle directories.
    pub possible_cpus: u32,
}

impl Own {
    /// Reads them from this process and /proc. `rlimits` is left empty: the caller adds the original of each limit that it raises.
    pub fn read() -> Own {
        let permitted = security::capget().map_or(0, |sets| sets.permitted);
        let bounding = (0..63).map_while(|n| security::capbset_read(n).ok().map(|set| u64::from(set) << n)).sum();
        let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().rsplit('-').next().map(str::to_owned));
        let score = std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok());
        let last_cpu = number("/sys/devices/system/cpu/possible").and_then(|text| text.parse::<u32>().ok());
        Own {
            capabilities: permitted & bounding,
            bounding,
            rlimits: Vec::new(),
            oom_score_adj: score.unwrap_or(0),
            possible_cpus: last_cpu.map_or(1, |cpu| cpu.saturating_add(1)),
        }
    }
}

/// What every process of a container is made from: its first one and each exec.
#[derive(Clone, Debug)]
pub struct Container<'a> {
    pub id: &'a str,
    /// The container's own configuration, merged with its image's.
    pub config: &'a Config,
    pub host: &'a HostConfig,
    /// Variables of legacy links; they stand before the container's own.
    pub linked_environment: &'a [String],
    pub seccomp: Seccomp,
    /// An AppArmor profile that is loaded; `None` where the kernel has no AppArmor, or for "unconfined".
    pub apparmor: Option<&'a str>,
    /// SELinux labels; `None` where the kernel has no policy.
    pub selinux: Option<&'a Labels>,
    /// no-new-privileges, by SecurityOpt or the daemon's default.
    pub no_new_privileges: bool,
    /// /sys/fs/cgroup is not read-only: a privileged container's, or by SecurityOpt.
    pub writable_cgroups: bool,
    /// The daemon's default-ulimits; HostConfig.Ulimits override them by name.
    pub default_ulimits: &'a [Ulimit],
    pub own: &'a Own,
}

/// What a start is made from. Modes that name another container are resolved by the caller, and files that the engine keeps for the
/// container (hosts, resolv.conf …) exist.
#[derive(Clone, Debug)]
pub struct PlanInput<'a> {
    pub container: Container<'a>,
    /// The container's path and arguments (entrypoint and command, merged).
    pub argv: &'a [String],
    pub root: RootInput<'a>,
    /// Binds, volumes, tmpfs and image mounts, in any order; HostConfig.Tmpfs is read from the configuration.
    pub mounts: &'a [MountInput],
    /// Files of this host that are bound over /etc/hostname, /etc/hosts, /etc/resolv.conf.
    pub hostname_file: Option<&'a Path>,
    pub hosts_file: Option<&'a Path>,
    pub resolv_file: Option<&'a Path>,
    pub network: Network,
    /// Netlink route messages for the new network namespace, in order, each with NLM_F_ACK; sent after go.
    pub netlink: Vec<Vec<u8>>,
    /// The container that PidMode "container:…" names.
    pub pid_of: Option<Member>,
    /// The container that IpcMode "container:…" names.
    pub ipc_of: Option<Member>,
    /// CgroupnsMode, with the daemon's default filled in.
    pub private_cgroupns: bool,
    pub cgroup: Placement,
    /// Device nodes beyond the default ones (`cgroup::devices::gather`, CDI).
    pub devices: &'a [Node],
    /// Our own static binary, when the container gets an init ("--init").
    pub init_binary: Option<&'a Path>,
    /// Bytes of /dev/shm when HostConfig.ShmSize is 0.
    pub default_shm_size: i64,
}

/// A namespace to be entered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// CLONE_NEW…
    pub kind: c_int,
    /// Of the namespace, or a pidfd.
    #[serde(with = "stage::descriptor")]
    pub namespace: Rc<OwnedFd>,
    /// For messages.
    pub name: Cow<'static, str>,
}

/// The names and values of one container's start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaunchPlan {
    pub id: String,
    /// Namespaces made by clone3.
    pub clone_flags: u64,
    /// Entered by the daemon for its children before clone3, and left after it.
    pub pid_namespace: Option<Member>,
    /// The child is born of a fresh process that has nothing but the plan in its memory: where it is seen by others from its first
    /// moment on, and one of these may look into it.
    pub staged: bool,
    /// Entered by the child.
    pub joins: Vec<Joined>,
    /// Made by the child once it is in its cgroup: CLONE_NEWCGROUP or 0.
    pub unshare: c_int,
    pub cgroup: Placement,
    /// Written by the daemon; `None` where the daemon's own value is already right.
    pub oom_score_adj: Option<i32>,
    /// The root first, then those of image mounts; mounted detached by the daemon.
    pub overlays: Vec<Overlay>,
    /// In the order in which they are attached.
    pub mounts: Vec<Mount>,
    /// Device nodes outside /dev: made in the root when everything is mounted.
    pub outside_devices: Vec<Node>,
    pub masked_paths: Vec<CString>,
    pub readonly_paths: Vec<CString>,
    pub readonly_root: bool,
    pub hostname: Vec<u8>,
    pub domainname: Vec<u8>,
    /// Whether the child says that it has done its mounts before it waits for go.
    pub report_ready: bool,
    /// Sent after go: the loopback's up first, in a new network namespace.
    pub netlink: Vec<Vec<u8>>,
    /// Written after go, as some are an interface's own.
    pub sysctls: Vec<Sysctl>,
    pub process: Process,
}

impl LaunchPlan {
    /// Decides everything. No side effects, no system calls.
    pub fn new(input: &PlanInput) -> Result<LaunchPlan> {
        let Container { config, host, own, id, .. } = &input.container;
        let pid = Mode::parse("PID", &host.pid_mode, &["", "host"])?;
        let ipc = Mode::parse("IPC", &host.ipc_mode, &["", "none", "private", "shareable", "host"])?;
        let host_uts = Mode::parse("UTS", &host.uts_mode, &["", "host"])? == Mode::Named("host");
        let mut clone_flags = libc::CLONE_NEWNS;
        let mut joins = Vec::new();
        let pid_namespace = match pid {
            Mode::Container => Some(input.pid_of.clone().ok_or_else(|| unresolved("PID", &host.pid_mode))?),
            Mode::Named("host") => None,
            Mode::Named(_) => {
                clone_flags |= libc::CLONE_NEWPID;
                None
            }
        };
        match ipc {
            Mode::Container => {
                let owner = input.ipc_of.as_ref().ok_or_else(|| unresolved("IPC", &host.ipc_mode))?;
                joins.push(Joined { kind: libc::CLONE_NEWIPC, namespace: owner.pidfd.clone(), name: "ipc".into() });
            }
            Mode::Named("host") => {}
            Mode::Named(_) => clone_flags |= libc::CLONE_NEWIPC,
        }
        if !host_uts {
            clone_flags |= libc::CLONE_NEWUTS;
        }
        match &input.network {
            Network::Private => clone_flags |= libc::CLONE_NEWNET,
            Network::Host => {}
            Network::Join(namespace) => {
                joins.push(Joined { kind: libc::CLONE_NEWNET, namespace: namespace.clone(), name: "network".into() })
            }
        }
        let private_network = matches!(input.network, Network::Private);
        let loopback = private_network.then(address::loopback_up);
        // Nothing is masked from who may do everything anyway.
        let paths = |given: &Option<Vec<String>>, default: Vec<String>| -> Result<Vec<CString>> {
            match (host.privileged, given) {
                (true, _) => Ok(Vec::new()),
                (false, Some(given)) => given.iter().map(c).collect(),
                (false, None) => default.iter().map(c).collect(),
            }
        };
        let has_own_init = input.init_binary.is_some() && clone_flags & libc::CLONE_NEWPID != 0;
        Ok(LaunchPlan {
            id: (*id).to_owned(),
            clone_flags: u64::from(clone_flags.cast_unsigned()),
            staged: pid_namespace.is_some(),
            pid_namespace,
            joins,
            unshare: if input.private_cgroupns { libc::CLONE_NEWCGROUP } else { 0 },
            cgroup: input.cgroup.clone(),
            oom_score_adj: score(host.oom_score_adj)?.filter(|score| *score != own.oom_score_adj),
            overlays: plan_mounts::overlays(input)?,
            mounts: plan_mounts::mounts(input, ipc, has_own_init)?,
            outside_devices: input.devices.iter().filter(|node| !node.path.starts_with("/dev/")).cloned().collect(),
            masked_paths: paths(&host.masked_paths, plan_mounts::default_masked_paths(own.possible_cpus))?,
            readonly_paths: paths(&host.readonly_paths, plan_mounts::default_readonly_paths())?,
            readonly_root: host.readonly_rootfs,
            hostname: if host_uts { Vec::new() } else { config.hostname.clone().into_bytes() },
            domainname: if host_uts { Vec::new() } else { config.domainname.clone().into_bytes() },
            report_ready: false,
            netlink: loopback.into_iter().chain(input.netlink.iter().cloned()).collect(),
            sysctls: plan_process::sysctls(host, private_network, ipc)?,
            process: Process::of_container(input, has_own_init)?,
        })
    }
}

/// A namespace mode: one of its fixed words, or "container:…".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Named(&'static str),
    Container,
}

impl Mode {
    /// A value that can't be understood is refused, never taken for the default.
    pub(super) fn parse(what: &str, text: &str, known: &[&'static str]) -> Result<Mode> {
        if text.strip_prefix("container:").is_some_and(|name| !name.is_empty()) && what != "UTS" {
            return Ok(Mode::Container);
        }
        match known.iter().find(|word| **word == text) {
            Some(word) => Ok(Mode::Named(word)),
            None => Err(Error::invalid(format!("invalid {what} mode: {text}"))),
        }
    }
}

fn unresolved(what: &str, mode: &str) -> Error {
    Error::system(format!("cannot join {what} of a non running container: {}", mode.trim_start_matches("container:")))
}

fn score(wanted: i64) -> Result<Option<i32>> {
    match i32::try_from(wanted) {
        Ok(score) if (-1000..=1000).contains(&score) => Ok(Some(score)),
        _ => Err(Error::invalid(format!("Invalid value {wanted}, range for oom score adj is [-1000, 1000]"))),
    }
}

/// A C string from configuration; nothing that the kernel reads can carry a NUL.
pub(super) fn c(text: impl AsRef<[u8]>) -> Result<CString> {
    let text = text.as_ref();
    CString::new(text).map_err(|_| Error::invalid(format!("invalid argument: {:?} contains a NUL byte", String::from_utf8_lossy(text))))
}

/// As [`c`], for a path of this host.
pub(super) fn c_path(path: &Path) -> Result<CString> {
    c(path.as_os_str().as_encoded_bytes())
}

/// A further process in a running container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The container's first process: all of its namespaces are joined.
    pub target: Member,
    /// As in the launch plan. To be set too while a privileged exec is alive in the container.
    pub staged: bool,
    pub cgroup: Placement,
    /// `None` where the daemon's own value is already right.
    pub oom_score_adj: Option<i32>,
    pub process: Process,
}

impl ExecPlan {
    /// The same sandbox as the container's own: same rights, limits and filters, unless the exec is a privileged one.
    pub fn new(container: &Container, exec: &ExecInput, target: Member, cgroup: Placement) -> Result<ExecPlan> {
        let process = Process::of_exec(container, exec)?;
        Ok(ExecPlan {
            target,
            staged: may_trace(granted(container.host, container.own)?) || shares_pids(container.host),
            cgroup,
            oom_score_adj: score(container.host.oom_score_adj)?.filter(|score| *score != container.own.oom_score_adj),
            process,
        })
    }
}

/// CAP_SYS_ADMIN, without which no filter can be loaded.
pub(super) const SYS_ADMIN: u64 = 1 << 21;
const SYS_PTRACE: u64 = 1 << 19;

/// Whether `capabilities` let a process look into others of its user namespace: then a new child must not carry the daemon's
/// memory where it can be seen (DESIGN §4, exec).
fn may_trace(capabilities: u64) -> bool {
    capabilities & SYS_PTRACE != 0
}

/// Whether the container sees another container's processes, whose rights are not known here.
fn shares_pids(host: &HostConfig) -> bool {
    host.pid_mode.starts_with("container:")
}
