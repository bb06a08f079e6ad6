//! L2 tables with other entries, in new places.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::Edit;
use super::references::data_of;
use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HostOffset, L1Entry, RawL2Entry};
use crate::image::update::Pieces;
use crate::io::{Storage, read_padded};
use crate::{CancelToken, Error, Remedy, Result};

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
        let mut runs: Vec<Rewritten> = Vec::new();
        let mut seen = HashSet::new();
        let per_table = self.geometry().l2_entries();
        for (index, slot) in (0u64..).zip(l1) {
            cancel.check()?;
            let old = L1Entry(*slot).offset();
            if old.0 == 0 {
                continue;
            }
            if !seen.insert(old) {
                return Err(Error::unsupported("two entries name the same L2 table")
                    .structure("L1 table")
                    .host_offset(old)
                    .hint(Remedy::Flatten));
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
            let storage = Arc::clone(self.image().storage());
            add(&mut runs, table, place, self.geometry(), &storage, change)?;
        }
        runs.into_iter().try_for_each(|run| self.write_pieces(Arc::new(run)))
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

/// Adds a table that goes to `place` to the run that ends there, or else to a new one.
pub(super) fn add(
    runs: &mut Vec<Rewritten>,
    table: Table,
    place: HostOffset,
    geometry: Geometry,
    storage: &Arc<dyn Storage>,
    change: &Arc<dyn NewEntries>,
) -> Result<()> {
    match runs.last_mut() {
        Some(run) if run.end()? == place.0 => run.tables.push(table),
        _ => runs.push(Rewritten {
            storage: Arc::clone(storage),
            geometry,
            start: place.0,
            tables: vec![table],
            change: Arc::clone(change),
        }),
    }
    Ok(())
}

/// Rewritten tables, in clusters one behind the other.
#[derive(Debug)]
pub(super) struct Rewritten {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    start: u64,
    tables: Vec<Table>,
    change: Arc<dyn NewEntries>,
}

impl Rewritten {
    fn end(&self) -> Result<u64> {
        self.start.plus(self.count().times(self.piece_len())?)
    }
}

impl Pieces for Rewritten {
    fn start(&self) -> u64 {
        self.start
    }

    fn piece_len(&self) -> u64 {
        self.geometry.cluster_size()
    }

    fn count(&self) -> u64 {
        self.tables.len() as u64
    }

    fn piece(&self, number: u64) -> Result<Vec<u8>> {
        let table = self.tables.get(to_usize(number));
        let table = table.ok_or_else(|| Error::internal("there is no such L2 table"))?;
        let mut bytes = vec![0; to_usize(self.geometry.cluster_size())];
        read_padded(&*self.storage, &mut bytes, table.old.0)
            .map_err(|error| error.structure("L2 table"))?;
        table.with(bytes, self.geometry, &*self.change)
    }
}
