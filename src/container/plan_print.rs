//! The plan as text: a dry run, one call a line, in the order in which daemon and child make them. Loops and look-ups that depend on the
//! image (missing mount points, passwd) are written as what they look for.

use super::plan::{CgroupView, ExecPlan, Joined, LaunchPlan, Overlay, Placement, Seccomp};
use super::plan_mounts::{Bind, FileSystem, Mount};
use super::plan_process::Process;
use super::user::{Id, UserSpec};
use crate::sys::mount::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME, MountAttr, PRIVATE, SHARED, SLAVE,
};
use std::ffi::{CStr, c_int};
use std::fmt;

impl fmt::Display for LaunchPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "daemon:")?;
        for (n, overlay) in self.overlays.iter().enumerate() {
            write_overlay(f, n, overlay)?;
        }
        if let Some(member) = &self.pid_namespace {
            writeln!(f, "  setns(pidfd of {}, CLONE_NEWPID)", member.pid)?;
        }
        writeln!(f, "  clone3({}{})", namespaces(self.clone_flags), into(&self.cgroup))?;
        if let Some(score) = self.oom_score_adj {
            writeln!(f, "  write(/proc/PID/oom_score_adj, {score})")?;
        }
        writeln!(f, "child:\n  prctl(PR_SET_DUMPABLE, 0)")?;
        write_join(f, &self.cgroup)?;
        for Joined { kind: flag, name, .. } in &self.joins {
            writeln!(f, "  setns({name}, {})", namespaces(u64::from(flag.cast_unsigned())))?;
        }
        if self.unshare != 0 {
            writeln!(f, "  unshare({})", namespaces(u64::from(self.unshare.cast_unsigned())))?;
        }
        for mount in &self.mounts {
            write_source(f, mount)?;
        }
        writeln!(f, "  mount_setattr(/, AT_RECURSIVE, MS_SLAVE)\n  move_mount(overlay 0 -> /)")?;
        for mount in &self.mounts {
            write_mount(f, mount)?;
        }
        for node in &self.outside_devices {
            writeln!(f, "  mknodat({}, {}:{}, {:o})", node.path, node.major, node.minor, node.mode)?;
        }
        for path in &self.readonly_paths {
            writeln!(f, "  mount_setattr(clone of {0}, RDONLY); move_mount(-> {0}) if it exists", text(path))?;
        }
        for path in &self.masked_paths {
            writeln!(f, "  move_mount(null device or empty tmpfs -> {}) if it exists", text(path))?;
        }
        if self.process.terminal.is_some() {
            writeln!(f, "  openat2(/dev/pts/ptmx); ioctl(TIOCGPTPEER); sendmsg(SCM_RIGHTS master); move_mount(pty -> /dev/console)")?;
        }
        if self.readonly_root {
            writeln!(f, "  mount_setattr(overlay 0, RDONLY)")?;
        }
        writeln!(f, "  pivot_root(., .); umount2(., MNT_DETACH)")?;
        for (call, name) in [("sethostname", &self.hostname), ("setdomainname", &self.domainname)] {
            if !name.is_empty() {
                writeln!(f, "  {call}({})", String::from_utf8_lossy(name))?;
            }
        }
        writeln!(f, "  recv(go)")?;
        for message in &self.netlink {
            writeln!(f, "  sendmsg(NETLINK_ROUTE, {} bytes)", message.len())?;
        }
        for sysctl in &self.sysctls {
            writeln!(f, "  write(/proc/sys/{}, {:?})", text(&sysctl.path), String::from_utf8_lossy(&sysctl.value))?;
        }
        self.process.fmt(f)
    }
}

