//! Copies into an image what it leaves to its backing file, wherever two backing chains differ; or what it does not read
//! as already.

use std::ops::Range;

use crate::chain::Chain;
use crate::disk::{Disk, RangeKind};
use crate::exact::{Exact, to_usize};
use crate::extent::Reader;
use crate::format::GuestOffset;
use crate::io::Buffer;
use crate::ops::work::pieces::{Pieces, Work};
use crate::ops::work::transfer::{ITEM, Steps};
use crate::ops::work::writes::Writes;
use crate::{Error, Result};

/// Unless it is [`over`](Self::over) the image itself: writes what `old` has into the image wherever the image has nothing and `new` reads as something else. The
/// image's disk is open over `new`; what it reads as over `old` does not change, because only whole clusters
/// (subclusters) are written, and with what they read as already.
pub(in crate::ops) struct Differences<'a> {
    old: &'a Chain,
    new: &'a Chain,
    size: u64,
    /// What is compared and written at once.
    unit: u64,
    /// What the image has is compared, too.
    all: bool,
    /// Only these ranges of the disk, in ascending order.
    only: Option<Vec<Range<u64>>>,
}

impl<'a> Differences<'a> {
    pub(in crate::ops) fn new(
        old: &'a Chain,
        new: &'a Chain,
        disk: &Disk,
        compress: bool,
    ) -> Result<Self> {
        let Some(cluster) = disk.cluster_size() else {
            return Err(Error::usage("a raw image has no backing file"));
        };
        let unit = if compress { cluster } else { disk.write_unit() };
        Ok(Self { old, new, size: disk.size(), unit, all: false, only: None })
    }

    /// Writes what `old` has into the image wherever that, which is `now`, reads as something else. What it has behind the
    /// end of `old` stays.
    pub(in crate::ops) fn over(
        old: &'a Chain,
        now: &'a Chain,
        disk: &Disk,
        compress: bool,
    ) -> Result<Self> {
        let differences = Self::new(old, now, disk, compress)?;
        Ok(Self { size: old.virtual_size().min(disk.size()), all: true, ..differences })
    }

    /// Compares nothing but these ranges, which are in ascending order.
    pub(in crate::ops) fn only(self, ranges: Option<Vec<Range<u64>>>) -> Self {
        Self { only: ranges, ..self }
    }

    /// What is to be compared of a range.
    fn wanted(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let Some(only) = &self.only else { return vec![range] };
        let first = only.partition_point(|wanted| wanted.end <= range.start);
        let near = only.get(first..).unwrap_or_default().iter();
        near.take_while(|wanted| wanted.start < range.end)
            .map(|wanted| wanted.start.max(range.start)..wanted.end.min(range.end))
            .collect()
    }

    /// The units that may differ, as ranges in ascending order.
    fn units(&self, work: &Work) -> Result<Vec<Range<u64>>> {
        let last = self.unit.wrapping_sub(1);
        let mut units: Vec<Range<u64>> = Vec::new();
        for (extent, _) in &work.pairs {
            let start = extent.guest.0 & !last;
            let end = (extent.end().minus(1)? | last).plus(1)?.min(self.size);
            match units.last_mut() {
                Some(run) if start <= run.end => run.end = end.max(run.end),
                _ => units.push(start..end),
            }
        }
        Ok(units)
    }

    /// Compares a range that the image leaves to its backing file.
    fn compare(&self, sides: &mut Sides, range: Range<u64>, writes: &mut Writes<'_>) -> Result<()> {
        let len = to_usize(range.end.minus(range.start)?);
        let Sides { old, new, bytes: [old_bytes, new_bytes] } = sides;
        let (old_bytes, new_bytes) = (old_bytes.first(len)?, new_bytes.first(len)?);
        read(old, old_bytes, range.start)?;
        read(new, new_bytes, range.start)?;
        let mut differing: Option<Range<usize>> = None;
        let mut from = 0;
        while from < len {
            let at = range.start.plus(from as u64)?;
            let unit = (at | self.unit.wrapping_sub(1)).plus(1)?.minus(at)?;
            let to = from.plus(to_usize(unit))?.min(len);
            let differs = old_bytes.get(from..to) != new_bytes.get(from..to);
            differing = match (differing, differs) {
                (Some(run), true) => Some(run.start..to),
                (None, true) => Some(from..to),
                (run, false) => {
                    write(run, old_bytes, range.start, writes)?;
                    None
                }
            };
            from = to;
        }
        write(differing, old_bytes, range.start, writes)
    }
}

fn write(
    run: Option<Range<usize>>,
    bytes: &[u8],
    start: u64,
    writes: &mut Writes<'_>,
) -> Result<()> {
    let Some(run) = run else { return Ok(()) };
    let at = start.plus(run.start as u64)?;
    let bytes = bytes.get(run).ok_or_else(|| Error::internal("a run past its item"))?;
    writes.data(bytes, at)
}

/// Fills `buf` from `at`; past the end of the chain's disk there are zeros.
fn read(reader: &mut Reader, buf: &mut [u8], at: u64) -> Result<()> {
    let there = reader.chain().virtual_size().max(at).minus(at)?.min(buf.len() as u64);
    let (there, beyond) = buf.split_at_mut(to_usize(there));
    beyond.fill(0);
    if there.is_empty() { Ok(()) } else { reader.read_at(there, GuestOffset(at)) }
}

/// How a worker reads both chains.
pub(in crate::ops) struct Sides {
    old: Reader,
    new: Reader,
    bytes: [Buffer; 2],
}

impl<'a> Steps for Differences<'a> {
    type Source = Pieces<'a>;
    type Worker = Sides;
    type Item = Work;

    fn source(&self) -> Pieces<'a> {
        Pieces::new([self.old, self.new], self.size)
    }

    fn next(&self, source: &mut Pieces<'a>) -> Result<Option<(u64, Work)>> {
        let Some((_, work)) = source.next_work() else { return Ok(None) };
        work.map(|work| Some((work.len, work)))
    }

    fn worker(&self) -> Result<Sides> {
        let buffer = || Buffer::new(to_usize(ITEM));
        Ok(Sides { old: self.old.reader(), new: self.new.reader(), bytes: [buffer()?, buffer()?] })
    }

    fn carry_out(&self, sides: &mut Sides, work: Work, writes: &mut Writes<'_>) -> Result<()> {
        for units in self.units(&work)? {
            let len = units.end.minus(units.start)?;
            if self.all {
                for wanted in self.wanted(units) {
                    self.compare(sides, wanted, writes)?;
                }
                continue;
            }
            for found in writes.disk().ranges(units.start, len)? {
                if found.kind == RangeKind::Backing {
                    self.compare(sides, found.at..found.at.plus(found.len)?, writes)?;
                }
            }
        }
        Ok(())
    }
}
