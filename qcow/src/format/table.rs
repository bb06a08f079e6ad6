//! Tables of 64-bit entries: L1, L2, refcount and bitmap tables.

use byteorder::{BigEndian, ByteOrder};

use super::{Geometry, RawL2Entry};
use crate::exact::to_usize;
use crate::{Error, Result};

/// The entries of a table, in order. Bytes after the last whole entry are ignored.
///
/// ```
/// use qcow::format::{decode_table, encode_table};
/// let entries = [1, 0x8000_0000_0005_0000];
/// assert_eq!(decode_table(&encode_table(&entries)), entries);
/// ```
pub fn decode_table(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(BigEndian::read_u64).collect()
}

/// The bytes of a table.
pub fn encode_table(entries: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; entries.len().saturating_mul(8)];
    for (field, entry) in bytes.chunks_exact_mut(8).zip(entries) {
        BigEndian::write_u64(field, *entry);
    }
    bytes
}

/// The L2 entry at `index` of an L2 table's bytes, with its subcluster bitmap (0 if the image has
/// none). An entry beyond the end of `bytes` is empty, because images may be cut short inside
/// an L2 table and read as zeros from there (trap 36).
pub fn raw_l2_entry(bytes: &[u8], index: u64, geometry: Geometry) -> RawL2Entry {
    let start = byte_of(index, geometry);
    let end = start.saturating_add(to_usize(geometry.l2_entry_size())).min(bytes.len());
    RawL2Entry::read(bytes.get(start..end).unwrap_or_default())
}

/// Writes the L2 entry at `index` of an L2 table's bytes, with its subcluster bitmap if the image
/// has them.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if `index` is beyond the end of `bytes`.
pub fn set_raw_l2_entry(
    bytes: &mut [u8],
    index: u64,
    entry: RawL2Entry,
    geometry: Geometry,
) -> Result<()> {
    let start = byte_of(index, geometry);
    let len = to_usize(geometry.l2_entry_size());
    let table_len = bytes.len();
    let fields = bytes.get_mut(start..start.saturating_add(len)).ok_or_else(|| {
        Error::usage(format!("index is beyond a table of {table_len} bytes"))
            .structure("L2 table")
            .index(index)
    })?;
    entry.write(fields);
    Ok(())
}

/// Where the entry at `index` starts.
fn byte_of(index: u64, geometry: Geometry) -> usize {
    usize::try_from(index.saturating_mul(geometry.l2_entry_size())).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
