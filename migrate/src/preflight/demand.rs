//! What each guest would need of a destination, whatever the others do: the facts of an evacuation to several hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::report::{Check, GuestReport, Is, Order};
use super::{Going, Seeing, guest, hosts, places, plan_of};
use crate::facts::{DomainState, Storage};
use crate::plan::{CopyMode, Mode, Policy, Refusal};

/// The check between hosts that names guests; each of them is refused for itself.
const OF_GUESTS: &str = "names";

/// What a guest needs of a destination, and makes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// How it would be moved.
    pub mode: Mode,
    /// How its disks would be copied.
    pub copy: CopyMode,
    /// Bytes over the network, without its memory and without bases that are brought.
    pub transfer_bytes: u64,
    /// Bytes by file system, without such bases.
    pub space: BTreeMap<String, u64>,
    /// Everything that is made or filled there.
    pub paths: Vec<PathBuf>,
    /// Backing files that are brought if they are not there yet.
    pub bases: Vec<Base>,
    /// Streams that share its bandwidth: its disks and its memory.
    pub streams: u64,
}

/// A backing file that is brought to a destination, once for all guests that need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Its path there.
    pub path: PathBuf,
    /// Digest of its content.
    pub digest: String,
    /// Its bytes, on the way and there.
    pub bytes: u64,
    /// The file system that it goes to.
    pub filesystem: String,
}

/// One guest, and whether a destination could take it.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) name: String,
    /// `None` if it could not be looked at.
    pub(crate) uuid: Option<String>,
    pub(crate) state: Option<DomainState>,
    /// Bytes of memory that it can have.
    pub(crate) memory: u64,
    pub(crate) vcpus: u64,
    pub(crate) demand: Result<Demand, Vec<Refusal>>,
}

/// Every guest's offer, and what keeps all guests from going there.
pub(crate) fn offers(seeing: &Seeing, policy: &Policy) -> (Vec<Offer>, Vec<Check>) {
    let between = hosts::judge(seeing, policy);
    let obstacles = between.into_iter().filter(|it| it.is == Is::Red && it.check != OF_GUESTS);
    let directories = blocked(seeing, policy);
    let offers = seeing.guests.iter().map(|looked| {
        let report = guest::judge(looked, seeing);
        let found = looked.found.as_ref().ok();
        let needs = found.map(|found| &found.needs);
        let own = found.into_iter().flat_map(|found| &found.facts.disks);
        let own: BTreeSet<&Path> = own
            .filter_map(|disk| disk.destination.as_ref())
            .filter(|place| place.storage != Storage::Shared)
            .filter_map(|place| place.path.parent())
            .collect();
        let mut refusals = refusals(&report);
        let in_the_way =
            directories.iter().filter(|(directory, _)| own.contains(directory.as_path()));
        refusals.extend(in_the_way.flat_map(|(_, checks)| checks).map(refusal));
        let demand = match plan_of(looked, policy) {
            Some(going) if refusals.is_empty() => Ok(demand(&going, seeing)),
            _ => Err(refusals),
        };
        Offer {
            name: report.name,
            uuid: report.uuid,
            state: report.state,
            memory: needs.map_or(0, |needs| needs.memory),
            vcpus: needs.map_or(0, |needs| needs.vcpus),
            demand,
        }
    });
    (offers.collect(), obstacles.collect())
}

/// Directories where nothing can be made, with what is in the way there.
fn blocked(seeing: &Seeing, policy: &Policy) -> BTreeMap<PathBuf, Vec<Check>> {
    // That there is room for all is no matter where others can take some.
    let red = |check: &Check| check.is == Is::Red;
    places::judge(seeing, policy, &Order::default())
        .into_iter()
        .map(|place| (place.directory, place.checks.into_iter().filter(red).collect::<Vec<_>>()))
        .filter(|(_, checks)| !checks.is_empty())
        .collect()
}

/// Why a guest cannot go.
fn refusals(report: &GuestReport) -> Vec<Refusal> {
    let bad = report.checks.iter().filter(|check| check.is >= Is::Failed);
    report.refusals.iter().cloned().chain(bad.map(refusal)).collect()
}

fn refusal(check: &Check) -> Refusal {
    Refusal {
        code: check.check.to_owned(),
        disk: None,
        message: check.message.clone(),
        way_out: check.way_out.clone().unwrap_or_else(|| "look at it there".into()),
    }
}

fn demand(going: &Going<'_>, seeing: &Seeing) -> Demand {
    let filesystem = |directory: &Path| match seeing.directories.get(directory) {
        Some(Ok(room)) => room.filesystem.clone(),
        // Free space is not known there: by its path.
        _ => directory.display().to_string(),
    };
    let mut space: BTreeMap<String, u64> = BTreeMap::new();
    for (directory, bytes) in going.own_space() {
        let sum = space.entry(filesystem(directory)).or_default();
        *sum = sum.saturating_add(bytes);
    }
    let bases = going.brought.iter().map(|base| Base {
        path: base.path.clone(),
        digest: base.digest.clone(),
        bytes: base.bytes,
        filesystem: filesystem(base.path.parent().unwrap_or(Path::new("/"))),
    });
    let disks = u64::try_from(going.plan.migrate_disks.len()).unwrap_or(u64::MAX);
    Demand {
        mode: going.plan.mode,
        copy: going.plan.copy,
        transfer_bytes: going.own_bytes(),
        space,
        paths: going.all_paths().map(Path::to_path_buf).collect(),
        bases: bases.collect(),
        streams: disks.saturating_add(1),
    }
}
