//! Bitmaps of a disk that changes without a write: it gets another size, or the content of a snapshot.

use std::ops::Range;

use super::actions::Directory;
use crate::exact::{Exact, to_usize};
use crate::format::{BitmapTableEntry, encode_table};
use crate::image::bits::table_entries;
use crate::image::edit::Edit;
use crate::{Error, Result};

/// Has all bitmaps sized for a disk of `size` bytes, and the bits of these ranges set in those that record writes. Gives
/// how many that are. One that was not stored cleanly stays as it is: nobody believes it.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if the size is another one and a bitmap was not stored cleanly,
/// [`Limit`](crate::ErrorKind::Limit) if one would be too large.
pub(crate) fn mark_all(edit: &mut Edit, ranges: &[Range<u64>], size: u64) -> Result<u64> {
    let mut directory = Directory::read(edit.image())?;
    if size != edit.image().virtual_size() {
        directory.check_closed()?;
    }
    let marked = directory.mark(edit.image(), ranges, size)?;
    directory.store(edit)?;
    Ok(marked)
}

/// Has all bitmaps sized for a disk of `size` bytes. What the disk becomes larger by is not marked.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if one was not stored cleanly, [`Limit`](crate::ErrorKind::Limit) if one would be
/// too large.
pub(crate) fn resize_all(edit: &mut Edit, size: u64) -> Result<()> {
    let mut directory = Directory::read(edit.image())?;
    directory.check_closed()?;
    for entry in directory.entries() {
        let geometry = edit.geometry();
        let needed = table_entries(geometry, size, entry.granularity_bits.into())?;
        if needed == u64::from(entry.table_entries) {
            continue;
        }
        let mut table = edit.read_table(entry.table_offset, entry.table_entries.into())?;
        let own = edit.clusters(entry.table_offset, (table.len() as u64).times(8)?)?;
        edit.lower(own)?;
        for dropped in table.get(to_usize(needed)..).unwrap_or_default() {
            if let BitmapTableEntry::Stored(host) = BitmapTableEntry::decode(*dropped, geometry)? {
                let clusters = edit.clusters(host, 1)?;
                edit.lower(clusters)?;
            }
        }
        table.resize(to_usize(needed), 0);
        entry.table_offset = edit.write_new(encode_table(&table))?;
        entry.table_entries = u32::try_from(needed)
            .map_err(|_| Error::internal("a bitmap table of more than 2^32 entries"))?;
    }
    directory.store(edit)
}
