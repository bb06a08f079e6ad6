//! What a repair does, step by step, and the update of the image that comes to.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::Result;
use crate::check::Structure;
use crate::image::update::Staged;
use crate::io::Storage;

/// What is done about one thing that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Action {
    /// The persistent bitmaps, which cannot be trusted, are no longer vouched for: QEMU takes them
    /// for lost.
    DropBitmaps,
    /// Guest data that is in a metadata cluster is copied to one of its own.
    MoveData,
    /// Extra data of a snapshot that nobody reads, because it is too much, is left out of the new table.
    CutExtraData,
    /// The snapshot table is written anew at the end of the file, with its entries completed, or without what is
    /// too much.
    WriteSnapshots,
    /// The header is made to name the new snapshot table.
    SwitchSnapshots,
    /// An entry that leads nowhere becomes one that says the same without leading there.
    DropEntry,
    /// A copied flag that lies is cleared.
    ClearCopied,
    /// A refcount that is too low is raised.
    RaiseRefcount,
    /// Refcount table and blocks are written anew at the end of the file.
    WriteRefcounts,
    /// The header is made to name the new refcount table.
    SwitchRefcounts,
    /// A refcount that is too high is lowered.
    LowerRefcount,
    /// A copied flag is set where the refcount is one.
    SetCopied,
    /// The dirty and corrupt bits, or autoclear bits that are not known, are cleared.
    ClearBits,
}

impl Action {
    /// What the step does, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DropBitmaps => "drop the persistent bitmaps, which cannot be trusted",
            Self::MoveData => "move data out of a cluster of metadata",
            Self::CutExtraData => "leave out what a snapshot has of extra data beyond 1024 bytes",
            Self::WriteSnapshots => "write a corrected snapshot table at the end of the file",
            Self::SwitchSnapshots => "switch to the new snapshot table",
            Self::DropEntry => "drop an entry that points to no cluster of the file",
            Self::ClearCopied => "clear the copied flag",
            Self::RaiseRefcount => "raise the refcount",
            Self::WriteRefcounts => "write new refcounts at the end of the file",
            Self::SwitchRefcounts => "switch to the new refcounts",
            Self::LowerRefcount => "lower the refcount",
            Self::SetCopied => "set the copied flag",
            Self::ClearBits => "clear the bits of the header that are not true any more",
        }
    }
}

/// One step of a repair. Offsets are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// To which structure.
    #[serde(serialize_with = "name")]
    pub structure: Structure,
    /// Index of the entry, or number of the cluster.
    pub index: u64,
    /// Where in the file it lies.
    pub host_offset: u64,
    /// The raw value before.
    pub from: u64,
    /// The raw value after.
    pub to: u64,
}

fn name<S: Serializer>(structure: &Structure, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(structure.as_str())
}

/// All steps in order, and the writes that carry them out. Adding a step to the list writes nothing;
/// whoever adds one adds its writes to `changes`.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) changes: Staged,
    pub(crate) steps: Vec<Step>,
    pub(crate) steps_left_out: u64,
    most: usize,
}

impl Plan {
    /// Nothing to do yet to `base`; lists at most `most` steps.
    pub(super) fn new(base: Arc<dyn Storage>, most: usize) -> Self {
        Self { changes: Staged::new(base), steps: Vec::new(), steps_left_out: 0, most }
    }

    /// The image as it will be.
    pub(crate) fn result(&self) -> Arc<dyn Storage> {
        self.changes.result()
    }

    /// Adds a step to the list.
    pub(super) fn step(&mut self, step: Step) {
        if self.steps.len() < self.most {
            self.steps.push(step);
        } else {
            // It counts steps that were made one by one, so it cannot wrap.
            self.steps_left_out = self.steps_left_out.wrapping_add(1);
        }
    }
}
