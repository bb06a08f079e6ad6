//! Digests of what an image has: of the guest's disk and of each internal snapshot.

use std::path::Path;
use std::sync::Arc;

use crc32fast::Hasher;

use crate::chain::{Chain, Format};
use crate::extent::ExtentKind;
use crate::image::Image;
use crate::io::Storage;
use crate::ops::digest::crc32_of_start;
use crate::{CancelToken, Error, Result};

/// How an image is read.
#[derive(Debug)]
pub(super) struct Views {
    /// The external data file.
    pub(super) data: Option<Arc<dyn Storage>>,
    /// There is a backing file, so that what the image has not is no zeros.
    pub(super) backed: bool,
    pub(super) threads: usize,
}

/// What one view reads as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    size: u64,
    crc32: String,
    /// Digest of which ranges are left to the backing file.
    left: u32,
}

impl Views {
    /// The guest's disk as the image in `storage` has it, alone.
    pub(super) fn active(&self, storage: &Arc<dyn Storage>) -> Result<Chain> {
        Chain::over((Path::new(""), Arc::clone(storage), Format::Qcow2), self.data.clone(), None)
    }

    /// As [`of`](Self::of), of the guest's disk, whose digest is known.
    pub(super) fn of_active(
        &self,
        storage: &Arc<dyn Storage>,
        crc32: &str,
        cancel: &CancelToken,
    ) -> Result<View> {
        let chain = self.active(storage)?;
        let left = self.left(&chain, cancel)?;
        Ok(View { size: chain.virtual_size(), crc32: crc32.to_owned(), left })
    }

    /// Checks that the guest's disk in `storage` is what it was.
    pub(super) fn check_active(
        &self,
        storage: &Arc<dyn Storage>,
        before: &View,
        cancel: &CancelToken,
    ) -> Result<()> {
        if self.of(&self.active(storage)?, cancel)? == *before { Ok(()) } else { Err(another()) }
    }

    /// The guest's disk, and then the snapshots in their order.
    pub(super) fn all(
        &self,
        storage: &Arc<dyn Storage>,
        cancel: &CancelToken,
    ) -> Result<Vec<View>> {
        let mut views = vec![self.of(&self.active(storage)?, cancel)?];
        let image = Image::open(Arc::clone(storage))?;
        for index in 0..image.snapshots().len() {
            let chain = Chain::builder().force_share(true).partial(true).snapshot_index(index);
            let chain = chain.layer("", Arc::clone(storage), Format::Qcow2);
            views.push(self.of(&chain.open()?, cancel)?);
        }
        Ok(views)
    }

    fn of(&self, chain: &Chain, cancel: &CancelToken) -> Result<View> {
        let size = chain.virtual_size();
        let crc32 = crc32_of_start(chain, size, self.threads, cancel)?;
        Ok(View { size, crc32, left: self.left(chain, cancel)? })
    }

    fn left(&self, chain: &Chain, cancel: &CancelToken) -> Result<u32> {
        let mut hasher = Hasher::new();
        if !self.backed {
            return Ok(0);
        }
        let mut end = None;
        for extent in chain.extents() {
            cancel.check()?;
            let extent = extent?;
            if extent.kind != ExtentKind::Unallocated {
                continue;
            }
            // Neighbours are one, however they were cut.
            if end != Some(extent.guest.0) {
                hasher.update(&end.unwrap_or_default().to_be_bytes());
                hasher.update(&extent.guest.0.to_be_bytes());
            }
            end = Some(extent.end());
        }
        hasher.update(&end.unwrap_or_default().to_be_bytes());
        Ok(hasher.finalize())
    }
}

/// What a change would do that must not be made.
pub(super) fn another() -> Error {
    Error::internal("the changed image would not read as before, so the change was not made")
}
