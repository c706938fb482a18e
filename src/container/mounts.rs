//! A container's mounts: binds, volumes, tmpfs and images, from its configuration to its record and to the launch plan.

use super::config::{Config, HostConfig, MountSpec};
use super::plan_mounts::{MountInput, MountSource, Propagation};
use super::record::{Id, MountPoint, Record};
use super::verify::clean;
use crate::daemon::{Daemon, Then};
use crate::error::{Error, Kind, Result};
use crate::volume::copy_up::{self, Fill};
use crate::volume::{self, Volume};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The mounts of a new container, and the volumes that must be made for it.
#[derive(Default)]
pub struct Resolved {
    pub points: Vec<MountPoint>,
    pub new_volumes: Vec<Volume>,
    /// Volumes that get the image's content when they are empty.
    fills: Vec<(String, String)>,
}

/// One element of HostConfig.Binds: `source:target[:mode]`, or a target alone.
fn parse_bind(text: &str) -> Result<(String, String, String)> {
    let invalid = || Error::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(invalid()),
    };
    if (parts.len() > 1 && source.is_empty()) || target.is_empty() || (parts.len() == 3 && mode.is_empty()) {
        return Err(invalid());
    }
    if !target.starts_with('/') {
        return Err(Error::invalid(format!(
            "invalid volume specification: '{text}': invalid mount config for type \"{}\": invalid mount path: '{target}' mount path must be absolute",
            if source.starts_with('/') { "bind" } else { "volume" }
        )));
    }
    if clean(target) == "/" {
        return Err(Error::invalid(format!(
            "invalid volume specification: '{text}': invalid mount config for type \"bind\": invalid specification: destination can't be '/'"
        )));
    }
    check_mode(mode, text)?;
    Ok((source.to_string(), clean(target), mode.to_string()))
}

fn check_mode(mode: &str, text: &str) -> Result<()> {
    let kinds = [
        &["ro", "rw"][..],
        &["z", "Z"],
        &["nocopy"],
        &["private", "rprivate", "shared", "rshared", "slave", "rslave"],
        &["consistent", "cached", "delegated"],
    ];
    let mut seen = [false; 5];
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        match kinds.iter().position(|words| words.contains(&word)) {
            Some(kind) if !seen[kind] => seen[kind] = true,
            _ => return Err(Error::invalid(format!("invalid volume specification: '{text}': invalid mode: {mode}"))),
        }
    }
    Ok(())
}

fn propagation_of(mode: &str) -> &str {
    mode.split(',').find(|word| word.ends_with("private") || word.ends_with("shared") || word.ends_with("slave")).unwrap_or("")
}

fn is_writable(mode: &str) -> bool {
    !mode.split(',').any(|word| word == "ro")
}

impl Daemon {
    /// Finds out what a new container mounts. Later sources override earlier ones at the same target, as with the reference:
    /// volumes-from, Binds, Mounts, and the configuration's Volumes last.
    pub(super) fn resolve_mounts(&self, config: &mut Config, host: &HostConfig) -> Result<Resolved> {
        let mut points: BTreeMap<String, MountPoint> = BTreeMap::new();
        let mut resolved = Resolved::default();
        for from in host.volumes_from.iter().flatten() {
            let (name, mode) = from.split_once(':').unwrap_or((from, ""));
            if name.is_empty() {
                return Err(Error::invalid("volumes-from specification cannot be an empty string"));
            }
            if !matches!(mode, "" | "ro" | "rw" | "z" | "Z") {
                return Err(Error::invalid(format!("invalid mode for volumes-from: {mode}")));
            }
            let source = self.containers.find(&self.containers.resolve(name)?)?;
            for point in source.record.mounts.iter().filter(|point| point.kind != "tmpfs") {
                let rw = point.rw && mode != "ro";
                points.insert(point.destination.clone(), MountPoint { rw, ..point.clone() });
            }
        }
        let mut explicit = std::collections::BTreeSet::new();
        let mut taken = |target: &str| {
            if explicit.insert(target.to_string()) { Ok(()) } else { Err(Error::invalid(format!("Duplicate mount point: {target}"))) }
        };
        for bind in host.binds.iter().flatten() {
            let (source, target, mode) = parse_bind(bind)?;
            taken(&target)?;
            let point = self.bind_point(&source, &target, &mode, &host.volume_driver, &mut resolved)?;
            points.insert(target, point);
        }
        for spec in host.mounts.iter().flatten() {
            let target = clean(&spec.target);
            taken(&target)?;
            let point = self.spec_point(spec, &target, &mut resolved)?;
            points.insert(target, point);
        }
        for target in config.volumes.iter().flat_map(BTreeMap::keys) {
            let (source, target, mode) = parse_bind(target)?;
            let is_tmpfs = host.tmpfs.as_ref().is_some_and(|tmpfs| tmpfs.keys().any(|t| clean(t) == target));
            if points.contains_key(&target) || is_tmpfs {
                continue;
            }
            let point = self.bind_point(&source, &target, &mode, &host.volume_driver, &mut resolved)?;
            points.insert(target, point);
        }
        for tmpfs in host.tmpfs.iter().flat_map(BTreeMap::keys) {
            taken(&clean(tmpfs))?;
        }
        resolved.points = points.into_values().collect();
        Ok(resolved)
    }

