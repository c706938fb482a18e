//! Images: store, layers, recipes, references, archives.

pub mod archive;
pub mod config;
pub mod digest;
pub mod layer;
pub mod names;
pub mod reference;
#[cfg(test)]
pub(crate) mod scratch;
pub mod state_file;
