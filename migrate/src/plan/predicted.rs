//! What a disk will cost: bytes over the network, and bytes of storage.
//!
//! Estimates from allocation, without reading data. They lean to the high side, because a
//! destination that runs full in the middle costs more than a warning before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qcow::chain::Format;

use super::base_copies::BaseCopyNames;
use super::disk::Disk;
use super::policy::Policy;
use super::value::{Action, BaseCopyMethod, BasePlan, DiskPlan, FilePlan, Predicted, Refusal, Row};
use super::words::refuse;
use crate::facts::Facts;

/// A running guest goes on writing while it is copied: so large a part of the disk's data is set aside for
/// that, as far as the disk can grow at all.
const GROWTH: u64 = 16;

/// Fallback for the cluster size of an image whose own is not known: QEMU's default.
const CLUSTER: u64 = 65536;

/// Cost of what is done to a disk. A base that another disk brings is not counted again.
pub(super) fn cost(disk: &Disk<'_>, row: Row, action: &Action, brought: bool) -> Predicted {
    let both = |bytes| Predicted { transfer_bytes: bytes, space_bytes: bytes };
    let base = match action {
        Action::Skip | Action::Eject => return Predicted::default(),
        Action::CopyMedium { .. } => return both(disk.top().map_or(0, |top| top.identity.size)),
        // It has its place already.
        Action::Adopt { .. } => {
            return Predicted { transfer_bytes: whole(disk, row), space_bytes: 0 };
        }
        Action::Create { base, .. } => base,
    };
    let data = match base {
        Some(_) => disk.chain().map_or(0, |chain| chain.top_bytes).min(disk.size()),
        None => whole(disk, row),
    };
    let growth = if disk.live() { data / GROWTH } else { 0 };
    let image = data.saturating_add(growth).min(disk.size()).saturating_add(metadata(disk));
    let seeded = base.as_ref().filter(|_| !brought).map_or(0, |base| seed(disk, base));
    Predicted {
        transfer_bytes: data.saturating_add(seeded),
        space_bytes: image.saturating_add(seeded),
    }
}

/// Bytes of the guest's disk that any layer holds. All of it, where the chain that was looked at is
/// incomplete or not the one that runs.
fn whole(disk: &Disk<'_>, row: Row) -> u64 {
    let known =
        disk.chain().and_then(|chain| chain.guest_bytes).filter(|_| row != Row::ChainInDoubt);
    known.unwrap_or(u64::MAX).min(disk.size())
}

/// Bytes that an overlay saves compared to an image without a backing file.
pub(super) fn saved_by_overlay(disk: &Disk<'_>, row: Row) -> u64 {
    whole(disk, row).saturating_sub(disk.chain().map_or(0, |chain| chain.top_bytes))
}

/// Bytes of a base copy.
fn seed(disk: &Disk<'_>, base: &BasePlan) -> u64 {
    let Some(lower) = disk.below().first() else { return 0 };
    let data = disk.chain().and_then(|chain| chain.guest_bytes).unwrap_or(u64::MAX);
    match base {
        BasePlan::Existing { .. } => 0,
        BasePlan::BaseCopy {
            how: BaseCopyMethod::CopyFile { .. }, format: Format::Raw, ..
        } => lower.identity.size.min(data),
        BasePlan::BaseCopy { how: BaseCopyMethod::CopyFile { .. }, .. } => lower.identity.size,
        BasePlan::BaseCopy { how: BaseCopyMethod::Flatten { .. }, .. } => {
            lower.virtual_size.min(data).saturating_add(metadata(disk))
        }
    }
}

/// A base that a plan brings to the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Brought {
    /// Its path there.
    pub(crate) path: PathBuf,
    /// Digest of what it shows.
    pub(crate) digest: String,
    /// Its part of the plan's bytes, on the way and there.
    pub(crate) bytes: u64,
}

/// The bases that a plan brings, each once: another plan that needs the same one finds it there.
pub(crate) fn brought(facts: &Facts, policy: &Policy, plans: &[DiskPlan]) -> Vec<Brought> {
    let base_copies = BaseCopyNames::new(facts);
    let mut all: Vec<Brought> = Vec::new();
    for plan in plans {
        let Action::Create { base: Some(base), .. } = &plan.action else { continue };
        let BasePlan::BaseCopy { path, digest, .. } = base else { continue };
        let Some(disk) = facts.disks.iter().find(|disk| disk.target == plan.target) else {
            continue;
        };
        if all.iter().all(|known| known.path != *path) {
            let disk = Disk { facts, disk, policy, alone_because: None, base_copies: &base_copies };
            let (path, digest) = (path.clone(), digest.clone());
            all.push(Brought { path, digest, bytes: seed(&disk, base) });
        }
    }
    all
}

/// Tables and refcounts of a QCOW2 image of the disk: a full copy fills all of them.
fn metadata(disk: &Disk<'_>) -> u64 {
    let Some(top) = disk.top().filter(|top| top.format == Format::Qcow2) else { return 0 };
    let cluster = top.qcow2.as_ref().map_or(CLUSTER, |qcow2| qcow2.cluster_size).max(512);
    let extended = top.qcow2.as_ref().is_some_and(|qcow2| qcow2.extended_l2);
    let clusters = disk.size().div_ceil(cluster);
    // An L2 entry and a refcount of 16 bits each, and some clusters for what is above them.
    let entry: u64 = if extended { 18 } else { 10 };
    clusters.saturating_mul(entry).saturating_add(cluster.saturating_mul(8))
}

/// The longest that the file of such an image can get.
pub(super) fn worst_file(disk: &Disk<'_>) -> u64 {
    disk.size().saturating_add(metadata(disk))
}

/// Refuses what does not fit, directory by directory.
pub(super) fn check_space(facts: &Facts, disks: &[DiskPlan], files: &[FilePlan]) -> Vec<Refusal> {
    let of_disks = facts.disks.iter().filter_map(|disk| disk.destination.as_ref());
    let places = of_disks
        .map(|place| (place.available, place.path.as_path()))
        .chain(facts.files.iter().map(|file| (file.destination.available, file.path.as_path())));
    let mut free: BTreeMap<&Path, u64> = BTreeMap::new();
    for (available, path) in places {
        if let (Some(available), Some(directory)) = (available, path.parent()) {
            let known = free.entry(directory).or_insert(available);
            *known = available.min(*known);
        }
    }
    let made = disks
        .iter()
        .map(|disk| (path_of(&disk.action), disk.space_bytes))
        .chain(files.iter().map(|file| (file.made(), file.space_bytes)));
    let mut needed: BTreeMap<&Path, u64> = BTreeMap::new();
    for (path, bytes) in made {
        if let Some(directory) = path.and_then(Path::parent) {
            let sum = needed.entry(directory).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
    needed
        .into_iter()
        .filter_map(|(directory, needed)| {
            let free = *free.get(directory)?;
            (needed > free).then(|| {
                refuse(
                    "space",
                    None,
                    format!(
                        "'{}' has {free} bytes free at the destination, and {needed} are needed",
                        directory.display()
                    ),
                    "make room at the destination, or map some disks to other directories",
                )
            })
        })
        .collect()
}

fn path_of(action: &Action) -> Option<&Path> {
    match action {
        Action::Skip | Action::Eject | Action::Adopt { .. } => None,
        Action::CopyMedium { to, .. } => Some(to),
        Action::Create { image, .. } => Some(&image.path),
    }
}
