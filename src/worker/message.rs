//! The messages between workers and the daemon. Each area adds its own; unknown or malformed ones end the worker.

use crate::error::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// From a worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// The answer's head is on its way to the client: the daemon must not write to it any more.
    HeadSent,
    /// An event to publish.
    Event { kind: String, action: String, id: String, attributes: BTreeMap<String, String> },
}

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Done,
    Error { kind: Kind, message: String },
}
