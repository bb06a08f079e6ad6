//! What is measured: requests, and images.

/// The size of the disk.
pub(crate) const SIZE: u64 = 512 << 20;

/// A kind of request on a kind of image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) how: How,
    pub(crate) count: u64,
    /// From one request to the next.
    pub(crate) step: u64,
    /// Length of a request.
    pub(crate) len: u64,
    /// Options of the image.
    pub(crate) options: &'static str,
    pub(crate) size: u64,
    pub(crate) backing: bool,
    pub(crate) before: Before,
    /// A flush after so many requests; 0 only at the end.
    pub(crate) flush: u64,
    /// Bytes of L2 tables in memory, if not the default.
    pub(crate) cache: u64,
}

/// What requests do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Read,
    Write,
    /// Seven reads to three writes, of 4 to 64 KiB, and a discard in twenty.
    Mixed,
}

/// What is in the image before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    Nothing,
    Data,
    Compressed,
    Snapshot,
    /// Tables for all of it, and no data.
    Tables,
}

/// Steps over 4 clusters and a page: each request meets another cluster.
const NEW: u64 = (256 << 10) + 4096;
/// Jumps about in clusters that are met again and again.
const ANYWHERE: u64 = 4099 * 4096;

const EMPTY: Row = Row {
    name: "",
    how: How::Write,
    count: 2000,
    step: NEW,
    len: 4096,
    options: "",
    size: SIZE,
    backing: false,
    before: Before::Nothing,
    flush: 0,
    cache: 0,
};

/// The numbers are those of the design.
pub(crate) const ROWS: [Row; 15] = [
    Row {
        name: "E1 read, allocated",
        how: How::Read,
        count: 100_000,
        step: ANYWHERE,
        before: Before::Data,
        ..EMPTY
    },
    Row {
        name: "E2 write, allocated",
        count: 100_000,
        step: ANYWHERE,
        before: Before::Data,
        ..EMPTY
    },
    Row { name: "E3 write, empty image", ..EMPTY },
    Row { name: "E4 write, over a backing file", backing: true, ..EMPTY },
    Row {
        name: "E5 the same, 32 subclusters in 128 KiB",
        backing: true,
        options: "cluster_size=128k,extended_l2=on",
        ..EMPTY
    },
    Row { name: "E6 write, over a snapshot", before: Before::Snapshot, ..EMPTY },
    Row { name: "E7 write, over compressed clusters", before: Before::Compressed, ..EMPTY },
    Row { name: "E8 write, empty image, a flush after each", flush: 1, ..EMPTY },
    Row { name: "E8 write, empty image, a flush after 32", flush: 32, ..EMPTY },
    Row {
        name: "E8 write, allocated, a flush after each",
        flush: 1,
        count: 20_000,
        step: ANYWHERE,
        before: Before::Data,
        ..EMPTY
    },
    Row {
        name: "E9 read, 256 GiB, 1 MiB of 32 MiB of tables in memory",
        how: How::Read,
        count: 50_000,
        step: 262_147 * 4096,
        size: 256 << 30,
        before: Before::Tables,
        cache: 1 << 20,
        ..EMPTY
    },
    Row {
        name: "E10 write 1 MiB in order, empty image",
        count: 512,
        step: 1 << 20,
        len: 1 << 20,
        ..EMPTY
    },
    Row {
        name: "E11 mixed, 4 to 64 KiB",
        how: How::Mixed,
        count: 20_000,
        step: ANYWHERE,
        before: Before::Data,
        ..EMPTY
    },
    Row {
        name: "E12 write, empty image, clusters of 512 bytes",
        options: "cluster_size=512",
        ..EMPTY
    },
    Row { name: "E12 write, empty image, clusters of 4 KiB", options: "cluster_size=4k", ..EMPTY },
];
