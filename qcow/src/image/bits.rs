//! The bits of a persistent bitmap while they are changed.

use std::ops::Range;

use super::Image;
use super::edit::Edit;
use crate::exact::{Exact, to_usize};
use crate::format::{
    BitmapEntry, BitmapTableEntry, Geometry, HostOffset, MAX_BITMAP_BYTES,
    MAX_BITMAP_TABLE_ENTRIES, decode_table, encode_table,
};
use crate::io::{Storage, read_padded};
use crate::{Error, Result};

/// The bits of one bitmap. In memory are those of clusters in which some have been set: at most 512 MiB, the
/// limit of the format.
#[derive(Debug)]
pub(crate) struct Bits {
    geometry: Geometry,
    granularity_bits: u32,
    /// How many bits mean something.
    count: u64,
    /// One for each entry of the table.
    parts: Vec<Part>,
    /// Clusters that were stored and are not needed any more.
    left: Vec<HostOffset>,
}

/// The bits of one entry of the table.
#[derive(Debug)]
enum Part {
    /// All the same, or stored.
    As(BitmapTableEntry),
    Changed(Vec<u8>),
}

/// Entries of the table of a bitmap with this granularity for a disk of `size` bytes.
///
/// # Errors
/// [`Limit`](crate::ErrorKind::Limit) if no bitmap can be that large.
pub(crate) fn table_entries(geometry: Geometry, size: u64, granularity_bits: u32) -> Result<u64> {
    let bits = size.div_ceil(1 << granularity_bits);
    // Kept in words of 64 bits.
    let entries = geometry.clusters_for(bits.div_ceil(64).times(8)?);
    let bytes = entries.times(geometry.cluster_size())?;
    if bytes > MAX_BITMAP_BYTES || entries > MAX_BITMAP_TABLE_ENTRIES.into() {
        return Err(Error::limit(format!(
            "a bitmap of {size} bytes with a granularity of {} needs {bytes} bytes, and may have \
             {MAX_BITMAP_BYTES}",
            1u64 << granularity_bits
        ))
        .hint("use a coarser granularity"));
    }
    Ok(entries)
}

impl Bits {
    /// A bitmap without a bit set, for a disk of `size` bytes.
    ///
    /// # Errors
    /// As [`table_entries`].
    pub(crate) fn clean(geometry: Geometry, size: u64, granularity_bits: u32) -> Result<Self> {
        let entries = table_entries(geometry, size, granularity_bits)?;
        let clean = |_| Part::As(BitmapTableEntry::AllZeros);
        Ok(Self {
            geometry,
            granularity_bits,
            count: size.div_ceil(1 << granularity_bits),
            parts: (0..entries).map(clean).collect(),
            left: Vec::new(),
        })
    }

    /// The bitmap that `entry` of the image's directory describes.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if its table has entries that mean nothing.
    pub(crate) fn stored(image: &Image, entry: &BitmapEntry) -> Result<Self> {
        let geometry = image.geometry();
        let len = u64::from(entry.table_entries).times(8)?;
        let mut table = vec![0; to_usize(len)];
        read_padded(&**image.storage(), &mut table, entry.table_offset.0)
            .map_err(|error| error.structure("bitmap table"))?;
        let mut parts = Vec::new();
        for (index, entry) in (0u64..).zip(decode_table(&table)) {
            let part = BitmapTableEntry::decode(entry, geometry);
            parts.push(Part::As(part.map_err(|error| error.index(index))?));
        }
        let granularity_bits = u32::from(entry.granularity_bits);
        let count = image.virtual_size().div_ceil(1 << granularity_bits);
        Ok(Self { geometry, granularity_bits, count, parts, left: Vec::new() })
    }

    /// Clears all bits.
    pub(crate) fn clear(&mut self) {
        let parts = self.parts.len();
        for index in 0..parts {
            self.replace(index, Part::As(BitmapTableEntry::AllZeros));
        }
    }

    fn replace(&mut self, index: usize, new: Part) {
        let Some(part) = self.parts.get_mut(index) else { return };
        if let Part::As(BitmapTableEntry::Stored(host)) = std::mem::replace(part, new) {
            self.left.push(host);
        }
    }

    /// Makes it one for a disk of `size` bytes. What the disk becomes larger by is clean.
    ///
    /// # Errors
    /// As [`table_entries`].
    pub(crate) fn resize(&mut self, size: u64) -> Result<()> {
        let entries = to_usize(table_entries(self.geometry, size, self.granularity_bits)?);
        for index in entries..self.parts.len() {
            self.replace(index, Part::As(BitmapTableEntry::AllZeros));
        }
        self.parts.resize_with(entries, || Part::As(BitmapTableEntry::AllZeros));
        self.count = size.div_ceil(1 << self.granularity_bits);
        Ok(())
    }

