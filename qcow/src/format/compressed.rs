//! The descriptor of a compressed cluster, whose fields' widths depend on the cluster size.

use super::{HOST_OFFSET_LIMIT, HostOffset, RawL2Entry};
use crate::{Error, Result};

/// The length counts in sectors of this many bytes, whatever the cluster size.
const SECTOR_BITS: u32 = 9;
const SECTOR: u64 = 1 << SECTOR_BITS;

/// Where a compressed cluster's data lies.
///
/// It may start at any byte, cross host clusters, and run past the end of the file (trap 45).
///
/// ```
/// use qcow::format::{CompressedSpan, HostOffset};
/// let entry = CompressedSpan::encode(HostOffset(0x50123), 1000, 16)?;
/// let span = CompressedSpan::decode(entry, 16);
/// assert_eq!(span.host, HostOffset(0x50123));
/// // The length is known to the end of a sector.
/// assert_eq!(span.len, 3 * 512 - 0x123);
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompressedSpan {
    /// Where the data starts.
    pub host: HostOffset,
    /// Upper bound of the data's length in bytes: up to the end of its last sector (trap 44).
    pub len: u64,
}

impl CompressedSpan {
    /// Reads a descriptor. Every bit pattern is one; flag bits 62 and 63 are ignored.
    #[inline]
    pub fn decode(entry: u64, cluster_bits: u32) -> Self {
        let offset_bits = offset_bits(cluster_bits);
        let offset = entry & low_bits(offset_bits);
        let sectors = (entry & low_bits(62)).checked_shr(offset_bits).unwrap_or_default();
        // At most 2^54 sectors, so nothing can wrap.
        let end = sectors.saturating_add(1).saturating_mul(SECTOR);
        Self { host: HostOffset(offset), len: end.saturating_sub(offset % SECTOR) }
    }

    /// The descriptor of `len` bytes (at least 1) at `host`, with the compressed flag set and the
    /// copied flag clear (trap 53).
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if a field is too narrow: the offset, or a length of
    /// more than about two clusters.
    pub fn encode(host: HostOffset, len: u64, cluster_bits: u32) -> Result<u64> {
        let offset_bits = offset_bits(cluster_bits);
        let limit = |message: String| Error::limit(message).structure("compressed cluster");
        let highest = low_bits(offset_bits).min(HOST_OFFSET_LIMIT.saturating_sub(1));
        if host.0 > highest {
            return Err(limit(format!(
                "host offset {host} is too high, expected at most {highest:#x}"
            )));
        }
        let last = len.checked_sub(1).and_then(|len| len.checked_add(host.0)).ok_or_else(|| {
            Error::usage(format!("length {len} is out of range")).structure("compressed cluster")
        })?;
        let sectors = (last >> SECTOR_BITS).saturating_sub(host.0 >> SECTOR_BITS);
        let most = low_bits(62_u32.saturating_sub(offset_bits));
        if sectors > most {
            return Err(limit(format!(
                "{len} bytes take {sectors} more sectors, expected at most {most}"
            )));
        }
        Ok(RawL2Entry::compressed(sectors << offset_bits | host.0))
    }
}

/// Width of the offset: 62 - (cluster_bits - 8) (trap 43).
#[inline]
fn offset_bits(cluster_bits: u32) -> u32 {
    62_u32.saturating_sub(cluster_bits.saturating_sub(8))
}

/// A mask of the lowest `bits`, at most 64.
#[inline]
fn low_bits(bits: u32) -> u64 {
    u64::MAX.checked_shr(64_u32.saturating_sub(bits)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
