//! Images: store, layers, recipes, references, archives.

pub mod archive;
pub mod digest;
pub mod reference;
#[cfg(test)]
pub(crate) mod scratch;
pub mod state_file;
