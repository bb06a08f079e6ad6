//! Directories that are missing at the destination.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A directory that the destination does not have, and what one like it has at the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MissingDirectory {
    /// Its path at the destination.
    pub path: PathBuf,
    /// The rights of the source's directory in its place.
    #[serde(flatten)]
    pub rights: DirectoryRights,
}

/// Who may do what in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirectoryRights {
    /// The twelve bits of its mode.
    pub mode: u32,
    /// The number of its owner.
    pub owner: u32,
    /// The number of its group.
    pub group: u32,
    /// Its SELinux label; `None` if it has none.
    pub label: Option<String>,
}

/// Those of `missing` that have to be made for a file at `path`, the uppermost first; none if its directory exists.
pub(crate) fn above<'a>(
    missing: &'a [MissingDirectory],
    path: &'a Path,
) -> impl Iterator<Item = &'a MissingDirectory> {
    missing
        .iter()
        .filter(move |directory| path != directory.path && path.starts_with(&directory.path))
}
