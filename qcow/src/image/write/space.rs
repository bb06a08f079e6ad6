//! Which host clusters are free: allocation, and the way of a freed cluster back to use.
//!
//! A reference that is dropped lowers its cluster's refcount only when no entry on disk and no request in
//! flight can lead there any more (quarantine): otherwise a crash, or a read that is under way, would find
//! another's bytes.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use super::counts::{Counts, Got, Need, free_already};
use super::gate::Gate;
use crate::exact::Exact;
use crate::format::{Geometry, HOST_OFFSET_LIMIT, HostOffset};
use crate::{Error, Result};

#[derive(Debug)]
pub(in crate::image) struct Space {
    pub(in crate::image) counts: Counts,
    geometry: Geometry,
    /// No cluster below is free.
    low_water_mark: u64,
    /// No row of this many free clusters begins below this cluster: where a search for one goes on.
    no_row: (u64, u64),
    /// Clusters of metadata that was there when the image was opened: whatever their refcounts say, they
    /// are not free.
    metadata: HashSet<u64>,
    /// A file that cannot grow has this many clusters.
    fixed_end: Option<u64>,
    /// The refcount table is to be this many clusters long, before anything else is allocated.
    wanted_table: Option<u64>,
    /// Clusters that the refcount table has left, for the group that moves it.
    left_table: Vec<u64>,
    quarantine: VecDeque<Batch>,
    /// From here on no cluster was ever written to: there the file ends, and reads as zeros.
    never_used: u64,
    /// Where the next compressed cluster can go, in a cluster that has others.
    packing: Option<u64>,
}

/// Dropped references, one for each time that a cluster is listed, which nothing on disk has any more.
#[derive(Debug)]
pub(in crate::image) struct Batch {
    pub(in crate::image) clusters: Vec<u64>,
    /// Requests of this epoch may still use them; not known yet.
    epoch: Option<u64>,
}

impl Space {
    /// The space of a file that has `clusters`, the last one perhaps in part, and cannot grow beyond `fixed_end`.
    pub(in crate::image) fn new(
        counts: Counts,
        geometry: Geometry,
        clusters: u64,
        fixed_end: Option<u64>,
    ) -> Self {
        Self {
            counts,
            geometry,
            low_water_mark: 1,
            no_row: (0, 1),
            metadata: HashSet::new(),
            fixed_end,
            wanted_table: None,
            left_table: Vec::new(),
            quarantine: VecDeque::new(),
            never_used: clusters,
            packing: None,
        }
    }

    /// Says that these clusters have metadata.
    pub(in crate::image) fn add_metadata(&mut self, clusters: impl IntoIterator<Item = u64>) {
        self.metadata.extend(clusters);
    }

    /// As [`allocate`](Self::allocate); says too whether the clusters were never written to, so that they
    /// read as zeros.
    pub(in crate::image) fn allocate_zeros(&mut self, most: u64) -> Got<(Range<u64>, bool)> {
        let never_used = self.never_used;
        let clusters = self.allocate(most)?;
        let zeros = clusters.start >= never_used;
        Ok((clusters, zeros))
    }

    /// Allocates at least one and at most `most` clusters in a row, each with a refcount of one.
    ///
    /// # Errors
    /// [`NoSpace`](crate::ErrorKind::NoSpace) if the file cannot grow,
    /// [`Limit`](crate::ErrorKind::Limit) if the format cannot say more,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if metadata is said to be free.
    pub(in crate::image) fn allocate(&mut self, most: u64) -> Got<Range<u64>> {
        loop {
            self.make_wanted_table()?;
            let first = self.first_free(self.low_water_mark)?;
            if !self.make_covered(first)? {
                continue;
            }
            let until = first.plus(most.max(1))?;
            let until = self.counts.first_uncovered(first..until)?.unwrap_or(until);
            let end = self.counts.end_of_free(first, until)?;
            self.take(first..end)?;
            self.low_water_mark = end;
            self.never_used = self.never_used.max(end);
            return Ok(first..end);
        }
    }