    fn bind_point(&self, source: &str, target: &str, mode: &str, driver: &str, resolved: &mut Resolved) -> Result<MountPoint> {
        let propagation = propagation_of(mode);
        if source.starts_with('/') {
            return Ok(MountPoint {
                kind: "bind".into(),
                source: clean(source),
                destination: target.to_string(),
                mode: mode.to_string(),
                rw: is_writable(mode),
                propagation: if propagation.is_empty() { "rprivate".into() } else { propagation.to_string() },
                ..MountPoint::default()
            });
        }
        let copy = !mode.split(',').any(|word| word == "nocopy");
        let name = self.volume_for(source, driver, None, None, resolved)?;
        if copy {
            resolved.fills.push((name.clone(), target.to_string()));
        }
        Ok(self.volume_point(&name, target, mode, is_writable(mode)))
    }

    fn volume_point(&self, name: &str, target: &str, mode: &str, rw: bool) -> MountPoint {
        MountPoint {
            kind: "volume".into(),
            name: name.to_string(),
            source: self.volumes.data(name).to_string_lossy().into_owned(),
            destination: target.to_string(),
            driver: "local".into(),
            mode: mode.to_string(),
            rw,
            ..MountPoint::default()
        }
    }

    /// The name of the volume that is meant; one that is not there yet is noted to be made. "" is an anonymous one.
    fn volume_for(
        &self,
        name: &str,
        driver: &str,
        labels: Option<BTreeMap<String, String>>,
        options: Option<BTreeMap<String, String>>,
        resolved: &mut Resolved,
    ) -> Result<String> {
        if !matches!(driver, "" | "local") {
            return Err(Error::not_found(format!("error looking up volume plugin {driver}: plugin \"{driver}\" not found")));
        }
        let mut labels = labels;
        let name = if name.is_empty() {
            labels.get_or_insert_default().insert(volume::ANONYMOUS.into(), String::new());
            crate::hex::random_id().map_err(|e| Error::io("make an id", &e))?
        } else {
            volume::check_name(name).map_err(|e| Error::invalid(format!("create {name}: {}", e.message)))?;
            name.to_string()
        };
        if let Some(options) = &options {
            volume::check_options(options).map_err(|e| Error::invalid(format!("create {name}: {}", e.message)))?;
        }
        if self.volumes.get(&name).is_none() && !resolved.new_volumes.iter().any(|volume| volume.name == name) {
            resolved.new_volumes.push(Volume { name: name.clone(), created_ns: crate::sys::time::realtime_ns(), labels, options });
        }
        Ok(name)
    }

