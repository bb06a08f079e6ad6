//! Repairs of L1 and L2 entries.

use std::ops::Range;

use byteorder::{BigEndian, ByteOrder};

use super::Look;
use super::plan::{Action, Plan, Step};
use super::refcounts::Target;
use crate::check::tables::L2Table;
use crate::check::{Checker, Structure};
use crate::exact::{Exact, to_usize};
use crate::format::{L1Entry, RawL2Entry, Version, raw_l2_entry, set_raw_l2_entry};
use crate::io::read_padded;
use crate::{Error, Result};

/// L1 tables are read in pieces of this many bytes.
const PIECE: u64 = 64 << 10;

/// Drops entries that lead past the end of the file, where all is zeros, and clears copied flags of
/// compressed clusters, in the active image and in snapshots. What a guest reads stays the same.
pub(super) fn drop_dead(look: &Look<'_>, plan: &mut Plan) -> Result<()> {
    let checker = look.checker;
    let cluster_size = checker.geometry.cluster_size();
    let without_dead = |entry: L1Entry| {
        let past_end = checker.geometry.is_aligned(entry.offset().0)
            && checker.references.is_past_end(entry.offset().0, cluster_size);
        // A flag without an offset means nothing either.
        let dead = entry.reserved() == 0 && (past_end || entry.is_empty());
        (Action::DropEntry, if dead { 0 } else { entry.0 })
    };
    edit_l1(checker, plan, without_dead)?;
    for range in snapshot_l1s(checker)? {
        edit_entries(checker, plan, Structure::SnapshotL1Table, range, without_dead)?;
    }
    for table in &look.found.tables {
        edit_l2(checker, table, plan, |entry| {
            if entry.is_compressed() {
                return (Action::ClearCopied, entry.with_copied(false));
            }
            (Action::DropEntry, without_dead_cluster(checker, entry).unwrap_or(entry))
        })?;
    }
    plan.changes.barrier();
    Ok(())
}

/// The entry that reads like this one, if that leads to a cluster that is not there, or keeps one
/// for later where none can be.
fn without_dead_cluster(checker: &Checker<'_>, entry: RawL2Entry) -> Option<RawL2Entry> {
    let rules = checker.rules;
    let offset = entry.offset().0;
    let wide = rules.geometry.extended_l2();
    if entry.reserved(&rules) != 0 || offset == 0 || rules.data_file {
        return None;
    }
    let (allocated, zero) = (entry.allocated_subclusters(), entry.zero_subclusters());
    let holds_data = if wide { allocated != 0 } else { !entry.has_zero_flag() };
    let aligned = rules.geometry.is_aligned(offset);
    let past_end = checker.references.is_past_end(offset, rules.geometry.cluster_size());
    let dead = if aligned { past_end } else { !holds_data };
    if !dead || entry.contradicts_itself() {
        return None;
    }
    if wide {
        return Some(RawL2Entry { word: 0, bitmap: (allocated | zero) << 32 });
    }
    match rules.version {
        Version::V3 => Some(RawL2Entry::ZEROS),
        // Version 2 cannot say "zeros" over a backing file.
        Version::V2 => {
            (holds_data && checker.image.area().backing_name.is_none()).then(RawL2Entry::default)
        }
    }
}

/// Clears (or sets) copied flags of the active image where they will not (or will) be the truth.
pub(super) fn copied_flags(
    look: &Look<'_>,
    target: Target,
    set: bool,
    plan: &mut Plan,
) -> Result<()> {
    let checker = look.checker;
    let bits = checker.geometry.cluster_bits();
    let action = if set { Action::SetCopied } else { Action::ClearCopied };
    let right = |offset: u64, copied: bool| {
        let one = target.refcount(checker, offset >> bits) == 1;
        if one == set { set } else { copied }
    };
    plan.changes.barrier();
    edit_l1(checker, plan, |entry| {
        let copied = entry.is_empty() || right(entry.offset().0, entry.copied());
        let copied = if entry.is_empty() { entry.copied() } else { copied };
        (action, entry.with_copied(copied).0)
    })?;
    for table in look.found.tables.iter().filter(|table| table.active > 0) {
        edit_l2(checker, table, plan, |entry| {
            let (offset, copied) = (entry.offset().0, entry.is_copied());
            let copied = if entry.is_compressed() || offset == 0 {
                copied
            } else if checker.rules.data_file {
                copied || set
            } else {
                right(offset, copied)
            };
            (action, entry.with_copied(copied))
        })?;
    }
    plan.changes.barrier();
    Ok(())
}

