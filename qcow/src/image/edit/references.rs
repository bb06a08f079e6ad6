//! What tables lead to, and the refcounts of that.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Edit;
use super::runs::read_table;
use crate::exact::{Exact, to_usize};
use crate::format::{CompressedSpan, EntryRules, HostOffset, L1Entry, RawL2Entry};
use crate::{Error, Remedy, Result};

impl Edit {
    /// The bytes of an L2 table, of the old image or written by this change.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if no table can be there.
    pub(crate) fn read_l2(&self, host: HostOffset) -> Result<Vec<u8>> {
        if !self.geometry().is_aligned(host.0) {
            return Err(Error::corrupt("an unaligned L2 table")
                .structure("L1 table")
                .host_offset(host));
        }
        read_table(&*self.staged.result(), host, self.geometry())
    }

    /// Counts one more reference to each L2 table that these entries of an L1 table name, and to each cluster that
    /// those lead to: as if there were another L1 table like this one.
    ///
    /// # Errors
    /// As [`raise`](Self::raise).
    pub(crate) fn raise_all(&mut self, l1: &[u64]) -> Result<()> {
        self.shift_all(l1, true)
    }

    /// The reverse of [`raise_all`](Self::raise_all).
    ///
    /// # Errors
    /// As [`lower`](Self::lower).
    pub(crate) fn lower_all(&mut self, l1: &[u64]) -> Result<()> {
        self.shift_all(l1, false)
    }

    fn shift_all(&mut self, l1: &[u64], raise: bool) -> Result<()> {
        let rules = self.rules();
        for (table, times) in tables_of(l1) {
            let bytes = self.read_l2(table)?;
            let own = self.clusters(table, 1)?;
            self.shift(own, times, raise)?;
            for_data(&bytes, &rules, |clusters| self.shift(clusters, times, raise))?;
        }
        Ok(())
    }

    /// The guest ranges, in ascending order, whose entries under two L1 tables differ in more than their flags. What has
    /// the same entries has the same content, because a cluster that two tables share is never written to.
    ///
    /// # Errors
    /// As [`read_l2`](Self::read_l2).
    pub(crate) fn differences(&self, one: &[u64], other: &[u64]) -> Result<Vec<Range<u64>>> {
        let geometry = self.geometry();
        let width = to_usize(geometry.l2_entry_size());
        let of = |l1: &[u64], index: usize| {
            let table = L1Entry(l1.get(index).copied().unwrap_or_default()).offset();
            let none = vec![0; to_usize(geometry.cluster_size())];
            (table, move |edit: &Self| if table.0 == 0 { Ok(none) } else { edit.read_l2(table) })
        };
        let mut found: Vec<Range<u64>> = Vec::new();
        for index in 0..one.len().max(other.len()) {
            let ((one, one_bytes), (other, other_bytes)) = (of(one, index), of(other, index));
            if one == other {
                continue;
            }
            let (one, other) = (one_bytes(self)?, other_bytes(self)?);
            let mut at =
                (index as u64).times(geometry.l2_entries())?.times(geometry.cluster_size())?;
            for (one, other) in one.chunks_exact(width).zip(other.chunks_exact(width)) {
                let end = at.plus(geometry.cluster_size())?;
                let plain = |bytes| RawL2Entry::read(bytes).with_copied(false);
                if plain(one) != plain(other) {
                    match found.last_mut() {
                        Some(last) if last.end == at => last.end = end,
                        _ => found.push(at..end),
                    }
                }
                at = end;
            }
        }
        Ok(found)
    }

    /// How many guest clusters have data under these entries of an L1 table.
    ///
    /// # Errors
    /// As [`read_l2`](Self::read_l2).
    pub(crate) fn data_clusters(&self, l1: &[u64]) -> Result<u64> {
        let width = to_usize(self.geometry().l2_entry_size());
        let data_file = self.image().has_data_file();
        let mut count = 0u64;
        for (table, _) in tables_of(l1) {
            let bytes = self.read_l2(table)?;
            let entries = bytes.chunks_exact(width).map(RawL2Entry::read);
            count =
                count.plus(entries.filter(|entry| has_data(*entry, data_file)).count() as u64)?;
        }
        Ok(count)
    }

    /// How many clusters of data that these entries of an L1 table lead to have no reference in the new state, as
    /// far as it is made.
    ///
    /// # Errors
    /// As [`read_l2`](Self::read_l2).
    pub(crate) fn unreferenced(&mut self, l1: &[u64]) -> Result<u64> {
        let rules = self.rules();
        let mut count = 0u64;
        for (table, _) in tables_of(l1) {
            let bytes = self.read_l2(table)?;
            for_data(&bytes, &rules, |clusters| {
                for cluster in clusters {
                    count = count.plus(u64::from(self.refcount(cluster)? == 0))?;
                }
                Ok(())
            })?;
        }
        Ok(count)
    }
}

/// The L2 tables that these entries name, each with how often: a hostile table names one a million times.
pub(super) fn tables_of(l1: &[u64]) -> BTreeMap<HostOffset, u64> {
    let mut tables = BTreeMap::new();
    for table in l1.iter().map(|entry| L1Entry(*entry).offset()).filter(|table| table.0 != 0) {
        let times: &mut u64 = tables.entry(table).or_default();
        // It counts entries in memory.
        *times = times.wrapping_add(1);
    }
    tables
}

/// Calls `each` for the host clusters that the entries of an L2 table have for data: neighbours that follow each
/// other as one run.
pub(super) fn for_data(
    bytes: &[u8],
    rules: &EntryRules,
    mut each: impl FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    if rules.data_file {
        return Ok(());
    }
    let mut run = 0..0;
    let width = to_usize(rules.geometry.l2_entry_size());
    for entry in bytes.chunks_exact(width) {
        let Some(clusters) = data_of(RawL2Entry::read(entry), rules)? else { continue };
        if run.end == clusters.start {
            run.end = clusters.end;
        } else {
            each(std::mem::replace(&mut run, clusters))?;
        }
    }
    each(run)
}

/// The host clusters that an entry leads to.
pub(super) fn data_of(entry: RawL2Entry, rules: &EntryRules) -> Result<Option<Range<u64>>> {
    let geometry = rules.geometry;
    let bits = geometry.cluster_bits();
    if rules.data_file {
        return Ok(None);
    }
    if entry.is_compressed() {
        let span = CompressedSpan::decode(entry.word, bits);
        return Ok(Some(span.host.0 >> bits..geometry.clusters_for(span.host.0.plus(span.len)?)));
    }
    let host = entry.offset();
    if host.0 == 0 {
        return Ok(None);
    }
    if !geometry.is_aligned(host.0) {
        return Err(Error::corrupt("an unaligned cluster").structure("L2 table").host_offset(host));
    }
    let cluster = host.0 >> bits;
    Ok(Some(cluster..cluster.plus(1)?))
}

/// Whether the entry has a place for data.
pub(crate) fn has_data(entry: RawL2Entry, data_file: bool) -> bool {
    entry.is_compressed() || entry.offset().0 != 0 || data_file && entry.is_copied()
}

/// Two entries of an L1 table lead to one L2 table: no writer makes this. Each would get a table of its own, and that has
/// no end.
pub(super) fn named_twice(table: HostOffset) -> Error {
    Error::unsupported("two entries name the same L2 table")
        .structure("L1 table")
        .host_offset(table)
        .hint(Remedy::Flatten)
}
