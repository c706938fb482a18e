//! The packet filter's programs, run beside the loop: one batch of each family at a time, later changes join the next.

use crate::daemon::children::Child;
use crate::daemon::{Daemon, Then};
use crate::error::{Error, Result};
use crate::network::firewall::{self, Family, Present, Queue};
use crate::sys;
use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;

/// Output of a program that is kept, bytes: `iptables-save` of a busy host.
const MAX_OUTPUT: u64 = 16 << 20;

/// Both families.
#[derive(Default)]
pub struct Filter {
    v4: Side,
    v6: Side,
}

/// One family.
#[derive(Default)]
struct Side {
    /// The programs are there, and wanted.
    usable: bool,
    queue: Queue<Then<Result<()>>>,
    /// A program runs.
    running: bool,
    /// Everything is to be made anew, from what there should be: at the start, after a failure, on SIGHUP.
    rebuild: bool,
}

impl Filter {
    pub fn is_usable(&self, family: Family) -> bool {
        self.side(family).usable
    }

    fn side(&self, family: Family) -> &Side {
        if family == Family::V4 { &self.v4 } else { &self.v6 }
    }

    fn side_mut(&mut self, family: Family) -> &mut Side {
        if family == Family::V4 { &mut self.v4 } else { &mut self.v6 }
    }
}

/// Where administration programs live, besides PATH.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(DIRECTORIES.iter().map(std::path::PathBuf::from));
    directories.map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}

/// A file in memory with `content`, for a program's standard input or output.
fn memory_file(content: &[u8]) -> io::Result<std::fs::File> {
    let mut file = std::fs::File::from(sys::fd::memfd_create(c"coracle-filter", 0)?);
    io::Write::write_all(&mut file, content)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn command(program: &str, arguments: &[&str], input: &str) -> io::Result<(Command, std::fs::File)> {
    let path = find_program(program).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    let output = memory_file(b"")?;
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::from(memory_file(input.as_bytes())?));
    command.stdout(Stdio::from(output.try_clone()?)).stderr(Stdio::from(output.try_clone()?));
    Ok((command, output))
}

fn text_of(mut output: std::fs::File) -> String {
    let mut text = String::new();
    let read = output.seek(SeekFrom::Start(0)).and_then(|_| output.take(MAX_OUTPUT).read_to_string(&mut text));
    if let Err(e) = read {
        log::error!("the packet filter's output: {e}");
    }
    text
}

fn failed(program: &str, output: &str) -> Error {
    Error::system(format!("iptables failed: {program}: {}", output.trim().replace('\n', "; ")))
}

impl Daemon {
    /// Which families can be filtered; their rules are made when the loop turns.
    pub(super) fn start_filter(&mut self) {
        for family in [Family::V4, Family::V6] {
            let settings = &self.networks.settings;
            let wanted = settings.iptables && (family == Family::V4 || (settings.ip6tables && self.networks.host_ipv6));
            let usable = wanted && find_program(family.restore()).is_some() && find_program(family.save()).is_some();
            if wanted && !usable {
                log::warn!("{} is not there: published ports are served by the proxy alone", family.restore());
            }
            let side = self.network_loop.filter.side_mut(family);
            (side.usable, side.rebuild) = (usable, usable);
            self.turn_filter(family);
        }
    }

    /// Makes all rules anew: SIGHUP, for when something has flushed them.
    pub fn rebuild_filter(&mut self) {
        for family in [Family::V4, Family::V6] {
            let side = self.network_loop.filter.side_mut(family);
            side.rebuild = side.usable;
            self.turn_filter(family);
        }
    }

    /// Changes rules in one or both families; `then` runs once all of it is in force, or has failed.
    pub(super) fn change_filter(&mut self, batches: Vec<(Family, String)>, then: Then<Result<()>>) {
        if batches.is_empty() {
            return then(self, Ok(()));
        }
        let waiting = Rc::new(RefCell::new((batches.len(), Some(then), Ok(()))));
        for (family, text) in batches {
            let waiting = Rc::clone(&waiting);
            let part: Then<Result<()>> = Box::new(move |daemon, outcome| {
                let mut state = waiting.borrow_mut();
                state.0 -= 1;
                if outcome.is_err() && state.2.is_ok() {
                    state.2 = outcome;
                }
                if state.0 == 0
                    && let Some(then) = state.1.take()
                {
                    let outcome = state.2.clone();
                    drop(state);
                    then(daemon, outcome);
                }
            });
            self.network_loop.filter.side_mut(family).queue.push(text, part);
            self.turn_filter(family);
        }
    }