    fn spec_point(&self, spec: &MountSpec, target: &str, resolved: &mut Resolved) -> Result<MountPoint> {
        let common = |point: MountPoint| MountPoint { rw: !spec.read_only, spec: Some(spec.clone()), ..point };
        match spec.kind.as_str() {
            "bind" => {
                let options = spec.bind_options.clone().unwrap_or_default();
                Propagation::parse(&options.propagation)?;
                if !options.create_mountpoint && std::fs::symlink_metadata(&spec.source).is_err() {
                    return Err(Error::invalid(format!(
                        "invalid mount config for type \"bind\": bind source path does not exist: {}",
                        spec.source
                    )));
                }
                let propagation = if options.propagation.is_empty() { "rprivate".to_string() } else { options.propagation };
                Ok(common(MountPoint {
                    kind: "bind".into(),
                    source: clean(&spec.source),
                    destination: target.into(),
                    propagation,
                    ..MountPoint::default()
                }))
            }
            "volume" => {
                let options = spec.volume_options.clone().unwrap_or_default();
                let driver = options.driver_config.clone().unwrap_or_default();
                let name = self.volume_for(&spec.source, &driver.name, options.labels, driver.options, resolved)?;
                if !options.no_copy && options.subpath.is_empty() {
                    resolved.fills.push((name.clone(), target.to_string()));
                }
                Ok(common(MountPoint { mode: "z".into(), ..self.volume_point(&name, target, "", true) }))
            }
            "tmpfs" => Ok(common(MountPoint { kind: "tmpfs".into(), destination: target.into(), ..MountPoint::default() })),
            "image" => {
                let image = self.images.resolve(&spec.source)?;
                Ok(MountPoint {
                    rw: false,
                    ..common(MountPoint {
                        kind: "image".into(),
                        source: image.id.to_string(),
                        destination: target.into(),
                        ..MountPoint::default()
                    })
                })
            }
            other => Err(Error::invalid(format!("mount type unknown: {other:?}"))),
        }
    }

    /// Makes the volumes that a new container needs and fills the empty ones from its image.
    pub(super) fn provide_volumes(&mut self, image: &str, resolved: &Resolved, then: Then<Result<()>>) {
        for volume in &resolved.new_volumes {
            let made = self
                .volumes
                .build(volume)
                .and_then(|(_, from, to)| std::fs::rename(&from, &to).map_err(|e| Error::io(format!("create volume {}", volume.name), &e)));
            if let Err(error) = made {
                return then(self, Err(error));
            }
            self.volumes.enter(volume.clone());
            self.emit("volume", "create", &volume.name, [("driver".to_string(), "local".to_string())].into());
        }
        let layers = match self.image_layer_dirs(image) {
            Ok(layers) => layers,
            Err(error) => return then(self, Err(error)),
        };
        let wanted = |(name, target): &(String, String)| {
            let plain = self.volumes.get(name).is_some_and(|volume| !volume.is_mounted_on_use());
            let data = self.volumes.data(name);
            let empty = std::fs::read_dir(&data).is_ok_and(|mut entries| entries.next().is_none());
            (plain && empty && copy_up::is_worth_it(&layers, target)).then(|| Fill { data, target: target.clone() })
        };
        let fills: Vec<Fill> = resolved.fills.iter().filter_map(wanted).collect();
        if fills.is_empty() {
            return then(self, Ok(()));
        }
        let started = self.start_worker(copy_up::job(layers, fills), |daemon, well| {
            then(daemon, if well { Ok(()) } else { Err(Error::system("copying the image's content into a volume failed")) });
        });
        if let Err(e) = started {
            log::error!("fork worker copy-up: {e}");
        }
    }

    /// Names of the container's volumes that are mounted while it runs.
    pub(super) fn mounted_volumes(&self, record: &Record) -> Vec<String> {
        let mounted = |point: &&MountPoint| self.volumes.get(&point.name).is_some_and(Volume::is_mounted_on_use);
        record.mounts.iter().filter(|point| point.kind == "volume").filter(mounted).map(|point| point.name.clone()).collect()
    }

    /// The mounts of a start, their sources found.
    pub(super) fn mounts_of(&mut self, record: &Record) -> Result<Vec<MountInput>> {
        record.mounts.iter().map(|point| self.mount_input(point)).collect()
    }

