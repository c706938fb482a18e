//! What every black-box test stands on: a world of its own, a daemon in it, clients, images, and the count of what is left.

pub mod cli;
pub mod dockerd;
pub mod http;
pub mod image;
pub mod leftovers;
pub mod world;

pub use http::{Answer, Connection, demultiplex, encode};
pub use world::{Daemon, World};

use std::io::Write;
use std::time::{Duration, Instant};

/// Tests that may be skipped where a machine lacks something: a name and the reason, one a line.
const SKIPS: &str = include_str!("../skips.txt");

/// For a test whose machine lacks `what`: passes over it when its name stands in tests/skips.txt, fails otherwise.
/// The names passed over are collected in the file that CORACLE_SKIPPED names, for the count at the end.
#[track_caller]
pub fn skip(what: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or_default();
    let listed = SKIPS.lines().any(|line| !line.starts_with('#') && line.split_whitespace().next() == Some(name));
    assert!(listed, "this machine lacks {what}, and tests/skips.txt does not list {name}");
    println!("skipped {name}: no {what}");
    if let Some(path) = std::env::var_os("CORACLE_SKIPPED") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| writeln!(file, "{name}: {what}")).expect("CORACLE_SKIPPED can be written");
    }
}

/// Leaves the test, skipped, unless the condition holds.
#[macro_export]
macro_rules! needs {
    ($condition:expr, $what:expr) => {
        if !$condition {
            return $crate::common::skip($what);
        }
    };
}

/// Looks again every few milliseconds until `condition` gives something; fails after `limit`.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The path of a program on PATH.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}