    /// Finds room for `len` compressed bytes, at most one cluster, and counts the reference.
    pub(in crate::image) fn allocate_bytes(&mut self, len: u64) -> Got<HostOffset> {
        let cluster_size = self.geometry.cluster_size();
        if let Some(at) = self.packing {
            let cluster = at >> self.geometry.cluster_bits();
            let room = cluster_size.minus(self.geometry.offset_in_cluster(at))?;
            let count = self.counts.get(cluster)?;
            if len <= room && count > 0 && count < self.counts.width().max() {
                self.counts.set(cluster, count.plus(1)?)?;
                self.packing = (len < room).then_some(at.plus(len)?);
                return Ok(HostOffset(at));
            }
        }
        let host = self.allocate(1)?.start.times(cluster_size)?;
        self.packing = (len < cluster_size).then_some(host.plus(len)?);
        Ok(HostOffset(host))
    }

    /// Takes back what was allocated for a request that failed: nothing can have seen it.
    pub(in crate::image) fn give_back(&mut self, cluster: u64) -> Got<()> {
        let count = self.counts.get(cluster)?;
        let count = count.checked_sub(1).ok_or_else(|| free_already(cluster))?;
        self.counts.set(cluster, count)?;
        if count == 0 {
            self.is_free_from_now_on(cluster);
            self.forget_packing(cluster);
        }
        Ok(())
    }

    /// As [`Counts::shift`]: gives the clusters that are left.
    #[cfg(feature = "ops")]
    pub(in crate::image) fn shift(
        &mut self,
        clusters: Range<u64>,
        times: u64,
        raise: bool,
    ) -> Got<Range<u64>> {
        let (rest, free) = self.counts.shift(clusters, times, raise)?;
        if let Some(free) = free {
            self.is_free_from_now_on(free);
        }
        Ok(rest)
    }

    fn is_free_from_now_on(&mut self, cluster: u64) {
        self.low_water_mark = self.low_water_mark.min(cluster);
        // A row that begins further down may have become long enough.
        self.no_row = (0, 1);
    }

    fn forget_packing(&mut self, cluster: u64) {
        let bits = self.geometry.cluster_bits();
        self.packing = self.packing.filter(|at| at >> bits != cluster);
    }

    fn is_free(&self, cluster: u64) -> Got<bool> {
        self.counts.is_free(cluster)
    }

    fn first_free(&mut self, from: u64) -> Got<u64> {
        let from = from.max(1);
        let found = self.counts.next_free(from);
        if let Err(Need::Block(index, _)) = &found {
            // Who asks again goes on from here.
            let reached = self.counts.first_of(*index)?;
            if from <= self.low_water_mark {
                self.low_water_mark = self.low_water_mark.max(reached);
            }
            if from <= self.no_row.1 {
                self.no_row.1 = self.no_row.1.max(reached);
            }
        }
        found
    }

    /// Sees to it that there is a refcount for the free cluster. False if the search must begin again.
    fn make_covered(&mut self, cluster: u64) -> Got<bool> {
        if self.counts.covers(cluster) {
            return Ok(true);
        }
        if self.counts.reaches(cluster) {
            self.check_place(cluster)?;
            self.counts.add_block(cluster)?;
            self.never_used = self.never_used.max(cluster.plus(1)?);
        } else {
            self.wanted_table = Some(self.counts.larger_table(cluster)?);
        }
        Ok(false)
    }

    /// Gives the refcount table its place, if it is to have another.
    pub(in crate::image) fn make_wanted_table(&mut self) -> Got<()> {
        while let Some(clusters) = self.wanted_table {
            self.counts.lengthen(clusters)?;
            // If that does not reach the place found either, a longer one is wanted now.
            let Some(range) = self.allocate_row(clusters, 0)? else { continue };
            self.left_table.extend(self.counts.table_clusters()?);
            self.counts.move_table(range)?;
            self.wanted_table = None;
        }
        Ok(())
    }