    fn mount_input(&self, point: &MountPoint) -> Result<MountInput> {
        let spec = point.spec.clone().unwrap_or_default();
        let bind = spec.bind_options.unwrap_or_default();
        let mut input = MountInput {
            target: point.destination.clone(),
            source: MountSource::Path(PathBuf::from(&point.source)),
            read_only: !point.rw,
            propagation: Propagation::parse(&point.propagation)?,
            recursive: !bind.non_recursive,
            read_only_recursive: !bind.read_only_non_recursive,
            subpath: None,
            create_source: point.kind == "bind" && (point.spec.is_none() || bind.create_mountpoint),
        };
        match point.kind.as_str() {
            "volume" => {
                self.volumes.find(&point.name)?;
                input.subpath = spec.volume_options.map(|options| options.subpath).filter(|path| !path.is_empty());
            }
            "tmpfs" => input.source = MountSource::Tmpfs(tmpfs_options(&spec.tmpfs_options.unwrap_or_default(), input.read_only)),
            "image" => {
                input.subpath = spec.image_options.map(|options| options.subpath).filter(|path| !path.is_empty());
                input.source = MountSource::Image(self.image_layer_dirs(&point.source)?);
            }
            _ => {}
        }
        Ok(input)
    }

    /// The container is going: the anonymous volumes that nobody else uses go with it when `remove` says so.
    pub(super) fn release_volumes(&mut self, id: &Id, remove: bool) {
        if !remove {
            return;
        }
        let Some(container) = self.containers.get(id) else { return };
        let names: Vec<String> =
            container.record.mounts.iter().filter(|point| point.kind == "volume").map(|point| point.name.clone()).collect();
        for name in names {
            let anonymous = self.volumes.get(&name).is_some_and(Volume::is_anonymous);
            if anonymous
                && let Err(e) = self.remove_volume(&name, Some(id))
                && e.kind != Kind::Conflict
            {
                log::warn!("volume {name}: {e}");
            }
        }
    }

    /// Containers that have a volume among their mounts, except one that is going.
    pub(crate) fn volume_users(&self, name: &str, except: Option<&Id>) -> Vec<String> {
        let uses = |record: &Record| record.mounts.iter().any(|point| point.kind == "volume" && point.name == name);
        self.containers
            .iter()
            .map(|c| &c.record)
            .filter(|r| uses(r) && except.is_none_or(|id| **id != *r.id))
            .map(|r| r.id.clone())
            .collect()
    }

    /// Removes a volume that nobody uses.
    pub(crate) fn remove_volume(&mut self, name: &str, except: Option<&Id>) -> Result<()> {
        self.volumes.find(name)?;
        let users = self.volume_users(name, except);
        if !users.is_empty() {
            return Err(Error::conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
        }
        let trash = self.volumes.remove(name)?;
        self.images.add_trash(trash);
        self.sweep_images();
        self.emit("volume", "destroy", name, [("driver".to_string(), "local".to_string())].into());
        Ok(())
    }
}

fn tmpfs_options(options: &super::config::TmpfsOptions, read_only: bool) -> String {
    let mut words = Vec::new();
    if read_only {
        words.push("ro".to_string());
    }
    if options.size_bytes > 0 {
        words.push(format!("size={}", options.size_bytes));
    }
    if options.mode > 0 {
        words.push(format!("mode={:o}", options.mode));
    }
    words.extend(options.options.iter().flatten().map(|pair| pair.join("=")));
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_read_as_docker_reads_them() {
        assert_eq!(parse_bind("/a:/b:ro,z").unwrap(), ("/a".into(), "/b".into(), "ro,z".into()));
        assert_eq!(parse_bind("vol:/b").unwrap(), ("vol".into(), "/b".into(), String::new()));
        assert_eq!(parse_bind("/only").unwrap(), (String::new(), "/only".into(), String::new()));
        for bad in ["", ":/b", "/a:", "/a:b", "/a:/", "/a:/b:", "/a:/b:nope", "/a:/b:ro,rw", "/a:/b:ro:x"] {
            assert!(parse_bind(bad).is_err(), "{bad}");
        }
    }
}
