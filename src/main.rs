//! Picks the face that was called: daemon, command line, init.

fn main() {
    std::process::exit(coracle::cli::main());
}
