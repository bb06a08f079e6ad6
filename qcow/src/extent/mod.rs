//! What every guest range is, seen through the whole chain: data, zeros, compressed or nowhere
//! allocated, and which layer holds it.

mod cursor;
mod damage;
mod left_out;
mod past_end;
mod reader;
mod resolve;

use std::collections::VecDeque;
use std::iter::FusedIterator;

use crate::chain::{Chain, ChainId, Layer};
use crate::format::{CompressedSpan, GuestOffset, HostOffset};
use crate::image::is_damage;
use crate::{Error, Result};

pub use past_end::Truncation;
use resolve::Purpose;

pub use cursor::Cursor;
pub use damage::Damage;
pub use left_out::{LeftOut, LeftOutRange};
pub use reader::Reader;

/// A range of the guest's disk that comes from one place.
///
/// Extents that say the same are equal, also if they come from two openings of one chain.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Where it starts on the guest's disk.
    pub guest: GuestOffset,
    /// Its length in bytes, never 0.
    pub len: u64,
    /// The layer that decides, 0 being the active one; for [`ExtentKind::Unallocated`] the last
    /// one asked.
    pub depth: usize,
    /// What it is.
    pub kind: ExtentKind,
    /// The chain that gave it: no other can read it.
    pub(super) chain: ChainId,
}

impl PartialEq for Extent {
    fn eq(&self, other: &Self) -> bool {
        let place = |extent: &Self| (extent.guest, extent.len, extent.depth);
        place(self) == place(other) && self.kind == other.kind
    }
}

impl Eq for Extent {}

impl Extent {
    /// `len` bytes of `chain`'s disk from `guest` on that no layer has.
    pub(crate) fn unallocated(chain: &Chain, guest: GuestOffset, len: u64, depth: usize) -> Self {
        Self { guest, len, depth, kind: ExtentKind::Unallocated, chain: chain.id() }
    }

    /// The first guest offset past the extent.
    pub fn end(&self) -> u64 {
        self.guest.0.saturating_add(self.len)
    }

    /// Whether it reads as zeros without looking at any byte.
    pub fn is_zero(&self) -> bool {
        matches!(self.kind, ExtentKind::Zero { .. } | ExtentKind::Unallocated)
    }

    /// The part from `start` to `end`, both offsets on the guest's disk and clamped to the extent; it has
    /// no bytes if nothing of the extent lies between them. With it long extents can be read in pieces:
    ///
    /// ```no_run
    /// # use std::path::Path;
    /// # use qcow::chain::{Chain, OpenOptions};
    /// let chain = Chain::open(Path::new("overlay.qcow2"), &OpenOptions::default())?;
    /// let (mut reader, mut buf) = (chain.reader(), vec![0; 1 << 20]);
    /// for extent in chain.extents() {
    ///     let extent = extent?;
    ///     let mut at = extent.guest.0;
    ///     while at < extent.end() {
    ///         let piece = extent.slice(at, at + buf.len() as u64);
    ///         reader.read_extent(&piece, &mut buf[..piece.len as usize])?;
    ///         at = piece.end();
    ///     }
    /// }
    /// # Ok::<(), qcow::Error>(())
    /// ```
    #[must_use]
    pub fn slice(&self, start: u64, end: u64) -> Self {
        let start = start.clamp(self.guest.0, self.end());
        let end = end.clamp(start, self.end());
        let skipped = start.saturating_sub(self.guest.0);
        let shifted = |host: HostOffset| HostOffset(host.0.saturating_add(skipped));
        let kind = match self.kind {
            ExtentKind::Data { host } => ExtentKind::Data { host: shifted(host) },
            ExtentKind::Zero { host } => ExtentKind::Zero { host: host.map(shifted) },
            other => other,
        };
        Self { guest: GuestOffset(start), len: end.saturating_sub(start), kind, ..*self }
    }
}

/// What a range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtentKind {
    /// Bytes that lie at `host` in the layer's data file, or else in the layer's own file.
    Data {
        /// Where the range's first byte lies.
        host: HostOffset,
    },
    /// The layer says that it reads as zeros, allocated at `host` or not at all.
    Zero {
        /// Where space is kept for it.
        host: Option<HostOffset>,
    },
    /// (A part of) one compressed cluster of the layer.
    Compressed {
        /// Where the compressed bytes lie.
        span: CompressedSpan,
    },
    /// No layer has it: it reads as zeros.
    Unallocated,
}

