//! Entries of the bitmap directory and of bitmap tables.

use bitflags::bitflags;

use super::bytes::{Put, Reader, len_u16, len_u32};
use super::{
    Geometry, HostOffset, MAX_BITMAP_BYTES, MAX_BITMAP_DIRECTORY_BYTES,
    MAX_BITMAP_GRANULARITY_BITS, MAX_BITMAP_NAME, MAX_BITMAP_TABLE_ENTRIES,
    MIN_BITMAP_GRANULARITY_BITS,
};
use crate::{Error, Escaped, Remedy, Result};

const STRUCTURE: &str = "bitmap directory";
const TABLE: &str = "bitmap table";

bitflags! {
    /// Flags of a bitmap. Bits that this crate does not know are kept.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct BitmapFlags: u32 {
        /// The bitmap was not saved properly and is inconsistent (trap 95).
        const IN_USE = 1;
        /// Writers must keep the bitmap up to date.
        const AUTO = 1 << 1;
        /// Who does not know the extra data may use the bitmap all the same. QEMU refuses it.
        const EXTRA_DATA_COMPATIBLE = 1 << 2;
    }
}

/// One bitmap of the directory.
///
/// The name is text from the image: not necessarily UTF-8, and to be escaped before it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapEntry {
    /// Where the bitmap's table lies.
    pub table_offset: HostOffset,
    /// Entries in the table.
    pub table_entries: u32,
    /// Its flags.
    pub flags: BitmapFlags,
    /// Its type: 1 for a dirty tracking bitmap.
    pub kind: u8,
    /// Binary logarithm of the guest bytes that one bit stands for.
    pub granularity_bits: u8,
    /// Extra data of the type, which no known type has.
    pub extra: Vec<u8>,
    /// Its name.
    pub name: Vec<u8>,
}

impl BitmapEntry {
    /// The only known type, dirty tracking.
    pub const DIRTY_TRACKING: u8 = 1;
    /// Length of an entry's fixed fields.
    pub const FIXED_BYTES: usize = 24;

    /// The entry at the start of `bytes`, and its length with the padding to eight bytes.
    ///
    /// Only the entry's form is checked; [`check`](Self::check) has QEMU's rules.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the entry, with its padding, is cut short.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize)> {
        let mut fields = Reader::new(bytes, 0, STRUCTURE);
        let table_offset = HostOffset(fields.u64()?);
        let table_entries = fields.u32()?;
        let flags = BitmapFlags::from_bits_retain(fields.u32()?);
        let kind = fields.u8()?;
        let granularity_bits = fields.u8()?;
        let name_len = usize::from(fields.u16()?);
        let extra_len = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
        let extra = fields.take(extra_len)?.to_vec();
        let name = fields.take(name_len)?.to_vec();
        let consumed = fields.at().next_multiple_of(8);
        fields.take(consumed.saturating_sub(fields.at()))?;
        let entry =
            Self { table_offset, table_entries, flags, kind, granularity_bits, extra, name };
        Ok((entry, consumed))
    }

    /// The rules by which QEMU accepts an entry, for a disk of `virtual_size` bytes.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt), [`Limit`](crate::ErrorKind::Limit), or
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for extra data, flags beyond the first two
    /// and unknown types (trap 97).
    pub fn check(&self, geometry: Geometry, virtual_size: u64) -> Result<()> {
        self.check_kind().and_then(|()| self.check_table(geometry, virtual_size)).map_err(|error| {
            let name = String::from_utf8_lossy(&self.name);
            let message = format!("bitmap '{}': {}", Escaped(&name), error.message());
            Error::new(error.kind(), message).structure(STRUCTURE).hint(Remedy::Repair)
        })
    }

    fn check_kind(&self) -> Result<()> {
        let known = BitmapFlags::IN_USE | BitmapFlags::AUTO;
        if !known.contains(self.flags) {
            return Err(Error::unsupported(format!(
                "flags are {:#x}, expected none beyond {known:#x}",
                self.flags.bits()
            )));
        }
        if self.kind != Self::DIRTY_TRACKING {
            return Err(Error::unsupported(format!(
                "type is {}, expected {} (dirty tracking)",
                self.kind,
                Self::DIRTY_TRACKING
            )));
        }
        if !self.extra.is_empty() {
            return Err(Error::unsupported(format!(
                "found {} bytes of extra data, expected none",
                self.extra.len()
            )));
        }
        if self.name.is_empty() || self.name.len() > usize::from(MAX_BITMAP_NAME) {
            return Err(Error::corrupt(format!(
                "the name has {} bytes, expected 1 to {MAX_BITMAP_NAME}",
                self.name.len()
            )));
        }
        let granularities = MIN_BITMAP_GRANULARITY_BITS..=MAX_BITMAP_GRANULARITY_BITS;
        if !granularities.contains(&self.granularity_bits) {
            return Err(Error::corrupt(format!(
                "granularity is 2^{}, expected 2^{MIN_BITMAP_GRANULARITY_BITS} to \
                 2^{MAX_BITMAP_GRANULARITY_BITS}",
                self.granularity_bits
            )));
        }
        Ok(())
    }

    fn check_table(&self, geometry: Geometry, virtual_size: u64) -> Result<()> {
        if self.table_offset.0 == 0 || !geometry.is_aligned(self.table_offset.0) {
            return Err(Error::corrupt(format!(
                "the table is at {}, expected a multiple of the cluster size of {}, not 0",
                self.table_offset,
                geometry.cluster_size()
            )));
        }
        let bytes = u64::from(self.table_entries).saturating_mul(geometry.cluster_size());
        if self.table_entries > MAX_BITMAP_TABLE_ENTRIES || bytes > MAX_BITMAP_BYTES {
            return Err(Error::limit(format!(
                "the table has {} entries, expected at most {MAX_BITMAP_BYTES} bytes of bitmap",
                self.table_entries
            )));
        }
        if self.table_entries == 0 {
            return Err(Error::corrupt("the table has 0 entries, expected at least 1"));
        }
        // While in use, the disk may have grown without the bitmap (trap 99).
        let covered = u128::from(bytes).saturating_mul(8) << self.granularity_bits.min(63);
        if !self.flags.contains(BitmapFlags::IN_USE) && u128::from(virtual_size) > covered {
            return Err(Error::corrupt(format!(
                "the bitmap covers {covered} bytes, expected the disk's {virtual_size}"
            )));
        }
        Ok(())
    }

    /// The entry's bytes, padded to eight.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if name or extra data are too long for any directory.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let name_len = len_u16(self.name.len(), "a bitmap's name")?;
        let extra_len = len_u32(self.extra.len(), "a bitmap's extra data")?;
        if u64::from(extra_len) > MAX_BITMAP_DIRECTORY_BYTES {
            return Err(Error::limit(format!(
                "a bitmap's extra data is {extra_len} bytes long, expected at most \
                 {MAX_BITMAP_DIRECTORY_BYTES}"
            ))
            .structure(STRUCTURE));
        }
        let mut out = Vec::new();
        out.put_u64(self.table_offset.0);
        out.put_u32(self.table_entries);
        out.put_u32(self.flags.bits());
        out.push(self.kind);
        out.push(self.granularity_bits);
        out.put_u16(name_len);
        out.put_u32(extra_len);
        out.extend_from_slice(&self.extra);
        out.extend_from_slice(&self.name);
        out.pad_to_8();
        Ok(out)
    }
}