    /// Sets the bits of a range of the guest's disk.
    ///
    /// # Errors
    /// What reading the stored bits from `storage` raises.
    pub(crate) fn set(&mut self, storage: &dyn Storage, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let first = range.start >> self.granularity_bits;
        let end = range.end.minus(1)? >> self.granularity_bits;
        let end = end.plus(1)?.min(self.count);
        // A cluster's bits.
        let per_part = self.geometry.cluster_size() << 3;
        let mut at = first;
        while at < end {
            let index = at >> per_part.trailing_zeros();
            let start = index.times(per_part)?;
            let next = start.plus(per_part)?;
            let within = at.minus(start)?..end.min(next).minus(start)?;
            self.set_in(storage, to_usize(index), within, per_part)?;
            at = next;
        }
        Ok(())
    }

    fn set_in(
        &mut self,
        storage: &dyn Storage,
        index: usize,
        bits: Range<u64>,
        per_part: u64,
    ) -> Result<()> {
        let cluster = to_usize(self.geometry.cluster_size());
        let part = self.parts.get_mut(index);
        let part = part.ok_or_else(|| Error::internal("a bit past the end of its bitmap"))?;
        let mut bytes = match part {
            Part::As(BitmapTableEntry::AllOnes) => return Ok(()),
            _ if bits == (0..per_part) => {
                self.replace(index, Part::As(BitmapTableEntry::AllOnes));
                return Ok(());
            }
            Part::Changed(bytes) => std::mem::take(bytes),
            Part::As(BitmapTableEntry::AllZeros) => vec![0; cluster],
            Part::As(BitmapTableEntry::Stored(host)) => {
                let mut bytes = vec![0; cluster];
                read_padded(storage, &mut bytes, host.0)
                    .map_err(|error| error.structure("bitmap data"))?;
                bytes
            }
        };
        set_bits(&mut bytes, bits)?;
        self.replace(index, Part::Changed(bytes));
        Ok(())
    }

    /// Has the bitmap stored by `edit`, what of it changed in new clusters. Gives the place and length of its
    /// new table. The place of the old one, if there is one, is the caller's to free.
    ///
    /// # Errors
    /// As [`Edit::allocate`] and [`Edit::lower`].
    pub(crate) fn store(self, edit: &mut Edit) -> Result<(HostOffset, u32)> {
        for host in &self.left {
            let clusters = edit.clusters(*host, 1)?;
            edit.lower(clusters)?;
        }
        self.place(|bytes| edit.write_new(bytes))
    }

    /// Has what of the bitmap changed, and its table, written by `place`, which gives the place of each in new
    /// clusters. Gives the place and length of the table.
    ///
    /// # Errors
    /// As `place`.
    pub(crate) fn place(
        self,
        mut place: impl FnMut(Vec<u8>) -> Result<HostOffset>,
    ) -> Result<(HostOffset, u32)> {
        let mut table = Vec::with_capacity(self.parts.len());
        for part in self.parts {
            let entry = match part {
                Part::As(entry) => entry,
                Part::Changed(bytes) if bytes.iter().all(|byte| *byte == 0) => {
                    BitmapTableEntry::AllZeros
                }
                Part::Changed(bytes) => BitmapTableEntry::Stored(place(bytes)?),
            };
            table.push(entry.encode());
        }
        let entries = u32::try_from(table.len())
            .map_err(|_| Error::internal("a bitmap's table of more than 2^32 entries"))?;
        Ok((place(encode_table(&table))?, entries))
    }
}

/// Frees the table of the bitmap that `entry` describes, and, with `bits`, what it leads to.
///
/// # Errors
/// As [`Bits::stored`] and [`Edit::lower`].
pub(crate) fn free(edit: &mut Edit, entry: &BitmapEntry, with_bits: bool) -> Result<()> {
    if with_bits {
        let mut bits = Bits::stored(edit.image(), entry)?;
        bits.clear();
        for host in bits.left {
            let clusters = edit.clusters(host, 1)?;
            edit.lower(clusters)?;
        }
    }
    let len = u64::from(entry.table_entries).times(8)?;
    let clusters = edit.clusters(entry.table_offset, len)?;
    edit.lower(clusters)
}

/// Sets these bits, from the least significant of each byte on.
fn set_bits(bytes: &mut [u8], bits: Range<u64>) -> Result<()> {
    if bits.is_empty() {
        return Ok(());
    }
    let last = bits.end.minus(1)?;
    let (first_byte, last_byte) = (to_usize(bits.start >> 3), to_usize(last >> 3));
    let from = u8::MAX << (bits.start & 7);
    let to = u8::MAX >> (7 ^ (last & 7));
    let bytes = bytes.get_mut(first_byte..=last_byte);
    match bytes.ok_or_else(|| Error::internal("bits past the end of their cluster"))? {
        [] => {}
        [only] => *only |= from & to,
        [first, between @ .., last] => {
            *first |= from;
            between.fill(u8::MAX);
            *last |= to;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;

    #[test]
    fn just_the_bits_of_a_range_are_set() {
        for start in 0..32u64 {
            for end in start..=32 {
                let mut bytes = [0; 4];
                set_bits(&mut bytes, start..end).unwrap();
                let is_set = |bit: &u64| bytes[(bit >> 3) as usize] >> (bit & 7) & 1 == 1;
                let set: Vec<u64> = (0..32).filter(is_set).collect();
                assert_eq!(set, (start..end).collect::<Vec<_>>());
            }
        }
        assert!(set_bits(&mut [0; 4], 20..33).is_err());
    }
}
