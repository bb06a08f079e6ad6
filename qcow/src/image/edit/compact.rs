//! The end of the file is vacated: all that lies there moves to free places nearer its beginning.
//!
//! Clusters are copied as they are, compressed ones with the same place within their first sector; tables that lead
//! to what moved get new places, too. One switch of the header has all moved, as every change does.

mod bitmaps;
mod places;
mod survey;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Edit;
use super::references::{data_of, tables_of};
use super::rewrite::{NewEntries, Table};
use crate::exact::{Exact, to_usize};
use crate::format::{
    CompressedSpan, EntryRules, HostOffset, L1Entry, RawL2Entry, Snapshot, encode_table,
};
use crate::{CancelToken, Error, Result};

use places::Moves;

/// An L1 table: where it is, and its entries.
#[derive(Debug)]
struct L1 {
    place: HostOffset,
    entries: Vec<u64>,
}

impl Edit {
    /// Moves all that lies in cluster `from` or behind it, as far as there are free places. Gives how many bytes of
    /// clusters are copied.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate), [`raise`](Self::raise) and [`lower`](Self::lower).
    pub(crate) fn vacate(&mut self, from: u64, cancel: &CancelToken) -> Result<u64> {
        let (active, snapshots) = self.l1_tables()?;
        let all: Vec<u64> =
            snapshots.iter().chain([&active]).flat_map(|l1| &l1.entries).copied().collect();
        let tables = tables_of(&all);
        drop(all);
        let (moves, leading) = self.find_moves(&tables, from, cancel)?;
        let (moves, moved) = self.place_moves(moves, cancel)?;
        let moves: Arc<dyn NewEntries> = Arc::new(moves);
        let tables = self.move_tables(leading, &moves, cancel)?;
        self.move_active_l1(active, &tables, from)?;
        self.move_snapshots(snapshots, &tables, from)?;
        let moved = moved.plus(self.move_bitmaps(from, cancel)?)?;
        self.move_counts_from(from)?;
        Ok(moved)
    }

    fn l1_tables(&self) -> Result<(L1, Vec<L1>)> {
        let place = self.image().header().l1_table_offset;
        let active = L1 { place, entries: self.active_l1()? };
        let of = |snapshot: &Snapshot| {
            snapshot.check_l1(self.geometry())?;
            let place = snapshot.l1_table_offset;
            Ok(L1 { place, entries: self.read_table(place, snapshot.l1_entries.into())? })
        };
        let snapshots = self.image().snapshots().iter().map(of).collect::<Result<_>>()?;
        Ok((active, snapshots))
    }

    /// What lies at `from` or behind it, with how often it is referred to; and the tables that lead there or lie there.
    fn find_moves(
        &self,
        tables: &BTreeMap<HostOffset, u64>,
        from: u64,
        cancel: &CancelToken,
    ) -> Result<(References, Vec<(HostOffset, u64)>)> {
        let (rules, bits) = (self.rules(), self.geometry().cluster_bits());
        let width = to_usize(self.geometry().l2_entry_size());
        let (mut found, mut leading) = (References::default(), Vec::new());
        for (table, times) in tables {
            cancel.check()?;
            let mut leads = table.0 >> bits >= from;
            for entry in self.read_l2(*table)?.chunks_exact(width).map(RawL2Entry::read) {
                let Some(clusters) = data_of(entry, &rules)? else { continue };
                if clusters.end <= from {
                    continue;
                }
                leads = true;
                let references = if entry.is_compressed() {
                    let span = CompressedSpan::decode(entry.word, bits);
                    found.spans.entry((span.host.0, span.len)).or_default()
                } else {
                    found.clusters.entry(clusters.start).or_default()
                };
                *references = references.plus(*times)?;
            }
            if leads {
                leading.push((*table, *times));
            }
        }
        Ok((found, leading))
    }

    /// Gives these tables new places. Gives them by their old ones.
    fn move_tables(
        &mut self,
        tables: Vec<(HostOffset, u64)>,
        moves: &Arc<dyn NewEntries>,
        cancel: &CancelToken,
    ) -> Result<BTreeMap<HostOffset, HostOffset>> {
        let (mut places, mut runs) = (BTreeMap::new(), self.rewritten(moves));
        for (old, times) in tables {
            cancel.check()?;
            let place = self.allocate(1)?;
            let (new, own) = (self.clusters(place, 1)?, self.clusters(old, 1)?);
            self.shift(new, times.minus(1)?, true)?;
            self.shift(own, times, false)?;
            // Where a cluster moves to does not depend on what it is for.
            runs.add(place, Table { old, first: 0 })?;
            places.insert(old, place);
        }
        runs.write(self)?;
        Ok(places)
    }

