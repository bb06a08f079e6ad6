//! Resolves one window of the disk through all layers, top down: what a layer leaves open is
//! asked of the next. No recursion; work is linear in the entries of the window.

use super::{Extent, ExtentKind, past_end};
use crate::Result;
use crate::chain::Chain;
use crate::format::GuestOffset;
use crate::image::{Run, RunKind};

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
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// To tell what there is, in order over long ranges: tables are read as they come, and holes of raw
    /// files are looked for.
    Extents,
    /// To read its bytes, which may be few: tables come from the chain's cache, and raw files are data.
    Bytes,
}

/// The extents of `start..end`, in order and without gaps.
pub(super) fn resolve(
    chain: &Chain,
    start: u64,
    end: u64,
    purpose: Purpose,
) -> Result<Vec<Extent>> {
    let extent = |guest, len, depth, kind| {
        let (guest, chain) = (GuestOffset(guest), chain.id());
        Extent { guest, len, depth, kind, chain }
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
        let (from, to) = (hull_start.min(size), hull_end.min(size));
        let mut window = match purpose {
            Purpose::Extents => layer.window(from, to)?,
            Purpose::Bytes => layer.window_of_bytes(from, to, chain.tables(depth))?,
        };
        let (mut still_open, mut runs) = (Vec::new(), Vec::new());
        for (from, to) in open {
            // What lies past a shorter layer reads as zeros and hides what is below (trap 105).
            let inside = to.min(size).max(from);
            runs.clear();
            window.runs(from, inside, &mut runs).map_err(|error| error.file(layer.path()))?;
            past_end::notice(layer, &runs);
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
        open = still_open;
    }
    for (from, to) in open {
        extents.push(extent(from, to.saturating_sub(from), last, ExtentKind::Unallocated));
    }
    extents.sort_unstable_by_key(|extent| extent.guest);
    Ok(extents)
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
