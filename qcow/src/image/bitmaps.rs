//! Reads the directory of persistent bitmaps. The bitmaps' own tables are left alone.

use byteorder::{BigEndian, ByteOrder};

use crate::format::{
    Autoclear, BitmapEntry, BitmapFlags, BitmapTableEntry, HeaderArea, MAX_BITMAP_DIRECTORY_BYTES,
    MAX_BITMAPS,
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
}

/// The directory's entries; none if the autoclear bit does not vouch for the extension.
pub(super) fn read(storage: &dyn Storage, area: &HeaderArea) -> Result<Vec<BitmapInfo>> {
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
    let mut rest = directory.as_slice();
    while !rest.is_empty() {
        let index = bitmaps.len() as u64;
        let (entry, consumed) = BitmapEntry::parse(rest)
            .map_err(|error| error.structure("bitmap directory").index(index))?;
        rest = rest.get(consumed..).unwrap_or_default();
        check(storage, area, &entry).map_err(|error| error.index(index))?;
        bitmaps.push(summary(&entry));
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
fn check(storage: &dyn Storage, area: &HeaderArea, entry: &BitmapEntry) -> Result<()> {
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
    let mut piece = vec![0; TABLE_PIECE];
    let len = u64::from(entry.table_entries).saturating_mul(8);
    let mut at = 0;
    while at < len {
        let now = usize::try_from(len.saturating_sub(at)).unwrap_or(TABLE_PIECE).min(TABLE_PIECE);
        let bytes = piece.get_mut(..now).unwrap_or_default();
        let offset = entry.table_offset.checked_add(at)?;
        read_padded(storage, bytes, offset.0)?;
        for word in bytes.chunks_exact(8) {
            BitmapTableEntry::decode(BigEndian::read_u64(word), geometry)?;
        }
        at = at.saturating_add(now as u64);
    }
    Ok(())
}

fn granularity(entry: &BitmapEntry) -> u64 {
    1u64.checked_shl(u32::from(entry.granularity_bits)).unwrap_or(0)
}

fn summary(entry: &BitmapEntry) -> BitmapInfo {
    BitmapInfo {
        name: entry.name.clone(),
        granularity: granularity(entry),
        in_use: entry.flags.contains(BitmapFlags::IN_USE),
        auto: entry.flags.contains(BitmapFlags::AUTO),
    }
}

fn damaged(message: String) -> Error {
    Error::corrupt(message).structure("bitmap directory")
}
