//! What is told while a plan is carried out, and at its end.

use std::path::PathBuf;

use qcow::Observer;
use serde::{Deserialize, Serialize};

use crate::driver::JobProgress;
use crate::plan::{CopyMode, Mode, Warning};

/// Is told what happens. Called from the thread that runs the plan, whichever that is.
pub trait Report: Send + Sync {
    /// A phase begins.
    fn phase(&self, phase: Phase);
    /// How far libvirt is.
    fn job(&self, job: &JobProgress);
    /// Something that the operator should know.
    fn note(&self, text: &str);
    /// Is told how far files that we copy or read are.
    fn observer(&self) -> &dyn Observer;
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Base copies and new images are made and verified.
    Prepare,
    /// libvirt moves the guest.
    Migrate,
    /// A guest that is shut off, and whose disks were copied, is defined.
    Define,
    /// Both hosts are asked where the guest is.
    Outcome,
    /// Content is compared.
    Verify,
    /// The guest runs on.
    Resume,
    /// The source files are archived.
    Archive,
    /// What was made is removed.
    RollBack,
}

impl Phase {
    /// Its name, as in the journal.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Migrate => "migrate",
            Self::Define => "define",
            Self::Outcome => "outcome",
            Self::Verify => "verify",
            Self::Resume => "resume",
            Self::Archive => "retire",
            Self::RollBack => "roll-back",
        }
    }

    /// Its place in the order of phases.
    pub fn number(self) -> u8 {
        match self {
            Self::Prepare => 3,
            Self::Migrate | Self::Define => 7,
            Self::Outcome => 8,
            Self::Verify => 9,
            Self::Resume => 10,
            Self::Archive => 11,
            Self::RollBack => 12,
        }
    }
}

/// How thoroughly the moved disks were compared with what they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verified {
    /// Not at all.
    Nothing,
    /// Their headers and chains.
    Structure,
    /// And parts of their content.
    Sample,
    /// And all of their content.
    Content,
}

/// A file of the source that is kept under another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Retained {
    /// Its name before.
    pub was: PathBuf,
    /// Its name now; `None` if it was removed.
    pub is: Option<PathBuf>,
}

/// How a migration ended that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Finished {
    /// Name of the transaction.
    pub transaction: String,
    /// The guest's name.
    pub domain: String,
    /// Its UUID.
    pub uuid: String,
    /// The host that it is on now.
    pub to: String,
    /// How it moved.
    pub mode: Mode,
    /// How its disks were copied.
    pub copy: CopyMode,
    /// Milliseconds until it ran at the destination, preparation included.
    pub elapsed_ms: u64,
    /// How thoroughly the disks were compared.
    pub verified: Verified,
    /// The source's files.
    pub retained: Vec<Retained>,
    /// That it ran when it left, and has stopped at the destination since.
    pub stopped: Option<String>,
    /// What did not come along.
    pub warnings: Vec<Warning>,
}
