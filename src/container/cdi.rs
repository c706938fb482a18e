//! CDI, the Container Device Interface (github.com/cncf-tags/container-device-interface, SPEC.md): files by which a
//! vendor says what a container needs for its device — environment, device nodes, mounts.
//!
//! JSON only: a YAML file is listed as unreadable. Hooks are refused by name, as they are host programs that run on a
//! container's files. The files are few and small, so they are read where they are asked for; nothing is cached.

use super::cgroup::devices::{Kind, MKNOD, Node, READ, WRITE};
use super::config::DeviceRequest;
use crate::error::{Error, Result};
use crate::json;
use crate::sys;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where specs are looked for, unless the daemon's `cdi-spec-dirs` says otherwise; a later directory overrides.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Bytes of one spec, and files in one directory, that are read.
const MAX_SPEC: u64 = 1 << 20;
const MAX_FILES: usize = 256;

/// The versions of the format that this reads.
const VERSIONS: [&str; 11] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0", "1.2.0"];

/// What a container gets for its devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// "KEY=value", later ones win.
    pub environment: Vec<String>,
    /// To be made, and allowed.
    pub nodes: Vec<Node>,
    pub mounts: Vec<Mount>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A bind mount, or a tmpfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Absolute, on the host; `None` for a tmpfs.
    pub source: Option<String>,
    /// Absolute, in the container.
    pub target: String,
    pub read_only: bool,
    /// What is mounted below the source comes along.
    pub recursive: bool,
    /// "rprivate", "rslave" and so on; empty for the default.
    pub propagation: String,
    /// MOUNT_ATTR_NOSUID, NODEV, NOEXEC, NOATIME.
    pub attributes: u64,
    /// A tmpfs's options.
    pub data: String,
}