/// The extents of a range in ascending order, without gaps; neighbours that can be one are one
/// (within bounded windows). Memory does not grow with the disk.
#[derive(Debug)]
pub struct Extents {
    chain: Chain,
    at: u64,
    end: u64,
    /// Where each layer next has something mapped; recomputed when `at` has passed it.
    next_mapped: Vec<Option<u64>>,
    ready: VecDeque<Extent>,
    failed: bool,
    /// What the tables should tell and cannot; `None` makes that an error.
    damage: Option<Vec<Damage>>,
}

impl Chain {
    /// The extents of the whole disk.
    ///
    /// ```no_run
    /// # use std::path::Path;
    /// # use qcow::chain::{Chain, OpenOptions};
    /// let chain = Chain::open(Path::new("overlay.qcow2"), &OpenOptions::default())?;
    /// let mut data = 0;
    /// for extent in chain.extents() {
    ///     let extent = extent?;
    ///     if !extent.is_zero() {
    ///         data += extent.len;
    ///     }
    /// }
    /// println!("{data} of {} bytes hold data", chain.virtual_size());
    /// # Ok::<(), qcow::Error>(())
    /// ```
    pub fn extents(&self) -> Extents {
        self.extents_in(GuestOffset(0), self.virtual_size())
    }

    /// The extents from `start` on, `len` bytes, cut at the end of the disk.
    pub fn extents_in(&self, start: GuestOffset, len: u64) -> Extents {
        let end = start.0.saturating_add(len).min(self.virtual_size());
        Extents {
            chain: self.clone(),
            at: start.0,
            end,
            next_mapped: vec![Some(0); self.layers().len()],
            ready: VecDeque::new(),
            failed: false,
            damage: None,
        }
    }
}

impl Iterator for Extents {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if self.ready.is_empty()
            && self.at < self.end
            && let Err(error) = self.fill()
        {
            self.failed = true;
            return Some(Err(error));
        }
        self.ready.pop_front().map(Ok)
    }
}

impl FusedIterator for Extents {}

impl Extents {
    /// From now on goes on past damaged tables: what they should tell is zeros, and is listed.
    pub(crate) fn tolerate(&mut self) {
        self.damage.get_or_insert_default();
    }

    /// What was passed over since this was last asked, in ascending order.
    pub(crate) fn take_damage(&mut self) -> Vec<Damage> {
        self.damage.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Resolves the next window, or skips to where something is mapped.
    fn fill(&mut self) -> Result<()> {
        let mapped = self.first_mapped()?.unwrap_or(self.end).min(self.end);
        if mapped > self.at {
            let (guest, len) = (GuestOffset(self.at), mapped.saturating_sub(self.at));
            let depth = self.chain.layers().len().saturating_sub(1);
            self.ready.push_back(Extent::unallocated(&self.chain, guest, len, depth));
            self.at = mapped;
            return Ok(());
        }
        let end = self.at.saturating_add(resolve::window_len(&self.chain)).min(self.end);
        let purpose = match &mut self.damage {
            Some(damage) => Purpose::Salvage(damage),
            None => Purpose::Extents,
        };
        let extents = resolve::resolve(&self.chain, self.at, end, purpose)?;
        self.ready.extend(extents);
        if self.ready.is_empty() {
            return Err(Error::internal("a window of the disk has no extents"));
        }
        self.at = end;
        Ok(())
    }

    /// The first offset at or after `at` where any layer may have something.
    fn first_mapped(&mut self) -> Result<Option<u64>> {
        let mut first: Option<u64> = None;
        for (layer, next) in self.chain.layers().iter().zip(&mut self.next_mapped) {
            if next.is_some_and(|next| next < self.at) || self.at == 0 {
                *next = match layer.next_mapped(self.at) {
                    // The window will tell what exactly cannot be read.
                    Err(error) if self.damage.is_some() && is_damage(&error) => Some(self.at),
                    Ok(None) if self.damage.is_some() => lost_from(layer).map(|at| at.max(self.at)),
                    next => next?,
                };
            }
            if let Some(next) = *next {
                first = Some(first.map_or(next, |first| first.min(next)));
            }
        }
        Ok(first)
    }
}

/// From which guest offset on the layer's tables are cut off.
fn lost_from(layer: &Layer) -> Option<u64> {
    layer.image()?.l1_end_in_file().filter(|from| *from < layer.virtual_size())
}

#[cfg(test)]
mod tests;
