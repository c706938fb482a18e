//! Where cgroups are on this host: the version, the mounted trees and their controllers, and our own place in them.
//!
//! Read once when the daemon starts, from `/proc/self/mountinfo` and `/proc/self/cgroup` (proc(5), cgroups(7)).

use crate::error::{Error, Result};
use crate::sys;
use std::fs;
use std::os::fd::AsFd;

/// Which kernel interface holds the resource controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Controllers in v1 trees only.
    V1,
    /// Controllers in v1 trees, and a v2 tree without controllers beside them.
    Hybrid,
    /// One v2 tree with all controllers.
    V2,
}

impl Version {
    pub fn is_v2(self) -> bool {
        self == Version::V2
    }

    /// `/info`'s CgroupVersion.
    pub fn number(self) -> &'static str {
        if self.is_v2() { "2" } else { "1" }
    }
}

/// One mounted cgroup tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// v1: what the tree was mounted with ("cpu", "cpuacct", "name=systemd"). v2: the controllers that the tree's top offers.
    pub controllers: Vec<String>,
    /// The mount point, without a slash at its end.
    pub point: String,
    /// The daemon's own cgroup, as a path below the mount point: "" or "/system.slice/coracle.service".
    pub own: String,
    pub v2: bool,
}

impl Tree {
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// All that is known of the host's cgroup mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub version: Version,
    /// v1 trees in the order of `mountinfo`; the v2 tree, if any, last.
    pub trees: Vec<Tree>,
    /// What our cgroups hang from in every tree: "" (the tree's top), or our own cgroup where it was delegated to us.
    pub base: String,
    /// systemd is PID 1 and watches the trees without controllers.
    pub systemd: bool,
}

/// The controllers whose v1 trees a container gets a cgroup in.
///
/// `cpuset` is left out: it gets a directory only where a limit asks for it, as nothing reads it otherwise.
/// Trees that Docker's API has neither limit nor number for (net_cls, net_prio, perf_event, hugetlb, rdma, misc) are not entered.
pub const CONTROLLERS: [&str; 7] = ["memory", "cpu", "cpuacct", "pids", "blkio", "devices", "freezer"];

/// Where the daemon moves on v2 when its own cgroup is to have children with controllers: such a cgroup may hold no process.
pub(super) const DAEMON_LEAF: &str = "/coracle-daemon";

impl Hierarchy {
    /// Reads the host's mounts. A host without any cgroup mount is refused: containers could be neither limited nor fenced from devices.
    pub fn detect() -> Result<Hierarchy> {
        let read = |path: &str| fs::read_to_string(path).map_err(|e| Error::io(format_args!("read {path}"), &e));
        let mut hierarchy = Hierarchy::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?;
        hierarchy.systemd = fs::symlink_metadata("/run/systemd/system").is_ok_and(|m| m.is_dir());
        for tree in hierarchy.trees.iter_mut().filter(|tree| tree.v2) {
            let offered = fs::read_to_string(format!("{}/cgroup.controllers", tree.point)).unwrap_or_default();
            tree.controllers = offered.split_whitespace().map(str::to_owned).collect();
        }
        if let Some(base) = hierarchy.trees.iter().find_map(delegated) {
            hierarchy.base = base;
        }
        Ok(hierarchy)
    }

