//! Reads the directory of persistent bitmaps, and looks at their tables. The bits are for `dirty`.

use std::collections::BTreeMap;
use std::ops::Range;

use byteorder::{BigEndian, ByteOrder};

use super::MAX_FILE_OFFSET;
use crate::format::{
    Autoclear, BitmapEntry, BitmapFlags, BitmapTableEntry, Geometry, HeaderArea, HostOffset,
    MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAPS,
};
use crate::io::{Storage, read_padded};
use crate::{Error, Result};

/// Bitmap tables are read in pieces of this many bytes.
const TABLE_PIECE: usize = 64 << 10;

/// What the directory says about one bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BitmapInfo {
    /// The name; not necessarily UTF-8.
    pub name: Vec<u8>,
    /// Guest bytes per bit.
    pub granularity: u64,
    /// It was not stored cleanly: it can only be listed and removed (trap 95).
    pub in_use: bool,
    /// It records writes as soon as the image is opened for writing.
    pub auto: bool,
    /// Where its table lies.
    pub(super) table_offset: HostOffset,
    /// Entries of the table.
    pub(super) table_entries: u32,
}

impl BitmapInfo {
    pub(crate) fn of(entry: &BitmapEntry) -> Self {
        Self {
            name: entry.name.clone(),
            granularity: granularity(entry),
            in_use: entry.flags.contains(BitmapFlags::IN_USE),
            auto: entry.flags.contains(BitmapFlags::AUTO),
            table_offset: entry.table_offset,
            table_entries: entry.table_entries,
        }
    }
}

/// What the directory says; nothing if the autoclear bit does not vouch for the extension.
pub(super) fn read(storage: &dyn Storage, area: &HeaderArea) -> Result<Vec<BitmapInfo>> {
    Ok(entries(storage, area)?.iter().map(BitmapInfo::of).collect())
}

/// The directory's entries.
pub(super) fn entries(storage: &dyn Storage, area: &HeaderArea) -> Result<Vec<BitmapEntry>> {
    let Some(extension) = area.bitmaps() else { return Ok(Vec::new()) };
    if !area.header.autoclear.contains(Autoclear::BITMAPS) {
        return Ok(Vec::new());
    }
    let start = extension.directory_offset.0;
    let size = extension.directory_size;
    if extension.count > MAX_BITMAPS || size > MAX_BITMAP_DIRECTORY_BYTES {
        return Err(damaged(format!(
            "{} bitmaps in {size} bytes is over the limit",
            extension.count
        )));
    }
    if start.checked_add(size).is_none_or(|end| end > storage.len()) {
        return Err(damaged(format!(
            "{size} bytes at {start:#x} do not fit in the file of {} bytes",
            storage.len()
        )));
    }
    let mut directory = vec![0; usize::try_from(size).unwrap_or_default()];
    read_padded(storage, &mut directory, start)?;
    let mut bitmaps = Vec::new();
    let mut seen = Seen::default();
    let mut rest = directory.as_slice();
    while !rest.is_empty() {
        let index = bitmaps.len() as u64;
        let (entry, consumed) = BitmapEntry::parse(rest)
            .map_err(|error| error.structure("bitmap directory").index(index))?;
        rest = rest.get(consumed..).unwrap_or_default();
        check(storage, area, &entry, &mut seen).map_err(|error| error.index(index))?;
        bitmaps.push(entry);
    }
    if bitmaps.len() as u64 != u64::from(extension.count) {
        return Err(damaged(format!(
            "{} bitmaps found, {} expected",
            bitmaps.len(),
            extension.count
        )));
    }
    Ok(bitmaps)
}

