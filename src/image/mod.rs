//! Images: store, layers, recipes, references, archives.

pub mod archive;
pub mod commit;
pub mod config;
pub mod digest;
pub mod import;
pub mod insert;
pub mod layer;
pub mod load;
pub mod names;
mod open;
mod outer;
pub mod place;
pub mod reference;
pub mod remove;
pub mod save;
#[cfg(test)]
pub(crate) mod scratch;
pub mod state_file;
pub mod store;
#[cfg(test)]
pub(crate) mod support;
pub mod sweep;
pub mod work;

pub use open::keep_refs;
pub use store::Store;
