//! Making a container: its body checked and merged with its image, its directory made durable under its id.

use super::config::{Config, EndpointSettings, Healthcheck, HostConfig, NetworkingConfig, Ulimit};
use super::mounts::Resolved;
use super::record::{Container, Record, State, Status};
use super::{capabilities, cgroup, names};
use crate::daemon::options::Options;
use crate::daemon::{Daemon, Then};
use crate::error::{Error, Kind, Result};
use crate::image::config::{Document, Platform};
use crate::sys;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

/// The body of create: a Config with HostConfig and NetworkingConfig beside its fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CreateBody {
    #[serde(flatten)]
    pub config: Config,
    #[serde(rename = "HostConfig")]
    pub host: HostConfig,
    #[serde(rename = "NetworkingConfig")]
    pub networking: NetworkingConfig,
}

/// What create gives back.
pub struct Created {
    pub id: String,
    pub warnings: Vec<String>,
}

/// What is asked of create besides its body.
#[derive(Default)]
pub struct CreateOptions {
    /// "" for a generated one.
    pub name: String,
    pub platform: String,
    /// Fields that only some API versions have are read as this version reads them.
    pub minor: u16,
}

impl Daemon {
    /// Makes a container; `then` learns of it when it is durable.
    pub fn create_container(&mut self, options: CreateOptions, body: CreateBody, then: Then<Result<Created>>) {
        let (record, resolved, warnings) = match self.prepare_container(options, body) {
            Ok(prepared) => prepared,
            Err(error) => return then(self, Err(error)),
        };
        let image = record.image.clone();
        self.provide_volumes(
            &image,
            &resolved,
            Box::new(move |daemon, provided| match provided {
                Ok(()) => daemon.store_container(record, warnings, then),
                Err(error) => {
                    daemon.containers.release(&record.name, &record.id);
                    then(daemon, Err(error));
                }
            }),
        );
    }

    fn prepare_container(&mut self, options: CreateOptions, body: CreateBody) -> Result<(Record, Resolved, Vec<String>)> {
        let CreateBody { mut config, mut host, networking } = body;
        let image = self.find_image(&config.image, &options.platform)?;
        let document = self.images.document(image)?;
        merge_image(&mut config, &document);
        if config.cmd.as_ref().is_none_or(Vec::is_empty) && config.entrypoint.as_ref().is_none_or(Vec::is_empty) {
            return Err(Error::invalid("no command specified"));
        }
        let warnings = self.verify(&mut config, &mut host, options.minor)?;
        let mut resolved = self.resolve_mounts(&mut config, &host)?;
        let id = crate::hex::random_id().map_err(|e| Error::io("make an id", &e))?;
        if config.hostname.is_empty() {
            config.hostname = match host.uts_mode.as_str() {
                "host" => host_name(),
                _ if host.network_mode == "host" => host_name(),
                _ => id[..12].to_string(),
            };
        }
        let name = self.claim_name(&options.name, &id)?;
        let (path, args) = command(&config);
        let networks = networks(&host, networking);
        let record = Record {
            name,
            created_ns: sys::time::realtime_ns(),
            image: image.to_string(),
            top: document.chain_id(),
            path,
            args,
            networks,
            mounts: std::mem::take(&mut resolved.points),
            state: State { status: Status::Created, ..State::default() },
            platform: document.operating_system().to_string(),
            config,
            host,
            id,
            ..Record::default()
        };
        if let Err(refusal) = self.check_container_network(&record) {
            self.containers.release(&record.name, &record.id);
            return Err(refusal);
        }
        Ok((record, resolved, warnings))
    }

    /// The image by name or id; of the wanted platform, where one is asked for.
    fn find_image(&self, name: &str, platform: &str) -> Result<crate::image::digest::Digest> {
        if name.is_empty() {
            return Err(Error::invalid("config cannot be empty in order to create a container"));
        }
        let image = self.images.resolve(name).map_err(|e| match e.kind {
            Kind::NotFound => Error::not_found(no_such_image(name)),
            _ => e,
        })?;
        if !platform.is_empty() {
            let wanted = Platform::parse(platform)?;
            if !wanted.accepts(&image.platform) {
                let has = &image.platform;
                return Err(Error::not_found(format!(
                    "image with reference {name} was found but its platform ({}/{}) does not match the specified platform ({platform})",
                    has.os, has.architecture
                )));
            }
        }
        Ok(image.id)
    }