    /// The pure half of [`detect`](Self::detect): v2 controllers, delegation and systemd are not in these texts.
    pub fn parse(mountinfo: &str, own: &str) -> Result<Hierarchy> {
        let own: Vec<(&str, &str)> = own.lines().filter_map(own_cgroup).collect();
        let known = |option: &str| own.iter().any(|(controllers, _)| controllers.split(',').any(|name| name == option));
        let mut trees: Vec<Tree> = Vec::new();
        let mut unified: Option<Tree> = None;
        for mount in mountinfo.lines().filter_map(cgroup_mount) {
            let controllers: Vec<String> =
                mount.options.split(',').filter(|option| !mount.v2 && known(option)).map(str::to_owned).collect();
            let place = own.iter().find(|(list, _)| match controllers.first() {
                Some(first) => list.split(',').any(|name| name == first),
                None => list.is_empty(),
            });
            let place = place.map_or("/", |(_, path)| *path);
            let tree = Tree { controllers, own: below(&mount.root, place), point: mount.point, v2: mount.v2 };
            let seen = if tree.v2 { unified.as_mut() } else { trees.iter_mut().find(|t| t.controllers == tree.controllers) };
            match seen {
                // A second mount of one tree (in some container's root) gives way to the usual place.
                Some(seen) if !seen.point.starts_with("/sys/fs/cgroup") && tree.point.starts_with("/sys/fs/cgroup") => *seen = tree,
                Some(_) => {}
                None if tree.v2 => unified = Some(tree),
                None if tree.controllers.is_empty() => {}
                None => trees.push(tree),
            }
        }
        let v1 = trees.iter().any(|tree| !tree.controllers.iter().all(|name| name.starts_with("name=")));
        let version = match (v1, unified.is_some()) {
            (true, false) => Version::V1,
            (true, true) => Version::Hybrid,
            (false, true) => Version::V2,
            (false, false) => return Err(Error::system("Devices cgroup isn't mounted")),
        };
        trees.extend(unified);
        Ok(Hierarchy { version, trees, base: String::new(), systemd: false })
    }

    /// The index of the tree that holds a controller; on v2 the one tree, if it offers the controller.
    pub fn tree_of(&self, controller: &str) -> Option<usize> {
        // In hybrid mode a controller may sit on v2 only (hugetlb, misc): those are none that we drive.
        self.trees.iter().position(|tree| tree.v2 == self.version.is_v2() && tree.has(controller))
    }

    /// The trees that every container enters: the indexes, each once.
    pub fn entered(&self) -> Vec<usize> {
        if self.version.is_v2() {
            return self.trees.iter().position(|tree| tree.v2).into_iter().collect();
        }
        let mut entered: Vec<usize> = Vec::new();
        for index in CONTROLLERS.iter().filter_map(|controller| self.tree_of(controller)) {
            if !entered.contains(&index) {
                entered.push(index);
            }
        }
        // systemd takes processes outside these two trees for the daemon's own, and kills them when it stops the unit.
        let watched = |tree: &Tree| self.systemd && (tree.has("name=systemd") || tree.v2);
        entered.extend((0..self.trees.len()).filter(|i| watched(&self.trees[*i])));
        entered
    }
}

/// One line of `/proc/self/cgroup`: the controllers (empty for v2) and the path.
fn own_cgroup(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once(':')?;
    rest.split_once(':')
}

struct Mount {
    root: String,
    point: String,
    options: String,
    v2: bool,
}

/// One line of `mountinfo`, if it is a cgroup mount.
fn cgroup_mount(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let mut tail = tail.split(' ');
    let v2 = match tail.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options = tail.nth(1).unwrap_or_default().to_owned();
    let mut head = head.split(' ').skip(3);
    let root = unescape(head.next()?);
    let point = unescape(head.next()?);
    Some(Mount { root, point: point.trim_end_matches('/').to_owned(), options, v2 })
}

/// mountinfo writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// `path` as seen below a mount whose root is `root`; "" when it is the root itself or lies outside.
fn below(root: &str, path: &str) -> String {
    let rest = if root == "/" { path } else { path.strip_prefix(root).unwrap_or("") };
    let outside = !rest.starts_with('/') || rest.split('/').any(|part| part == "..");
    if outside || rest == "/" { String::new() } else { rest.to_owned() }
}

