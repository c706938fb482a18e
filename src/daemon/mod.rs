//! The daemon: all state, owned by one thread, and the loop that turns it.

pub mod children;
pub mod durable;
pub mod events;
pub mod images;
pub mod listen;
pub mod logger;
pub mod options;
pub mod reexec;
pub mod serve;
pub mod start;

use crate::container::cgroup::{Cgroup, Cgroups};
use crate::container::exec::Exec;
use crate::container::log::follow::Followers;
use crate::container::plan::Own;
use crate::container::process::Process;
use crate::container::record::Id;
use crate::container::seccomp::{FilterCache, Profile};
use crate::container::security_opt;
use crate::container::streams::{HubId, Hubs};
use crate::container::table::Containers;
use crate::error::{Error, Result};
use crate::http::response::CommonHeaders;
use crate::poll::timer::Timers;
use crate::poll::{Interest, Poller, Ready, Token};
use crate::sys;
use children::Children;
use durable::Durable;
use events::{EventBus, SubscriberId};
use listen::Listener;
use options::Options;
use serve::Client;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

/// Something to go on with, later in the loop.
pub type Then<T> = Box<dyn FnOnce(&mut Daemon, T)>;

/// A client's connection; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What a watched descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Listener(usize),
    Conn(ConnId),
    Signals,
    Aio,
    /// A worker's control socket.
    WorkerControl(u64),
    /// The client that a worker serves: watched for hang-up only.
    WorkerClient(u64),
    /// A starting child's channel.
    Launch(u64),
    /// A process's stdout (or pty) and stderr.
    Output(HubId, usize),
    /// A process's stdin.
    Stdin(HubId),
    Network(crate::network::serve::Watched),
}

/// What a timer is for.
#[derive(Clone, Debug)]
pub enum Timer {
    /// Close connections that made no progress.
    SweepConnections,
    /// An event stream's `until`.
    EventsUntil(SubscriberId),
    /// The orderly stop has taken too long.
    StopNow,
    /// A container did not end on its stop signal.
    StopTimeout(Id),
    /// A container did not end on SIGKILL.
    KillTimeout(Id),
    /// A restart by policy.
    Restart(Id),
    /// A cgroup that was still busy.
    RemoveCgroup(u64),
    /// A finished exec has been kept long enough.
    ForgetExec(Rc<str>),
    /// A health check is due.
    Probe(Id),
    /// A health check has taken too long.
    ProbeTimeout(Id, Rc<str>),
    /// The next sample of a client's statistics.
    Stats(Box<crate::container::stats::Sampling>),
    /// A follower's pages should be in memory by now.
    WakeFollower(ConnId),
    Network(crate::network::serve::Tick),
}

/// Everything.
pub struct Daemon {
    pub options: Options,
    /// Identity, kept in the data root: `/info`'s ID.
    pub id: String,
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    pub poller: Poller<Source>,
    pub timers: Timers<Timer>,
    pub events: EventBus,
    pub images: crate::image::Store,
    /// A worker is deleting what was thrown away.
    pub(crate) sweeping: bool,
    /// Containers that a commit has paused, by its worker.
    pub(crate) paused_by: HashMap<u64, crate::container::record::Id>,
    pub volumes: crate::volume::Volumes,
    pub containers: Containers,
    pub(crate) processes: HashMap<u64, Process>,
    pub(crate) execs: HashMap<Rc<str>, Exec>,
    pub(crate) hubs: Hubs,
    pub(crate) followers: Followers,
    /// Who waits for a start that is under way.
    pub(crate) start_waiters: HashMap<Id, Vec<Then<Result<()>>>>,
    /// Why a start that our side gave up was given up.
    pub(crate) refusals: HashMap<Id, Error>,
    /// Facts about this process that every launch plan needs.
    pub(crate) own: Own,
    /// The binary's own path, for `--init`.
    pub(crate) own_path: PathBuf,
    pub(crate) filters: FilterCache,
    pub(crate) builtin_profile: Rc<Profile>,
    /// The daemon's default profile.
    pub(crate) seccomp: security_opt::Seccomp,
    /// Whether the kernel confines by AppArmor.
    pub(crate) apparmor: bool,
    /// `None` where the host has no cgroups.
    pub(crate) cgroups: Option<Cgroups>,
    pub(crate) running_cgroups: HashMap<Id, Cgroup>,
    /// What keeps a started systemd scope alive until its container is in it.
    pub(crate) scope_holders: HashMap<Id, OwnedFd>,
    pub(crate) dying_cgroups: HashMap<u64, (Cgroup, u32)>,
    pub(crate) unique_trash: u64,
    pub(crate) children: Children,
    pub(crate) durable: Durable,
    pub(crate) clients: HashMap<ConnId, Client>,
    /// Connections whose state a handler has changed: looked at before the loop polls again.
    pub(crate) touched: Vec<ConnId>,
    pub(crate) listeners: Vec<Listener>,
    pub networks: crate::network::manager::Networks,
    pub(crate) network_loop: crate::network::serve::NetworkLoop,
    pub(crate) common: Rc<CommonHeaders>,
    next_id: u64,
    sweep_armed: bool,
    signals: OwnedFd,
    /// The signal mask that the daemon was started with: children get it back.
    pub(crate) original_mask: libc::sigset_t,
    pub(crate) scratch: Vec<u8>,
    stopping: bool,
    /// The data root's lock, held while this daemon lives.
    _lock: OwnedFd,
    pub started_ns: i64,
}

