//! Cluster size and L2 entry width, and every index computation that follows from them.
//!
//! Guest offsets and host offsets are types of their own, so that they cannot be mixed up.
//! Specification: QEMU's `docs/interop/qcow2.txt`, "General" and "Cluster mapping".

use std::fmt;

use super::MAX_L1_BYTES;
use crate::exact::Exact;
use crate::{Error, Remedy, Result};

/// Smallest cluster: 512 bytes.
pub const MIN_CLUSTER_BITS: u32 = 9;
/// Largest cluster: 2 MiB.
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Subclusters per cluster in images with extended L2 entries.
pub const SUBCLUSTERS_PER_CLUSTER: u32 = 32;
/// Smallest cluster that can have 32 subclusters of at least 512 bytes: 16 KiB.
pub const MIN_EXTENDED_L2_CLUSTER_BITS: u32 = 14;

/// The unit in which disks and files are measured, and writes are atomic: 512 bytes.
pub const SECTOR: u64 = 512;

/// `len` rounded up to whole sectors, as QEMU sees the length of a file that is no multiple: the rest of
/// the last sector reads as zeros. Ends at the last sector of 2^64 bytes.
///
/// ```
/// assert_eq!(qcow::format::whole_sectors(513), 1024);
/// ```
pub fn whole_sectors(len: u64) -> u64 {
    len.checked_next_multiple_of(SECTOR).unwrap_or(!511)
}

macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// This offset moved up by `bytes`, or an error if it would pass 64 bits.
            pub fn checked_add(self, bytes: u64) -> Result<Self> {
                self.0.checked_add(bytes).map(Self).ok_or_else(|| {
                    Error::corrupt(format!("offset {:#x} plus {bytes:#x} passes 64 bits", self.0))
                })
            }
        }

        impl From<$name> for u64 {
            fn from(offset: $name) -> u64 {
                offset.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

offset! {
    /// A byte offset on the guest's disk.
    GuestOffset
}
offset! {
    /// A byte offset in an image file.
    HostOffset
}

impl HostOffset {
    /// The place `bytes` further on in a file that is written.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if there is no such offset.
    #[inline]
    pub(crate) fn plus(self, bytes: u64) -> Result<Self> {
        self.0.plus(bytes).map(Self)
    }
}

/// A cluster of an image file that is written: its number, counted from 0. One that no file can have is a bug
/// of this crate's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClusterIndex(pub(crate) u64);

impl ClusterIndex {
    /// The first cluster that begins at or after the byte `offset`.
    pub(crate) fn after(offset: u64, geometry: Geometry) -> Self {
        Self(geometry.clusters_for(offset))
    }

    /// The cluster `count` clusters further on.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if there is no such cluster.
    pub(crate) fn plus(self, count: u64) -> Result<Self> {
        self.0.plus(count).map(Self)
    }

    /// Where it lies.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if that is past 64 bits.
    pub(crate) fn offset(self, geometry: Geometry) -> Result<HostOffset> {
        self.0.times(geometry.cluster_size()).map(HostOffset)
    }
}

/// Where a guest offset is looked up: which L1 entry, which L2 entry, which byte of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Index in the L1 table.
    pub l1_index: u64,
    /// Index in the L2 table.
    pub l2_index: u64,
    /// Byte in the cluster.
    pub in_cluster: u64,
}

/// Cluster size and L2 entry width of one image.
///
/// ```
/// use qcow::format::{Geometry, GuestOffset};
/// let geometry = Geometry::new(16, false)?;
/// assert_eq!(geometry.cluster_size(), 65536);
/// assert_eq!(geometry.l2_entries(), 8192);
/// assert_eq!(geometry.l2_coverage(), 512 << 20);
/// let position = geometry.position(GuestOffset((512 << 20) + 65536 + 7));
/// assert_eq!((position.l1_index, position.l2_index, position.in_cluster), (1, 1, 7));
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    extended_l2: bool,
}