    fn claim_name(&mut self, wanted: &str, id: &str) -> Result<String> {
        let holder: Rc<str> = Rc::from(id);
        if !wanted.is_empty() {
            let name = names::check(wanted)?;
            self.containers.reserve(name, &holder)?;
            return Ok(name.to_string());
        }
        for tries in 0..64 {
            let name = names::generate(tries);
            if self.containers.reserve(&name, &holder).is_ok() {
                return Ok(name);
            }
        }
        let name = id[..12].to_string();
        self.containers.reserve(&name, &holder)?;
        Ok(name)
    }

    /// Checks and completes both configurations; the warnings for the client.
    fn verify(&mut self, config: &mut Config, host: &mut HostConfig, minor: u16) -> Result<Vec<String>> {
        super::verify::config(config)?;
        super::verify::host(host, minor)?;
        if host.network_mode.is_empty() || host.network_mode == "default" {
            host.network_mode = "bridge".into();
        }
        let fill = |field: &mut String, value: &str| {
            if field.is_empty() {
                *field = value.to_string();
            }
        };
        fill(&mut host.ipc_mode, self.options.text("default-ipc-mode"));
        fill(&mut host.log_config.kind, self.options.text("log-driver"));
        fill(&mut host.runtime, self.options.text("default-runtime"));
        fill(&mut host.restart_policy.name, "no");
        let v2 = self.cgroups.as_ref().is_some_and(|cgroups| cgroups.facts().hierarchy.version.is_v2());
        let default_cgroupns = match self.options.text("default-cgroupns-mode") {
            "" if v2 && !host.privileged => "private",
            "" => "host",
            given => given,
        };
        let default_cgroupns = default_cgroupns.to_string();
        fill(&mut host.cgroupns_mode, &default_cgroupns);
        if host.shm_size == 0 {
            host.shm_size = self.options.bytes("default-shm-size");
        }
        if !matches!(host.runtime.as_str(), "runc" | "io.containerd.runc.v2" | "coracle") {
            return Err(Error::invalid(format!("unknown or invalid runtime name: {}", host.runtime)));
        }
        let known = capabilities::up_to(40);
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let (add, drop) = capabilities::normalize_pair(&list(&host.cap_add), &list(&host.cap_drop), known)?;
        (host.cap_add, host.cap_drop) = (host.cap_add.as_ref().map(|_| add), host.cap_drop.as_ref().map(|_| drop));
        self.check_confinement(host)?;
        cgroup::devices::check(host)?;
        cgroup::validate::ulimits(host.resources.ulimits.as_deref().unwrap_or_default())?;
        if !host.privileged {
            host.masked_paths.get_or_insert_with(|| super::plan_mounts::default_masked_paths(self.own.possible_cpus));
            host.readonly_paths.get_or_insert_with(super::plan_mounts::default_readonly_paths);
        }
        let mut warnings = Vec::new();
        if let Some(cgroups) = &self.cgroups {
            cgroup::validate::adapt(&mut host.resources, false);
            warnings.extend(cgroup::validate::resources(&mut host.resources, &cgroups.facts().support, false)?);
        }
        Ok(warnings)
    }

    /// Builds the directory in staging and gives it its name when its record is on disk.
    fn store_container(&mut self, record: Record, warnings: Vec<String>, then: Then<Result<Created>>) {
        let id = record.id.clone();
        let staging = self.data_root.join("staging").join(format!("container-{id}"));
        let target = self.container_dir(&id);
        let durable = !record.host.auto_remove;
        let made = make_directory(&staging, &record);
        let file = match made {
            Ok(file) => file,
            Err(e) => {
                let _ = std::fs::remove_dir_all(&staging);
                self.containers.release(&record.name, &id);
                return then(self, Err(Error::io(format!("make container {id}"), &e)));
            }
        };
        let finish = move |daemon: &mut Daemon, result: std::io::Result<()>| {
            let name = record.name.clone();
            match result {
                Ok(()) => {
                    daemon.enter_container(record);
                    daemon.emit_container(&id, "create", &[]);
                    then(daemon, Ok(Created { id, warnings }));
                }
                Err(e) => {
                    daemon.containers.release(&name, &id);
                    then(daemon, Err(Error::io(format!("make container {id}"), &e)));
                }
            }
        };
        if durable {
            self.rename_durably(file, staging, target, finish);
        } else {
            let renamed = std::fs::rename(&staging, &target);
            finish(self, renamed);
        }
    }

    /// Puts a container into the table, with its streams.
    pub(crate) fn enter_container(&mut self, record: Record) {
        let id: Rc<str> = Rc::from(record.id.as_str());
        if let Some(top) = record.top
            && !self.images.hold(&record.id, top)
        {
            log::error!("container {}: a layer of its image is lost; it cannot be started", record.id);
        }
        let hub = self.make_hub(record.config.tty, record.config.stdin_once, id);
        self.containers.insert(Container {
            record,
            process: None,
            hub,
            waiters: Vec::new(),
            stopping: None,
            starting: false,
            restart_timer: None,
            backoff_ms: 0,
            failures: 0,
            started_ms: 0,
            removing: false,
            execs: Vec::new(),
            health: None,
            ending_by_request: false,
        });
    }
}

