//! Repairs of refcounts: in their blocks where these are sound, else anew at the end of the file.

use std::ops::Range;
use std::sync::Arc;

use super::Look;
use super::plan::{Action, Plan, Step};
use crate::check::counters::Counters;
use crate::check::{Checker, Structure};
use crate::exact::{Exact, to_usize};
use crate::format::{
    ClusterIndex, Geometry, HeaderPatch, HostOffset, MAX_REFCOUNT_TABLE_BYTES, RefcountWidth,
    encode_table, field,
};
use crate::image::RefcountBlock;
use crate::image::update::Pieces;
use crate::{Error, Remedy, Result};

/// What refcounts will be when the repair is done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// The references.
    Exact,
    /// The references, where refcounts are not too low; those that are stay what they are.
    Lowered,
}

impl Target {
    /// The refcount of a cluster as it will be; 0 where that is not known to be the truth.
    pub(super) fn refcount(self, checker: &Checker<'_>, cluster: u64) -> u64 {
        let references = checker.references.references(cluster);
        match self {
            Self::Exact => references,
            Self::Lowered if checker.stored.is_one(cluster) == Some(true) => {
                if references <= 1 {
                    references
                } else {
                    0
                }
            }
            Self::Lowered => match checker.stored.refcount_of(cluster) {
                Some(stored) if stored >= references => references,
                _ => 0,
            },
        }
    }
}

