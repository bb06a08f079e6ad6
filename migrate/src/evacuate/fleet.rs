//! What is known of all guests and destinations, as values.

use std::collections::BTreeMap;

use crate::facts::DomainState;
use crate::plan::Refusal;
use crate::preflight::Demand;

/// The guests of one host, and the hosts that can take them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet {
    /// URI of the host that the guests are on.
    pub from: String,
    /// The hosts that they can go to.
    pub destinations: Vec<Destination>,
    /// The guests.
    pub guests: Vec<Candidate>,
}

/// A host that guests can go to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destination {
    /// How it is reached.
    pub uri: String,
    /// What it has for guests that run; `None` is not limited, as a directory.
    pub capacity: Option<Capacity>,
    /// Free bytes by file system. One that is not here is not limited by the planner of all guests.
    pub filesystems: BTreeMap<String, u64>,
    /// Why no guest can go there; empty if some can.
    pub obstacles: Vec<Refusal>,
}

/// What a host has left for guests that run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes of memory.
    pub memory: u64,
    /// Virtual processors.
    pub vcpus: u64,
}

/// A guest that shall go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its UUID; its name where it could not be looked at.
    pub uuid: String,
    /// What it does.
    pub state: Option<DomainState>,
    /// Bytes of memory that it needs where it goes: none if it is shut off.
    pub memory: u64,
    /// Virtual processors that it needs there.
    pub vcpus: u64,
    /// What it needs of each of the [destinations](Fleet::destinations), in their order, or why it cannot go there.
    pub demands: Vec<Result<Demand, Vec<Refusal>>>,
}
