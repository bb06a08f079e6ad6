//! What is measured: disks, and the cases on each.

mod codecs;
mod create;
mod disks;
mod reflink;

use crate::failure::Result;
use crate::measure::Case;
use crate::mount::Mount;
use crate::setting::Setting;

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

/// Bytes as people say them.
fn said(bytes: u64) -> String {
    match bytes >> 20 {
        mib if mib >= 10_240 => format!("{} GiB", mib >> 10),
        mib => format!("{mib} MiB"),
    }
}
