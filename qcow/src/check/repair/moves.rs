//! Repairs by moving: what must change its place or its length goes behind the end of the file,
//! is counted there, and only then named.

use std::collections::BTreeMap;
use std::ops::Range;

use super::plan::{Action, Plan, Step};
use super::{Look, Scope, entries, refcounts};
use crate::check::{Checker, FindingKind, Structure};
use crate::exact::{Exact, to_usize};
use crate::format::{ClusterIndex, HeaderPatch, HostOffset, RawL2Entry, Snapshot, Version, field};
use crate::image::RefcountBlock;
use crate::io::read_padded;
use crate::{Error, Remedy, Result};

/// Most data that is moved, in bytes: it is held in memory.
const MOST_MOVED: u64 = 64 << 20;

/// Gives guest data that is in a metadata cluster a cluster of its own. All states of the disk
/// read as before, and the metadata stays where it is, so it does not matter which of the two was
/// there first. Metadata that lies in other metadata is left alone.
pub(super) fn part_data_from_metadata(
    look: &Look<'_>,
    scope: Scope,
    plan: &mut Plan,
) -> Result<()> {
    let checker = look.checker;
    let (structure, kind) = (Structure::L2Table, FindingKind::Overlap);
    if scope != Scope::All || !checker.report.sorts().contains(&(structure, kind)) {
        return Ok(());
    }
    // New refcounts part refcount structures from what shares their clusters.
    if !refcounts::can_stay(look)? {
        return Ok(());
    }
    let mut references: BTreeMap<u64, u64> = BTreeMap::new();
    for table in &look.found.tables {
        let times = table.active.plus(table.others)?;
        entries::read_l2(checker, table, |entry| {
            if let Some(offset) = shared(checker, entry) {
                let count = references.entry(offset).or_default();
                *count = count.plus(times)?;
            }
            Ok(())
        })?;
    }
    let cluster_size = checker.geometry.cluster_size();
    if (references.len() as u64).times(cluster_size)? > MOST_MOVED {
        return Err(Error::unsupported("too much data is in metadata clusters")
            .structure(structure.as_str())
            .hint(Remedy::Salvage));
    }
    let mut new_offsets = BTreeMap::new();
    let mut copies = Vec::new();
    for (&offset, &count) in &references {
        let mut bytes = vec![0; to_usize(cluster_size)];
        read_padded(&**checker.image.storage(), &mut bytes, offset)?;
        copies.push((offset, count, bytes));
    }
    for (offset, count, bytes) in copies {
        new_offsets.insert(offset, append(checker, plan, bytes, count)?);
    }
    plan.changes.barrier();
    for table in &look.found.tables {
        entries::edit_l2(checker, table, plan, |entry| {
            let to = shared(checker, entry).and_then(|offset| new_offsets.get(&offset));
            let to = to.map_or(entry, |to| {
                let alone = references.get(&entry.offset().0) == Some(&1);
                entry.with_offset(HostOffset(*to)).with_copied(alone)
            });
            (Action::MoveData, to)
        })?;
    }
    plan.changes.barrier();
    Ok(())
}

/// Where an entry's cluster lies, if that is one of metadata and can be moved.
fn shared(checker: &Checker<'_>, entry: RawL2Entry) -> Option<u64> {
    let offset = entry.offset().0;
    let plain = !entry.is_compressed()
        && offset != 0
        && !checker.rules.data_file
        && checker.geometry.is_aligned(offset)
        && entry.reserved(&checker.rules) == 0;
    let shared = plain && checker.references.hits_metadata(offset, checker.geometry.cluster_size());
    shared.then_some(offset)
}

/// Gives the entries of the snapshot table what version 3 asks for: the size of the disk, which is
/// the image's where an entry does not say (trap 81). Images that were upgraded from version 2 are
/// like this.
pub(super) fn complete_snapshots(look: &Look<'_>, scope: Scope, plan: &mut Plan) -> Result<()> {
    let checker = look.checker;
    let header = checker.image.header();
    let snapshots = checker.image.snapshots();
    let lacking = |snapshot: &Snapshot| snapshot.is_incomplete(header.version);
    if scope != Scope::All || header.version == Version::V2 || !snapshots.iter().any(lacking) {
        return Ok(());
    }
    if !snapshots.iter().all(|snapshot| is_plausible(checker, snapshot)) {
        return Err(Error::unsupported("the snapshot table is damaged; nothing was written")
            .structure(Structure::SnapshotTable.as_str())
            .hint(Remedy::Salvage));
    }
    let complete = |snapshot: &Snapshot| {
        let mut snapshot = snapshot.clone();
        snapshot.disk_size.get_or_insert(header.virtual_size());
        snapshot
    };
    let completed: Vec<_> = snapshots.iter().map(complete).collect();
    replace_table(checker, &completed, plan)
}