/// The cgroup that systemd handed over with `Delegate=`, which it marks by an extended attribute ("trusted.", since v251 also "user.").
fn delegated(tree: &Tree) -> Option<String> {
    if tree.own.is_empty() || !(tree.v2 || tree.has("name=systemd")) {
        return None;
    }
    // A daemon that replaces itself starts in the leaf into which it moved before.
    let own = tree.own.strip_suffix(DAEMON_LEAF).filter(|above| !above.is_empty()).unwrap_or(&tree.own);
    let dir = fs::File::open(format!("{}{own}", tree.point)).ok()?;
    let marked = |name| sys::fs::fgetxattr(dir.as_fd(), name).is_ok_and(|value| value == b"1");
    (marked(c"trusted.delegate") || marked(c"user.delegate")).then(|| own.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const V1_MOUNTS: &str = "\
23 28 0:21 / /sys rw,nosuid - sysfs sysfs rw
30 23 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
33 30 0:29 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
34 30 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
35 30 0:31 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
36 30 0:32 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
37 30 0:33 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
38 30 0:34 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
39 30 0:35 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
";
    pub(crate) const V1_OWN: &str = "\
9:name=systemd:/
8:pids:/
7:blkio:/
6:freezer:/
5:devices:/
4:memory:/agent/box
3:cpuset:/
2:cpuacct:/
1:cpu:/
";
    const HYBRID_MOUNTS: &str = "\
25 30 0:22 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
27 25 0:24 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
28 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
29 25 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:16 - cgroup cgroup rw,memory
31 25 0:30 / /sys/fs/cgroup/net_cls,net_prio rw,nosuid shared:17 - cgroup cgroup rw,net_cls,net_prio
";
    const HYBRID_OWN: &str = "\
12:net_cls,net_prio:/
5:memory:/system.slice/coracle.service
4:cpu,cpuacct:/system.slice/coracle.service
1:name=systemd:/system.slice/coracle.service
0::/system.slice/coracle.service
";
    pub(crate) const V2_MOUNTS: &str = "24 23 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn v1_trees_are_found_with_our_own_place() {
        let found = Hierarchy::parse(V1_MOUNTS, V1_OWN).unwrap();
        assert_eq!((found.version, found.trees.len()), (Version::V1, 9));
        let memory = &found.trees[found.tree_of("memory").unwrap()];
        assert_eq!((memory.point.as_str(), memory.own.as_str()), ("/sys/fs/cgroup/memory", "/agent/box"));
        assert_eq!(found.entered().len(), 7, "no cpuset, and no systemd tree where systemd does not run");
    }

    #[test]
    fn hybrid_enters_joined_controllers_once_and_both_of_systemds_trees() {
        let mut found = Hierarchy::parse(HYBRID_MOUNTS, HYBRID_OWN).unwrap();
        assert_eq!(found.version, Version::Hybrid);
        assert_eq!(found.tree_of("cpu"), found.tree_of("cpuacct"));
        let points = |found: &Hierarchy| found.entered().iter().map(|i| found.trees[*i].point.clone()).collect::<Vec<_>>();
        assert_eq!(points(&found), ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct"]);
        found.systemd = true;
        assert_eq!(points(&found)[2..], ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"]);
        assert_eq!(found.trees[found.tree_of("cpu").unwrap()].own, "/system.slice/coracle.service");
    }

    #[test]
    fn v2_has_one_tree() {
        let found = Hierarchy::parse(V2_MOUNTS, "0::/user.slice\n").unwrap();
        assert_eq!((found.version, found.entered()), (Version::V2, vec![0]));
        assert_eq!(found.trees[0].own, "/user.slice");
    }

    #[test]
    fn inside_a_container_our_place_is_relative_to_the_mount() {
        let mounts = "34 30 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let found = Hierarchy::parse(mounts, "4:memory:/docker/abc\n").unwrap();
        assert_eq!(found.trees[0].own, "");
        let found = Hierarchy::parse(mounts, "4:memory:/docker/abc/inner\n").unwrap();
        assert_eq!(found.trees[0].own, "/inner");
    }

    #[test]
    fn a_second_mount_of_a_tree_gives_way_to_the_usual_place() {
        let mounts = "9 1 0:30 / /var/lib/x/sys\\040cg/memory ro - cgroup cgroup rw,memory\n34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = Hierarchy::parse(mounts, "4:memory:/\n").unwrap();
        assert_eq!((found.trees.len(), found.trees[0].point.as_str()), (1, "/sys/fs/cgroup/memory"));
        assert_eq!(unescape("/sys\\040cg\\134\\x"), "/sys cg\\\\x");
    }

    #[test]
    fn a_host_without_cgroups_is_refused() {
        assert!(Hierarchy::parse("23 28 0:21 / /sys rw - sysfs sysfs rw\n", "").is_err());
    }
}
