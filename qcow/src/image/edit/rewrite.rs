//! L2 tables with other entries, in new places.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::Edit;
use super::references::{data_of, named_twice};
use super::runs::{Make, Runs, read_table};
use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HostOffset, L1Entry, RawL2Entry};
use crate::io::Storage;
use crate::{CancelToken, Error, Result};

/// What entries become: the same whenever it is asked, because tables are made again when they are written.
pub(crate) trait NewEntries: fmt::Debug + Send + Sync {
    /// What the entry becomes that maps guest cluster `cluster`.
    ///
    /// # Errors
    /// What is not an entry at all.
    fn entry(&self, cluster: u64, entry: RawL2Entry) -> Result<RawL2Entry>;
}

impl Edit {
    /// Gives the active image, whose L1 table is to be `l1`, other entries, which lead to fewer clusters than the old
    /// ones and to no others. Tables that change get new places; those without any entry left are dropped.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`lower`](Self::lower);
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if two entries of the L1 table name the same table.
    pub(crate) fn rewrite(
        &mut self,
        l1: &mut [u64],
        change: &Arc<dyn NewEntries>,
        cancel: &CancelToken,
    ) -> Result<()> {
        let mut runs = self.rewritten(change);
        let mut seen = HashSet::new();
        let per_table = self.geometry().l2_entries();
        for (index, slot) in (0u64..).zip(l1) {
            cancel.check()?;
            let old = L1Entry(*slot).offset();
            if old.0 == 0 {
                continue;
            }
            if !seen.insert(old) {
                return Err(named_twice(old));
            }
            let table = Table { old, first: index.times(per_table)? };
            let bytes = self.read_l2(old)?;
            let new = table.with(bytes.clone(), self.geometry(), &**change)?;
            if new == bytes {
                continue;
            }
            self.drop_left(&bytes, &new)?;
            let own = self.clusters(old, 1)?;
            self.lower(own)?;
            if new.iter().all(|byte| *byte == 0) {
                *slot = 0;
                continue;
            }
            let place = self.allocate(1)?;
            *slot = L1Entry::new(place, true).0;
            runs.add(place, table)?;
        }
        runs.write(self)
    }

    /// Tables that are rewritten, none yet.
    pub(super) fn rewritten(&self, change: &Arc<dyn NewEntries>) -> Runs<Rewrite> {
        let storage = Arc::clone(self.image().storage());
        Runs::new(self.geometry(), Rewrite { storage, change: Arc::clone(change) })
    }

    /// Lowers what entries of `old` lead to and those of `new` do not.
    fn drop_left(&mut self, old: &[u8], new: &[u8]) -> Result<()> {
        let rules = self.rules();
        let width = to_usize(self.geometry().l2_entry_size());
        for (old, new) in old.chunks_exact(width).zip(new.chunks_exact(width)) {
            if old == new {
                continue;
            }
            let before = data_of(RawL2Entry::read(old), &rules)?;
            let after = data_of(RawL2Entry::read(new), &rules)?;
            match (before, after) {
                (before, after) if before == after => {}
                (Some(clusters), None) => self.lower(clusters)?,
                _ => return Err(Error::internal("a rewritten entry leads to another cluster")),
            }
        }
        Ok(())
    }
}

/// A table that is rewritten.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    /// Where it was.
    pub(super) old: HostOffset,
    /// The guest cluster that its first entry maps.
    pub(super) first: u64,
}

impl Table {
    /// The table's bytes with other entries.
    pub(super) fn with(
        self,
        mut bytes: Vec<u8>,
        geometry: Geometry,
        change: &dyn NewEntries,
    ) -> Result<Vec<u8>> {
        let width = to_usize(geometry.l2_entry_size());
        for (cluster, field) in (self.first..).zip(bytes.chunks_exact_mut(width)) {
            let entry = RawL2Entry::read(field);
            if !entry.is_empty() {
                change.entry(cluster, entry)?.write(field);
            }
        }
        Ok(bytes)
    }
}

/// Rewrites tables that are where they were before.
#[derive(Debug)]
pub(super) struct Rewrite {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) change: Arc<dyn NewEntries>,
}

impl Make for Rewrite {
    type Table = Table;

    fn make(&self, table: &Table, geometry: Geometry) -> Result<Vec<u8>> {
        let bytes = read_table(&*self.storage, table.old, geometry)?;
        table.with(bytes, geometry, &*self.change)
    }
}
