//! Images that were cut short: their tables refer to what is past the end of the file. QEMU reads
//! zeros there, and so do we; but it is said.
//!
//! It is noticed while ranges are resolved, at no cost, and only then counted.

use std::sync::Arc;

use std::path::PathBuf;

use super::ExtentKind;
use crate::Result;
use crate::chain::{Chain, Layer};
use crate::image::{Run, RunKind};

/// A file of a chain that ends before what its image refers to. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct Truncation {
    /// The file.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::chain::path_text"))]
    pub filename: PathBuf,
    /// Where it ends.
    pub file_length: u64,
    /// Bytes of the guest's disk that would lie past that, and read as zeros.
    pub missing_bytes: u64,
    /// Bytes of the layer's disk of which the L2 table, or the entry of the L1 table, would lie past
    /// that: they count as not allocated, whatever the layer held there.
    pub unmapped_bytes: u64,
}

impl Chain {
    /// The files that end before what their images refer to, if that was met in any range that was
    /// mapped or read before. The sums are of the whole disk: if there is any such file, all tables are
    /// gone through for them.
    ///
    /// # Errors
    /// What reading tables raises.
    pub fn truncations(&self) -> Result<Vec<Truncation>> {
        let noticed = |layer: &Layer| layer.image().is_some_and(|image| image.passes_end());
        if !self.layers().iter().any(noticed) {
            return Ok(Vec::new());
        }
        let mut missing = vec![0u64; self.layers().len()];
        for extent in self.extents() {
            let extent = extent?;
            if let (ExtentKind::Data { host }, Some(layer), Some(missing)) =
                (extent.kind, self.layers().get(extent.depth), missing.get_mut(extent.depth))
                && layer.image().is_some()
            {
                *missing = missing.saturating_add(past_end(layer, host.0, extent.len));
            }
        }
        let mut found = Vec::new();
        for (layer, missing_bytes) in self.layers().iter().zip(missing) {
            let Some(image) = layer.image() else { continue };
            let unmapped_bytes =
                image.unmapped_past_end().map_err(|error| error.file(layer.path()))?;
            // What is in a data file is cut off there.
            let mut add = |filename: &std::path::Path,
                           file_length,
                           missing_bytes,
                           unmapped_bytes| {
                if missing_bytes > 0 || unmapped_bytes > 0 {
                    let filename = filename.to_path_buf();
                    found.push(Truncation { filename, file_length, missing_bytes, unmapped_bytes });
                }
            };
            let (data, file) = (layer.data_storage(), layer.storage());
            if Arc::ptr_eq(data, file) {
                add(layer.path(), file.len(), missing_bytes, unmapped_bytes);
            } else {
                add(layer.path(), file.len(), 0, unmapped_bytes);
                add(layer.data_path(), data.len(), missing_bytes, 0);
            }
        }
        Ok(found)
    }
}

/// Remembers whether one of the runs passes the end of the layer's file.
pub(super) fn notice(layer: &Layer, runs: &[Run]) {
    let Some(image) = layer.image() else { return };
    let passes = |run: &Run| match run.kind {
        RunKind::Data(host) => past_end(layer, host.0, run.len) > 0,
        // What is left of a cut compressed cluster does not decode: that is an error when it is read.
        _ => false,
    };
    if runs.iter().any(passes) {
        image.note_passes_end();
    }
}

/// How many of `len` bytes at `host` lie past the end of the file that holds the layer's data.
fn past_end(layer: &Layer, host: u64, len: u64) -> u64 {
    host.saturating_add(len).saturating_sub(layer.data_storage().len().max(host))
}
