//! What is measured: disks, and the cases on each.

mod codecs;
mod create;
mod disks;
mod reflink;

use std::path::PathBuf;

use crate::Result;
use crate::measure::Case;
use crate::mount::Mount;

/// Disks that are made together, and the cases on them.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// The word that chooses it.
    pub(crate) name: &'static str,
    /// Makes the disks.
    pub(crate) make: fn(&Setting) -> Result<Made>,
}

/// All of them, in the order of the report. Each gives its room back before the next begins.
pub(crate) const SCENARIOS: [Scenario; 10] = [
    Scenario { name: "chain", make: disks::chain },
    Scenario { name: "dense", make: disks::dense },
    Scenario { name: "depth", make: disks::depth },
    Scenario { name: "clusters", make: disks::clusters },
    Scenario { name: "sparse", make: disks::sparse },
    Scenario { name: "reflink", make: reflink::make },
    Scenario { name: "codecs", make: codecs::make },
    Scenario { name: "empty", make: disks::empty },
    Scenario { name: "create", make: create::make },
    Scenario { name: "metadata", make: create::metadata },
];

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

/// A scenario that is ready to run, or cannot.
pub(crate) enum Made {
    Cases {
        cases: Vec<Case>,
        /// What the report should say of the disks.
        remark: Option<String>,
        /// What the disks are on, if not on the machine's file system.
        mount: Option<Mount>,
    },
    /// Why not.
    Skipped(String),
}

impl From<Vec<Case>> for Made {
    fn from(cases: Vec<Case>) -> Self {
        Self::Cases { cases, remark: None, mount: None }
    }
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

/// Bytes as people say them.
fn said(bytes: u64) -> String {
    match bytes >> 20 {
        mib if mib >= 10_240 => format!("{} GiB", mib >> 10),
        mib => format!("{mib} MiB"),
    }
}
