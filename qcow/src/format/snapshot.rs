//! Entries of the snapshot table.

use super::bytes::{Put, Reader, len_u16, len_u32};
use super::{Geometry, HostOffset, MAX_FILE_BYTES, MAX_L1_BYTES, MAX_SNAPSHOT_EXTRA, Version};
use crate::{Error, Result};

const STRUCTURE: &str = "snapshot table";
/// Extra data that this crate knows: VM state size, disk size, instruction count.
const KNOWN_EXTRA: usize = 24;

/// One internal snapshot.
///
/// Id and name are text from the image: not necessarily UTF-8, unique or non-empty (trap 86), and
/// to be escaped before they are shown (trap 139).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its L1 table lies; see [`check_l1`](Self::check_l1).
    pub l1_table_offset: HostOffset,
    /// Entries in its L1 table.
    pub l1_entries: u32,
    /// Its id, usually a decimal number.
    pub id: Vec<u8>,
    /// Its name.
    pub name: Vec<u8>,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u32,
    /// Nanoseconds to add to `date_sec`.
    pub date_nsec: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Size of the saved VM state in bytes; 0 if there is none.
    pub vm_state_size: u64,
    /// Size of the guest's disk in bytes. Without it, the image's size counts (trap 81).
    pub disk_size: Option<u64>,
    /// Instructions that the guest had run, if counted.
    pub icount: Option<u64>,
    /// Extra data that this crate does not know, kept for the next writer.
    pub unknown_extra: Vec<u8>,
}

impl Snapshot {
    /// Length of an entry's fixed fields, which [`entry_len`](Self::entry_len) needs.
    pub const FIXED_BYTES: usize = 40;

    /// Length of the entry that starts with `prefix`, with the padding to eight bytes that
    /// precedes the next entry. The last entry of a table may lack the padding.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if `prefix` is shorter than
    /// [`FIXED_BYTES`](Self::FIXED_BYTES), [`Limit`](crate::ErrorKind::Limit) if the extra data is
    /// too long.
    pub fn entry_len(prefix: &[u8]) -> Result<usize> {
        Fixed::parse(&mut Reader::new(prefix, 0, STRUCTURE)).map(|fixed| fixed.entry_len())
    }

    /// The entry at the start of `bytes`, and its length as [`entry_len`](Self::entry_len) has it.
    ///
    /// Both versions read alike: QEMU takes short extra data in version 3 too, and only `check`
    /// minds; see [`is_incomplete`](Self::is_incomplete).
    ///
    /// # Errors
    /// As [`entry_len`](Self::entry_len), and [`Corrupt`](crate::ErrorKind::Corrupt) if the entry
    /// is cut short.
    pub fn parse(bytes: &[u8], _version: Version) -> Result<(Self, usize)> {
        let mut fields = Reader::new(bytes, 0, STRUCTURE);
        let fixed = Fixed::parse(&mut fields)?;
        let extra = fields.take(fixed.extra_len)?;
        let known = |at: usize| Reader::new(extra, at, STRUCTURE).u64().ok();
        let snapshot = Self {
            l1_table_offset: fixed.l1_table_offset,
            l1_entries: fixed.l1_entries,
            id: fields.take(fixed.id_len.into())?.to_vec(),
            name: fields.take(fixed.name_len.into())?.to_vec(),
            date_sec: fixed.date_sec,
            date_nsec: fixed.date_nsec,
            vm_clock_nsec: fixed.vm_clock_nsec,
            // The 64-bit field wins (trap 82).
            vm_state_size: known(0).unwrap_or(fixed.vm_state_size.into()),
            disk_size: known(8),
            icount: known(16).filter(|&icount| icount != u64::MAX),
            unknown_extra: extra.get(KNOWN_EXTRA..).unwrap_or_default().to_vec(),
        };
        Ok((snapshot, fixed.entry_len()))
    }

    /// Whether the entry lacks the disk size that version 3 asks for (trap 81).
    pub fn is_incomplete(&self, version: Version) -> bool {
        version == Version::V3 && self.disk_size.is_none()
    }