    /// Allocates exactly `len` clusters in a row, none below `from`.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    pub(in crate::image) fn allocate_exactly(&mut self, len: u64, from: u64) -> Got<Range<u64>> {
        loop {
            self.make_wanted_table()?;
            if let Some(clusters) = self.allocate_row(len, from)? {
                return Ok(clusters);
            }
        }
    }

    /// Has the refcount table written to another place, to which it moves with the next allocation.
    pub(in crate::image) fn move_table(&mut self) -> Result<()> {
        let clusters = self.counts.table_clusters()?;
        self.wanted_table = Some(clusters.end.minus(clusters.start)?);
        Ok(())
    }

    /// Allocates exactly `len` clusters in a row, none below `from`; `None` if the refcount table must grow first.
    fn allocate_row(&mut self, len: u64, from: u64) -> Got<Option<Range<u64>>> {
        if len < self.no_row.0 {
            self.no_row = (len, 1);
        }
        let known = self.no_row.1.max(self.low_water_mark);
        let goes_on = from <= known;
        if goes_on {
            self.no_row = (len, known);
        }
        let mut first = self.first_free(from.max(known))?;
        if from <= self.low_water_mark && known == self.low_water_mark {
            self.low_water_mark = first;
        }
        loop {
            if goes_on {
                self.no_row.1 = first;
            }
            let end = self.counts.end_of_free(first, first.plus(len)?)?;
            if end.minus(first)? < len {
                if goes_on {
                    self.no_row.1 = end;
                }
                first = self.first_free(end)?;
                continue;
            }
            let Some(uncovered) = self.counts.first_uncovered(first..end)? else {
                self.take(first..end)?;
                self.never_used = self.never_used.max(end);
                if self.low_water_mark == first {
                    self.low_water_mark = end;
                }
                return Ok(Some(first..end));
            };
            if !self.counts.reaches(uncovered) {
                self.wanted_table = Some(self.counts.larger_table(uncovered)?);
                return Ok(None);
            }
            // The missing block takes the row's first cluster. (In that of its own the row would have to begin
            // behind it, and would need another one at its end, and so on.)
            self.check_place(first)?;
            if self.counts.covers(first) {
                self.counts.add_block_at(uncovered, first)?;
            } else {
                self.counts.add_block(first)?;
            }
            if self.low_water_mark == first {
                self.low_water_mark = first.plus(1)?;
            }
            first = first.plus(1)?;
            self.never_used = self.never_used.max(first);
        }
    }

    /// Counts free clusters, whose blocks are loaded, as used.
    fn take(&mut self, clusters: Range<u64>) -> Got<()> {
        clusters.clone().try_for_each(|cluster| self.check_place(cluster))?;
        self.counts.set_ones(clusters)
    }

    /// Whether a free cluster can be used at all.
    fn check_place(&self, cluster: u64) -> Result<()> {
        let host = cluster.times(self.geometry.cluster_size())?;
        if self.metadata.contains(&cluster) {
            return Err(Error::corrupt("a cluster of metadata has a refcount of zero")
                .structure("refcount block")
                .host_offset(host)
                .hint(crate::Remedy::Repair));
        }
        if self.fixed_end.is_some_and(|end| cluster >= end) {
            let full = std::io::ErrorKind::StorageFull.into();
            return Err(Error::io("the image cannot grow any further", full));
        }
        if host.plus(self.geometry.cluster_size())? > HOST_OFFSET_LIMIT {
            return Err(Error::limit("the image file would pass what the format can address"));
        }
        Ok(())
    }

    /// Clusters of the refcount table's old place.
    pub(in crate::image) fn left_by_table(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.left_table)
    }

    /// These references are gone from the disk. Requests in flight may still use them.
    pub(in crate::image) fn dropped(&mut self, clusters: Vec<u64>) {
        if !clusters.is_empty() {
            self.quarantine.push_back(Batch { clusters, epoch: None });
        }
    }

    /// Takes out references that no request can use any more, and whose refcounts may be lowered.
    pub(super) fn settled(&mut self, gate: &Gate) -> Option<Vec<u64>> {
        if self.quarantine.iter().any(|batch| batch.epoch.is_none())
            && let Some(epoch) = gate.flip()
        {
            for batch in &mut self.quarantine {
                batch.epoch.get_or_insert(epoch);
            }
        }
        let front = self.quarantine.front()?;
        if !front.epoch.is_some_and(|epoch| gate.drained(epoch)) {
            return None;
        }
        self.quarantine.pop_front().map(|batch| batch.clusters)
    }

    /// Lowers the cluster's refcount by one; at zero it is free.
    pub(in crate::image) fn lower(&mut self, cluster: u64) -> Got<()> {
        self.give_back(cluster)?;
        if self.is_free(cluster)? {
            self.metadata.remove(&cluster);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
