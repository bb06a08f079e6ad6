//! Persistent bitmaps that lie where the file is to end: what they say stays, also of those that were not closed.

use super::places::Copies;
use crate::exact::Exact;
use crate::format::{BitmapEntry, BitmapTableEntry, Extension, encode_table};
use crate::image::edit::Edit;
use crate::{CancelToken, Result};

impl Edit {
    /// Moves the directory of bitmaps, their tables and their bits, as far as they lie in cluster `from` or behind it.
    /// Gives how many bytes of bits are copied.
    ///
    /// # Errors
    /// As [`vacate`](Self::vacate).
    pub(super) fn move_bitmaps(&mut self, from: u64, cancel: &CancelToken) -> Result<u64> {
        let mut entries = self.image().bitmap_entries()?;
        let Some(mut extension) = self.image().area().bitmaps().copied() else { return Ok(0) };
        if entries.is_empty() {
            return Ok(0);
        }
        let mut copies = Copies::new(self, cancel);
        let mut changed = false;
        for entry in &mut entries {
            changed |= self.move_bitmap(entry, from, &mut copies)?;
        }
        let (_, bytes) = copies.stage(self)?;
        let own = self.clusters(extension.directory_offset, extension.directory_size)?;
        if !changed && own.end <= from {
            return Ok(bytes);
        }
        let mut directory = Vec::new();
        for entry in &entries {
            directory.extend(entry.to_bytes()?);
        }
        self.lower(own)?;
        extension.directory_size = directory.len() as u64;
        extension.directory_offset = self.write_new(directory)?;
        let mut area = self.area()?;
        for old in &mut area.extensions.0 {
            if let Extension::Bitmaps(old) = old {
                *old = extension;
            }
        }
        self.set_area(area);
        Ok(bytes)
    }

    /// Whether the bitmap's table has got another place.
    fn move_bitmap(
        &mut self,
        entry: &mut BitmapEntry,
        from: u64,
        copies: &mut Copies,
    ) -> Result<bool> {
        let geometry = self.geometry();
        let table = self.read_table(entry.table_offset, entry.table_entries.into())?;
        let own = self.clusters(entry.table_offset, (table.len() as u64).times(8)?)?;
        let mut new = table.clone();
        for word in &mut new {
            let BitmapTableEntry::Stored(host) = BitmapTableEntry::decode(*word, geometry)? else {
                continue;
            };
            let old = host.0 >> geometry.cluster_bits();
            if old < from {
                continue;
            }
            let place = self.copied_cluster(old, copies)?;
            self.lower(old..old.plus(1)?)?;
            let place = place.times(geometry.cluster_size())?;
            *word = BitmapTableEntry::Stored(crate::format::HostOffset(place)).encode();
        }
        if new == table && (own.is_empty() || own.end <= from) {
            return Ok(false);
        }
        self.lower(own)?;
        entry.table_offset = self.write_new(encode_table(&new))?;
        Ok(true)
    }
}
