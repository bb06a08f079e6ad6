//! Names at the destination for base copies: backing files that have to be copied there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::facts::Facts;

/// Names for the base copies that may have to be made, none of which exists.
#[derive(Debug, Default)]
pub(super) struct BaseCopyNames(BTreeMap<String, PathBuf>);

impl BaseCopyNames {
    /// For each disk with lower layers the mapped path of its base; or, if that is taken, that name with
    /// the start of the digest.
    pub(super) fn new(facts: &Facts) -> Self {
        let taken: BTreeSet<&Path> = facts
            .disks
            .iter()
            .filter_map(|disk| disk.destination.as_ref())
            .flat_map(|destination| {
                let bases = destination.bases.iter().flat_map(|base| {
                    base.chain.iter().map(|layer| layer.path.as_path()).chain([base.path.as_path()])
                });
                bases.chain([destination.path.as_path()])
            })
            .collect();
        let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
        let mut contents: BTreeMap<PathBuf, &str> = BTreeMap::new();
        for disk in &facts.disks {
            let (Some(chain), Some(destination)) = (&disk.chain, &disk.destination) else {
                continue;
            };
            let (Some(digest), Some(path)) = (&chain.below, &destination.base_path) else {
                continue;
            };
            let free = |path: &PathBuf| {
                // One file serves all disks with the same backing file.
                let same = contents.get(path).is_none_or(|content| content == digest);
                same && !taken.contains(path.as_path())
            };
            let candidates = [path.clone(), base_copy_name(path, digest)];
            if let Some(path) = candidates.into_iter().find(free) {
                contents.insert(path.clone(), digest);
                names.insert(disk.target.clone(), path);
            }
        }
        Self(names)
    }

    /// That of the base of a disk.
    pub(super) fn get(&self, target: &str) -> Option<&Path> {
        self.0.get(target).map(PathBuf::as_path)
    }
}

/// The name of a base copy at the destination where `path` is taken by another file: the
/// same with the first twelve digits of its digest.
pub fn base_copy_name(path: &Path, digest: &str) -> PathBuf {
    let digest: String = digest.chars().take(12).collect();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}-{digest}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{digest}"),
    };
    path.with_file_name(name)
}
