//! Changes an image in place by one switch of its header: opens it for that, checks it before, and
//! checks what it would become.
//!
//! What the operations that are built on this have in common:
//!
//! 1. The image is locked as QEMU locks what it changes; one that another process uses is refused.
//! 2. An image that was not closed properly is repaired first. All metadata is checked, because what has a
//!    refcount that is too low would be written over. An image with errors is refused; leaks are not errors.
//! 3. The new state is made in memory, and checked as if it had been written. If it had an error that would
//!    be a bug of this crate's, and nothing is written.
//! 4. It is written to space that is free, made durable, and switched to: see `image::edit`.

use std::path::Path;
use std::sync::Arc;

use crate::chain::{Format, data_file_of, local_path, probe_format};
use crate::check::{CheckOptions, CheckOutcome, Repaired, check_image, in_pool, takeover};
use crate::image::edit::{Change, Edit};
use crate::image::{Purpose, read_header_area};
use crate::io::{Access, FileStorage, Storage, WritableFile, WriteStorage};
use crate::{CancelToken, Error, Observer, Result, Silent};

/// An image opened for a plan, or to be changed.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) storage: Arc<dyn Storage>,
    /// The same, to be written to; `None` if only a plan is wanted.
    pub(crate) target: Option<Arc<dyn WriteStorage>>,
}

impl Opened {
    /// Opens the image file at `path`, locked so that no other process writes to it, or uses it at all if it
    /// is to be changed.
    ///
    /// # Errors
    /// [`InUse`](crate::ErrorKind::InUse) if another process does.
    pub(crate) fn file(path: &Path, dry_run: bool) -> Result<Self> {
        let path = local_path(path)?;
        if dry_run {
            let storage = FileStorage::open(&path)?;
            storage.lock(Access::READ, Access::WRITE | Access::RESIZE)?;
            return Ok(Self { storage: Arc::new(storage), target: None });
        }
        Ok(Self::storage(Arc::new(WritableFile::open(&path)?)))
    }

    /// A storage that is to be changed, and that nobody else uses.
    pub(crate) fn storage(target: Arc<dyn WriteStorage>) -> Self {
        Self { storage: Arc::clone(&target) as _, target: Some(target) }
    }

    /// Checks that this is a QCOW2 image, whatever the path is for.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if it is another format: `what` it has not.
    pub(crate) fn check_qcow2(
        &self,
        path: &Path,
        stated: Option<Format>,
        what: &str,
    ) -> Result<()> {
        match probe_format(&*self.storage, path, stated)? {
            // QEMU opens no image whose data file it could not find either.
            Format::Qcow2 => {
                let area = read_header_area(&*self.storage, Purpose::Read)?;
                data_file_of(&area, path).map(drop)
            }
            format => Err(Error::unsupported(format!("{format} images have no {what}"))),
        }
    }
}

/// What a change was, or would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Whether anything is different.
    pub(crate) changed: bool,
    /// Bytes of the file that became free.
    pub(crate) freed: u64,
    /// Length of the file afterwards.
    pub(crate) file_len: u64,
    /// What was, or would be, repaired before, because the image had not been closed properly.
    pub(crate) repaired: Option<Repaired>,
}

/// Makes a change, and carries it out if `opened` can be written to. `threads` as in
/// [`CheckOptions::threads`].
///
/// # Errors
/// [`Corrupt`](crate::ErrorKind::Corrupt) if the image has errors; those of `work`, after which nothing was
/// written; those of [`Change::apply`].
pub(crate) fn change<T: Send>(
    opened: &Opened,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
    work: impl FnOnce(&mut Edit) -> Result<T> + Send,
) -> Result<(T, Changed)> {
    change_if(opened, threads, observer, cancel, work, |_, _| Ok(true))
}

