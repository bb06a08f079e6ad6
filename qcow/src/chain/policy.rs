//! Which files an image may have opened, and how much it may demand.

use std::path::{Path, PathBuf};

use crate::io::FileStorage;
use crate::{Error, Result};

/// The deepest chain that can be opened, the active layer included.
pub const MAX_DEPTH: usize = 200;

/// Which files an image may name and have opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FilePolicy {
    /// Any regular file or block device that the process can open.
    #[default]
    AnyLocal,
    /// Only files that really live below one of these directories, symbolic links resolved.
    Within(Vec<PathBuf>),
    /// Only files below this directory, which is taken for the root of all names: absolute ones and
    /// symbolic links begin there as well, and nothing leads out. Holds for the active layer too.
    InRoot(PathBuf),
    /// None.
    Deny,
}

impl FilePolicy {
    /// Opens `path` if that is allowed. The check is made on what was opened, so nobody can swap
    /// the file in between.
    pub(crate) fn open(&self, path: &Path) -> Result<FileStorage> {
        if *self == Self::Deny {
            return Err(Error::denied("the policy does not allow opening it").file(path));
        }
        if let Self::InRoot(root) = self {
            return FileStorage::open_in_root(root, path);
        }
        let storage = FileStorage::open(path)?;
        if let Self::Within(roots) = self {
            let real = storage.resolved_path().map_err(|error| error.file(path))?;
            let allowed = roots
                .iter()
                .any(|root| root.canonicalize().is_ok_and(|root| real.starts_with(root)));
            if !allowed {
                return Err(Error::denied("it lives outside the allowed directories")
                    .file(path)
                    .hint("allow its directory with --allow-dir"));
            }
        }
        Ok(storage)
    }
}

/// What may be opened on the word of an image. The image that the caller names is always opened,
/// but within the root if `backing` gives one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Backing files.
    pub backing: FilePolicy,
    /// External data files.
    pub data_file: FilePolicy,
}

/// How much an image may demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Images in a chain, the active layer included; never more than [`MAX_DEPTH`].
    pub max_depth: usize,
    /// Largest virtual size in bytes.
    pub max_virtual_size: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_depth: MAX_DEPTH, max_virtual_size: i64::MAX.unsigned_abs() }
    }
}
