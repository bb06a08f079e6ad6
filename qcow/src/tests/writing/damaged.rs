//! Images whose refcounts are not what they should be, as tests need them.

use std::sync::Arc;

use crate::format::{HeaderPatch, Incompatible};
use crate::image::{Image, Purpose, RefcountBlock, Refcounts};
use crate::io::MemoryStorage;

/// The refcounts of `image`.
fn refcounts(image: &[u8]) -> (Image, Refcounts) {
    let storage = Arc::new(MemoryStorage::new(image.to_vec()));
    let image = Image::open_for(storage, Purpose::Check).unwrap();
    let refcounts = Refcounts::read(&image).unwrap();
    (image, refcounts)
}

/// The clusters that `image` counts as used, and their refcounts.
pub(in crate::tests) fn counted(image: &[u8]) -> Vec<(u64, u64)> {
    let (opened, refcounts) = refcounts(image);
    let clusters = opened.geometry().clusters_for(image.len() as u64);
    let count = |cluster| (cluster, refcounts.refcount_of(cluster).unwrap());
    (0..clusters).map(count).filter(|(_, count)| *count > 0).collect()
}

/// Makes the refcount of `cluster` say `count`. False if it has no block.
pub(in crate::tests) fn set_count(image: &mut [u8], cluster: u64, count: u64) -> bool {
    let (opened, refcounts) = refcounts(image);
    let (block, index) = refcounts.locate(cluster);
    let RefcountBlock::At(offset) = refcounts.block(block) else { return false };
    let size = opened.geometry().cluster_size() as usize;
    let block = &mut image[offset as usize..offset as usize + size];
    refcounts.width().set(block, index, count).unwrap();
    true
}

/// Marks `image` as not closed properly, or takes the mark away.
pub(in crate::tests) fn mark_dirty(image: &mut [u8], dirty: bool) {
    let bits = refcounts(image).0.header().incompatible - Incompatible::DIRTY;
    let bits = if dirty { bits | Incompatible::DIRTY } else { bits };
    let HeaderPatch { offset, bytes } = HeaderPatch::incompatible(bits.bits());
    image[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
}

/// Whether `image` is marked as not closed properly.
pub(in crate::tests) fn is_dirty(image: &[u8]) -> bool {
    refcounts(image).0.header().incompatible.contains(Incompatible::DIRTY)
}
