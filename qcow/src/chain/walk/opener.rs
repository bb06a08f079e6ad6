//! Where the files of a chain come from.

use std::path::Path;

use super::super::{FilePolicy, Format, OpenOptions, lock_for_reading};
use crate::Result;
use crate::io::{FileStorage, Identity, Storage};

/// Opens the files of a chain: below a root, through descriptors, from a storage pool.
pub trait Open {
    /// What it opens.
    type File: Storage;

    /// Opens the file that is called `path`. `depth` 0 is the active layer.
    ///
    /// # Errors
    /// Why it could not be opened; [`Io`](crate::ErrorKind::Io) with the system's own error where there is one, so
    /// that a file that is gone can be told from others.
    fn open(&self, path: &Path, depth: usize) -> Result<Self::File>;

    /// Which object the file is, so that a chain that comes back to it is noticed at once. `None` if that
    /// is not known: then equal paths are one object.
    fn identity(&self, file: &Self::File) -> Option<Identity> {
        let _ = file;
        None
    }

    /// Called when the format is known, before the header is read.
    ///
    /// # Errors
    /// Why the file is not to be read.
    fn check(&self, file: &Self::File, format: Format, depth: usize) -> Result<()> {
        let _ = (file, format, depth);
        Ok(())
    }
}

/// Local files, as [`OpenOptions`] let them be opened: by its policy, with its replacements, and, unless
/// other processes may write meanwhile, with QEMU's locks.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    options: &'a OpenOptions,
}

impl<'a> Files<'a> {
    /// Files by these options.
    pub fn new(options: &'a OpenOptions) -> Self {
        Self { options }
    }
}

impl Open for Files<'_> {
    type File = FileStorage;

    fn open(&self, path: &Path, depth: usize) -> Result<FileStorage> {
        let policy = &self.options.policy;
        let backing = &policy.backing;
        let replacement = self.options.overrides.iter().find(|(name, _)| name == path);
        match replacement {
            Some((_, file)) if !matches!(backing, FilePolicy::InRoot(_)) => FileStorage::open(file),
            Some((_, file)) => backing.open(file),
            None if depth == 0 => policy.open_active(path),
            None => backing.open(path),
        }
    }

    fn identity(&self, file: &FileStorage) -> Option<Identity> {
        Some(file.identity())
    }

    fn check(&self, file: &FileStorage, format: Format, depth: usize) -> Result<()> {
        if !self.options.force_share {
            lock_for_reading(file, format)?;
        }
        if depth == 0 { self.options.policy.check_format(file, format) } else { Ok(()) }
    }
}
