//! The child that clone3 makes: it carries the launch plan out, top to bottom, and becomes the container's first process.
//!
//! Runs as root with all of the daemon's rights until `tail`; nothing of the container runs before the last line. Each failure is
//! reported with its step, and the child exits: its namespaces, and with them every mount made here, go away.

use super::attach;
use super::plan::{LaunchPlan, Placement};
use super::plan_mounts::Mount;
use super::report::{At, Failure, Step, child as say};
use super::tail::{self, Streams};
use crate::network::netlink::Socket;
use crate::sys;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the daemon hands over beside the plan.
pub struct Inherited {
    pub channel: OwnedFd,
    /// As in the plan: the root first.
    pub overlays: Vec<OwnedFd>,
    pub streams: Streams,
}

/// Never returns: the process executes its program, or reports and exits.
pub fn run(plan: &LaunchPlan, inherited: Inherited) -> ! {
    let Inherited { channel, overlays, streams } = inherited;
    let Err(failure) = start(plan, channel.as_fd(), &overlays, streams);
    say::send_failure(channel.as_fd(), &failure);
    sys::process::exit(1)
}

fn start(plan: &LaunchPlan, channel: BorrowedFd, overlays: &[OwnedFd], mut streams: Streams) -> Result<Infallible, Failure> {
    // This still is the daemon's memory, so nobody may look at it; and its signals are not the container's.
    begin()?;

    // Into the cgroup first, so that whatever follows is accounted there, and a private cgroup namespace begins there.
    enter_cgroup(&plan.cgroup)?;
    for join in &plan.joins {
        sys::process::setns(join.namespace.as_fd(), join.kind).at(Step::JoinNamespace, &join.name)?;
    }
    sys::process::unshare(plan.unshare).at(Step::JoinNamespace, "cgroup")?;

    // Sources are fetched while the peer groups are the daemon's; from then on no mount leaves this namespace.
    let sources = attach::fetch_sources(&plan.mounts)?;
    attach::enslave_everything()?;

    // On top of "/": paths still resolve in the old root, as a lookup does not cross a mount on its starting point, and where
    // pivot_root is impossible (initramfs) a chroot is enough.
    let root = overlays.first().ok_or_else(|| Failure::new(Step::Root, "no root", libc::EINVAL))?.as_fd();
    let slash = sys::fd::open(c"/", libc::O_PATH, 0).at(Step::Root, "open /")?;
    attach::attach(root, slash.as_fd()).at(Step::Root, "attach")?;

    let proc = mount_all(root, plan, &sources, overlays)?;
    drop(sources);
    for node in &plan.outside_devices {
        tail::make_device(root, node)?;
    }
    attach::protect(root, &plan.readonly_paths)?;
    attach::mask(root, &plan.masked_paths)?;
    if plan.process.terminal.is_some() {
        streams.terminal = Some(tail::open_terminal(root, channel, plan.process.terminal)?);
    }
    if let Some(tty) = &streams.terminal {
        attach::mount_console(root, tty.as_fd())?;
    }
    if plan.readonly_root {
        attach::protect_root(root)?;
    }
    become_root_of(root)?;
    if !plan.hostname.is_empty() {
        sys::process::sethostname(&plan.hostname).at(Step::Hostname, "")?;
    }
    if !plan.domainname.is_empty() {
        sys::process::setdomainname(&plan.domainname).at(Step::Domainname, "")?;
    }

    // The daemon has meanwhile made the interfaces; go says that firewall and all stand too.
    if plan.report_ready {
        say::send_ready(channel)?;
    }
    let late = say::wait_for_go(channel)?;
    send_netlink(&plan.netlink, &late)?;
    for sysctl in &plan.sysctls {
        tail::write_sysctl(proc.sys.as_fd(), sysctl)?;
    }
    tail::execute(&plan.process, root, Some(proc.top.as_fd()), channel, streams)
}

/// The first calls of every child of the daemon that becomes a container's process.
pub fn begin() -> Result<(), Failure> {
    sys::security::set_dumpable(false).at(Step::Prepare, "child")?;
    sys::process::reset_signals();
    sys::poll::sigprocmask(&sys::poll::no_signals()).at(Step::Prepare, "child")?;
    // Modes given to mkdir and mknod mean what they say.
    sys::fs::umask(0);
    Ok(())
}

