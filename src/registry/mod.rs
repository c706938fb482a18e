//! The registry client: names to addresses, trust, credentials, manifests and blobs over HTTP.
//!
//! All of it is blocking code for worker processes; nothing here starts a thread, and the daemon hears of it by messages only.

pub mod auth;
mod blob;
pub mod client;
mod dns;
pub mod endpoint;
pub mod fault;
mod fetch;
pub mod inspect;
pub mod manifest;
pub(crate) mod process;
pub mod progress;
mod proxy;
pub mod pull;
pub mod push;
mod resolver;
pub mod search;
mod send;
pub mod transport;
mod trust;
pub mod upload;
