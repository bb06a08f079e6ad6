//! Before an image is written to: one that was not closed properly is repaired, and of any other the refcounts
//! are proven.
//!
//! Whoever writes believes the refcounts: a cluster that is used, and counted as free, would be given to another
//! range and written over. No crash of this crate's makes such a count, but a crash of QEMU with lazy
//! refcounts does, and so can damage and forgery. So all metadata is read once before the first write, as
//! [`check`](super::check) does it; leaks are no errors.

use std::sync::Arc;

use super::{CheckOptions, CheckOutcome, RepairOptions, Scope, check_image, make_plan};
use crate::format::Incompatible;
use crate::image::{Purpose, read_header_area};
use crate::io::{Storage, WriteStorage};
use crate::{CancelToken, Error, Observer, Remedy, Result};

/// What an image that had not been closed properly needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Repaired {
    /// Refcounts, copied flags and entries that were wrong.
    pub corruptions: u64,
    /// Clusters that were counted and not used.
    pub leaks: u64,
}

/// Whether the image is marked as not closed properly, and not as corrupt: that is refused by who opens it.
///
/// # Errors
/// As reading its header.
pub(crate) fn is_dirty(storage: &dyn Storage) -> Result<bool> {
    let bits = read_header_area(storage, Purpose::Check)?.header.incompatible;
    Ok(bits.contains(Incompatible::DIRTY) && !bits.contains(Incompatible::CORRUPT))
}

/// What repairs an image that was not closed properly, and what it needs. The mark goes last, when all else is
/// durable: a crash before leaves an image that is still marked, and is repaired the next time.
///
/// # Errors
/// As [`make_plan`]: what cannot be repaired without loss is left alone.
pub(crate) fn plan(
    storage: &Arc<dyn Storage>,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<(super::repair::Plan, Repaired)> {
    let options = RepairOptions::new(Scope::All).check(CheckOptions::default().max_findings(0));
    let (before, plan) = make_plan(storage, &options, observer, cancel)?;
    let corruptions = before.corruptions.max(before.check_errors);
    Ok((plan, Repaired { corruptions, leaks: before.leaks }))
}

/// Repairs the image if it was not closed properly, otherwise proves its refcounts, with the threads of the
/// caller's pool.
///
/// # Errors
/// [`Corrupt`](crate::ErrorKind::Corrupt) if its metadata has errors; as [`plan`].
pub(crate) fn take_over(
    storage: &Arc<dyn WriteStorage>,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Option<Repaired>> {
    let read = Arc::clone(storage) as Arc<dyn Storage>;
    if is_dirty(&*read)? {
        let (plan, repaired) = plan(&read, observer, cancel)?;
        plan.changes.apply(&**storage)?;
        return Ok(Some(repaired));
    }
    prove(&read, observer, cancel)?;
    Ok(None)
}

/// Checks all metadata, and refuses what has errors. Gives what was found.
///
/// # Errors
/// [`Corrupt`](crate::ErrorKind::Corrupt) if there are any.
pub(crate) fn prove(
    storage: &Arc<dyn Storage>,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<CheckOutcome> {
    let options = CheckOptions::default().max_findings(1);
    let found = check_image(Arc::clone(storage), &options, observer, cancel)?;
    if found.corruptions == 0 && found.check_errors == 0 {
        return Ok(found);
    }
    let errors = found.corruptions.max(found.check_errors);
    Err(Error::corrupt(format!(
        "the image has {errors} errors in its metadata, and is not changed"
    ))
    .hint(Remedy::Repair))
}
