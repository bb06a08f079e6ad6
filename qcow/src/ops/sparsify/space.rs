//! Space that the file does not need is given back to the file system. No byte reads as another one for that, but
//! those that nothing refers to.

use std::ops::Range;
use std::sync::Arc;

use crate::exact::Exact;
use crate::image::edit::Edit;
use crate::io::{Storage, WriteStorage, Zeroes};
use crate::ops::edit::Opened;
use crate::{CancelToken, Error, Result};

/// Makes holes where the file has zeros. A block device keeps its space: that would only write the zeros once more.
pub(super) fn punch_zeros(
    target: &dyn WriteStorage,
    zeros: &[Range<u64>],
    cancel: &CancelToken,
) -> Result<()> {
    let can = target.capabilities();
    if !can.unmap || !can.resize {
        return Ok(());
    }
    for range in zeros {
        for part in stored(target, range.clone())? {
            cancel.check()?;
            target
                .write_zeroes(part.start, part.end.minus(part.start)?, Zeroes::Unmap)
                .map_err(|error| Error::io("could not make a hole", error))?;
        }
    }
    Ok(())
}

/// Makes holes of the free clusters of an image, and cuts the file behind the last one in use. Gives its length.
pub(super) fn give_back(opened: &Opened, cancel: &CancelToken) -> Result<u64> {
    let Some(target) = &opened.target else { return Ok(opened.storage.len()) };
    let mut edit = Edit::open(Arc::clone(&opened.storage), true)?;
    let survey = edit.survey(cancel)?;
    let failed = |error| Error::io("could not give back space", error);
    for free in survey.free()? {
        for part in stored(&**target, free)? {
            cancel.check()?;
            target.discard(part.start, part.end.minus(part.start)?).map_err(failed)?;
        }
    }
    let end = survey.end().times(edit.geometry().cluster_size())?;
    if target.capabilities().resize && end < target.len() {
        target.set_len(end).map_err(failed)?;
    }
    target.sync().map_err(|error| Error::io("could not sync", error))?;
    Ok(target.len())
}

/// Where the last cluster in use of an image ends, or the image's file if that is earlier.
pub(super) fn end(storage: &Arc<dyn Storage>, cancel: &CancelToken) -> Result<u64> {
    let mut edit = Edit::open(Arc::clone(storage), true)?;
    let end = edit.survey(cancel)?.end().times(edit.geometry().cluster_size())?;
    Ok(end.min(storage.len()))
}

/// The parts of a range that are no holes.
fn stored(file: &dyn WriteStorage, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let failed = |error| Error::io("could not find the file's holes", error);
    let end = range.end.min(file.len());
    let (mut at, mut parts) = (range.start, Vec::new());
    while at < end {
        let Some(data) = file.next_data(at).map_err(failed)?.filter(|data| *data < end) else {
            break;
        };
        at = file.next_hole(data).map_err(failed)?.min(end);
        if at <= data {
            break;
        }
        parts.push(data..at);
    }
    Ok(parts)
}
