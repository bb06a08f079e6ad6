//! Other entries for ranges of guest clusters.

use std::ops::Range;

use super::Edit;
use super::references::{for_data, has_data};
use super::runs::{Make, Runs};
use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HostOffset, L1Entry, RawL2Entry};
use crate::{Error, Result};

/// What entries become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remap {
    /// Nothing is there: what is below the image decides.
    Nothing,
    /// They read as zeros.
    Zeros,
    /// The first leads to this place, of which it is the only user, and each of the others to the cluster behind
    /// that of the one before. The caller has allocated them.
    Places(HostOffset),
}

impl Edit {
    /// Gives the guest clusters of `range` other entries, under the active L1 table that `l1` will be. What they led to
    /// loses the references. Gives how many of them had data.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`lower`](Self::lower).
    pub(crate) fn remap(&mut self, l1: &mut [u64], range: Range<u64>, to: Remap) -> Result<u64> {
        let mut runs = Runs::new(self.geometry(), NewTables);
        let mut dropped = 0u64;
        let (bits, per_table) = (self.geometry().l2_bits(), self.geometry().l2_entries());
        let mut cluster = range.start;
        while cluster < range.end {
            let index = cluster >> bits;
            let first = index.times(per_table)?;
            let end = first.plus(per_table)?.min(range.end);
            let slot = l1.get_mut(to_usize(index));
            let slot = slot.ok_or_else(|| Error::internal("an entry past the L1 table"))?;
            let fill = Fill {
                entries: cluster.minus(first)?..end.minus(first)?,
                to: to.after(cluster.minus(range.start)?, self.geometry())?,
            };
            let old = L1Entry(*slot).offset();
            if old.0 != 0 {
                let (table, count) = self.refill(old, &fill)?;
                (*slot, dropped) = (table.unwrap_or(*slot), dropped.plus(count)?);
            } else if to != Remap::Nothing {
                let place = self.allocate(1)?;
                *slot = L1Entry::new(place, true).0;
                runs.add(place, fill)?;
            }
            cluster = end;
        }
        runs.write(self)?;
        Ok(dropped)
    }

    /// The L1 entry for a table like that at `old` with other entries, unless they are the same; and how many led to data.
    fn refill(&mut self, old: HostOffset, fill: &Fill) -> Result<(Option<u64>, u64)> {
        let rules = self.rules();
        let bytes = self.read_l2(old)?;
        let mut new = bytes.clone();
        fill.fill(&mut new, self.geometry())?;
        if new == bytes {
            return Ok((None, 0));
        }
        let width = self.geometry().l2_entry_size();
        let (start, end) = (fill.entries.start.times(width)?, fill.entries.end.times(width)?);
        let replaced = bytes.get(to_usize(start)..to_usize(end)).unwrap_or_default();
        for_data(replaced, &rules, |clusters| self.lower(clusters))?;
        let entries = replaced.chunks_exact(to_usize(width)).map(RawL2Entry::read);
        let had_data = entries.filter(|entry| has_data(*entry, rules.data_file)).count() as u64;
        let own = self.clusters(old, 1)?;
        self.lower(own)?;
        if new.iter().all(|byte| *byte == 0) {
            return Ok((Some(0), had_data));
        }
        let place = self.write_new(new)?;
        Ok((Some(L1Entry::new(place, true).0), had_data))
    }
}

impl Remap {
    /// The same, `clusters` further on.
    fn after(self, clusters: u64, geometry: Geometry) -> Result<Self> {
        Ok(match self {
            Self::Places(host) => {
                Self::Places(host.plus(clusters.times(geometry.cluster_size())?)?)
            }
            other => other,
        })
    }

    fn entry(self, geometry: Geometry) -> RawL2Entry {
        let extended = geometry.extended_l2();
        match self {
            Self::Nothing => RawL2Entry::default(),
            Self::Zeros if extended => RawL2Entry { word: 0, bitmap: u64::from(u32::MAX) << 32 },
            Self::Zeros => RawL2Entry::ZEROS,
            Self::Places(host) => {
                let bitmap = if extended { u64::from(u32::MAX) } else { 0 };
                RawL2Entry { word: 0, bitmap }.with_offset(host).with_copied(true)
            }
        }
    }
}

/// What some entries of a table become.
#[derive(Debug, Clone)]
struct Fill {
    entries: Range<u64>,
    to: Remap,
}

impl Fill {
    fn fill(&self, table: &mut [u8], geometry: Geometry) -> Result<()> {
        let width = geometry.l2_entry_size();
        let (start, end) = (self.entries.start.times(width)?, self.entries.end.times(width)?);
        let fields = table.get_mut(to_usize(start)..to_usize(end));
        let fields = fields.ok_or_else(|| Error::internal("an entry past its L2 table"))?;
        for (nth, field) in (0u64..).zip(fields.chunks_exact_mut(to_usize(width))) {
            self.to.after(nth, geometry)?.entry(geometry).write(field);
        }
        Ok(())
    }
}

/// Makes tables that have no other entries.
#[derive(Debug)]
struct NewTables;

impl Make for NewTables {
    type Table = Fill;

    fn make(&self, fill: &Fill, geometry: Geometry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(geometry.cluster_size())];
        fill.fill(&mut bytes, geometry)?;
        Ok(bytes)
    }
}