impl Geometry {
    /// Clusters of `1 << cluster_bits` bytes, with 16-byte L2 entries if `extended_l2`.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) outside 9 to 21 bits, or below 14 with extended L2.
    pub fn new(cluster_bits: u32, extended_l2: bool) -> Result<Self> {
        if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
            return Err(Error::corrupt(format!(
                "cluster_bits is {cluster_bits}, expected {MIN_CLUSTER_BITS} to {MAX_CLUSTER_BITS}"
            )));
        }
        if extended_l2 && cluster_bits < MIN_EXTENDED_L2_CLUSTER_BITS {
            return Err(Error::corrupt(format!(
                "extended L2 entries need clusters of at least 16384 bytes, found {}",
                1u64 << cluster_bits
            )));
        }
        Ok(Self { cluster_bits, extended_l2 })
    }

    /// The nearest valid geometry, for values that were checked before.
    pub(super) fn nearest(cluster_bits: u32, extended_l2: bool) -> Self {
        let cluster_bits = cluster_bits.clamp(MIN_CLUSTER_BITS, MAX_CLUSTER_BITS);
        let extended_l2 = extended_l2 && cluster_bits >= MIN_EXTENDED_L2_CLUSTER_BITS;
        Self { cluster_bits, extended_l2 }
    }

    /// Binary logarithm of the cluster size, 9 to 21.
    pub fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Cluster size in bytes, 512 to 2 MiB.
    pub fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries are 16 bytes wide and clusters have 32 subclusters.
    pub fn extended_l2(self) -> bool {
        self.extended_l2
    }

    /// Width of an L2 entry in bytes: 8 or 16.
    pub fn l2_entry_size(self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Binary logarithm of the number of entries in an L2 table, which is one cluster long.
    pub fn l2_bits(self) -> u32 {
        // cluster_bits is at least 9, so this cannot wrap.
        self.cluster_bits.saturating_sub(if self.extended_l2 { 4 } else { 3 })
    }

    /// Entries in an L2 table.
    pub fn l2_entries(self) -> u64 {
        1 << self.l2_bits()
    }

    /// Guest bytes that one L2 table (one L1 entry) maps, at most 2^39.
    pub fn l2_coverage(self) -> u64 {
        self.cluster_size() << self.l2_bits()
    }

    /// Subcluster size in bytes; the cluster size if the image has no subclusters.
    pub fn subcluster_size(self) -> u64 {
        if self.extended_l2 { self.cluster_size() >> 5 } else { self.cluster_size() }
    }

    /// Where `offset` is looked up.
    pub fn position(self, offset: GuestOffset) -> Position {
        let cluster = offset.0 >> self.cluster_bits;
        Position {
            l1_index: cluster >> self.l2_bits(),
            l2_index: self.l2_index_of_cluster(cluster),
            in_cluster: self.offset_in_cluster(offset.0),
        }
    }

    /// The entry of its L2 table that maps guest cluster number `cluster`.
    pub fn l2_index_of_cluster(self, cluster: u64) -> u64 {
        cluster & self.l2_entries().wrapping_sub(1)
    }

    /// The part of `offset` below the cluster size.
    pub fn offset_in_cluster(self, offset: u64) -> u64 {
        offset & self.cluster_size().wrapping_sub(1)
    }

    /// Whether `offset` is a multiple of the cluster size.
    pub fn is_aligned(self, offset: u64) -> bool {
        self.offset_in_cluster(offset) == 0
    }

    /// Clusters needed for `bytes`, rounded up.
    pub fn clusters_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// L1 entries needed to map a disk of `virtual_size` bytes.
    pub fn l1_entries_for(self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(self.l2_coverage())
    }

    /// As [`l1_entries_for`](Self::l1_entries_for), for an image that is to be made.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if the L1 table would be longer than QEMU reads.
    pub(crate) fn new_l1_entries(self, virtual_size: u64) -> Result<u64> {
        let entries = self.l1_entries_for(virtual_size);
        if entries <= MAX_L1_BYTES >> 3 {
            return Ok(entries);
        }
        let most = self.l2_coverage().saturating_mul(MAX_L1_BYTES >> 3);
        Err(Error::limit(format!(
            "{virtual_size} bytes are too many for clusters of {} bytes, which allow {most}",
            self.cluster_size()
        ))
        .hint(Remedy::LargerClusters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn no_place_to_write_lies_past_64_bits() {
        assert_eq!(HostOffset(u64::MAX).plus(1).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(HostOffset(u64::MAX).plus(0).unwrap(), HostOffset(u64::MAX));
        let geometry = Geometry::new(16, false).unwrap();
        let (last, none) = (ClusterIndex((1 << 48) - 1), ClusterIndex(1 << 48));
        assert_eq!(last.offset(geometry).unwrap(), HostOffset(0xffff_ffff_ffff_0000));
        assert_eq!(none.offset(geometry).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(ClusterIndex(u64::MAX).plus(1).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(ClusterIndex::after(65_537, geometry), ClusterIndex(2));
    }
}
