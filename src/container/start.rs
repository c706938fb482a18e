//! From a container's record to its running process: what its start needs on this host, the launch, and the way back.

use super::cgroup::{self, devices};
use super::config::Ulimit;
use super::confine::Confinement;
use super::launch::launch;
use super::lifecycle::LaunchError;
use super::log::json_file::{JsonFile, JsonFileOptions};
use super::plan::{self, LaunchPlan, Member, Network, Own, Placement, PlanInput, RootInput};
use super::process::Owner;
use super::record::Id;
use crate::daemon::{Daemon, Timer};
use crate::error::{Error, Result};
use crate::sys;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// How often and for how long (ms) the removal of a busy cgroup is tried again.
const CGROUP_RETRY_MS: u64 = 20;
const CGROUP_RETRIES: u32 = 500;

impl Daemon {
    /// A container's own directory.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.data_root.join("containers").join(id)
    }

    /// The log that logs and inspect name.
    pub fn log_path(&self, id: &str) -> PathBuf {
        self.container_dir(id).join(format!("{id}-json.log"))
    }

    /// The host directories of the layers below a container, top first.
    pub fn layer_dirs(&self, record: &super::record::Record) -> Result<Vec<PathBuf>> {
        let numbers = self.images.lower_numbers(record.top);
        if let Some(top) = record.top.filter(|_| numbers.is_empty()) {
            return Err(Error::system(format!("layer {top} of container {} is lost", record.id)));
        }
        Ok(numbers.into_iter().map(|n| self.images.place().layer(n).join("diff")).collect())
    }

    /// The host directories of an image's layers, top first.
    pub(super) fn image_layer_dirs(&self, image: &str) -> Result<Vec<PathBuf>> {
        let numbers = self.images.lower_numbers(self.images.resolve(image)?.top);
        Ok(numbers.into_iter().map(|n| self.images.place().layer(n).join("diff")).collect())
    }

    pub(super) fn try_launch(&mut self, id: &Id) -> std::result::Result<(), LaunchError> {
        let container = self.containers.find(id)?;
        let mut record = container.record.clone();
        let hub = container.hub;
        let dir = self.container_dir(id);
        let names = self.plan_container_network(&record)?;
        if names != dir
            && let Ok(other) = std::fs::read_to_string(names.join("hostname"))
        {
            // Who shares a network shares its names.
            record.config.hostname = other.trim_end().to_string();
        }
        let layers = self.layer_dirs(&record)?;
        let (mut nodes, mut device_rules) = devices::gather(&record.host)?;
        let mut mounts = self.mounts_of(&record)?;
        self.add_cdi_devices(&mut record, &mut nodes, &mut device_rules, &mut mounts)?;
        let placement = self.make_cgroup(id, &record, &device_rules)?;
        let argv: Vec<String> = std::iter::once(record.path.clone()).chain(record.args.iter().cloned()).collect();
        let network = self.network_of(id)?;
        let parts = self.plan_parts(&record)?;
        if let Some(container) = self.containers.get_mut(id) {
            container.record.apparmor = parts.apparmor().to_owned();
        }
        let init_layer = self.data_root.join("init-layer");
        let init = record.host.init.unwrap_or_else(|| self.options.flag("init"));
        let (hostname, hosts, resolv) = (names.join("hostname"), names.join("hosts"), names.join("resolv.conf"));
        let plan = LaunchPlan::new(&PlanInput {
            container: parts.container(&record, &self.own),
            argv: &argv,
            root: RootInput { init_layer: &init_layer, layers: &layers, upper: &dir.join("upper"), work: &dir.join("work") },
            mounts: &mounts,
            hostname_file: Some(&hostname),
            hosts_file: Some(&hosts),
            resolv_file: Some(&resolv),
            network,
            netlink: Vec::new(),
            pid_of: self.member_of(&record.host.pid_mode)?,
            ipc_of: self.member_of(&record.host.ipc_mode)?,
            private_cgroupns: self.private_cgroupns(&record.host.cgroupns_mode, record.host.privileged),
            cgroup: placement,
            devices: &nodes,
            init_binary: init.then_some(self.own_path.as_path()),
            default_shm_size: self.options.bytes("default-shm-size"),
        })?;
        self.open_log(id, &record)?;
        let launched = launch(&plan)?;
        let wants_stdin = record.config.open_stdin;
        let number = self.adopt_process(Owner::Container(id.clone()), launched, hub, wants_stdin);
        if let Some(container) = self.containers.get_mut(id) {
            container.process = Some(number);
        }
        if !plan.report_ready {
            self.on_ready_for_go(number);
        }
        Ok(())
    }

    /// The sandbox that every process of a container shares: filter, labels, limits.
    pub(super) fn plan_parts(&mut self, record: &super::record::Record) -> Result<PlanParts> {
        Ok(PlanParts { confinement: self.confine(&record.host)?, default_ulimits: super::create::default_ulimits(&self.options) })
    }

    /// The cgroup: made with its limits before anything runs in it.
    fn make_cgroup(&mut self, id: &Id, record: &super::record::Record, rules: &devices::Devices) -> Result<Placement> {
        let Some(cgroups) = &mut self.cgroups else { return Ok(Placement::default()) };
        let plan = cgroup::plan(cgroups.facts(), id, &record.host.resources, rules, &devices::numbers)?;
        let group = cgroups.create(&plan)?;
        let placement = Placement::of(&group, None).map_err(|e| Error::io(format!("open cgroup {}", group.path()), &e))?;
        self.running_cgroups.insert(id.clone(), group);
        Ok(placement)
    }

    fn open_log(&mut self, id: &Id, record: &super::record::Record) -> Result<()> {
        let options = match self.log_options(record)? {
            Some(options) => options,
            None => return Ok(()),
        };
        let path = self.log_path(id);
        let log = JsonFile::open(&path, options).map_err(|e| Error::io(format!("open {}", path.display()), &e))?;
        let hub = self.containers.find(id)?.hub;
        if let Some(hub) = self.hubs.get_mut(hub) {
            hub.log = Some(log);
        }
        Ok(())
    }

    /// The json-file options of a container; `None` for drivers that keep no readable log.
    fn log_options(&self, record: &super::record::Record) -> Result<Option<JsonFileOptions>> {
        let log = &record.host.log_config;
        if log.kind == "none" {
            return Ok(None);
        }
        let empty = BTreeMap::new();
        let config = log.config.as_ref().unwrap_or(&empty);
        let mut options = JsonFileOptions::default();
        if let Some(size) = config.get("max-size") {
            options.max_size = match size.as_str() {
                "-1" => u64::MAX,
                text => crate::daemon::options::parse_bytes(text)
                    .and_then(|n| u64::try_from(n).ok())
                    .filter(|n| *n > 0)
                    .ok_or_else(|| Error::invalid(format!("invalid value for max-size: {text}")))?,
            };
        }
        if let Some(files) = config.get("max-file") {
            options.max_files = files.parse().ok().filter(|n| *n > 0).ok_or_else(|| Error::invalid("max-file cannot be less than 1"))?;
        }
        let mut attributes = serde_json::Map::new();
        let labels = record.config.labels.as_ref().unwrap_or(&empty);
        for label in config.get("labels").map(String::as_str).unwrap_or_default().split(',') {
            if let Some(value) = labels.get(label) {
                attributes.insert(label.to_string(), value.clone().into());
            }
        }
        for name in config.get("env").map(String::as_str).unwrap_or_default().split(',').filter(|n| !n.is_empty()) {
            for pair in record.config.env.iter().flatten() {
                if let Some((key, value)) = pair.split_once('=')
                    && key == name
                {
                    attributes.insert(key.to_string(), value.into());
                }
            }
        }
        if !attributes.is_empty() {
            options.attributes = serde_json::Value::Object(attributes).to_string();
        }
        Ok(Some(options))
    }

    /// The container that "container:<name>" names, which must run.
    pub(super) fn member_of(&self, mode: &str) -> Result<Option<Member>> {
        let Some(name) = mode.strip_prefix("container:") else { return Ok(None) };
        let id = self.containers.resolve(name)?;
        let container = self.containers.find(&id)?;
        let process = container.process.and_then(|number| self.processes.get(&number)).filter(|process| process.running);
        match process {
            Some(process) => Ok(Some(Member { pid: process.pid, pidfd: process.pidfd.clone() })),
            None => Err(Error::conflict(format!("cannot join namespace of a non running container: container {name} is not running"))),
        }
    }

    /// The network namespace that the container starts in.
    fn network_of(&self, id: &Id) -> Result<Network> {
        let host = &self.containers.find(id)?.record.host;
        match host.network_mode.as_str() {
            "host" => Ok(Network::Host),
            mode if mode.starts_with("container:") => match self.member_of(mode)? {
                Some(member) => Ok(Network::Join(member.pidfd)),
                None => Ok(Network::Private),
            },
            _ => Ok(Network::Private),
        }
    }

    fn private_cgroupns(&self, mode: &str, privileged: bool) -> bool {
        match mode {
            "private" => true,
            "host" => false,
            _ => match self.options.text("default-cgroupns-mode") {
                "private" => true,
                "host" => false,
                _ => !privileged && self.cgroups.as_ref().is_some_and(|cgroups| cgroups.facts().hierarchy.version.is_v2()),
            },
        }
    }

    /// After the program runs: what accompanies it.
    pub(super) fn on_started(&mut self, id: &Id) {
        self.start_health(id);
    }

    /// The program has ended: what accompanied it ends too.
    pub(super) fn on_stopped(&mut self, id: &Id) {
        self.stop_health(id);
    }

    pub(super) fn was_oom_killed(&self, id: &Id) -> bool {
        self.running_cgroups.get(id).is_some_and(|group| group.oom_killed_since(0))
    }

    /// Gives back what a start took: the cgroup; the rest goes with the namespaces.
    pub(super) fn release_container_resources(&mut self, id: &Id) {
        self.let_scope_go(id);
        self.release_network(id);
        if let Some(container) = self.containers.get(id) {
            let mounted = self.mounted_volumes(&container.record);
            self.unmount_volumes(&mounted);
        }
        if let Some(group) = self.running_cgroups.remove(id) {
            // Execs of a container with the host's pid namespace outlive its first process.
            let _ = group.kill_all();
            self.remove_cgroup(group, 0);
        }
    }

    /// Removes a cgroup; one that the kernel has not emptied yet is tried again.
    pub(crate) fn remove_cgroup(&mut self, mut group: cgroup::Cgroup, tries: u32) {
        match group.remove() {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && tries < CGROUP_RETRIES => {
                let number = self.unique();
                self.dying_cgroups.insert(number, (group, tries + 1));
                self.after(CGROUP_RETRY_MS.min(1 + u64::from(tries) * 2), Timer::RemoveCgroup(number));
            }
            Err(e) => log::warn!("remove cgroup {}: {e}", group.path()),
        }
    }

    pub(super) fn freeze(&mut self, id: &Id) -> Result<()> {
        let group = self.running_cgroups.get(id).ok_or_else(|| Error::not_implemented("cgroups are not available on this host"))?;
        group.freeze().map_err(|e| Error::io(format!("cannot pause container {id}: freeze"), &e))
    }

    pub(super) fn thaw_cgroup(&mut self, id: &Id) -> Result<()> {
        let group = self.running_cgroups.get(id).ok_or_else(|| Error::not_implemented("cgroups are not available on this host"))?;
        group.thaw().map_err(|e| Error::io(format!("cannot unpause container {id}: thaw"), &e))
    }

    /// The directory above all images' layers in which /dev, /proc and /sys are directories for certain.
    pub(crate) fn prepare_init_layer(&self) -> std::io::Result<()> {
        let path = self.data_root.join("init-layer");
        std::fs::create_dir_all(&path)?;
        let c_path: CString = sys::cstring(path.as_os_str().as_encoded_bytes())?;
        let dir = sys::fd::open(&c_path, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0)?;
        super::rootfs::fill_init_layer(dir.as_fd())
    }
}

/// What [`Daemon::plan_parts`] has looked up for a plan.
pub struct PlanParts {
    confinement: Confinement,
    default_ulimits: Vec<Ulimit>,
}

impl PlanParts {
    /// The AppArmor profile in force, as inspect shows it; empty without AppArmor.
    fn apparmor(&self) -> &str {
        &self.confinement.apparmor_shown
    }

    /// The part of a plan's input that run, exec, health checks and build have in common.
    pub fn container<'a>(&'a self, record: &'a super::record::Record, own: &'a Own) -> plan::Container<'a> {
        plan::Container {
            id: &record.id,
            config: &record.config,
            host: &record.host,
            linked_environment: &[],
            seccomp: self.confinement.seccomp.clone(),
            apparmor: self.confinement.apparmor.as_deref(),
            selinux: None,
            no_new_privileges: self.confinement.no_new_privileges,
            writable_cgroups: self.confinement.writable_cgroups,
            default_ulimits: &self.default_ulimits,
            own,
        }
    }
}
