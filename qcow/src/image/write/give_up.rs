//! Gives up what was not committed: the file becomes as short as it can be without it.

use std::sync::Arc;

use super::Writer;
use crate::exact::Exact;
use crate::image::{Image, RefcountBlock, Refcounts};
use crate::io::Storage;
use crate::{ErrorKind, Result};

impl Writer {
    /// Gives back what the file has grown by for clusters that no refcount on the disk counts. Nothing can be written
    /// afterwards. No request may be in flight.
    ///
    /// # Errors
    /// What reading refcounts and changing the length raise; the image is as sound as before.
    pub(crate) fn give_up(&self) -> Result<()> {
        // After a failed barrier nobody knows what the disk has.
        self.healthy()?;
        let _ = self.poison.set((ErrorKind::Internal, "it was given up".into()));
        let len = self.storage.len();
        if len <= self.len_at_open || !self.storage.capabilities().resize {
            return Ok(());
        }
        let wanted = self.end_on_disk(len)?.max(self.len_at_open);
        if wanted < len {
            self.storage
                .set_len(wanted)
                .map_err(|error| crate::Error::io("could not shorten the image", error))?;
        }
        Ok(())
    }

    /// The end of the last cluster of a file of `len` bytes that the disk's metadata counts, or has refcounts in, from
    /// where the file ended when it was opened.
    fn end_on_disk(&self, len: u64) -> Result<u64> {
        let geometry = self.geometry();
        let image = Image::open(Arc::clone(&self.storage) as Arc<dyn Storage>)?;
        let header = image.header();
        let refcounts = Refcounts::read(&image)?;
        let table = u64::from(header.refcount_table_clusters).times(geometry.cluster_size())?;
        let mut end = header.refcount_table_offset.0.plus(table)?;
        for index in (0u64..).take(refcounts.table().len()) {
            if let RefcountBlock::At(offset) = refcounts.block(index) {
                end = end.max(offset.plus(geometry.cluster_size())?);
            }
        }
        let (first, mut above) =
            (self.len_at_open >> geometry.cluster_bits(), geometry.clusters_for(len));
        while above > first {
            let (index, _) = refcounts.locate(above.minus(1)?);
            let start = index.times(refcounts.per_block())?;
            let from = start.max(first);
            if let RefcountBlock::At(offset) = refcounts.block(index) {
                let block = refcounts.read_block(offset)?;
                for cluster in (from..above).rev() {
                    if refcounts.refcount(&block, cluster.minus(start)?)? > 0 {
                        let counted = cluster.plus(1)?.times(geometry.cluster_size())?;
                        return Ok(end.max(counted).min(len));
                    }
                }
            }
            above = from;
        }
        Ok(end.min(len))
    }
}
