//! Which devices a container may touch: the default list, `--device`, `--device-cgroup-rule`, and the lines for the v1 tree.

use crate::container::config::{DeviceMapping, HostConfig};
use crate::error::{Error, Result, strerror};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// Every device; the rule's numbers and access are ignored, as the kernel does.
    All,
    Char,
    Block,
}

/// Access bits, as in the kernel's `BPF_DEVCG_ACC_*`.
pub const MKNOD: u8 = 1;
pub const READ: u8 = 2;
pub const WRITE: u8 = 4;

/// One rule of the device list; later rules win over earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub kind: Kind,
    /// `None` is any number.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// A sum of [`MKNOD`], [`READ`], [`WRITE`].
    pub access: u8,
}

/// A container's device list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Privileged: nothing is denied.
    All,
    /// Everything is denied but what these exceptions allow; no two of them differ in access alone.
    Only(Vec<Rule>),
}

const fn allowed(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule { allow: true, kind, major, minor, access }
}

/// What every container may use; the reference's list without its denial of fuse, which is denied here by not being listed.
/// Nodes of any kind may be made (`m`) so that images can be unpacked, but not opened.
const DEFAULT: [Rule; 11] = [
    allowed(Kind::Char, None, None, MKNOD),
    allowed(Kind::Block, None, None, MKNOD),
    allowed(Kind::Char, Some(1), Some(3), MKNOD | READ | WRITE), // null
    allowed(Kind::Char, Some(1), Some(5), MKNOD | READ | WRITE), // zero
    allowed(Kind::Char, Some(1), Some(7), MKNOD | READ | WRITE), // full
    allowed(Kind::Char, Some(1), Some(8), MKNOD | READ | WRITE), // random
    allowed(Kind::Char, Some(1), Some(9), MKNOD | READ | WRITE), // urandom
    allowed(Kind::Char, Some(5), Some(0), MKNOD | READ | WRITE), // tty
    allowed(Kind::Char, Some(5), Some(1), MKNOD | READ | WRITE), // console
    allowed(Kind::Char, Some(5), Some(2), MKNOD | READ | WRITE), // ptmx
    allowed(Kind::Char, Some(136), None, MKNOD | READ | WRITE),  // pts/*
];

impl Devices {
    /// The default list, then `rules` in their order. Rules that can't be told apart but by access are merged.
    pub fn with(rules: &[Rule]) -> Devices {
        let mut list: Vec<Rule> = Vec::with_capacity(DEFAULT.len() + rules.len());
        for rule in DEFAULT.iter().chain(rules) {
            if rule.kind == Kind::All {
                if rule.allow {
                    return Devices::All;
                }
                list.clear();
                continue;
            }
            // The kernel too keeps a list of exceptions to "deny all": a denial takes bits from the equal exception.
            let same = list.iter_mut().find(|had| (had.kind, had.major, had.minor) == (rule.kind, rule.major, rule.minor));
            match (same, rule.allow) {
                (Some(had), true) => had.access |= rule.access,
                (Some(had), false) => had.access &= !rule.access,
                (None, true) => list.push(*rule),
                (None, false) => {}
            }
        }
        list.retain(|rule| rule.access != 0);
        Devices::Only(list)
    }
}

impl fmt::Display for Rule {
    /// The line that `devices.allow` and `devices.deny` take: "c 1:3 rwm".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::All => return f.write_str("a"),
            Kind::Char => 'c',
            Kind::Block => 'b',
        };
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')].iter().filter(|(bit, _)| self.access & bit != 0).try_for_each(|(_, c)| write!(f, "{c}"))
    }
}

