//! The log: one line per thing worth knowing, to stderr, controls escaped so that no name can forge a line.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fmt::Write as _;
use std::io::Write as _;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // Libraries speak only when they fail: rustls and ureq would tell of headers.
        metadata.target().starts_with("coracle") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = crate::timestamp::rfc3339_fixed(crate::sys::time::realtime_ns());
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        };
        let mut line = format!("{now} {level:7} ");
        for c in record.args().to_string().chars() {
            if c.is_control() {
                let _ = write!(line, "{}", c.escape_default());
            } else {
                line.push(c);
            }
        }
        line.push('\n');
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// The level of dockerd's name; `None` for an unknown one.
pub fn level(name: &str) -> Option<LevelFilter> {
    match name {
        "debug" => Some(LevelFilter::Debug),
        "info" => Some(LevelFilter::Info),
        "warn" | "warning" => Some(LevelFilter::Warn),
        "error" | "fatal" | "panic" => Some(LevelFilter::Error),
        "trace" => Some(LevelFilter::Trace),
        _ => None,
    }
}

/// Installs the logger; harmless when called again.
pub fn install(filter: LevelFilter) {
    let _ = log::set_logger(&Stderr);
    log::set_max_level(filter);
}
