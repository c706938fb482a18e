//! The daemon: all state, owned by one thread, and the loop that turns it.

pub mod children;
pub mod durable;
pub mod events;
pub mod images;
pub mod listen;
pub mod logger;
pub mod options;
pub mod serve;
pub mod start;

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
    pub(crate) children: Children,
    pub(crate) durable: Durable,
    pub(crate) clients: HashMap<ConnId, Client>,
    /// Connections whose state a handler has changed: looked at before the loop polls again.
    pub(crate) touched: Vec<ConnId>,
    pub(crate) listeners: Vec<Listener>,
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
            let timeout = if self.touched.is_empty() { self.timers.next_in_ms(now) } else { Some(0) };
            ready.clear();
            self.poller.wait(timeout, &mut ready)?;
            for (token, state) in &ready {
                // An earlier handler of this turn may have removed it.
                if let Some(source) = self.poller.source(*token) {
                    self.on_ready(source, *state);
                }
                self.serve_touched();
            }
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
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::SweepConnections => self.sweep_connections(),
            Timer::EventsUntil(subscriber) => self.end_events(subscriber),
            Timer::StopNow => {
                log::warn!("containers did not stop in time; stopping without them");
                self.stop_now();
            }
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
        self.stop_now();
    }

    fn is_stopped(&self) -> bool {
        self.stopping && self.children.is_empty() && self.durable.is_idle()
    }

    fn stop_now(&mut self) {
        self.children.kill_workers();
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
