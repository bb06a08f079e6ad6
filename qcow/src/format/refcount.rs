//! Refcount table entries, and refcounts of 1 to 64 bits in their blocks.

use std::ops::Range;

use super::bytes::{read_uint, write_uint};
use super::{Geometry, HostOffset};
use crate::exact::Exact;
use crate::{Error, Remedy, Result};

/// An entry of the refcount table: where one refcount block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    const OFFSET_MASK: u64 = 0xffff_ffff_ffff_fe00;

    /// Where the block lies. `None` means that all refcounts of the block are zero (trap 69).
    ///
    /// The offset may be unaligned in a hostile image; see [`Geometry::is_aligned`].
    pub fn block_offset(self) -> Option<HostOffset> {
        let offset = self.0 & Self::OFFSET_MASK;
        (offset != 0).then_some(HostOffset(offset))
    }

    /// The reserved bits, which should be zero.
    pub fn reserved(self) -> u64 {
        self.0 & !Self::OFFSET_MASK
    }
}

/// Width of an image's refcounts: 1, 2, 4, 8, 16, 32 or 64 bits.
///
/// Refcounts narrower than a byte are packed from the least significant bit of each byte; wider
/// ones are big-endian (trap 68).
///
/// ```
/// use qcow::format::RefcountWidth;
/// let width = RefcountWidth::new(1)?;
/// let mut block = [0; 512];
/// width.set(&mut block, 1, 3)?;
/// assert_eq!((width.bits(), width.max(), block[0]), (2, 3, 0b1100));
/// assert!(width.set(&mut block, 1, 4).is_err());
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RefcountWidth {
    order: u32,
}

impl RefcountWidth {
    /// Largest order: 64 bits.
    pub const MAX_ORDER: u32 = 6;

    /// Refcounts of `1 << order` bits.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if `order` is above 6.
    pub fn new(order: u32) -> Result<Self> {
        if order > Self::MAX_ORDER {
            return Err(Error::corrupt(format!("refcount_order is {order}, expected 0 to 6")));
        }
        Ok(Self { order })
    }

    /// As [`new`](Self::new), with the order limited to 6.
    pub(super) fn nearest(order: u32) -> Self {
        Self { order: order.min(Self::MAX_ORDER) }
    }

    /// Binary logarithm of the width in bits.
    pub fn order(self) -> u32 {
        self.order
    }

    /// Width in bits.
    pub fn bits(self) -> u32 {
        1 << self.order
    }

    /// Largest refcount that fits.
    pub fn max(self) -> u64 {
        u64::MAX >> 64_u32.saturating_sub(self.bits())
    }

    /// Refcounts in one block, which is one cluster long.
    pub fn entries_per_block(self, geometry: Geometry) -> u64 {
        (geometry.cluster_size() << 3) >> self.order
    }

    /// How many clusters of refcount blocks and of the refcount table an image needs whose other
    /// clusters are `others`, all of them counted. Blocks and table count themselves (trap 70).
    pub(crate) fn clusters_to_count(self, others: u64, geometry: Geometry) -> Result<(u64, u64)> {
        let per_block = self.entries_per_block(geometry).max(1);
        let (mut blocks, mut table) = (0, 0);
        // Each round can only grow, by less than the last one.
        loop {
            let needed = others.plus(blocks)?.plus(table)?.div_ceil(per_block);
            let entries = geometry.clusters_for(needed.times(8)?);
            if (needed, entries) == (blocks, table) {
                return Ok((blocks, table));
            }
            (blocks, table) = (needed, entries);
        }
    }

    /// The refcount at `index` of `block`.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if `index` is beyond the block.
    pub fn get(self, block: &[u8], index: u64) -> Result<u64> {
        let (range, shift) = self.locate(index);
        let field = block.get(range).and_then(read_uint).ok_or_else(|| beyond(block, index))?;
        Ok((field >> shift) & self.max())
    }