/// Writes a table of these snapshots behind everything, and then has the header name it.
pub(super) fn replace_table(
    checker: &Checker<'_>,
    snapshots: &[Snapshot],
    plan: &mut Plan,
) -> Result<()> {
    let header = checker.image.header();
    let mut table = Vec::new();
    for snapshot in snapshots {
        table.extend(snapshot.to_bytes()?);
    }
    let offset = append(checker, plan, table, 1)?;
    let mut step = Step {
        action: Action::WriteSnapshots,
        structure: Structure::SnapshotTable,
        index: 0,
        host_offset: offset,
        from: 0,
        to: snapshots.len() as u64,
    };
    plan.step(step.clone());
    plan.changes.barrier();
    step = Step {
        action: Action::SwitchSnapshots,
        structure: Structure::Header,
        host_offset: field::SNAPSHOTS,
        from: header.snapshots_offset.0,
        to: offset,
        ..step
    };
    plan.step(step);
    plan.changes.patch(HeaderPatch::snapshot_table(HostOffset(offset)))?;
    plan.changes.barrier();
    Ok(())
}

/// Whether an entry looks like one that a program wrote: it can be told from others, and leads to
/// an L1 table in the file.
pub(super) fn is_plausible(checker: &Checker<'_>, snapshot: &Snapshot) -> bool {
    let len = u64::from(snapshot.l1_entries) << 3;
    !snapshot.id.is_empty()
        && snapshot.l1_entries > 0
        && snapshot.check_l1(checker.geometry).is_ok()
        && !checker.references.is_past_end(snapshot.l1_table_offset.0, len)
}

/// Writes `bytes` in whole clusters behind everything, where nothing refers to yet, and gives these
/// clusters that many references. Returns where they are. Refused while anything leads past the end of the
/// file: it would find there what is written now.
fn append(
    checker: &Checker<'_>,
    plan: &mut Plan,
    mut bytes: Vec<u8>,
    references: u64,
) -> Result<u64> {
    let mut sorts = checker.report.sorts().into_iter();
    if let Some((structure, _)) = sorts.find(|(_, kind)| *kind == FindingKind::PastEnd) {
        return Err(Error::unsupported(
            "an entry points past the end of the file, where data has to be moved; \
             nothing was written",
        )
        .structure(structure.as_str())
        .hint(Remedy::Salvage));
    }
    let geometry = checker.geometry;
    let in_file = ClusterIndex::after(plan.result().len(), geometry);
    let first = in_file.max(ClusterIndex(checker.references.clusters()));
    let clusters = geometry.clusters_for(bytes.len() as u64);
    bytes.resize(to_usize(clusters.times(geometry.cluster_size())?), 0);
    let offset = first.offset(geometry)?.0;
    plan.changes.write(offset, bytes)?;
    count(checker, plan, first.0..first.plus(clusters)?.0, references)?;
    Ok(offset)
}

fn count(
    checker: &Checker<'_>,
    plan: &mut Plan,
    clusters: Range<u64>,
    references: u64,
) -> Result<()> {
    let (stored, width) = (&checker.stored, checker.stored.width());
    for cluster in clusters {
        let (block, index) = stored.locate(cluster);
        let room = matches!(stored.block(block), RefcountBlock::At(_)) && references <= width.max();
        let (true, RefcountBlock::At(offset)) = (room, stored.block(block)) else {
            return Err(Error::unsupported(
                "the refcounts have no room for what would be moved; nothing was written",
            )
            .structure(Structure::RefcountTable.as_str())
            .hint(Remedy::Salvage));
        };
        // The image that the checker reads is the plan's result, so this sees earlier changes.
        let old = stored.read_block(offset)?;
        let mut new = old.clone();
        width.set(&mut new, index, references)?;
        plan.changes.replace(offset, &old, &new)?;
    }
    Ok(())
}
