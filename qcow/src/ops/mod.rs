//! One module per operation, each with its own `Options` and `Outcome`.

pub mod check;
pub mod checksum;
pub mod compare;
pub mod create;
#[cfg(feature = "digest")]
pub mod digest;
pub mod flatten;
pub mod info;
pub mod map;
pub mod measure;
mod not_carried;
mod offload;
mod pipeline;
mod salvage;
mod sequencer;
mod target;
mod threads;
mod users;

pub use not_carried::{NotCarried, Property};
pub use salvage::DamageReport;
pub use target::{Preallocation, Qcow2Options, RawOptions, TargetOptions};
pub use threads::usual_threads;
pub use users::begin;

pub(crate) use crate::chain::path_text;
pub(crate) use target::new_disk_size;