/// Reads one `DeviceCgroupRules` entry: `type major:minor access`, with `*` for any number. The reference's words.
pub fn parse_rule(text: &str) -> Result<Rule> {
    let bad = || Error::invalid(format!("invalid device cgroup rule format: '{text}'"));
    let mut parts = text.split(' ');
    let (Some(kind), Some(numbers), Some(access), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(bad());
    };
    let kind = match kind {
        "a" => Kind::All,
        "b" => Kind::Block,
        "c" => Kind::Char,
        _ => return Err(bad()),
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(bad)?;
    let number = |which: &str, digits: &str| match digits {
        "*" => Ok(None),
        _ if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) => Err(bad()),
        _ => digits.parse().map(Some).map_err(|_| Error::invalid(format!("invalid {which} value in device cgroup rule format: '{text}'"))),
    };
    let (major, minor) = (number("major", major)?, number("minor", minor)?);
    let access = parse_access(access).filter(|_| access.len() <= 3).ok_or_else(bad)?;
    Ok(Rule { allow: true, kind, major, minor, access })
}

/// "rwm" in any order; a letter may come twice. `None` for anything else and for no letter at all.
fn parse_access(letters: &str) -> Option<u8> {
    let bit = |letter| match letter {
        'r' => Some(READ),
        'w' => Some(WRITE),
        'm' => Some(MKNOD),
        _ => None,
    };
    let bits = letters.chars().try_fold(0, |bits, letter| bit(letter).map(|bit| bits | bit))?;
    (bits != 0).then_some(bits)
}

/// Refuses `Devices` and `DeviceCgroupRules` entries that could never work. The reference finds these out at start, or never.
pub fn check(host: &HostConfig) -> Result<()> {
    for device in host.resources.devices.iter().flatten() {
        let (source, target, access) = (&device.path_on_host, &device.path_in_container, &device.cgroup_permissions);
        if !source.starts_with('/') || source.contains('\0') {
            return Err(Error::invalid(format!("invalid device path: {source:?}: must be an absolute path")));
        }
        let climbs = Path::new(target).components().any(|part| part == std::path::Component::ParentDir);
        if !target.is_empty() && (!target.starts_with('/') || target.contains('\0') || climbs) {
            return Err(Error::invalid(format!("invalid device path: {target:?}: must be an absolute path")));
        }
        if !access.is_empty() && parse_access(access).is_none() {
            return Err(Error::invalid(format!("invalid device permissions {access:?} for {source}: must be a combination of r, w and m")));
        }
    }
    host.resources.device_cgroup_rules.iter().flatten().try_for_each(|rule| parse_rule(rule).map(drop))
}

/// A device node for the container's `/dev`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Node {
    /// Where it appears in the container; absolute, checked by [`check`].
    pub path: String,
    pub kind: Kind,
    pub major: u32,
    pub minor: u32,
    /// Permission bits only.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub access: u8,
}

impl Node {
    fn rule(&self) -> Rule {
        allowed(self.kind, Some(self.major), Some(self.minor), self.access)
    }
}

/// A directory given as a device is walked this deep, and to this many nodes: `/dev` itself must fit, a loop must not hang us.
const MAX_DEPTH: usize = 8;
const MAX_NODES: usize = 4096;

/// The nodes that HostConfig asks for, and the list of what may be opened. Looks at the host's device files, so it belongs to start, not to create.
pub fn gather(host: &HostConfig) -> Result<(Vec<Node>, Devices)> {
    let mut nodes = Vec::new();
    if host.privileged {
        // As the reference: every node of the host but what the container has its own of.
        walk(Path::new("/dev"), "/dev", MKNOD | READ | WRITE, 0, true, &mut nodes);
    }
    for mapping in host.resources.devices.iter().flatten() {
        if host.privileged && (mapping.path_in_container.is_empty() || mapping.path_in_container == mapping.path_on_host) {
            continue;
        }
        map_device(mapping, host.privileged, &mut nodes)?;
    }
    if host.privileged {
        return Ok((nodes, Devices::All));
    }
    let mut rules: Vec<Rule> = nodes.iter().map(Node::rule).collect();
    for rule in host.resources.device_cgroup_rules.iter().flatten() {
        rules.push(parse_rule(rule)?);
    }
    Ok((nodes, Devices::with(&rules)))
}

