//! Bytes in and out of trees: tar streams, their compression, and the directories they stand for.
//!
//! All of it is blocking code for forked workers. What comes in is hostile: every number is checked, every buffer
//! bounded, every path walked component by component below a directory descriptor.

pub mod apply;
mod bzip2;
pub mod changes;
pub mod compress;
pub mod copy;
pub mod decompress;
pub mod encode;
pub mod header;
pub mod ingest;
pub mod jail;
mod place;
pub mod reader;
pub mod recipe;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tree_tests;
pub mod walk;
pub mod write;
mod xz;

use crate::error::{Error, Kind};
use std::io;

/// An `io::Error` that carries a refusal of hostile or broken input through `Read` and `Write`; see [`from_io`].
pub(crate) fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::other(Error::invalid(message))
}

/// A stream that ends in the middle of something.
pub(crate) fn unexpected_eof() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, Error::invalid("unexpected EOF"))
}

/// Back from `io::Error` to our own: a refusal that travelled inside it, or a failed call on `what`.
pub(crate) fn from_io(what: &str, cause: io::Error) -> Error {
    if let Some(inner) = cause.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return inner.clone();
    }
    match cause.kind() {
        io::ErrorKind::UnexpectedEof => Error::invalid("unexpected EOF"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(Kind::System, format!("{what}: no space left on device")),
        _ => Error::io(what, &cause),
    }
}