/// Writes 0, "me", into each hierarchy: 0.3 ms, where a daemon writing another's pid takes ten times that. On v2 clone3 has done it.
pub fn enter_cgroup(placement: &Placement) -> Result<(), Failure> {
    let Some(join) = placement.join.as_ref().filter(|join| join.directory.is_none()) else { return Ok(()) };
    for file in &join.files {
        sys::fd::write_all(file.as_fd(), b"0").at(Step::Cgroup, "of the container")?;
    }
    Ok(())
}

/// The container's procfs, held from when nothing was mounted on it yet. (A detached copy would do as well, but closing one waits for RCU.)
struct Proc {
    top: OwnedFd,
    /// /proc/sys itself, under what makes it read-only: a walk from an open directory does not cross what is mounted on that.
    sys: OwnedFd,
}

impl Proc {
    fn hold(top: OwnedFd) -> Result<Proc, Failure> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let sys = sys::fd::openat(top.as_fd(), c"sys", flags, 0).at(Step::Mount, "\"proc\": open /proc/sys")?;
        Ok(Proc { top, sys })
    }
}

/// The plan's mount table, in order.
fn mount_all(root: BorrowedFd, plan: &LaunchPlan, sources: &[Option<OwnedFd>], overlays: &[OwnedFd]) -> Result<Proc, Failure> {
    let mut proc = None;
    for (mount, source) in plan.mounts.iter().zip(sources) {
        match (mount, source) {
            (Mount::Proc(fs), _) => proc = Some(Proc::hold(attach::mount_new(root, fs)?)?),
            (Mount::New(fs), _) => drop(attach::mount_new(root, fs)?),
            (Mount::Devices(devices), _) => attach::mount_devices(root, devices)?,
            (Mount::Tmpfs(fs), _) => attach::mount_tmpfs(root, fs)?,
            (Mount::Hierarchies(cgroups), _) => attach::mount_hierarchies(root, cgroups)?,
            (Mount::Bind(bind), Some(source)) => attach::mount_bind(root, source.as_fd(), bind)?,
            (Mount::SharedMemory { target, .. }, Some(source)) => {
                attach::mount_on(root, source.as_fd(), target, || "\"shm\" to rootfs at \"/dev/shm\"".to_owned())?;
            }
            (Mount::Image { overlay, subpath, target }, _) => {
                let tree = overlays.get(*overlay).ok_or_else(|| Failure::new(Step::Mount, "image", libc::EINVAL))?;
                attach::mount_image(root, tree.as_fd(), subpath.as_deref(), target)?;
            }
            (Mount::Bind(_) | Mount::SharedMemory { .. }, None) => return Err(Failure::new(Step::Mount, "without source", libc::EINVAL)),
        }
    }
    proc.ok_or_else(|| Failure::new(Step::Mount, "no proc", libc::EINVAL))
}

/// Makes the attached overlay this process's root, and lets go of the old one.
fn become_root_of(root: BorrowedFd) -> Result<(), Failure> {
    sys::fs::fchdir(root).at(Step::PivotRoot, "fchdir")?;
    match sys::mount::pivot_root(c".", c".") {
        Ok(()) => {
            // The old root now lies on top of the new one.
            sys::mount::umount2(c".", libc::MNT_DETACH).at(Step::PivotRoot, "umount")?;
        }
        // An initramfs can't be moved away. The overlay covers it whole, and ".." ends there.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => sys::fs::chroot(c".").at(Step::PivotRoot, "chroot")?,
        Err(e) => return Err::<(), io::Error>(e).at(Step::PivotRoot, "."),
    }
    sys::fs::chdir(c"/").at(Step::PivotRoot, "chdir")
}

/// Addresses and routes, set by the container's own hand: those of the plan, then those that came with go.
fn send_netlink(planned: &[Vec<u8>], late: &[u8]) -> Result<(), Failure> {
    let mut messages = planned.to_vec();
    let mut rest = late;
    while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(message) = rest.get(..length).filter(|message| message.len() >= 16) else {
            return Err(Failure::new(Step::Network, "late message", libc::EBADMSG));
        };
        messages.push(message.to_vec());
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    if messages.is_empty() {
        return Ok(());
    }
    let socket = Socket::route().at(Step::Network, "socket")?;
    socket.batch("configure interfaces", &messages).map_err(|failure| {
        let errno = failure.errno();
        Failure::new(Step::Network, if failure.detail.is_empty() { failure.what } else { failure.detail }, errno)
    })
}
