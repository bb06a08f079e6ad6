//! Changes the size of a disk in place, both ways.
//!
//! In a QCOW2 image that is one switch of the header's sector, with two barriers: size, L1 table, refcounts and
//! what else changes are there at once, or not at all. A second one, when a disk became smaller, moves the new
//! tables to places that are free since the first, so that the file becomes shorter. What the disk becomes larger by reads as zeros, whatever
//! a longer backing file has there, or the image behind its end.

mod edge;
mod qcow2;
mod raw;

use std::path::Path;

use serde::Serialize;

use super::Preallocation;
use crate::chain::{Format, OpenOptions, open_file};
use crate::check::Repaired;
use crate::format::SECTOR;
use crate::setters::setters;
use crate::{CancelToken, Error, Observer, Remedy, Result};

/// The size that a disk is to have, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NewSize {
    /// This.
    Exactly(u64),
    /// Larger by this.
    Plus(u64),
    /// Smaller by this.
    Minus(u64),
}

impl NewSize {
    /// The size, for a disk that has `old` bytes.
    fn of(self, old: u64) -> Result<u64> {
        let new = match self {
            Self::Exactly(size) => Some(size),
            Self::Plus(bytes) => old.checked_add(bytes),
            Self::Minus(bytes) => old.checked_sub(bytes).or(Some(0)),
        };
        match new.filter(|size| i64::try_from(*size).is_ok()) {
            Some(0) => Err(Error::usage("the new size must be larger than 0 bytes")),
            Some(size) => Ok(size),
            None => Err(Error::limit("the disk would be larger than 2^63 bytes")),
        }
    }
}

/// How to change the size.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ResizeOptions {
    /// How the image and what is below it are opened. Of a raw disk the format is to be stated.
    pub open: OpenOptions,
    /// Allow that the disk becomes smaller, and what lies behind its new end is lost.
    pub shrink: bool,
    /// What is allocated of the new part.
    pub preallocation: Preallocation,
    /// Make the new state in memory and check it, and write nothing.
    pub dry_run: bool,
    /// Worker threads of the check; 0 means one per core, at most 16.
    pub threads: usize,
}

impl Default for ResizeOptions {
    fn default() -> Self {
        Self {
            open: OpenOptions::default(),
            shrink: false,
            preallocation: Preallocation::Off,
            dry_run: false,
            threads: 0,
        }
    }
}

setters!(ResizeOptions {
    open: OpenOptions,
    shrink: bool,
    preallocation: Preallocation,
    dry_run: bool,
    threads: usize,
} into {});

/// What was, or would be, done. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ResizeOutcome {
    /// Size of the disk before.
    pub size_before: u64,
    /// Size of the disk afterwards.
    pub size: u64,
    /// Whether this is only a plan.
    pub dry_run: bool,
    /// Allocated bytes behind the new end, which are gone from the disk. Snapshots keep theirs.
    pub data_lost: u64,
    /// Bytes that read as zeros where a longer backing file has data.
    pub hidden: u64,
    /// Length of the image's file afterwards.
    pub file_size: u64,
    /// What was, or would be, repaired before, because the image had not been closed properly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

/// Gives the disk in the image at `path` another size.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("vm.qcow2");
/// use qcow::ops::create::{CreateOptions, create};
/// use qcow::ops::resize::{NewSize, ResizeOptions, resize};
/// use qcow::{CancelToken, ErrorKind, Silent};
///
/// create(&path, &CreateOptions::default().size(1 << 30))?;
/// let (options, cancel) = (ResizeOptions::default(), CancelToken::new());
/// let grown = resize(&path, NewSize::Plus(1 << 30), &options, &Silent, &cancel)?;
/// assert_eq!(grown.size, 2 << 30);
/// let refused = resize(&path, NewSize::Exactly(1 << 20), &options, &Silent, &cancel);
/// assert_eq!(refused.unwrap_err().kind(), ErrorKind::Usage);
/// resize(&path, NewSize::Exactly(1 << 20), &options.shrink(true), &Silent, &cancel)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`InUse`](crate::ErrorKind::InUse) if another process uses the image; [`Usage`](crate::ErrorKind::Usage) for a
/// size of 0 or, of a QCOW2 image, no multiple of 512, and for a smaller one unless
/// [`shrink`](ResizeOptions::shrink) is set; [`Unsupported`](crate::ErrorKind::Unsupported) for a version 2 image
/// with snapshots; [`Limit`](crate::ErrorKind::Limit) if the tables would be too long;
/// [`Corrupt`](crate::ErrorKind::Corrupt) if the image is to be repaired first. Nothing is written then.
pub fn resize(
    path: &Path,
    size: NewSize,
    options: &ResizeOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<ResizeOutcome> {
    let (_, format) = open_file(path, options.open.format, &options.open.policy)?;
    let outcome = match format {
        Format::Raw => raw::resize(path, size, options),
        _ => qcow2::resize(path, size, options, observer, cancel),
    };
    outcome.map_err(|error| error.file(path))
}

/// As [`resize`], for a QCOW2 image without a data file, in a storage.
#[cfg(test)]
pub(crate) fn resize_on(
    opened: &super::edit::Opened,
    target: std::sync::Arc<dyn crate::io::WriteStorage>,
    backing: Option<crate::chain::Chain>,
    size: NewSize,
    options: &ResizeOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<ResizeOutcome> {
    let old = edge::Old::writing(target, None, backing);
    qcow2::resize_in(opened, None, old, size, options, observer, cancel)
}

/// Checks what does not depend on the format.
fn check(
    old: u64,
    new: u64,
    options: &ResizeOptions,
    lost: impl FnOnce() -> Result<u64>,
) -> Result<()> {
    if new < old && !options.shrink {
        let lost = lost()?;
        return Err(Error::usage(format!(
            "a disk of {new} bytes is smaller than the {old} that it has, and {lost} allocated bytes behind its end \
             would be lost"
        ))
        .hint(Remedy::Shrink));
    }
    if new <= old && options.preallocation != Preallocation::Off {
        return Err(Error::usage("space is preallocated only for what a disk becomes larger by"));
    }
    Ok(())
}

/// Checks that the size is one that a QCOW2 image can have.
fn check_sectors(new: u64) -> Result<()> {
    if new & SECTOR.wrapping_sub(1) == 0 {
        return Ok(());
    }
    Err(Error::usage(format!("the size of {new} bytes is not a multiple of {SECTOR}")))
}
