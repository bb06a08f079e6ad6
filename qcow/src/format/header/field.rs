//! Where the header keeps what is changed in place, in bytes from the start of the image.
//! Specification: "Header".

use super::super::HostOffset;

/// The version, four bytes.
pub(crate) const VERSION: u64 = 4;
/// Size of the guest's disk, eight bytes.
pub(crate) const SIZE: u64 = 24;
/// Entries in the L1 table, four bytes, and its offset behind them.
pub(crate) const L1: u64 = 36;
/// Offset of the refcount table, eight bytes, and its length in clusters behind it.
pub(crate) const REFCOUNT_TABLE: u64 = 48;
/// Length of the refcount table in clusters, four bytes.
pub(crate) const REFCOUNT_TABLE_CLUSTERS: u64 = 56;
/// Entries in the snapshot table, four bytes, and its offset behind them.
pub(crate) const SNAPSHOT_COUNT: u64 = 60;
/// Offset of the snapshot table, eight bytes.
pub(crate) const SNAPSHOTS: u64 = 64;
/// Incompatible feature bits, eight bytes, from version 3 on.
pub(crate) const INCOMPATIBLE: u64 = 72;
/// Autoclear feature bits, eight bytes, from version 3 on.
pub(crate) const AUTOCLEAR: u64 = 88;

/// A change of the header that is one write within its first sector, so that it is there as a whole
/// or not at all (trap 27).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeaderPatch {
    /// Where the bytes go.
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

impl HeaderPatch {
    /// Names another refcount table, `clusters` long.
    pub(crate) fn refcount_table(table: HostOffset, clusters: u32) -> Self {
        let mut bytes = table.0.to_be_bytes().to_vec();
        bytes.extend_from_slice(&clusters.to_be_bytes());
        Self { offset: REFCOUNT_TABLE, bytes }
    }

    /// Sets the size of the guest's disk.
    pub(crate) fn size(size: u64) -> Self {
        Self { offset: SIZE, bytes: size.to_be_bytes().to_vec() }
    }

    /// Names another L1 table of this many entries.
    pub(crate) fn l1_table(table: HostOffset, entries: u32) -> Self {
        let mut bytes = entries.to_be_bytes().to_vec();
        bytes.extend_from_slice(&table.0.to_be_bytes());
        Self { offset: L1, bytes }
    }

    /// Names another snapshot table of this many entries.
    pub(crate) fn snapshots(table: HostOffset, count: u32) -> Self {
        let mut bytes = count.to_be_bytes().to_vec();
        bytes.extend_from_slice(&table.0.to_be_bytes());
        Self { offset: SNAPSHOT_COUNT, bytes }
    }

    /// Names another snapshot table of as many entries.
    pub(crate) fn snapshot_table(table: HostOffset) -> Self {
        Self { offset: SNAPSHOTS, bytes: table.0.to_be_bytes().to_vec() }
    }

    /// Sets all incompatible feature bits.
    pub(crate) fn incompatible(bits: u64) -> Self {
        Self { offset: INCOMPATIBLE, bytes: bits.to_be_bytes().to_vec() }
    }

    /// Sets all autoclear feature bits.
    pub(crate) fn autoclear(bits: u64) -> Self {
        Self { offset: AUTOCLEAR, bytes: bits.to_be_bytes().to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::tests::{in_cluster, sample};
    use crate::format::{Autoclear, Header, Incompatible, Version};

    #[test]
    fn what_is_patched_is_what_the_parser_reads() {
        let patched = |patch: HeaderPatch| {
            let header = sample(Version::V3);
            let mut bytes = in_cluster(&header, &header.to_bytes().unwrap());
            let at = usize::try_from(patch.offset).unwrap();
            assert!(at + patch.bytes.len() <= 104, "within the header, and so within a sector");
            bytes[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
            Header::parse(&bytes).unwrap()
        };
        let header = patched(HeaderPatch::refcount_table(HostOffset(0x70000), 3));
        assert_eq!(header.refcount_table_offset, HostOffset(0x70000));
        assert_eq!(header.refcount_table_clusters, 3);
        let header = patched(HeaderPatch::snapshot_table(HostOffset(0x90000)));
        assert_eq!(header.snapshots_offset, HostOffset(0x90000));
        let header = patched(HeaderPatch::size(0x1234_5600));
        assert_eq!(header.virtual_size(), 0x1234_5600);
        let header = patched(HeaderPatch::l1_table(HostOffset(0xb0000), 5000));
        assert_eq!((header.l1_table_offset, header.l1_entries), (HostOffset(0xb0000), 5000));
        let header = patched(HeaderPatch::snapshots(HostOffset(0xc0000), 2));
        assert_eq!((header.snapshots_offset, header.snapshot_count), (HostOffset(0xc0000), 2));
        let header = patched(HeaderPatch::incompatible(1));
        assert_eq!(header.incompatible, Incompatible::DIRTY);
        let header = patched(HeaderPatch::autoclear(1));
        assert_eq!(header.autoclear, Autoclear::BITMAPS);
    }
}