    /// The entries with the new places of tables; whether the table has to move.
    fn moved_l1(
        &self,
        l1: &L1,
        tables: &BTreeMap<HostOffset, HostOffset>,
        from: u64,
    ) -> Result<Option<Vec<u64>>> {
        let new = l1.entries.iter().map(|entry| {
            let entry = L1Entry(*entry);
            match tables.get(&entry.offset()) {
                Some(place) => L1Entry::new(*place, entry.copied()).0,
                None => entry.0,
            }
        });
        let new: Vec<u64> = new.collect();
        let own = self.clusters(l1.place, (new.len() as u64).times(8)?)?;
        let moves = new != l1.entries || !own.is_empty() && own.end > from;
        Ok(moves.then_some(new))
    }

    fn move_active_l1(
        &mut self,
        l1: L1,
        tables: &BTreeMap<HostOffset, HostOffset>,
        from: u64,
    ) -> Result<()> {
        let Some(new) = self.moved_l1(&l1, tables, from)? else { return Ok(()) };
        self.set_l1(&new)?;
        let own = self.clusters(l1.place, (new.len() as u64).times(8)?)?;
        self.lower(own)
    }

    fn move_snapshots(
        &mut self,
        l1s: Vec<L1>,
        tables: &BTreeMap<HostOffset, HostOffset>,
        from: u64,
    ) -> Result<()> {
        let mut snapshots = self.image().snapshots().to_vec();
        for (snapshot, l1) in snapshots.iter_mut().zip(l1s) {
            let Some(new) = self.moved_l1(&l1, tables, from)? else { continue };
            snapshot.l1_table_offset = self.write_new(encode_table(&new))?;
            let own = self.clusters(l1.place, (new.len() as u64).times(8)?)?;
            self.lower(own)?;
        }
        let place = self.image().header().snapshots_offset;
        let own = self.clusters(place, self.image().snapshot_table_len())?;
        if snapshots == self.image().snapshots() && own.end <= from {
            return Ok(());
        }
        self.set_snapshots(&snapshots)
    }

    /// Gives refcount blocks that lie at `from` or behind it new places. Those that change get one anyway.
    fn move_counts_from(&mut self, from: u64) -> Result<()> {
        let blocks = self.space.counts.blocks_from(from);
        if !blocks.is_empty() && !self.space.counts.has_moved() {
            // With the first place that a block gets.
            self.space.move_table()?;
        }
        for (index, host) in blocks {
            let first = self.space.counts.first_of(index)?;
            // Has it read.
            self.refcount(first)?;
            let new = self.allocate(1)?;
            self.space.counts.move_block(index, new)?;
            self.lower(host..host.plus(1)?)?;
        }
        Ok(())
    }
}

/// What is to move, with how many entries lead there.
#[derive(Debug, Default)]
struct References {
    /// Clusters.
    clusters: BTreeMap<u64, u64>,
    /// Places and lengths of compressed data.
    spans: BTreeMap<(u64, u64), u64>,
}

/// Where entries lead when all has moved.
#[derive(Debug)]
struct Relocation {
    moves: Moves,
    rules: EntryRules,
}

impl NewEntries for Relocation {
    fn entry(&self, _: u64, entry: RawL2Entry) -> Result<RawL2Entry> {
        let bits = self.rules.geometry.cluster_bits();
        if entry.is_compressed() {
            let span = CompressedSpan::decode(entry.word, bits);
            let Some(host) = self.moves.spans.get(&(span.host.0, span.len)) else {
                return Ok(entry);
            };
            let word = CompressedSpan::encode(HostOffset(*host), span.len, bits)?;
            return Ok(RawL2Entry { word, ..entry });
        }
        if self.rules.data_file || entry.offset().0 == 0 {
            return Ok(entry);
        }
        let Some(new) = self.moves.clusters.get(&(entry.offset().0 >> bits)) else {
            return Ok(entry);
        };
        let host = new.times(self.rules.geometry.cluster_size())?;
        Ok(entry.with_offset(HostOffset(host)))
    }
}

/// What cannot be: a piece of a run that is not there.
fn no_piece() -> Error {
    Error::internal("there is no such cluster to be moved")
}
