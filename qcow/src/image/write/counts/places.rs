//! Which refcount blocks get a new place when a new state is made, and which are given up.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{Block, Counts, SECTOR_ENTRY_BITS};
use crate::codec::is_zero;
use crate::exact::{Exact, to_usize};
use crate::format::HostOffset;
use crate::{Error, Result};

impl Counts {
    /// The blocks that differ from what is on disk, and lie where they do there; of those that were given up, the ones
    /// that count something again.
    pub(in crate::image) fn to_be_moved(&self, given_up: &BTreeSet<u64>) -> Vec<(u64, HostOffset)> {
        let block = |index: &u64| Some((*index, self.blocks.get(index)?));
        let blocks = self.dirty_blocks.iter().filter_map(block);
        let moves = |(index, block): &(u64, &Block)| {
            if given_up.contains(index) { !is_empty(block) } else { !block.fresh }
        };
        blocks.filter(moves).map(|(index, block)| (index, block.host)).collect()
    }

    /// The blocks, all in memory, that count nothing, or only one reference to themselves: their indices and clusters.
    /// Those that were given up are none of them.
    pub(in crate::image) fn empty_blocks(
        &self,
        given_up: &BTreeSet<u64>,
    ) -> Result<Vec<(u64, u64)>> {
        let bits = self.geometry.cluster_bits();
        let mut found = Vec::new();
        for index in 0..self.table.len() as u64 {
            let Some(host) = self.block_host(index).filter(|_| !given_up.contains(&index)) else {
                continue;
            };
            let block = self.blocks.get(&index);
            let block =
                block.ok_or_else(|| Error::internal("a refcount block is not in memory"))?;
            let cluster = host.0 >> bits;
            if is_empty(block) || self.counts_itself_only(index, block, cluster)? {
                found.push((index, cluster));
            }
        }
        Ok(found)
    }

    fn counts_itself_only(&self, index: u64, block: &Block, cluster: u64) -> Result<bool> {
        let (own, at) = self.locate(cluster);
        if own != index || self.width.get(&block.bytes, at)? != 1 {
            return Ok(false);
        }
        let used = |from| self.width.find(&block.bytes, from, false);
        Ok(used(0) == Some(at) && used(at.plus(1)?).is_none())
    }

    /// Shortens the table, which has a new place, to what names a block that was not given up. Gives the clusters that
    /// it leaves.
    pub(in crate::image) fn shorten_table(
        &mut self,
        given_up: &BTreeSet<u64>,
    ) -> Result<Range<u64>> {
        let named = |index: &u64| self.block_host(*index).is_some() && !given_up.contains(index);
        let last = (0..self.table.len() as u64).rev().find(named).unwrap_or_default();
        let needed = self.geometry.clusters_for(last.plus(1)?.times(8)?);
        let place = self.table_clusters()?;
        let end = place.start.plus(needed)?.min(place.end);
        self.clusters = end.minus(place.start)?;
        Ok(end..place.end)
    }

    /// Takes blocks out that count nothing, and what the table does not keep.
    pub(in crate::image) fn remove_blocks(&mut self, given_up: &BTreeSet<u64>) -> Result<()> {
        for index in given_up {
            let block = self.blocks.get(index).filter(|block| is_empty(block));
            let (Some(_), Some(entry)) = (block, self.table.get_mut(to_usize(*index))) else {
                return Err(Error::internal(format!("refcount block {index} counts something")));
            };
            *entry = 0;
            self.dirty_blocks.remove(index);
            self.table_dirty.insert(index >> SECTOR_ENTRY_BITS);
        }
        let entries = to_usize(self.clusters.times(self.geometry.cluster_size())? >> 3);
        if self.table.iter().skip(entries).any(|entry| *entry != 0) {
            return Err(Error::internal("the refcount table is too short"));
        }
        self.table.truncate(entries);
        Ok(())
    }
}

fn is_empty(block: &Block) -> bool {
    is_zero(&block.bytes)
}
