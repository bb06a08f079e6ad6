//! Raw disks: the file's length.

use std::path::Path;

use super::{NewSize, ResizeOptions, ResizeOutcome, check};
use crate::chain::open_writable;
use crate::exact::Exact;
use crate::io::{FileStorage, Storage, WriteStorage, Zeroes};
use crate::ops::Preallocation;
use crate::{Error, Remedy, Result};

/// Written at once when space is filled with zeros.
const PIECE: u64 = 1 << 20;

pub(super) fn resize(path: &Path, size: NewSize, options: &ResizeOptions) -> Result<ResizeOutcome> {
    if options.preallocation == Preallocation::Metadata {
        return Err(Error::unsupported("a raw disk has no metadata to preallocate")
            .hint("use preallocation=off, falloc or full"));
    }
    let opened = open_writable(path, &options.open)?;
    let (old, file) = (opened.file.len(), &opened.file);
    let new = size.of(old)?;
    let lost = lost(file.reading(), new)?;
    check(old, new, options, || Ok(lost))?;
    if !file.capabilities().resize && new != old {
        return Err(Error::unsupported("a block device has the size that it has")
            .hint("change the size of the partition or volume"));
    }
    if !options.dry_run && new != old {
        file.set_len(new).map_err(|error| Error::io("could not change the length", error))?;
        reserve(file, old, new, options.preallocation).map_err(|error| {
            // What could not be reserved is not there.
            let _ = file.set_len(old);
            Error::io("could not reserve space", error).hint(Remedy::FreeSpace)
        })?;
        file.sync().map_err(|error| Error::io("could not sync", error))?;
    }
    Ok(ResizeOutcome {
        size_before: old,
        size: new,
        dry_run: options.dry_run,
        data_lost: lost,
        hidden: 0,
        file_size: new,
        repaired: None,
    })
}

/// Allocated bytes behind `end`.
fn lost(file: &FileStorage, end: u64) -> Result<u64> {
    let failed = |error| Error::io("could not find the file's holes", error);
    let (mut at, mut lost) = (end, 0u64);
    while at < file.len() {
        let Some(data) = file.next_data(at).map_err(failed)? else { break };
        at = file.next_hole(data).map_err(failed)?;
        lost = lost.plus(at.minus(data)?)?;
    }
    Ok(lost)
}

/// Allocates what the file has become longer by.
pub(super) fn reserve(
    file: &dyn WriteStorage,
    old: u64,
    new: u64,
    how: Preallocation,
) -> std::io::Result<()> {
    let Some(len) = new.checked_sub(old).filter(|len| *len > 0) else { return Ok(()) };
    match how {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => file.write_zeroes(old, len, Zeroes::Keep),
        Preallocation::Full => {
            let mut at = old;
            while let Some(left) = new.checked_sub(at).filter(|left| *left > 0) {
                let piece = crate::io::zeros(left.min(PIECE));
                file.write_at(piece, at)?;
                at = at.checked_add(piece.len() as u64).ok_or(std::io::ErrorKind::InvalidInput)?;
            }
            Ok(())
        }
    }
}
