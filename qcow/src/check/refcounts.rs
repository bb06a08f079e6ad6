//! Counts the refcount structures themselves, then holds every refcount against the references.

use rayon::prelude::*;

use super::Checker;
use super::references::whole;
use super::report::{FindingKind, Numbers, Severity, Spot, Structure};
use crate::Result;
use crate::format::RefcountTableEntry;
use crate::image::RefcountBlock;

impl Checker<'_> {
    /// Counts the refcount table.
    pub(super) fn refcount_table(&self) -> Result<()> {
        let offset = self.image.header().refcount_table_offset.0;
        let len = (self.stored.table().len() as u64).saturating_mul(8);
        let spot = whole(Structure::RefcountTable, offset);
        self.references.count(offset, len, 1, spot)?;
        self.references.claim(offset, len, spot);
        Ok(())
    }

    /// Takes note of where the refcount blocks lie.
    pub(super) fn claim_refcount_blocks(&self) {
        for (index, at) in self.refcount_blocks() {
            if let RefcountBlock::At(offset) = self.stored.block(index) {
                let spot = Spot::entry(Structure::RefcountTable, index, at);
                self.references.claim(offset, self.geometry.cluster_size(), spot);
            }
        }
    }

    /// Counts the refcount blocks. They come last: who shares a cluster with a block is known then.
    pub(super) fn count_refcount_blocks(&self) -> Result<()> {
        for (index, at) in self.refcount_blocks() {
            let spot = Spot::entry(Structure::RefcountTable, index, at);
            let raw = usize::try_from(index).ok().and_then(|index| self.stored.table().get(index));
            let entry = RefcountTableEntry(raw.copied().unwrap_or_default());
            if entry.reserved() != 0 {
                self.report.corruption(FindingKind::ReservedBits, 1, spot, || {
                    format!("entry {:#018x} has reserved bits set", entry.0)
                });
                continue;
            }
            match self.stored.block(index) {
                RefcountBlock::Missing => {}
                RefcountBlock::Misaligned => {
                    self.report.corruption(FindingKind::Misaligned, 1, spot, || {
                        format!(
                            "the block is at {:#x}, expected a multiple of {}",
                            entry.0,
                            self.geometry.cluster_size()
                        )
                    });
                }
                RefcountBlock::TooFar => self.block_past_end(entry.0, spot),
                RefcountBlock::At(offset) => self.count_refcount_block(offset, spot)?,
            }
        }
        Ok(())
    }

    fn count_refcount_block(&self, offset: u64, spot: Spot) -> Result<()> {
        let cluster = offset >> self.geometry.cluster_bits();
        if cluster >= self.references.clusters() {
            self.block_past_end(offset, spot);
            return Ok(());
        }
        self.references.count(offset, self.geometry.cluster_size(), 1, spot)?;
        let references = self.references.references(cluster).min(self.stored.width().max());
        if references != 1 {
            let spot = spot.with(Numbers::Entry { entry: offset, refcount: references });
            self.report.corruption(FindingKind::SharedRefcountBlock, 1, spot, || {
                format!("the block at {offset:#x} has {references} references, expected 1")
            });
        }
        Ok(())
    }

    fn block_past_end(&self, offset: u64, spot: Spot) {
        self.report.corruption(FindingKind::PastEnd, 1, spot, || {
            format!("the block at {offset:#x} is past the end of the file")
        });
    }

    /// Index and place of each entry of the refcount table that is not zero.
    fn refcount_blocks(&self) -> impl Iterator<Item = (u64, u64)> {
        let start = self.image.header().refcount_table_offset.0;
        let entries = (0u64..).zip(self.stored.table());
        entries
            .filter(|(_, entry)| **entry != 0)
            .map(move |(index, _)| (index, start.saturating_add(index.saturating_mul(8))))
    }

    /// Compares refcounts with references, and gives the highest cluster that has either.
    pub(super) fn compare(&self) -> Result<u64> {
        let clusters = self.references.clusters();
        let highest = (0..self.stored.blocks_for(clusters))
            .into_par_iter()
            .map(|index| {
                self.cancel.check()?;
                self.compare_block(index, clusters)
            })
            .try_reduce(|| 0, |a, b| Ok(a.max(b)))?;
        Ok(highest)
    }

    fn compare_block(&self, index: u64, clusters: u64) -> Result<u64> {
        let first = index.saturating_mul(self.stored.per_block());
        let end = first.saturating_add(self.stored.per_block()).min(clusters);
        let mut highest = 0;
        match self.stored.block(index) {
            RefcountBlock::At(offset) => return self.compare_groups(offset, first, end),
            RefcountBlock::Missing => {
                let mut cluster = self.references.next_referenced(first);
                while cluster < end {
                    if self.compare_cluster(cluster, 0) {
                        highest = cluster;
                    }
                    cluster = self.references.next_referenced(cluster.saturating_add(1));
                }
            }
            RefcountBlock::Misaligned | RefcountBlock::TooFar => {
                let at = self.image.header().refcount_table_offset.0;
                let at = at.saturating_add(index.saturating_mul(8));
                let spot = Spot::entry(Structure::RefcountTable, index, at);
                let unreadable = (Severity::CheckError, FindingKind::Unreadable);
                self.report.add(unreadable, end.saturating_sub(first), spot, || {
                    format!("the refcounts of clusters {first} to {end} cannot be read")
                });
                for cluster in first..end {
                    self.bounded_references(cluster);
                }
            }
        }
        Ok(highest)
    }

    /// Compares clusters `first..end`, whose refcounts are in the block at `offset`. Most groups of
    /// clusters are used once each and known to be; the block is only read for the others.
    fn compare_groups(&self, offset: u64, first: u64, end: u64) -> Result<u64> {
        let mut block = Vec::new();
        let mut highest = 0;
        let mut group = first;
        while group < end {
            let next = group.saturating_add(64);
            if next <= end && self.stored.are_one(group) && self.references.are_one(group) {
                highest = next.saturating_sub(1);
            } else {
                if block.is_empty() {
                    block = self.stored.read_block(offset)?;
                }
                for cluster in group..next.min(end) {
                    let refcount = self.stored.refcount(&block, cluster.saturating_sub(first))?;
                    if self.compare_cluster(cluster, refcount) {
                        highest = cluster;
                    }
                }
            }
            group = next;
        }
        Ok(highest)
    }

    /// Says what is wrong with one refcount; whether the cluster is in use at all.
    #[inline]
    fn compare_cluster(&self, cluster: u64, refcount: u64) -> bool {
        let references = self.bounded_references(cluster);
        if refcount != references {
            let (severity, kind) = if refcount > references {
                (Severity::Leak, FindingKind::Leaked)
            } else {
                (Severity::Corruption, FindingKind::RefcountTooLow)
            };
            let spot = self.cluster(cluster).with(Numbers::Refcount { refcount, references });
            self.report.add((severity, kind), 1, spot, || {
                format!("the refcount is {refcount}, but there are {references} references")
            });
        }
        refcount > 0 || references > 0
    }

    /// The references to a cluster as far as refcounts can express them; each one more is wrong.
    fn bounded_references(&self, cluster: u64) -> u64 {
        let references = self.references.references(cluster);
        let most = self.stored.width().max();
        let excess = references.saturating_sub(most);
        self.report.corruption(
            FindingKind::RefcountOverflow,
            excess,
            self.cluster(cluster),
            || format!("{references} references, but refcounts reach only to {most}"),
        );
        references.min(most)
    }

    fn cluster(&self, cluster: u64) -> Spot {
        Spot::entry(Structure::Cluster, cluster, self.references.offset_of(cluster))
    }
}
