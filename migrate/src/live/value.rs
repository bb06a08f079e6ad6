//! What is so, what is wanted, what would be done, and what was done.

use std::path::PathBuf;

use qcow::chain::Format;
use serde::{Deserialize, Serialize};

use crate::facts::{DiskFacts, DomainFacts};
use crate::setters::setters;

/// How a disk gets rid of its backing file, or to another place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Its image is filled with what the layers below hold.
    #[default]
    Pull,
    /// It is copied into a new image, which the guest uses from then on.
    Copy,
    /// The same for another reason: its image has to be elsewhere. What is below may stay below.
    Move,
}

impl Method {
    /// A new image is filled, and the guest uses it from then on.
    pub fn copies(self) -> bool {
        matches!(self, Self::Copy | Self::Move)
    }
}

/// What the operator wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How.
    pub method: Method,
    /// The new image of a copy; a name beside the old one if `None`.
    pub target: Option<PathBuf>,
    /// A disk that is moved has no backing file afterwards.
    pub standalone: bool,
    /// A disk that is moved is compared with what it was, while the guest stands still.
    pub compare: bool,
    /// Bytes a second.
    pub bandwidth: Option<u64>,
    /// Seconds after which a job that has not ended is aborted.
    pub timeout: Option<u64>,
}

setters!(Options {
    method: Method,
    standalone: bool,
    compare: bool,
} into {
    target: Option<PathBuf>,
    bandwidth: Option<u64>,
    timeout: Option<u64>,
});

/// All that a plan rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The guest.
    pub domain: DomainFacts,
    /// Its disk.
    pub disk: DiskFacts,
    /// What the guest discards is given back to the host.
    pub discard: bool,
    /// Bytes that either way takes at most; `None` if the chain is incomplete.
    pub needs: Option<Needs>,
    /// Where something will grow.
    pub place: Place,
}

/// Bytes that flattening takes at most. The guest may write more meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Needs {
    /// Of data that only the layers below hold, in whole clusters.
    pub below: u64,
    /// By which the active layer grows, tables included.
    pub pull: u64,
    /// Length of a new image with everything, tables included.
    pub whole: u64,
}

/// The file that will grow, and the room for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The active layer, or the new image.
    pub path: PathBuf,
    /// Something has the new image's name.
    pub taken: bool,
    /// Free bytes; those of the whole device if it is one. `None` if that could not be found out.
    pub available: Option<u64>,
    /// Why no file can be made there.
    pub unusable: Option<String>,
}

/// A layer below the active one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Below {
    /// Its path.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
    /// It was deleted; the guest's process holds it open.
    pub deleted: bool,
}

/// What would be done. A value: making it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LivePlan {
    /// The guest's name.
    pub domain: String,
    /// Its UUID.
    pub uuid: String,
    /// The disk's name in the guest.
    pub disk: String,
    /// How the disk gets rid of its backing file.
    pub method: Method,
    /// Its image.
    pub image: PathBuf,
    /// The image that has no backing file afterwards: the same, or the new one.
    pub becomes: PathBuf,
    /// The format of both.
    #[serde(default = "qcow2")]
    pub format: Format,
    /// The new image has the old one's backing file, and only what the old one holds itself is copied.
    #[serde(default)]
    pub keeps_below: bool,
    /// Both are compared before the guest runs on the new one.
    #[serde(default)]
    pub compare: bool,
    /// Size of the guest's disk in bytes.
    pub virtual_size: u64,
    /// The disk's backing files, the uppermost first. None of it is written to or removed.
    pub below: Vec<Below>,
    /// Bytes of data that are copied, at most, if the guest writes nothing meanwhile.
    pub copied_bytes: u64,
    /// Bytes by which `becomes` grows, at most.
    pub grows_bytes: u64,
    /// Its length afterwards, at most.
    pub length_bytes: u64,
    /// Free bytes there now.
    pub available_bytes: Option<u64>,
    /// Bytes a second.
    pub bandwidth: Option<u64>,
    /// Seconds after which the job is aborted.
    pub timeout: Option<u64>,
    /// The tables on the disk can be compared with what all layers held before: nothing that the guest does
    /// makes them hold less.
    pub tables_compared: bool,
    /// The guest ran when it was looked at; otherwise it was paused.
    pub running: bool,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Of a plan that says nothing else: there was no other.
fn qcow2() -> Format {
    Format::Qcow2
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Flattened {
    /// The guest's name.
    pub domain: String,
    /// Its UUID.
    pub uuid: String,
    /// The disk's name in the guest.
    pub disk: String,
    /// How.
    pub method: Method,
    /// The disk's image now. It has no backing file, unless one was to be kept.
    pub image: PathBuf,
    /// Its previous backing files, unless they were to be kept; for a copy, the old image first. All of them are
    /// unchanged.
    pub left: Vec<PathBuf>,
    /// Length of the image's file in bytes.
    pub length_bytes: u64,
    /// Milliseconds from the first question to the last.
    pub elapsed_ms: u64,
    /// Milliseconds for which the guest stood still, so that all was written to the disk; 0 for a copy.
    pub paused_ms: u64,
    /// The tables on the disk were compared with what all layers held before.
    pub tables_compared: bool,
    /// All of the guest's disk was compared with what it was, while the guest stood still.
    #[serde(default)]
    pub compared: bool,
    /// This run went on with an earlier one that had been cut off.
    pub went_on: bool,
}
