//! Persistent bitmaps that go away with a change.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Edit;
use crate::exact::{Exact, to_usize};
use crate::format::{
    Autoclear, BitmapEntry, BitmapTableEntry, Extension, HostOffset, decode_table,
};
use crate::io::read_padded;
use crate::{Error, Remedy, Result};

/// Bitmap tables are read in pieces of this many bytes.
const PIECE: u64 = 64 << 10;

impl Edit {
    /// Removes all persistent bitmaps: nothing vouches for them any more, and their space is free. Gives their
    /// number.
    ///
    /// # Errors
    /// As [`lower`](Self::lower).
    pub(crate) fn drop_bitmaps(&mut self) -> Result<u64> {
        let Some(extension) = self.image().area().bitmaps().cloned() else { return Ok(0) };
        let mut directory = vec![0; to_usize(extension.directory_size)];
        read_padded(&**self.image().storage(), &mut directory, extension.directory_offset.0)?;
        // Each table with how many bitmaps have it.
        let mut tables: BTreeMap<(HostOffset, u64), u64> = BTreeMap::new();
        let mut rest = directory.as_slice();
        let mut count = 0u64;
        while !rest.is_empty() {
            let (entry, consumed) = BitmapEntry::parse(rest)?;
            rest = rest.get(consumed..).unwrap_or_default();
            let times = tables.entry((entry.table_offset, entry.table_entries.into())).or_default();
            (*times, count) = (times.plus(1)?, count.plus(1)?);
        }
        let own = self.clusters(extension.directory_offset, extension.directory_size)?;
        self.lower(own)?;
        let mut end = 0;
        for ((table, entries), times) in tables {
            if table.0 < end {
                return Err(Error::unsupported("the tables of two bitmaps lie over each other")
                    .structure("bitmap directory")
                    .hint(Remedy::Flatten));
            }
            end = table.0.plus(entries.times(8)?)?;
            let own = self.clusters(table, entries.times(8)?)?;
            self.shift(own, times, false)?;
            self.drop_bits(table.0..end, times)?;
        }
        let mut area = self.area()?;
        area.header.autoclear.remove(Autoclear::BITMAPS);
        area.extensions.0.retain(|extension| !matches!(extension, Extension::Bitmaps(_)));
        self.set_area(area);
        Ok(count)
    }

    /// Frees the clusters that a bitmap table names.
    fn drop_bits(&mut self, table: Range<u64>, times: u64) -> Result<()> {
        let mut at = table.start;
        while at < table.end {
            let len = table.end.minus(at)?.min(PIECE);
            let mut bytes = vec![0; to_usize(len)];
            read_padded(&**self.image().storage(), &mut bytes, at)?;
            for entry in decode_table(&bytes) {
                if let BitmapTableEntry::Stored(host) =
                    BitmapTableEntry::decode(entry, self.geometry())?
                {
                    let clusters = self.clusters(host, 1)?;
                    self.shift(clusters, times, false)?;
                }
            }
            at = at.plus(len)?;
        }
        Ok(())
    }
}