/// As [`change`], if `judge` finds the change and what `work` gave well: otherwise nothing is written, and nothing is
/// changed. It may read the [result](Change::result).
///
/// # Errors
/// As [`change`], and those of `judge`.
pub(crate) fn change_if<T: Send>(
    opened: &Opened,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
    work: impl FnOnce(&mut Edit) -> Result<T> + Send,
    judge: impl FnOnce(&Change, &T) -> Result<bool> + Send,
) -> Result<(T, Changed)> {
    in_pool(threads, || {
        let Begun { edit, before, repaired } = begin(opened, observer, cancel)?;
        let made = make(opened, edit, &before, cancel, work, judge);
        let (made, changed) = made.map_err(|error| match repaired {
            // Whoever reads that the image is as it was knows that this is not all.
            Some(_) if opened.target.is_some() => {
                error.remark(" (the image had not been closed properly, and was repaired before)")
            }
            _ => error,
        })?;
        Ok((made, Changed { repaired, ..changed }))
    })?
}

fn make<T>(
    opened: &Opened,
    mut edit: Edit,
    before: &CheckOutcome,
    cancel: &CancelToken,
    work: impl FnOnce(&mut Edit) -> Result<T>,
    judge: impl FnOnce(&Change, &T) -> Result<bool>,
) -> Result<(T, Changed)> {
    let made = work(&mut edit)?;
    let change = edit.finish()?;
    prove(&change, before, cancel)?;
    let changed = Changed {
        changed: !change.is_empty(),
        freed: change.freed()?,
        file_len: change.file_len(),
        repaired: None,
    };
    if !judge(&change, &made)? {
        let file_len = opened.storage.len();
        return Ok((made, Changed { changed: false, freed: 0, file_len, repaired: None }));
    }
    cancel.check()?;
    if let Some(target) = &opened.target {
        change.apply(&**target)?;
    }
    Ok((made, changed))
}

/// The image as a change will find it, for an operation that makes something of it before; and what was, or would be,
/// repaired for that.
///
/// # Errors
/// As [`change`].
pub(crate) fn ready(
    opened: &Opened,
    threads: usize,
    cancel: &CancelToken,
) -> Result<(Opened, Option<Repaired>)> {
    let Begun { edit, repaired, .. } = in_pool(threads, || begin(opened, &Silent, cancel))??;
    let storage = Arc::clone(edit.image().storage());
    Ok((Opened { storage, target: opened.target.clone() }, repaired))
}

/// A change that has begun.
struct Begun {
    edit: Edit,
    /// What the check found.
    before: CheckOutcome,
    repaired: Option<Repaired>,
}

/// Opens the image for a change, and checks it.
fn begin(opened: &Opened, observer: &dyn Observer, cancel: &CancelToken) -> Result<Begun> {
    let grows = opened.target.as_ref().is_none_or(|target| target.capabilities().resize);
    let (storage, repaired) = closed(opened, observer, cancel)?;
    let edit = Edit::open(Arc::clone(&storage), grows)?;
    let before = takeover::prove(&storage, observer, cancel)?;
    Ok(Begun { edit, before, repaired })
}

/// The image, repaired first if it was not closed properly: on the disk, or for a plan in memory.
fn closed(
    opened: &Opened,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<(Arc<dyn Storage>, Option<Repaired>)> {
    let storage = Arc::clone(&opened.storage);
    if !takeover::is_dirty(&*storage)? {
        return Ok((storage, None));
    }
    let (plan, repaired) = takeover::plan(&storage, observer, cancel)?;
    let Some(target) = &opened.target else { return Ok((plan.result(), Some(repaired))) };
    plan.changes.apply(&**target)?;
    Ok((storage, Some(repaired)))
}

/// Checks the image that the change makes, in memory.
fn prove(change: &Change, before: &CheckOutcome, cancel: &CancelToken) -> Result<()> {
    let options = CheckOptions::default().max_findings(0);
    let after = check_image(change.result(), &options, &Silent, cancel)?;
    if after.corruptions == 0 && after.check_errors == 0 && after.leaks <= before.leaks {
        return Ok(());
    }
    Err(Error::internal(format!(
        "the changed image would have {} errors and {} leaked clusters, so nothing was written",
        after.corruptions.max(after.check_errors),
        after.leaks
    )))
}
