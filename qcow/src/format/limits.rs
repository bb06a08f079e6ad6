//! QEMU's limits. An image within them opens; an image beyond them is refused before any
//! memory is reserved for it.

/// Largest L1 table, 32 MiB (4,194,304 entries).
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table, 8 MiB.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// Most internal snapshots.
pub const MAX_SNAPSHOTS: u32 = 65_536;
/// Largest snapshot table in bytes, 64 MiB.
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 64 << 20;
/// Most extra data in one snapshot table entry, in bytes.
pub const MAX_SNAPSHOT_EXTRA: u32 = 1024;

/// Most bitmaps.
pub const MAX_BITMAPS: u32 = 65_535;
/// Largest bitmap directory in bytes, 64 MiB less 1 KiB.
pub const MAX_BITMAP_DIRECTORY_BYTES: u64 = MAX_BITMAPS as u64 * 1024;
/// Longest bitmap name in bytes.
pub const MAX_BITMAP_NAME: u16 = 1023;
/// Most entries in one bitmap table.
pub const MAX_BITMAP_TABLE_ENTRIES: u32 = 0x0800_0000;
/// Most bytes that the clusters of one bitmap may add up to, 512 MiB.
pub const MAX_BITMAP_BYTES: u64 = 512 << 20;
/// Finest bitmap granularity, as a binary logarithm: 512 bytes for each bit.
pub const MIN_BITMAP_GRANULARITY_BITS: u8 = 9;
/// Coarsest bitmap granularity, as a binary logarithm: 2 GiB for each bit.
pub const MAX_BITMAP_GRANULARITY_BITS: u8 = 31;

/// Longest backing file name in bytes. The room left in the first cluster limits it further.
pub const MAX_BACKING_NAME: u32 = 1023;
/// Longest backing format name in bytes.
pub const MAX_BACKING_FORMAT: usize = 15;

/// Host offsets of tables and clusters are below this: 2^56.
pub const HOST_OFFSET_LIMIT: u64 = 1 << 56;
/// End of the largest file: tables may not reach beyond 2^63 - 1 bytes.
pub const MAX_FILE_BYTES: u64 = u64::MAX >> 1;
