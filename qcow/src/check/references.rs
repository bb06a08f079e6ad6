//! Counts the references to each host cluster, by QEMU's rules, and records which clusters are metadata.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::counters::{ClusterSet, Counters};
use super::report::{FindingKind, Numbers, Report, Spot, Structure};
use crate::format::{Geometry, whole_sectors};
use crate::{Error, Result};

/// QEMU checks no file of more clusters.
const MAX_CLUSTERS: u64 = i32::MAX.unsigned_abs() as u64;

/// References to the clusters of one file.
#[derive(Debug)]
pub(super) struct ReferenceCounts<'a> {
    geometry: Geometry,
    /// Length of the file, rounded up to sectors as QEMU sees it.
    file_len: u64,
    /// Clusters that are looked at: those of the file, and one more if something refers to it.
    clusters: AtomicU64,
    references: Arc<Counters>,
    metadata: ClusterSet,
    report: &'a Report,
}

impl<'a> ReferenceCounts<'a> {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) for files of 2^31 clusters and more.
    pub(super) fn new(geometry: Geometry, file_len: u64, report: &'a Report) -> Result<Self> {
        let file_len = whole_sectors(file_len);
        let clusters = geometry.clusters_for(file_len);
        if clusters > MAX_CLUSTERS {
            return Err(Error::limit(format!(
                "the file has {clusters} clusters, expected at most {MAX_CLUSTERS}"
            )));
        }
        // A reference may reach less than a cluster past the end.
        let most = clusters.saturating_add(1);
        Ok(Self {
            geometry,
            file_len,
            clusters: AtomicU64::new(clusters),
            references: Arc::new(Counters::new(most)),
            metadata: ClusterSet::new(most),
            report,
        })
    }

    /// Counts `times` references to `len` bytes at `offset`, made by the entry at `spot`. What
    /// reaches a cluster or more past the end of the file is corruption and not counted (trap 76).
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for offsets that no file has: QEMU gives up too.
    pub(super) fn count(&self, offset: u64, len: u64, times: u64, spot: Spot) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if offset > i64::MAX.unsigned_abs() {
            return Err(Error::corrupt(format!("offset {offset:#x} is beyond 2^63 bytes"))
                .structure(spot.structure.as_str()));
        }
        if self.is_past_end(offset, len) {
            let spot = spot.with(Numbers::Range { offset, len });
            self.report.corruption(FindingKind::PastEnd, times, spot, || {
                format!(
                    "refers to {len} bytes at {offset:#x}, but the file ends at {:#x}",
                    self.file_len
                )
            });
        } else {
            self.count_clusters(self.touched(offset, len), times);
        }
        Ok(())
    }

    /// Counts references to clusters that [`touched`](Self::touched) gave, none past the end.
    pub(super) fn count_clusters(&self, clusters: Range<u64>, times: u64) {
        if clusters.end > self.whole_clusters() {
            self.clusters.fetch_max(clusters.end, Relaxed);
        }
        self.references.add_range(clusters, times);
    }

    /// Takes note that a structure lies in these bytes; says in a finding if another does already.
    pub(super) fn claim(&self, offset: u64, len: u64, spot: Spot) {
        if self.is_past_end(offset, len) {
            return;
        }
        let taken = self.touched(offset, len).fold(None, |taken, cluster| {
            let again = self.metadata.insert(cluster);
            taken.or(again.then_some(cluster))
        });
        if let Some(cluster) = taken {
            self.report.note(FindingKind::Overlap, spot, || {
                format!(
                    "the {} shares the cluster at {:#x} with another structure",
                    spot.structure.as_str(),
                    self.offset_of(cluster)
                )
            });
        }
    }

    /// Whether a structure lies in this cluster.
    #[inline]
    pub(super) fn is_metadata(&self, cluster: u64) -> bool {
        self.metadata.contains(cluster)
    }

    /// Whether guest data, stored at `offset`, shares a cluster with metadata.
    pub(super) fn hits_metadata(&self, offset: u64, len: u64) -> bool {
        !self.is_past_end(offset, len)
            && self.touched(offset, len).any(|cluster| self.is_metadata(cluster))
    }

    /// Whether no structure lies in any of these clusters.
    pub(super) fn is_free_of_metadata(&self, clusters: Range<u64>) -> bool {
        self.metadata.uniform(clusters) == Some(false)
    }

    /// Whether the sixty-four clusters from `cluster`, a multiple of 64, on have one reference each.
    pub(super) fn are_one(&self, cluster: u64) -> bool {
        self.references.are_one(cluster)
    }

    /// Clusters of the file, and the one behind it if something refers to it.
    pub(super) fn clusters(&self) -> u64 {
        self.clusters.load(Relaxed)
    }

    /// Whole clusters of the file.
    pub(super) fn whole_clusters(&self) -> u64 {
        self.file_len >> self.geometry.cluster_bits()
    }

    /// References to a cluster.
    pub(super) fn references(&self, cluster: u64) -> u64 {
        self.references.get(cluster)
    }

    /// All counts, which outlive this value.
    pub(super) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.references)
    }

    /// The first cluster at or after `from` that may have references.
    pub(super) fn next_referenced(&self, from: u64) -> u64 {
        self.references.next_counted(from)
    }

    /// Where a cluster lies.
    pub(super) fn offset_of(&self, cluster: u64) -> u64 {
        cluster.saturating_mul(self.geometry.cluster_size())
    }

    /// Whether a reference reaches a cluster or more past the end of the file.
    pub(super) fn is_past_end(&self, offset: u64, len: u64) -> bool {
        let beyond = offset.saturating_add(len).saturating_sub(self.file_len);
        len > 0 && beyond >= self.geometry.cluster_size()
    }

    /// The clusters that these bytes touch.
    pub(super) fn touched(&self, offset: u64, len: u64) -> Range<u64> {
        if len == 0 {
            return 0..0;
        }
        let last = offset.saturating_add(len.saturating_sub(1)) >> self.geometry.cluster_bits();
        offset >> self.geometry.cluster_bits()..last.saturating_add(1)
    }
}

/// The spot of a structure that the header names.
pub(super) fn whole(structure: Structure, offset: u64) -> Spot {
    Spot { host_offset: Some(offset), ..Spot::new(structure) }
}