/// What an entry of a bitmap table says about one cluster of bits.
///
/// ```
/// use qcow::format::{BitmapTableEntry, Geometry, HostOffset};
/// let geometry = Geometry::new(16, false)?;
/// assert_eq!(BitmapTableEntry::decode(1, geometry)?, BitmapTableEntry::AllOnes);
/// assert_eq!(BitmapTableEntry::Stored(HostOffset(0x70000)).encode(), 0x70000);
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapTableEntry {
    /// All bits are zero; no cluster is stored.
    AllZeros,
    /// All bits are one; no cluster is stored.
    AllOnes,
    /// The bits are stored in the cluster at this offset, from the least significant bit of each
    /// byte on (trap 93).
    Stored(HostOffset),
}

impl BitmapTableEntry {
    const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
    const RESERVED: u64 = 0xff00_0000_0000_01fe;
    const ALL_ONES: u64 = 1;

    /// Reads an entry.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for reserved bits, an unaligned offset, or an offset
    /// together with the all-ones bit (trap 94).
    pub fn decode(entry: u64, geometry: Geometry) -> Result<Self> {
        let corrupt = |message: String| Err(Error::corrupt(message).structure(TABLE));
        let offset = HostOffset(entry & Self::OFFSET_MASK);
        let ones = entry & Self::ALL_ONES != 0;
        if entry & Self::RESERVED != 0 {
            return corrupt(format!("entry {entry:#018x} has reserved bits set"));
        }
        match (offset.0, ones) {
            (0, false) => Ok(Self::AllZeros),
            (0, true) => Ok(Self::AllOnes),
            (_, true) => {
                corrupt(format!("entry {entry:#018x} has both an offset and the all-ones bit"))
            }
            _ if !geometry.is_aligned(offset.0) => corrupt(format!(
                "the cluster is at {offset}, expected a multiple of the cluster size of {}",
                geometry.cluster_size()
            )),
            _ => Ok(Self::Stored(offset)),
        }
    }

    /// The entry. An offset loses the bits that entries have no room for.
    pub fn encode(self) -> u64 {
        match self {
            Self::AllZeros => 0,
            Self::AllOnes => Self::ALL_ONES,
            Self::Stored(offset) => offset.0 & Self::OFFSET_MASK,
        }
    }
}

#[cfg(test)]
mod tests;