/// Whether the refcount structures are sound, and have room for every refcount that is needed.
pub(super) fn can_stay(look: &Look<'_>) -> Result<bool> {
    let checker = look.checker;
    let sorts = checker.report.sorts();
    let broken = sorts.iter().any(|(structure, _)| *structure == Structure::RefcountTable);
    if broken || checker.stored.table().is_empty() || table_is_shared(checker)? {
        return Ok(false);
    }
    let clusters = checker.references.clusters();
    let missing = |index: &u64| checker.stored.block(*index) == RefcountBlock::Missing;
    for index in (0..checker.stored.blocks_for(clusters)).filter(missing) {
        if needs_block(checker, index, clusters)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether anything else refers to the refcount table: then it must not be written to.
fn table_is_shared(checker: &Checker<'_>) -> Result<bool> {
    let offset = checker.image.header().refcount_table_offset.0;
    let len = (checker.stored.table().len() as u64).times(8)?;
    let mut clusters = checker.references.touched(offset, len);
    Ok(clusters.any(|cluster| checker.references.references(cluster) != 1))
}

/// Whether any of the clusters below `end` that block `index` counts is referred to.
fn needs_block(checker: &Checker<'_>, index: u64, end: u64) -> Result<bool> {
    let mut cluster = index.times(checker.stored.per_block())?;
    let end = cluster.plus(checker.stored.per_block())?.min(end);
    loop {
        cluster = checker.references.next_referenced(cluster);
        if cluster >= end || checker.references.references(cluster) > 0 {
            return Ok(cluster < end);
        }
        cluster = cluster.plus(1)?;
    }
}

/// Whether clusters past the last one in use, and past the end of the file, have refcounts. A crash leaves them that cuts
/// off what was allocated; they become leaks when the file grows. For an image that is sound otherwise.
pub(super) fn counts_past_end(look: &Look<'_>) -> Result<bool> {
    let checker = look.checker;
    let (clusters, width) = (checker.references.clusters(), checker.stored.width());
    for index in checker.stored.locate(clusters).0..checker.stored.table().len() as u64 {
        checker.cancel.check()?;
        let RefcountBlock::At(offset) = checker.stored.block(index) else { continue };
        let first = index.times(checker.stored.per_block())?;
        let from = clusters.max(first).minus(first)?;
        if width.find(&checker.stored.read_block(offset)?, from, false).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Raises what is too low to the number of references.
pub(super) fn raise(look: &Look<'_>, plan: &mut Plan) -> Result<()> {
    adjust(look, plan, Action::RaiseRefcount, |stored, references| stored < references)
}

/// Lowers what is too high to the number of references.
pub(super) fn lower(look: &Look<'_>, plan: &mut Plan) -> Result<()> {
    adjust(look, plan, Action::LowerRefcount, |stored, references| stored > references)
}

fn adjust(
    look: &Look<'_>,
    plan: &mut Plan,
    action: Action,
    wrong: impl Fn(u64, u64) -> bool,
) -> Result<()> {
    let checker = look.checker;
    let width = checker.stored.width();
    plan.changes.barrier();
    // What lies past the last cluster in use may have refcounts too, which no check looks at.
    for index in 0..checker.stored.table().len() as u64 {
        checker.cancel.check()?;
        let RefcountBlock::At(offset) = checker.stored.block(index) else { continue };
        let first = index.times(checker.stored.per_block())?;
        let count = checker.stored.per_block();
        let old = checker.stored.read_block(offset)?;
        let mut new = old.clone();
        for at in 0..count {
            let cluster = first.plus(at)?;
            let from = checker.stored.refcount(&old, at)?;
            let to = checker.references.references(cluster);
            if wrong(from, to) {
                width.set(&mut new, at, to)?;
                let host_offset = ClusterIndex(cluster).offset(checker.geometry)?.0;
                let structure = Structure::Cluster;
                plan.step(Step { action, structure, index: cluster, host_offset, from, to });
            }
        }
        plan.changes.replace(offset, &old, &new)?;
    }
    plan.changes.barrier();
    Ok(())
}

/// Writes refcount blocks and table anew behind everything that is in use or in the file, then
/// makes the header name them. The old ones are free from then on. The blocks are made when they
/// are written or looked at, because all of them together may be large.
pub(super) fn rebuild(fresh: &Checker<'_>, plan: &mut Plan) -> Result<()> {
    let geometry = fresh.geometry;
    let in_use = ClusterIndex(fresh.references.clusters());
    let start = in_use.max(ClusterIndex::after(plan.result().len(), geometry));
    let layout = Layout::new(fresh, start)?;
    plan.changes.barrier();
    let mut table = vec![0; layout.table_entries(geometry)?];
    for (number, &index) in (0u64..).zip(&layout.blocks) {
        let entry = table.get_mut(to_usize(index)).ok_or_else(|| {
            Error::internal("a new refcount table has no entry for one of its blocks")
        })?;
        *entry = start.plus(number)?.offset(geometry)?.0;
    }
    plan.changes.write_pieces(Arc::new(NewBlocks {
        counters: fresh.references.counters(),
        own: start.0..layout.end()?.0,
        start: start.offset(geometry)?.0,
        indexes: layout.blocks.clone(),
        width: fresh.stored.width(),
        geometry,
    }))?;
    let table_offset = layout.table_start()?.offset(geometry)?.0;
    plan.changes.write(table_offset, encode_table(&table))?;
    let old = fresh.image.header();
    let mut step = Step {
        action: Action::WriteRefcounts,
        structure: Structure::RefcountTable,
        index: 0,
        host_offset: table_offset,
        from: 0,
        to: layout.blocks.len() as u64,
    };
    plan.step(step.clone());
    plan.changes.barrier();
    step = Step {
        action: Action::SwitchRefcounts,
        structure: Structure::Header,
        host_offset: field::REFCOUNT_TABLE,
        from: old.refcount_table_offset.0,
        to: table_offset,
        ..step
    };
    plan.step(step);
    plan.changes
        .patch(HeaderPatch::refcount_table(HostOffset(table_offset), layout.table_clusters))?;
    plan.changes.barrier();
    Ok(())
}

/// Refcount blocks that lie one behind the other, made from counts when they are asked for.
#[derive(Debug)]
pub(super) struct NewBlocks {
    counters: Arc<Counters>,
    /// The clusters of the new blocks and of their table. The blocks come first.
    own: Range<u64>,
    /// Offset of the first of them.
    start: u64,
    /// Which block each is.
    indexes: Vec<u64>,
    width: RefcountWidth,
    geometry: Geometry,
}

impl Pieces for NewBlocks {
    fn start(&self) -> u64 {
        self.start
    }

    fn piece_len(&self) -> u64 {
        self.geometry.cluster_size()
    }

    fn count(&self) -> u64 {
        self.indexes.len() as u64
    }

    fn piece(&self, number: u64) -> Result<Vec<u8>> {
        let mut block = vec![0; to_usize(self.geometry.cluster_size())];
        let index = self.indexes.get(to_usize(number)).copied();
        let index = index.ok_or_else(|| Error::internal("there is no such refcount block"))?;
        let per_block = self.width.entries_per_block(self.geometry);
        let first = index.times(per_block)?;
        for at in 0..per_block {
            let cluster = first.plus(at)?;
            let count = if self.own.contains(&cluster) { 1 } else { self.counters.get(cluster) };
            if count > 0 {
                self.width.set(&mut block, at, count)?;
            }
        }
        Ok(block)
    }
}

/// Where new refcount structures go: blocks from cluster `start` on, then the table.
struct Layout {
    start: ClusterIndex,
    /// Which blocks there are, in order.
    blocks: Vec<u64>,
    table_clusters: u32,
}

impl Layout {
    /// Grows until the structures have room for their own refcounts (trap 70).
    fn new(fresh: &Checker<'_>, start: ClusterIndex) -> Result<Self> {
        let (stored, geometry) = (&fresh.stored, fresh.geometry);
        let mut used = Vec::new();
        for index in 0..stored.blocks_for(start.0) {
            if needs_block(fresh, index, u64::MAX)? {
                used.push(index);
            }
        }
        let mut layout = Self { start, blocks: used.clone(), table_clusters: 1 };
        loop {
            let (own_first, _) = stored.locate(start.0);
            let own = own_first..stored.blocks_for(layout.end()?.0);
            let mut blocks = used.clone();
            blocks.retain(|index| !own.contains(index));
            blocks.extend(own.clone());
            let table_bytes = own.end.times(8)?;
            if table_bytes > MAX_REFCOUNT_TABLE_BYTES {
                return Err(Error::limit("the refcount table would be longer than 8 MiB")
                    .hint(Remedy::Flatten));
            }
            let table_clusters = u32::try_from(geometry.clusters_for(table_bytes))
                .map_err(|_| Error::internal("a refcount table of too many clusters"))?;
            let done =
                blocks.len() == layout.blocks.len() && table_clusters == layout.table_clusters;
            (layout.blocks, layout.table_clusters) = (blocks, table_clusters);
            if done {
                return Ok(layout);
            }
        }
    }

    fn table_start(&self) -> Result<ClusterIndex> {
        self.start.plus(self.blocks.len() as u64)
    }

    fn end(&self) -> Result<ClusterIndex> {
        self.table_start()?.plus(self.table_clusters.into())
    }

    fn table_entries(&self, geometry: Geometry) -> Result<usize> {
        let bytes = u64::from(self.table_clusters).times(geometry.cluster_size())?;
        Ok(to_usize(bytes >> 3))
    }
}
