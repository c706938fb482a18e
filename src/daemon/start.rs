//! Start and end of a daemon: its roots, lock, identity, sockets.

use super::children::Children;
use super::durable::Durable;
use super::events::EventBus;
use super::options::Options;
use super::{Daemon, Source, listen, logger};
use crate::container::cgroup::{self, Cgroups};
use crate::container::log::follow::Followers;
use crate::container::plan::Own;
use crate::container::seccomp::{FilterCache, Profile, kernel_version};
use crate::container::security_opt;
use crate::container::streams::Hubs;
use crate::container::table::Containers;
use crate::http::response::CommonHeaders;
use crate::poll::timer::Timers;
use crate::poll::{Interest, Poller};
use crate::sys;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Runs a daemon until its orderly stop; the exit status.
pub fn main(args: &[String]) -> i32 {
    logger::install(log::LevelFilter::Info);
    let options = match Options::load(args) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return 1;
        }
    };
    if options.help {
        print!("{}", super::options::usage());
        return 0;
    }
    let level = if options.flag("debug") { "debug" } else { options.text("log-level") };
    logger::install(logger::level(level).unwrap_or(log::LevelFilter::Info));
    if sys::process::geteuid() != 0 {
        eprintln!("dockerd needs to be started with root privileges. To see how to run it, see coracle(8)");
        return 1;
    }
    super::reexec::from_read_only_copy();
    sys::security::set_name(c"coracle");
    match start(options) {
        Ok(mut daemon) => {
            sys::crash::arm_from_environment();
            let outcome = daemon.run();
            daemon.end();
            match outcome {
                Ok(()) => 0,
                Err(e) => {
                    log::error!("the loop failed: {e}");
                    1
                }
            }
        }
        Err(message) => {
            eprintln!("failed to start daemon: {message}");
            1
        }
    }
}

fn make_private_dir(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// How long a start waits for the data root's lock: a second in all.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// One daemon per data root: a lock that the kernel lets go of when its holder dies.
fn lock_root(root: &Path) -> Result<OwnedFd, String> {
    let path = root.join("lock");
    let failed = |e: io::Error| format!("lock {}: {}", path.display(), crate::error::strerror(&e));
    let c_path = sys::cstring(path.as_os_str().as_encoded_bytes()).map_err(failed)?;
    let lock = sys::fd::open(&c_path, libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW, 0o600).map_err(failed)?;
    // A daemon that was killed a moment ago may hold it still, or a child of its that has not come to closing it.
    let mut tries = 0;
    let locked = loop {
        match sys::fd::flock(lock.as_fd(), libc::LOCK_EX | libc::LOCK_NB) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            done => break done,
        }
    };
    match locked {
        Ok(()) => Ok(lock),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(format!("another daemon is running on the data root {}; stop it first, or choose another with --data-root", root.display()))
        }
        Err(e) => Err(failed(e)),
    }
}

fn start(options: Options) -> Result<Daemon, String> {
    let (data_root, exec_root) = (PathBuf::from(options.text("data-root")), PathBuf::from(options.text("exec-root")));
    for (root, mode) in [(&data_root, 0o710), (&exec_root, 0o711)] {
        make_private_dir(root, mode).map_err(|e| format!("make {}: {}", root.display(), crate::error::strerror(&e)))?;
    }
    let data_root = data_root.canonicalize().map_err(|e| format!("{}: {e}", data_root.display()))?;
    let exec_root = exec_root.canonicalize().map_err(|e| format!("{}: {e}", exec_root.display()))?;
    let lock = lock_root(&data_root)?;
    let signals_set = sys::poll::all_signals();
    let original_mask = sys::poll::sigprocmask(&signals_set).map_err(|e| format!("block signals: {e}"))?;
    let signals = sys::poll::signalfd(&signals_set).map_err(|e| format!("signalfd: {e}"))?;
    let id = identity(&data_root).map_err(|e| format!("engine id: {e}"))?;
    let poller = Poller::new().map_err(|e| format!("poll: {e}"))?;
    let started_ns = sys::time::realtime_ns();
    let images = crate::image::Store::open(&data_root, started_ns).map_err(|e| e.message)?;
    let builtin_profile = Rc::new(Profile::builtin());
    let seccomp = security_opt::daemon_seccomp(options.text("seccomp-profile"), &builtin_profile, |path| {
        std::fs::read(path).map_err(|e| crate::error::Error::io(format!("opening seccomp profile ({path}) failed"), &e))
    })
    .map_err(|e| e.message)?;
    let cgroups = open_cgroups(&options)?;
    let volumes = crate::volume::Volumes::open(&data_root).map_err(|e| format!("open volumes: {}", crate::error::strerror(&e)))?;
    volumes.unmount_left_over();
    let networks = crate::network::serve::open(&options, &data_root)?;
    let mut daemon = Daemon {
        id,
        images,
        sweeping: false,
        paused_by: HashMap::new(),
        volumes,
        containers: Containers::default(),
        processes: HashMap::new(),
        execs: HashMap::new(),
        hubs: Hubs::default(),
        followers: Followers::default(),
        start_waiters: HashMap::new(),
        refusals: HashMap::new(),
        own: Own::read(),
        own_path: own_path(),
        filters: FilterCache::new(kernel_version(&kernel_release())),
        builtin_profile,
        seccomp,
        apparmor: crate::container::confine::prepare_apparmor(),
        cgroups,
        running_cgroups: HashMap::new(),
        scope_holders: HashMap::new(),
        dying_cgroups: HashMap::new(),
        unique_trash: 0,
        poller,
        timers: Timers::default(),
        events: EventBus::default(),
        children: Children::default(),
        durable: Durable::new(),
        clients: HashMap::new(),
        touched: Vec::new(),
        listeners: Vec::new(),
        networks,
        network_loop: crate::network::serve::NetworkLoop::default(),
        common: Rc::new(common_headers()),
        next_id: 0,
        sweep_armed: false,
        signals,
        original_mask,
        scratch: vec![0; 64 * 1024],
        stopping: false,
        _lock: lock,
        started_ns,
        data_root,
        exec_root,
        options,
    };
    daemon.watch_own();
    daemon.prepare_init_layer().map_err(|e| format!("make the init layer: {}", crate::error::strerror(&e)))?;
    std::fs::create_dir_all(daemon.data_root.join("containers")).map_err(|e| format!("make containers: {e}"))?;
    daemon.start_networks()?;
    daemon.restore_containers().map_err(|e| format!("restore containers: {e}"))?;
    daemon.open_listeners()?;
    daemon.write_pidfile()?;
    daemon.settle_images();
    log::info!("coracle {} is ready: data root {}", env!("CARGO_PKG_VERSION"), daemon.data_root.display());
    Ok(daemon)
}

