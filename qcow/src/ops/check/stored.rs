//! The refcounts that the image stores.

use std::ops::Range;

use byteorder::{BigEndian, ByteOrder};
use rayon::prelude::*;

use super::counters::ClusterSet;
use crate::format::{Geometry, RefcountTableEntry, RefcountWidth};
use crate::image::{MAX_FILE_OFFSET, Skeleton};
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
            stored.find_ones(index, clusters)
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
            Some(offset) if offset.0 > MAX_FILE_OFFSET => Block::TooFar,
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

    /// Whether the refcounts of these clusters are all one (`Some(true)`), or none is
    /// (`Some(false)`); otherwise, and where any cannot be read, `None`.
    pub(super) fn uniform(&self, clusters: Range<u64>) -> Option<bool> {
        let per_block = self.per_block();
        let first = clusters.start.checked_div(per_block)?;
        let last = clusters.end.saturating_sub(1).checked_div(per_block)?;
        let readable = |index| !matches!(self.block(index), Block::Misaligned | Block::TooFar);
        if clusters.end > self.known || !(first..=last).all(readable) {
            return None;
        }
        self.ones.uniform(clusters)
    }

    /// Whether the refcounts of the sixty-four clusters from `cluster`, a multiple of 64, on are
    /// known to be one.
    pub(super) fn are_one(&self, cluster: u64) -> bool {
        self.ones.word(cluster) == u64::MAX
    }

    /// Looks for refcounts of one in block `index`, as far as `clusters` reach.
    fn find_ones(&self, index: u64, clusters: u64) -> Result<()> {
        let Block::At(offset) = self.block(index) else { return Ok(()) };
        let block = self.read_block(offset)?;
        let first = index.saturating_mul(self.per_block());
        let count = self.per_block().min(clusters.saturating_sub(first));
        // Blocks have at least 64 refcounts, so groups of 64 do not cross them.
        for group in (0..count).step_by(64) {
            let end = group.saturating_add(64).min(count);
            let mut bits = 0;
            for at in group..end {
                let one = self.refcount(&block, at)? == 1;
                bits |= u64::from(one) << (at & 63);
            }
            self.ones.insert_word(first.saturating_add(group), bits);
        }
        Ok(())
    }

    /// The refcount at `index` of a block's bytes.
    #[inline]
    pub(super) fn refcount(&self, block: &[u8], index: u64) -> Result<u64> {
        // Nearly all images have 16 bits.
        if self.width.order() == 4 {
            let at = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(2);
            let bytes = block.get(at..at.saturating_add(2));
            return Ok(bytes.map_or(0, BigEndian::read_u16).into());
        }
        self.width.get(block, index)
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

    /// The refcount of one cluster; `None` if it cannot be read.
    pub(super) fn refcount_of(&self, cluster: u64) -> Option<u64> {
        match self.block(cluster.checked_div(self.per_block())?) {
            Block::Missing => Some(0),
            Block::Misaligned | Block::TooFar => None,
            Block::At(offset) => self.refcount_in(offset, cluster),
        }
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
