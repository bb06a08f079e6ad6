//! Computes tree hashes.

use super::tree::{self, LEAF, Leaf, TreeHash};
use crate::chain::Chain;
use crate::exact::to_usize;
use crate::format::GuestOffset;
use crate::io::Buffer;
use crate::ops::work::pipeline::{self, Job};
use crate::{CancelToken, Observer, Result};

/// The tree hash of the guest-visible content of `chain`. It does not depend on format, cluster
/// size, compression, allocation or depth. Ranges that are zeros by what the tables say cost
/// nothing.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("disk.qcow2");
/// use qcow::chain::{Chain, OpenOptions};
/// use qcow::ops::create::{CreateOptions, create};
/// use qcow::ops::digest::tree_hash;
/// use qcow::{CancelToken, Silent};
///
/// create(&path, &CreateOptions::default().size(64 << 40))?;
/// let chain = Chain::open(&path, &OpenOptions::default())?;
/// let hash = tree_hash(&chain, 0, &Silent, &CancelToken::new())?;
/// assert!(hash.leaves.is_empty()); // all of them are zeros
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Whatever reading the chain raises; [`Io`](crate::ErrorKind::Io) if a file of the chain was changed
/// meanwhile; [`Interrupted`](crate::ErrorKind::Interrupted).
pub fn tree_hash(
    chain: &Chain,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<TreeHash> {
    let builder = tree::Builder::new();
    let builder = pipeline::run(chain, &TreeJob, builder, threads, observer, cancel)?;
    Ok(builder.finish(chain.virtual_size()))
}

/// The hashes of some leaves of the [`tree_hash`] of `chain`, those of zeros included: for a look at a
/// part of a disk that takes too long to read whole. A leaf past the end of the disk is one of zeros.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("disk.qcow2");
/// use qcow::chain::{Chain, OpenOptions};
/// use qcow::ops::create::{CreateOptions, create};
/// use qcow::ops::digest::leaves;
/// use qcow::CancelToken;
///
/// create(&path, &CreateOptions::default().size(1 << 40))?;
/// let chain = Chain::open(&path, &OpenOptions::default())?;
/// let found = leaves(&chain, &[0, 1000], &CancelToken::new())?;
/// assert_eq!(found[0].hash, found[1].hash); // both are zeros
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`tree_hash`].
pub fn leaves(chain: &Chain, indexes: &[u64], cancel: &CancelToken) -> Result<Vec<Leaf>> {
    let mut reader = chain.reader();
    let mut buffer = Buffer::new(to_usize(LEAF))?;
    let found = indexes
        .iter()
        .map(|&index| {
            cancel.check()?;
            let start = index.saturating_mul(LEAF).min(chain.virtual_size());
            let len = chain.virtual_size().saturating_sub(start).min(LEAF);
            let part = buffer.first(to_usize(len))?;
            reader.read_at(part, GuestOffset(start))?;
            Ok(Leaf { index, hash: tree::hash_leaf(part) })
        })
        .collect::<Result<_>>()?;
    chain.check_unchanged()?;
    Ok(found)
}

/// Items are hashed in parallel, and joined in order.
struct TreeJob;

impl Job for TreeJob {
    type Worker = ();
    type Ready = (u64, Option<tree::Half>);
    type Ordered = tree::Builder;
    type Placed = ();

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, (): &mut (), guest: u64, bytes: &[u8]) -> Result<Self::Ready> {
        Ok((bytes.len() as u64, tree::hash_half(guest, bytes)))
    }

    fn place(&self, builder: &mut tree::Builder, ready: &Self::Ready) -> Result<()> {
        match ready {
            (_, Some(half)) => builder.add_half(*half),
            (len, None) => builder.add_zeros(*len),
        }
        Ok(())
    }

    fn place_zeros(&self, builder: &mut tree::Builder, _guest: u64, len: u64) -> Result<()> {
        builder.add_zeros(len);
        Ok(())
    }

    fn write(&self, (): &mut (), _bytes: &[u8], _ready: Self::Ready, (): ()) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;
    use crate::chain::{Format, OpenOptions};

    #[test]
    fn single_leaves_are_those_of_the_whole_tree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        // Data in either half, zeros, and a last leaf that is cut short.
        let mut disk = vec![0_u8; (3 << 22) + 70_000];
        disk[100] = 1;
        disk[(1 << 22) + (3 << 20)] = 2;
        disk[(3 << 22) + 5] = 3;
        std::fs::write(&path, &disk).unwrap();
        let open = OpenOptions { format: Some(Format::Raw), ..Default::default() };
        let chain = Chain::open(&path, &open).unwrap();
        let cancel = CancelToken::new();
        let whole = tree_hash(&chain, 1, &Silent, &cancel).unwrap();
        let single = leaves(&chain, &[0, 1, 2, 3], &cancel).unwrap();
        let zeros = leaves(&chain, &[999], &cancel).unwrap();
        assert_eq!(single[2].hash, zeros[0].hash);
        let data: Vec<_> = single.into_iter().filter(|leaf| leaf.index != 2).collect();
        assert_eq!(data, whole.leaves);
    }
}
