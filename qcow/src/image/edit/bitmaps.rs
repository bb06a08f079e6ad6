//! Persistent bitmaps that go away with a change.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Edit;
use crate::exact::{Exact, to_usize};
use crate::format::{
    Autoclear, BITMAPS_EXTENSION, BitmapEntry, BitmapTableEntry, HeaderPatch, HostOffset,
    decode_table,
};
use crate::io::read_padded;
use crate::{Error, Remedy, Result};

/// Bitmap tables are read in pieces of this many bytes.
const PIECE: u64 = 64 << 10;

impl Edit {
    /// Removes all persistent bitmaps: nothing vouches for them any more, and their space is free. Gives their
    /// number.
    ///
    /// The header extension that named them is taken out after the switch, where it is the last one; elsewhere it stays,
    /// as one that is not believed.
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
        let kept = self.image().header().autoclear & Autoclear::all();
        let kept = kept.difference(Autoclear::BITMAPS);
        self.set_header(&HeaderPatch::autoclear(kept.bits()))?;
        if let Some(offset) = self.last_extension(BITMAPS_EXTENSION)? {
            // The end of the extensions.
            self.then(vec![HeaderPatch { offset, bytes: vec![0; 8] }]);
        }
        Ok(count)
    }

    /// Where the header extension of this type lies, if it is the last one.
    fn last_extension(&self, wanted: u32) -> Result<Option<u64>> {
        let mut cluster = vec![0; to_usize(self.geometry().cluster_size())];
        read_padded(&**self.image().storage(), &mut cluster, 0)?;
        let header = self.image().header();
        let end = match to_usize(header.backing_name_offset) {
            0 => cluster.len(),
            name => name.min(cluster.len()),
        };
        let mut at = to_usize(header.header_length.into());
        let mut last = None;
        while let Some(fields) = cluster.get(at..end).and_then(|rest| rest.first_chunk::<8>()) {
            let (kind, len) = fields.split_at(4);
            let number = |bytes: &[u8]| bytes.first_chunk().copied().map_or(0, u32::from_be_bytes);
            if number(kind) == 0 {
                break;
            }
            last = Some((number(kind), at as u64));
            at = at.plus(8)?.plus(to_usize(number(len).into()).next_multiple_of(8))?;
        }
        Ok(last.filter(|(kind, _)| *kind == wanted).map(|(_, offset)| offset))
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
