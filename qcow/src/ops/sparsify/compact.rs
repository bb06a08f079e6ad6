//! Moves what lies at the end of the file to free places, until it does not become shorter.

use std::sync::Arc;

use super::SparsifyOptions;
use super::views::{View, Views, another};
use crate::exact::Exact;
use crate::io::Storage;
use crate::ops::edit::{Opened, change_if};
use crate::sync::{Mutex, lock};
use crate::{CancelToken, Result, Silent};

/// Most times that the end is looked for: tables that move leave places behind, which the next time uses.
const MOST_PASSES: usize = 16;

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) file_size: u64,
    pub(super) moved: u64,
    /// Snapshots that were compared.
    pub(super) snapshots: u64,
    /// The image as it would be, of a plan.
    pub(super) last: Option<Arc<dyn Storage>>,
}

/// Compacts the image, which is `start` as far as it is planned and `len` bytes long: as far as that goes, or
/// else until it is no longer than `least`, which is how long it was.
pub(super) fn compact(
    opened: &Opened,
    start: Arc<dyn Storage>,
    len: u64,
    least: u64,
    views: &Views,
    options: &SparsifyOptions,
    cancel: &CancelToken,
) -> Result<Made> {
    let before = Mutex::new(None::<Vec<View>>);
    let mut made = Made { file_size: len, last: Some(Arc::clone(&start)), ..Made::default() };
    let mut current = Opened { storage: start, target: opened.target.clone() };
    let verify = !options.no_verify && !options.dry_run;
    for _ in 0..MOST_PASSES {
        if !options.compact && made.file_size <= least {
            break;
        }
        let planned = Mutex::new(None);
        let old = made.file_size;
        let storage = Arc::clone(&current.storage);
        let (moved, changed) = change_if(
            &current,
            options.threads,
            &Silent,
            cancel,
            |edit| {
                // Of its last cluster the file may have had a part only.
                let longer = (old > least).then(|| least >> edit.geometry().cluster_bits());
                let from = match options.compact {
                    true => edit.survey(cancel)?.shortest()?.or(longer),
                    false => longer,
                };
                from.map_or(Ok(0), |from| edit.vacate(from, cancel))
            },
            |change, _| {
                if change.is_empty() || change.file_len() >= old {
                    return Ok(false);
                }
                let result = change.result();
                if verify {
                    let mut known = lock(&before);
                    let views_before = match known.take() {
                        Some(known_before) => known_before,
                        None => views.all(&storage, cancel)?,
                    };
                    if views.all(&result, cancel)? != views_before {
                        return Err(another());
                    }
                    *known = Some(views_before);
                }
                *lock(&planned) = Some(result);
                Ok(true)
            },
        )?;
        if !changed.changed {
            break;
        }
        made.moved = made.moved.plus(moved)?;
        made.file_size = changed.file_len;
        if let (None, Some(result)) = (&current.target, lock(&planned).take()) {
            made.last = Some(Arc::clone(&result));
            current.storage = result;
        }
    }
    // The first is the guest's disk.
    let views = lock(&before);
    made.snapshots = views.iter().flatten().skip(1).count() as u64;
    drop(views);
    Ok(made)
}
