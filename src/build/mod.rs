//! The builder: the Dockerfile language, its steps and their cache, and the worker that carries them out.

pub mod args;
pub mod cache;
mod context;
mod copy;
pub mod dockerfile;
mod engine;
pub mod expand;
mod fetch;
pub mod glob;
pub mod golang;
pub mod ignore;
mod image;
pub mod job;
pub mod lex;
pub mod mounts;
pub mod pattern;
pub mod ports;
pub mod stages;
pub mod steps;
mod work;
