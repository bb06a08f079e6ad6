//! Counts references to clusters handed out in ascending order, one refcount block at a time.

use std::collections::VecDeque;

use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HostOffset, MAX_REFCOUNT_TABLE_BYTES, RefcountWidth};
use crate::{Error, Remedy, Result};

/// Refcounts of a file that only grows at its end.
#[derive(Debug)]
pub(super) struct Refcounts {
    geometry: Geometry,
    width: RefcountWidth,
    /// Clusters that one block counts, a power of two.
    per_block: u64,
    /// Clusters handed out so far; also the index of the next one.
    next: u64,
    /// Blocks that are still being filled; the first one is number `table.len()`.
    open: VecDeque<Vec<u8>>,
    /// Where the finished blocks lie.
    table: Vec<HostOffset>,
    /// The clusters of the table, and that of the first block, where they have a place in front.
    front: Option<Front>,
}

/// Clusters at the beginning of the file for the refcount table and its first block.
#[derive(Debug, Clone, Copy)]
struct Front {
    table: u64,
    table_clusters: u64,
    /// Until it is written.
    block: Option<u64>,
}

impl Refcounts {
    pub(super) fn new(geometry: Geometry, width: RefcountWidth) -> Self {
        let per_block = width.entries_per_block(geometry).max(1);
        Self {
            geometry,
            width,
            per_block,
            next: 0,
            open: VecDeque::new(),
            table: Vec::new(),
            front: None,
        }
    }

    /// Clusters handed out so far.
    pub(super) fn clusters(&self) -> u64 {
        self.next
    }

    /// Clusters that one refcount block counts.
    pub(super) fn clusters_per_block(&self) -> u64 {
        self.per_block
    }

    /// The offset of cluster `index`.
    pub(super) fn offset_of(&self, index: u64) -> Result<HostOffset> {
        let offset = index.checked_shl(self.geometry.cluster_bits()).map(HostOffset);
        offset
            .filter(|offset| offset.0 >> self.geometry.cluster_bits() == index)
            .ok_or_else(|| Error::limit("the new image would be longer than 2^64 bytes"))
    }

    /// Gives the table, of `table_clusters` clusters, and the first block their places here.
    pub(super) fn place_in_front(&mut self, table_clusters: u64) -> Result<()> {
        let table = self.allocate(table_clusters)?;
        let block = Some(self.allocate(1)?);
        self.front = Some(Front { table, table_clusters, block });
        Ok(())
    }

    /// Hands out `count` clusters in a row, each with one reference.
    pub(super) fn allocate(&mut self, count: u64) -> Result<u64> {
        let first = self.next;
        let past = first
            .checked_add(count)
            .ok_or_else(|| Error::limit("the new image would have too many clusters"))?;
        if past.div_ceil(self.per_block) > MAX_REFCOUNT_TABLE_BYTES >> 3 {
            return Err(Error::limit(format!(
                "the new image needs a refcount table of more than {MAX_REFCOUNT_TABLE_BYTES} bytes"
            ))
            .hint(Remedy::LargerClusters));
        }
        self.next = past;
        let mut at = first;
        while at < past {
            let in_block = at & self.per_block.wrapping_sub(1);
            let here = self.per_block.minus(in_block)?.min(past.minus(at)?);
            let width = self.width;
            let block = self.block_of(at)?;
            width.set_ones(block, in_block, here)?;
            at = at.plus(here)?;
        }
        Ok(first)
    }

    /// One more reference to cluster `index`; false if its refcount is at its maximum already.
    pub(super) fn add_reference(&mut self, index: u64) -> Result<bool> {
        let in_block = index & self.per_block.wrapping_sub(1);
        let width = self.width;
        let block = self.block_of(index)?;
        let count = width.get(block, in_block)?;
        if count >= width.max() {
            return Ok(false);
        }
        width.set(block, in_block, count.plus(1)?)?;
        Ok(true)
    }

    /// Gives out each block that counts only clusters below the low-water mark: its place and its bytes.
    pub(super) fn finish_blocks(
        &mut self,
        low_water_mark: u64,
        mut write: impl FnMut(HostOffset, &[u8]) -> Result<()>,
    ) -> Result<()> {
        loop {
            let done = (self.table.len() as u64).plus(1)?.times(self.per_block)?;
            if done > low_water_mark {
                return Ok(());
            }
            // But for the first one in front, the block's own cluster lies in a later stretch, never in the one it counts.
            let in_front = self.front.as_mut().and_then(|front| front.block.take());
            let place = in_front.map_or_else(|| self.allocate(1), Ok)?;
            let offset = self.offset_of(place)?;
            let block = self.open.pop_front().ok_or_else(lost)?;
            write(offset, &block)?;
            self.table.push(offset);
        }
    }

    /// Places the remaining blocks and the table at the end of the file. Returns the table's
    /// offset and its length in clusters.
    pub(super) fn finish(
        mut self,
        mut write: impl FnMut(HostOffset, &[u8]) -> Result<()>,
    ) -> Result<(HostOffset, u64, u64)> {
        let (table_at, table, places) = match self.front {
            Some(front) => (front.table, front.table_clusters, self.remaining_blocks(front)?),
            None => {
                let finished = self.table.len() as u64;
                let others = self.next.minus(finished)?;
                let (blocks, table) = self.width.clusters_to_count(others, self.geometry)?;
                let blocks = blocks.minus(finished)?;
                let first = self.allocate(blocks)?;
                (self.allocate(table)?, table, (first..first.plus(blocks)?).collect())
            }
        };
        let table_offset = self.offset_of(table_at)?;
        for (index, block) in places.into_iter().zip(std::mem::take(&mut self.open)) {
            let offset = self.offset_of(index)?;
            write(offset, &block)?;
            self.table.push(offset);
        }
        let mut bytes: Vec<u8> =
            self.table.iter().flat_map(|offset| offset.0.to_be_bytes()).collect();
        // Whole clusters: every entry counts, and a device may hold anything.
        bytes.resize(to_usize(table.times(self.geometry.cluster_size())?), 0);
        write(table_offset, &bytes)?;
        Ok((table_offset, table, self.next))
    }

    /// Finds places for the blocks that are still open, where the table has one in front.
    fn remaining_blocks(&mut self, front: Front) -> Result<Vec<u64>> {
        let mut places: Vec<u64> = front.block.into_iter().collect();
        let finished = self.table.len() as u64;
        while finished.plus(places.len() as u64)?.times(self.per_block)? < self.next {
            places.push(self.allocate(1)?);
        }
        let room = front.table_clusters.times(self.geometry.cluster_size())? >> 3;
        if finished.plus(places.len() as u64)? > room {
            return Err(Error::internal("the refcount table does not fit into its place"));
        }
        Ok(places)
    }

    /// The open block that counts cluster `index`.
    fn block_of(&mut self, index: u64) -> Result<&mut Vec<u8>> {
        let number = index.checked_div(self.per_block).unwrap_or_default();
        let slot = number
            .checked_sub(self.table.len() as u64)
            .map(to_usize)
            .ok_or_else(|| Error::internal("a finished refcount block would change"))?;
        let size = to_usize(self.geometry.cluster_size());
        while self.open.len() <= slot {
            self.open.push_back(vec![0; size]);
        }
        self.open.get_mut(slot).ok_or_else(lost)
    }
}

fn lost() -> Error {
    Error::internal("a refcount block was lost")
}
