//! The refcounts that the image stores, and which of them are one.

use std::ops::{Deref, Range};

use rayon::prelude::*;

use super::counters::ClusterSet;
use crate::image::{Image, RefcountBlock, Refcounts};
use crate::{CancelToken, Result};

/// The image's refcounts, and for the clusters of the file whether they are one: nearly all are,
/// and asking for each by itself would be slow.
#[derive(Debug)]
pub(super) struct Stored {
    refcounts: Refcounts,
    /// Clusters below this are in `ones`.
    known: u64,
    ones: ClusterSet,
}

impl Deref for Stored {
    type Target = Refcounts;

    fn deref(&self) -> &Refcounts {
        &self.refcounts
    }
}

impl Stored {
    /// Reads the refcount table, and looks at the refcounts of the first `clusters` clusters.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub(super) fn read(image: &Image, clusters: u64, cancel: &CancelToken) -> Result<Self> {
        let refcounts = Refcounts::read(image)?;
        let stored = Self { refcounts, known: clusters, ones: ClusterSet::new(clusters) };
        (0..stored.blocks_for(clusters)).into_par_iter().try_for_each(|index| {
            cancel.check()?;
            stored.find_ones(index, clusters)
        })?;
        Ok(stored)
    }

    /// Whether the refcount of `cluster` is one; `None` if it cannot be read.
    #[inline]
    pub(super) fn is_one(&self, cluster: u64) -> Option<bool> {
        match self.block(self.locate(cluster).0) {
            RefcountBlock::Missing => Some(false),
            RefcountBlock::Misaligned | RefcountBlock::TooFar => None,
            RefcountBlock::At(_) if cluster < self.known => Some(self.ones.contains(cluster)),
            RefcountBlock::At(_) => self.refcount_of(cluster).map(|refcount| refcount == 1),
        }
    }

    /// Whether the refcounts of these clusters are all one (`Some(true)`), or none is
    /// (`Some(false)`); otherwise, and where any cannot be read, `None`.
    pub(super) fn uniform(&self, clusters: Range<u64>) -> Option<bool> {
        let (first, _) = self.locate(clusters.start);
        let (last, _) = self.locate(clusters.end.saturating_sub(1));
        let readable =
            |index| !matches!(self.block(index), RefcountBlock::Misaligned | RefcountBlock::TooFar);
        if clusters.end > self.known || !(first..=last).all(readable) {
            return None;
        }
        self.ones.uniform(clusters)
    }

    /// Whether the refcounts of the sixty-four clusters from `cluster`, a multiple of 64, on are
    /// known to be one.
    pub(super) fn are_one(&self, cluster: u64) -> bool {
        self.ones.word(cluster) == u64::MAX
    }

    /// Looks for refcounts of one in block `index`, as far as `clusters` reach.
    fn find_ones(&self, index: u64, clusters: u64) -> Result<()> {
        let RefcountBlock::At(offset) = self.block(index) else { return Ok(()) };
        let block = self.read_block(offset)?;
        let first = index.saturating_mul(self.per_block());
        let count = self.per_block().min(clusters.saturating_sub(first));
        // Blocks have at least 64 refcounts, so groups of 64 do not cross them.
        for group in (0..count).step_by(64) {
            let end = group.saturating_add(64).min(count);
            let mut bits = 0;
            for at in group..end {
                let one = self.refcount(&block, at)? == 1;
                bits |= u64::from(one) << (at & 63);
            }
            self.ones.insert_word(first.saturating_add(group), bits);
        }
        Ok(())
    }
}
