//! What becomes of the clusters of an item, and which zeros are kept, because they lie in one block with data.

use crate::Result;
use crate::exact::{Exact, to_usize};
use crate::extent::Extent;

/// What becomes of one cluster of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    Zero,
    Data,
    /// Only these subclusters hold data.
    Partial(u32),
    /// `len` bytes from `from` on in the worker's packed bytes.
    Compressed {
        from: usize,
        len: usize,
    },
}

/// Ranges of an item that the tables say to be zeros, ascending and apart: what nothing is asked about.
#[derive(Debug, Default)]
pub(super) struct Holes(Vec<(usize, usize)>);

impl Holes {
    /// Those of the item at `guest` that consists of `extents`.
    pub(super) fn of(guest: u64, extents: &[Extent]) -> Result<Self> {
        let mut holes: Vec<(usize, usize)> = Vec::new();
        for extent in extents.iter().filter(|extent| extent.is_zero()) {
            let from = to_usize(extent.guest.0.minus(guest)?);
            let to = from.plus(to_usize(extent.len))?;
            match holes.last_mut() {
                Some(last) if last.1 == from => last.1 = to,
                _ => holes.push((from, to)),
            }
        }
        Ok(Self(holes))
    }

    /// Whether all of a range lies in one.
    fn cover(&self, from: usize, to: usize) -> bool {
        self.0.iter().any(|hole| hole.0 <= from && to <= hole.1)
    }

    /// What is left of these runs.
    pub(super) fn cut_out_of(&self, runs: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
        let mut left = Vec::new();
        for (start, to) in runs {
            let mut from = start;
            for hole in self.0.iter().filter(|hole| hole.1 > start && hole.0 < to) {
                if hole.0 > from {
                    left.push((from, hole.0));
                }
                from = hole.1;
            }
            if from < to {
                left.push((from, to));
            }
        }
        left
    }
}

/// How much is kept at once, and how much is left out at least.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes of a block.
    pub(super) block: u64,
    /// Bytes of a cluster.
    pub(super) cluster: usize,
    pub(super) subclusters: bool,
}

impl Sizes {
    /// Takes zeros for data that lie in one block with data. Items begin where blocks do.
    pub(super) fn widen(&self, clusters: &mut [Cluster], len: usize, holes: &Holes) -> Result<()> {
        let (block, size) = (to_usize(self.block), self.cluster);
        let subcluster = if self.subclusters { size >> 5 } else { size };
        let in_block = block.checked_div(subcluster).and_then(|count| u32::try_from(count).ok());
        let in_block = if block >= size { 32 } else { in_block.unwrap_or(32).clamp(1, 32) };
        let mut from = 0;
        for block in clusters.chunks_mut(block.checked_div(size).unwrap_or(1).max(1)) {
            let any = block.iter().any(|cluster| *cluster != Cluster::Zero);
            for cluster in block {
                let end = from.plus(size)?;
                let mask = match cluster {
                    Cluster::Zero => Some(0),
                    Cluster::Partial(mask) => Some(*mask),
                    Cluster::Data | Cluster::Compressed { .. } => None,
                };
                if let (true, Some(mask)) = (any, mask) {
                    let range = (from, end.min(len));
                    *cluster = match widened(mask, in_block, range, subcluster, holes)? {
                        0 => Cluster::Zero,
                        mask if self.subclusters && mask != u32::MAX => Cluster::Partial(mask),
                        _ => Cluster::Data,
                    };
                }
                from = end;
            }
        }
        Ok(())
    }
}

/// The cluster at `from..to` of an item, of which the subclusters in `mask` hold data, if each block of `in_block`
/// subclusters (a power of two; 32 for any block that holds data outside of the cluster, too) with data is kept as a whole,
/// but for what `holes` has. Without subclusters, `from..to` is one.
fn widened(
    mask: u32,
    in_block: u32,
    (from, to): (usize, usize),
    subcluster: usize,
    holes: &Holes,
) -> Result<u32> {
    let mut all = mask;
    for (bit, at) in (0u32..32).zip((from..to).step_by(subcluster.max(1))) {
        let first = bit & !in_block.wrapping_sub(1);
        let group = u32::MAX.checked_shr(32u32.wrapping_sub(in_block)).unwrap_or(u32::MAX) << first;
        let kept = in_block >= 32 || mask & group != 0;
        if kept && !holes.cover(at, at.plus(subcluster)?.min(to)) {
            all |= 1 << bit;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_with_data_is_kept_but_for_holes() {
        let none = Holes::default();
        let whole =
            |mask, in_block, holes: &Holes| widened(mask, in_block, (0, 320), 10, holes).unwrap();
        assert_eq!(whole(0, 8, &none), 0);
        assert_eq!(whole(1 << 9, 8, &none), 0xff00);
        assert_eq!(whole(1 << 31 | 2, 2, &none), 0xc000_0003);
        assert_eq!(whole(4, 1, &none), 4);
        assert_eq!(whole(0, 32, &none), u32::MAX);
        let holes = Holes(vec![(0, 15), (100, 320)]);
        assert_eq!(whole(4, 16, &holes), 0b11_1111_1110);
        // The disk ends within the cluster.
        assert_eq!(widened(1, 32, (0, 25), 10, &none).unwrap(), 0b111);
    }

    #[test]
    fn holes_are_cut_out_of_runs() {
        let holes = Holes(vec![(5, 10), (20, 30)]);
        assert_eq!(holes.cut_out_of(vec![(0, 7), (8, 25), (40, 50)]), [(0, 5), (10, 20), (40, 50)]);
        assert_eq!(holes.cut_out_of(vec![(20, 30)]), []);
        assert!(holes.cover(20, 30) && !holes.cover(4, 6));
    }
}
