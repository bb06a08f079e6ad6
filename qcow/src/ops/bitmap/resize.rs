//! Bitmaps of a disk that gets another size.

use super::actions::{Directory, shown};
use crate::exact::{Exact, to_usize};
use crate::format::{BitmapFlags, BitmapTableEntry, encode_table};
use crate::image::bits::table_entries;
use crate::image::edit::Edit;
use crate::{Error, Remedy, Result};

/// Has all bitmaps sized for a disk of `size` bytes. What the disk becomes larger by is not marked.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if one was not stored cleanly, [`Limit`](crate::ErrorKind::Limit) if one would be
/// too large.
pub(crate) fn resize_all(edit: &mut Edit, size: u64) -> Result<()> {
    let mut directory = Directory::read(edit.image())?;
    for entry in directory.entries() {
        if entry.flags.contains(BitmapFlags::IN_USE) {
            let name = shown(&entry.name);
            return Err(Error::usage(format!(
                "the bitmap '{name}' was not stored cleanly, and cannot get another size"
            ))
            .hint(Remedy::DropBitmaps));
        }
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
