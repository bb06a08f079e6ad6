//! Changes persistent bitmaps in place: which there are, whether they record writes, and what they have as
//! dirty.
//!
//! A bitmap says which parts of the disk changed since some moment, so that a backup copies no others. All
//! that is asked for with one call is one change: it is there as a whole, or, after a crash or an error, not
//! at all.

mod actions;
mod carry;
mod resize;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::edit::{Opened, change};
use super::info::BitmapSummary;
use crate::chain::{Chain, Format};
use crate::check::Repaired;
use crate::image::edit::Edit;
use crate::io::WriteStorage;
use crate::setters::setters;
use crate::{CancelToken, Observer, Result};

use actions::Directory;
pub(crate) use actions::set_extension;
pub(crate) use carry::Carried;
pub use carry::CarryBitmaps;
pub(crate) use resize::{mark_all, resize_all};

/// What to do with a bitmap.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum BitmapAction {
    /// Adds it, without a bit set. It records writes.
    Add {
        /// Guest bytes for each bit, a power of two from 512 to 2 GiB; the cluster size if `None`, but at
        /// least 4 KiB and at most 64 KiB.
        granularity: Option<u64>,
    },
    /// Removes it. The only thing that can be done with one that was not stored cleanly.
    Remove,
    /// Clears all its bits.
    Clear,
    /// Has it record writes from now on.
    Enable,
    /// Has it stay as it is from now on, whatever is written.
    Disable,
    /// Sets the bits of all that another bitmap has as dirty.
    Merge {
        /// Name of the other bitmap.
        bitmap: Vec<u8>,
        /// The image that it is in, the active layer of this chain; the same image if `None`.
        from: Option<Chain>,
    },
}

impl BitmapAction {
    /// The word for it in `qemu-img`'s messages.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge { .. } => "merge",
        }
    }
}

/// How to change bitmaps.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BitmapOptions {
    /// Format of the image; `None` looks at its first bytes.
    pub format: Option<Format>,
    /// Only look whether it can be done.
    pub dry_run: bool,
    /// Threads that check the image; 0 means one per core.
    pub threads: usize,
}

setters!(BitmapOptions {
    dry_run: bool,
    threads: usize,
} into {
    format: Option<Format>,
});

/// The bitmaps of an image after a change, or as they would be.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct BitmapOutcome {
    /// The image.
    #[serde(serialize_with = "super::path_text")]
    pub filename: PathBuf,
    /// Its bitmaps, in the directory's order.
    pub bitmaps: Vec<BitmapSummary>,
    /// Whether anything is different.
    pub changed: bool,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// What was, or would be, repaired before, because the image had not been closed properly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

/// Changes the bitmap `name` of the image at `path`: the actions one after the other, all or none of them.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("vm.qcow2");
/// # use qcow::ops::create::{CreateOptions, create};
/// # create(&path, &CreateOptions::default().size(1 << 30))?;
/// use qcow::ops::bitmap::{BitmapAction, BitmapOptions, change_bitmap};
/// use qcow::{CancelToken, Silent};
///
/// let add = [BitmapAction::Add { granularity: None }];
/// let options = BitmapOptions::default();
/// let outcome = change_bitmap(&path, b"backup-1", &add, &options, &Silent, &CancelToken::new())?;
/// assert_eq!(outcome.bitmaps[0].granularity, 65536);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Nothing is written then. [`Usage`](crate::ErrorKind::Usage) if there is no such bitmap, or one already, or
/// for a granularity that bitmaps cannot have; [`Unsupported`](crate::ErrorKind::Unsupported) for images of
/// version 2; [`Limit`](crate::ErrorKind::Limit) for more or larger bitmaps than the format allows;
/// [`Corrupt`](crate::ErrorKind::Corrupt) if the bitmap was not stored cleanly, or if the image's metadata has
/// errors; [`InUse`](crate::ErrorKind::InUse) if another process uses the image.
pub fn change_bitmap(
    path: &Path,
    name: &[u8],
    actions: &[BitmapAction],
    options: &BitmapOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<BitmapOutcome> {
    let opened = Opened::file(path, options.dry_run)?;
    opened
        .check_qcow2(path, options.format, "bitmaps")
        .and_then(|()| work(&opened, name, actions, options, observer, cancel))
        .map(|outcome| BitmapOutcome { filename: path.into(), ..outcome })
        .map_err(|error| error.file(path))
}

/// As [`change_bitmap`], for an image in a storage of yours.
///
/// # Errors
/// As there.
pub fn change_bitmap_in(
    storage: Arc<dyn WriteStorage>,
    name: &[u8],
    actions: &[BitmapAction],
    options: &BitmapOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<BitmapOutcome> {
    let mut opened = Opened::storage(storage);
    opened.target = opened.target.filter(|_| !options.dry_run);
    work(&opened, name, actions, options, observer, cancel)
}

fn work(
    opened: &Opened,
    name: &[u8],
    actions: &[BitmapAction],
    options: &BitmapOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<BitmapOutcome> {
    let make = |edit: &mut Edit| {
        let mut directory = Directory::read(edit.image())?;
        for action in actions {
            cancel.check()?;
            directory.apply(edit.image(), name, action)?;
        }
        let bitmaps = directory.summaries();
        directory.store(edit)?;
        Ok(bitmaps)
    };
    let (bitmaps, changed) = change(opened, options.threads, observer, cancel, make)?;
    Ok(BitmapOutcome {
        filename: PathBuf::new(),
        bitmaps,
        changed: changed.changed,
        dry_run: options.dry_run,
        repaired: changed.repaired,
    })
}