impl Daemon {
    /// A number that this daemon never gives again.
    pub fn unique(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn now_ms(&self) -> u64 {
        sys::time::boottime_ms()
    }

    /// Arms a timer `after_ms` from now.
    pub fn after(&mut self, after_ms: u64, timer: Timer) -> crate::poll::timer::TimerId {
        self.timers.arm(sys::time::boottime_ms().saturating_add(after_ms), timer)
    }

    /// The loop: returns when an orderly stop is complete.
    pub fn run(&mut self) -> io::Result<()> {
        let mut ready: Vec<(Token, Ready)> = Vec::new();
        while !self.is_stopped() {
            self.serve_touched();
            let now = self.now_ms();
            let busy = !self.touched.is_empty() || self.followers.has_busy();
            let timeout = if busy { Some(0) } else { self.timers.next_in_ms(now) };
            ready.clear();
            self.poller.wait(timeout, &mut ready)?;
            for (token, state) in &ready {
                // An earlier handler of this turn may have removed it.
                if let Some(source) = self.poller.source(*token) {
                    self.on_ready(source, *state);
                }
                self.serve_touched();
            }
            self.pump_followers();
            let limit = self.timers.newest();
            let now = self.now_ms();
            while let Some(timer) = self.timers.pop_due(now, limit) {
                self.on_timer(timer);
                self.serve_touched();
            }
        }
        Ok(())
    }

    fn on_ready(&mut self, source: Source, ready: Ready) {
        match source {
            Source::Listener(index) => self.accept(index),
            Source::Conn(id) => self.on_conn(id, ready),
            Source::Signals => self.on_signals(),
            Source::Aio => self.on_aio(),
            Source::WorkerControl(number) => self.on_worker_message(number),
            Source::WorkerClient(number) => self.on_worker_client(number, ready),
            Source::Launch(number) => self.on_launch_report(number),
            Source::Output(hub, n) => self.on_output(hub, n),
            Source::Stdin(hub) => self.write_stdin(hub),
            Source::Network(watched) => self.on_network_ready(watched, ready),
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::SweepConnections => self.sweep_connections(),
            Timer::EventsUntil(subscriber) => self.end_events(subscriber),
            Timer::Network(tick) => self.on_network_tick(tick),
            Timer::StopNow => {
                log::warn!("containers did not stop in time; stopping without them");
                self.stop_now();
            }
            Timer::StopTimeout(id) => self.on_stop_timeout(&id),
            Timer::KillTimeout(id) => self.on_kill_timeout(&id),
            Timer::Restart(id) => self.on_restart_due(&id),
            Timer::RemoveCgroup(number) => {
                if let Some((group, tries)) = self.dying_cgroups.remove(&number) {
                    self.remove_cgroup(group, tries);
                }
            }
            Timer::ForgetExec(id) => self.forget_exec(&id),
            Timer::Probe(id) => self.on_probe_due(&id),
            Timer::ProbeTimeout(id, exec) => self.on_probe_timeout(&id, &exec),
            Timer::Stats(sampling) => self.tick_stats(*sampling),
            Timer::WakeFollower(conn) => self.wake_follower(conn),
        }
    }

    fn on_signals(&mut self) {
        while let Ok(Some(signal)) = sys::poll::read_signal(self.signals.as_fd()) {
            match signal {
                libc::SIGCHLD => self.reap(),
                libc::SIGTERM | libc::SIGINT => self.begin_stop(),
                libc::SIGHUP => self.reload(),
                libc::SIGUSR1 => self.dump_state(),
                _ => {}
            }
        }
    }

    /// SIGHUP: reread what may change while running.
    fn reload(&mut self) {
        self.rebuild_filter();
        log::info!("configuration reloaded");
    }

    /// SIGUSR1: the state in a few lines.
    fn dump_state(&mut self) {
        log::info!(
            "state: {} connections, {} children, {} descriptors watched",
            self.clients.len(),
            self.children.len(),
            self.poller.len()
        );
    }

    fn begin_stop(&mut self) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        log::info!("stopping");
        self.children.kill_workers();
        let mut running = 0;
        for id in self.containers.ids() {
            if self.containers.get(&id).is_some_and(|c| c.record.state.is_running() || c.starting) {
                running += 1;
                // What a policy restarts is to be restarted by the next daemon, too.
                let manually = self.containers.get(&id).is_some_and(|c| c.record.manually_stopped);
                self.stop_container(
                    &id.clone(),
                    None,
                    None,
                    Box::new(move |daemon, _| {
                        if let Some(container) = daemon.containers.get_mut(&id) {
                            container.record.manually_stopped = manually;
                        }
                        daemon.save_container_lazily(&id);
                    }),
                );
            }
        }
        if running > 0 {
            let grace_s = u64::try_from(self.options.int("shutdown-timeout")).unwrap_or(15);
            self.after(grace_s * 1000, Timer::StopNow);
        }
    }

    /// Whether an orderly stop is under way.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    fn is_stopped(&self) -> bool {
        self.stopping && self.children.is_empty() && self.durable.is_idle() && self.dying_cgroups.is_empty()
    }

    /// The grace is over: what still runs is killed.
    fn stop_now(&mut self) {
        self.children.kill_workers();
        for process in self.processes.values() {
            let _ = sys::process::pidfd_send_signal(process.pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Watches the loop's own descriptors.
    fn watch_own(&mut self) {
        let signals = self.poller.add(self.signals.as_fd(), Source::Signals, Interest::READ);
        if let Some(eventfd) = self.durable.eventfd() {
            self.poller.add(eventfd, Source::Aio, Interest::READ);
        }
        let _ = signals;
    }
}
