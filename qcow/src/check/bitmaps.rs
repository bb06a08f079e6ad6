//! Counts the bitmap directory, the bitmaps' tables and the clusters that hold their bits.
//!
//! As with the tables of snapshots, those of a hostile image may lie over each other: every byte is read once.

use byteorder::{BigEndian, ByteOrder};

use super::Checker;
use super::references::whole;
use super::report::{FindingKind, Spot, Structure};
use super::tables::{Stretch, stretches};
use crate::format::{BitmapEntry, BitmapTableEntry};
use crate::io::read_padded;
use crate::{Error, Result};

/// Tables are read in pieces of this many bytes.
const PIECE: u64 = 64 << 10;

impl Checker<'_> {
    /// Calls `each` with every bitmap of the directory, whose form was checked on opening.
    fn each_bitmap(&self, mut each: impl FnMut(u64, &BitmapEntry) -> Result<()>) -> Result<()> {
        let Some(extension) = self.image.area().bitmaps() else { return Ok(()) };
        let len = usize::try_from(extension.directory_size).unwrap_or_default();
        let mut directory = vec![0; len];
        read_padded(&**self.image.storage(), &mut directory, extension.directory_offset.0)?;
        let mut rest = directory.as_slice();
        let mut index = 0u64;
        while !rest.is_empty() {
            let (entry, used) = BitmapEntry::parse(rest)?;
            each(index, &entry)?;
            rest = rest.get(used..).unwrap_or_default();
            index = index.saturating_add(1);
        }
        Ok(())
    }

    /// Takes note of where directory and tables lie.
    pub(super) fn claim_bitmaps(&self) -> Result<()> {
        if let Some(extension) = self.image.area().bitmaps() {
            let offset = extension.directory_offset.0;
            let spot = whole(Structure::BitmapDirectory, offset);
            self.references.claim(offset, extension.directory_size, spot);
        }
        self.each_bitmap(|index, entry| {
            let (offset, len) = table_place(entry);
            self.references.claim(offset, len, bitmap(index));
            Ok(())
        })
    }

    /// Counts directory, tables and bits.
    pub(super) fn bitmaps(&self) -> Result<()> {
        if let Some(extension) = self.image.area().bitmaps() {
            let offset = extension.directory_offset.0;
            let spot = whole(Structure::BitmapDirectory, offset);
            self.references.count(offset, extension.directory_size, 1, spot)?;
        }
        let mut tables = Vec::new();
        self.each_bitmap(|index, entry| {
            let (offset, len) = table_place(entry);
            tables.push(offset..offset.saturating_add(len));
            self.references.count(offset, len, 1, bitmap(index))
        })?;
        stretches(&tables).into_iter().try_for_each(|part| self.bitmap_table(part))
    }

    fn bitmap_table(&self, part: Stretch) -> Result<()> {
        let storage = &**self.image.storage();
        let to = part.to.min(storage.len());
        let mut at = part.from;
        let mut buffer = Vec::new();
        while at < to {
            self.cancel.check()?;
            let data = storage.next_data(at).map_err(|error| Error::io("could not read", error))?;
            at = at.max(data.unwrap_or(to) & !7).min(to);
            let piece = to.saturating_sub(at).next_multiple_of(8).min(PIECE);
            buffer.resize(usize::try_from(piece).unwrap_or_default(), 0);
            read_padded(storage, &mut buffer, at).map_err(|e| e.structure("bitmap table"))?;
            for bytes in buffer.chunks_exact(8) {
                let index = at.saturating_sub(part.start) >> 3;
                let spot = Spot::entry(Structure::BitmapTable, index, at);
                self.bitmap_table_entry(BigEndian::read_u64(bytes), part.times, spot)?;
                at = at.saturating_add(8);
            }
        }
        Ok(())
    }

    fn bitmap_table_entry(&self, entry: u64, times: u64, spot: Spot) -> Result<()> {
        match BitmapTableEntry::decode(entry, self.geometry) {
            Ok(BitmapTableEntry::Stored(offset)) => {
                let len = self.geometry.cluster_size();
                self.references.count(offset.0, len, times, spot)?;
                // Guest data was counted before.
                let cluster = offset.0 >> self.geometry.cluster_bits();
                let shared = self.references.references(cluster) > 1;
                if shared || self.references.hits_metadata(offset.0, len) {
                    self.report.note(FindingKind::Overlap, spot, || {
                        format!("the bits at {offset} lie in a cluster of something else")
                    });
                }
            }
            Ok(BitmapTableEntry::AllZeros | BitmapTableEntry::AllOnes) => {}
            Err(error) => {
                self.report
                    .corruption(FindingKind::Bitmap, times, spot, || error.message().to_owned());
            }
        }
        Ok(())
    }
}

fn table_place(entry: &BitmapEntry) -> (u64, u64) {
    (entry.table_offset.0, u64::from(entry.table_entries).saturating_mul(8))
}

fn bitmap(index: u64) -> Spot {
    let mut spot = Spot::new(Structure::BitmapDirectory);
    spot.index = Some(index);
    spot
}
