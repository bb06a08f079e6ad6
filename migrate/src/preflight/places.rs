//! The directories at the destination that disks go to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::report::{Check, Is, Order, Place};
use super::{Room, Seeing, Seen};
use crate::Remedy;
use crate::facts::{PoolFacts, Storage, TargetFacts};
use crate::plan::{Action, Policy};

/// Pools that are no more than a directory. Of any other, what is there while it is not active is something else.
const PLAIN: &str = "dir";

pub(super) fn judge(seeing: &Seeing, policy: &Policy, order: &Order) -> Vec<Place> {
    let missing = missing(seeing);
    let mut of: BTreeMap<PathBuf, Vec<&TargetFacts>> = BTreeMap::new();
    for found in seeing.guests.iter().filter_map(|guest| guest.found.as_ref().ok()) {
        for disk in &found.facts.disks {
            if let Some((destination, directory)) = disk
                .destination
                .as_ref()
                .and_then(|destination| Some((destination, destination.path.parent()?)))
            {
                of.entry(directory.to_path_buf()).or_default().push(destination);
            }
        }
        // Base copies may go to other directories than their overlays.
        for disk in found.plan.iter().flat_map(|plan| &plan.disks) {
            if let Action::Create {
                base: Some(crate::plan::BasePlan::BaseCopy { path, .. }), ..
            } = &disk.action
            {
                of.entry(path.parent().unwrap_or(Path::new("/")).to_path_buf()).or_default();
            }
        }
    }
    let place = |(directory, disks): (PathBuf, Vec<&TargetFacts>)| {
        let absent = missing.contains(&*directory).then_some(policy.make_directories);
        place(directory, &disks, absent, seeing, order)
    };
    of.into_iter().map(place).collect()
}

/// The directories that the destination does not have.
fn missing(seeing: &Seeing) -> BTreeSet<&Path> {
    let found = seeing.guests.iter().filter_map(|guest| guest.found.as_ref().ok());
    found.flat_map(|found| &found.facts.missing).map(|directory| &*directory.path).collect()
}

/// `absent`: the directory is not there, and whether it may be made.
fn place(
    directory: PathBuf,
    disks: &[&TargetFacts],
    absent: Option<bool>,
    seeing: &Seeing,
    order: &Order,
) -> Place {
    let room = seeing.directories.get(&directory);
    let pool = seeing.pools.iter().find(|pool| pool.path.as_ref() == Some(&directory));
    let mut checks = vec![storage(disks)];
    checks.extend(pool.and_then(in_use));
    checks.extend(usable(disks, room));
    checks.extend(absent.map(made));
    checks.extend(room.and_then(|room| space(room.as_ref().ok()?, seeing, order)));
    Place {
        is: checks.iter().map(|check| check.is).max().unwrap_or(Is::Green),
        storage: least_certain(disks),
        pool: pool.map(|pool| pool.name.clone()),
        needed_bytes: order.needed.get(&directory).copied().unwrap_or(0),
        available_bytes: room.and_then(|room| Some(room.as_ref().ok()?.available)),
        directory,
        checks,
    }
}

fn least_certain(disks: &[&TargetFacts]) -> Storage {
    let is = |storage: &Storage| match storage {
        Storage::Distinct => 0,
        Storage::Shared => 1,
        Storage::Unknown { .. } => 2,
    };
    let all = disks.iter().map(|disk| &disk.storage);
    all.max_by_key(|storage| is(storage)).cloned().unwrap_or(Storage::Distinct)
}

fn storage(disks: &[&TargetFacts]) -> Check {
    const NAME: &str = "storage";
    match least_certain(disks) {
        Storage::Distinct => Check::green(NAME, "storage of its own"),
        Storage::Shared => Check::green(NAME, "storage that both hosts share"),
        Storage::Unknown { why } => {
            Check::red(NAME, format!("shared or not could not be tried: {why}"))
                .way_out(Remedy::StateStorage)
        }
    }
}

/// Whether the pool over a directory can be relied on.
fn in_use(pool: &PoolFacts) -> Option<Check> {
    const NAME: &str = "pool";
    let name = &pool.name;
    if pool.active {
        return Some(Check::green(NAME, format!("pool '{name}', active")));
    }
    if pool.kind == PLAIN {
        return Some(
            Check::note(NAME, format!("pool '{name}' is not active"))
                .way_out(format!("start it at the destination: virsh pool-start {name}")),
        );
    }
    Some(
        Check::red(
            NAME,
            format!("pool '{name}' ({}) is not active: its storage is not available", pool.kind),
        )
        .way_out(format!("start it at the destination: virsh pool-start {name}")),
    )
}

/// Whether files can be made there.
fn usable(disks: &[&TargetFacts], room: Option<&Seen<Room>>) -> Option<Check> {
    let shared = !disks.is_empty() && disks.iter().all(|disk| disk.storage == Storage::Shared);
    let why = match room {
        Some(Err(not_seen)) => Some(not_seen.why.clone()),
        _ => disks.iter().find_map(|disk| disk.unusable.clone()),
    };
    // Nothing is made on what is shared.
    let why = why.filter(|_| !shared)?;
    Some(Check::red("directory", why).way_out(Remedy::MakeDirectory))
}

/// Whether a directory that is not there is made.
fn made(allowed: bool) -> Check {
    const NAME: &str = "directory";
    match allowed {
        true => Check::green(NAME, "it does not exist, and is made as it is at the source"),
        false => Check::red(NAME, "it does not exist").way_out(Remedy::AllowDirectory),
    }
}

/// Whether there is room for all.
fn space(room: &Room, seeing: &Seeing, order: &Order) -> Option<Check> {
    const NAME: &str = "space";
    let same = |other: &Room| other.filesystem == room.filesystem;
    let together: Vec<_> = (seeing.directories.iter())
        .filter_map(|(directory, other)| {
            Some((directory, other.as_ref().ok().filter(|it| same(it))?))
        })
        .collect();
    let needed = (together.iter())
        .filter_map(|(directory, _)| order.needed.get(*directory))
        .fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    let available = together.iter().map(|(_, room)| room.available).min()?;
    let with = match together.len() {
        0 | 1 => String::new(),
        _ => " (with other directories on the same file system)".to_owned(),
    };
    if needed > available {
        let message =
            format!("{available} bytes are free, and all guests together need {needed}{with}");
        return Some(
            Check::red(NAME, message)
                .way_out("make room at the destination, or map some disks to other directories"),
        );
    }
    Some(Check::green(NAME, format!("{needed} bytes needed of {available} free{with}")))
}
