//! Whether a whole host's guests can go to another: what is so between the two hosts, what the planner says of
//! every guest, and what only shows when all of them go.
//!
//! Looking ([`preflight`]) and judging ([`judge`]) are apart: the latter is pure.

mod demand;
mod guest;
mod hosts;
mod look;
mod needs;
mod order;
mod places;
mod report;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::facts::{Abilities, CpuFit, Facts, HostFacts, PoolFacts, Setup};
use crate::plan::{Plan, Policy, Refusal};
use crate::{Error, Remedy, Result};

pub use demand::{Base, Demand};
pub(crate) use demand::{Offer, offers};
pub(crate) use look::look;
pub use look::{Participants, preflight};
pub use needs::Needs;
pub use report::{Check, DiskReport, GuestReport, Is, Place, Report, SCHEMA, Total};

/// Something that was looked at, or why it was not.
pub type Seen<T> = std::result::Result<T, NotSeen>;

/// Why something was not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotSeen {
    /// What was in the way.
    pub why: String,
    /// What the operator can do so that it is looked at.
    pub way_out: Option<Remedy>,
}

impl<T: Into<String>> From<T> for NotSeen {
    fn from(why: T) -> Self {
        Self { why: why.into(), way_out: None }
    }
}

/// Two hosts, and the guests that shall go from the one to the other.
#[derive(Debug)]
pub struct Seeing {
    /// The host that the guests are on.
    pub source: HostFacts,
    /// The host that they shall go to.
    pub destination: HostFacts,
    /// What the destination can run; `None` for a directory.
    pub abilities: Option<Abilities>,
    /// How the source's processor compares with what the destination offers.
    pub cpu: Seen<CpuFit>,
    /// How both hosts are set up.
    pub setup: Seen<Setups>,
    /// Whether they reach each other.
    pub paths: NetworkPaths,
    /// The destination's storage pools, before any was started for looking.
    pub pools: Vec<PoolFacts>,
    /// The directories at the destination that the guests' disks go to.
    pub directories: BTreeMap<PathBuf, Seen<Room>>,
    /// The guests, in the order in which they were named.
    pub guests: Vec<Looked>,
}

/// How both hosts are set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setups {
    /// The source.
    pub source: Setup,
    /// The destination.
    pub destination: Setup,
    /// Nanoseconds by which the destination's clock is ahead.
    pub ahead_ns: i64,
    /// Nanoseconds by which that figure may be wrong.
    pub error_ns: i64,
}

/// Whether the hosts reach each other at the ports that guests arrive at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPaths {
    /// From the source to the destination.
    pub to_destination: Seen<NetworkPath>,
    /// From the destination to the source.
    pub to_source: Seen<NetworkPath>,
}

/// What came of trying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPath {
    /// The name that was tried.
    pub host: String,
    /// The ports at which a process listened.
    pub ports: Vec<u16>,
    /// Those that could not be reached, and why.
    pub closed: Vec<(u16, String)>,
}

/// Free space in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// A word for the file system that it is on.
    pub filesystem: String,
    /// Free bytes.
    pub available: u64,
}

/// A guest, and what was found out about it.
#[derive(Debug)]
pub struct Looked {
    /// Its name, as it was given or listed.
    pub name: String,
    /// What was found, or why nothing was.
    pub found: Result<Found>,
}

/// What was found out about one guest.
#[derive(Debug)]
pub struct Found {
    /// The facts of the planner.
    pub facts: Facts,
    /// What else it needs of a host.
    pub needs: Needs,
    /// How its processor compares with what the destination offers.
    pub cpu: Seen<CpuFit>,
    /// The plan, or why there is none.
    pub plan: std::result::Result<Plan, Vec<Refusal>>,
}

/// Judges. Pure.
pub fn judge(seeing: &Seeing, policy: &Policy) -> Report {
    let mut guests: Vec<_> =
        seeing.guests.iter().map(|looked| guest::judge(looked, seeing)).collect();
    let plans: Vec<_> = seeing.guests.iter().map(|looked| plan_of(looked, policy)).collect();
    let order = order::order(&mut guests, &plans, seeing);
    let places = places::judge(seeing, policy, &order);
    let checks = hosts::judge(seeing, policy);
    report::put_together(seeing, checks, places, guests, &order)
}

/// A guest's plan, and the bases that it brings.
struct Going<'a> {
    plan: &'a Plan,
    brought: Vec<crate::plan::Brought>,
}

fn plan_of<'a>(looked: &'a Looked, policy: &Policy) -> Option<Going<'a>> {
    let found = looked.found.as_ref().ok()?;
    let plan = found.plan.as_ref().ok()?;
    Some(Going { plan, brought: crate::plan::brought(&found.facts, policy, &plan.disks) })
}

/// How the errors of looking are told.
fn why(error: &Error) -> NotSeen {
    NotSeen { why: error.message().to_owned(), way_out: error.what_next().cloned() }
}