impl fmt::Display for ExecPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "daemon:\n  setns(pidfd of {}, CLONE_NEWPID)\n  clone3({})",
            self.target.pid,
            into(&self.cgroup).trim_start_matches('|')
        )?;
        writeln!(f, "child:\n  prctl(PR_SET_DUMPABLE, 0)")?;
        write_join(f, &self.cgroup)?;
        if let Some(score) = self.oom_score_adj {
            writeln!(f, "  write(/proc/self/oom_score_adj, {score})")?;
        }
        writeln!(f, "  setns(pidfd of {}, CLONE_NEWNS|CLONE_NEWUTS|CLONE_NEWIPC|CLONE_NEWNET|CLONE_NEWCGROUP)", self.target.pid)?;
        self.process.fmt(f)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  look up {} in /etc/passwd, /etc/group", of_user(&self.user))?;
        if self.make_workdir {
            writeln!(f, "  mkdirat({}) where missing", text(&self.workdir))?;
        }
        writeln!(f, "  setsid()")?;
        let streams = match (&self.terminal, self.stdin) {
            (Some(_), _) => "pty, pty, pty",
            (None, true) => "pipe, pipe, pipe",
            (None, false) => "/dev/null, pipe, pipe",
        };
        writeln!(f, "  dup3({streams} -> 0, 1, 2)")?;
        for limit in &self.rlimits {
            writeln!(f, "  setrlimit({}, {}, {})", limit.resource, limit.soft, limit.hard)?;
        }
        for (file, label) in [("apparmor/exec", &self.apparmor), ("exec", &self.selinux)] {
            if let Some(label) = label {
                writeln!(f, "  write(/proc/thread-self/attr/{file}, {})", text(label))?;
            }
        }
        writeln!(f, "  keyctl(KEYCTL_JOIN_SESSION_KEYRING, {})\n  umask(022)\n  chdir({})", text(&self.keyring), text(&self.workdir))?;
        writeln!(f, "  setgroups(); prctl(PR_CAPBSET_DROP, {:?})", self.dropped)?;
        writeln!(f, "  prctl(PR_SET_KEEPCAPS, 1); setresgid(); setresuid(); prctl(PR_SET_KEEPCAPS, 0); prctl(PR_CAP_AMBIENT_CLEAR_ALL)")?;
        writeln!(f, "  capset({:#x} for root, none for others, and SYS_ADMIN until execve)", self.capabilities)?;
        if self.no_new_privileges {
            writeln!(f, "  prctl(PR_SET_NO_NEW_PRIVS, 1)")?;
        }
        writeln!(f, "  close_range(3, ~0, CLOSE_RANGE_CLOEXEC)")?;
        match &self.seccomp {
            Seccomp::Unconfined => {}
            Seccomp::Filter { program, flags } => {
                writeln!(f, "  seccomp(SECCOMP_SET_MODE_FILTER, {flags:#x}, {} instructions)", program.len())?;
            }
        }
        write!(f, "  execve(")?;
        list(f, &self.argv)?;
        write!(f, ", ")?;
        list(f, &self.environment)?;
        writeln!(f, "{})", if self.home_from_passwd { " and HOME" } else { "" })
    }
}

fn text(path: &CStr) -> std::borrow::Cow<'_, str> {
    path.to_string_lossy()
}

fn list(f: &mut fmt::Formatter<'_>, words: &[std::ffi::CString]) -> fmt::Result {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    write!(f, "{words:?}")
}

fn of_user(user: &UserSpec) -> String {
    let id = |id: &Id| match id {
        Id::Name(name) => format!("{name:?}"),
        Id::Number(number) => number.to_string(),
    };
    let mut all = id(&user.user);
    for group in user.group.iter().chain(&user.extra_groups) {
        all = format!("{all}:{}", id(group));
    }
    all
}

fn namespaces(flags: u64) -> String {
    let names: [(c_int, &str); 7] = [
        (libc::CLONE_NEWNS, "CLONE_NEWNS"),
        (libc::CLONE_NEWPID, "CLONE_NEWPID"),
        (libc::CLONE_NEWUTS, "CLONE_NEWUTS"),
        (libc::CLONE_NEWIPC, "CLONE_NEWIPC"),
        (libc::CLONE_NEWNET, "CLONE_NEWNET"),
        (libc::CLONE_NEWCGROUP, "CLONE_NEWCGROUP"),
        (libc::CLONE_NEWUSER, "CLONE_NEWUSER"),
    ];
    let set = names.iter().filter(|(flag, _)| flags & u64::from(flag.cast_unsigned()) != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join("|")
}

fn into(placement: &Placement) -> &'static str {
    if placement.join.as_ref().is_some_and(|join| join.directory.is_some()) { "|CLONE_INTO_CGROUP" } else { "" }
}

fn write_join(f: &mut fmt::Formatter<'_>, placement: &Placement) -> fmt::Result {
    let CgroupView::V1(directories) = &placement.view else { return Ok(()) };
    directories.iter().try_for_each(|entry| writeln!(f, "  write({}/tasks, 0)", entry.directory.display()))
}

fn write_overlay(f: &mut fmt::Formatter<'_>, n: usize, overlay: &Overlay) -> fmt::Result {
    writeln!(f, "  overlay {n} = fsopen(overlay)")?;
    let layers = overlay.lower.iter().map(|layer| ("lowerdir+", layer));
    let rest = overlay.upper.iter().map(|path| ("upperdir", path)).chain(overlay.work.iter().map(|path| ("workdir", path)));
    for (key, path) in layers.chain(rest) {
        writeln!(f, "    fsconfig({key}, {})", text(path))?;
    }
    writeln!(f, "    fsconfig(index=off, metacopy=off, redirect_dir=off, xino=off); fsmount()")
}

