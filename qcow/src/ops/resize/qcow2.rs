//! QCOW2 images: what becomes of the tables.

use std::path::Path;
use std::sync::Arc;

use super::edge::{Edge, Old};
use super::{NewSize, ResizeOptions, ResizeOutcome, check, check_sectors};
use crate::chain::{Chain, open_writable};
use crate::exact::{Exact, to_usize};
use crate::format::{Autoclear, HeaderPatch, HostOffset, Version};
use crate::image::edit::{Change, Edit, Remap};
use crate::io::{WriteStorage, Zeroes};
use crate::ops::Preallocation;
use crate::ops::bitmap::resize_all;
use crate::ops::edit::{Opened, change_if};
use crate::sync::{Mutex, lock};
use crate::{CancelToken, Error, Observer, Remedy, Result, Silent};

/// What a new size makes of the tables.
#[derive(Debug, Default)]
struct Made {
    old: u64,
    new: u64,
    lost: u64,
    hidden: u64,
}

pub(super) fn resize(
    path: &Path,
    size: NewSize,
    options: &ResizeOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<ResizeOutcome> {
    if options.dry_run {
        let chain = Chain::open(path, &options.open)?;
        let opened = Opened::file(path, true)?;
        return resize_in(&opened, None, Old::reading(chain), size, options, observer, cancel);
    }
    let writable = open_writable(path, &options.open)?;
    let file: Arc<dyn WriteStorage> = Arc::new(writable.file);
    let old = Old::writing(Arc::clone(&file), writable.data.clone(), writable.backing);
    let opened = Opened::storage(file);
    let data = writable.data.as_deref();
    resize_in(&opened, data, old, size, options, observer, cancel)
}

/// Resizes the image in a storage.
pub(crate) fn resize_in(
    opened: &Opened,
    data: Option<&dyn WriteStorage>,
    old: Old,
    size: NewSize,
    options: &ResizeOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<ResizeOutcome> {
    let planned = Mutex::new(None);
    let len = opened.storage.len();
    let (made, changed) = change_if(
        opened,
        options.threads,
        observer,
        cancel,
        |edit| {
            let made = make(edit, &old, size, options)?;
            // The bytes behind the old end are none of the old disk's.
            if let (Some(data), false) = (data, options.dry_run) {
                grow_data_file(data, &made, is_raw_outside(edit), options.preallocation)?;
            }
            Ok(made)
        },
        |change, _| {
            *lock(&planned) = Some(change.result());
            Ok(true)
        },
    )?;
    if let (Some(data), false) = (data, options.dry_run)
        && made.new < made.old
        && made.new < data.len()
    {
        data.set_len(made.new).map_err(|error| Error::io("could not cut the data file", error))?;
    }
    let mut file_size = changed.file_len;
    if made.new < made.old && file_size > len {
        let storage = match &opened.target {
            Some(target) => Some(Arc::clone(target) as _),
            None => lock(&planned).take(),
        };
        let again = storage.map(|storage| Opened { storage, target: opened.target.clone() });
        let shorter = again.map(|again| shorten(&again, len, options.threads, cancel));
        // The disk has its new size, and an image is no worse for being long.
        file_size = shorter.and_then(Result::ok).unwrap_or(file_size);
    }
    Ok(ResizeOutcome {
        size_before: made.old,
        size: made.new,
        dry_run: options.dry_run,
        data_lost: made.lost,
        hidden: made.hidden,
        file_size,
        repaired: changed.repaired,
    })
}

/// Moves what lies behind the `old` end of the file, which are tables that found no other free place, to where the disk
/// was that is gone, and cuts the file. Gives its length.
fn shorten(opened: &Opened, old: u64, threads: usize, cancel: &CancelToken) -> Result<u64> {
    let len = opened.storage.len();
    let vacate = |edit: &mut Edit| {
        edit.trim_counts();
        edit.vacate(edit.geometry().clusters_for(old), cancel)
    };
    let shorter = |change: &Change, _: &u64| Ok(change.file_len() < len);
    let (_, changed) = change_if(opened, threads, &Silent, cancel, vacate, shorter)?;
    Ok(changed.file_len)
}

/// Whether the external data file is to read as the disk.
fn is_raw_outside(edit: &Edit) -> bool {
    edit.image().header().autoclear.contains(Autoclear::DATA_FILE_RAW)
}

fn make(edit: &mut Edit, old: &Old, size: NewSize, options: &ResizeOptions) -> Result<Made> {
    let before = edit.image().virtual_size();
    let new = size.of(before)?;
    check_sectors(new)?;
    let mut made = Made { old: before, new, ..Made::default() };
    if new == before {
        check(before, new, options, || Ok(0))?;
        return Ok(made);
    }
    refuse_old_version(edit)?;
    resize_all(edit, new)?;
    let geometry = edit.geometry();
    let entries = to_usize(geometry.new_l1_entries(new)?);
    // What lies behind the smaller disk is no part of either: dropped, and the VM state with it.
    let kept = to_usize(geometry.l1_entries_for(before.min(new)));
    let mut l1 = edit.active_l1()?;
    let behind = l1.split_off(kept.min(l1.len()));
    let in_tables = edit.data_clusters(&behind)?;
    edit.lower_all(&behind)?;
    let end = geometry.clusters_for(before.min(new));
    let of_tables = (l1.len() as u64).times(geometry.l2_entries())?;
    let dropped = edit.remap(&mut l1, end.min(of_tables)..of_tables, Remap::Nothing)?;
    if new < before {
        made.lost = in_tables.plus(dropped)?.times(geometry.cluster_size())?;
    }
    check(before, new, options, || Ok(made.lost))?;
    l1.resize(entries, 0);
    Edge { old, before, new }.clean(edit, &mut l1)?;
    if new > before {
        made.hidden = fill(edit, &mut l1, before, new, old.below(), options.preallocation)?;
    } else {
        edit.trim_counts();
    }
    edit.replace_l1(&l1)?;
    edit.set_header(&HeaderPatch::size(new))?;
    Ok(made)
}

fn refuse_old_version(edit: &Edit) -> Result<()> {
    if edit.image().header().version == Version::V2 && !edit.image().snapshots().is_empty() {
        return Err(Error::unsupported(
            "a version 2 image with internal snapshots keeps its size, which they do not record",
        )
        .hint(Remedy::Flatten));
    }
    Ok(())
}

/// Has the new part read as zeros, and allocates it if asked for. Gives how many bytes of the backing file it hides.
fn fill(
    edit: &mut Edit,
    l1: &mut [u64],
    before: u64,
    new: u64,
    below: u64,
    preallocation: Preallocation,
) -> Result<u64> {
    let geometry = edit.geometry();
    let (first, end) = (geometry.clusters_for(before), geometry.clusters_for(new));
    let hidden = below.min(new).max(before).minus(before)?;
    if is_raw_outside(edit) || preallocation != Preallocation::Off {
        allocate(edit, l1, first, end, preallocation)?;
    } else if geometry.clusters_for(below.min(new)) > first {
        let shown = geometry.clusters_for(below.min(new));
        if edit.image().header().version == Version::V2 {
            return Err(Error::unsupported(
                "the backing file is longer than the disk, and version 2 has no zero clusters to hide that",
            )
            .hint(Remedy::Flatten));
        }
        edit.remap(l1, first..shown, Remap::Zeros)?;
    }
    Ok(hidden)
}

fn allocate(
    edit: &mut Edit,
    l1: &mut [u64],
    first: u64,
    end: u64,
    preallocation: Preallocation,
) -> Result<()> {
    let geometry = edit.geometry();
    let start = first.times(geometry.cluster_size())?;
    if first == end {
        return Ok(());
    }
    if edit.image().has_data_file() {
        edit.remap(l1, first..end, Remap::Places(HostOffset(start)))?;
        return Ok(());
    }
    let len = end.minus(first)?.times(geometry.cluster_size())?;
    // Behind the end of the file all is zeros.
    let from = geometry.clusters_for(edit.image().storage().len());
    let place = edit.allocate_from(len, from)?;
    edit.remap(l1, first..end, Remap::Places(place))?;
    let how = match preallocation {
        Preallocation::Off | Preallocation::Metadata => Zeroes::Unmap,
        Preallocation::Falloc | Preallocation::Full => Zeroes::Keep,
    };
    edit.zero(place, len, how)
}

/// Makes an external data file as long as the disk that is to be. What it has behind the end of the disk that is, is zeroed,
/// but for one that is a raw disk by itself: there it is somebody's data, and becomes the disk's, as with QEMU.
fn grow_data_file(
    data: &dyn WriteStorage,
    made: &Made,
    raw: bool,
    preallocation: Preallocation,
) -> Result<()> {
    if made.new <= made.old {
        return Ok(());
    }
    let failed = |error| Error::io("could not lengthen the data file", error);
    let there = data.len().min(made.new);
    if there > made.old && !raw {
        data.write_zeroes(made.old, there.minus(made.old)?, Zeroes::Unmap).map_err(failed)?;
    }
    if raw || preallocation != Preallocation::Off {
        if data.len() < made.new {
            data.set_len(made.new).map_err(failed)?;
        }
        super::raw::reserve(data, made.old, made.new, preallocation).map_err(failed)?;
    }
    data.sync().map_err(failed)
}
