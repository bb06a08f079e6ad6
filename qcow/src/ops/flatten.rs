//! Makes one standalone image out of a whole chain.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::TargetOptions;
use crate::chain::{Chain, Format};
use crate::{CancelToken, Error, Observer, Result};

/// How to flatten.
#[derive(Debug, Clone, Default)]
pub struct FlattenOptions {
    /// Format of the new image and its options.
    pub target: TargetOptions,
    /// Compress every data cluster (qcow2 only).
    pub compress: bool,
    /// Worker threads; 0 means one per core. The output does not depend on it.
    pub threads: usize,
    /// Compute the CRC-32 of the guest's disk on the way.
    pub digest: bool,
    /// Replace an existing file, atomically.
    pub replace: bool,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct FlattenOutcome {
    /// The new image.
    pub filename: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_length: u64,
    /// Guest bytes stored as data (before compression).
    pub data_bytes: u64,
    /// Guest bytes that read as zeros and were not written.
    pub zero_bytes: u64,
    /// CRC-32 of the guest's disk, if asked for: eight hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc32: Option<String>,
}

/// Writes what a guest would read from `chain` to a new image at `path`.
///
/// # Errors
/// Whatever reading the chain or writing the target raises; `Interrupted` when cancelled. In
/// every error case nothing is left at `path` that was not there before.
pub fn flatten(
    chain: &Chain,
    path: &Path,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<FlattenOutcome> {
    let _ = (chain, path, options, observer, cancel);
    Err(Error::unsupported("not built yet"))
}
