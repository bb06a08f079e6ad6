//! The refcounts that the image stores.

use byteorder::{BigEndian, ByteOrder};
use rayon::prelude::*;

use super::counters::ClusterSet;
use crate::format::{Geometry, RefcountTableEntry, RefcountWidth};
use crate::image::{FARTHEST, Skeleton};
use crate::io::read_padded;
use crate::{CancelToken, Result};

/// What an entry of the refcount table leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// Nothing: all refcounts are zero (trap 69).
    Missing,
    /// An offset that no block can have: not a multiple of the cluster size.
    Misaligned,
    /// An offset that no file reaches, at which reading fails.
    TooFar,
    /// A block at this offset.
    At(u64),
}

/// Refcount table and blocks, and which refcounts are one.
#[derive(Debug)]
pub(super) struct Stored<'a> {
    image: &'a Skeleton,
    geometry: Geometry,
    width: RefcountWidth,
    table: Vec<u64>,
    /// Clusters below this are in `ones`.
    known: u64,
    ones: ClusterSet,
}

impl<'a> Stored<'a> {
    /// Reads the refcount table, and looks at the refcounts of the first `clusters` clusters.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub(super) fn read(image: &'a Skeleton, clusters: u64, cancel: &CancelToken) -> Result<Self> {
        let header = &image.area.header;
        let geometry = image.geometry();
        let len = u64::from(header.refcount_table_clusters).saturating_mul(geometry.cluster_size());
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        read_padded(&*image.storage, &mut bytes, header.refcount_table_offset.0)
            .map_err(|error| error.structure("refcount table"))?;
        let table = bytes.chunks_exact(8).map(BigEndian::read_u64).collect();
        let ones = ClusterSet::new(clusters);
        let width = header.refcounts();
        let stored = Self { image, geometry, width, table, known: clusters, ones };
        (0..stored.blocks_for(clusters)).into_par_iter().try_for_each(|index| {
            cancel.check()?;
            let first = index.saturating_mul(stored.per_block());
            stored.each_in_block(index, clusters, |cluster, refcount| {
                if refcount == 1 {
                    stored.ones.insert(first.saturating_add(cluster));
                }
            })
        })?;
        Ok(stored)
    }

    /// The raw entries of the refcount table.
    pub(super) fn table(&self) -> &[u64] {
        &self.table
    }

    /// The refcounts' width.
    pub(super) fn width(&self) -> RefcountWidth {
        self.width
    }

    /// Refcounts in a block.
    pub(super) fn per_block(&self) -> u64 {
        self.width.entries_per_block(self.geometry).max(1)
    }

    /// Blocks needed for the refcounts of `clusters` clusters.
    pub(super) fn blocks_for(&self, clusters: u64) -> u64 {
        clusters.div_ceil(self.per_block())
    }

    /// Where block `index` lies.
    pub(super) fn block(&self, index: u64) -> Block {
        let entry = usize::try_from(index).ok().and_then(|index| self.table.get(index));
        match entry.and_then(|&entry| RefcountTableEntry(entry).block_offset()) {
            None => Block::Missing,
            Some(offset) if !self.geometry.is_aligned(offset.0) => Block::Misaligned,
            Some(offset) if offset.0 > FARTHEST => Block::TooFar,
            Some(offset) => Block::At(offset.0),
        }
    }

    /// Whether the refcount of `cluster` is one; `None` if it cannot be read.
    #[inline]
    pub(super) fn is_one(&self, cluster: u64) -> Option<bool> {
        let index = cluster.checked_div(self.per_block()).unwrap_or_default();
        match self.block(index) {
            Block::Missing => Some(false),
            Block::Misaligned | Block::TooFar => None,
            Block::At(_) if cluster < self.known => Some(self.ones.contains(cluster)),
            Block::At(offset) => self.refcount_in(offset, cluster).map(|refcount| refcount == 1),
        }
    }

    /// Calls `each` with the index and value of each refcount of block `index`, as far as `clusters`
    /// reach; does nothing for blocks that do not exist or cannot be.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub(super) fn each_in_block(
        &self,
        index: u64,
        clusters: u64,
        mut each: impl FnMut(u64, u64),
    ) -> Result<()> {
        let Block::At(offset) = self.block(index) else { return Ok(()) };
        let block = self.read_block(offset)?;
        let first = index.saturating_mul(self.per_block());
        let count = self.per_block().min(clusters.saturating_sub(first));
        if self.width.order() == 4 {
            let all = (0..count).zip(block.chunks_exact(2));
            all.for_each(|(at, bytes)| each(at, BigEndian::read_u16(bytes).into()));
        } else {
            for at in 0..count {
                each(at, self.width.get(&block, at)?);
            }
        }
        Ok(())
    }

    /// The bytes of a block.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub(super) fn read_block(&self, offset: u64) -> Result<Vec<u8>> {
        let len = usize::try_from(self.geometry.cluster_size()).unwrap_or_default();
        let mut block = vec![0; len];
        read_padded(&*self.image.storage, &mut block, offset)
            .map_err(|error| error.structure("refcount block"))?;
        Ok(block)
    }

    /// One refcount, read for itself: for the few clusters that lie past the end of the file.
    fn refcount_in(&self, block: u64, cluster: u64) -> Option<u64> {
        let index = cluster.checked_rem(self.per_block())?;
        let bit = index.saturating_mul(self.width.bits().into());
        let mut word = [0; 8];
        read_padded(&*self.image.storage, &mut word, block.saturating_add(bit >> 6 << 3)).ok()?;
        self.width.get(&word, index.checked_rem(64u64.checked_div(self.width.bits().into())?)?).ok()
    }
}
