//! The unit of work.

use crate::extent::{Extent, Reader};
use crate::io::Buffer;
use crate::{Error, Result};

/// Items start and end at multiples of this many bytes, unless they are all zeros. Clusters of
/// any size fit in without being cut.
pub(in crate::ops) const ITEM: u64 = 2 << 20;

/// Reads the item's bytes into `buffer`.
pub(in crate::ops) fn read_item<'b>(
    reader: &mut Reader,
    buffer: &'b mut Buffer,
    guest: u64,
    len: u64,
    extents: &[Extent],
) -> Result<&'b [u8]> {
    let len = usize::try_from(len).map_err(|_| Error::limit("a work item is too long"))?;
    let bytes = buffer.first(len)?;
    reader.read_extents(guest, extents, bytes)?;
    Ok(bytes)
}
