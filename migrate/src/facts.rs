//! What is so on both hosts, as values: everything that a [`plan`](crate::plan) rests on.
//!
//! Facts are collected by `probe` and are never guessed: what could not be found out is `None`, or says
//! why. All sizes are in bytes, all times in nanoseconds since 1970.

use serde::{Deserialize, Serialize};

mod ability;
mod directory;
mod disk;
mod domain;
mod file;
mod host;
mod route;

pub use ability::{
    Abilities, Certificate, CertificateFile, Cpu, CpuFit, GuestKind, Resources, Setup,
};
pub(crate) use directory::above;
pub use directory::{DirectoryRights, MissingDirectory};
pub use disk::*;
pub use domain::{DomainFacts, DomainState};
pub use file::{FileFacts, FilePlace, FileRole};
pub use host::{HostFacts, PoolFacts, Version, VolumeFacts};
pub use route::Route;

/// Both hosts, the guest and its disks at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Facts {
    /// The host that the guest is on.
    pub source: HostFacts,
    /// The host that it shall go to.
    pub destination: HostFacts,
    /// The guest.
    pub domain: DomainFacts,
    /// A domain of the same name or UUID at the destination, in words.
    pub clash: Option<String>,
    /// The guest's disks, in the order of its XML.
    pub disks: Vec<DiskFacts>,
    /// The files that it has or needs besides its disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileFacts>,
    /// Directories of targets that the destination does not have but that can be made, those above before those
    /// below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingDirectory>,
}

impl Facts {
    /// The layers of the disk of this name as the headers tell them, the active one first; none if there is
    /// no such disk, or no image to look into.
    pub fn layers(&self, target: &str) -> &[LayerFacts] {
        let disk = self.disks.iter().find(|disk| disk.target == target);
        disk.and_then(|disk| disk.chain.as_ref()).map_or(&[], |chain| &chain.layers)
    }
}