/// Headers of every answer. Clients parse Server's version.
fn common_headers() -> CommonHeaders {
    CommonHeaders(vec![
        ("Api-Version", format!("1.{}", crate::api::MAX_MINOR)),
        ("Docker-Experimental", "false".into()),
        ("Ostype", "linux".into()),
        ("Server", format!("Docker/{} (linux)", crate::DOCKER_VERSION)),
    ])
}

/// The engine's identity: made once, kept in the data root.
fn identity(root: &Path) -> io::Result<String> {
    let path = root.join("engine-id");
    if let Ok(text) = std::fs::read_to_string(&path) {
        let text = text.trim();
        if text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            return Ok(text.to_string());
        }
    }
    let mut bytes = [0; 16];
    sys::security::getrandom(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40; // RFC 9562: version 4
    bytes[8] = bytes[8] & 0x3f | 0x80; // and its variant
    let hex = crate::hex::encode(&bytes);
    let id = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    let temporary = root.join("engine-id.tmp");
    std::fs::write(&temporary, &id)?;
    std::fs::rename(&temporary, &path)?;
    Ok(id)
}

/// The cgroup trees; a host without any still runs containers, without limits.
fn open_cgroups(options: &Options) -> Result<Option<Cgroups>, String> {
    let driver = options.list("exec-opt").iter().find_map(|opt| opt.strip_prefix("native.cgroupdriver="));
    let driver = cgroup::Driver::parse(driver.unwrap_or("cgroupfs")).map_err(|e| e.message)?;
    match Cgroups::open(driver, options.text("cgroup-parent")) {
        Ok(cgroups) => Ok(Some(cgroups)),
        Err(e) if options.text("cgroup-parent").is_empty() => {
            log::warn!("no cgroups: {e}; containers run without limits");
            Ok(None)
        }
        Err(e) => Err(e.message),
    }
}

/// The binary's path: from the environment after the re-execution, when /proc/self/exe says nothing any more.
fn own_path() -> PathBuf {
    std::env::var_os(super::reexec::SELF)
        .map(PathBuf::from)
        .or_else(|| std::env::current_exe().ok())
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_string()).unwrap_or_default()
}

impl Daemon {
    fn open_listeners(&mut self) -> Result<(), String> {
        let mut hosts = self.options.list("host").to_vec();
        if hosts.is_empty() {
            hosts.push("unix:///var/run/docker.sock".into());
        }
        let (group, asked) = (self.options.text("group").to_string(), self.options.is_set("group"));
        for host in hosts {
            for listener in listen::listen(&host, &group, asked)? {
                let index = self.listeners.len();
                self.poller.add(listener.socket.as_fd(), Source::Listener(index), Interest::READ);
                log::info!("API listen on {}", listener.name);
                self.listeners.push(listener);
            }
        }
        Ok(())
    }

    fn pidfile(&self) -> PathBuf {
        match self.options.text("pidfile") {
            "" => self.exec_root.join("coracle.pid"),
            path => PathBuf::from(path),
        }
    }

    fn write_pidfile(&self) -> Result<(), String> {
        let path = self.pidfile();
        std::fs::write(&path, format!("{}", sys::process::getpid()))
            .map_err(|e| format!("write {}: {}", path.display(), crate::error::strerror(&e)))
    }

    /// What an orderly stop leaves behind: nothing that a next start would trip over.
    fn end(&mut self) {
        self.stop_networks();
        for listener in &self.listeners {
            if let Some(path) = &listener.path {
                let _ = std::fs::remove_file(path);
            }
        }
        if let Some(cgroups) = &self.cgroups {
            cgroups.remove_parents();
        }
        let _ = std::fs::remove_file(self.pidfile());
        log::info!("stopped");
    }
}
