//! One container's cgroup: joining, limits, freezing, killing, counting, removal. Nothing here waits.

use super::files;
use super::groups::Parent;
use super::limits;
use super::oom::OomWatch;
use super::plan::Facts;
use crate::container::config::Resources;
use crate::error::{Error, Result, strerror};
use crate::sys::{cstring, fd, fs, process};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// A container's cgroup in every tree that it is in. Small: it holds no descriptor of its own.
#[derive(Debug)]
pub struct Cgroup {
    facts: Rc<Facts>,
    parent: Rc<Parent>,
    leaf: String,
    /// The trees that have our directory, one bit each.
    present: u32,
}

/// How a process gets into the cgroup.
#[derive(Debug)]
pub struct Join {
    /// v2: for clone3's CLONE_INTO_CGROUP.
    pub directory: Option<OwnedFd>,
    /// Files into each of which the process itself writes "0" while it has one thread. Not needed after CLONE_INTO_CGROUP.
    pub files: Vec<OwnedFd>,
}

/// At most this many directories go in one call of [`Cgroup::remove`]: a container may have left a forest of them.
const REMOVALS_PER_TURN: usize = 256;

impl Cgroup {
    pub(super) fn new(facts: Rc<Facts>, parent: Rc<Parent>, leaf: String) -> Cgroup {
        Cgroup { facts, parent, leaf, present: 0 }
    }

    pub(super) fn in_parent(self, parent: Rc<Parent>) -> Cgroup {
        Cgroup { parent, ..self }
    }

    pub(super) fn note_present(&mut self, tree: usize) {
        self.present |= u32::try_from(tree).ok().and_then(|tree| 1u32.checked_shl(tree)).unwrap_or(0);
    }

    pub(super) fn is_present(&self) -> bool {
        self.present != 0
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(super) fn parent(&self) -> &Parent {
        &self.parent
    }

    pub(super) fn leaf(&self) -> &str {
        &self.leaf
    }

    /// The path below every mount point, for [`super::Cgroups::reopen`].
    pub fn path(&self) -> String {
        format!("{}/{}", self.parent.path, self.leaf)
    }

    /// The path on the host of one controller's directory; on v2 any controller's.
    pub fn host_path(&self, controller: &str) -> Option<String> {
        let tree = self.tree(controller)?;
        self.facts.hierarchy.trees.get(tree).map(|tree| format!("{}{}", tree.point, self.path()))
    }

    /// Every directory of ours, with the mount point of its tree.
    pub fn places(&self) -> Vec<(String, String)> {
        let tree = |tree: usize| self.facts.hierarchy.trees.get(tree);
        self.trees().filter_map(tree).map(|tree| (tree.point.clone(), format!("{}{}", tree.point, self.path()))).collect()
    }

    /// Whether it is a v2 one.
    pub fn is_v2(&self) -> bool {
        self.v2()
    }

    fn v2(&self) -> bool {
        self.facts.hierarchy.version.is_v2()
    }

    /// The trees that have our directory.
    fn trees(&self) -> impl Iterator<Item = usize> + use<'_> {
        (0..self.facts.hierarchy.trees.len())
            .filter(|tree| u32::try_from(*tree).is_ok_and(|bit| self.present.checked_shr(bit).unwrap_or(0) & 1 == 1))
    }

    /// The tree in which a controller's files of ours are; `None` where we have none.
    fn tree(&self, controller: &str) -> Option<usize> {
        let found = if self.v2() { self.trees().next() } else { self.facts.hierarchy.tree_of(controller) };
        found.filter(|found| self.trees().any(|tree| tree == *found))
    }

    pub(super) fn open(&self, tree: usize, file: &str, flags: i32) -> io::Result<OwnedFd> {
        let parent = self.parent.dir(&self.facts, tree)?;
        fd::openat(parent.as_fd(), &cstring(format!("{}/{file}", self.leaf))?, flags | libc::O_NOFOLLOW, 0)
    }

