//! Picks the face that was called: daemon, command line, init.

use std::ffi::OsString;
use std::path::Path;

fn main() {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args.first().and_then(|path| Path::new(path).file_name());
    std::process::exit(match name.and_then(|name| name.to_str()) {
        Some("docker-init") => coracle::container::init::main(args.get(1..).unwrap_or_default()),
        _ => coracle::cli::main(),
    });
}
