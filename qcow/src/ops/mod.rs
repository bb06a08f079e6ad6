//! One module per operation, each with its own `Options` and `Outcome`.

use std::path::Path;

pub mod check;
pub mod checksum;
pub mod compare;
pub mod create;
pub mod digest;
pub mod flatten;
pub mod info;
pub mod map;
pub mod measure;
mod not_carried;
mod pipeline;
mod salvage;
mod shortcut;
mod target;
mod turns;
mod users;

pub use not_carried::{NotCarried, Property};
pub use salvage::DamageReport;
pub use target::{Preallocation, Qcow2Options, RawOptions, TargetOptions};
pub use users::begin;

/// File names need not be UTF-8; JSON must be.
pub(crate) fn path_text<S: serde::Serializer>(
    path: &Path,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}
