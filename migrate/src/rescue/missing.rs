//! What is left of a disk whose chain is cut, and what is not.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use qcow::CancelToken;
use qcow::chain::{Chain, Files, Format, OpenOptions, walk};
use qcow::extent::{ExtentKind, LeftOut};
use qcow::ops::digest::{LEAF, TreeHash};

use crate::{Error, Remedy, Result};

/// Where a chain is cut.
#[derive(Debug)]
pub(super) struct Cut {
    /// The layers above, of which there is at least one.
    pub(super) layers: usize,
    /// The image that names what is gone.
    pub(super) by: PathBuf,
    /// The name, made absolute.
    pub(super) name: PathBuf,
    /// The format that is recorded for it.
    pub(super) format: Option<Format>,
}

/// Goes down the chain of `image` to where a file is gone; `None` if none is.
pub(super) fn find(image: &Path, format: Option<Format>) -> Result<Option<Cut>> {
    let options = OpenOptions::default().format(format);
    for found in walk(Files::new(&options), image, &options) {
        let Err(broken) = found else { continue };
        // A file of unrecorded format is not opened; whether it is there is another matter.
        let gone = broken.is_gone() || broken.format.is_none() && is_gone(&broken.path);
        return match broken.by {
            Some(by) if gone => Ok(Some(Cut {
                layers: broken.depth,
                by,
                name: crate::audit::canonical(&broken.path),
                format: broken.format,
            })),
            _ => Err(in_use(broken.error)),
        };
    }
    Ok(None)
}

fn is_gone(path: &Path) -> bool {
    let gone = |error: &std::io::Error| {
        matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
    };
    std::fs::metadata(path).is_err_and(|error| gone(&error))
}

/// An image that a process uses belongs to a guest that runs.
pub(super) fn in_use(error: qcow::Error) -> Error {
    if error.kind() == qcow::ErrorKind::InUse {
        return Error::refused(error.message()).hint(Remedy::NameGuest);
    }
    error.into()
}

/// The ranges of the disk that come from what is gone. `base` is what is known
/// of that: past its end and where it is zeros, nothing is lost.
pub(super) fn ranges(
    image: &Path,
    format: Option<Format>,
    cut: &Cut,
    base: Option<&TreeHash>,
    cancel: &CancelToken,
) -> Result<LeftOut> {
    let options = OpenOptions::default().format(format);
    let chain = Chain::open_upper(image, &options, cut.layers).map_err(in_use)?;
    // Past the end of any layer, nothing below it is seen.
    let layers = chain.layers().iter().map(qcow::chain::Layer::virtual_size);
    let end = layers.chain(base.map(|base| base.virtual_size)).min().unwrap_or_default();
    let mut lost = LeftOut::default();
    for extent in chain.extents() {
        cancel.check()?;
        let extent = extent?;
        if extent.guest.0 >= end {
            break;
        }
        if extent.kind == ExtentKind::Unallocated {
            let (start, stop) = (extent.guest.0, extent.end().min(end));
            match base {
                None => lost.add(start, stop),
                Some(base) => add_data(&mut lost, base, start, stop),
            }
        }
    }
    Ok(lost)
}

/// Adds what lies in leaves that are not all zeros.
fn add_data(lost: &mut LeftOut, base: &TreeHash, start: u64, end: u64) {
    let first = base
        .leaves
        .partition_point(|leaf| leaf.index.saturating_add(1).saturating_mul(LEAF) <= start);
    for leaf in base.leaves.get(first..).unwrap_or_default() {
        let from = leaf.index.saturating_mul(LEAF);
        if from >= end {
            break;
        }
        lost.add(from.max(start), from.saturating_add(LEAF).min(end));
    }
}
