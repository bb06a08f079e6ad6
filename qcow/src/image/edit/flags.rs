//! Copied flags of the active image: QEMU asks that they say just where a refcount is one.
//!
//! Tables are not changed where they are: those with a wrong flag are copied.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::Edit;
use super::references::data_of;
use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HostOffset, L1Entry, RawL2Entry};
use crate::image::update::Pieces;
use crate::io::{Storage, read_padded};
use crate::{Error, Remedy, Result};

impl Edit {
    /// These entries of an L1 table, with the copied flags of the active image. Tables in which flags are wrong are
    /// replaced by copies. All references that there will be, those of this L1 table among them, are to be
    /// counted by now.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`lower`](Self::lower).
    pub(crate) fn with_true_flags(&mut self, l1: &[u64]) -> Result<Vec<u64>> {
        let mut new = Vec::with_capacity(l1.len());
        let mut copies: Vec<Copies> = Vec::new();
        let mut seen = HashSet::new();
        for entry in l1 {
            let table = L1Entry(*entry).offset();
            if table.0 == 0 {
                new.push(0);
                continue;
            }
            if !seen.insert(table) {
                // Each copy of it would be another: no writer makes this, and it has no end.
                return Err(Error::unsupported("two entries name the same L2 table")
                    .structure("L1 table")
                    .host_offset(table)
                    .hint(Remedy::Flatten));
            }
            let own = self.clusters(table, 1)?;
            let Some(flags) = self.changed_flags(table)? else {
                let copied = self.refcount(own.start)? == 1;
                new.push(L1Entry::new(table, copied).0);
                continue;
            };
            let copy = self.allocate(1)?;
            self.lower(own)?;
            new.push(L1Entry::new(copy, true).0);
            match copies.last_mut() {
                Some(run) if run.end()? == copy.0 => run.tables.push((table, flags)),
                _ => copies.push(Copies {
                    storage: Arc::clone(self.image().storage()),
                    geometry: self.geometry(),
                    start: copy.0,
                    tables: vec![(table, flags)],
                }),
            }
        }
        copies.into_iter().try_for_each(|run| self.write_pieces(Arc::new(run)))?;
        Ok(new)
    }

    /// The copied flags that the entries of a table are to have; `None` if they have them.
    fn changed_flags(&mut self, table: HostOffset) -> Result<Option<Flags>> {
        let rules = self.rules();
        let bytes = self.read_l2(table)?;
        let width = to_usize(self.geometry().l2_entry_size());
        let mut flags = Flags::default();
        let mut changed = false;
        for (index, entry) in (0u64..).zip(bytes.chunks_exact(width)) {
            let entry = RawL2Entry::read(entry);
            let copied = if rules.data_file {
                entry.is_copied()
            } else if entry.is_compressed() {
                false
            } else {
                match data_of(entry, &rules)? {
                    Some(clusters) => self.refcount(clusters.start)? == 1,
                    None => false,
                }
            };
            changed |= copied != entry.is_copied();
            if copied {
                flags.set(index);
            }
        }
        Ok(changed.then_some(flags))
    }
}

/// One bit for each entry of a table that has its copied flag set, as far as the last of them.
#[derive(Debug, Default)]
struct Flags(Vec<u64>);

impl Flags {
    fn set(&mut self, index: u64) {
        let word = to_usize(index >> 6);
        if word >= self.0.len() {
            self.0.resize(word.wrapping_add(1), 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << (index & 63);
        }
    }

    fn get(&self, index: u64) -> bool {
        self.0.get(to_usize(index >> 6)).is_some_and(|word| word >> (index & 63) & 1 == 1)
    }
}

/// Copies of tables with other flags, in clusters one behind the other.
#[derive(Debug)]
struct Copies {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    start: u64,
    tables: Vec<(HostOffset, Flags)>,
}

impl Copies {
    fn end(&self) -> Result<u64> {
        self.start.plus(self.count().times(self.piece_len())?)
    }
}

impl Pieces for Copies {
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
        let (from, flags) = table.ok_or_else(|| Error::internal("there is no such L2 table"))?;
        let mut bytes = vec![0; to_usize(self.geometry.cluster_size())];
        read_padded(&*self.storage, &mut bytes, from.0)
            .map_err(|error| error.structure("L2 table"))?;
        let width = to_usize(self.geometry.l2_entry_size());
        for (index, field) in (0u64..).zip(bytes.chunks_exact_mut(width)) {
            RawL2Entry::read(field).with_copied(flags.get(index)).write(field);
        }
        Ok(bytes)
    }
}

/// The bytes that a run of clusters fills.
pub(super) fn bytes_of(clusters: &Range<u64>, geometry: Geometry) -> Result<(u64, u64)> {
    let size = geometry.cluster_size();
    Ok((clusters.start.times(size)?, clusters.end.minus(clusters.start)?.times(size)?))
}
