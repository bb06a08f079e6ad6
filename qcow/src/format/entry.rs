//! L1 and L2 entries: what the mapping tables say about a range of the guest's disk.

use super::raw_entry::{COPIED, OFFSET};
use super::{CompressedSpan, Geometry, HOST_OFFSET_LIMIT, HostOffset, RawL2Entry, Version};
use crate::{Error, Result};

const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const STRUCTURE: &str = "L2 table";

/// An entry of an L1 table: where one L2 table lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// An entry for the L2 table at `offset`, of which bits 9 to 55 count. `copied` says that its refcount is exactly one.
    pub fn new(offset: HostOffset, copied: bool) -> Self {
        Self((offset.0 & OFFSET) | if copied { COPIED } else { 0 })
    }

    /// Where the L2 table lies; 0 if there is none. Hostile images have unaligned ones: see
    /// [`l2_table`](Self::l2_table).
    pub fn offset(self) -> HostOffset {
        HostOffset(self.0 & OFFSET)
    }

    /// Where the L2 table lies, if there is one. Without one, the backing file decides (trap 35).
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the offset is not aligned to clusters (trap 33).
    pub fn l2_table(self, geometry: Geometry) -> Result<Option<HostOffset>> {
        let offset = self.offset();
        if !geometry.is_aligned(offset.0) {
            return Err(unaligned("L2 table", offset, geometry).structure("L1 table"));
        }
        Ok((!self.is_empty()).then_some(offset))
    }

    /// The entry with the copied flag set or cleared.
    #[must_use]
    pub fn with_copied(self, copied: bool) -> Self {
        Self(if copied { self.0 | COPIED } else { self.0 & !COPIED })
    }

    /// Whether the entry says that the L2 table's refcount is exactly one (traps 41, 42).
    pub fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// The reserved bits, which should be zero. They do not stop a read (trap 34).
    pub fn reserved(self) -> u64 {
        self.0 & L1_RESERVED
    }

    /// Whether there is no L2 table.
    pub fn is_empty(self) -> bool {
        self.0 & OFFSET == 0
    }
}

/// What decides how an image's L2 entries are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRules {
    /// Cluster size and width of entries.
    pub geometry: Geometry,
    /// Version 2 has no zero flag.
    pub version: Version,
    /// Whether guest data lies in an external data file.
    pub data_file: bool,
}

/// What an L2 entry says about its cluster.
///
/// ```
/// use qcow::format::{EntryRules, Geometry, HostOffset, L2Entry, Version};
/// let rules = EntryRules {
///     geometry: Geometry::new(16, false)?,
///     version: Version::V3,
///     data_file: false,
/// };
/// let data = L2Entry::Data { host: HostOffset(0x50000), copied: true };
/// assert_eq!(L2Entry::decode(0x8000_0000_0005_0000, 0, &rules)?, data);
/// assert_eq!(L2Entry::decode(1, 0, &rules)?, L2Entry::Zero { host: None });
/// assert_eq!(data.encode(&rules)?, (0x8000_0000_0005_0000, 0));
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L2Entry {
    /// The backing file decides; zeros without one.
    Unallocated,
    /// Zeros, whatever the backing file says.
    Zero {
        /// The cluster that is kept for later, if any.
        host: Option<HostOffset>,
    },
    /// A cluster of data.
    Data {
        /// Where it lies, in the image or in the external data file.
        host: HostOffset,
        /// Whether its refcount is said to be exactly one.
        copied: bool,
    },
    /// Compressed data.
    Compressed(CompressedSpan),
    /// Subclusters that differ from each other, in an image with extended L2 entries; also
    /// allocated clusters of which none or all are zero. Bit 0 is the first subcluster, and no
    /// bit is set in both maps.
    Subclusters {
        /// The cluster, if any.
        host: Option<HostOffset>,
        /// Subclusters that have data in the cluster.
        allocated: u32,
        /// Subclusters that read as zeros.
        zero: u32,
        /// Whether the cluster's refcount is said to be exactly one.
        copied: bool,
    },
}

