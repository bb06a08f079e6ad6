//! The refcounts that an image stores: its refcount table and blocks.

use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};

use super::{Image, MAX_FILE_OFFSET};
use crate::Result;
use crate::exact::to_usize;
use crate::format::{Geometry, RefcountTableEntry, RefcountWidth};
use crate::io::{Storage, read_padded};

/// What an entry of the refcount table leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefcountBlock {
    /// Nothing: all refcounts are zero (trap 69).
    Missing,
    /// An offset that no block can have: not a multiple of the cluster size.
    Misaligned,
    /// An offset that no file reaches, at which reading fails.
    TooFar,
    /// A block at this offset.
    At(u64),
}

/// An image's refcount table, as it was when it was read, and access to its blocks.
#[derive(Debug)]
pub(crate) struct Refcounts {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    width: RefcountWidth,
    table: Vec<u64>,
}

impl Refcounts {
    /// Reads the whole refcount table, which is at most 8 MiB long.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub(crate) fn read(image: &Image) -> Result<Self> {
        Self::read_for(image, u64::MAX)
    }

    /// Reads what the refcount table has for the first `clusters` clusters.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub(crate) fn read_for(image: &Image, clusters: u64) -> Result<Self> {
        let (header, geometry) = (image.header(), image.geometry());
        let width = header.refcounts();
        let (storage, table) = (Arc::clone(image.storage()), Vec::new());
        let mut refcounts = Self { storage, geometry, width, table };
        let whole =
            u64::from(header.refcount_table_clusters).saturating_mul(geometry.cluster_size());
        let len = refcounts.blocks_for(clusters).saturating_mul(8).min(whole);
        let mut bytes = vec![0; to_usize(len)];
        read_padded(&*refcounts.storage, &mut bytes, header.refcount_table_offset.0)
            .map_err(|error| error.structure("refcount table"))?;
        refcounts.table = bytes.chunks_exact(8).map(BigEndian::read_u64).collect();
        Ok(refcounts)
    }

    /// The raw entries of the refcount table.
    pub(crate) fn table(&self) -> &[u64] {
        &self.table
    }

    /// Entry `index` of the refcount table; zero past its end.
    pub(crate) fn entry(&self, index: u64) -> RefcountTableEntry {
        RefcountTableEntry(self.table.get(to_usize(index)).copied().unwrap_or_default())
    }

    /// The refcounts' width.
    pub(crate) fn width(&self) -> RefcountWidth {
        self.width
    }

    /// Refcounts in a block.
    pub(crate) fn per_block(&self) -> u64 {
        self.width.entries_per_block(self.geometry).max(1)
    }

    /// Blocks needed for the refcounts of `clusters` clusters.
    pub(crate) fn blocks_for(&self, clusters: u64) -> u64 {
        clusters.div_ceil(self.per_block())
    }

    /// Which block has the refcount of `cluster`, and at which index in the block.
    pub(crate) fn locate(&self, cluster: u64) -> (u64, u64) {
        // A power of two, and never zero.
        let block = cluster.checked_div(self.per_block()).unwrap_or_default();
        (block, cluster & self.per_block().wrapping_sub(1))
    }

    /// Where block `index` lies.
    pub(crate) fn block(&self, index: u64) -> RefcountBlock {
        match self.entry(index).block_offset() {
            None => RefcountBlock::Missing,
            Some(offset) if !self.geometry.is_aligned(offset.0) => RefcountBlock::Misaligned,
            Some(offset) if offset.0 > MAX_FILE_OFFSET => RefcountBlock::TooFar,
            Some(offset) => RefcountBlock::At(offset.0),
        }
    }

    /// The bytes of the block at this offset.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub(crate) fn read_block(&self, offset: u64) -> Result<Vec<u8>> {
        let mut block = vec![0; to_usize(self.geometry.cluster_size())];
        read_padded(&*self.storage, &mut block, offset)
            .map_err(|error| error.structure("refcount block"))?;
        Ok(block)
    }

    /// The refcount at `index` of a block's bytes.
    #[inline]
    pub(crate) fn refcount(&self, block: &[u8], index: u64) -> Result<u64> {
        // Nearly all images have 16 bits.
        if self.width.order() == 4 {
            let at = to_usize(index).saturating_mul(2);
            let bytes = block.get(at..at.saturating_add(2));
            return Ok(bytes.map_or(0, BigEndian::read_u16).into());
        }
        self.width.get(block, index)
    }

    /// The refcount of one cluster, read by itself; `None` if it cannot be read.
    pub(crate) fn refcount_of(&self, cluster: u64) -> Option<u64> {
        let (block, index) = self.locate(cluster);
        let offset = match self.block(block) {
            RefcountBlock::Missing => return Some(0),
            RefcountBlock::Misaligned | RefcountBlock::TooFar => return None,
            RefcountBlock::At(offset) => offset,
        };
        let bit = index.saturating_mul(self.width.bits().into());
        let mut word = [0; 8];
        read_padded(&*self.storage, &mut word, offset.saturating_add(bit >> 6 << 3)).ok()?;
        self.width.get(&word, index.checked_rem(64u64.checked_div(self.width.bits().into())?)?).ok()
    }
}
