//! Copies what a chain has into a disk, whatever that has there.

use std::ops::Range;
use std::sync::Arc;

use crate::chain::{Chain, Layer};
use crate::exact::{Exact, to_usize};
use crate::extent::{Extent, ExtentKind, Extents, Reader};
use crate::io::Buffer;
use crate::ops::work::in_kernel::InKernel;
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
    /// Only these ranges of the disk, in ascending order.
    only: Option<Arc<[Range<u64>]>>,
    /// Data is copied by the kernel, where it does that.
    in_kernel: Option<InKernel>,
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
        let end_of_below = sizes.min().unwrap_or_default();
        Ok(Self { chain, holes, only: None, in_kernel: None, end_of_below })
    }

    /// Copies nothing but these ranges, which are in ascending order.
    pub(in crate::ops) fn only(self, ranges: Vec<Range<u64>>) -> Self {
        Self { only: Some(ranges.into()), ..self }
    }

    /// Has the kernel copy data, of which there is no digest then, and in which no zeros are looked for.
    pub(in crate::ops) fn in_kernel(self, wanted: bool) -> Self {
        Self { in_kernel: wanted.then(InKernel::default), ..self }
    }

    /// Copies what the kernel takes of these extents, and gives back the others.
    fn copied(&self, extents: Vec<Extent>, writes: &mut Writes<'_>) -> Result<Vec<Extent>> {
        let Some(in_kernel) = &self.in_kernel else { return Ok(extents) };
        let mut others = Vec::new();
        for extent in extents {
            match in_kernel.copy(self.chain, &extent, writes.disk())? {
                true => writes.copied(extent.guest.0, extent.len)?,
                false => others.push(extent),
            }
        }
        Ok(others)
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
    /// What comes before the next extent, the first last.
    left: Vec<Extent>,
    /// What is wanted of the rest of the disk; `None`: everything.
    only: Option<Arc<[Range<u64>]>>,
    /// Those of these ranges that are over.
    over: usize,
    /// The end of the last item.
    at: u64,
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
        let (extents, only) = (self.chain.extents(), self.only.clone());
        Source { extents, left: Vec::new(), only, over: 0, at: 0 }
    }

    fn next(&self, source: &mut Source) -> Result<Option<(u64, Item)>> {
        let Some(first) = source.take()? else { return Ok(None) };
        let start = first.guest.0;
        match self.kind_of(&first) {
            (Kind::Data, _) => {}
            (kind, len) => {
                let end = start.plus(len)?;
                source.give_back(first, end);
                let item = match kind {
                    Kind::Zeros => Item::Zeros { at: start, len },
                    _ => Item::Nothing,
                };
                return Ok(Some((source.covered(end)?, item)));
            }
        }
        let border = (start | ITEM.wrapping_sub(1)).plus(1)?;
        let (mut at, mut extents, mut next) = (start, Vec::new(), Some(first));
        while let Some(extent) = next.take() {
            let (kind, len) = self.kind_of(&extent);
            let from = at.max(extent.guest.0);
            let end = extent.guest.0.plus(len)?.min(border);
            if kind == Kind::Zeros || end <= from {
                source.give_back(extent, from);
                break;
            }
            if kind == Kind::Data {
                extents.push(extent.slice(from, end));
            }
            at = end;
            source.give_back(extent, end);
            if at < border {
                next = source.take()?;
            }
        }
        Ok(Some((source.covered(at)?, Item::Data(extents))))
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
            Item::Data(extents) => self.copied(extents, writes)?,
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
    /// The next extent, or what is wanted of it.
    fn take(&mut self) -> Result<Option<Extent>> {
        while let Some(extent) = self.following()? {
            let Some(only) = &self.only else { return Ok(Some(extent)) };
            while only.get(self.over).is_some_and(|range| range.end <= extent.guest.0) {
                self.over = self.over.plus(1)?;
            }
            let Some(range) = only.get(self.over) else { return Ok(None) };
            let (from, to) = (range.start.max(extent.guest.0), range.end.min(extent.end()));
            if from < to {
                self.give_back(extent, to);
                return Ok(Some(extent.slice(from, to)));
            }
        }
        Ok(None)
    }

    fn following(&mut self) -> Result<Option<Extent>> {
        match self.left.pop() {
            Some(extent) => Ok(Some(extent)),
            None => self.extents.next().transpose(),
        }
    }

    /// Keeps what `extent` has from `from` on.
    fn give_back(&mut self, extent: Extent, from: u64) {
        if from < extent.end() {
            self.left.push(extent.slice(from.max(extent.guest.0), extent.end()));
        }
    }

    /// Bytes of the disk since the end of the last item, what is not wanted included, if the next one ends here.
    fn covered(&mut self, end: u64) -> Result<u64> {
        end.minus(std::mem::replace(&mut self.at, end))
    }
}