/// One `--device`: a node, a link to one, or a directory of them.
fn map_device(mapping: &DeviceMapping, privileged: bool, nodes: &mut Vec<Node>) -> Result<()> {
    let target = if mapping.path_in_container.is_empty() { &mapping.path_on_host } else { &mapping.path_in_container };
    let access = parse_access(&mapping.cgroup_permissions).filter(|_| !privileged).unwrap_or(MKNOD | READ | WRITE);
    let source = resolved(Path::new(&mapping.path_on_host));
    let failed = |why: &str| {
        Error::system(format!("error gathering device information while adding custom device {:?}: {why}", mapping.path_on_host))
    };
    match node(&source, target, access) {
        Ok(Some(found)) => {
            nodes.push(found);
            Ok(())
        }
        Ok(None) => {
            let before = nodes.len();
            walk(&source, target, access, 0, false, nodes);
            if nodes.len() == before { Err(failed("not a device node")) } else { Ok(()) }
        }
        Err(e) => Err(failed(&strerror(&e))),
    }
}

/// Follows links, but only to where they end below `/dev`: no link may point the request at another part of the host.
fn resolved(path: &Path) -> PathBuf {
    match fs::canonicalize(path) {
        Ok(end) if end.starts_with("/dev") => end,
        _ => path.to_owned(),
    }
}

/// The node at `path`; `None` when something else is there.
fn node(path: &Path, target: &str, access: u8) -> io::Result<Option<Node>> {
    let meta = fs::symlink_metadata(path)?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => Kind::Char,
        kind if kind.is_block_device() => Kind::Block,
        _ => return Ok(None),
    };
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    let path = target.to_owned();
    Ok(Some(Node { path, kind, major, minor, mode: meta.mode() & 0o777, uid: meta.uid(), gid: meta.gid(), access }))
}

/// Adds every node below `dir`; what can't be read, and what is no device, is passed over as the reference does.
fn walk(dir: &Path, target: &str, access: u8, depth: usize, host_dev: bool, nodes: &mut Vec<Node>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Some(name) = name.to_str() else { continue };
        if nodes.len() >= MAX_NODES || (host_dev && depth == 0 && OWN_DEV.contains(&name)) {
            continue;
        }
        let target = format!("{}/{name}", target.trim_end_matches('/'));
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < MAX_DEPTH {
            walk(&path, &target, access, depth + 1, host_dev, nodes);
        } else if let Ok(Some(found)) = node(&if host_dev { path } else { resolved(&path) }, &target, access) {
            nodes.push(found);
        }
    }
}

/// What a container's `/dev` has of its own, and so does not take from the host's.
const OWN_DEV: [&str; 8] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"];

