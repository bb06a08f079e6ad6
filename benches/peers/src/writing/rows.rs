//! What is measured: requests, and what is in the image before them.

/// The size of the disk.
pub(crate) const SIZE: u64 = 512 << 20;
/// Bytes of a request.
pub(crate) const BLOCK: usize = 4096;

/// Requests on a kind of image. The numbers and the requests are those of `benches/benches/writing`.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) before: Before,
    pub(crate) count: u64,
    /// From one request to the next.
    pub(crate) step: u64,
}

/// What is in the image before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    Nothing,
    Data,
    /// Nothing, but data in its backing file, a QCOW2 image: a raw one is none to qcow2-rs.
    Backing,
    /// Data that belongs to an internal snapshot too.
    Snapshot,
}

/// Steps over 4 clusters and a block: each request meets another cluster.
const NEW: u64 = (256 << 10) + 4096;
/// Jumps about in clusters that are met again and again.
const ANYWHERE: u64 = 4099 * 4096;

pub(crate) const ROWS: [Row; 4] = [
    Row { name: "E2 write, allocated", before: Before::Data, count: 100_000, step: ANYWHERE },
    Row { name: "E3 write, empty image", before: Before::Nothing, count: 2000, step: NEW },
    Row {
        name: "E4 write, over a backing file in QCOW2",
        before: Before::Backing,
        count: 2000,
        step: NEW,
    },
    Row { name: "E6 write, over a snapshot", before: Before::Snapshot, count: 2000, step: NEW },
];

impl Row {
    /// Where the requests go: round the disk, as those of `qemu-img bench` do.
    pub(crate) fn places(&self) -> impl Iterator<Item = u64> {
        (0..self.count).map(|number| number * self.step % SIZE)
    }
}

/// The byte that `qemu-img bench` writes, and all others where no number is.
pub(crate) const PATTERN: u8 = 0xa5;

/// Puts its place on the disk into each sector of a request's data, so that no sector can stand for another.
pub(crate) fn stamp(block: &mut [u8], at: u64) {
    for (sector, place) in block.chunks_exact_mut(512).zip((at..).step_by(512)) {
        sector[..8].copy_from_slice(&place.to_le_bytes());
    }
}
