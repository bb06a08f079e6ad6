//! New places for the refcounts of the new state, without the blocks that count nothing any more.

use std::collections::BTreeSet;

use super::Edit;
use crate::exact::Exact;
use crate::format::HeaderPatch;
use crate::{Error, Result};

/// Blocks can become empty one after another, because the next one counts the place of the last one. A block that
/// stays in spite of that does no harm.
const ROUNDS: usize = 64;

impl Edit {
    /// Has refcount blocks given up that count nothing in the new state, or only themselves, and the table end
    /// behind the last one that is left.
    pub(crate) fn trim_counts(&mut self) {
        self.trims_counts = true;
    }

    /// Gives every refcount block that changed, and their table, a place that is free in the old image.
    pub(super) fn move_counts(&mut self) -> Result<()> {
        let mut given_up = BTreeSet::new();
        if self.trims_counts {
            self.with_space(|space| space.counts.load_all())?;
            self.give_up_empty(&mut given_up)?;
        }
        if self.space.counts.is_clean() && given_up.is_empty() {
            return Ok(());
        }
        if !self.space.counts.has_moved() {
            self.space.move_table()?;
            self.with_space(|space| space.make_wanted_table())?;
            self.free_left_tables()?;
        }
        self.move_changed(&mut given_up)?;
        if self.trims_counts {
            for _ in 0..ROUNDS {
                if !self.give_up_empty(&mut given_up)? && !self.shorten_table(&given_up)? {
                    break;
                }
                self.move_changed(&mut given_up)?;
            }
            self.space.counts.remove_blocks(&given_up)?;
        }
        let table = self.space.counts.table_clusters()?;
        let first = self.host(table.start)?;
        let clusters = u32::try_from(table.end.minus(table.start)?)
            .map_err(|_| Error::internal("the refcount table passes 32 bits"))?;
        self.set_header(&HeaderPatch::refcount_table(first, clusters))
    }

    /// Gives new places to the blocks that changed; to those that were given up only if they count something again.
    fn move_changed(&mut self, given_up: &mut BTreeSet<u64>) -> Result<()> {
        // Each block moves once; the old place's refcount may be in one that had not changed so far.
        loop {
            let changed = self.space.counts.to_be_moved(given_up);
            if changed.is_empty() {
                return Ok(());
            }
            for (index, old) in changed {
                let new = self.allocate(1)?;
                self.space.counts.move_block(index, new)?;
                if given_up.remove(&index) {
                    continue;
                }
                let old = old.0 >> self.geometry().cluster_bits();
                self.lower(old..old.plus(1)?)?;
            }
        }
    }

    /// Frees the places of blocks that count nothing but themselves. For as long as the new state is made they are
    /// there to count what is allocated. Says whether there are any.
    fn give_up_empty(&mut self, given_up: &mut BTreeSet<u64>) -> Result<bool> {
        let empty = self.space.counts.empty_blocks(given_up)?;
        for (index, cluster) in &empty {
            self.lower(*cluster..cluster.plus(1)?)?;
            given_up.insert(*index);
        }
        Ok(!empty.is_empty())
    }

    /// Frees the end of the moved table, where no blocks are named any more. Says whether it had one.
    fn shorten_table(&mut self, given_up: &BTreeSet<u64>) -> Result<bool> {
        let surplus = self.space.counts.shorten_table(given_up)?;
        let found = !surplus.is_empty();
        self.lower(surplus)?;
        Ok(found)
    }
}