/// Major and minor of a block device named in a throttle or weight; the words of the reference's failing `stat`.
pub fn numbers(path: &str) -> Result<(u32, u32)> {
    let failed = |e: &io::Error| Error::system(format!("stat {path}: {}", strerror(e)));
    // The path is the client's: a relative one would mean the daemon's working directory.
    if !path.starts_with('/') {
        return Err(failed(&io::Error::from_raw_os_error(libc::ENOENT)));
    }
    let meta = fs::metadata(path).map_err(|e| failed(&e))?;
    Ok((libc::major(meta.rdev()), libc::minor(meta.rdev())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_and_print_alike() {
        for text in ["c 1:3 rwm", "b *:* m", "c 136:* rw", "c 10:229 r"] {
            assert_eq!(parse_rule(text).unwrap().to_string(), text);
        }
        assert_eq!(parse_rule("a *:* rwm").unwrap().to_string(), "a");
        assert_eq!(parse_rule("c 1:3 mwr").unwrap().to_string(), "c 1:3 rwm");
    }

    #[test]
    fn bad_rules_get_the_references_words() {
        for text in
            ["", "c", "c 1:3", "d 1:3 rwm", "c 1 rwm", "c 1:3 rx", "c 1:3 ", "c 1:3 rwmr", "c -1:3 r", "c 1:3  r", "c 1:3 r\n", "c +1:3 r"]
        {
            assert_eq!(parse_rule(text).unwrap_err().message, format!("invalid device cgroup rule format: '{text}'"), "{text}");
        }
        let huge = parse_rule("c 99999999999:3 rwm").unwrap_err();
        assert_eq!(huge.message, "invalid major value in device cgroup rule format: 'c 99999999999:3 rwm'");
    }

    #[test]
    fn rules_come_after_the_defaults_and_merge() {
        let Devices::Only(plain) = Devices::with(&[]) else { panic!("the default list is no allow-all") };
        assert_eq!(plain.len(), 11);
        let Devices::Only(list) = Devices::with(&[parse_rule("c 10:229 rwm").unwrap(), parse_rule("b *:* r").unwrap()]) else {
            panic!("two rules are no allow-all")
        };
        assert_eq!(list.last().unwrap().to_string(), "c 10:229 rwm");
        assert!(list.iter().any(|rule| rule.to_string() == "b *:* rm"));
        assert_eq!(Devices::with(&[parse_rule("a *:* rwm").unwrap()]), Devices::All);
        let deny = Rule { allow: false, ..parse_rule("c 1:3 rw").unwrap() };
        let Devices::Only(list) = Devices::with(&[deny]) else { panic!("a denial is no allow-all") };
        assert!(list.iter().any(|rule| rule.to_string() == "c 1:3 m"));
    }

    fn host(path: &str, target: &str, access: &str) -> HostConfig {
        let mapping = DeviceMapping { path_on_host: path.into(), path_in_container: target.into(), cgroup_permissions: access.into() };
        let mut host = HostConfig::default();
        host.resources.devices = Some(vec![mapping]);
        host
    }

    #[test]
    fn device_entries_are_checked_at_create() {
        assert!(check(&host("/dev/null", "/dev/x", "rwm")).is_ok());
        assert!(check(&host("/dev/null", "", "")).is_ok());
        for (path, target, access) in [
            ("dev/null", "", "r"),
            ("", "/dev/x", "r"),
            ("/dev/null", "x", "r"),
            ("/dev/null", "/dev/../etc/x", "r"),
            ("/dev/null", "/x", "rz"),
        ] {
            assert!(check(&host(path, target, access)).is_err(), "{path} {target} {access}");
        }
    }

    #[test]
    fn a_node_a_missing_one_and_a_file_are_told_apart() {
        let (nodes, devices) = gather(&host("/dev/full", "/dev/brim", "r")).unwrap();
        assert_eq!((nodes[0].path.as_str(), nodes[0].major, nodes[0].minor), ("/dev/brim", 1, 7));
        assert!(matches!(devices, Devices::Only(_)));
        let missing = gather(&host("/dev/nosuch", "", "rwm")).unwrap_err();
        let expected = "error gathering device information while adding custom device \"/dev/nosuch\": no such file or directory";
        assert_eq!(missing.message, expected);
        let file = gather(&host("/etc/passwd", "/dev/p", "rwm")).unwrap_err();
        assert!(file.message.ends_with("\"/etc/passwd\": not a device node"), "{}", file.message);
    }

    #[test]
    fn privileged_takes_the_hosts_nodes_and_allows_all() {
        let (nodes, devices) = gather(&HostConfig { privileged: true, ..HostConfig::default() }).unwrap();
        assert_eq!(devices, Devices::All);
        assert!(nodes.iter().any(|node| node.path == "/dev/null"));
        assert!(!nodes.iter().any(|node| node.path.starts_with("/dev/pts/")));
    }

    #[test]
    fn throttles_name_devices_by_absolute_path() {
        assert_eq!(numbers("/dev/null").unwrap(), (1, 3));
        assert_eq!(numbers("/dev/nosuch").unwrap_err().message, "stat /dev/nosuch: no such file or directory");
        assert!(numbers("dev/null").is_err());
    }
}
