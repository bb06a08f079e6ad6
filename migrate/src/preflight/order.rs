//! What only shows when all guests go: two that want one path, and space that is enough for each but not for all.
//! And in which order they would best go.
//!
//! The order: those that can go, by the bytes of their own disks, the least first, so that whatever stops an
//! evacuation stops it late; what cannot move at the end. A backing file that several guests need is copied with the first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::report::{Check, GuestReport, Is, Order};
use super::{Going, Seeing};
use crate::Remedy;
use crate::plan::{Action, DiskPlan};

/// Who makes something at a path; a base may be made for several, if it is the same.
struct Taken<'a> {
    by: &'a str,
    digest: Option<&'a str>,
}

/// Judges guests against each other, numbers them, and sorts them.
pub(super) fn order(
    guests: &mut [GuestReport],
    plans: &[Option<Going<'_>>],
    seeing: &Seeing,
) -> Order {
    let mut going: Vec<(usize, u64, &Going<'_>)> = (guests.iter().zip(plans).enumerate())
        .filter(|(_, (guest, _))| guest.is < Is::Failed)
        .filter_map(|(at, (_, plan))| plan.as_ref().map(|going| (at, going.own_bytes(), going)))
        .collect();
    going.sort_by_key(|(_, bytes, going)| (*bytes, &going.plan.domain));
    let mut order = Order::default();
    let mut taken: BTreeMap<&Path, Taken<'_>> = BTreeMap::new();
    let mut used: BTreeMap<&str, u64> = BTreeMap::new();
    let mut number: usize = 0;
    for (at, _, going) in going {
        let Some(guest) = guests.get_mut(at) else { continue };
        if let Some(check) = collision(going, &taken) {
            guest.add(check);
            continue;
        }
        let costs = going.costs(&taken);
        for (directory, bytes) in &costs.space {
            add(order.needed.entry((*directory).to_path_buf()).or_default(), *bytes);
        }
        if let Some(check) = too_little(&costs.space, &used, seeing) {
            guest.add(check);
            continue;
        }
        for (directory, bytes) in &costs.space {
            if let Some(Ok(room)) = seeing.directories.get(*directory) {
                add(used.entry(&room.filesystem).or_default(), *bytes);
            }
        }
        taken.extend(going.takes());
        number = number.saturating_add(1);
        let space = costs.space.values().copied().fold(0, u64::saturating_add);
        guest.order = Some(number);
        guest.transfer_bytes = Some(costs.transfer);
        guest.space_bytes = Some(space);
        add(&mut order.transfer_bytes, costs.transfer);
        add(&mut order.space_bytes, space);
    }
    guests.sort_by_key(|guest| (guest.order.unwrap_or(usize::MAX), guest.name.clone()));
    order
}

fn add(sum: &mut u64, bytes: u64) {
    *sum = sum.saturating_add(bytes);
}

/// What a guest costs after those before it.
struct Costs<'a> {
    transfer: u64,
    space: BTreeMap<&'a Path, u64>,
}

impl Going<'_> {
    /// Bytes over the network without the bases.
    pub(super) fn own_bytes(&self) -> u64 {
        let bases = self.brought.iter().map(|base| base.bytes).fold(0, u64::saturating_add);
        self.plan.predicted.transfer_bytes.saturating_sub(bases)
    }

    /// Bytes at the destination by directory, without the bases.
    pub(super) fn own_space(&self) -> BTreeMap<&Path, u64> {
        let mut space: BTreeMap<&Path, u64> = BTreeMap::new();
        for disk in &self.plan.disks {
            if let Some(directory) = made(disk).and_then(Path::parent) {
                add(space.entry(directory).or_default(), disk.space_bytes);
            }
        }
        for file in &self.plan.files {
            if let Some(directory) = file.made().and_then(Path::parent) {
                add(space.entry(directory).or_default(), file.space_bytes);
            }
        }
        for base in &self.brought {
            // The planner counts it where the first disk goes that needs it.
            let first = self.plan.disks.iter().find(|disk| base_of(disk) == Some(&base.path));
            if let Some(sum) =
                first.and_then(made).and_then(Path::parent).and_then(|it| space.get_mut(it))
            {
                *sum = sum.saturating_sub(base.bytes);
            }
        }
        space
    }

    fn costs(&self, taken: &BTreeMap<&Path, Taken<'_>>) -> Costs<'_> {
        let (mut transfer, mut space) = (self.own_bytes(), self.own_space());
        for base in &self.brought {
            if taken.contains_key(base.path.as_path()) {
                continue;
            }
            add(&mut transfer, base.bytes);
            if let Some(directory) = base.path.parent() {
                add(space.entry(directory).or_default(), base.bytes);
            }
        }
        Costs { transfer, space }
    }

    /// What it makes.
    fn takes(&self) -> impl Iterator<Item = (&Path, Taken<'_>)> {
        let digest = |path: &Path| {
            self.brought.iter().find(|base| base.path == path).map(|base| base.digest.as_str())
        };
        let by = self.plan.domain.as_str();
        self.all_paths().map(move |path| (path, Taken { by, digest: digest(path) }))
    }

    /// Also images that exist and are filled.
    pub(super) fn all_paths(&self) -> impl Iterator<Item = &Path> {
        let adopted = self.plan.disks.iter().filter_map(|disk| match &disk.action {
            Action::Adopt { path, .. } => Some(path.as_path()),
            _ => None,
        });
        self.plan.made_paths().into_iter().chain(adopted)
    }
}

/// Where the new image of a disk goes.
fn made(disk: &DiskPlan) -> Option<&Path> {
    match &disk.action {
        Action::Adopt { .. } => None,
        action => action.path(),
    }
}

fn base_of(disk: &DiskPlan) -> Option<&PathBuf> {
    match &disk.action {
        Action::Create { base: Some(crate::plan::BasePlan::BaseCopy { path, .. }), .. } => {
            Some(path)
        }
        _ => None,
    }
}

/// Whether an earlier guest makes something at one of its paths.
fn collision(going: &Going<'_>, taken: &BTreeMap<&Path, Taken<'_>>) -> Option<Check> {
    going.takes().find_map(|(path, own)| {
        let other = taken.get(path)?;
        let same = own.digest.is_some() && own.digest == other.digest;
        (!same).then(|| {
            let message = format!("'{}' goes to '{}' too", other.by, path.display());
            Check::red("target", message).way_out(Remedy::MapPath)
        })
    })
}

/// Whether there is room for it after those before it.
fn too_little(
    space: &BTreeMap<&Path, u64>,
    used: &BTreeMap<&str, u64>,
    seeing: &Seeing,
) -> Option<Check> {
    let mut wanted: BTreeMap<&str, (u64, u64, &Path)> = BTreeMap::new();
    for (directory, bytes) in space {
        let Some(Ok(room)) = seeing.directories.get(*directory) else { continue };
        let known = wanted.entry(&room.filesystem).or_insert((0, room.available, directory));
        known.0 = known.0.saturating_add(*bytes);
        known.1 = known.1.min(room.available);
    }
    wanted.into_iter().find_map(|(filesystem, (bytes, available, directory))| {
        let left = available.saturating_sub(used.get(filesystem).copied().unwrap_or(0));
        (bytes > left).then(|| {
            let directory = directory.display();
            Check::red(
                "space",
                format!("{bytes} bytes are needed in '{directory}', and {left} are left by those before it"),
            )
            .way_out("make room at the destination, or map some disks to other directories")
        })
    })
}