/// Rewrites entries of the active L1 table; entries of zero are not asked about.
fn edit_l1(
    checker: &Checker<'_>,
    plan: &mut Plan,
    edit: impl FnMut(L1Entry) -> (Action, u64),
) -> Result<()> {
    let header = checker.image.header();
    let start = header.l1_table_offset.0;
    let end = start.plus(u64::from(header.l1_entries) << 3)?;
    edit_entries(checker, plan, Structure::L1Table, start..end, edit)
}

/// Where the snapshots' L1 tables lie, as far as the file reaches, each byte once.
fn snapshot_l1s(checker: &Checker<'_>) -> Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let tables = checker.image.snapshots().iter();
    for table in tables.filter(|table| table.check_l1(checker.geometry).is_ok()) {
        let start = table.l1_table_offset.0;
        ranges.push(start..start.plus(u64::from(table.l1_entries) << 3)?);
    }
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, first| {
        let joined = next.start <= first.end;
        if joined {
            first.end = first.end.max(next.end);
        }
        joined
    });
    Ok(ranges)
}

/// Rewrites entries of L1 tables, as far as the file reaches; entries of zero are not asked about.
fn edit_entries(
    checker: &Checker<'_>,
    plan: &mut Plan,
    structure: Structure,
    range: Range<u64>,
    mut edit: impl FnMut(L1Entry) -> (Action, u64),
) -> Result<()> {
    let result = plan.result();
    let end = range.end.min(result.len());
    let mut at = range.start;
    while at < end {
        checker.cancel.check()?;
        let data = result.next_data(at).map_err(|error| Error::io("could not read", error))?;
        at = at.max(data.unwrap_or(end) & !PIECE.wrapping_sub(1)).min(end);
        // Pieces start at the table's, or at multiples of their own length: never within a sector.
        let until = at.plus(1)?.checked_next_multiple_of(PIECE).unwrap_or(end).min(end);
        let len = until.minus(at)?.next_multiple_of(8);
        let mut old = vec![0; to_usize(len)];
        read_padded(&*result, &mut old, at)?;
        let mut new = old.clone();
        let first = at.minus(range.start)? >> 3;
        for (place, bytes) in (0u64..).zip(new.chunks_exact_mut(8)) {
            let from = BigEndian::read_u64(bytes);
            if from != 0 {
                let (action, to) = edit(L1Entry(from));
                if to != from {
                    BigEndian::write_u64(bytes, to);
                    let index = first.plus(place)?;
                    let host_offset = at.plus(place << 3)?;
                    plan.step(Step { action, structure, index, host_offset, from, to });
                }
            }
        }
        plan.changes.replace(at, &old, &new)?;
        at = until;
    }
    Ok(())
}

/// Shows the entries of one L2 table, if it lies where one can, but those of zero.
pub(super) fn read_l2(
    checker: &Checker<'_>,
    table: &L2Table,
    mut see: impl FnMut(RawL2Entry) -> Result<()>,
) -> Result<()> {
    let geometry = checker.geometry;
    if !is_whole(checker, table) {
        return Ok(());
    }
    let mut bytes = vec![0; to_usize(geometry.cluster_size())];
    read_padded(&**checker.image.storage(), &mut bytes, table.offset)?;
    for index in 0..geometry.l2_entries() {
        let entry = raw_l2_entry(&bytes, index, geometry);
        if !entry.is_empty() {
            see(entry)?;
        }
    }
    Ok(())
}

fn is_whole(checker: &Checker<'_>, table: &L2Table) -> bool {
    let geometry = checker.geometry;
    geometry.is_aligned(table.offset)
        && table.offset != 0
        && !checker.references.is_past_end(table.offset, geometry.cluster_size())
}

/// Rewrites entries of one L2 table, if it lies where one can; entries of zero are not asked about.
pub(super) fn edit_l2(
    checker: &Checker<'_>,
    table: &L2Table,
    plan: &mut Plan,
    mut edit: impl FnMut(RawL2Entry) -> (Action, RawL2Entry),
) -> Result<()> {
    let geometry = checker.geometry;
    if !is_whole(checker, table) {
        return Ok(());
    }
    let mut old = vec![0; to_usize(geometry.cluster_size())];
    read_padded(&*plan.result(), &mut old, table.offset)?;
    let mut new = old.clone();
    for index in 0..geometry.l2_entries() {
        let from = raw_l2_entry(&old, index, geometry);
        if from.is_empty() {
            continue;
        }
        let (action, to) = edit(from);
        if to != from {
            set_raw_l2_entry(&mut new, index, to, geometry)?;
            let within = index.times(geometry.l2_entry_size())?;
            plan.step(Step {
                action,
                structure: Structure::L2Table,
                index,
                host_offset: table.offset.plus(within)?,
                from: from.word,
                to: to.word,
            });
        }
    }
    plan.changes.replace(table.offset, &old, &new)
}
