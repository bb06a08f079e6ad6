//! What all scenarios are given: the program, a directory, and how large disks are.

use std::path::PathBuf;

/// What a scenario is given.
#[derive(Debug)]
pub(crate) struct Setting {
    /// The program to measure.
    pub(crate) qcowtool: PathBuf,
    /// A directory for its disks and results.
    pub(crate) dir: PathBuf,
    pub(crate) sizes: Sizes,
}

/// How large the disks are, in bytes where nothing else is said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Visible data of a fragmented chain.
    pub(crate) chain: u64,
    /// The raw disk without holes.
    pub(crate) dense: u64,
    /// Files in the real file system, and data of the disks with small and large clusters.
    pub(crate) tree: u64,
    /// Writes strewn over a sparse disk.
    pub(crate) strewn: u64,
    /// Disk of which only metadata is preallocated, with 64 KiB clusters and with 4 KiB ones.
    pub(crate) metadata: [&'static str; 2],
}

impl Sizes {
    /// In proportion to the data of the big chain.
    pub(crate) fn of(chain: u64) -> Self {
        Self { chain, dense: chain / 5 * 8, tree: chain / 5, strewn: 1000, metadata: ["1T", "64G"] }
    }

    /// For a first look.
    pub(crate) fn quick() -> Self {
        Self { metadata: ["64G", "2G"], strewn: 200, ..Self::of(256 << 20) }
    }
}
