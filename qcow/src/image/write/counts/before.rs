//! Refcounts of a new state that is made beside the old one, whose clusters stay what they are.

use std::ops::Range;

use super::{Counts, Got, Need, SECTOR_ENTRY_BITS, free_already, keep, sectors_of};
use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HostOffset, RefcountWidth};
use crate::{Error, Remedy, Result};

impl Counts {
    /// Keeps what the refcounts are now, whatever they become: a cluster that has one now is not free for as
    /// long as these live.
    pub(in crate::image) fn keep_before(&mut self) {
        self.before.get_or_insert_default();
    }

    /// Raises, or else lowers, by `times` the refcounts of those of `clusters` that are in the block of the first:
    /// gives the others, and the first cluster that is free now.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if a refcount would be larger than its width allows,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if one is zero, or would be lower than that.
    pub(in crate::image) fn shift(
        &mut self,
        clusters: Range<u64>,
        times: u64,
        raise: bool,
    ) -> Got<(Range<u64>, Option<u64>)> {
        let (index, first) = self.locate(clusters.start);
        let per_block = self.width.entries_per_block(self.geometry);
        let count = clusters.end.minus(clusters.start)?.min(per_block.minus(first)?);
        let host = self.block_host(index).ok_or_else(|| free_already(clusters.start))?;
        let block = self.blocks.get_mut(&index).ok_or(Need::Block(index, host))?;
        keep(&mut self.before, index, block);
        let before = self.before.as_ref().and_then(|before| before.get(&index));
        let mut free = None;
        for step in 0..count {
            let at = first.plus(step)?;
            let old = self.width.get(&block.bytes, at)?;
            let cluster = clusters.start.plus(step)?;
            let new = if !raise {
                old.checked_sub(times).ok_or_else(|| free_already(cluster))?
            } else if old == 0 {
                return Err(free_already(cluster).into());
            } else {
                let most = self.width.max();
                let new = old.checked_add(times).filter(|new| *new <= most);
                new.ok_or_else(|| full(self.width, self.geometry, cluster, old))?
            };
            self.width.set(&mut block.bytes, at, new)?;
            let was = before.map(|before| self.width.get(before, at)).transpose()?;
            if new == 0 && was.unwrap_or(0) == 0 {
                free.get_or_insert(cluster);
            }
        }
        block.dirty.extend(sectors_of(self.width, first, count)?);
        self.dirty_blocks.insert(index);
        Ok((clusters.start.plus(count)?..clusters.end, free))
    }

    /// The blocks that lie in cluster `from` or behind it, on disk as here: their indices and clusters.
    pub(in crate::image) fn blocks_from(&self, from: u64) -> Vec<(u64, u64)> {
        let bits = self.geometry.cluster_bits();
        let mut found = Vec::new();
        for index in 0..self.table.len() as u64 {
            let Some(host) = self.block_host(index) else { continue };
            let fresh = self.blocks.get(&index).is_some_and(|block| block.fresh);
            if host.0 >> bits >= from && !fresh {
                found.push((index, host.0 >> bits));
            }
        }
        found
    }

    /// Gives block `index` another place, where it will be written as a whole.
    pub(in crate::image) fn move_block(&mut self, index: u64, host: HostOffset) -> Result<()> {
        let block = self.blocks.get_mut(&index);
        let (Some(block), Some(entry)) = (block, self.table.get_mut(to_usize(index))) else {
            return Err(Error::internal(format!(
                "refcount block {index} is not there to be moved"
            )));
        };
        keep(&mut self.before, index, block);
        (block.host, block.fresh, *entry) = (host, true, host.0);
        self.table_dirty.insert(index >> SECTOR_ENTRY_BITS);
        self.dirty_blocks.insert(index);
        Ok(())
    }

    /// Whether the table has another place than on disk.
    pub(in crate::image) fn has_moved(&self) -> bool {
        self.moved
    }

    /// Clusters that had references before any change, and have none now, if that is kept: runs in order.
    pub(in crate::image) fn freed(&self) -> Result<Vec<Range<u64>>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let per_block = self.width.entries_per_block(self.geometry);
        for (index, before) in self.before.iter().flatten() {
            let Some(now) = self.blocks.get(index) else { continue };
            let first = index.times(per_block)?;
            for at in 0..per_block {
                if self.width.get(before, at)? == 0 || self.width.get(&now.bytes, at)? != 0 {
                    continue;
                }
                let cluster = first.plus(at)?;
                match runs.last_mut() {
                    Some(run) if run.end == cluster => run.end = cluster.plus(1)?,
                    _ => runs.push(cluster..cluster.plus(1)?),
                }
            }
        }
        Ok(runs)
    }

    /// Sees to it that all blocks are in memory.
    pub(in crate::image) fn load_all(&mut self) -> Got<()> {
        for index in 0..self.table.len() as u64 {
            if let Some(host) = self.block_host(index).filter(|_| !self.blocks.contains_key(&index))
            {
                return Err(Need::Block(index, host));
            }
        }
        Ok(())
    }

    /// Calls `each` with every cluster that has references, as far as its block is in memory, and their
    /// number; in ascending order.
    pub(in crate::image) fn for_used(&self, mut each: impl FnMut(u64, u64)) -> Result<()> {
        let per_block = self.width.entries_per_block(self.geometry);
        for index in 0..self.table.len() as u64 {
            let Some(block) = self.blocks.get(&index) else { continue };
            let first = index.times(per_block)?;
            for at in 0..per_block {
                let count = self.width.get(&block.bytes, at)?;
                if count > 0 {
                    each(first.plus(at)?, count);
                }
            }
        }
        Ok(())
    }

    /// The end of the last cluster that has references, in clusters.
    pub(in crate::image) fn end(&self) -> Got<u64> {
        let per_block = self.width.entries_per_block(self.geometry);
        for index in (0..self.table.len() as u64).rev() {
            let Some(host) = self.block_host(index) else { continue };
            let block = self.blocks.get(&index).ok_or(Need::Block(index, host))?;
            for at in (0..per_block).rev() {
                if self.width.get(&block.bytes, at)? != 0 {
                    return Ok(index.times(per_block)?.plus(at)?.plus(1)?);
                }
            }
        }
        Ok(0)
    }
}

fn full(width: RefcountWidth, geometry: Geometry, cluster: u64, references: u64) -> Error {
    let (bits, max) = (width.bits(), width.max());
    let error = Error::limit(format!(
        "cluster {cluster} has {references} references and would have more, and refcounts of {bits} bits \
         count no further than {max}"
    ));
    let host = cluster.checked_mul(geometry.cluster_size());
    let error = error.structure("refcount block").hint(Remedy::Flatten);
    match host {
        Some(host) => error.host_offset(HostOffset(host)),
        None => error,
    }
}