impl L2Entry {
    /// Reads an entry. `bitmap` is the second half of an extended entry, else ignored.
    ///
    /// Reserved bits are ignored (trap 34; see [`RawL2Entry::reserved`]). Extended
    /// entries that need no subclusters decode to the plain variants. In an image with an external
    /// data file the caller compares host and guest offset (trap 111).
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt), without the entry's index, for an unaligned offset
    /// (trap 33), a zero flag in version 2 (trap 31), a compressed cluster in an image with an
    /// external data file (trap 59), and subcluster bits that contradict each other or the offset
    /// (traps 62, 63).
    #[inline]
    pub fn decode(entry: u64, bitmap: u64, rules: &EntryRules) -> Result<Self> {
        let raw = RawL2Entry { word: entry, bitmap };
        // Compressed comes first: its bit 0 belongs to the offset (trap 29).
        if raw.is_compressed() {
            if rules.data_file {
                return Err(no_compression());
            }
            let bits = rules.geometry.cluster_bits();
            return Ok(Self::Compressed(CompressedSpan::decode(entry, bits)));
        }
        let (host, copied) = (raw.offset(), raw.is_copied());
        // Offset 0 is a place only in an external data file (trap 32).
        let allocated = host.0 != 0 || (rules.data_file && copied);
        if rules.geometry.extended_l2() {
            return Self::decode_extended(allocated.then_some(host), copied, bitmap, rules);
        }
        if raw.has_zero_flag() {
            if rules.version == Version::V2 {
                return Err(zero_in_v2());
            }
            let host = (host.0 != 0).then_some(host);
            check_aligned(host, rules)?;
            return Ok(Self::Zero { host });
        }
        if !allocated {
            return Ok(Self::Unallocated);
        }
        check_aligned(Some(host), rules)?;
        Ok(Self::Data { host, copied })
    }

    #[inline]
    fn decode_extended(
        host: Option<HostOffset>,
        copied: bool,
        bitmap: u64,
        rules: &EntryRules,
    ) -> Result<Self> {
        let (allocated, zero) = split(bitmap);
        check_subclusters(host, allocated, zero)?;
        check_aligned(host, rules)?;
        Ok(match host {
            None if zero == 0 => Self::Unallocated,
            None if zero == u32::MAX => Self::Zero { host: None },
            Some(host) if allocated == u32::MAX => Self::Data { host, copied },
            host => Self::Subclusters { host, allocated, zero, copied },
        })
    }

    /// The entry and its bitmap, which is 0 in images without extended L2 entries.
    ///
    /// An allocated [`Zero`](Self::Zero) cluster is written without the copied flag, because the
    /// variant does not carry it; use [`RawL2Entry::with_copied`] where its refcount is one.
    ///
    /// # Errors
    /// As [`decode`](Self::decode) for what the image cannot express,
    /// [`Usage`](crate::ErrorKind::Usage) for host offset 0 or subclusters in an image that has
    /// none, [`Limit`](crate::ErrorKind::Limit) for offsets out of range.
    pub fn encode(&self, rules: &EntryRules) -> Result<(u64, u64)> {
        let extended = rules.geometry.extended_l2();
        match *self {
            Self::Unallocated => Ok((0, 0)),
            Self::Zero { .. } if rules.version == Version::V2 => Err(zero_in_v2()),
            Self::Zero { host } => {
                let entry = host.map_or(Ok(0), |host| standard(host, false, rules))?;
                Ok(if extended {
                    (entry, u64::from(u32::MAX) << 32)
                } else {
                    (entry | RawL2Entry::ZEROS.word, 0)
                })
            }
            Self::Data { host, copied } => {
                let bitmap = if extended { u32::MAX.into() } else { 0 };
                Ok((standard(host, copied, rules)?, bitmap))
            }
            Self::Compressed(_) if rules.data_file => Err(no_compression()),
            Self::Compressed(span) => {
                let bits = rules.geometry.cluster_bits();
                Ok((CompressedSpan::encode(span.host, span.len, bits)?, 0))
            }
            Self::Subclusters { .. } if !extended => {
                Err(Error::usage("subclusters in an image without extended L2 entries")
                    .structure(STRUCTURE))
            }
            Self::Subclusters { host, allocated, zero, copied } => {
                check_subclusters(host, allocated, zero)?;
                let entry = host.map_or(Ok(0), |host| standard(host, copied, rules))?;
                Ok((entry, u64::from(zero) << 32 | u64::from(allocated)))
            }
        }
    }
}

/// A standard entry for the cluster at `host`.
fn standard(host: HostOffset, copied: bool, rules: &EntryRules) -> Result<u64> {
    check_aligned(Some(host), rules)?;
    if host.0 >= HOST_OFFSET_LIMIT {
        return Err(Error::limit(format!("host offset {host} is beyond 2^56")).structure(STRUCTURE));
    }
    if host.0 == 0 && !(rules.data_file && copied) {
        return Err(Error::usage("host offset 0 cannot hold a cluster").structure(STRUCTURE));
    }
    Ok(host.0 | if copied { COPIED } else { 0 })
}

/// The low half says allocated, the high half says zero (trap 61).
#[inline]
fn split(bitmap: u64) -> (u32, u32) {
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
    (half(bitmap), half(bitmap >> 32))
}

#[inline]
fn check_aligned(host: Option<HostOffset>, rules: &EntryRules) -> Result<()> {
    match host {
        Some(host) if !rules.geometry.is_aligned(host.0) => {
            Err(unaligned("cluster", host, rules.geometry).structure(STRUCTURE))
        }
        _ => Ok(()),
    }
}

/// One contradiction makes the whole entry invalid (traps 62, 63).
#[inline]
fn check_subclusters(host: Option<HostOffset>, allocated: u32, zero: u32) -> Result<()> {
    if allocated & zero == 0 && (host.is_some() || allocated == 0) {
        return Ok(());
    }
    Err(bad_subclusters(host, allocated, zero))
}

#[cold]
fn bad_subclusters(host: Option<HostOffset>, allocated: u32, zero: u32) -> Error {
    Error::corrupt(if host.is_none() {
        format!("subclusters {allocated:#010x} are allocated, but the cluster has no offset")
    } else {
        format!("subclusters {:#010x} are both allocated and zero", allocated & zero)
    })
    .structure(STRUCTURE)
}

#[cold]
fn unaligned(what: &str, offset: HostOffset, geometry: Geometry) -> Error {
    Error::corrupt(format!(
        "the {what} is at {offset}, expected a multiple of the cluster size of {}",
        geometry.cluster_size()
    ))
}

#[cold]
fn zero_in_v2() -> Error {
    Error::corrupt("the zero flag is set, but version 2 has none").structure(STRUCTURE)
}

#[cold]
fn no_compression() -> Error {
    Error::corrupt("compressed cluster in an image with an external data file").structure(STRUCTURE)
}

#[cfg(test)]
mod tests;
