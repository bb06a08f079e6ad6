//! CRC-32 of what a guest would read.

use serde::Serialize;

use crate::chain::Chain;
use crate::{CancelToken, Error, Observer, Result};

/// How to compute.
#[derive(Debug, Clone, Default)]
pub struct ChecksumOptions {
    /// Worker threads; 0 means one per core.
    pub threads: usize,
}

/// The digest.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ChecksumOutcome {
    /// Bytes covered: the virtual size.
    pub virtual_size: u64,
    /// CRC-32 (zlib's) of the guest's disk: eight hex digits.
    pub crc32: String,
}

/// Computes the CRC-32 of the guest-visible content of `chain`.
///
/// # Errors
/// Whatever reading the chain raises; `Interrupted` when cancelled.
pub fn checksum(
    chain: &Chain,
    options: &ChecksumOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<ChecksumOutcome> {
    let _ = (chain, options, observer, cancel);
    Err(Error::unsupported("not built yet"))
}
