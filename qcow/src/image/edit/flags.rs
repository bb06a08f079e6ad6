//! Copied flags of the active image: QEMU asks that they say just where a refcount is one.
//!
//! Tables are not changed where they are: those with a wrong flag are copied.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::Edit;
use super::references::{data_of, named_twice};
use super::runs::{Make, Runs, read_table};
use crate::Result;
use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HostOffset, L1Entry, RawL2Entry};
use crate::io::Storage;

impl Edit {
    /// These entries of an L1 table, with the copied flags of the active image. Tables in which flags are wrong are
    /// replaced by copies. All references that there will be, those of this L1 table among them, are to be
    /// counted by now.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`lower`](Self::lower).
    pub(crate) fn with_true_flags(&mut self, l1: &[u64]) -> Result<Vec<u64>> {
        let mut new = Vec::with_capacity(l1.len());
        let storage = Arc::clone(self.image().storage());
        let mut copies = Runs::new(self.geometry(), Copies { storage });
        let mut seen = HashSet::new();
        for entry in l1 {
            let table = L1Entry(*entry).offset();
            if table.0 == 0 {
                new.push(0);
                continue;
            }
            if !seen.insert(table) {
                return Err(named_twice(table));
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
            copies.add(copy, (table, flags))?;
        }
        copies.write(self)?;
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

/// Copies tables with other flags.
#[derive(Debug)]
struct Copies {
    storage: Arc<dyn Storage>,
}

impl Make for Copies {
    type Table = (HostOffset, Flags);

    fn make(&self, (from, flags): &(HostOffset, Flags), geometry: Geometry) -> Result<Vec<u8>> {
        let mut bytes = read_table(&*self.storage, *from, geometry)?;
        let width = to_usize(geometry.l2_entry_size());
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
