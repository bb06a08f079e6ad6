//! Entries of clusters that read as zeros: without a place for them.

use std::ops::Range;
use std::sync::Arc;

use super::Edit;
use super::rewrite::NewEntries;
use crate::exact::Exact;
use crate::format::{EntryRules, RawL2Entry, Version};
use crate::{CancelToken, Result};

/// Subclusters of a cluster.
const SUBCLUSTERS: u64 = 32;

impl Edit {
    /// Gives up the space of what reads as zeros in the active image: `zeros` are ranges of the guest's disk, in
    /// ascending order, that read so as far as this image has them. They become zeros by their entries over a backing
    /// file, and unallocated without one. What that is impossible for stays: version 2 has no such entries, and
    /// nor may a raw data file be without any.
    ///
    /// # Errors
    /// As [`rewrite`](Self::rewrite).
    pub(crate) fn release(
        &mut self,
        zeros: Arc<[Range<u64>]>,
        backed: bool,
        cancel: &CancelToken,
    ) -> Result<()> {
        if backed && self.image().header().version == Version::V2 {
            return Ok(());
        }
        let mut l1 = self.active_l1()?;
        let (rules, size) = (self.rules(), self.image().virtual_size());
        let change: Arc<dyn NewEntries> = Arc::new(Release { zeros, rules, backed, size });
        self.rewrite(&mut l1, &change, cancel)?;
        self.replace_l1(&l1)
    }
}

/// What reads as zeros needs no place.
#[derive(Debug)]
struct Release {
    zeros: Arc<[Range<u64>]>,
    rules: EntryRules,
    backed: bool,
    /// Size of the guest's disk. What is mapped behind it is none of it.
    size: u64,
}

impl NewEntries for Release {
    fn entry(&self, cluster: u64, entry: RawL2Entry) -> Result<RawL2Entry> {
        let len = self.rules.geometry.cluster_size();
        let start = cluster.times(len)?;
        if start >= self.size {
            return Ok(entry);
        }
        let whole = start..start.plus(len)?;
        if entry.is_compressed() {
            return Ok(if self.is_zero(&whole) { self.nothing() } else { entry });
        }
        if self.rules.geometry.extended_l2() {
            return self.subclusters(whole, entry);
        }
        let has_place = entry.offset().0 != 0 || self.rules.data_file && entry.is_copied();
        let zero = entry.has_zero_flag() || has_place && self.is_zero(&whole);
        Ok(if zero { self.nothing() } else { entry })
    }
}

impl Release {
    /// Whether the range, as far as it is on the disk, reads as zeros.
    fn is_zero(&self, range: &Range<u64>) -> bool {
        let end = range.end.min(self.size);
        if range.start >= end {
            return true;
        }
        let after = self.zeros.partition_point(|zeros| zeros.end <= range.start);
        self.zeros.get(after).is_some_and(|zeros| zeros.start <= range.start && end <= zeros.end)
    }

    /// The entry of a cluster that reads as zeros.
    fn nothing(&self) -> RawL2Entry {
        match (self.backed, self.rules.geometry.extended_l2()) {
            (false, _) => RawL2Entry::default(),
            (true, false) => RawL2Entry::ZEROS,
            (true, true) => RawL2Entry { word: 0, bitmap: u64::from(u32::MAX) << SUBCLUSTERS },
        }
    }

    fn subclusters(&self, cluster: Range<u64>, entry: RawL2Entry) -> Result<RawL2Entry> {
        let len = self.rules.geometry.subcluster_size();
        let (mut allocated, mut zero) = (entry.allocated_subclusters(), entry.zero_subclusters());
        for number in 0..SUBCLUSTERS {
            let bit = 1 << number;
            let start = cluster.start.plus(number.times(len)?)?;
            if allocated & bit != 0 && self.is_zero(&(start..start.plus(len)?)) {
                allocated &= !bit;
                zero |= bit;
            }
        }
        if !self.backed {
            zero = 0;
        }
        let word = if allocated == 0 { 0 } else { entry.word };
        Ok(RawL2Entry { word, bitmap: zero << SUBCLUSTERS | allocated })
    }
}
