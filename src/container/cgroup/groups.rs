//! The daemon's side of the cgroup trees: the directories that containers' cgroups lie in, and their making.

use super::files;
use super::group::{Cgroup, remove_tree};
use super::hierarchy::{DAEMON_LEAF, Hierarchy};
use super::plan::{Directory, Driver, Facts, Plan, clean_parent};
use super::support::Support;
use super::systemd;
use crate::error::{Error, Result, strerror};
use crate::sys::{bpf, cstring, fd, fs};
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// The v2 controllers that limits and numbers need.
const V2_CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// Parents that no container uses any more are forgotten beyond this many.
const IDLE_PARENTS: usize = 64;

/// All cgroups of this daemon.
pub struct Cgroups {
    facts: Rc<Facts>,
    parents: Vec<Rc<Parent>>,
}

/// A directory that containers' cgroups lie in, the same path in every tree. Its descriptors stay open: a start resolves no path.
#[derive(Debug)]
pub(super) struct Parent {
    pub path: String,
    /// By tree; opened when first needed.
    dirs: RefCell<Vec<Option<Rc<OwnedFd>>>>,
}

impl Cgroups {
    /// Looks at the host and, on v2, readies the parent's controllers. `parent`: the daemon's `--cgroup-parent`, or "".
    pub fn open(driver: Driver, parent: &str) -> Result<Cgroups> {
        let hierarchy = Hierarchy::detect()?;
        if driver == Driver::Systemd && !hierarchy.systemd {
            return Err(Error::invalid("systemd not running on this host, cannot use systemd cgroups manager"));
        }
        let parent = match (parent, driver) {
            ("", Driver::Cgroupfs) => "/docker",
            ("", Driver::Systemd) => "system.slice",
            (given, _) => given,
        };
        let path = match driver {
            Driver::Cgroupfs => format!("{}{}", hierarchy.base, clean_parent(parent)?),
            Driver::Systemd => systemd::slice_path(parent)?,
        };
        let facts = Facts { hierarchy, support: Support::default(), driver, parent: parent.to_owned() };
        let mut cgroups = Cgroups { facts: Rc::new(facts), parents: Vec::new() };
        let mut sample = None;
        if let Some(tree) = cgroups.v2_tree() {
            let ready = cgroups.parent(&path).dir(&cgroups.facts, tree);
            if driver == Driver::Cgroupfs {
                ready.map_err(|e| Error::io(format_args!("prepare cgroup {path}"), &e))?;
            }
            sample = cgroups.facts.hierarchy.trees.get(tree).map(|tree| format!("{}{path}", tree.point));
        }
        let support = Support::probe(&cgroups.facts.hierarchy, sample.as_deref());
        let facts = Facts { support, ..(*cgroups.facts).clone() };
        Ok(Cgroups { facts: Rc::new(facts), parents: cgroups.parents })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    fn v2_tree(&self) -> Option<usize> {
        self.facts.hierarchy.version.is_v2().then(|| self.facts.hierarchy.entered().first().copied()).flatten()
    }

    fn parent(&mut self, path: &str) -> Rc<Parent> {
        if let Some(parent) = self.parents.iter().find(|parent| parent.path == path) {
            return Rc::clone(parent);
        }
        if self.parents.len() >= IDLE_PARENTS {
            self.parents.retain(|parent| Rc::strong_count(parent) > 1);
        }
        let dirs = RefCell::new(vec![None; self.facts.hierarchy.trees.len()]);
        let parent = Rc::new(Parent { path: path.to_owned(), dirs });
        self.parents.push(Rc::clone(&parent));
        parent
    }

    /// The daemon's `--cpu-rt-period` and `--cpu-rt-runtime` (microseconds, 0 for none): v1 lets a cgroup give its children only as much
    /// realtime as it has itself, so that every level above the containers is given this.
    pub fn set_realtime(&mut self, period_us: i64, runtime_us: i64) -> Result<()> {
        let facts = Rc::clone(&self.facts);
        let (path, tree) = match (facts.driver, facts.hierarchy.tree_of("cpu")) {
            (Driver::Cgroupfs, Some(tree)) if !facts.hierarchy.version.is_v2() => (clean_parent(&facts.parent)?, tree),
            _ => return Ok(()),
        };
        let path = format!("{}{path}", facts.hierarchy.base);
        for (end, _) in path.match_indices('/').skip(1).chain([(path.len(), "")]).filter(|(end, _)| *end > 0) {
            let level = self.parent(path.get(..end).unwrap_or(&path));
            for (file, value) in [("cpu.rt_period_us", period_us), ("cpu.rt_runtime_us", runtime_us)] {
                let write = || files::write(level.dir(&facts, tree)?.as_fd(), file, &value.to_string());
                if value != 0 {
                    write().map_err(|e| Error::io(format_args!("write {file} of cgroup {}", level.path), &e))?;
                }
            }
        }
        Ok(())
    }

    /// Carries the plan out: makes the directories, writes the files, attaches the device program. On failure nothing of it is left.
    ///
    /// With the systemd driver the plan's scope must run already.
    pub fn create(&mut self, plan: &Plan) -> Result<Cgroup> {
        let parent = self.parent(&plan.parent);
        let mut cgroup = Cgroup::new(Rc::clone(&self.facts), parent, plan.leaf.clone());
        match make(&mut cgroup, plan) {
            Ok(()) => Ok(cgroup),
            Err(e) => {
                // What systemd made, systemd removes.
                if plan.scope.is_none() {
                    let _ = cgroup.remove();
                }
                Err(e)
            }
        }
    }

    /// Removes the parents that nothing is left in; for an orderly stop. Those of systemd are systemd's.
    pub fn remove_parents(&self) {
        if self.facts.driver == Driver::Systemd {
            return;
        }
        for parent in self.parents.iter().filter(|parent| !parent.path.is_empty() && parent.path != self.facts.hierarchy.base) {
            for tree in &self.facts.hierarchy.trees {
                // A directory that is still used refuses, and that is right.
                if let Ok(place) = cstring(format!("{}{}", tree.point, parent.path)) {
                    let _ = fs::unlinkat(fd::AT_FDCWD, &place, libc::AT_REMOVEDIR);
                }
            }
        }
    }

    /// Finds a container's cgroup again after a restart of the daemon, by [`Plan::path`]; `None` when no tree has it any more.
    pub fn reopen(&mut self, path: &str) -> Result<Option<Cgroup>> {
        let (parent, leaf) = path.rsplit_once('/').filter(|(_, leaf)| !leaf.is_empty()).ok_or_else(|| Error::system("bad cgroup path"))?;
        clean_parent(path)?;
        let mut cgroup = Cgroup::new(Rc::clone(&self.facts), Rc::new(Parent::closed(parent, &self.facts)), leaf.to_owned());
        for (index, tree) in self.facts.hierarchy.trees.iter().enumerate() {
            let place = cstring(format!("{}{path}", tree.point)).map_err(|e| Error::io("open cgroup", &e))?;
            if fs::fstatat(fd::AT_FDCWD, &place, libc::AT_SYMLINK_NOFOLLOW).is_ok_and(|meta| meta.st_mode & libc::S_IFMT == libc::S_IFDIR) {
                cgroup.note_present(index);
            }
        }
        if !cgroup.is_present() {
            return Ok(None);
        }
        let parent = self.parent(parent);
        Ok(Some(cgroup.in_parent(parent)))
    }
}

/// The steps of [`Cgroups::create`], tree by tree.
fn make(cgroup: &mut Cgroup, plan: &Plan) -> Result<()> {
    for directory in &plan.directories {
        let failed =
            |step: &str, e: &io::Error| Error::system(format!("cgroup {}{}: {step}: {}", directory.point, plan.path(), strerror(e)));
        make_directory(cgroup, directory, plan.scope.is_some()).map_err(|e| failed("mkdir", &e))?;
        cgroup.note_present(directory.tree);
        // The device list is a dozen lines for one file: it is opened once.
        let mut open: Option<(&str, OwnedFd)> = None;
        for write in &directory.writes {
            let step = format!("write {}", write.file);
            let value = match &write.value {
                Some(value) => value.clone(),
                None => cgroup.parents_value(directory.tree, write.file).map_err(|e| failed(&step, &e))?,
            };
            if open.as_ref().is_none_or(|(name, _)| *name != write.file) {
                let file = cgroup.open(directory.tree, write.file, libc::O_WRONLY).map_err(|e| failed(&step, &e))?;
                open = Some((write.file, file));
            }
            if let Some((_, file)) = &open {
                fd::write(file.as_fd(), value.as_bytes()).map_err(|e| failed(&format!("{step} {value}"), &e))?;
            }
        }
    }
    if let (Some(program), Some(directory)) = (&plan.program, plan.directories.first()) {
        // Without it every device would be open: there is no start without it.
        let attach = || {
            let loaded = bpf::prog_load_device(program)?;
            bpf::prog_attach_device(cgroup.directory(directory.tree)?.as_fd(), loaded.as_fd(), bpf::BPF_F_ALLOW_MULTI)
        };
        attach().map_err(|e| Error::system(format!("cgroup {}: attach device program: {}", plan.path(), strerror(&e))))?;
    }
    Ok(())
}

/// mkdir in one tree. A directory left by an earlier life gives way, so that no limit or count of then is inherited.
fn make_directory(cgroup: &Cgroup, directory: &Directory, shared: bool) -> io::Result<()> {
    let leaf = cstring(cgroup.leaf())?;
    for attempt in 0..3 {
        let parent = cgroup.parent().dir(cgroup.facts(), directory.tree)?;
        match fs::mkdirat(parent.as_fd(), &leaf, 0o755) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && shared => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 2 => remove_left_over(&parent, cgroup.leaf())?,
            // Somebody has removed the parent behind our back; its descriptor is a dead one.
            Err(e) if e.kind() == io::ErrorKind::NotFound && attempt < 2 => cgroup.parent().forget(directory.tree),
            done => return done,
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// The last process of the container's previous run may still be on its way out of a processor: that takes microseconds, so it is given
/// some. What is still busy then holds a living process.
fn remove_left_over(parent: &OwnedFd, leaf: &str) -> io::Result<()> {
    for _ in 0..20 {
        match remove_tree(parent.as_fd(), leaf, &mut 64) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            done => return done,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

impl Parent {
    fn closed(path: &str, facts: &Facts) -> Parent {
        Parent { path: path.to_owned(), dirs: RefCell::new(vec![None; facts.hierarchy.trees.len()]) }
    }

    /// The directory in one tree, made when missing.
    pub fn dir(&self, facts: &Facts, tree: usize) -> io::Result<Rc<OwnedFd>> {
        if let Some(Some(open)) = self.dirs.borrow().get(tree) {
            return Ok(Rc::clone(open));
        }
        let place = facts.hierarchy.trees.get(tree).ok_or(io::ErrorKind::NotFound)?;
        let mut dir = files::open_dir(fd::AT_FDCWD, &place.point)?;
        // What systemd drives, it also gives controllers to, as the scopes' properties ask.
        let ours = facts.hierarchy.version.is_v2() && facts.driver == Driver::Cgroupfs;
        if ours {
            enable_controllers(&dir, "", facts)?;
        }
        let mut walked = String::new();
        for part in self.path.split('/').filter(|part| !part.is_empty()) {
            files::ensure_dir(dir.as_fd(), part)?;
            let next = files::open_dir(dir.as_fd(), part)?;
            walked.push('/');
            walked.push_str(part);
            if place.has("cpuset") && !place.v2 {
                inherit_cpuset(&dir, &next)?;
            }
            if ours {
                enable_controllers(&next, &walked, facts)?;
            }
            dir = next;
        }
        let dir = Rc::new(dir);
        if let Some(slot) = self.dirs.borrow_mut().get_mut(tree) {
            *slot = Some(Rc::clone(&dir));
        }
        Ok(dir)
    }

    fn forget(&self, tree: usize) {
        if let Some(slot) = self.dirs.borrow_mut().get_mut(tree) {
            *slot = None;
        }
    }
}

/// A new v1 cpuset is empty and its children can be given nothing: it takes what its parent has.
fn inherit_cpuset(parent: &OwnedFd, child: &OwnedFd) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if files::read(child.as_fd(), file)?.trim().is_empty() {
            files::write(child.as_fd(), file, files::read(parent.as_fd(), file)?.trim())?;
        }
    }
    Ok(())
}

/// Lets the children of a v2 cgroup have the controllers that it has itself. `path` is its place below the mount point.
///
/// Above the cgroup that is our own, what can't be had is left: others decide there.
fn enable_controllers(dir: &OwnedFd, path: &str, facts: &Facts) -> io::Result<()> {
    let offered = files::read(dir.as_fd(), "cgroup.controllers")?;
    let enabled = files::read(dir.as_fd(), "cgroup.subtree_control")?;
    let has = |list: &str, name: &str| list.split_whitespace().any(|had| had == name);
    let wanted: Vec<String> =
        V2_CONTROLLERS.iter().filter(|name| has(&offered, name) && !has(&enabled, name)).map(|name| format!("+{name}")).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let base = facts.hierarchy.base.as_str();
    let enable = |text: &str| files::write(dir.as_fd(), "cgroup.subtree_control", text);
    let mut done = enable(&wanted.join(" "));
    // Only in the cgroup that was given to us are the processes ours to move; a parent that a client names may be another container's.
    if path == base && done.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY)) {
        move_processes_down(dir)?;
        done = enable(&wanted.join(" "));
    }
    if done.is_err() {
        // One controller may refuse alone (cpu, while realtime processes run): the others are still worth having.
        let enabled = wanted.iter().filter(|name| enable(name).is_ok()).count();
        if enabled == 0 && path.len() >= base.len() {
            return done;
        }
    }
    Ok(())
}

/// A v2 cgroup whose children have controllers may hold no process itself (cgroup-v2.rst, "No Internal Process Constraint"): those in it,
/// which is the daemon and what was started with it, go into a leaf.
fn move_processes_down(dir: &OwnedFd) -> io::Result<()> {
    let leaf = DAEMON_LEAF.trim_start_matches('/');
    files::ensure_dir(dir.as_fd(), leaf)?;
    let leaf = files::open_dir(dir.as_fd(), leaf)?;
    // A process that forks while we read is seen in the next round.
    for _ in 0..8 {
        let list = files::read(dir.as_fd(), "cgroup.procs")?;
        if list.trim().is_empty() {
            break;
        }
        for pid in list.lines() {
            match files::write(leaf.as_fd(), "cgroup.procs", pid) {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}