fn no_such_image(name: &str) -> String {
    let tagged = name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if tagged { format!("No such image: {name}") } else { format!("No such image: {name}:latest") }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|text| text.trim().to_string()).unwrap_or_default()
}

fn make_directory(dir: &Path, record: &Record) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o710).create(dir)?;
    for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
        std::fs::DirBuilder::new().mode(mode).create(dir.join(name))?;
    }
    let bytes = super::save::encode(record);
    let path = sys::cstring(dir.join("config.json").as_os_str().as_encoded_bytes())?;
    let file = sys::fd::open(&path, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW, 0o600)?;
    sys::fd::write_all(std::os::fd::AsFd::as_fd(&file), &bytes)?;
    Ok(file)
}

/// Program and arguments: the entrypoint, then the command.
pub fn command(config: &Config) -> (String, Vec<String>) {
    let mut all = config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).cloned();
    (all.next().unwrap_or_default(), all.collect())
}

/// What an image's configuration gives to a container that does not say otherwise.
pub fn merge_image(config: &mut Config, document: &Document) {
    let Some(image) = &document.config else { return };
    if config.user.is_empty() {
        config.user.clone_from(&image.user);
    }
    for port in image.exposed_ports.keys() {
        config.exposed_ports.entry(port.clone()).or_default();
    }
    let key = |pair: &String| pair.split('=').next().unwrap_or_default().to_string();
    let own: Vec<String> = config.env.clone().unwrap_or_default();
    let mut env: Vec<String> = own.clone();
    env.extend(image.env.iter().flatten().filter(|theirs| !own.iter().any(|o| key(o) == key(theirs))).cloned());
    if !env.is_empty() || config.env.is_some() {
        config.env = Some(env);
    }
    if let Some(theirs) = &image.labels {
        let labels = config.labels.get_or_insert_with(BTreeMap::new);
        for (name, value) in theirs {
            labels.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    if config.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            config.cmd.clone_from(&image.cmd);
        }
        if config.entrypoint.is_none() {
            config.entrypoint.clone_from(&image.entrypoint);
        }
    }
    // An entrypoint of one empty string resets the image's.
    if config.entrypoint.as_ref().is_some_and(|e| e.len() == 1 && e[0].is_empty()) {
        config.entrypoint = None;
    }
    merge_health(config, image.healthcheck.as_ref());
    if config.working_dir.is_empty() {
        config.working_dir.clone_from(&image.working_dir);
    }
    if config.stop_signal.is_empty() {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    if let Some(theirs) = image.volumes.as_ref().filter(|v| !v.is_empty()) {
        let volumes = config.volumes.get_or_insert_with(BTreeMap::new);
        for path in theirs.keys() {
            volumes.entry(path.clone()).or_default();
        }
    }
}

fn merge_health(config: &mut Config, image: Option<&Healthcheck>) {
    let Some(theirs) = image else { return };
    let Some(own) = &mut config.healthcheck else {
        config.healthcheck = Some(theirs.clone());
        return;
    };
    if own.test.as_ref().is_none_or(Vec::is_empty) {
        own.test.clone_from(&theirs.test);
    }
    let pairs = [
        (&mut own.interval, theirs.interval),
        (&mut own.timeout, theirs.timeout),
        (&mut own.start_period, theirs.start_period),
        (&mut own.start_interval, theirs.start_interval),
        (&mut own.retries, theirs.retries),
    ];
    for (own, theirs) in pairs {
        if *own == 0 {
            *own = theirs;
        }
    }
}

/// The endpoints that the container gets: those asked for, and the one of its network mode.
fn networks(host: &HostConfig, networking: NetworkingConfig) -> BTreeMap<String, EndpointSettings> {
    let mut networks = networking.endpoints_config;
    if !host.network_mode.starts_with("container:") && !networks.contains_key(&host.network_mode) {
        let default = networks.remove("default").unwrap_or_default();
        networks.insert(host.network_mode.clone(), default);
    }
    networks
}

/// The daemon's default-ulimits: name=soft[:hard].
pub fn default_ulimits(options: &Options) -> Vec<Ulimit> {
    let limit = |(name, value): (String, String)| {
        let (soft, hard) = value.split_once(':').unwrap_or((&value, &value));
        Some(Ulimit { name, soft: soft.parse().ok()?, hard: hard.parse().ok()? })
    };
    options.map("default-ulimit").into_iter().filter_map(limit).collect()
}
