//! What a container's start does to the cgroup trees, as plain data: directories, then files and values, then the device program.
//!
//! The plan decides everything and touches nothing; [`Cgroups::create`](super::Cgroups::create) carries it out.

use super::devices::Devices;
use super::hierarchy::Hierarchy;
use super::limits::{self, Numbers};
use super::program;
use super::support::Support;
use super::systemd::{self, Scope};
use crate::container::config::Resources;
use crate::error::{Error, Result};
use crate::sys::bpf::Instruction;
use std::fmt;

/// Who makes a container's cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// The daemon, by mkdir.
    Cgroupfs,
    /// systemd, as transient scopes.
    Systemd,
}

impl Driver {
    /// `native.cgroupdriver`'s value; the reference's words for others.
    pub fn parse(name: &str) -> Result<Driver> {
        match name {
            "" | "cgroupfs" => Ok(Driver::Cgroupfs),
            "systemd" => Ok(Driver::Systemd),
            "none" => Err(Error::invalid("native.cgroupdriver option none is internally used and cannot be specified manually")),
            other => Err(Error::invalid(format!("native.cgroupdriver option {other} not supported"))),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Driver::Cgroupfs => "cgroupfs",
            Driver::Systemd => "systemd",
        }
    }
}

/// What plans are made from: the host as found at the daemon's start, and the daemon's settings.
#[derive(Clone, Debug)]
pub struct Facts {
    pub hierarchy: Hierarchy,
    pub support: Support,
    pub driver: Driver,
    /// Where containers without a CgroupParent go: "/docker" or "system.slice", or the daemon's `--cgroup-parent`.
    pub parent: String,
}

/// Everything a start does to cgroups. Printable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The directory that the container's own lies in, below every mount point ("/docker").
    pub parent: String,
    /// The container's own directory's name.
    pub leaf: String,
    pub directories: Vec<Directory>,
    /// v2: what answers for devices; `None` allows all (privileged), and on v1.
    pub program: Option<Vec<Instruction>>,
    /// With the systemd driver: the unit that must run, holding some process, before [`super::Cgroups::create`].
    pub scope: Option<Scope>,
}

/// One directory to make, and its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Index into [`Hierarchy::trees`].
    pub tree: usize,
    pub point: String,
    pub writes: Vec<Write>,
}

/// One write. `None` copies the parent's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub file: &'static str,
    pub value: Option<String>,
}

impl Plan {
    /// The container's path below every mount point; kept with the container's state for [`super::Cgroups::reopen`].
    pub fn path(&self) -> String {
        format!("{}/{}", self.parent, self.leaf)
    }
}

/// Makes the plan for one container's start.
///
/// `resources` has passed [`super::validate::resources`]; `devices` comes from [`super::devices::gather`].
pub fn plan(facts: &Facts, id: &str, resources: &Resources, devices: &Devices, numbers: Numbers) -> Result<Plan> {
    let hierarchy = &facts.hierarchy;
    let v2 = hierarchy.version.is_v2();
    let asked = if resources.cgroup_parent.is_empty() { &facts.parent } else { &resources.cgroup_parent };
    let (parent, leaf) = match facts.driver {
        Driver::Cgroupfs => (format!("{}{}", hierarchy.base, clean_parent(asked)?), id.to_owned()),
        Driver::Systemd => (systemd::slice_path(asked)?, format!("docker-{id}.scope")),
    };
    let mut directories: Vec<Directory> = hierarchy.entered().into_iter().map(|tree| directory(hierarchy, tree)).collect();
    let mut program = None;
    if let Devices::Only(exceptions) = devices {
        if v2 {
            program = Some(program::compile(exceptions));
        } else {
            let lines =
                directory_for(hierarchy, &mut directories, "devices").ok_or_else(|| Error::system("Devices cgroup isn't mounted"))?;
            lines.push(Write { file: "devices.deny", value: Some("a".to_owned()) });
            lines.extend(exceptions.iter().map(|rule| Write { file: "devices.allow", value: Some(rule.to_string()) }));
        }
    }
    let settings = limits::initial(v2, &facts.support, resources, numbers)?;
    for setting in &settings {
        // Validation has discarded what no tree here can do.
        if let Some(writes) = directory_for(hierarchy, &mut directories, setting.controller) {
            writes.push(Write { file: setting.file, value: setting.value.clone() });
        }
    }
    let scope = match facts.driver {
        Driver::Cgroupfs => None,
        Driver::Systemd => Some(Scope::new(id, asked, v2, resources)),
    };
    Ok(Plan { parent, leaf, directories, program, scope })
}

fn directory(hierarchy: &Hierarchy, tree: usize) -> Directory {
    let point = hierarchy.trees.get(tree).map(|tree| tree.point.clone()).unwrap_or_default();
    Directory { tree, point, writes: Vec::new() }
}

/// The writes of the directory in a controller's tree, which is added to the plan if it is not there yet (cpuset).
fn directory_for<'a>(hierarchy: &Hierarchy, directories: &'a mut Vec<Directory>, controller: &str) -> Option<&'a mut Vec<Write>> {
    let tree = hierarchy.tree_of(controller)?;
    let at = directories.iter().position(|directory| directory.tree == tree).unwrap_or_else(|| {
        directories.push(directory(hierarchy, tree));
        directories.len() - 1
    });
    directories.get_mut(at).map(|directory| &mut directory.writes)
}

