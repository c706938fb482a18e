//! Volumes: the `local` driver's directories under `volumes/<name>/`, and what is known of them.

pub mod copy_up;
pub mod mounted;

use crate::container::config::Labels;
use crate::error::{Error, Result};
use crate::image::state_file;
use crate::sys;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Version of meta.json.
const VERSION: u32 = 1;
const META: &str = "meta.json";
/// The label by which prune knows volumes that nobody named.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// A volume of the local driver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Volume {
    pub name: String,
    pub created_ns: i64,
    pub labels: Option<Labels>,
    /// `type`, `o`, `device`: what is mounted at its `_data`.
    pub options: Option<Labels>,
}

impl Volume {
    /// Whether something is mounted for it.
    pub fn is_mounted_on_use(&self) -> bool {
        self.options.as_ref().is_some_and(|options| options.contains_key("device") || options.contains_key("type"))
    }

    pub fn is_anonymous(&self) -> bool {
        self.labels.as_ref().is_some_and(|labels| labels.contains_key(ANONYMOUS))
    }
}

/// All volumes, in memory; their directories on disk.
#[derive(Debug)]
pub struct Volumes {
    root: PathBuf,
    staging: PathBuf,
    volumes: BTreeMap<String, Volume>,
    /// How many running containers use each mounted volume.
    users: BTreeMap<String, u32>,
}

impl Volumes {
    /// Reads what there is. A volume whose meta.json is torn keeps its data, without labels: data outweighs labels.
    pub fn open(data_root: &Path) -> io::Result<Volumes> {
        let root = data_root.join("volumes");
        std::fs::DirBuilder::new().recursive(true).mode(0o701).create(&root)?;
        let mut volumes = BTreeMap::new();
        for entry in std::fs::read_dir(&root)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !entry.path().join("_data").is_dir() {
                continue;
            }
            let volume = match state_file::read::<Volume>(VERSION, &entry.path().join(META)) {
                Ok(Some(volume)) => volume,
                damaged => {
                    log::error!("volume {name}: meta.json is lost ({damaged:?}); its data is kept");
                    Volume { name: name.clone(), ..Volume::default() }
                }
            };
            volumes.insert(name, volume);
        }
        Ok(Volumes { root, staging: data_root.join("staging"), volumes, users: BTreeMap::new() })
    }

    pub fn get(&self, name: &str) -> Option<&Volume> {
        self.volumes.get(name)
    }

    pub fn find(&self, name: &str) -> Result<&Volume> {
        self.get(name).ok_or_else(|| Error::not_found(format!("get {name}: no such volume")))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values()
    }

    /// A volume's directory of data on the host.
    pub fn data(&self, name: &str) -> PathBuf {
        self.root.join(name).join("_data")
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Builds a volume in staging: (its meta.json for syncing, from, to). It is there after the rename and [`Volumes::enter`].
    pub fn build(&self, volume: &Volume) -> Result<(OwnedFd, PathBuf, PathBuf)> {
        let staging = self.staging.join(format!("volume-{}", volume.name));
        let failed = |e: io::Error| Error::io(format!("create volume {}", volume.name), &e);
        let make = || -> io::Result<OwnedFd> {
            match std::fs::remove_dir_all(&staging) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            std::fs::DirBuilder::new().mode(0o701).create(&staging)?;
            std::fs::DirBuilder::new().mode(0o755).create(staging.join("_data"))?;
            let path = sys::cstring(staging.join(META).as_os_str().as_encoded_bytes())?;
            let file = sys::fd::open(&path, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o600)?;
            sys::fd::write_all(file.as_fd(), &state_file::encode(VERSION, volume))?;
            Ok(file)
        };
        Ok((make().map_err(failed)?, staging.clone(), self.directory(&volume.name)))
    }

    /// Takes a volume in, whose directory is in its place.
    pub fn enter(&mut self, volume: Volume) {
        self.volumes.insert(volume.name.clone(), volume);
    }

    /// Takes a volume out: its directory goes to staging under the returned name, to be deleted there.
    pub fn remove(&mut self, name: &str) -> Result<std::ffi::CString> {
        let trash = format!("volume-{name}-trash{}", sys::time::realtime_ns());
        let rename = || -> io::Result<std::ffi::CString> {
            let from = sys::cstring(self.directory(name).as_os_str().as_encoded_bytes())?;
            let to = sys::cstring(self.staging.join(&trash).as_os_str().as_encoded_bytes())?;
            sys::fs::renameat2(sys::fd::AT_FDCWD, &from, sys::fd::AT_FDCWD, &to, 0)?;
            sys::cstring(&trash)
        };
        let trash = rename().map_err(|e| Error::io(format!("remove volume {name}"), &e))?;
        self.volumes.remove(name);
        Ok(trash)
    }

    /// The API's Volume.
    pub fn to_json(&self, volume: &Volume) -> Value {
        json!({
            "CreatedAt": crate::timestamp::rfc3339(volume.created_ns.div_euclid(1_000_000_000) * 1_000_000_000),
            "Driver": "local",
            "Labels": volume.labels,
            "Mountpoint": self.data(&volume.name),
            "Name": volume.name,
            "Options": volume.options,
            "Scope": "local",
        })
    }
}

/// Refuses what is no volume name; the reference's rule and words.
pub fn check_name(name: &str) -> Result<()> {
    let tail = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if name.len() < 2 {
        return Err(Error::invalid("volume name is too short, names should be at least two alphanumeric characters".to_string()));
    }
    if name.len() <= 255 && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(tail) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. \
         If you intended to pass a host directory, use absolute path"
    )))
}

/// Refuses options that the local driver does not know, or that say too little.
pub fn check_options(options: &Labels) -> Result<()> {
    if options.is_empty() {
        return Ok(());
    }
    if let Some(unknown) = options.keys().find(|key| !matches!(key.as_str(), "type" | "o" | "device" | "size")) {
        return Err(Error::invalid(format!("invalid option: {unknown:?}")));
    }
    if options.contains_key("size") {
        return Err(Error::invalid("quota size requested but no quota support"));
    }
    let has = |key: &str| options.get(key).is_some_and(|value| !value.is_empty());
    if !has("device") {
        return Err(Error::invalid("missing device in volume options"));
    }
    if !has("type") && !options.get("o").is_some_and(|o| o.split(',').any(|part| matches!(part, "bind" | "rbind"))) {
        return Err(Error::invalid("missing type in volume options"));
    }
    if options.values().any(|value| value.chars().any(char::is_control)) {
        return Err(Error::invalid("control character in volume options"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_options_are_checked() {
        for bad in ["", "a", "../x", "a/b", "-ab", "a b"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("data.1").is_ok());
        let options = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Labels>();
        assert!(check_options(&options(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")])).is_ok());
        assert!(check_options(&options(&[("o", "bind"), ("device", "/x")])).is_ok());
        assert_eq!(check_options(&options(&[("foo", "x")])).unwrap_err().message, "invalid option: \"foo\"");
        assert_eq!(check_options(&options(&[("type", "tmpfs")])).unwrap_err().message, "missing device in volume options");
    }
}
