//! Directories that the destination does not have: made if that is allowed, else refused.

use std::path::Path;

use super::policy::Policy;
use super::value::{Action, BasePlan, DiskPlan, Refusal, Row};
use super::words::refuse;
use crate::Remedy;
use crate::facts::{Facts, MissingDirectory, above};

/// Why nothing can be made at `path` at the destination, and the way out. `unusable` is what was found about its
/// directory.
pub(super) fn obstacle(
    facts: &Facts,
    policy: &Policy,
    path: &Path,
    unusable: Option<&String>,
) -> Option<(String, Remedy)> {
    if let Some(why) = unusable {
        return Some((why.clone(), Remedy::MakeDirectory));
    }
    let missing = above(&facts.missing, path).last()?;
    (!policy.make_directories).then(|| {
        let directory = missing.path.display();
        (format!("there is no directory '{directory}'"), Remedy::AllowDirectory)
    })
}

/// Refuses disks whose backing file would be copied to a directory that must not be made.
pub(super) fn refuse_bases(facts: &Facts, policy: &Policy, disks: &[DiskPlan]) -> Vec<Refusal> {
    let refused = disks.iter().filter_map(|disk| {
        let path = base_copy(&disk.action)?;
        let (why, way_out) = obstacle(facts, policy, path, None)?;
        let message = format!("its backing file cannot be copied to '{}': {why}", path.display());
        Some(refuse(Row::PlaceUnusable.code(), Some(&disk.target), message, way_out))
    });
    refused.collect()
}

/// The directories to be made for files at these paths, those above before those below.
pub(super) fn needed(facts: &Facts, made: &[&Path]) -> Vec<MissingDirectory> {
    let is_above = |directory: &&MissingDirectory| {
        let directory = std::slice::from_ref(*directory);
        made.iter().any(|path| above(directory, path).next().is_some())
    };
    facts.missing.iter().filter(is_above).cloned().collect()
}

fn base_copy(action: &Action) -> Option<&Path> {
    match action {
        Action::Create { base: Some(BasePlan::BaseCopy { path, .. }), .. } => Some(path),
        _ => None,
    }
}
