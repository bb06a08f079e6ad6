//! What was judged, as a value. Its JSON form is stable.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::{NotSeen, Seeing};
use crate::Remedy;
use crate::Reword;
use crate::facts::{DomainState, HostFacts, Storage};
use crate::plan::{CopyMode, Mode, Refusal, Row, Warning};

/// Name and version of the report's JSON form.
pub const SCHEMA: &str = "qcowtool-preflight/1";

/// What came of looking at something, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Is {
    /// As it must be.
    Green,
    /// Nothing in the way, but worth to be known.
    Note,
    /// Not examined: not known.
    Unseen,
    /// It could not be looked at although it should have been.
    Failed,
    /// In the way.
    Red,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    /// What it is about: a stable word for programs.
    pub check: &'static str,
    /// What came of it.
    pub is: Is,
    /// What is so.
    pub message: String,
    /// What the operator can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way_out: Option<Remedy>,
}

impl Check {
    pub(super) fn new(check: &'static str, is: Is, message: impl Into<String>) -> Self {
        Self { check, is, message: message.into(), way_out: None }
    }

    pub(super) fn green(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Is::Green, message)
    }

    pub(super) fn note(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Is::Note, message)
    }

    pub(super) fn unseen(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Is::Unseen, message)
    }

    /// It was not looked at, for this reason.
    pub(super) fn not_seen(check: &'static str, not_seen: &NotSeen) -> Self {
        let NotSeen { why, way_out } = not_seen.clone();
        Self { way_out, ..Self::unseen(check, why) }
    }

    pub(super) fn red(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Is::Red, message)
    }

    pub(super) fn way_out(mut self, way_out: impl Into<Remedy>) -> Self {
        self.way_out = Some(way_out.into());
        self
    }
}

impl Reword for Check {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        self.way_out.reword(words);
    }
}

/// A directory at the destination that disks go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Place {
    /// Its path there.
    pub directory: PathBuf,
    /// What came of it: the worst of its checks.
    pub is: Is,
    /// Whether it is the storage that the disks are on already; the least certain of the guests' answers.
    #[serde(serialize_with = "word_of")]
    pub storage: Storage,
    /// The storage pool that covers it.
    pub pool: Option<String>,
    /// Bytes that all the guests' new images need there.
    pub needed_bytes: u64,
    /// Free bytes, if they are known. Directories on one file system share them.
    pub available_bytes: Option<u64>,
    /// What was looked at.
    pub checks: Vec<Check>,
}

fn word_of<S: Serializer>(storage: &Storage, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match storage {
        Storage::Shared => "shared",
        Storage::Distinct => "distinct",
        Storage::Unknown { .. } => "unknown",
    })
}

/// A disk of a guest that has a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskReport {
    /// The disk's name in the guest's XML.
    pub target: String,
    /// The row of the decision table.
    pub row: Row,
    /// That row in words.
    pub why: String,
}

/// What is so of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestReport {
    /// When it would best be moved, from 1; `None` if it cannot be.
    pub order: Option<usize>,
    /// Its name.
    pub name: String,
    /// Its UUID, if it could be looked at.
    pub uuid: Option<String>,
    /// What it does.
    pub state: Option<DomainState>,
    /// What came of it: the worst of its checks, refusals and failures.
    pub is: Is,
    /// How it would be moved; `None` without a plan, as the next three.
    pub mode: Option<Mode>,
    /// How its disks would be copied.
    pub copy: Option<CopyMode>,
    /// Bytes over the network, without memory and without bases that an earlier guest brings.
    pub transfer_bytes: Option<u64>,
    /// Bytes at the destination, counted likewise.
    pub space_bytes: Option<u64>,
    /// Its disks, if there is a plan.
    pub disks: Vec<DiskReport>,
    /// What it needs besides its disks.
    pub checks: Vec<Check>,
    /// Why there is no plan.
    pub refusals: Vec<Refusal>,
    /// What the operator should know about the plan.
    pub warnings: Vec<Warning>,
}

impl GuestReport {
    /// Adds a check; the guest is as bad as the worst of them.
    pub(super) fn add(&mut self, check: Check) {
        self.is = self.is.max(check.is);
        self.checks.push(check);
    }
}

/// All guests together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Total {
    /// Guests that were looked at, or should have been.
    pub guests: usize,
    /// Those that can go.
    pub ready: usize,
    /// Those that cannot.
    pub refused: usize,
    /// Those that could not be looked at.
    pub failed: usize,
    /// Bytes over the network for those that can go, without memory.
    pub transfer_bytes: u64,
    /// Bytes at the destination for those that can go.
    pub space_bytes: u64,
}

/// The whole preflight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// [`Green`](Is::Green), [`Red`](Is::Red), or [`Failed`](Is::Failed) if nothing is in the way but something could
    /// not be looked at.
    pub is: Is,
    /// The host that the guests are on.
    pub source: HostFacts,
    /// The host that they shall go to.
    pub destination: HostFacts,
    /// What is so between the hosts.
    pub checks: Vec<Check>,
    /// Where disks go.
    pub places: Vec<Place>,
    /// The guests, in the order in which they would best be moved; those that cannot be at the end.
    pub guests: Vec<GuestReport>,
    /// All guests together.
    pub total: Total,
}

/// The report of what was judged.
pub(super) fn put_together(
    seeing: &Seeing,
    checks: Vec<Check>,
    places: Vec<Place>,
    guests: Vec<GuestReport>,
    order: &Order,
) -> Report {
    let count = |is: fn(Is) -> bool| guests.iter().filter(|guest| is(guest.is)).count();
    let total = Total {
        guests: guests.len(),
        ready: count(|is| is < Is::Failed),
        refused: count(|is| is == Is::Red),
        failed: count(|is| is == Is::Failed),
        transfer_bytes: order.transfer_bytes,
        space_bytes: order.space_bytes,
    };
    let all = (checks.iter().map(|check| check.is))
        .chain(places.iter().map(|place| place.is))
        .chain(guests.iter().map(|guest| guest.is));
    let is = match all.max() {
        Some(bad @ (Is::Red | Is::Failed)) => bad,
        _ => Is::Green,
    };
    Report {
        schema: SCHEMA,
        is,
        source: seeing.source.clone(),
        destination: seeing.destination.clone(),
        checks,
        places,
        guests,
        total,
    }
}

impl Reword for Report {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        self.checks.reword(words);
        for place in &mut self.places {
            place.checks.reword(words);
        }
        for guest in &mut self.guests {
            guest.checks.reword(words);
            guest.refusals.reword(words);
        }
    }
}

/// What all guests together need.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Bytes that all guests that nothing else keeps need, by directory.
    pub(super) needed: BTreeMap<PathBuf, u64>,
    /// Bytes over the network for those that can go.
    pub(super) transfer_bytes: u64,
    /// Bytes at the destination for those that can go.
    pub(super) space_bytes: u64,
}
