//! Which part of the guest's disk comes from where: the runs that `qemu-img map` lists.

use std::collections::VecDeque;
use std::iter::FusedIterator;

use serde::Serialize;

use crate::chain::{Chain, Layer};
use crate::extent::{Extent, ExtentKind, Extents};
use crate::format::{GuestOffset, HostOffset};
use crate::image::RunKind;
use crate::setters::setters;
use crate::{Error, Result};

/// Tables are walked a second time in pieces of this many bytes of disk; see [`Map::kept_space`].
const PIECE: u64 = 64 << 20;

/// Which part of the disk to map.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct MapOptions {
    /// Where to start, in bytes.
    pub start: u64,
    /// How many bytes to map at most; `None` means to the end of the disk.
    pub max_length: Option<u64>,
}

setters!(MapOptions {
    start: u64,
} into {
    max_length: Option<u64>,
});

/// A range of the guest's disk that is of one kind and lies in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct MapEntry {
    /// Where it starts on the guest's disk, in bytes.
    pub start: u64,
    /// Its length in bytes, never 0.
    pub length: u64,
    /// The layer that decides; 0 is the active one.
    pub depth: usize,
    /// Whether this layer provides the range, as data or as explicit zeroes.
    pub present: bool,
    /// Whether it is known to read as zeros without looking at any byte.
    pub zero: bool,
    /// Whether the layer has data for it. Both `data` and `zero` are true for a cluster that is
    /// allocated, and a hole in the file.
    pub data: bool,
    /// Whether it is compressed.
    pub compressed: bool,
    /// Where it lies in the layer's file ([`Layer::data_path`]), in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

impl MapEntry {
    /// The first guest offset past the entry.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// Whether `next`, which starts where this ends, is of the same kind and in the same place.
    fn continues_in(&self, next: &Self) -> bool {
        let place = match (self.offset, next.offset) {
            (None, None) => true,
            (Some(here), Some(there)) => here.checked_add(self.length) == Some(there),
            _ => false,
        };
        let kind =
            |entry: &Self| (entry.depth, entry.present, entry.zero, entry.data, entry.compressed);
        place && kind(self) == kind(next)
    }
}

/// Lists what every range of the disk is, in order and without gaps, each entry as long as can
/// be: the same entries as `qemu-img map`. They are made as they are asked for, so that memory
/// does not grow with the disk.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("disk.qcow2");
/// use qcow::chain::{Chain, OpenOptions};
/// use qcow::ops::create::{CreateOptions, create};
/// use qcow::ops::map::{MapOptions, map};
///
/// create(&path, &CreateOptions::default().size(1 << 20))?;
/// let chain = Chain::open(&path, &OpenOptions::default())?;
/// let entries: Vec<_> = map(&chain, &MapOptions::default()).collect::<Result<_, _>>()?;
/// assert_eq!(entries.len(), 1);
/// assert!(entries[0].zero && !entries[0].present);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn map<'a>(chain: &'a Chain, options: &MapOptions) -> Map<'a> {
    let length = options.max_length.unwrap_or(u64::MAX);
    let extents = chain.extents_in(GuestOffset(options.start), length);
    Map {
        chain,
        extents,
        rest: None,
        ready: VecDeque::new(),
        held: None,
        ended: false,
        error: None,
    }
}

/// The entries of a map, in order; see [`map`].
#[derive(Debug)]
pub struct Map<'a> {
    chain: &'a Chain,
    extents: Extents,
    /// What is left of an extent that is taken apart.
    rest: Option<Extent>,
    ready: VecDeque<MapEntry>,
    /// An entry that may still grow.
    held: Option<MapEntry>,
    ended: bool,
    error: Option<Error>,
}

impl Iterator for Map<'_> {
    type Item = Result<MapEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.piece() {
                Ok(Some(piece)) => {
                    if let Some(held) = &mut self.held
                        && held.continues_in(&piece)
                    {
                        held.length = held.length.saturating_add(piece.length);
                    } else if let Some(entry) = self.held.replace(piece) {
                        return Some(Ok(entry));
                    }
                }
                // The last word is whether the entries are of one state of the files.
                Ok(None) => {
                    self.ended = true;
                    self.error = self.chain.check_unchanged().err();
                }
                Err(error) => (self.ended, self.error) = (true, Some(error)),
            }
        }
        // What was found before an error comes before it.
        self.held.take().map(Ok).or_else(|| self.error.take().map(Err))
    }
}

impl FusedIterator for Map<'_> {}

