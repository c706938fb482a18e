//! Commands.

/// Runs the command line; the exit status.
pub fn main() -> i32 {
    2
}
