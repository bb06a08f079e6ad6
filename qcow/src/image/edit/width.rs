//! Refcounts of another width: all of them are written anew.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::Edit;
use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HeaderPatch, MAX_REFCOUNT_TABLE_BYTES, RefcountWidth, encode_table};
use crate::image::update::Pieces;
use crate::{Error, Remedy, Result};

impl Edit {
    /// Gives the refcounts another width, with the switch. [`set_area`](Self::set_area) has to say so too.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit), when the change is finished, if a refcount does not fit.
    pub(crate) fn set_width(&mut self, width: RefcountWidth) {
        self.width = Some(width);
    }

    /// Plans the refcounts as they are now with another `width`, in space that is free in the old image.
    pub(super) fn write_counts_anew(&mut self, width: RefcountWidth) -> Result<()> {
        self.with_space(|space| space.counts.load_all())?;
        self.check_fit(width)?;
        let (row, blocks) = self.place(width)?;
        let geometry = self.geometry();
        let start = self.host(row.start)?;
        let mut table = Vec::new();
        let mut pieces = Vec::new();
        for (number, index) in (0u64..).zip(&blocks) {
            table.resize(to_usize(*index).plus(1)?, 0);
            if let Some(entry) = table.last_mut() {
                *entry = self.host(row.start.plus(number)?)?.0;
            }
            pieces.push(self.block(width, *index)?);
        }
        self.write_pieces(Arc::new(NewBlocks { geometry, start: start.0, blocks: pieces }))?;
        let table_start = row.start.plus(blocks.len() as u64)?;
        let clusters = row.end.minus(table_start)?;
        let mut bytes = encode_table(&table);
        bytes.resize(to_usize(clusters.times(geometry.cluster_size())?), 0);
        let host = self.host(table_start)?;
        self.write(host, bytes)?;
        let clusters = u32::try_from(clusters)
            .map_err(|_| Error::internal("the refcount table passes 32 bits"))?;
        self.set_header(&HeaderPatch::refcount_table(host, clusters))
    }

    fn check_fit(&self, width: RefcountWidth) -> Result<()> {
        let mut too_many = None;
        self.space.counts.for_used(|cluster, count| {
            if count > width.max() {
                too_many.get_or_insert((cluster, count));
            }
        })?;
        let Some((cluster, count)) = too_many else { return Ok(()) };
        let message = format!(
            "a cluster has {count} references, and refcounts of {} bits count no further than {}",
            width.bits(),
            width.max()
        );
        let host = self.host(cluster)?;
        Err(Error::limit(message)
            .structure("refcount block")
            .host_offset(host)
            .hint(Remedy::Flatten))
    }

    /// Space in a row for all blocks, which are named, and the table behind them; frees the old ones.
    fn place(&mut self, width: RefcountWidth) -> Result<(Range<u64>, BTreeSet<u64>)> {
        let mut wanted = self.needed(width)?.1;
        let row = loop {
            let bytes = wanted.times(self.geometry().cluster_size())?;
            let first = self.allocate(bytes)?;
            let row = self.clusters(first, bytes)?;
            self.with_space(|space| space.counts.load_all())?;
            // They have refcounts too.
            let needed = self.needed(width)?.1;
            if needed <= wanted {
                break row;
            }
            self.lower(row)?;
            wanted = needed;
        };
        let old: Vec<u64> = self.space.counts.block_clusters().collect();
        for cluster in old {
            self.lower(cluster..cluster.plus(1)?)?;
        }
        let table = self.space.counts.table_clusters()?;
        self.lower(table)?;
        // What is left over now is given back, until nothing is.
        let mut end = row.end;
        loop {
            let (blocks, needed) = self.needed(width)?;
            let enough = row.start.plus(needed)?;
            if enough >= end {
                return Ok((row.start..end, blocks));
            }
            self.lower(enough..end)?;
            end = enough;
        }
    }

    /// The blocks that are needed, and how many clusters these and their table have.
    fn needed(&self, width: RefcountWidth) -> Result<(BTreeSet<u64>, u64)> {
        let mut blocks = BTreeSet::new();
        let bits = width.entries_per_block(self.geometry()).trailing_zeros();
        self.space.counts.for_used(|cluster, _| {
            blocks.insert(cluster >> bits);
        })?;
        let entries = blocks.last().copied().unwrap_or_default().plus(1)?;
        let bytes = entries.times(8)?;
        if bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err(
                Error::limit("the refcount table would be longer than 8 MiB").hint(Remedy::Flatten)
            );
        }
        let clusters = (blocks.len() as u64).plus(self.geometry().clusters_for(bytes))?;
        Ok((blocks, clusters))
    }

    /// The refcount block of this index.
    fn block(&mut self, width: RefcountWidth, index: u64) -> Result<Vec<u8>> {
        let mut block = vec![0; to_usize(self.geometry().cluster_size())];
        let per_block = width.entries_per_block(self.geometry());
        let first = index.times(per_block)?;
        for at in 0..per_block {
            let count = self.refcount(first.plus(at)?)?;
            if count > 0 {
                width.set(&mut block, at, count)?;
            }
        }
        Ok(block)
    }
}

/// Refcount blocks that lie one behind the other.
#[derive(Debug)]
struct NewBlocks {
    geometry: Geometry,
    start: u64,
    blocks: Vec<Vec<u8>>,
}

impl Pieces for NewBlocks {
    fn start(&self) -> u64 {
        self.start
    }

    fn piece_len(&self) -> u64 {
        self.geometry.cluster_size()
    }

    fn count(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn piece(&self, number: u64) -> Result<Vec<u8>> {
        let block = self.blocks.get(to_usize(number)).cloned();
        block.ok_or_else(|| Error::internal("there is no such refcount block"))
    }
}
