//! A part of a disk, and its digest: what is compared of two disks on two hosts.

use qcow::chain::Chain;
use qcow::format::GuestOffset;
use qcow::ops::digest::{LEAF, leaves, tree_hash};
use qcow::{CancelToken, Observer};
use serde::{Deserialize, Serialize};

use crate::Result;

/// How much of a disk is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// All of it: the root of its tree hash.
    Whole,
    /// These leaves of the tree, together.
    Leaves(Vec<u64>),
    /// The same of the first bytes of the disk, which may be in something larger: all leaves, or these.
    Within {
        /// Size of the disk in bytes.
        size: u64,
        /// The leaves; `None` for all.
        leaves: Option<Vec<u64>>,
    },
}

impl Part {
    /// Digest of this part of the disk that `chain` shows.
    ///
    /// # Errors
    /// Whatever reading the chain raises; [`Interrupted`](crate::ErrorKind::Interrupted).
    pub fn digest(
        &self,
        chain: &Chain,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<String> {
        match self {
            Self::Whole => Ok(tree_hash(chain, 0, observer, cancel)?.root.to_string()),
            Self::Leaves(indexes) => {
                let mut hasher = blake3::Hasher::new_derive_key("qcowtool sample of leaves 1");
                hasher.update(&chain.virtual_size().to_be_bytes());
                for leaf in leaves(chain, indexes, cancel)? {
                    hasher.update(&leaf.index.to_be_bytes()).update(&leaf.hash.0);
                }
                Ok(hasher.finalize().to_hex().to_string())
            }
            Self::Within { size, leaves } => {
                // What is shorter has another digest.
                let size = (*size).min(chain.virtual_size());
                let all = 0..size.div_ceil(LEAF);
                let indexes = leaves.clone().unwrap_or_else(|| all.collect());
                within(chain, size, &indexes, observer, cancel)
            }
        }
    }
}

/// Digest of some leaves of the first `size` bytes.
fn within(
    chain: &Chain,
    size: u64,
    indexes: &[u64],
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<String> {
    let mut hasher = blake3::Hasher::new_derive_key("qcowtool leaves within a size 1");
    hasher.update(&size.to_be_bytes());
    let mut reader = chain.reader();
    let mut bytes = vec![0; usize::try_from(LEAF).unwrap_or_default()];
    for index in indexes {
        cancel.check()?;
        let start = index.saturating_mul(LEAF).min(size);
        let len = size.saturating_sub(start).min(LEAF);
        let part = bytes.get_mut(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
        reader.read_at(part, GuestOffset(start))?;
        hasher.update(&index.to_be_bytes()).update(blake3::hash(part).as_bytes());
        observer.progress(start.saturating_add(len), size);
    }
    chain.check_unchanged()?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use qcow::chain::{Format, OpenOptions};

    /// Behind the disk, a device has anything.
    #[test]
    fn what_is_behind_the_disk_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let size = LEAF + 512;
        let digest = |part: &Part, length: u64, at: u64| {
            let path = directory.path().join("disk");
            let mut bytes = vec![7; usize::try_from(length).unwrap()];
            if let Some(byte) = bytes.get_mut(usize::try_from(at).unwrap()) {
                *byte = 8;
            }
            std::fs::write(&path, bytes).unwrap();
            let chain = Chain::open(&path, &OpenOptions::default().format(Format::Raw)).unwrap();
            part.digest(&chain, &qcow::Silent, &CancelToken::new()).unwrap()
        };
        for leaves in [None, Some(vec![1])] {
            let part = Part::Within { size, leaves };
            let own = digest(&part, size, u64::MAX >> 1);
            assert_eq!(own, digest(&part, size + LEAF, u64::MAX >> 1));
            assert_eq!(own, digest(&part, size + LEAF, size));
            assert_ne!(own, digest(&part, size + LEAF, size - 1));
            assert_ne!(own, digest(&part, size - 512, u64::MAX >> 1), "it is shorter");
        }
    }
}