/// The devices that the specs define.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    specs: Vec<Spec>,
    /// Qualified name to (directory's rank, spec, device); `None` where two specs of one rank define it.
    devices: BTreeMap<String, Option<(usize, usize, usize)>>,
    /// Files that could not be used, and why; for the log.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    cdi_version: String,
    kind: String,
    devices: Vec<Device>,
    container_edits: ContainerEdits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Device {
    name: String,
    container_edits: ContainerEdits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerEdits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    hooks: Vec<Hook>,
    mounts: Vec<MountEdit>,
    net_devices: Vec<Value>,
    intel_rdt: Option<Value>,
    additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DeviceNode {
    path: String,
    host_path: String,
    #[serde(rename = "type")]
    kind: String,
    major: u32,
    minor: u32,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Hook {
    hook_name: String,
    path: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MountEdit {
    host_path: String,
    container_path: String,
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: String,
}

impl Registry {
    /// Reads every spec of the directories; those that are missing have none.
    pub fn scan(directories: &[impl AsRef<Path>]) -> Registry {
        let mut registry = Registry::default();
        for (rank, directory) in directories.iter().enumerate() {
            for path in files(directory.as_ref()) {
                if let Err(e) = read(&path).and_then(|spec| registry.add(rank, spec)) {
                    registry.problems.push(format!("CDI spec {}: {e}", path.display()));
                }
            }
        }
        registry
    }

    fn add(&mut self, rank: usize, spec: Spec) -> Result<()> {
        spec.check()?;
        let index = self.specs.len();
        for (at, device) in spec.devices.iter().enumerate() {
            let name = format!("{}={}", spec.kind, device.name);
            let found = Some((rank, index, at));
            let kept = match self.devices.get(&name) {
                Some(Some((other, ..))) if *other == rank => {
                    self.problems.push(format!("CDI device {name} is defined twice: it cannot be used"));
                    None
                }
                _ => found,
            };
            self.devices.insert(name, kept);
        }
        self.specs.push(spec);
        Ok(())
    }

    /// The qualified names ("vendor.com/class=name") of what can be asked for, sorted; for `/info`.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().filter(|(_, found)| found.is_some()).map(|(name, _)| name.as_str())
    }

    /// What a container gets for these devices. Looks at the host's device files, so it belongs to start.
    ///
    /// # Errors
    /// System, in the reference's words, with every name that is unknown; or naming the hook or other edit that
    /// cannot be applied.
    pub fn resolve(&self, names: &[String]) -> Result<Edits> {
        let failed = |what: String| Error::system(format!("CDI device injection failed: {what}"));
        let unknown: Vec<&str> = names.iter().map(String::as_str).filter(|name| self.device(name).is_none()).collect();
        if !unknown.is_empty() {
            return Err(failed(format!("unresolvable CDI devices {}", unknown.join(", "))));
        }
        let mut edits = Edits::default();
        let mut common: Vec<&Spec> = Vec::new();
        for (name, (spec, device)) in names.iter().filter_map(|name| Some((name, self.device(name)?))) {
            // A spec's own edits come once, before those of its first device.
            if !common.iter().any(|seen| std::ptr::eq(*seen, spec)) {
                common.push(spec);
                spec.container_edits.apply(&mut edits).map_err(|e| failed(format!("{name}: {e}")))?;
            }
            device.container_edits.apply(&mut edits).map_err(|e| failed(format!("{name}: {e}")))?;
        }
        Ok(edits)
    }

    fn device(&self, name: &str) -> Option<(&Spec, &Device)> {
        let (_, spec, device) = (*self.devices.get(name)?)?;
        let spec = self.specs.get(spec)?;
        Some((spec, spec.devices.get(device)?))
    }
}

/// The spec files of a directory in a fixed order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().take(MAX_FILES).flatten().map(|entry| entry.path());
    let is_spec = |path: &PathBuf| path.extension().is_some_and(|e| ["json", "yaml", "yml"].iter().any(|spec| e == *spec));
    let mut files: Vec<PathBuf> = entries.filter(is_spec).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<Spec> {
    if path.extension().is_some_and(|e| e != "json") {
        return Err(Error::not_implemented("YAML is not read; write the spec as JSON (nvidia-ctk cdi generate --format=json)"));
    }
    let io = |e| Error::io("open", &e);
    // A FIFO with that name must not stop the daemon.
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?;
    if !size.is_file() || size.len() > MAX_SPEC {
        return Err(Error::invalid("not a regular file of at most 1 MiB"));
    }
    let mut text = Vec::new();
    file.take(MAX_SPEC).read_to_end(&mut text).map_err(io)?;
    json::from_body(&text)
}

impl Spec {
    fn check(&self) -> Result<()> {
        if !VERSIONS.contains(&self.cdi_version.as_str()) {
            return Err(Error::invalid(format!("unknown cdiVersion {:?}", self.cdi_version)));
        }
        let is_kind = self.kind.split_once('/').is_some_and(|(vendor, class)| is_name(vendor, "_-.", true) && is_name(class, "_-.", true));
        if !is_kind {
            return Err(Error::invalid(format!("invalid kind {:?}", self.kind)));
        }
        match self.devices.iter().find(|device| !is_name(&device.name, "_-.:", false)) {
            Some(device) => Err(Error::invalid(format!("invalid device name {:?}", device.name))),
            None => Ok(()),
        }
    }
}

/// Letters and digits, with `inner` between them.
fn is_name(text: &str, inner: &str, letter_first: bool) -> bool {
    let first = |c: char| if letter_first { c.is_ascii_alphabetic() } else { c.is_ascii_alphanumeric() };
    text.starts_with(first)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || inner.contains(c))
}

/// The CDI devices that HostConfig.DeviceRequests ask for; no other driver is here to ask.
///
/// # Errors
/// InvalidParameter, in the reference's words, for a request that only another driver could serve.
pub fn requested(requests: &[DeviceRequest]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for request in requests {
        if request.driver != "cdi" {
            let sets: Vec<String> = request.capabilities.iter().flatten().map(|set| format!("[{}]", set.join(" "))).collect();
            let sets = sets.join(" ");
            return Err(Error::invalid(format!("could not select device driver {:?} with capabilities: [{sets}]", request.driver)));
        }
        names.extend(request.device_ids.iter().flatten().cloned());
    }
    Ok(names)
}

/// Whether HostConfig names a device so: what the docker command hands over in a DeviceRequest of driver "cdi".
pub fn is_qualified(name: &str) -> bool {
    name.split_once('=').is_some_and(|(kind, device)| {
        kind.split_once('/').is_some_and(|(vendor, class)| is_name(vendor, "_-.", true) && is_name(class, "_-.", true))
            && is_name(device, "_-.:", false)
    })
}

impl ContainerEdits {
    fn apply(&self, edits: &mut Edits) -> Result<()> {
        if let Some(hook) = self.hooks.first() {
            return Err(Error::not_implemented(format!(
                "hook {} ({}) is not supported: no program of the host runs in a container's start",
                hook.hook_name, hook.path
            )));
        }
        if !self.net_devices.is_empty() {
            return Err(Error::not_implemented("netDevices are not supported"));
        }
        if self.intel_rdt.is_some() {
            return Err(Error::not_implemented("intelRdt is not supported"));
        }
        if let Some(bad) = self.env.iter().find(|entry| entry.starts_with('=') || !entry.contains('=') || entry.contains('\0')) {
            return Err(Error::invalid(format!("invalid environment variable {bad:?}")));
        }
        edits.environment.extend_from_slice(&self.env);
        for node in &self.device_nodes {
            edits.nodes.push(node.resolve()?);
        }
        for mount in &self.mounts {
            edits.mounts.push(mount.resolve()?);
        }
        edits.groups.extend(self.additional_gids.iter().filter(|gid| **gid != 0));
        Ok(())
    }
}

impl DeviceNode {
    fn resolve(&self) -> Result<Node> {
        absolute(&self.path)?;
        let host = if self.host_path.is_empty() { &self.path } else { &self.host_path };
        let kind = match self.kind.as_str() {
            "" => None,
            "b" => Some(Kind::Block),
            "c" | "u" => Some(Kind::Char),
            other => return Err(Error::not_implemented(format!("device node {} of type {other:?} is not supported", self.path))),
        };
        let (kind, major, minor) = match kind {
            Some(kind) if self.major != 0 || self.minor != 0 => (kind, self.major, self.minor),
            _ => self.look_at(host, kind)?,
        };
        let bit = |letter, bit| if self.permissions.contains(letter) { bit } else { 0 };
        let access = match self.permissions.as_str() {
            "" => READ | WRITE | MKNOD,
            letters if letters.chars().all(|c| "rwm".contains(c)) => bit('r', READ) | bit('w', WRITE) | bit('m', MKNOD),
            other => return Err(Error::invalid(format!("device node {} has invalid permissions {other:?}", self.path))),
        };
        Ok(Node {
            path: self.path.clone(),
            kind,
            major,
            minor,
            mode: self.file_mode.unwrap_or(0o666) & 0o777,
            uid: self.uid.unwrap_or(0),
            gid: self.gid.unwrap_or(0),
            access,
        })
    }

    /// Type and numbers of the host's device file; a type that the spec gives must be its.
    fn look_at(&self, host: &str, wanted: Option<Kind>) -> Result<(Kind, u32, u32)> {
        let file = fs::metadata(host).map_err(|e| Error::io(format!("failed to stat {host:?}"), &e))?;
        let kind = match file.file_type() {
            kind if kind.is_block_device() => Kind::Block,
            kind if kind.is_char_device() => Kind::Char,
            _ => return Err(Error::invalid(format!("{host:?} is not a device"))),
        };
        if wanted.is_some_and(|wanted| wanted != kind) {
            return Err(Error::invalid(format!("{host:?} is not a device of type {:?}", self.kind)));
        }
        Ok((kind, libc::major(file.rdev()), libc::minor(file.rdev())))
    }
}

impl MountEdit {
    fn resolve(&self) -> Result<Mount> {
        absolute(&self.container_path)?;
        let is_tmpfs = match self.kind.as_str() {
            "" | "none" | "bind" => false,
            "tmpfs" => true,
            other => return Err(Error::not_implemented(format!("mount {} of type {other:?} is not supported", self.container_path))),
        };
        if !is_tmpfs {
            absolute(&self.host_path)?;
        }
        let mut mount = Mount {
            source: (!is_tmpfs).then(|| self.host_path.clone()),
            target: self.container_path.clone(),
            read_only: false,
            recursive: false,
            propagation: String::new(),
            attributes: 0,
            data: String::new(),
        };
        let mut data = Vec::new();
        for option in &self.options {
            match option.as_str() {
                "ro" => mount.read_only = true,
                "rw" => mount.read_only = false,
                "bind" => mount.recursive = false,
                "rbind" => mount.recursive = true,
                "nosuid" => mount.attributes |= sys::mount::MOUNT_ATTR_NOSUID,
                "nodev" => mount.attributes |= sys::mount::MOUNT_ATTR_NODEV,
                "noexec" => mount.attributes |= sys::mount::MOUNT_ATTR_NOEXEC,
                // What a mount is without an option against it.
                "suid" | "dev" | "exec" | "defaults" => {}
                "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" => mount.propagation.clone_from(option),
                _ if is_tmpfs => data.push(option.as_str()),
                other => return Err(Error::not_implemented(format!("option {other:?} of mount {} is not supported", self.container_path))),
            }
        }
        mount.data = data.join(",");
        Ok(mount)
    }
}

fn absolute(path: &str) -> Result<()> {
    if path.starts_with('/') && !path.contains('\0') { Ok(()) } else { Err(Error::invalid(format!("{path:?} is not an absolute path"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of the test's own, gone with it.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let path = std::env::temp_dir().join(format!("coracle-cdi-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Dir(path)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn spec(kind: &str, devices: &str, edits: &str) -> String {
        format!(r#"{{"cdiVersion":"0.6.0","kind":"{kind}","devices":[{devices}],"containerEdits":{edits}}}"#)
    }

    fn one(edits: &str) -> Result<Edits> {
        let mut registry = Registry::default();
        let text = spec("v.com/c", &format!(r#"{{"name":"0","containerEdits":{edits}}}"#), "{}");
        registry.add(0, json::from_body(text.as_bytes()).unwrap()).unwrap();
        registry.resolve(&["v.com/c=0".into()])
    }

    #[test]
    fn edits_of_spec_and_devices_in_order() {
        let dir = Dir::new("order");
        let devices = r#"{"name":"a","containerEdits":{"env":["A=1"],"deviceNodes":[{"path":"/dev/v","hostPath":"/dev/null","permissions":"rw"}]}},
            {"name":"b","containerEdits":{"env":["B=1"],"additionalGids":[7,0],
             "mounts":[{"hostPath":"/lib/v","containerPath":"/usr/lib/v","options":["ro","nosuid","rbind","rprivate"]}]}}"#;
        dir.write("v.json", &spec("v.com/c", devices, r#"{"env":["ALL=1"]}"#));
        let registry = Registry::scan(&[&dir.0]);
        assert!(registry.problems.is_empty(), "{:?}", registry.problems);
        assert_eq!(registry.devices().collect::<Vec<_>>(), ["v.com/c=a", "v.com/c=b"]);
        let edits = registry.resolve(&["v.com/c=b".into(), "v.com/c=a".into()]).unwrap();
        assert_eq!(edits.environment, ["ALL=1", "B=1", "A=1"]);
        assert_eq!(edits.groups, [7]);
        let node = &edits.nodes[0];
        assert_eq!(
            (node.path.as_str(), node.kind, node.major, node.minor, node.access, node.mode),
            ("/dev/v", Kind::Char, 1, 3, READ | WRITE, 0o666)
        );
        let mount = &edits.mounts[0];
        assert_eq!(
            (mount.source.as_deref(), mount.read_only, mount.recursive, mount.propagation.as_str()),
            (Some("/lib/v"), true, true, "rprivate")
        );
        assert_eq!(mount.attributes, sys::mount::MOUNT_ATTR_NOSUID);
    }

    #[test]
    fn unknown_devices_are_all_named() {
        let error = Registry::default().resolve(&["v.com/c=0".into(), "v.com/c=1".into()]).unwrap_err();
        assert_eq!(error.message, "CDI device injection failed: unresolvable CDI devices v.com/c=0, v.com/c=1");
    }

    #[test]
    fn a_later_directory_overrides_and_twice_in_one_is_none() {
        let (first, second) = (Dir::new("first"), Dir::new("second"));
        let device = |value: &str| spec("v.com/c", &format!(r#"{{"name":"0","containerEdits":{{"env":["V={value}"]}}}}"#), "{}");
        first.write("a.json", &device("first"));
        second.write("a.json", &device("second"));
        let names = ["v.com/c=0".to_owned()];
        let registry = Registry::scan(&[&first.0, &second.0]);
        assert_eq!(registry.resolve(&names).unwrap().environment, ["V=second"]);
        second.write("b.json", &device("third"));
        let registry = Registry::scan(&[&first.0, &second.0]);
        assert!(registry.resolve(&names).is_err());
        assert_eq!(registry.devices().count(), 0);
        assert!(registry.problems[0].contains("defined twice"));
    }

    #[test]
    fn what_cannot_be_applied_is_refused_by_name() {
        let cases = [
            (r#"{"hooks":[{"hookName":"createContainer","path":"/usr/bin/nvidia-ctk"}]}"#, "hook createContainer (/usr/bin/nvidia-ctk)"),
            (r#"{"netDevices":[{"hostInterfaceName":"eth1"}]}"#, "netDevices"),
            (r#"{"intelRdt":{}}"#, "intelRdt"),
            (r#"{"env":["NOVALUE"]}"#, "invalid environment variable"),
            (r#"{"deviceNodes":[{"path":"dev/x"}]}"#, "not an absolute path"),
            (r#"{"deviceNodes":[{"path":"/dev/null","type":"p"}]}"#, "type \"p\""),
            (r#"{"deviceNodes":[{"path":"/dev/null","type":"b"}]}"#, "not a device of type \"b\""),
            (r#"{"deviceNodes":[{"path":"/dev/null","permissions":"rx"}]}"#, "invalid permissions"),
            (r#"{"deviceNodes":[{"path":"/no/such"}]}"#, "failed to stat \"/no/such\": no such file"),
            (r#"{"deviceNodes":[{"path":"/etc"}]}"#, "is not a device"),
            (r#"{"mounts":[{"hostPath":"x","containerPath":"/x"}]}"#, "not an absolute path"),
            (r#"{"mounts":[{"hostPath":"/x","containerPath":"/x","type":"nfs"}]}"#, "type \"nfs\""),
            (r#"{"mounts":[{"hostPath":"/x","containerPath":"/x","options":["idmap"]}]}"#, "option \"idmap\""),
        ];
        for (edits, words) in cases {
            let error = one(edits).unwrap_err();
            assert!(
                error.message.starts_with("CDI device injection failed: v.com/c=0: ") && error.message.contains(words),
                "{}",
                error.message
            );
        }
    }

    #[test]
    fn broken_files_are_problems_not_failures() {
        let dir = Dir::new("broken");
        dir.write("a.json", "{");
        dir.write("b.yaml", "cdiVersion: 0.6.0");
        dir.write("c.json", &spec("nokind", "", "{}"));
        dir.write("d.json", &spec("v.com/c", r#"{"name":"-"}"#, "{}"));
        dir.write("e.json", r#"{"cdiVersion":"9.9.9","kind":"v.com/c"}"#);
        dir.write("f.txt", "not a spec");
        sys::fs::mknodat(sys::fd::AT_FDCWD, &sys::cstring(dir.0.join("g.json").to_str().unwrap()).unwrap(), libc::S_IFIFO | 0o600, 0)
            .unwrap();
        dir.write("ok.json", &spec("v.com/c", r#"{"name":"0"}"#, "{}"));
        let registry = Registry::scan(&[dir.0.clone(), dir.0.join("missing")]);
        assert_eq!(registry.devices().collect::<Vec<_>>(), ["v.com/c=0"]);
        assert_eq!(registry.problems.len(), 6, "{:?}", registry.problems);
    }

    #[test]
    fn requests_that_nothing_serves() {
        let request = |driver: &str, capabilities: &[&[&str]], ids: &[&str]| DeviceRequest {
            driver: driver.into(),
            capabilities: Some(capabilities.iter().map(|set| set.iter().map(|c| (*c).into()).collect()).collect()),
            device_ids: Some(ids.iter().map(|id| (*id).into()).collect()),
            ..DeviceRequest::default()
        };
        assert_eq!(requested(&[request("cdi", &[], &["v.com/c=0", "v.com/c=1"])]).unwrap(), ["v.com/c=0", "v.com/c=1"]);
        let error = requested(&[request("", &[&["gpu", "utility"], &["x"]], &[])]).unwrap_err();
        assert_eq!(error.message, "could not select device driver \"\" with capabilities: [[gpu utility] [x]]");
    }

    #[test]
    fn qualified_names() {
        for good in ["nvidia.com/gpu=0", "v.com/net-x=a:b.c_1", "v/c=all"] {
            assert!(is_qualified(good), "{good}");
        }
        for bad in ["", "gpu=0", "/dev/null", "v.com/gpu", "v.com/gpu=", "1v/c=0", "v-/c=0", "v.com/c=0-", "v.com/c=a b"] {
            assert!(!is_qualified(bad), "{bad}");
        }
    }
}