    pub(super) fn directory(&self, tree: usize) -> io::Result<OwnedFd> {
        files::open_dir(self.parent.dir(&self.facts, tree)?.as_fd(), &self.leaf)
    }

    pub(super) fn parents_value(&self, tree: usize, file: &str) -> io::Result<String> {
        files::read(self.parent.dir(&self.facts, tree)?.as_fd(), file).map(|text| text.trim().to_owned())
    }

    /// The text of a controller's file; NotFound where that controller is not ours.
    pub fn read(&self, controller: &str, file: &str) -> io::Result<String> {
        let tree = self.tree(controller).ok_or(io::ErrorKind::NotFound)?;
        files::read(self.parent.dir(&self.facts, tree)?.as_fd(), &format!("{}/{file}", self.leaf))
    }

    fn write(&self, controller: &str, file: &str, text: &str) -> io::Result<()> {
        let tree = self.tree(controller).ok_or(io::ErrorKind::NotFound)?;
        files::write(self.parent.dir(&self.facts, tree)?.as_fd(), &format!("{}/{file}", self.leaf), text)
    }

    /// What a new process needs to enter. For an exec, `init` is the container's first process: on v2, a container that has made cgroups
    /// of its own can't be entered at its top, and the new process goes where that one is.
    pub fn join(&self, init: Option<process::Pid>) -> io::Result<Join> {
        if self.v2() {
            let tree = self.trees().next().ok_or(io::ErrorKind::NotFound)?;
            let directory = match init.and_then(|init| self.inner_directory(tree, init)) {
                Some(inner) => inner,
                None => self.directory(tree)?,
            };
            let file = fd::openat(directory.as_fd(), c"cgroup.procs", libc::O_WRONLY, 0)?;
            return Ok(Join { directory: Some(directory), files: vec![file] });
        }
        let name = |tree: usize| if self.facts.hierarchy.trees.get(tree).is_some_and(|tree| tree.v2) { "cgroup.procs" } else { "tasks" };
        let files = self.trees().map(|tree| self.open(tree, name(tree), libc::O_WRONLY)).collect::<io::Result<_>>()?;
        Ok(Join { directory: None, files })
    }

    /// The directory of `init`'s own cgroup below ours, when ours has children with controllers.
    fn inner_directory(&self, tree: usize, init: process::Pid) -> Option<OwnedFd> {
        if self.read("", "cgroup.subtree_control").ok()?.trim().is_empty() {
            return None;
        }
        let own = files::read(fd::AT_FDCWD, &format!("/proc/{init}/cgroup")).ok()?;
        let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        let below = path.strip_prefix(&self.path())?.strip_prefix('/')?;
        let ours = self.directory(tree).ok()?;
        // The container may rename and remove in there: resolved below our directory, links never followed.
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        fd::openat2(ours.as_fd(), &cstring(below).ok()?, flags, 0, fd::RESOLVE_BENEATH | fd::RESOLVE_NO_SYMLINKS).ok()
    }

    /// Changes the limits of a living container; on a refusal what was written is put back, and the error names the file.
    pub fn update(&mut self, old: &Resources, new: &Resources) -> Result<()> {
        let settings = limits::changes(self.v2(), &self.facts.support, old, new)?;
        let mut written: Vec<(&limits::Setting, String)> = Vec::new();
        for setting in &settings {
            let before = self.ready(setting.controller).and_then(|()| self.read(setting.controller, setting.file));
            let value = match (&setting.value, self.tree(setting.controller)) {
                (Some(value), _) => Ok(value.clone()),
                (None, Some(tree)) => self.parents_value(tree, setting.file),
                (None, None) => Err(io::ErrorKind::NotFound.into()),
            };
            let done = value.and_then(|value| self.write(setting.controller, setting.file, &value));
            if let Err(e) = done {
                for (undo, text) in written.iter().rev() {
                    let _ = self.write(undo.controller, undo.file, text.trim());
                }
                let value = setting.value.as_deref().unwrap_or_default();
                return Err(Error::system(format!("failed to write {value:?} to {}: {}", setting.file, strerror(&e))));
            }
            written.push((setting, before.unwrap_or_default()));
        }
        Ok(())
    }