    /// Sets the refcount at `index` of `block`.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if `value` does not fit the width (trap 72),
    /// [`Usage`](crate::ErrorKind::Usage) if `index` is beyond the block.
    pub fn set(self, block: &mut [u8], index: u64, value: u64) -> Result<()> {
        if value > self.max() {
            return Err(Error::limit(format!(
                "refcount {value} does not fit, expected at most {} in {} bits",
                self.max(),
                self.bits()
            ))
            .structure("refcount block")
            .index(index)
            .hint(Remedy::Flatten));
        }
        let (range, shift) = self.locate(index);
        let old = self.get(block, index)? << shift;
        let len = block.len();
        let Some(field) = block.get_mut(range) else {
            return Err(beyond_len(len, index));
        };
        let rest = read_uint(field).unwrap_or_default() ^ old;
        write_uint(field, rest | (value << shift));
        Ok(())
    }

    /// Sets the `count` refcounts from `first` on, which must be zero, to one.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if they reach beyond the block.
    ///
    /// ```
    /// use qcow::format::RefcountWidth;
    /// let mut block = [0; 512];
    /// RefcountWidth::new(4)?.set_ones(&mut block, 1, 2)?;
    /// assert_eq!(block[..8], [0, 0, 0, 1, 0, 1, 0, 0]);
    /// # Ok::<(), qcow::Error>(())
    /// ```
    pub fn set_ones(self, block: &mut [u8], first: u64, count: u64) -> Result<()> {
        let past = first.saturating_add(count);
        if self.order < 3 {
            return (first..past).try_for_each(|index| self.set(block, index, 1));
        }
        let width = self.locate(0).0.len();
        let byte = |index: u64| usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(width);
        let len = block.len();
        let fields = block.get_mut(byte(first)..byte(past)).ok_or_else(|| beyond_len(len, past))?;
        // One loop for each width: the compiler makes wide stores of those it knows.
        match width {
            1 => fields.fill(1),
            2 => fields.as_chunks_mut().0.fill([0, 1]),
            4 => fields.as_chunks_mut().0.fill([0, 0, 0, 1]),
            _ => fields.as_chunks_mut().0.fill([0, 0, 0, 0, 0, 0, 0, 1]),
        }
        Ok(())
    }

    /// Index of the first refcount from `from` on that is zero, if `zero`, or else that is not; `None` if the
    /// block has none.
    pub(crate) fn find(self, block: &[u8], from: u64, zero: bool) -> Option<u64> {
        let per_byte = 8 >> self.order.min(3);
        let width = self.locate(0).0.len();
        let fits = |index: &u64| self.get(block, *index).is_ok_and(|count| (count == 0) == zero);
        if per_byte > 1 {
            let end = (block.len() as u64).saturating_mul(per_byte);
            // Bytes that have none of the kind are passed over.
            let passed = if zero { Some(0xff) } else { Some(0) };
            let mut at = from;
            while at < end {
                let byte = block.get(usize::try_from(at >> (3 ^ self.order)).ok()?).copied();
                let next = (at | per_byte.wrapping_sub(1)).saturating_add(1);
                if byte != passed
                    && let Some(found) = (at..next).find(fits)
                {
                    return Some(found);
                }
                at = next;
            }
            return None;
        }
        let rest = block.get(usize::try_from(from).ok()?.checked_mul(width)?..)?;
        // One loop for each width: the compiler makes wide comparisons of those it knows.
        let found = match width {
            1 => rest.iter().position(|field| (*field == 0) == zero),
            2 => rest.as_chunks().0.iter().position(|field| (*field == [0; 2]) == zero),
            4 => rest.as_chunks().0.iter().position(|field| (*field == [0; 4]) == zero),
            _ => rest.as_chunks().0.iter().position(|field| (*field == [0; 8]) == zero),
        };
        found.and_then(|at| from.checked_add(at as u64))
    }

    /// The bytes that hold the refcount at `index`, and how far it is shifted in them.
    fn locate(self, index: u64) -> (Range<usize>, u32) {
        let bytes = usize::try_from(self.bits() >> 3).unwrap_or(usize::MAX).max(1);
        let bit = index.saturating_mul(self.bits().into());
        let start = usize::try_from(bit >> 3).unwrap_or(usize::MAX);
        let shift = if self.order < 3 { u32::try_from(bit & 7).unwrap_or_default() } else { 0 };
        (start..start.saturating_add(bytes), shift)
    }
}

fn beyond(block: &[u8], index: u64) -> Error {
    beyond_len(block.len(), index)
}

fn beyond_len(len: usize, index: u64) -> Error {
    Error::usage(format!("index is beyond a block of {len} bytes"))
        .structure("refcount block")
        .index(index)
}

#[cfg(test)]
mod tests;
