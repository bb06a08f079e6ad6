//! One module per operation, each with its own `Options` and `Outcome`.

pub mod checksum;
pub mod compare;
pub mod create;
pub mod digest;
pub mod flatten;
pub mod info;
pub mod map;
pub mod measure;
mod pipeline;
mod target;
mod turns;

pub use target::{Preallocation, Qcow2Options, RawOptions, TargetOptions};
