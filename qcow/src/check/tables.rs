//! Reads all L1 tables and lists the L2 tables that they name, each once.
//!
//! Tables of snapshots may overlap in a hostile image, so every byte of the file is read at most
//! once for them, with the number of tables that it belongs to.

use std::collections::BTreeMap;
use std::ops::Range;

use byteorder::{BigEndian, ByteOrder};

use super::Checker;
use super::references::whole;
use super::report::{FindingKind, Numbers, Spot, Structure};
use crate::format::{L1Entry, MAX_L1_BYTES};
use crate::image::MAX_FILE_OFFSET;
use crate::io::read_padded;
use crate::{Error, Result};

/// L1 tables of snapshots are read in pieces of this many bytes.
const PIECE: u64 = 64 << 10;
const ENTRY: u64 = 8;
/// The list is made shorter when it has grown to this many.
const COMPACT: usize = 1 << 20;

/// An L2 table and who names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct L2Table {
    /// Where it lies, perhaps not aligned.
    pub(super) offset: u64,
    /// One L1 index under which it is named; of the active table if that names it.
    pub(super) l1_index: u64,
    /// Entries of the active L1 table that name it.
    pub(super) active: u64,
    /// Entries of snapshots' L1 tables that name it.
    pub(super) others: u64,
}

impl Checker<'_> {
    /// Counts the active L1 table and what it names, in the order of their offsets.
    pub(super) fn active_l1(&self) -> Result<Vec<L2Table>> {
        let header = self.image.header();
        let offset = header.l1_table_offset.0;
        let len = u64::from(header.l1_entries).saturating_mul(ENTRY);
        let spot = whole(Structure::L1Table, offset);
        self.references.count(offset, len, 1, spot)?;
        self.references.claim(offset, len, spot);
        let table =
            Stretch { from: offset, to: offset.saturating_add(len), times: 1, start: offset };
        let mut list = Vec::new();
        self.walk_l1(table, Structure::L1Table, &mut list)?;
        compact(&mut list);
        Ok(list)
    }

    /// Counts the snapshots' L1 tables and adds what they name to `list`.
    pub(super) fn snapshot_l1s(&self, list: &mut Vec<L2Table>) -> Result<()> {
        let (mut tables, mut clusters) = (Vec::new(), Vec::new());
        for (index, snapshot) in self.image.snapshots().iter().enumerate() {
            let offset = snapshot.l1_table_offset.0;
            let len = u64::from(snapshot.l1_entries).saturating_mul(ENTRY);
            let mut spot = Spot::new(Structure::SnapshotTable);
            spot.index = Some(index as u64);
            if !self.geometry.is_aligned(offset) || len > MAX_L1_BYTES {
                self.report.corruption(FindingKind::Snapshot, 1, spot, || {
                    format!("the L1 table is {len} bytes at {offset:#x}, which no table can be")
                });
                continue;
            }
            if len == 0 {
                continue;
            }
            tables.push(offset..offset.saturating_add(len));
            if offset.saturating_add(len) > MAX_FILE_OFFSET {
                return Err(Error::corrupt(format!("an L1 table at {offset:#x} is past any file"))
                    .structure("snapshot table")
                    .index(index as u64));
            }
            if self.references.is_past_end(offset, len) {
                self.references.count(offset, len, 1, spot)?;
            } else {
                clusters.push(self.references.touched(offset, len));
            }
        }
        for part in stretches(&clusters) {
            self.references.count_clusters(part.from..part.to, part.times);
            let offset = self.references.offset_of(part.from);
            let len = self.references.offset_of(part.to).saturating_sub(offset);
            self.references.claim(offset, len, whole(Structure::SnapshotL1Table, offset));
        }
        for part in stretches(&tables) {
            self.walk_l1(part, Structure::SnapshotL1Table, list)?;
        }
        compact(list);
        Ok(())
    }

    /// Reads a stretch of L1 tables as far as the file reaches: behind its end all is zero.
    fn walk_l1(&self, part: Stretch, kind: Structure, list: &mut Vec<L2Table>) -> Result<()> {
        let storage = &**self.image.storage();
        let to = part.to.min(storage.len());
        let mut at = part.from;
        let mut buffer = Vec::new();
        while at < to {
            self.cancel.check()?;
            // Holes need no reading; entries start at multiples of eight.
            let data = storage.next_data(at).map_err(|error| Error::io("could not read", error))?;
            at = at.max(data.unwrap_or(to) & !7).min(to);
            let len = to.saturating_sub(at).next_multiple_of(ENTRY).min(PIECE);
            buffer.resize(usize::try_from(len).unwrap_or_default(), 0);
            read_padded(storage, &mut buffer, at).map_err(|e| e.structure(kind.as_str()))?;
            for bytes in buffer.chunks_exact(8) {
                self.l1_entry(L1Entry(BigEndian::read_u64(bytes)), at, part, kind, list)?;
                at = at.saturating_add(ENTRY);
            }
            if list.len() >= COMPACT {
                compact(list);
            }
        }
        Ok(())
    }

    /// Counts one entry, which lies at `at`.
    fn l1_entry(
        &self,
        entry: L1Entry,
        at: u64,
        part: Stretch,
        kind: Structure,
        list: &mut Vec<L2Table>,
    ) -> Result<()> {
        if entry.0 == 0 {
            return Ok(());
        }
        let (offset, cluster_size) = (entry.offset().0, self.geometry.cluster_size());
        let index = at.saturating_sub(part.start) >> 3;
        let mut spot = Spot::entry(kind, index, at);
        spot.guest_offset = Some(index.saturating_mul(self.geometry.l2_coverage()));
        if entry.reserved() != 0 {
            self.report.corruption(FindingKind::ReservedBits, part.times, spot, || {
                format!("entry {:#018x} has reserved bits set", entry.0)
            });
        }
        // An entry that only has flags counts as one for offset 0, as in QEMU.
        self.references.count(offset, cluster_size, part.times, spot)?;
        if !self.geometry.is_aligned(offset) {
            let spot = spot.with(Numbers::Entry { entry: entry.0, refcount: 0 });
            self.report.corruption(FindingKind::Misaligned, part.times, spot, || {
                format!("the L2 table is at {offset:#x}, expected a multiple of {cluster_size}")
            });
        }
        let active = kind == Structure::L1Table;
        if active && offset != 0 {
            self.check_l1_copied(entry, spot);
        }
        list.push(L2Table {
            offset,
            l1_index: index,
            active: if active { part.times } else { 0 },
            others: if active { 0 } else { part.times },
        });
        Ok(())
    }

    fn check_l1_copied(&self, entry: L1Entry, spot: Spot) {
        let cluster = entry.offset().0 >> self.geometry.cluster_bits();
        if self.stored.is_one(cluster).is_some_and(|one| one != entry.copied()) {
            let refcount = self.stored_refcount(cluster);
            let spot = spot.with(Numbers::Entry { entry: entry.0, refcount });
            self.report.corruption(FindingKind::CopiedFlag, 1, spot, || {
                copied_message("the L2 table", entry.copied())
            });
        }
    }
}