    /// Checks place and length of the snapshot's L1 table, as QEMU does before it uses the
    /// snapshot, not when it opens the image.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if the table is too long,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if it is unaligned or ends beyond 2^63 bytes.
    pub fn check_l1(&self, geometry: Geometry) -> Result<()> {
        let bytes = u64::from(self.l1_entries).saturating_mul(8);
        if bytes > MAX_L1_BYTES {
            return Err(Error::limit(format!(
                "the L1 table has {bytes} bytes, expected at most {MAX_L1_BYTES}"
            ))
            .structure(STRUCTURE));
        }
        let offset = self.l1_table_offset;
        let fits = offset.0.checked_add(bytes).is_some_and(|end| end <= MAX_FILE_BYTES);
        if !fits || !geometry.is_aligned(offset.0) {
            return Err(Error::corrupt(format!(
                "the L1 table is at {offset}, expected a multiple of the cluster size of {}",
                geometry.cluster_size()
            ))
            .structure(STRUCTURE));
        }
        Ok(())
    }

    /// The entry's bytes, padded to eight.
    ///
    /// The extra data is as long as the values need; with an instruction count or unknown extra
    /// data it needs the disk size too.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) without that disk size,
    /// [`Limit`](crate::ErrorKind::Limit) if id, name or extra data are too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let extra = self.extra_data()?;
        let mut out = Vec::new();
        out.put_u64(self.l1_table_offset.0);
        out.put_u32(self.l1_entries);
        out.put_u16(len_u16(self.id.len(), "a snapshot's id")?);
        out.put_u16(len_u16(self.name.len(), "a snapshot's name")?);
        out.put_u32(self.date_sec);
        out.put_u32(self.date_nsec);
        out.put_u64(self.vm_clock_nsec);
        // Who reads only this field must not see a part of the VM state.
        out.put_u32(u32::try_from(self.vm_state_size).unwrap_or(0));
        out.put_u32(check_extra_len(len_u32(extra.len(), "a snapshot's extra data")?)?);
        out.extend_from_slice(&extra);
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.name);
        out.pad_to_8();
        Ok(out)
    }

    fn extra_data(&self) -> Result<Vec<u8>> {
        let mut extra = Vec::new();
        let has_third = self.icount.is_some() || !self.unknown_extra.is_empty();
        if self.disk_size.is_some() || has_third || u32::try_from(self.vm_state_size).is_err() {
            extra.put_u64(self.vm_state_size);
        }
        match self.disk_size {
            Some(size) => extra.put_u64(size),
            None if has_third => {
                return Err(Error::usage("a snapshot with further extra data needs its disk size")
                    .structure(STRUCTURE));
            }
            None => {}
        }
        if has_third {
            extra.put_u64(self.icount.unwrap_or(u64::MAX));
            extra.extend_from_slice(&self.unknown_extra);
        }
        Ok(extra)
    }
}

/// The fields that every entry has.
struct Fixed {
    l1_table_offset: HostOffset,
    l1_entries: u32,
    id_len: u16,
    name_len: u16,
    date_sec: u32,
    date_nsec: u32,
    vm_clock_nsec: u64,
    vm_state_size: u32,
    extra_len: usize,
}

impl Fixed {
    fn parse(fields: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            l1_table_offset: HostOffset(fields.u64()?),
            l1_entries: fields.u32()?,
            id_len: fields.u16()?,
            name_len: fields.u16()?,
            date_sec: fields.u32()?,
            date_nsec: fields.u32()?,
            vm_clock_nsec: fields.u64()?,
            vm_state_size: fields.u32()?,
            extra_len: usize::try_from(check_extra_len(fields.u32()?)?).unwrap_or(usize::MAX),
        })
    }

    /// Entries start at multiples of eight bytes (trap 80).
    fn entry_len(&self) -> usize {
        Snapshot::FIXED_BYTES
            .saturating_add(self.extra_len)
            .saturating_add(self.id_len.into())
            .saturating_add(self.name_len.into())
            .next_multiple_of(8)
    }
}

fn check_extra_len(len: u32) -> Result<u32> {
    if len > MAX_SNAPSHOT_EXTRA {
        return Err(Error::limit(format!(
            "extra data of {len} bytes, expected at most {MAX_SNAPSHOT_EXTRA}"
        ))
        .structure(STRUCTURE));
    }
    Ok(len)
}

#[cfg(test)]
mod tests;