impl Map<'_> {
    /// The next piece; neighbours may turn out to be one entry.
    fn piece(&mut self) -> Result<Option<MapEntry>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            let Some(extent) = self.rest.take().map(Ok).or_else(|| self.extents.next()) else {
                return Ok(None);
            };
            let extent = extent?;
            let end = self.take_apart(&extent)?;
            self.rest = (end < extent.end()).then(|| extent.slice(end, extent.end()));
        }
    }

    /// Adds the pieces of a first part of `extent` and tells where that part ends.
    fn take_apart(&mut self, extent: &Extent) -> Result<u64> {
        let layer = layer(self.chain, extent.depth)?;
        match extent.kind {
            ExtentKind::Unallocated => return self.unallocated(extent),
            ExtentKind::Data { host } => return self.data(extent, layer, host),
            ExtentKind::Zero { .. } if layer.image().is_none() => {
                self.push(hole_in_raw(extent.guest.0, extent.len, extent.depth));
            }
            ExtentKind::Zero { host } => self.push(MapEntry {
                present: true,
                zero: true,
                offset: host.map(|host| host.0),
                ..plain(extent.guest.0, extent.len, extent.depth)
            }),
            ExtentKind::Compressed { .. } => self.push(MapEntry {
                present: true,
                data: true,
                compressed: true,
                ..plain(extent.guest.0, extent.len, extent.depth)
            }),
        }
        Ok(extent.end())
    }

    fn push(&mut self, piece: MapEntry) {
        if piece.length > 0 {
            self.ready.push_back(piece);
        }
    }

    /// Data: up to the next border between bytes and a hole, where the file has unexpected holes.
    fn data(&mut self, extent: &Extent, layer: &Layer, host: HostOffset) -> Result<u64> {
        let (mut len, mut zero) = (extent.len, false);
        if layer.is_mostly_holes() {
            let file = layer.data_storage();
            let failed =
                |error| Error::io("could not look for holes", error).file(layer.data_path());
            let data = file.next_data(host.0).map_err(failed)?;
            zero = data.is_none_or(|data| data > host.0);
            let border = match data {
                Some(data) if zero => data,
                Some(_) => file.next_hole(host.0).map_err(failed)?,
                None => u64::MAX,
            };
            // At least one byte further, whatever the file system says.
            len = border.saturating_sub(host.0).clamp(1, extent.len);
        }
        let (present, data, offset) = (true, true, Some(host.0));
        let piece = plain(extent.guest.0, len, extent.depth);
        self.push(MapEntry { present, data, zero, offset, ..piece });
        Ok(extent.guest.0.saturating_add(len))
    }

    /// What no layer has: up to where another layer takes over saying so.
    fn unallocated(&mut self, extent: &Extent) -> Result<u64> {
        let start = extent.guest.0;
        let (depth, end) = self.who_says_nothing(start);
        let end = end.min(extent.end());
        let layer = layer(self.chain, depth)?;
        let len = end.saturating_sub(start);
        match layer.image() {
            None => self.push(hole_in_raw(start, len, depth)),
            Some(image) if image.geometry().extended_l2() => {
                return self.kept_space(layer, depth, start, end);
            }
            Some(_) => self.push(MapEntry { zero: true, ..plain(start, len, depth) }),
        }
        Ok(end)
    }

    /// The layer that decides about `at`, where no layer has anything, and where its word ends:
    /// the last one, or the one above the first that is too short (traps 105, 136).
    fn who_says_nothing(&self, at: u64) -> (usize, u64) {
        let mut end = u64::MAX;
        let mut depth: usize = 0;
        for below in self.chain.layers().iter().skip(1) {
            let size = below.virtual_size();
            if at >= size {
                break;
            }
            end = end.min(size);
            depth = depth.saturating_add(1);
        }
        (depth, end)
    }

    /// Unallocated subclusters may lie in clusters that are allocated: then they have a place.
    fn kept_space(&mut self, layer: &Layer, depth: usize, start: u64, end: u64) -> Result<u64> {
        let next = layer.next_mapped(start)?.unwrap_or(end).clamp(start, end);
        if next > start {
            let len = next.saturating_sub(start);
            self.push(MapEntry { zero: true, ..plain(start, len, depth) });
            return Ok(next);
        }
        let end = end.min(start.saturating_add(PIECE));
        let mut runs = Vec::new();
        let mut window = layer.window(start, end)?;
        window.runs(start, end, &mut runs, None).map_err(|error| error.file(layer.path()))?;
        for run in runs {
            let offset = match run.kind {
                RunKind::Unallocated(host) => host.map(|host| host.0),
                _ => None,
            };
            self.push(MapEntry { zero: true, offset, ..plain(run.guest, run.len, depth) });
        }
        Ok(end)
    }
}

fn layer(chain: &Chain, depth: usize) -> Result<&Layer> {
    let layer = chain.layers().get(depth);
    layer.ok_or_else(|| Error::usage(format!("the chain has no layer {depth}")))
}

/// An entry of which nothing is known yet.
fn plain(start: u64, length: u64, depth: usize) -> MapEntry {
    let (present, zero, data, compressed, offset) = (false, false, false, false, None);
    MapEntry { start, length, depth, present, zero, data, compressed, offset }
}

/// Raw files have everything at its place, holes too.
fn hole_in_raw(start: u64, length: u64, depth: usize) -> MapEntry {
    MapEntry { present: true, zero: true, offset: Some(start), ..plain(start, length, depth) }
}