fn attributes(set: u64) -> String {
    let names = [
        (MOUNT_ATTR_RDONLY, "RDONLY"),
        (MOUNT_ATTR_NOSUID, "NOSUID"),
        (MOUNT_ATTR_NODEV, "NODEV"),
        (MOUNT_ATTR_NOEXEC, "NOEXEC"),
        (MOUNT_ATTR_NOATIME, "NOATIME"),
        (MOUNT_ATTR_STRICTATIME, "STRICTATIME"),
        (MOUNT_ATTR_NODIRATIME, "NODIRATIME"),
        (PRIVATE, "MS_PRIVATE"),
        (SLAVE, "MS_SLAVE"),
        (SHARED, "MS_SHARED"),
    ];
    names.iter().filter(|(flag, _)| set & flag != 0).map(|(_, name)| *name).collect::<Vec<_>>().join("|")
}

fn write_source(f: &mut fmt::Formatter<'_>, mount: &Mount) -> fmt::Result {
    match mount {
        Mount::Bind(bind) => {
            if bind.create_source {
                writeln!(f, "  mkdirat({}) where missing", text(&bind.source))?;
            }
            writeln!(f, "  open_tree({}, OPEN_TREE_CLONE{})", source(bind), if bind.recursive { "|AT_RECURSIVE" } else { "" })?;
            for (below, attr) in [("AT_RECURSIVE, ", &bind.recursive_attributes), ("", &bind.attributes)] {
                if *attr != MountAttr::default() {
                    writeln!(f, "    mount_setattr({below}{})", attributes(attr.set | attr.propagation))?;
                }
            }
            Ok(())
        }
        Mount::SharedMemory { owner, .. } => {
            writeln!(f, "  setns(pidfd of {}, CLONE_NEWNS); open_tree(/dev/shm, OPEN_TREE_CLONE); setns(own, CLONE_NEWNS)", owner.pid)
        }
        _ => Ok(()),
    }
}

fn source(bind: &Bind) -> String {
    match &bind.subpath {
        Some(subpath) => format!("{} in {}", text(subpath), text(&bind.source)),
        None => text(&bind.source).into_owned(),
    }
}

fn write_file_system(f: &mut fmt::Formatter<'_>, fs: &FileSystem) -> fmt::Result {
    let value = |value: &Option<std::ffi::CString>| value.as_ref().map_or_else(String::new, |value| format!("={}", text(value)));
    let options: Vec<String> = fs.options.iter().map(|(key, option)| format!("{}{}", text(key), value(option))).collect();
    write!(f, "  fsopen({}); fsconfig({}); fsmount({})", text(&fs.kind), options.join(", "), attributes(fs.attributes))
}

fn write_mount(f: &mut fmt::Formatter<'_>, mount: &Mount) -> fmt::Result {
    match mount {
        Mount::New(fs) | Mount::Proc(fs) | Mount::Tmpfs(fs) => write_file_system(f, fs)?,
        Mount::Devices(devices) => {
            write_file_system(f, &devices.tmpfs)?;
            for name in &devices.directories {
                write!(f, "\n    mkdirat({})", text(name))?;
            }
            for (name, node) in &devices.nodes {
                write!(f, "\n    mknodat({}, {}:{}, {:o})", text(name), node.major, node.minor, node.mode)?;
            }
            for (name, target) in &devices.links {
                write!(f, "\n    symlinkat({}, {})", text(target), text(name))?;
            }
            write!(f, "\n ")?;
        }
        Mount::Hierarchies(cgroups) => {
            write_file_system(f, &cgroups.tmpfs)?;
            for (name, directory) in &cgroups.binds {
                let read_only = if cgroups.read_only { ", RDONLY" } else { "" };
                write!(f, "\n    open_tree({}, OPEN_TREE_CLONE{read_only}); move_mount(-> {})", text(directory), text(name))?;
            }
            write!(f, "\n ")?;
        }
        Mount::Bind(bind) => write!(f, "  {}:", source(bind))?,
        Mount::SharedMemory { owner, .. } => write!(f, "  /dev/shm of {}:", owner.pid)?,
        Mount::Image { overlay, subpath, .. } => {
            write!(f, "  overlay {overlay}{}:", subpath.as_ref().map_or_else(String::new, |path| format!(" at {}", text(path))))?;
        }
    }
    writeln!(f, " move_mount(-> {})", text(mount.target()))
}
