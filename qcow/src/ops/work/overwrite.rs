//! Copies what a chain has into a disk, whatever that has there.

use std::ops::Range;

use crate::chain::{Chain, Layer};
use crate::exact::{Exact, to_usize};
use crate::extent::{Extent, ExtentKind, Extents, Reader};
use crate::io::Buffer;
use crate::ops::work::transfer::{ITEM, Steps};
use crate::ops::work::writes::Writes;
use crate::{Error, Result};

/// Zeros are written in pieces of at most this many bytes, so that a signal is heard.
const ZEROS: u64 = 256 << 20;
/// The most ranges that are listed.
const MOST_RANGES: usize = 1 << 20;

/// What becomes of ranges that read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Holes {
    /// What no layer has is left as it is; what a layer says to be zeros is made zeros.
    Leave,
    /// They are made zeros.
    Zero,
    /// They are zeros already.
    Skip,
}

/// Copies the disk of `chain`, which is no longer than `disk`.
pub(in crate::ops) struct Overwrite<'a> {
    chain: &'a Chain,
    holes: Holes,
    /// Past this nothing below the chain is seen.
    end_of_below: u64,
}

impl<'a> Overwrite<'a> {
    /// For a disk of `size` bytes.
    pub(in crate::ops) fn new(chain: &'a Chain, size: u64, holes: Holes) -> Result<Self> {
        if chain.virtual_size() > size {
            return Err(Error::usage(format!(
                "a disk of {} bytes does not fit into one of {size}",
                chain.virtual_size(),
            )));
        }
        let sizes = chain.layers().iter().map(Layer::virtual_size);
        Ok(Self { chain, holes, end_of_below: sizes.min().unwrap_or_default() })
    }

    /// What is to be done about the start of an extent, and how many bytes that is.
    fn kind_of(&self, extent: &Extent) -> (Kind, u64) {
        let below = self.end_of_below.max(extent.guest.0).minus(extent.guest.0);
        match (extent.kind, self.holes, below) {
            (ExtentKind::Unallocated, Holes::Leave, Ok(below)) if below > 0 => {
                (Kind::Nothing, extent.len.min(below))
            }
            (ExtentKind::Unallocated | ExtentKind::Zero { .. }, Holes::Skip, _) => {
                (Kind::Nothing, extent.len)
            }
            (ExtentKind::Unallocated | ExtentKind::Zero { .. }, ..) => {
                (Kind::Zeros, extent.len.min(ZEROS))
            }
            _ => (Kind::Data, extent.len),
        }
    }
}

impl Overwrite<'_> {
    /// What is written, in ascending order; where there are too many ranges, what lies between them too.
    pub(in crate::ops) fn ranges(&self) -> Result<Vec<Range<u64>>> {
        let (mut source, mut ranges) = (self.source(), Vec::<Range<u64>>::new());
        while let Some(extent) = source.take()? {
            let (kind, len) = self.kind_of(&extent);
            let end = extent.guest.0.plus(len)?;
            source.give_back(extent, end);
            let full = ranges.len() >= MOST_RANGES;
            match ranges.last_mut() {
                _ if kind == Kind::Nothing => {}
                Some(last) if full || last.end == extent.guest.0 => last.end = end,
                _ => ranges.push(extent.guest.0..end),
            }
        }
        Ok(ranges)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Zeros,
    Data,
}

/// Extents, of which a part may be given back.
pub(in crate::ops) struct Source {
    extents: Extents,
    left: Option<Extent>,
}

/// Data within one stretch of [`ITEM`] bytes, or zeros.
pub(in crate::ops) enum Item {
    Nothing,
    Zeros { at: u64, len: u64 },
    Data(Vec<Extent>),
}

impl Steps for Overwrite<'_> {
    type Source = Source;
    type Worker = (Reader, Buffer);
    type Item = Item;

    fn source(&self) -> Source {
        Source { extents: self.chain.extents(), left: None }
    }

    fn next(&self, source: &mut Source) -> Result<Option<(u64, Item)>> {
        let Some(first) = source.take()? else { return Ok(None) };
        let start = first.guest.0;
        match self.kind_of(&first) {
            (Kind::Data, _) => {}
            (kind, len) => {
                source.give_back(first, start.plus(len)?);
                let zeros = Item::Zeros { at: start, len };
                return Ok(Some((len, if kind == Kind::Zeros { zeros } else { Item::Nothing })));
            }
        }
        let border = (start | ITEM.wrapping_sub(1)).plus(1)?;
        let (mut at, mut extents, mut next) = (start, Vec::new(), Some(first));
        while let Some(extent) = next.take() {
            let (kind, len) = self.kind_of(&extent);
            let end = extent.guest.0.plus(len)?.min(border);
            if kind == Kind::Zeros || end <= at {
                source.give_back(extent, at);
                break;
            }
            if kind == Kind::Data {
                extents.push(extent.slice(at, end));
            }
            at = end;
            source.give_back(extent, end);
            if at < border {
                next = source.take()?;
            }
        }
        Ok(Some((at.minus(start)?, Item::Data(extents))))
    }

    fn worker(&self) -> Result<(Reader, Buffer)> {
        Ok((self.chain.reader(), Buffer::new(to_usize(ITEM))?))
    }

    fn carry_out(
        &self,
        (reader, buffer): &mut (Reader, Buffer),
        item: Item,
        writes: &mut Writes<'_>,
    ) -> Result<()> {
        let extents = match item {
            Item::Nothing => return Ok(()),
            Item::Zeros { at, len } => return writes.zeros(at, len),
            Item::Data(extents) => extents,
        };
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else { return Ok(()) };
        let start = first.guest.0;
        let bytes = buffer.first(to_usize(last.end().minus(start)?))?;
        reader.read_extents(start, &extents, bytes)?;
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for extent in &extents {
            match runs.last_mut() {
                Some(run) if run.1 == extent.guest.0 => run.1 = extent.end(),
                _ => runs.push((extent.guest.0, extent.end())),
            }
        }
        for (from, to) in runs {
            let part = to_usize(from.minus(start)?)..to_usize(to.minus(start)?);
            let part = bytes.get(part).ok_or_else(|| Error::internal("a run past its item"))?;
            writes.data(part, from)?;
        }
        Ok(())
    }
}

impl Source {
    fn take(&mut self) -> Result<Option<Extent>> {
        match self.left.take() {
            Some(extent) => Ok(Some(extent)),
            None => self.extents.next().transpose(),
        }
    }

    /// Keeps what `extent` has from `from` on.
    fn give_back(&mut self, extent: Extent, from: u64) {
        self.left = (from < extent.end()).then(|| extent.slice(from, extent.end()));
    }
}
