//! The rows that copy a disk, and say how.

use crate::facts::{FormatFrom, NamedLayer};
use qcow::format::whole_sectors;

use crate::plan::disk::{Copy, Disk, Verdict, chain_difference, data_file_of, gone};
use crate::plan::policy::Style;
use crate::plan::proofs::{self, Thin};
use crate::plan::value::{BasePlan, Row};
use qcow::chain::Format;

/// A copy of the whole disk into an image without a backing file.
fn whole(disk: &Disk<'_>, why: String) -> Copy {
    let not_thin = thin_wanted(disk).then(|| why.clone());
    Copy { whole: Some(why.clone()), why, not_thin, ..Copy::default() }
}

/// Whether the operator expects an overlay.
fn thin_wanted(disk: &Disk<'_>) -> bool {
    match disk.style() {
        Style::Full => false,
        Style::Thin => !disk.below().is_empty(),
        Style::Auto => proofs::on_existing(disk).is_some(),
    }
}

fn copy_whole(disk: &Disk<'_>, why: impl Into<String>) -> Option<Verdict> {
    Some(Verdict::Copy(whole(disk, why.into())))
}

/// `LayerRescued`: a base was deleted, and an overlay is wanted: what the hypervisor has open is copied to the destination.
pub(super) fn layer_rescued(disk: &Disk<'_>) -> Option<Verdict> {
    let path = gone(disk)?;
    if disk.style() != Style::Thin {
        return None;
    }
    let Thin::Base(base) = proofs::thin(disk) else { return None };
    if doubt(disk).is_some() || disk.destination()?.object.is_some() {
        return None;
    }
    let why = format!(
        "the layer '{path}' was deleted, but can still be read and is copied to the destination"
    );
    Some(Verdict::Copy(Copy { why, base: Some(base), ..Copy::default() }))
}

/// `LayerDeleted`: a layer was deleted; the running hypervisor reads it, and so can a full copy.
pub(super) fn layer_deleted(disk: &Disk<'_>) -> Option<Verdict> {
    let path = gone(disk)?;
    let mut copy = whole(
        disk,
        format!("the layer '{path}' was deleted, but the running guest still reads it"),
    );
    if let (Some(not_thin), Thin::Not(reason)) = (&mut copy.not_thin, proofs::thin(disk)) {
        *not_thin = format!("{not_thin}; {reason}");
    }
    copy.adopt = disk.destination()?.object.is_some();
    Some(Verdict::Copy(copy))
}

/// `ChainInDoubt`: the running chain is right, but the headers name other backing files.
pub(super) fn chains_differ(disk: &Disk<'_>) -> Option<Verdict> {
    let difference = chain_difference(disk)?;
    let mut copy = whole(
        disk,
        format!("the running guest's chain is not that of the images' headers: {difference}"),
    );
    copy.adopt = disk.destination()?.object.is_some();
    Some(Verdict::Copy(copy))
}

/// `PathOccupied`, where the operator allows it: what is there is overwritten from end to end.
pub(super) fn adopted(disk: &Disk<'_>) -> Option<Verdict> {
    let destination = disk.destination()?;
    destination.object.as_ref()?;
    let why = format!("'{}' exists and is overwritten, as allowed", destination.path.display());
    Some(Verdict::Copy(Copy { adopt: true, ..whole(disk, why) }))
}

/// `DataFile`, where the operator allows it.
pub(super) fn data_file_left(disk: &Disk<'_>) -> Option<Verdict> {
    let (_, name) = data_file_of(disk)?;
    copy_whole(disk, format!("its data is in another file, '{name}'; the copy is one file"))
}

/// `InternalSnapshots`, where the operator allows it.
pub(super) fn internal_snapshots_left(disk: &Disk<'_>) -> Option<Verdict> {
    let names = &disk.top()?.qcow2.as_ref()?.snapshots;
    (!names.is_empty()).then_some(())?;
    copy_whole(disk, "it has internal snapshots, which are not copied")
}

