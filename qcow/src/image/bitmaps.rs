//! Reads the directory of persistent bitmaps. The bitmaps' own tables are left alone.

use crate::format::{
    Autoclear, BitmapEntry, BitmapFlags, HeaderArea, MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAPS,
};
use crate::io::{Storage, read_padded};
use crate::{Error, Result};

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

fn summary(entry: &BitmapEntry) -> BitmapInfo {
    BitmapInfo {
        name: entry.name.clone(),
        granularity: 1u64.checked_shl(u32::from(entry.granularity_bits)).unwrap_or(0),
        in_use: entry.flags.contains(BitmapFlags::IN_USE),
        auto: entry.flags.contains(BitmapFlags::AUTO),
    }
}

fn damaged(message: String) -> Error {
    Error::corrupt(message).structure("bitmap directory")
}
