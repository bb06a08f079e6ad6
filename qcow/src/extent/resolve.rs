//! Resolves one window of the disk through all layers, top down: what a layer leaves open is
//! asked of the next. No recursion; work is linear in the entries of the window.

use super::{Damage, Extent, ExtentKind, past_end};
use crate::chain::{Chain, Layer};
use crate::format::GuestOffset;
use crate::image::{Fault, Faults, Run, RunKind, is_damage, push_run, tolerate};
use crate::{Error, Result};

/// A window has at most this many pieces per layer, which bounds its memory to a few MiB.
const PIECES: u64 = 64 << 10;
/// No window is longer than this many bytes: raw layers may have holes of any size.
const LONGEST: u64 = 1 << 30;

/// How long a window of `chain` may be, in bytes.
pub(super) fn window_len(chain: &Chain) -> u64 {
    let granularity = chain.layers().iter().map(|layer| layer.granularity()).min();
    granularity.unwrap_or(512).saturating_mul(PIECES).min(LONGEST)
}

/// What a range is resolved for.
#[derive(Debug)]
pub(super) enum Purpose<'a> {
    /// To tell what there is, in order over long ranges: tables are read as they come, and holes of raw
    /// files are looked for.
    Extents,
    /// As `Extents`; what a layer should tell and cannot is listed. It reads as zeros, and the layers
    /// below are not asked.
    Salvage(&'a mut Vec<Damage>),
    /// To read its bytes, which may be few: tables come from the chain's cache, and raw files are data.
    Bytes,
}

/// The extents of `start..end`, in order and without gaps.
pub(super) fn resolve(
    chain: &Chain,
    start: u64,
    end: u64,
    purpose: Purpose<'_>,
) -> Result<Vec<Extent>> {
    let extent = |guest, len, depth, kind| {
        let (guest, chain) = (GuestOffset(guest), chain.id());
        Extent { guest, len, depth, kind, chain }
    };
    let (bytes, mut damage) = match purpose {
        Purpose::Extents => (false, None),
        Purpose::Salvage(damage) => (false, Some(damage)),
        Purpose::Bytes => (true, None),
    };
    let mut extents = Vec::new();
    let mut open = vec![(start, end)];
    let mut last = 0;
    for (depth, layer) in chain.layers().iter().enumerate() {
        let (Some(&(hull_start, _)), Some(&(_, hull_end))) = (open.first(), open.last()) else {
            break;
        };
        last = depth;
        let size = layer.virtual_size();
        let mut faults = Vec::new();
        let (from, to) = (hull_start.min(size), hull_end.min(size));
        let window = match bytes {
            false => layer.window(from, to),
            true => layer.window_of_bytes(from, to, chain.tables(depth)),
        };
        let mut window = match window {
            Err(error) if damage.is_some() && is_damage(&error) => None,
            window => Some(window?),
        };
        let (mut still_open, mut runs) = (Vec::new(), Vec::new());
        for (from, to) in open {
            // What lies past a shorter layer reads as zeros and hides what is below (trap 105).
            let inside = to.min(size).max(from);
            runs.clear();
            let list = damage.is_some().then_some(&mut faults);
            match &mut window {
                Some(window) => window.runs(from, inside, &mut runs, list),
                None => runs_alone(layer, from, inside, &mut runs, list),
            }
            .map_err(|error| error.file(layer.path()))?;
            past_end::notice(layer, &runs);
            if damage.is_some() {
                faults.extend(runs.iter().filter_map(|run| beyond_the_end(layer, run)));
            }
            for run in &runs {
                match extent_kind(run) {
                    Some(kind) => extents.push(extent(run.guest, run.len, depth, kind)),
                    None => merge(&mut still_open, run.guest, run.guest.saturating_add(run.len)),
                }
            }
            if inside < to {
                let len = to.saturating_sub(inside);
                extents.push(extent(inside, len, depth, ExtentKind::Unallocated));
            }
        }
        if let Some(damage) = damage.as_deref_mut() {
            damage.extend(faults.into_iter().map(|fault| Damage::new(fault, depth, layer)));
        }
        open = still_open;
    }
    if let Some(damage) = damage {
        damage.sort_by_key(|damage| damage.guest_offset);
    }
    for (from, to) in open {
        extents.push(extent(from, to.saturating_sub(from), last, ExtentKind::Unallocated));
    }
    extents.sort_unstable_by_key(|extent| extent.guest);
    Ok(extents)
}

/// The runs of a range for which no window could be had together with others.
fn runs_alone(
    layer: &Layer,
    from: u64,
    to: u64,
    runs: &mut Vec<Run>,
    mut faults: Faults<'_>,
) -> Result<()> {
    match layer.window(from, to) {
        Ok(mut window) => window.runs(from, to, runs, faults),
        Err(error) => {
            tolerate(&mut faults, from..to, error)?;
            push_run(
                runs,
                Run { guest: from, len: to.saturating_sub(from), kind: RunKind::Zero(None) },
            );
            Ok(())
        }
    }
}

/// The part of a run of data whose clusters lie behind the end of the file, and so read as zeros. In the
/// last cluster that is there the end may be missing: QEMU does not write zeros to fill it up.
fn beyond_the_end(layer: &Layer, run: &Run) -> Option<Fault> {
    let (RunKind::Data(host), Some(image)) = (run.kind, layer.image()) else { return None };
    let cluster_size = image.geometry().cluster_size();
    let file_end = layer.data_storage().len().checked_next_multiple_of(cluster_size)?;
    let there = file_end.saturating_sub(host.0).min(run.len);
    let guest = run.guest.saturating_add(there)..run.guest.saturating_add(run.len);
    let error = Error::corrupt("the data is past the end of the file").structure("L2 table");
    (!guest.is_empty()).then_some(Fault { guest, error })
}

/// `None` for what the next layer has to answer.
fn extent_kind(run: &Run) -> Option<ExtentKind> {
    match run.kind {
        RunKind::Unallocated(_) => None,
        RunKind::Zero(host) => Some(ExtentKind::Zero { host }),
        RunKind::Data(host) => Some(ExtentKind::Data { host }),
        RunKind::Compressed(span) => Some(ExtentKind::Compressed { span }),
    }
}

/// Appends `from..to`, joining it to the last range if they touch.
fn merge(ranges: &mut Vec<(u64, u64)>, from: u64, to: u64) {
    match ranges.last_mut() {
        Some(last) if last.1 == from => last.1 = to,
        _ => ranges.push((from, to)),
    }
}
