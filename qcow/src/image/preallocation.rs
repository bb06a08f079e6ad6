//! Tells whether an image was made with its metadata preallocated: then most of its clusters are
//! holes in the file, and data that the tables promise may turn out to be zeros.

use super::{Image, RefcountBlock, Refcounts};
use crate::format::whole_sectors;
use crate::{Error, Result};

impl Image {
    /// Whether the image counts clearly more clusters as used (a ninth more, and at least two)
    /// than fit in the `allocated` bytes that the file system holds for it. QEMU draws the line
    /// at the same place. Stops counting when it is sure.
    pub(crate) fn is_mostly_holes(&self, allocated: u64) -> Result<bool> {
        let bits = self.geometry().cluster_bits();
        let held = allocated >> bits;
        let enough = held.saturating_mul(10).div_euclid(9).max(held.saturating_add(2));
        // The file's length counts in whole sectors.
        let length = whole_sectors(self.storage().len());
        let mut clusters = self.geometry().clusters_for(length);
        let refcounts = Refcounts::read_for(self, clusters)?;
        let (mut used, mut index) = (0u64, 0);
        while clusters > 0 && used < enough {
            let here = clusters.min(refcounts.per_block());
            used = used.saturating_add(used_in_block(&refcounts, index, here)?);
            clusters = clusters.saturating_sub(here);
            index = index.saturating_add(1);
        }
        Ok(used >= enough)
    }
}

/// How many of the first `count` refcounts of block `index` are not zero.
fn used_in_block(refcounts: &Refcounts, index: u64, count: u64) -> Result<u64> {
    let offset = match refcounts.block(index) {
        RefcountBlock::Missing => return Ok(0),
        RefcountBlock::Misaligned | RefcountBlock::TooFar => {
            let error = Error::corrupt("the block's offset is not one that a block can have");
            return Err(error.structure("refcount table").index(index));
        }
        RefcountBlock::At(offset) => offset,
    };
    let block = refcounts.read_block(offset)?;
    let mut used = 0u64;
    for index in 0..count {
        used = used.saturating_add(u64::from(refcounts.refcount(&block, index)? != 0));
    }
    Ok(used)
}
