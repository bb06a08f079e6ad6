//! Facts and a policy become a plan, or refusals. Pure: nothing here looks at a host.
//!
//! The decision table (which row fits a disk) and the proof obligations (when an incremental copy may
//! be used) live here and nowhere else.

mod policy;
mod value;

pub use policy::{PathMap, Policy, Style, Verify};
pub use value::{
    Action, BasePlan, CopyMode, DiskPlan, Flag, Mode, NewImage, Plan, Predicted, Proof, Refusal,
    Row, SCHEMA, SeedHow, Warning,
};

use crate::facts::Facts;

/// Decides for every disk what to do, or says why not.
///
/// # Errors
/// All refusals, not only the first.
pub fn plan(_facts: &Facts, _policy: &Policy) -> Result<Plan, Vec<Refusal>> {
    Err(vec![])
}

/// The name of a base that is brought to the destination where `path` is taken by something else: the
/// same with the first twelve digits of its digest.
pub fn seed_name(path: &std::path::Path, digest: &str) -> std::path::PathBuf {
    let digest: String = digest.chars().take(12).collect();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}-{digest}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{digest}"),
    };
    path.with_file_name(name)
}
