//! Digests of what a guest would read: CRC-32, SHA-256, and the tree hash that proves identity and shows
//! where two disks differ.
//!
//! The tree hash is described for other programs in `docs/tree-hash.md`. It and SHA-256 need the
//! feature `digest`.

mod crc32;
#[cfg(feature = "digest")]
mod hashing;
#[cfg(feature = "digest")]
mod manifest;
#[cfg(feature = "digest")]
mod sha256;
#[cfg(feature = "digest")]
mod tree;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::chain::{Chain, Format, Joined};
use crate::setters::setters;
use crate::{CancelToken, Observer, Result};

#[cfg(feature = "digest")]
pub use hashing::{leaves, tree_hash};
#[cfg(feature = "digest")]
pub use manifest::{LayerIdentity, Manifest};
#[cfg(feature = "digest")]
pub use tree::{Hash, LEAF, Leaf, TreeHash};

/// Which digest is computed. All are of the guest-visible content, independent of format, cluster size,
/// compression, allocation and the depth of the chain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// zlib's CRC-32 of the whole disk as a raw image. Ranges that are zeros by what the tables say cost
    /// nothing.
    #[default]
    Crc32,
    /// SHA-256 of the whole disk as a raw image. It has to hash every byte in order, zeros too, so it cannot
    /// be fast on large disks.
    #[cfg(feature = "digest")]
    Sha256,
    /// The tree hash; see [`tree_hash`]. Zeros cost nothing here either.
    #[cfg(feature = "digest")]
    Blake3Tree,
}

/// How to compute a digest.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct DigestOptions {
    /// Which digest.
    pub algorithm: Algorithm,
    /// Worker threads; 0 means one per core, at most 16. The digest does not depend on it.
    pub threads: usize,
}

setters!(DigestOptions {
    algorithm: Algorithm,
    threads: usize,
} into {});

/// A digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Digest {
    /// Eight lower-case hex digits.
    Crc32(String),
    /// 64 lower-case hex digits.
    #[cfg(feature = "digest")]
    Sha256(String),
    /// The tree hash with its leaves; serialises as its root.
    #[cfg(feature = "digest")]
    Blake3Tree(#[serde(serialize_with = "root")] TreeHash),
}

#[cfg(feature = "digest")]
fn root<S: serde::Serializer>(tree: &TreeHash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&tree.root)
}

/// The hex digits; those of the root, if it is a tree hash.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crc32(digits) => f.write_str(digits),
            #[cfg(feature = "digest")]
            Self::Sha256(digits) => f.write_str(digits),
            #[cfg(feature = "digest")]
            Self::Blake3Tree(tree) => tree.root.fmt(f),
        }
    }
}

/// What was computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct DigestOutcome {
    /// Bytes covered: the virtual size.
    pub virtual_size: u64,
    /// Their digest.
    #[serde(flatten)]
    pub digest: Digest,
}

/// The CRC-32 of the first `size` bytes of the disk of `chain`, past whose end there are zeros.
pub(super) fn crc32_of_start(
    chain: &Chain,
    size: u64,
    threads: usize,
    cancel: &CancelToken,
) -> Result<String> {
    let start = Joined::start_of(chain, size);
    let chain = Chain::builder().layer("", Arc::new(start), Format::Raw).open()?;
    crc32::crc32(&chain, threads, &crate::Silent, cancel)
}

/// Computes a digest of the guest-visible content of `chain`.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("disk.qcow2");
/// use qcow::chain::{Chain, OpenOptions};
/// use qcow::ops::create::{CreateOptions, create};
/// use qcow::ops::digest::{DigestOptions, digest};
/// use qcow::{CancelToken, Silent};
///
/// create(&path, &CreateOptions::default().size(512))?;
/// let chain = Chain::open(&path, &OpenOptions::default())?;
/// let outcome = digest(&chain, &DigestOptions::default(), &Silent, &CancelToken::new())?;
/// assert_eq!(outcome.digest.to_string(), "b2aa7578"); // of 512 zeros
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Whatever reading the chain raises; [`Io`](crate::ErrorKind::Io) if a file of the chain was changed
/// meanwhile; [`Interrupted`](crate::ErrorKind::Interrupted).
pub fn digest(
    chain: &Chain,
    options: &DigestOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<DigestOutcome> {
    let threads = options.threads;
    let digest = match options.algorithm {
        Algorithm::Crc32 => Digest::Crc32(crc32::crc32(chain, threads, observer, cancel)?),
        #[cfg(feature = "digest")]
        Algorithm::Sha256 => Digest::Sha256(sha256::sha256(chain, threads, observer, cancel)?),
        #[cfg(feature = "digest")]
        Algorithm::Blake3Tree => Digest::Blake3Tree(tree_hash(chain, threads, observer, cancel)?),
    };
    Ok(DigestOutcome { virtual_size: chain.virtual_size(), digest })
}