impl Checker<'_> {
    /// The refcount that the image stores for a cluster, for a message; 0 where it has none.
    pub(super) fn stored_refcount(&self, cluster: u64) -> u64 {
        self.stored.refcount_of(cluster).unwrap_or(0)
    }
}

/// What a lying copied flag says of `what`.
pub(super) fn copied_message(what: &str, copied: bool) -> String {
    if copied {
        format!("the copied flag is set, but {what} does not have a refcount of 1")
    } else {
        format!("the copied flag is not set, but {what} has a refcount of 1")
    }
}

/// Sorts by offset and makes one of all that name the same table; the active table's index wins.
fn compact(list: &mut Vec<L2Table>) {
    list.sort_unstable_by_key(|table| (table.offset, table.active == 0, table.l1_index));
    list.dedup_by(|next, first| {
        let same = next.offset == first.offset;
        if same {
            first.active = first.active.saturating_add(next.active);
            first.others = first.others.saturating_add(next.others);
        }
        same
    });
}

/// A range that belongs to `times` tables, of which one starts at `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) times: u64,
    pub(super) start: u64,
}

/// Cuts ranges that may overlap into stretches that do not.
pub(super) fn stretches(ranges: &[Range<u64>]) -> Vec<Stretch> {
    let filled = || ranges.iter().filter(|range| range.start < range.end);
    let mut edges: Vec<(u64, bool, u64)> = filled()
        .flat_map(|range| [(range.start, true, range.start), (range.end, false, range.start)])
        .collect();
    edges.sort_unstable();
    let mut open: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut result, mut from, mut times) = (Vec::new(), 0, 0u64);
    for (at, opens, start) in edges {
        if let Some((&start, _)) = open.first_key_value()
            && at > from
        {
            result.push(Stretch { from, to: at, times, start });
        }
        from = at;
        let count = open.entry(start).or_default();
        if opens {
            (*count, times) = (count.saturating_add(1), times.saturating_add(1));
        } else {
            (*count, times) = (count.saturating_sub(1), times.saturating_sub(1));
            if *count == 0 {
                open.remove(&start);
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ranges_are_cut_where_their_number_changes() {
        let found = stretches(&[0..10, 4..6, 4..6, 10..12, 3..3]);
        let expected = [(0, 4, 1, 0), (4, 6, 3, 0), (6, 10, 1, 0), (10, 12, 1, 10)];
        let expected = expected.map(|(from, to, times, start)| Stretch { from, to, times, start });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_table_that_many_name_is_listed_once_under_its_active_index() {
        let table = |offset, l1_index, active, others| L2Table { offset, l1_index, active, others };
        let mut list =
            vec![table(8, 1, 0, 2), table(4, 9, 1, 0), table(8, 7, 1, 0), table(8, 5, 1, 0)];
        compact(&mut list);
        assert_eq!(list, [table(4, 9, 1, 0), table(8, 5, 2, 2)]);
    }
}
