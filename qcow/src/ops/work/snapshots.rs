//! Internal snapshots that would read as something else once what an image is backed by changes.

use std::ops::Range;
use std::sync::Arc;

use crate::chain::{Chain, Format};
use crate::extent::ExtentKind;
use crate::format::Snapshot;
use crate::io::Storage;
use crate::{Error, Escaped, Remedy, Result};

/// The snapshots of `image`, which is stored in `storage`, that have nothing of their own in one of the `changed`
/// ranges, and so show what lies below. By name; an ID where there is no name.
///
/// # Errors
/// What reading the tables of the snapshots raises.
pub(in crate::ops) fn that_would_change(
    image: &crate::image::Image,
    storage: &Arc<dyn Storage>,
    changed: &[Range<u64>],
) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (index, snapshot) in image.snapshots().iter().enumerate() {
        let chain = Chain::builder().force_share(true).partial(true).snapshot_index(index);
        let chain = chain.layer("", storage.clone(), Format::Qcow2);
        let chain = if image.has_data_file() {
            // Its content does not matter, only what is mapped.
            chain.data_file("", storage.clone())
        } else {
            chain
        };
        if shows_below(&chain.open()?, changed)? {
            names.push(name_of(snapshot));
        }
    }
    Ok(names)
}

/// What says so, of one of `count` snapshots.
pub(in crate::ops) fn refused(name: &str, count: usize) -> Error {
    let more = count.saturating_sub(1);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Error::usage(format!(
        "the internal snapshot '{}'{more} would read as something else: it shows what is below the image",
        Escaped(name)
    ))
    .hint(Remedy::ChangeSnapshots)
}

fn name_of(snapshot: &Snapshot) -> String {
    let name = if snapshot.name.is_empty() { &snapshot.id } else { &snapshot.name };
    String::from_utf8_lossy(name).into_owned()
}

/// Whether the one layer of `chain` leaves a part of these ascending ranges to what is below it.
fn shows_below(chain: &Chain, changed: &[Range<u64>]) -> Result<bool> {
    let mut changed = changed.iter().peekable();
    for extent in chain.extents() {
        let extent = extent?;
        while changed.peek().is_some_and(|range| range.end <= extent.guest.0) {
            changed.next();
        }
        let Some(range) = changed.peek() else { return Ok(false) };
        if extent.kind == ExtentKind::Unallocated && range.start < extent.end() {
            return Ok(true);
        }
    }
    Ok(false)
}
