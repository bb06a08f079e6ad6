//! The plan of an evacuation, as a value. Its JSON form is stable.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plan::{CopyMode, Mode, Refusal};
use crate::{Remedy, Reword};

/// Name and version of the plan's JSON form.
pub const SCHEMA: &str = "qcowtool-evacuation/1";

/// Which guest goes where, and in which order; and which cannot go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EvacuationPlan {
    /// [`SCHEMA`].
    pub schema: String,
    /// URI of the host that is emptied.
    pub from: String,
    /// The destinations, with what the guests take of each.
    pub destinations: Vec<Share>,
    /// The guests that go, in the order in which they begin.
    pub guests: Vec<Assignment>,
    /// Those that cannot go, and why.
    pub refused: Vec<Left>,
    /// All guests together.
    pub total: Total,
}

/// What the guests take of one destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Share {
    /// How it is reached.
    pub to: String,
    /// Guests that go there.
    pub guests: usize,
    /// Their memory in bytes, and what is left for them; `None` is not limited.
    pub memory: Taken,
    /// Their virtual processors likewise.
    pub vcpus: Taken,
    /// Their bytes by file system likewise.
    pub space: std::collections::BTreeMap<String, Taken>,
    /// Why no guest can go there.
    pub obstacles: Vec<Refusal>,
}

/// So much is taken of what is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Taken {
    /// What the guests take.
    pub taken: u64,
    /// What is there for them; `None` is not limited.
    pub of: Option<u64>,
}

/// A guest that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Assignment {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// URI of the host that it goes to.
    pub to: String,
    /// How it moves.
    pub mode: Mode,
    /// How its disks are copied.
    pub copy: CopyMode,
    /// Bytes over the network, without its memory, and with the backing files that it brings.
    pub transfer_bytes: u64,
    /// Bytes at the destination, counted likewise.
    pub space_bytes: u64,
    /// Bytes of memory that it takes there.
    pub memory: u64,
    /// Virtual processors that it takes there.
    pub vcpus: u64,
    /// Streams that share its bandwidth.
    pub streams: u64,
    /// Backing files that it needs there and that the evacuation brings: with the first guest that needs them.
    pub bases: Vec<PathBuf>,
    /// Those of them that are planned to come with this one.
    pub brings: Vec<PathBuf>,
}

/// A guest that cannot go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Left {
    /// Its name.
    pub name: String,
    /// Its UUID; its name where it could not be looked at.
    pub uuid: String,
    /// Why, by destination.
    pub reasons: Vec<At>,
}

/// Why a guest cannot go to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct At {
    /// URI of the destination.
    pub to: String,
    /// Why.
    pub refusals: Vec<Refusal>,
}

/// All guests together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Total {
    /// Guests that were to go.
    pub guests: usize,
    /// Those that go.
    pub placed: usize,
    /// Those that cannot.
    pub refused: usize,
    /// Bytes over the network, without memory.
    pub transfer_bytes: u64,
    /// Bytes at the destinations.
    pub space_bytes: u64,
}

impl Reword for EvacuationPlan {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        for share in &mut self.destinations {
            share.obstacles.reword(words);
        }
        self.refused.reword(words);
    }
}

impl Reword for Left {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        for at in &mut self.reasons {
            at.refusals.reword(words);
        }
    }
}