/// QEMU refuses an image with a bitmap that it cannot load, so the tables are looked at; the bits
/// themselves are not.
fn check(
    storage: &dyn Storage,
    area: &HeaderArea,
    entry: &BitmapEntry,
    seen: &mut Seen,
) -> Result<()> {
    let (geometry, size) = (area.header.geometry(), area.header.virtual_size());
    entry.check(geometry, size)?;
    if entry.flags.contains(BitmapFlags::IN_USE) {
        return Ok(());
    }
    // One bit per granule, kept in words of 64 bits.
    let words = size.div_ceil(granularity(entry).max(1)).div_ceil(64);
    let expected = geometry.clusters_for(words.saturating_mul(8));
    if u64::from(entry.table_entries) != expected {
        return Err(damaged(format!(
            "the bitmap's table has {} entries, expected {expected}",
            entry.table_entries
        )));
    }
    let len = u64::from(entry.table_entries).saturating_mul(8);
    let end = entry.table_offset.checked_add(len)?;
    if end.0 > MAX_FILE_OFFSET {
        return Err(damaged("the bitmap's table is past any file".into()));
    }
    // Behind the end of the file all is zero, which every entry may be.
    for part in seen.add(entry.table_offset.0..end.0.min(storage.len())) {
        check_table(storage, geometry, part)?;
    }
    Ok(())
}

fn check_table(storage: &dyn Storage, geometry: Geometry, part: Range<u64>) -> Result<()> {
    let mut piece = vec![0; TABLE_PIECE];
    let mut at = part.start;
    while at < part.end {
        let left = usize::try_from(part.end.saturating_sub(at)).unwrap_or(TABLE_PIECE);
        let now = left.next_multiple_of(8).min(TABLE_PIECE);
        let bytes = piece.get_mut(..now).unwrap_or_default();
        read_padded(storage, bytes, at)?;
        for word in bytes.chunks_exact(8) {
            BitmapTableEntry::decode(BigEndian::read_u64(word), geometry)?;
        }
        at = at.saturating_add(now as u64);
    }
    Ok(())
}

/// What was looked at: the tables of a hostile directory may all lie in one place.
#[derive(Debug, Default)]
struct Seen(BTreeMap<u64, u64>);

impl Seen {
    /// Adds a range; the parts of it that were not there.
    fn add(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let (mut start, mut end) = (range.start, range.end);
        let (mut new, mut at) = (Vec::new(), range.start);
        if range.is_empty() {
            return new;
        }
        // All that overlap or touch become one; those before the last that begins in time end before it.
        let mut joined = Vec::new();
        for (&from, &to) in self.0.range(..=range.end).rev().take_while(|(_, to)| **to >= start) {
            joined.push(from..to);
        }
        for part in joined.iter().rev() {
            if at < part.start {
                new.push(at..part.start.min(range.end));
            }
            at = at.max(part.end);
            (start, end) = (start.min(part.start), end.max(part.end));
            self.0.remove(&part.start);
        }
        if at < range.end {
            new.push(at..range.end);
        }
        self.0.insert(start, end);
        new
    }
}

fn granularity(entry: &BitmapEntry) -> u64 {
    1u64.checked_shl(u32::from(entry.granularity_bits)).unwrap_or(0)
}

fn damaged(message: String) -> Error {
    Error::corrupt(message).structure("bitmap directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_past_any_file_is_refused() {
        use std::path::Path;
        use std::sync::Arc;
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/images");
        let mut image = std::fs::read(images.join("bitmaps.qcow2")).unwrap();
        let open = |image: &[u8]| {
            let storage = Arc::new(crate::io::MemoryStorage::new(image.to_vec()));
            crate::image::Image::open(storage).map(|image| image.area().clone())
        };
        let directory = open(&image).unwrap().bitmaps().unwrap().directory_offset.0;
        let at = usize::try_from(directory).unwrap();
        image[at..at + 8].copy_from_slice(&0x7fff_ffff_ffe0_0000_u64.to_be_bytes());
        assert!(open(&image).unwrap_err().to_string().contains("past any file"));
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "ranges are what is expected")]
    fn what_was_looked_at_is_not_looked_at_again() {
        let mut seen = Seen::default();
        assert_eq!(seen.add(8..16), [8..16]);
        assert_eq!(seen.add(8..16), []);
        assert_eq!(seen.add(5..5), []);
        assert_eq!(seen.add(32..40), [32..40]);
        assert_eq!(seen.add(0..64), [0..8, 16..32, 40..64]);
        assert_eq!(seen.add(64..72), [64..72]);
        assert_eq!(seen.add(3..71), []);
        assert_eq!(seen.0, BTreeMap::from([(0, 72)]));
    }
}
