//! Looks for clusters that are free, and for those that are not, a refcount block at a time.

use std::ops::Range;

use super::{Counts, Got, Need, keep, no_block, sectors_of};
use crate::Result;
use crate::exact::{Exact, to_usize};

impl Counts {
    /// The first cluster from `from` on that is free. Behind what the table reaches all are.
    pub(in crate::image) fn next_free(&self, from: u64) -> Got<u64> {
        let mut cluster = from;
        loop {
            let (index, at) = self.locate(cluster);
            let Some(host) = self.block_host(index) else { return Ok(cluster) };
            let block = self.blocks.get(&index).ok_or(Need::Block(index, host))?;
            let before = self.before.as_ref().and_then(|before| before.get(&index));
            let mut found = self.width.find(&block.bytes, at, true);
            while let (Some(free), Some(before)) = (found, before) {
                match self.width.find(before, free, true) {
                    Some(same) if same == free => break,
                    next => found = next.and_then(|at| self.width.find(&block.bytes, at, true)),
                }
            }
            if let Some(found) = found {
                return Ok(cluster.minus(at)?.plus(found)?);
            }
            cluster = self.first_of(index.plus(1)?)?;
        }
    }

    /// Where the free clusters from `from` on end, no further than `until`.
    pub(in crate::image) fn end_of_free(&self, from: u64, until: u64) -> Got<u64> {
        let mut cluster = from;
        while cluster < until {
            let (index, at) = self.locate(cluster);
            if let Some(host) = self.block_host(index) {
                let block = self.blocks.get(&index).ok_or(Need::Block(index, host))?;
                let before = self.before.as_ref().and_then(|before| before.get(&index));
                // No further than is asked for: a block has refcounts of many clusters, and one is wanted most often.
                let end = at.plus(until.minus(cluster)?)?.times(self.width.bits().into())?;
                let end = to_usize(end.div_ceil(8));
                let used =
                    |bytes: &Vec<u8>| self.width.find(bytes.get(..end).unwrap_or(bytes), at, false);
                let used = [used(&block.bytes), before.and_then(used)];
                if let Some(used) = used.into_iter().flatten().min() {
                    return Ok(cluster.minus(at)?.plus(used)?.min(until));
                }
            }
            cluster = self.first_of(index.plus(1)?)?;
        }
        Ok(until)
    }

    /// The first of these clusters for whose refcount there is no block.
    pub(in crate::image) fn first_uncovered(&self, clusters: Range<u64>) -> Result<Option<u64>> {
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let (index, _) = self.locate(cluster);
            if self.block_host(index).is_none() {
                return Ok(Some(cluster));
            }
            cluster = self.first_of(index.plus(1)?)?;
        }
        Ok(None)
    }

    /// The first cluster whose refcount is in the block of this index.
    pub(in crate::image) fn first_of(&self, index: u64) -> Result<u64> {
        index.times(self.width.entries_per_block(self.geometry))
    }

    /// Counts one reference to each of these free clusters, whose blocks are in memory.
    pub(in crate::image) fn set_ones(&mut self, clusters: Range<u64>) -> Got<()> {
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let (index, at) = self.locate(cluster);
            let end = clusters.end.min(self.first_of(index.plus(1)?)?);
            let count = end.minus(cluster)?;
            let host = self.block_host(index).ok_or_else(|| no_block(cluster))?;
            let block = self.blocks.get_mut(&index).ok_or(Need::Block(index, host))?;
            keep(&mut self.before, index, block);
            self.width.set_ones(&mut block.bytes, at, count)?;
            block.dirty.extend(sectors_of(self.width, at, count)?);
            self.dirty_blocks.insert(index);
            cluster = end;
        }
        Ok(())
    }
}
