//! HTTP/1: bytes in, bytes out; knows nothing of containers.

pub mod body;
pub mod connection;
pub mod head;
pub mod query;
pub mod response;

pub use connection::{Connection, Event};
pub use head::{Framing, Head};
pub use query::Query;
pub use response::Response;
pub use tiny_http::Method;

/// A refusal of the bytes themselves, before any route: status code and sentence. The connection closes after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub message: String,
}

impl Refusal {
    pub fn new(status: u16, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into() }
    }
    pub fn bad(message: impl Into<String>) -> Refusal {
        Refusal::new(400, message)
    }
}