/// `UncleanLayer`: a lower layer that was not closed properly can be read, but vouches for nothing.
pub(super) fn dirty_below(disk: &Disk<'_>) -> Option<Verdict> {
    let dirty = |layer: &&crate::facts::LayerFacts| layer.qcow2.as_ref().is_some_and(|it| it.dirty);
    let layer = disk.below().iter().find(dirty)?;
    copy_whole(disk, format!("'{}' was not closed properly", layer.path.display()))
}

/// `RawFile` to `FullCopy`: an ordinary image.
pub(super) fn any_other(disk: &Disk<'_>) -> Option<Verdict> {
    let top = disk.top()?;
    let mut copy = if disk.below().is_empty() {
        alone(disk, top.format, top.block_device)
    } else {
        backed(disk)
    };
    if top.format == Format::Qcow2 && top.block_device {
        copy.row = Some(Row::Qcow2OnDevice);
    }
    if copy.whole.is_none() {
        copy.whole = doubt(disk);
    }
    Some(Verdict::Copy(copy))
}

/// `RawFile`, `RawDevice`, `NoBase`: a disk without lower layers.
fn alone(disk: &Disk<'_>, format: Format, device: bool) -> Copy {
    match (format, device) {
        (Format::Raw, true) => {
            Copy { row: Some(Row::RawDevice), ..whole(disk, "a raw block device".to_owned()) }
        }
        (Format::Raw, false) => {
            Copy { row: Some(Row::RawFile), why: "a raw file".to_owned(), ..Copy::default() }
        }
        (Format::Qcow2, _) => Copy {
            row: Some(Row::NoBase),
            why: "a QCOW2 image without a backing file".to_owned(),
            ..Copy::default()
        },
        (other, _) => whole(disk, format!("an image of the format {other}")),
    }
}

/// `BasePresent` to `FullCopy`: a disk with a backing file.
fn backed(disk: &Disk<'_>) -> Copy {
    let thin = match doubt(disk) {
        Some(doubt) => Thin::Not(doubt),
        None => proofs::thin(disk),
    };
    match thin {
        Thin::Base(base) => {
            let (row, why) = match &base {
                BasePlan::Existing { chain, .. } => (
                    Row::BasePresent,
                    format!("the backing file exists at the destination, as {}", first(chain)),
                ),
                BasePlan::BaseCopy { path, .. } => (
                    Row::BaseBrought,
                    format!(
                        "the backing file is copied to the destination as '{}'",
                        path.display()
                    ),
                ),
            };
            Copy { row: Some(row), why, base: Some(base), ..Copy::default() }
        }
        Thin::Not(reason) => Copy {
            row: Some(Row::FullCopy),
            not_thin: thin_wanted(disk).then(|| reason.clone()),
            ..whole(disk, format!("its lower layers go into the copy: {reason}"))
        },
    }
}

fn first(chain: &[NamedLayer]) -> String {
    chain.first().map_or_else(String::new, |layer| format!("'{}'", layer.path.display()))
}

/// What is not known well enough about the source for anything but a copy of the whole disk.
fn doubt(disk: &Disk<'_>) -> Option<String> {
    let top = disk.top()?;
    if disk.live() {
        match disk.disk.live_capacity {
            None => return Some("the hypervisor does not report the disk's size".to_owned()),
            Some(capacity) if whole_sectors(capacity) != whole_sectors(top.virtual_size) => {
                return Some(format!(
                    "the hypervisor says that the disk has {capacity} bytes, its header {}",
                    top.virtual_size
                ));
            }
            Some(_) => {}
        }
        // A directory has only what was written into the XML, and that may stop anywhere.
        let told = disk.facts.source.libvirt.is_some() || disk.disk.live_chain.terminated;
        if told && disk.disk.live_chain.layers.len() != disk.layers().len() {
            return Some("libvirt does not report the whole running chain".to_owned());
        }
    }
    disk.below()
        .iter()
        .find(|layer| layer.format_from == FormatFrom::Nowhere)
        .map(|layer| format!("the format of '{}' is not recorded", layer.path.display()))
}
