//! The builder: the Dockerfile language, its steps and their cache. Pure but for the build worker itself.

pub mod args;
pub mod cache;
pub mod dockerfile;
pub mod expand;
pub mod glob;
pub mod golang;
pub mod ignore;
pub mod lex;
pub mod mounts;
pub mod pattern;
pub mod ports;
pub mod stages;
pub mod steps;
