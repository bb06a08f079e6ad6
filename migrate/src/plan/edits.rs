//! What changes in the guest's XML, from what is done to its disks.

use qcow::chain::Format;

use super::value::{Action, BasePlan, DiskPlan};
use crate::domain::{Change, DiskEdit};
use crate::facts::{Facts, NamedLayer, ObjectFacts};

/// The changes to the XML that these disks need. Disks that stay as they are have none.
pub fn edits(disks: &[DiskPlan], facts: &Facts) -> Vec<DiskEdit> {
    disks
        .iter()
        .filter_map(|disk| {
            let change = change(disk, facts)?;
            Some(DiskEdit { target: disk.target.clone(), change })
        })
        .collect()
}

fn change(disk: &DiskPlan, facts: &Facts) -> Option<Change> {
    match &disk.action {
        Action::Skip => None,
        Action::Eject => Some(Change::Eject),
        Action::CopyMedium { from, to } => {
            (from != to).then(|| Change::Medium { path: to.clone() })
        }
        Action::Create { image, base } => Some(Change::Move {
            path: image.path.clone(),
            block: false,
            format: image.format,
            below: base.as_ref().map_or_else(Vec::new, below),
            slice: None,
        }),
        Action::Adopt { path, format } => {
            let object = object_of(disk, facts);
            Some(Change::Move {
                path: path.clone(),
                block: object.is_some_and(|object| object.block_device),
                format: *format,
                below: Vec::new(),
                slice: object.and_then(|object| slice(disk, facts, object, *format)),
            })
        }
    }
}

/// The layers below a new overlay.
fn below(base: &BasePlan) -> Vec<NamedLayer> {
    match base {
        BasePlan::Existing { chain, .. } => chain.clone(),
        BasePlan::BaseCopy { path, format, .. } => {
            vec![NamedLayer { path: path.clone(), format: Some(format.as_str().to_owned()) }]
        }
    }
}

fn object_of<'a>(disk: &DiskPlan, facts: &'a Facts) -> Option<&'a ObjectFacts> {
    let disk = facts.disks.iter().find(|it| it.target == disk.target)?;
    disk.destination.as_ref()?.object.as_ref()
}

/// A raw device may be larger than the disk: then only the start of it is the disk.
fn slice(disk: &DiskPlan, facts: &Facts, object: &ObjectFacts, format: Format) -> Option<u64> {
    if format != Format::Raw || !object.block_device {
        return None;
    }
    let disk = facts.disks.iter().find(|it| it.target == disk.target)?;
    let header = disk.chain.as_ref()?.layers.first()?.virtual_size;
    let size = qcow::format::whole_sectors(disk.live_capacity.unwrap_or(header));
    (object.identity.size > size).then_some(size)
}
