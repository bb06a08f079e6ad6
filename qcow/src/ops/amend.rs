//! Changes what an image is, in place: its version, the width of its refcounts, lazy refcounts, the name of
//! its external data file. What the guest sees stays what it is.
//!
//! All that is asked for is validated first, and is one change: it is there as a whole, or, after a crash or an
//! error, not at all.

mod data_file;
mod plan;
mod zeros;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::edit::{Opened, change};
use crate::chain::{Format, Policy};
use crate::check::Repaired;
use crate::format::Version;
use crate::io::WriteStorage;
use crate::setters::setters;
use crate::{CancelToken, Observer, Result};

/// What to change. What is `None` stays.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct AmendOptions {
    /// Version of the format. From 3 to 2 only if nothing needs version 3; clusters that read as zeros by
    /// their flag become data where there is a backing file, and unallocated where there is none.
    pub version: Option<Version>,
    /// Whether QEMU may postpone refcounts while it writes. This crate does not.
    pub lazy_refcounts: Option<bool>,
    /// Width of the refcounts in bits, a power of two from 1 to 64; other than 16 only in version 3.
    pub refcount_bits: Option<u32>,
    /// Another name for the external data file, for an image that has one. The file is not touched. Without a name,
    /// which is only taken with `unchecked`, the image can only be opened by a `json:` name that says where it is.
    pub data_file: Option<PathBuf>,
    /// `false`: the data file is not kept valid as a raw image any more. `true` only if it is already.
    pub data_file_raw: Option<bool>,
    /// Remove persistent bitmaps when the version becomes 2, which has none. Otherwise that is refused.
    pub drop_bitmaps: bool,
    /// Do not look at the new data file.
    pub unchecked: bool,
    /// Format of the image; `None` looks at its first bytes.
    pub format: Option<Format>,
    /// Only look whether it can be done.
    pub dry_run: bool,
    /// Threads that check the image; 0 means one per core.
    pub threads: usize,
    /// Which data files may be opened.
    pub policy: Policy,
}

setters!(AmendOptions {
    drop_bitmaps: bool,
    unchecked: bool,
    dry_run: bool,
    threads: usize,
    policy: Policy,
} into {
    version: Option<Version>,
    lazy_refcounts: Option<bool>,
    refcount_bits: Option<u32>,
    data_file: Option<PathBuf>,
    data_file_raw: Option<bool>,
    format: Option<Format>,
});

/// What was, or would be, changed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct AmendOutcome {
    /// The image.
    #[serde(serialize_with = "super::path_text")]
    pub filename: PathBuf,
    /// What is different, by the names of `qemu-img`'s options.
    pub changes: Vec<AmendChange>,
    /// Bitmaps that are removed.
    #[serde(skip_serializing_if = "crate::check::is_zero")]
    pub bitmaps_dropped: u64,
    /// Bytes of zeros that are written because the version has no other way to say so.
    #[serde(skip_serializing_if = "crate::check::is_zero")]
    pub zeros_written: u64,
    /// Length of the file in bytes.
    pub file_length: u64,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// What was, or would be, repaired before, because the image had not been closed properly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

/// One thing that is different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct AmendChange {
    /// `compat`, `refcount_bits`, `lazy_refcounts`, `data_file` or `data_file_raw`.
    pub option: &'static str,
    /// Its value before.
    pub from: String,
    /// Its value afterwards.
    pub to: String,
}

/// Changes the image at `path`.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("vm.qcow2");
/// # use qcow::ops::create::{CreateOptions, create};
/// # create(&path, &CreateOptions::default().size(1 << 30))?;
/// use qcow::ops::amend::{AmendOptions, amend};
/// use qcow::{CancelToken, Silent};
///
/// let options = AmendOptions::default().refcount_bits(32).lazy_refcounts(true);
/// let outcome = amend(&path, &options, &Silent, &CancelToken::new())?;
/// assert_eq!(outcome.changes[0].option, "refcount_bits");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Nothing is written then. [`Usage`](crate::ErrorKind::Usage) for what does not go together or with the
/// image; [`Unsupported`](crate::ErrorKind::Unsupported) if the image has what version 2 has not;
/// [`Limit`](crate::ErrorKind::Limit) if a refcount does not fit the new width, naming the cluster;
/// [`Corrupt`](crate::ErrorKind::Corrupt) if the image's metadata has errors;
/// [`InUse`](crate::ErrorKind::InUse) if another process uses the image.
pub fn amend(
    path: &Path,
    options: &AmendOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<AmendOutcome> {
    let opened = Opened::file(path, options.dry_run).map_err(|error| error.file(path))?;
    let outcome = opened
        .check_qcow2(path, options.format, "metadata to amend")
        .and_then(|()| data_file::check(&opened, path, options, cancel))
        .and_then(|()| work(&opened, options, observer, cancel));
    outcome
        .map(|outcome| AmendOutcome { filename: path.into(), ..outcome })
        .map_err(|error| error.file(path))
}

/// As [`amend`], for an image in a storage of yours. A new data file is not looked at.
///
/// # Errors
/// As there.
pub fn amend_in(
    storage: Arc<dyn WriteStorage>,
    options: &AmendOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<AmendOutcome> {
    let mut opened = Opened::storage(storage);
    opened.target = opened.target.filter(|_| !options.dry_run);
    work(&opened, options, observer, cancel)
}

fn work(
    opened: &Opened,
    options: &AmendOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<AmendOutcome> {
    let (made, changed) = change(opened, options.threads, observer, cancel, |edit| {
        let plan = plan::Plan::new(edit.image(), options)?;
        plan.carry_out(edit, cancel)
    })?;
    Ok(AmendOutcome {
        filename: PathBuf::new(),
        changes: made.changes,
        bitmaps_dropped: made.bitmaps_dropped,
        zeros_written: made.zeros_written,
        file_length: changed.file_len,
        dry_run: options.dry_run,
        repaired: changed.repaired,
    })
}
