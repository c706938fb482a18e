//! The error that crosses module borders: what kind of refusal it is, and the sentence for the client.
//!
//! Resources choose the kind; only `api` turns a kind into a status code. The kinds are those of the
//! Engine API's own vocabulary (moby's `errdefs`), so that the mapping stays one table.

use std::fmt;
use std::io;

/// Why a request could not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// The client's input is malformed or out of range (400).
    InvalidParameter,
    /// Credentials are missing or refused (401).
    Unauthorized,
    /// The request is understood and refused (403).
    Forbidden,
    /// The named object does not exist (404).
    NotFound,
    /// The object's state contradicts the request (409).
    Conflict,
    /// Already as requested; not a failure to the client (304).
    NotModified,
    /// This engine or kernel cannot do it (501).
    NotImplemented,
    /// Cannot be served now, later perhaps (503).
    Unavailable,
    /// Our own failure, or the kernel's (500).
    System,
}

/// A refusal or failure: its kind, and the message the client reads, in Docker's words where Docker has some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(Kind::InvalidParameter, message)
    }
    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(Kind::NotFound, message)
    }
    pub fn conflict(message: impl Into<String>) -> Error {
        Error::new(Kind::Conflict, message)
    }
    pub fn forbidden(message: impl Into<String>) -> Error {
        Error::new(Kind::Forbidden, message)
    }
    pub fn not_implemented(message: impl Into<String>) -> Error {
        Error::new(Kind::NotImplemented, message)
    }
    pub fn system(message: impl Into<String>) -> Error {
        Error::new(Kind::System, message)
    }
    /// A failed system call: `what` names the call and its object ("open /etc/passwd").
    pub fn io(what: impl fmt::Display, cause: &io::Error) -> Error {
        Error::new(Kind::System, format!("{what}: {}", strerror(cause)))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The cause as Docker's clients know it: the C library's words, lower case, without "(os error N)".
pub fn strerror(cause: &io::Error) -> String {
    let text = cause.to_string();
    let text = match text.find(" (os error") {
        Some(end) => &text[..end],
        None => &text,
    };
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strerror_speaks_like_the_reference() {
        let cause = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(strerror(&cause), "no such file or directory");
    }
}