    /// Starts what is next, if nothing runs.
    fn turn_filter(&mut self, family: Family) {
        let side = self.network_loop.filter.side_mut(family);
        if side.running || !side.usable {
            return;
        }
        if side.rebuild {
            side.rebuild = false;
            return self.run_filter(family, family.save(), &[], "", Box::new(move |daemon, saved| daemon.on_saved(family, saved)));
        }
        if let Some(text) = side.queue.start() {
            self.restore(family, text);
        }
    }

    fn restore(&mut self, family: Family, text: String) {
        log::debug!("{}:\n{text}", family.restore());
        let then: Then<Result<String>> = Box::new(move |daemon, outcome| daemon.on_restored(family, outcome.map(drop)));
        self.run_filter(family, family.restore(), &["--noflush"], &text, then);
    }

    /// What there is, is known: all of ours is made from what there should be, which includes every change that waits.
    fn on_saved(&mut self, family: Family, saved: Result<String>) {
        match saved {
            Ok(saved) => {
                let rules = self.networks.rules(family);
                let text = firewall::rebuild(family, &Present::parse(&saved), &rules, &self.networks.filter);
                self.network_loop.filter.side_mut(family).queue.take_all();
                self.restore(family, text);
            }
            Err(failure) => {
                log::error!("{failure}");
                self.network_loop.filter.side_mut(family).queue.take_all();
                self.on_restored(family, Err(failure));
            }
        }
    }

    fn on_restored(&mut self, family: Family, outcome: Result<()>) {
        let side = self.network_loop.filter.side_mut(family);
        let waiters = side.queue.finish();
        if let Err(failure) = &outcome {
            // A batch is not one transaction over all tables: what there should be is made anew, without what has failed.
            log::error!("{failure}");
            side.rebuild = !waiters.is_empty();
        }
        for then in waiters {
            then(self, outcome.clone());
        }
        self.turn_filter(family);
    }

    fn run_filter(&mut self, family: Family, program: &'static str, arguments: &[&str], input: &str, then: Then<Result<String>>) {
        self.network_loop.filter.side_mut(family).running = true;
        let started = command(program, arguments, input).and_then(|(mut command, output)| Ok((command.spawn()?, output)));
        let (child, output) = match started {
            Ok(started) => started,
            Err(e) => {
                self.network_loop.filter.side_mut(family).running = false;
                return then(self, Err(Error::io(format!("iptables failed: start {program}"), &e)));
            }
        };
        let pid = libc::pid_t::try_from(child.id()).unwrap_or(0);
        let then: Then<sys::process::ExitStatus> = Box::new(move |daemon, status| {
            daemon.network_loop.filter.side_mut(family).running = false;
            let text = text_of(output);
            then(daemon, if status.code() == 0 { Ok(text) } else { Err(failed(program, &text)) });
        });
        self.claim_child(pid, Child::Helper { name: program.to_string(), then });
    }

    /// The orderly stop: our rules go, and we wait for it.
    pub(super) fn stop_filter(&mut self) {
        for family in [Family::V4, Family::V6] {
            if !self.network_loop.filter.is_usable(family) {
                continue;
            }
            let run = |program: &str, arguments: &[&str], input: &str| -> Result<String> {
                let (mut command, output) = command(program, arguments, input).map_err(|e| Error::io(program, &e))?;
                let status = command.status().map_err(|e| Error::io(program, &e))?;
                let text = text_of(output);
                if status.success() { Ok(text) } else { Err(failed(program, &text)) }
            };
            let torn_down = run(family.save(), &[], "").and_then(|saved| {
                let text = firewall::tear_down(&Present::parse(&saved));
                if text.is_empty() { Ok(String::new()) } else { run(family.restore(), &["--noflush"], &text) }
            });
            if let Err(failure) = torn_down {
                log::error!("rules stay behind: {failure}");
            }
        }
    }

    /// Whether the kernel translates published ports of this family.
    pub fn translates(&self, family: Family) -> bool {
        self.network_loop.filter.is_usable(family)
    }

    /// What this host lacks, for `/info`.
    pub fn network_warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        if read("/proc/sys/net/ipv4/ip_forward").trim() == "0" {
            warnings.push("WARNING: IPv4 forwarding is disabled".to_string());
        }
        if self.networks.settings.iptables && !self.translates(Family::V4) {
            warnings.push("WARNING: no iptables program: outbound NAT, isolation between networks and icc=false are missing".into());
        }
        if !Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
            log::debug!("no br_netfilter: not needed, bridge ports are isolated instead");
        }
        warnings
    }
}
