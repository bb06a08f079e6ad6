//! How much of a disk its layers hold, part by part: what must be found in the one image that is left.

use std::num::NonZeroU64;

use qcow::Result;
use qcow::chain::Chain;
use qcow::extent::ExtentKind;
use serde::{Deserialize, Serialize};

use super::value::Needs;

/// Bytes of the guest's disk that one figure is about, if the disk is not too large for that. QEMU keeps tables in
/// memory by pieces that are worth so much of a disk with the usual clusters.
const WINDOW: u64 = 32 << 20;

/// No disk has more figures than this.
const MOST: u64 = 1 << 20;

/// For each window of the guest's disk, how many bytes of it some layer holds. Zeros count where the active layer
/// itself says so: zeros below are zeros also for an image without a backing file and without data there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationSummary {
    window: NonZeroU64,
    bytes: Vec<u64>,
}

impl AllocationSummary {
    /// Of all layers of `chain`.
    ///
    /// # Errors
    /// What reading the tables raises.
    pub fn of(chain: &Chain) -> Result<Self> {
        let mut allocation = Self::empty(chain.virtual_size());
        for extent in chain.extents() {
            let extent = extent?;
            let counts = match extent.kind {
                ExtentKind::Unallocated => false,
                ExtentKind::Zero { .. } => extent.depth == 0,
                // Data, compressed or not; and what is not known here must not be lost.
                _ => true,
            };
            if counts {
                allocation.add(extent.guest.0, extent.end());
            }
        }
        Ok(allocation)
    }

    /// Of a disk of this size that holds nothing.
    pub fn empty(virtual_size: u64) -> Self {
        let window = WINDOW.max(virtual_size.div_ceil(MOST));
        Self { window: nonzero(window), bytes: Vec::new() }
    }

    fn add(&mut self, mut start: u64, end: u64) {
        while start < end {
            let window = start / self.window;
            let stop = end.min(window.saturating_add(1).saturating_mul(self.window.get()));
            let Ok(index) = usize::try_from(window) else { return };
            if self.bytes.len() <= index {
                self.bytes.resize(index.saturating_add(1), 0);
            }
            if let Some(bytes) = self.bytes.get_mut(index) {
                *bytes = bytes.saturating_add(stop.saturating_sub(start));
            }
            start = stop;
        }
    }

    /// Where `other` holds less than this: the first guest offset of that window, and how many bytes are lacking
    /// in all.
    pub fn lacking_in(&self, other: &Self) -> Option<(u64, u64)> {
        let held = other.bytes.iter().copied().chain(std::iter::repeat(0));
        let mut first = None;
        let mut lacking = 0_u64;
        for (index, (wanted, held)) in (0_u64..).zip(self.bytes.iter().zip(held)) {
            if held < *wanted {
                first.get_or_insert(index.saturating_mul(self.window.get()));
                lacking = lacking.saturating_add(wanted.saturating_sub(held));
            }
        }
        first.map(|first| (first, lacking))
    }
}

/// What flattening `chain` takes. `cluster` and `entry` are the sizes of a cluster and of an L2 entry of the
/// image that will hold it.
pub(super) fn needs(chain: &Chain, cluster: u64, entry: u64) -> Result<Needs> {
    let unit = nonzero(cluster);
    let span = nonzero((cluster / nonzero(entry)).saturating_mul(cluster));
    let (mut below, mut all, mut tables) =
        (Rounded::of(unit), Rounded::of(unit), Rounded::of(span));
    for extent in chain.extents() {
        let extent = extent?;
        if extent.depth > 0 && extent.kind != ExtentKind::Unallocated {
            tables.add(extent.guest.0, extent.end());
        }
        if extent.is_zero() {
            continue;
        }
        all.add(extent.guest.0, extent.end());
        if extent.depth > 0 {
            below.add(extent.guest.0, extent.end());
        }
    }
    let new_tables = (tables.total / span).saturating_mul(cluster);
    // A copy may say of every cluster that it is zero.
    let all_tables = chain.virtual_size().div_ceil(span.get()).saturating_mul(cluster);
    Ok(Needs {
        below: below.total,
        pull: with_refcounts(below.total.saturating_add(new_tables), unit),
        whole: with_refcounts(all.total.saturating_add(all_tables), unit),
    })
}

/// And what counts the references to it, at 64 bits each, with a header and the tables of the first level.
fn with_refcounts(bytes: u64, cluster: NonZeroU64) -> u64 {
    let counted = (bytes / cluster).saturating_mul(8).div_ceil(cluster.get()).saturating_add(4);
    bytes.saturating_add(counted.saturating_mul(cluster.get()))
}

/// Adds up ranges in ascending order, each rounded outwards, no unit twice.
struct Rounded {
    unit: NonZeroU64,
    end: u64,
    total: u64,
}

impl Rounded {
    fn of(unit: NonZeroU64) -> Self {
        Self { unit, end: 0, total: 0 }
    }

    fn add(&mut self, start: u64, end: u64) {
        let unit = self.unit.get();
        let start = (start / self.unit).saturating_mul(unit).max(self.end);
        let end = end.div_ceil(unit).saturating_mul(unit);
        self.total = self.total.saturating_add(end.saturating_sub(start));
        self.end = self.end.max(end);
    }
}

fn nonzero(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocation(ranges: &[(u64, u64)]) -> AllocationSummary {
        let mut allocation = AllocationSummary::empty(1 << 30);
        ranges.iter().for_each(|(start, end)| allocation.add(*start, *end));
        allocation
    }

    #[test]
    fn what_is_lacking_is_found_in_its_window() {
        let before = allocation(&[(0, 65536), (3 * WINDOW - 10, 3 * WINDOW + 10)]);
        assert_eq!(before.bytes, [65536, 0, 10, 10]);
        assert_eq!(before.lacking_in(&before), None);
        assert_eq!(before.lacking_in(&allocation(&[(0, 4 * WINDOW)])), None);
        // More elsewhere does not make up for it.
        let lost = allocation(&[(0, 2 * WINDOW), (3 * WINDOW, 4 * WINDOW)]);
        assert_eq!(before.lacking_in(&lost), Some((2 * WINDOW, 10)));
        assert_eq!(before.lacking_in(&AllocationSummary::empty(1 << 30)), Some((0, 65536 + 20)));
    }

    #[test]
    fn memory_is_bounded_for_the_largest_disk() {
        let mut allocation = AllocationSummary::empty(1 << 62);
        allocation.add((1 << 62) - 1, 1 << 62);
        assert!(allocation.bytes.len() as u64 <= MOST);
    }

    #[test]
    fn parts_of_one_cluster_are_counted_once() {
        let mut rounded = Rounded::of(nonzero(65536));
        rounded.add(512, 1024);
        rounded.add(2048, 65536 + 1);
        rounded.add(3 * 65536, 4 * 65536);
        assert_eq!(rounded.total, 3 * 65536);
    }
}