/// A cgroupfs parent as a clean path from the top: "" for "/", "/a/b" for "a//b/". `..` and control characters are refused.
pub fn clean_parent(text: &str) -> Result<String> {
    let bad = |why: &str| Error::invalid(format!("invalid cgroup parent {text:?}: {why}"));
    if text.chars().any(char::is_control) {
        return Err(bad("control characters are not allowed"));
    }
    let mut path = String::new();
    for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." || part.len() > 255 {
            return Err(bad("must be a path below the cgroup root"));
        }
        path.push('/');
        path.push_str(part);
    }
    // The container's id and the file names come behind it, within PATH_MAX.
    if path.len() > 2048 { Err(bad("too long")) } else { Ok(path) }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(scope) = &self.scope {
            writeln!(f, "{scope}")?;
        }
        for directory in &self.directories {
            writeln!(f, "mkdir {}{}", directory.point, self.path())?;
            for write in &directory.writes {
                writeln!(f, "write {} {}", write.file, write.value.as_deref().unwrap_or("(as the parent)"))?;
            }
        }
        match &self.program {
            Some(program) => writeln!(f, "attach device program of {} instructions", program.len()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hierarchy::tests::{V1_MOUNTS, V1_OWN, V2_MOUNTS};
    use super::*;

    fn facts(v2: bool) -> Facts {
        let mut hierarchy = if v2 { Hierarchy::parse(V2_MOUNTS, "0::/\n") } else { Hierarchy::parse(V1_MOUNTS, V1_OWN) }.unwrap();
        if v2 {
            hierarchy.trees[0].controllers = ["cpuset", "cpu", "io", "memory", "pids"].map(str::to_owned).to_vec();
        }
        let support = Support { swap_limit: true, ..Support::default() };
        Facts { hierarchy, support, driver: Driver::Cgroupfs, parent: "/docker".into() }
    }

    #[allow(clippy::unnecessary_wraps)] // the type of `Numbers`
    fn numbers(_: &str) -> Result<(u32, u32)> {
        Ok((8, 0))
    }

    #[test]
    fn v1_plan_prints_every_call() {
        let resources =
            Resources { memory: 1 << 26, memory_swap: 1 << 27, pids_limit: Some(5), cpuset_cpus: "0".into(), ..Resources::default() };
        let plan = plan(&facts(false), "abc", &resources, &Devices::with(&[]), &numbers).unwrap();
        let text = plan.to_string();
        assert_eq!(text.matches("mkdir ").count(), 8);
        assert!(
            text.starts_with("mkdir /sys/fs/cgroup/memory/docker/abc\nwrite memory.limit_in_bytes 67108864\nwrite memory.memsw"),
            "{text}"
        );
        assert!(text.contains("mkdir /sys/fs/cgroup/devices/docker/abc\nwrite devices.deny a\nwrite devices.allow c *:* m\n"), "{text}");
        assert!(text.contains("write cpuset.cpus 0\nwrite cpuset.mems (as the parent)\n"), "{text}");
        assert!(plan.program.is_none());
    }

    #[test]
    fn without_limits_only_directories_and_devices_remain() {
        let plain = plan(&facts(false), "abc", &Resources::default(), &Devices::with(&[]), &numbers).unwrap();
        assert_eq!(plain.directories.len(), 7, "no cpuset");
        assert_eq!(plain.directories.iter().map(|d| d.writes.len()).sum::<usize>(), 12);
        let privileged = plan(&facts(false), "abc", &Resources::default(), &Devices::All, &numbers).unwrap();
        assert!(privileged.directories.iter().all(|d| d.writes.is_empty()));
    }

    #[test]
    fn v2_plan_is_one_directory_and_a_program() {
        let resources = Resources { nano_cpus: 500_000_000, ..Resources::default() };
        let plan = plan(&facts(true), "abc", &resources, &Devices::with(&[]), &numbers).unwrap();
        let expected = "mkdir /sys/fs/cgroup/docker/abc\nwrite cpu.max 50000 100000\nattach device program of ";
        assert!(plan.to_string().starts_with(expected), "{plan}");
    }

    #[test]
    fn a_delegated_base_and_the_parent_lead_the_path() {
        let mut facts = facts(true);
        facts.hierarchy.base = "/system.slice/coracle.service".into();
        let resources = Resources { cgroup_parent: "web/a".into(), ..Resources::default() };
        let plan = plan(&facts, "abc", &resources, &Devices::All, &numbers).unwrap();
        assert_eq!(plan.path(), "/system.slice/coracle.service/web/a/abc");
    }

    #[test]
    fn parents_are_cleaned_and_never_climb() {
        for (text, path) in [("/docker", "/docker"), ("docker/", "/docker"), ("/a//./b", "/a/b"), ("/", ""), ("/a..b", "/a..b")] {
            assert_eq!(clean_parent(text).unwrap(), path);
        }
        for text in ["..", "/a/../../b", "a/..", "/a\nb", "/a\0b"] {
            assert!(clean_parent(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn without_a_devices_tree_nothing_starts() {
        let mut facts = facts(false);
        facts.hierarchy.trees.retain(|tree| !tree.has("devices"));
        let refused = plan(&facts, "abc", &Resources::default(), &Devices::with(&[]), &numbers).unwrap_err();
        assert_eq!(refused.message, "Devices cgroup isn't mounted");
    }
}