    /// A v1 tree that the container was not put in at its start (cpuset) gets its directory and its processes now.
    fn ready(&mut self, controller: &'static str) -> io::Result<()> {
        if self.v2() || self.tree(controller).is_some() {
            return Ok(());
        }
        let tree = self.facts.hierarchy.tree_of(controller).ok_or(io::ErrorKind::NotFound)?;
        let parent = self.parent.dir(&self.facts, tree)?;
        files::ensure_dir(parent.as_fd(), &self.leaf)?;
        self.note_present(tree);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if controller == "cpuset" {
                self.write(controller, file, &self.parents_value(tree, file)?)?;
            }
        }
        // Processes that fork meanwhile are seen in the next round.
        for _ in 0..8 {
            let inside = files::read(parent.as_fd(), &format!("{}/cgroup.procs", self.leaf))?;
            let outside: Vec<process::Pid> =
                self.processes()?.into_iter().filter(|pid| !inside.lines().any(|line| line.parse() == Ok(*pid))).collect();
            if outside.is_empty() {
                break;
            }
            for pid in outside {
                match self.write(controller, "cgroup.procs", &pid.to_string()) {
                    Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Begins to freeze every process; [`is_frozen`](Self::is_frozen) tells when it is done.
    pub fn freeze(&self) -> io::Result<()> {
        if self.v2() { self.write("", "cgroup.freeze", "1") } else { self.write("freezer", "freezer.state", "FROZEN") }
    }

    /// Lets them run again; done when it returns.
    pub fn thaw(&self) -> io::Result<()> {
        if self.v2() { self.write("", "cgroup.freeze", "0") } else { self.write("freezer", "freezer.state", "THAWED") }
    }

    /// Whether all processes stand still. Ask again after some milliseconds when not; on v1 asking also pushes.
    pub fn is_frozen(&self) -> io::Result<bool> {
        if self.v2() {
            return Ok(files::keyed(&self.read("", "cgroup.events")?, "frozen") == Some(1));
        }
        let state = self.read("freezer", "freezer.state")?;
        if state.trim() == "FREEZING" {
            // A process that was forked while its parent froze can hang between the states until told again.
            self.freeze()?;
        }
        Ok(state.trim() == "FROZEN")
    }

    /// The processes in the cgroup and in those below it, as pids of the daemon's namespace, ascending.
    pub fn processes(&self) -> io::Result<Vec<process::Pid>> {
        let tree = self.tree("pids").or_else(|| self.trees().next()).ok_or(io::ErrorKind::NotFound)?;
        let mut pids = Vec::new();
        collect_processes(self.directory(tree)?.as_fd(), 0, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Whether any process, dead but not reaped included, is in it.
    pub fn is_populated(&self) -> io::Result<bool> {
        if self.v2() {
            return Ok(files::keyed(&self.read("", "cgroup.events")?, "populated") == Some(1));
        }
        self.processes().map(|pids| !pids.is_empty())
    }

    /// SIGKILL to every process, frozen ones included. On v1, and on v2 before Linux 5.14, a process that forks meanwhile can escape one
    /// call: call again until [`is_populated`](Self::is_populated) says no.
    pub fn kill_all(&self) -> io::Result<()> {
        if self.v2() {
            match self.write("", "cgroup.kill", "1") {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                done => return done,
            }
        }
        // A pid may have passed to a stranger since it was listed; who is still listed once its pidfd is open is ours.
        let held: Vec<(process::Pid, OwnedFd)> =
            self.processes()?.into_iter().filter_map(|pid| process::pidfd_open(pid).ok().map(|fd| (pid, fd))).collect();
        let still = self.processes()?;
        for (_, pidfd) in held.iter().filter(|(pid, _)| still.binary_search(pid).is_ok()) {
            match process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                _ => {}
            }
        }
        // A frozen process on v1 dies only when it is let go.
        if held.is_empty() { Ok(()) } else { self.thaw() }
    }

    /// Removes the directories. WouldBlock while a process is still in it (the kernel lets go of the dead with some delay), or when there
    /// is so much below that another turn is needed: call again later.
    pub fn remove(&mut self) -> io::Result<()> {
        let mut budget = REMOVALS_PER_TURN;
        for tree in self.trees().collect::<Vec<_>>() {
            let parent = match self.parent.dir(&self.facts, tree) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Err(_) => continue,
                Ok(parent) => parent,
            };
            remove_tree(parent.as_fd(), &self.leaf, &mut budget)?;
            self.present &= !u32::try_from(tree).ok().and_then(|tree| 1u32.checked_shl(tree)).unwrap_or(0);
        }
        Ok(())
    }

    /// How often the kernel has killed a process of this cgroup for lack of memory.
    pub fn oom_kills(&self) -> io::Result<u64> {
        let text = if self.v2() { self.read("memory", "memory.events") } else { self.read("memory", "memory.oom_control") };
        Ok(files::keyed(&text?, "oom_kill").unwrap_or(0))
    }

    /// Whether the kernel has killed since [`oom_kills`](Self::oom_kills) was `start`.
    pub fn oom_killed_since(&self, start: u64) -> bool {
        self.oom_kills().is_ok_and(|kills| kills > start)
    }

    /// A descriptor that tells of memory running out. Costs one open file; [`oom_kills`](Self::oom_kills) says what has happened.
    pub fn watch_oom(&self) -> io::Result<OomWatch> {
        let tree = self.tree("memory").ok_or(io::ErrorKind::NotFound)?;
        OomWatch::open(self.directory(tree)?.as_fd(), self.v2())
    }
}

/// Deeper than this no container's cgroups are followed; the kernel's own bound may be unlimited.
const MAX_DEPTH: usize = 64;

fn collect_processes(dir: BorrowedFd, depth: usize, pids: &mut Vec<process::Pid>) -> io::Result<()> {
    match files::read(dir, "cgroup.procs") {
        // Processes of another pid namespace's outside show as 0.
        Ok(list) => pids.extend(list.lines().filter_map(|line| line.parse::<process::Pid>().ok()).filter(|pid| *pid > 0)),
        // A threaded v2 cgroup has its processes listed at its domain's.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) || e.raw_os_error() == Some(libc::ENODEV) => {}
        Err(e) => return Err(e),
    }
    if depth < MAX_DEPTH {
        for name in files::subdirectories(dir, ".")? {
            // One that vanishes meanwhile had no process any more.
            if let Ok(inner) = files::open_dir(dir, &name) {
                collect_processes(inner.as_fd(), depth + 1, pids)?;
            }
        }
    }
    Ok(())
}

/// rmdir with what is below; `budget` bounds the number of directories.
pub(super) fn remove_tree(parent: BorrowedFd, leaf: &str, budget: &mut usize) -> io::Result<()> {
    remove_below(parent, leaf, 0, budget)
}

fn remove_below(parent: BorrowedFd, name: &str, depth: usize, budget: &mut usize) -> io::Result<()> {
    let path = cstring(name)?;
    for emptied in [false, true] {
        *budget = budget.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        match fs::unlinkat(parent, &path, libc::AT_REMOVEDIR) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && !emptied => {}
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => break,
            Err(e) => return Err(e),
        }
        let children = files::subdirectories(parent, name)?;
        if children.is_empty() || depth >= MAX_DEPTH {
            break;
        }
        let dir = files::open_dir(parent, name)?;
        for child in children {
            remove_below(dir.as_fd(), &child, depth + 1, budget)?;
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}
