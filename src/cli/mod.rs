//! Commands: which face of the binary was called.

/// Runs the command line; the exit status.
pub fn main() -> i32 {
    let args: Vec<String> = std::env::args().collect();
    let name = args.first().and_then(|path| path.rsplit('/').next()).unwrap_or("coracle");
    match (name, args.get(1).map(String::as_str)) {
        ("dockerd", _) => crate::daemon::start::main(args.get(1..).unwrap_or_default()),
        (_, Some("stage")) => crate::container::stage::main(&args[2..]),
        (_, Some("daemon")) => crate::daemon::start::main(&args[2..]),
        (_, Some("--version" | "-v" | "version")) => {
            println!("Coracle version {}", env!("CARGO_PKG_VERSION"));
            0
        }
        _ => {
            eprintln!("Usage:  coracle daemon [OPTIONS]\n\nRun 'coracle daemon --help' for the daemon's options.");
            2
        }
    }
}
