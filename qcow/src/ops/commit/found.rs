//! The chain of an overlay, by its headers, and where in it the base is.

use std::path::{Path, PathBuf};

use crate::chain::{Files, Format, LayerFound, OpenOptions, walk};
use crate::io::{FileStorage, Identity};
use crate::{Error, Escaped, Result};

/// Where a commit goes. The files have been closed again: the base is opened for writing next.
pub(super) struct Found {
    /// How many images are above the base.
    pub(super) depth: usize,
    pub(super) base: PathBuf,
    pub(super) format: Format,
    pub(super) base_identity: Identity,
    /// Virtual size of the base.
    pub(super) base_size: u64,
    pub(super) overlay_identity: Identity,
    /// The files whose overlays read as something else afterwards: the base, and what is between.
    pub(super) changed: Vec<(PathBuf, Identity)>,
    /// All files above the base.
    pub(super) known: Vec<Identity>,
}

impl Found {
    pub(super) fn look(path: &Path, open: &OpenOptions, wanted: Option<&Path>) -> Result<Self> {
        let mut layers: Vec<LayerFound<FileStorage>> = Vec::new();
        for found in walk(Files::new(open), path, open) {
            layers.push(found.map_err(|broken| broken.error)?);
        }
        let depth = match wanted {
            None if layers.len() < 2 => {
                return Err(Error::usage("the image has no backing file").file(path));
            }
            None => 1,
            Some(wanted) => position(&layers, wanted).ok_or_else(|| {
                let name = wanted.to_string_lossy();
                let message = format!("'{}' is not in the backing chain", Escaped(&name));
                Error::usage(message).file(path).hint("name a backing file of the chain")
            })?,
        };
        let above = layers.get(..depth).unwrap_or_default();
        let (Some(base), Some(overlay)) = (layers.get(depth), layers.first()) else {
            return Err(Error::internal("the base is not in its chain"));
        };
        if base.states_data_file() {
            return Err(Error::unsupported(
                "the base is named with another data file than its header has",
            )
            .file(&base.path));
        }
        if base.is_part_of_file() {
            return Err(
                Error::unsupported("the base is named as a range of a file").file(&base.path)
            );
        }
        let between = above.get(1..).unwrap_or_default().iter();
        let changed =
            between.chain([base]).map(|found| (found.path.clone(), found.file.identity()));
        Ok(Self {
            depth,
            base: base.path.clone(),
            format: base.format,
            base_identity: base.file.identity(),
            base_size: base.virtual_size().map_err(|error| error.file(&base.path))?,
            overlay_identity: overlay.file.identity(),
            changed: changed.collect(),
            known: above.iter().map(|found| found.file.identity()).collect(),
        })
    }
}

/// Which of the layers below the first `wanted` means.
fn position(layers: &[LayerFound<FileStorage>], wanted: &Path) -> Option<usize> {
    let identity = FileStorage::identity_of(wanted);
    let recorded = |depth: usize| {
        let above = layers.get(depth.checked_sub(1)?)?;
        let name = above.header.as_ref()?.backing_name.as_deref()?;
        Some(name == wanted.as_os_str().as_encoded_bytes())
    };
    let by_name = (1..layers.len()).find(|depth| recorded(*depth) == Some(true));
    by_name.or_else(|| {
        let same = |layer: &LayerFound<FileStorage>| identity == Some(layer.file.identity());
        layers.iter().skip(1).position(same)?.checked_add(1)
    })
}
