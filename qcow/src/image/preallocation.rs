//! Tells whether an image was made with its metadata preallocated: then most of its clusters are
//! holes in the file, and data that the tables promise may turn out to be zeros.

use byteorder::{BigEndian, ByteOrder};

use super::Image;
use crate::Result;
use crate::format::{HostOffset, RefcountTableEntry};
use crate::io::read_padded;

impl Image {
    /// Whether the image counts clearly more clusters as used (a ninth more, and at least two)
    /// than fit in the `allocated` bytes that the file system holds for it. QEMU draws the line
    /// at the same place. Stops counting when it is sure.
    pub(crate) fn is_mostly_holes(&self, allocated: u64) -> Result<bool> {
        let bits = self.geometry().cluster_bits();
        let held = allocated >> bits;
        let enough = held.saturating_mul(10).div_euclid(9).max(held.saturating_add(2));
        // The file's length counts in whole sectors.
        let length = self.storage().len().checked_next_multiple_of(512).unwrap_or(u64::MAX);
        let mut clusters = self.geometry().clusters_for(length);
        let per_block = self.header().refcounts().entries_per_block(self.geometry());
        let (mut used, mut index) = (0u64, 0);
        while clusters > 0 && used < enough {
            let here = clusters.min(per_block.max(1));
            if let Some(block) = self.refcount_block(index)? {
                used = used.saturating_add(self.used_in_block(block, here)?);
            }
            clusters = clusters.saturating_sub(here);
            index = index.saturating_add(1);
        }
        Ok(used >= enough)
    }

    /// Where the refcount block with this number lies, if there is one.
    fn refcount_block(&self, index: u64) -> Result<Option<HostOffset>> {
        let header = self.header();
        let table_bytes =
            u64::from(header.refcount_table_clusters) << self.geometry().cluster_bits();
        let at = index.saturating_mul(8);
        if at >= table_bytes {
            return Ok(None);
        }
        let mut entry = [0; 8];
        let offset = header.refcount_table_offset.checked_add(at)?;
        read_padded(&**self.storage(), &mut entry, offset.0)?;
        Ok(RefcountTableEntry(BigEndian::read_u64(&entry)).block_offset())
    }

    /// How many of the first `count` refcounts of a block are not zero.
    fn used_in_block(&self, block: HostOffset, count: u64) -> Result<u64> {
        let width = self.header().refcounts();
        let size = self.geometry().cluster_size();
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        read_padded(&**self.storage(), &mut bytes, block.0)?;
        let mut used = 0u64;
        for index in 0..count {
            used = used.saturating_add(u64::from(width.get(&bytes, index)? != 0));
        }
        Ok(used)
    }
}
