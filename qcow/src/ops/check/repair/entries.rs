//! Repairs of L1 and L2 entries.

use byteorder::{BigEndian, ByteOrder};

use super::Look;
use super::plan::{Action, Plan, Step};
use super::refcounts::Target;
use crate::Result;
use crate::format::{L1Entry, L2Entry, Version, raw_l2_entry, set_raw_l2_entry};
use crate::io::read_padded;
use crate::ops::check::tables::L2Table;
use crate::ops::check::{Structure, Survey};

const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const LOW: u64 = u32::MAX as u64;

/// Drops entries that lead past the end of the file, where all is zeros, and clears copied flags of
/// compressed clusters. What a guest reads stays the same.
pub(super) fn drop_dead(look: &Look<'_>, plan: &mut Plan) -> Result<()> {
    let survey = look.survey;
    let cluster_size = survey.geometry.cluster_size();
    edit_l1(survey, plan, |entry| {
        let past_end = survey.geometry.is_aligned(entry.offset().0)
            && survey.census.is_past_end(entry.offset().0, cluster_size);
        // A flag without an offset means nothing either.
        let dead = entry.reserved() == 0 && (past_end || entry.is_empty());
        (Action::DropEntry, if dead { 0 } else { entry.0 })
    })?;
    for table in &look.found.tables {
        edit_l2(survey, table, plan, |word, bitmap| {
            if word & COMPRESSED != 0 {
                let cleared = L2Entry::with_copied(word, false);
                return (Action::ClearCopied, (cleared, bitmap));
            }
            (
                Action::DropEntry,
                without_dead_cluster(survey, word, bitmap).unwrap_or((word, bitmap)),
            )
        })?;
    }
    plan.barrier();
    Ok(())
}

/// The entry that reads like this one, if that leads to a cluster that is not there, or keeps one
/// for later where none can be.
fn without_dead_cluster(survey: &Survey<'_>, word: u64, bitmap: u64) -> Option<(u64, u64)> {
    let rules = survey.rules;
    let offset = word & OFFSET;
    let wide = rules.geometry.extended_l2();
    if L2Entry::reserved_bits(word, bitmap, &rules) != 0 || offset == 0 || rules.data_file {
        return None;
    }
    let (allocated, zero) = (bitmap & LOW, bitmap >> 32);
    let holds_data = if wide { allocated != 0 } else { word & ZERO == 0 };
    let aligned = rules.geometry.is_aligned(offset);
    let past_end = survey.census.is_past_end(offset, rules.geometry.cluster_size());
    let dead = if aligned { past_end } else { !holds_data };
    if !dead || allocated & zero != 0 {
        return None;
    }
    if wide {
        return Some((0, (allocated | zero) << 32));
    }
    match rules.version {
        Version::V3 => Some((ZERO, 0)),
        // Version 2 cannot say "zeros" over a backing file.
        Version::V2 => (holds_data && survey.image.area.backing_name.is_none()).then_some((0, 0)),
    }
}

/// Clears (or sets) copied flags of the active image where they will not (or will) be the truth.
pub(super) fn copied_flags(
    look: &Look<'_>,
    target: Target<'_>,
    set: bool,
    plan: &mut Plan,
) -> Result<()> {
    let survey = look.survey;
    let bits = survey.geometry.cluster_bits();
    let action = if set { Action::SetCopied } else { Action::ClearCopied };
    let right = |offset: u64, copied: bool| {
        let one = target.refcount(survey, offset >> bits) == 1;
        if one == set { set } else { copied }
    };
    plan.barrier();
    edit_l1(survey, plan, |entry| {
        let copied = entry.is_empty() || right(entry.offset().0, entry.copied());
        let copied = if entry.is_empty() { entry.copied() } else { copied };
        (action, L2Entry::with_copied(entry.0, copied))
    })?;
    for table in look.found.tables.iter().filter(|table| table.active > 0) {
        edit_l2(survey, table, plan, |word, bitmap| {
            let (offset, copied) = (word & OFFSET, L2Entry::is_copied(word));
            let copied = if word & COMPRESSED != 0 || offset == 0 {
                copied
            } else if survey.rules.data_file {
                copied || set
            } else {
                right(offset, copied)
            };
            (action, (L2Entry::with_copied(word, copied), bitmap))
        })?;
    }
    plan.barrier();
    Ok(())
}

/// Rewrites entries of the active L1 table; entries of zero are not asked about.
fn edit_l1(
    survey: &Survey<'_>,
    plan: &mut Plan,
    mut edit: impl FnMut(L1Entry) -> (Action, u64),
) -> Result<()> {
    let header = &survey.image.area.header;
    let offset = header.l1_table_offset.0;
    let len = usize::try_from(header.l1_entries).unwrap_or_default().saturating_mul(8);
    let mut old = vec![0; len];
    read_padded(&*plan.result(), &mut old, offset)?;
    let mut new = old.clone();
    let mut at = offset;
    for (index, bytes) in (0..).zip(new.chunks_exact_mut(8)) {
        let from = BigEndian::read_u64(bytes);
        if from != 0 {
            let (action, to) = edit(L1Entry(from));
            if to != from {
                BigEndian::write_u64(bytes, to);
                let structure = Structure::L1Table;
                plan.step(Step { action, structure, index, host_offset: at, from, to });
            }
        }
        at = at.saturating_add(8);
    }
    plan.replace(offset, &old, &new)
}

/// Rewrites entries of one L2 table, if it lies where one can; entries of zero are not asked about.
fn edit_l2(
    survey: &Survey<'_>,
    table: &L2Table,
    plan: &mut Plan,
    mut edit: impl FnMut(u64, u64) -> (Action, (u64, u64)),
) -> Result<()> {
    let geometry = survey.geometry;
    let whole = geometry.is_aligned(table.offset)
        && table.offset != 0
        && !survey.census.is_past_end(table.offset, geometry.cluster_size());
    if !whole {
        return Ok(());
    }
    let mut old = vec![0; usize::try_from(geometry.cluster_size()).unwrap_or_default()];
    read_padded(&*plan.result(), &mut old, table.offset)?;
    let mut new = old.clone();
    for index in 0..geometry.l2_entries() {
        let (word, bitmap) = raw_l2_entry(&old, index, geometry);
        if word == 0 && bitmap == 0 {
            continue;
        }
        let (action, entry) = edit(word, bitmap);
        if entry != (word, bitmap) {
            set_raw_l2_entry(&mut new, index, entry, geometry)?;
            let within = index.saturating_mul(geometry.l2_entry_size());
            plan.step(Step {
                action,
                structure: Structure::L2Table,
                index,
                host_offset: table.offset.saturating_add(within),
                from: word,
                to: entry.0,
            });
        }
    }
    plan.replace(table.offset, &old, &new)
}
