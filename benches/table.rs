//! The table of figures, all of one run on one machine: ours beside the floor, crun and dockerd where they are installed.
//!
//! `make bench` builds the release binary and names it in CORACLE; `--out FILE` keeps the table.

#[path = "../tests/common/mod.rs"]
#[allow(dead_code)] // the tests use the rest
mod common;
mod crun;
mod engine;
mod floor;

use engine::{Engine, Kind};
use std::fmt::Write;
use std::time::{Duration, Instant};

fn main() {
    // `cargo test --benches` calls this with --test: there is nothing to check.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--test") {
        return;
    }
    if coracle::sys::process::geteuid() != 0 {
        eprintln!("make bench: containers need namespaces, mounts and cgroups, which only root may make: sudo make bench");
        std::process::exit(1);
    }
    let out = args.iter().position(|arg| arg == "--out").and_then(|at| args.get(at + 1));
    let table = table();
    print!("{table}");
    if let Some(path) = out
        && let Err(e) = std::fs::write(path, &table)
    {
        eprintln!("{path}: {e}");
        std::process::exit(1);
    }
}

/// One figure of each contestant; `None` where it has none.
struct Row {
    what: &'static str,
    unit: &'static str,
    ours: f64,
    floor: Option<f64>,
    crun: Option<f64>,
    dockerd: Option<f64>,
    aim: &'static str,
    /// Whether a larger figure is the better one.
    more_is_better: bool,
}

fn table() -> String {
    let mut rows = Vec::new();
    let floor = floor::median_ms(100);
    eprintln!("the floor: {floor:.2?} ms");
    let crun = crun::median_ms(50);
    eprintln!("crun run: {crun:.2?} ms; now coracle …");
    let ours = measure(Kind::Coracle).expect("ours is always there");
    eprintln!("now dockerd …");
    let dockerd = measure(Kind::Dockerd);
    let mut row = |what, unit, figure: fn(&Figures) -> f64, floor, crun, aim, more_is_better| {
        rows.push(Row { what, unit, ours: figure(&ours), floor, crun, dockerd: dockerd.as_ref().map(figure), aim, more_is_better });
    };
    row("create, start, wait, delete `true`", "ms", |f| f.cycle_ms, floor, crun, "≤ 1.5 × floor, dockerd ≥ 30 ×", false);
    row("exec `true`", "ms", |f| f.exec_ms, None, None, "dockerd ≥ 20 ×", false);
    row("100 starts by 8 clients", "per s", |f| f.starts_per_s, None, None, "≥ 30 × dockerd", true);
    row("daemon start to first ping", "ms", |f| f.boot_ms, None, None, "< 20 ms", false);
    row("memory, idle (PSS)", "MiB", |f| f.idle_mib, None, None, "< 4 MiB", false);
    row("memory per running container", "KiB", |f| f.container_kib, None, None, "< 30 kB", false);
    row("binaries on disk", "MB", |f| f.size_mb, None, None, "< 5 MB", false);
    row("GET /_ping, 4 connections", "per s", |f| f.pings_per_s, None, None, "≥ 3 × dockerd", true);
    row("GET /containers/json, 100 of them", "per s", |f| f.lists_per_s, None, None, "≥ 50 × dockerd", true);
    row("stdout into the log", "MB/s", |f| f.log_write_mb_s, None, None, "≥ 10 × dockerd", true);
    row("GET logs", "MB/s", |f| f.log_read_mb_s, None, None, "≥ 30 × dockerd", true);
    row("attach stdout", "MB/s", |f| f.attach_mb_s, None, None, "≥ 3 × dockerd", true);
    render(&rows)
}

fn render(rows: &[Row]) -> String {
    let mut text = format!("{}\n\n", machine());
    let _ = writeln!(
        text,
        "{:<36}{:>6}{:>10}{:>9}{:>9}{:>10}{:>12}{:>14}  aim",
        "medians", "", "coracle", "floor", "crun", "dockerd", "× floor", "× dockerd"
    );
    for row in rows {
        let cell = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), number);
        let better = |other: f64| if row.more_is_better { row.ours / other } else { other / row.ours };
        let _ = writeln!(
            text,
            "{:<36}{:>6}{:>10}{:>9}{:>9}{:>10}{:>12}{:>14}  {}",
            row.what,
            row.unit,
            number(row.ours),
            cell(row.floor),
            cell(row.crun),
            cell(row.dockerd),
            row.floor.map_or_else(|| "-".to_owned(), |floor| format!("{:.2}", row.ours / floor)),
            row.dockerd.map_or_else(|| "-".to_owned(), |dockerd| format!("{:.1} better", better(dockerd))),
            row.aim
        );
    }
    text
}

fn number(figure: f64) -> String {
    if figure >= 100.0 { format!("{figure:.0}") } else { format!("{figure:.2}") }
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned()));
    format!(
        "Linux {}, {cpus} processors, {}",
        read("/proc/sys/kernel/osrelease").trim(),
        model.unwrap_or_else(|| "unknown model".to_owned())
    )
}

/// What one engine does.
struct Figures {
    cycle_ms: f64,
    exec_ms: f64,
    starts_per_s: f64,
    boot_ms: f64,
    idle_mib: f64,
    container_kib: f64,
    size_mb: f64,
    pings_per_s: f64,
    lists_per_s: f64,
    log_write_mb_s: f64,
    log_read_mb_s: f64,
    attach_mb_s: f64,
}

fn measure(kind: Kind) -> Option<Figures> {
    let few = kind == Kind::Dockerd;
    let boot_ms = median(
        (0..if few { 3 } else { 15 })
            .map(|_| Engine::boot(kind).map(|engine| engine.boot.as_secs_f64() * 1e3))
            .collect::<Option<Vec<_>>>()?,
    );
    let engine = Engine::boot(kind)?;
    engine.import();
    let idle = engine.memory();
    let cycle_ms = median((0..if few { 20 } else { 100 }).map(|_| millis(|| engine.cycle())).collect());
    let running: Vec<String> = (0..50).map(|_| engine.start_sleeper()).collect();
    let container_kib = (engine.memory().saturating_sub(idle)) as f64 / 50.0 / 1024.0;
    let exec_ms = median((0..if few { 20 } else { 100 }).map(|_| millis(|| engine.exec(&running[0]))).collect());
    running.iter().for_each(|id| engine.remove(id));
    let starts_per_s = engine.concurrent_starts(100, 8);
    let pings_per_s = engine.requests_per_s("/_ping", 4, Duration::from_secs(2));
    let created: Vec<String> = (0..100).map(|_| engine.create_idle()).collect();
    let lists_per_s = engine.requests_per_s("/containers/json?all=1", 1, Duration::from_secs(2));
    created.iter().for_each(|id| engine.remove(id));
    let megabytes = if few { 100 } else { 400 };
    let (log_write_mb_s, log_read_mb_s) = engine.log_speed(megabytes);
    let attach_mb_s = engine.attach_speed(400);
    Some(Figures {
        cycle_ms,
        exec_ms,
        starts_per_s,
        boot_ms,
        idle_mib: idle as f64 / 1048576.0,
        container_kib,
        size_mb: engine.size_on_disk() as f64 / 1e6,
        pings_per_s,
        lists_per_s,
        log_write_mb_s,
        log_read_mb_s,
        attach_mb_s,
    })
}

/// The middle of the figures; not a number when there are none.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn millis(deed: impl FnOnce()) -> f64 {
    let start = Instant::now();
    deed();
    start.elapsed().as_secs_f64() * 1e3
}
