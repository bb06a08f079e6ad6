//! Opens an image for an operation that changes it where it is, or only plans to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chain::{Format, local_path, probe_format};
use crate::io::{Access, FileStorage, Storage, WritableFile, WriteStorage};
use crate::{Error, Result};

/// A QCOW2 image opened for a plan, or to be changed, with QEMU's image locks.
pub(super) struct InPlace {
    /// The file, where a json: name was given.
    pub(super) path: PathBuf,
    pub(super) storage: Arc<dyn Storage>,
    /// The same, to be written to; `None` if only a plan is wanted.
    pub(super) target: Option<Arc<dyn WriteStorage>>,
}

/// Opens the QCOW2 image at `path`; with `dry_run` only to be read.
pub(super) fn writable_image(
    path: &Path,
    format: Option<Format>,
    dry_run: bool,
) -> Result<InPlace> {
    let local = local_path(path)?;
    let (storage, target): (Arc<dyn Storage>, Option<Arc<dyn WriteStorage>>) = if dry_run {
        let storage = FileStorage::open(&local)?;
        storage.lock(Access::READ, Access::WRITE | Access::RESIZE)?;
        (Arc::new(storage), None)
    } else {
        let target: Arc<dyn WriteStorage> = Arc::new(WritableFile::open(&local)?);
        (Arc::clone(&target) as _, Some(target))
    };
    let found = probe_format(&*storage, path, format)?;
    if found != Format::Qcow2 {
        return Err(Error::unsupported(format!("{found} images have no metadata to change")));
    }
    Ok(InPlace { path: local, storage, target })
}
