//! One module per operation, each with its own `Options` and `Outcome`.

pub mod check;
pub mod checksum;
pub mod create;
pub mod flatten;
pub mod info;
mod pipeline;
mod target;

pub use target::{Preallocation, Qcow2Options, RawOptions, TargetOptions};
