//! Copies ranges of disks into a [`Disk`], in parallel, and reads back what was written.
//!
//! What is copied comes from [`Steps`]: items in disk order, each carried out by one worker. Nothing depends
//! on their order but the digest, which is put together in disk order; and where clusters are placed, unless the settings
//! say that items write in that order too.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::crc::{Crc, hash};
use super::sequencer;
use super::writes::{Content, Settings, Writes};
use crate::disk::Disk;
use crate::exact::{Exact, to_usize};
use crate::io::Buffer;
use crate::sync::{Mutex, lock};
use crate::{Error, Observer, Result};

/// Items start and end at multiples of this many bytes, or are zeros: a cluster is written by one worker.
pub(in crate::ops) const ITEM: u64 = 2 << 20;
/// After so many ranges were written, they are read back: this bounds their list.
const MOST_RANGES: usize = 1 << 20;

/// What is to be done to a disk.
pub(in crate::ops) trait Steps: Sync {
    /// Gives out the items; one worker at a time has it.
    type Source: Send;
    /// What each worker keeps to itself.
    type Worker;
    /// One piece of work.
    type Item;

    /// The items from the start of the disk on.
    fn source(&self) -> Self::Source;
    /// The next item, and how many bytes of the disk it covers.
    fn next(&self, source: &mut Self::Source) -> Result<Option<(u64, Self::Item)>>;
    /// Sets up a worker.
    fn worker(&self) -> Result<Self::Worker>;
    /// Carries out one item.
    fn carry_out(
        &self,
        worker: &mut Self::Worker,
        item: Self::Item,
        writes: &mut Writes<'_>,
    ) -> Result<()>;
}

/// What was written.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Transferred {
    pub(in crate::ops) data_bytes: u64,
    pub(in crate::ops) zero_bytes: u64,
    /// CRC-32 of all of it, zeros included, in disk order.
    pub(in crate::ops) crc32: String,
}

/// Carries out all items. The disk is not flushed.
///
/// # Errors
/// What the items raise; [`Io`](crate::ErrorKind::Io) if what is read back is not what was written.
pub(in crate::ops) fn run<S: Steps>(
    steps: &S,
    disk: &Disk,
    settings: Settings<'_>,
) -> Result<Transferred> {
    let mut items = Items { number: 0, ended: false, source: steps.source() };
    let mut sum = Sum::default();
    while !items.ended {
        items.number = 0;
        (items, sum) = stretch(steps, disk, items, sum, settings)?;
        if settings.verify && !settings.dry_run {
            verify(disk, &sum, settings)?;
        }
    }
    let Sum { data_bytes, zero_bytes, whole, .. } = sum;
    Ok(Transferred { data_bytes, zero_bytes, crc32: whole.to_hex() })
}

/// Carries out items until all are done, or the list of what was written is full.
fn stretch<S: Steps>(
    steps: &S,
    disk: &Disk,
    items: Items<S::Source>,
    before: Sum,
    settings: Settings<'_>,
) -> Result<(Items<S::Source>, Sum)> {
    let Settings { observer, cancel, threads, .. } = settings;
    let observer = Further { observer, before: before.covered };
    let (items, listed) = (Mutex::new(items), AtomicUsize::new(0));
    let sum = Sum { ranges: Vec::new(), part: Crc::new(), ..before };
    let total = disk.size();
    let sum = sequencer::run(threads, sum, total, &observer, |sequencer| {
        let mut worker = steps.worker()?;
        while listed.load(Relaxed) < MOST_RANGES {
            cancel.check()?;
            let next = lock(&items).next(steps)?;
            let Some((number, len, item)) = next else { break };
            let mut writes = Writes::new(disk, settings);
            steps.carry_out(&mut worker, item, &mut writes)?;
            let added = sequencer.in_turn(number, len, |sum| {
                writes.carry_out()?;
                listed.store(sum.add(len, writes)?, Relaxed);
                Ok(())
            })?;
            if added.is_none() {
                break;
            }
        }
        Ok(())
    })?;
    Ok((items.into_inner().unwrap_or_else(PoisonError::into_inner), sum))
}

/// Gives out numbered items.
struct Items<T> {
    source: T,
    number: u64,
    ended: bool,
}

impl<T> Items<T> {
    fn next<S: Steps<Source = T>>(&mut self, steps: &S) -> Result<Option<(u64, u64, S::Item)>> {
        if self.ended {
            return Ok(None);
        }
        let number = self.number;
        match steps.next(&mut self.source) {
            Ok(Some((len, item))) => {
                self.number = number.plus(1)?;
                Ok(Some((number, len, item)))
            }
            end => {
                self.ended = true;
                end.map(|_| None)
            }
        }
    }
}

/// What was written so far.
struct Sum {
    covered: u64,
    data_bytes: u64,
    zero_bytes: u64,
    whole: Crc,
    /// Of what was not read back yet.
    part: Crc,
    ranges: Vec<Range<u64>>,
}

impl Default for Sum {
    fn default() -> Self {
        let (whole, part, ranges) = (Crc::new(), Crc::new(), Vec::new());
        Self { covered: 0, data_bytes: 0, zero_bytes: 0, whole, part, ranges }
    }
}

impl Sum {
    /// Adds what an item wrote that covers `len` bytes; gives back the length of the list.
    fn add(&mut self, len: u64, writes: Writes<'_>) -> Result<usize> {
        self.covered = self.covered.plus(len)?;
        for written in writes.into_written() {
            let len = written.range.end.minus(written.range.start)?;
            match &written.content {
                Content::Unread => self.data_bytes = self.data_bytes.plus(len)?,
                Content::Bytes(hash) => {
                    self.data_bytes = self.data_bytes.plus(len)?;
                    self.whole.append(hash);
                    self.part.append(hash);
                }
                Content::Zeros => {
                    self.zero_bytes = self.zero_bytes.plus(len)?;
                    self.whole.append_zeros(len);
                    self.part.append_zeros(len);
                }
            }
            match self.ranges.last_mut() {
                Some(last) if last.end == written.range.start => last.end = written.range.end,
                _ => self.ranges.push(written.range),
            }
        }
        Ok(self.ranges.len())
    }
}

/// Reads back what was written, and compares its digest.
fn verify(disk: &Disk, sum: &Sum, settings: Settings<'_>) -> Result<()> {
    let pieces = Mutex::new(Pieces { ranges: sum.ranges.iter(), rest: 0..0, number: 0 });
    let cancel = settings.cancel;
    let crc = sequencer::run(settings.threads, Crc::new(), 0, &crate::Silent, |sequencer| {
        let mut buffer = Buffer::new(to_usize(ITEM))?;
        loop {
            cancel.check()?;
            let Some((number, piece)) = lock(&pieces).next()? else { return Ok(()) };
            let len = to_usize(piece.end.minus(piece.start)?);
            let bytes = buffer.first(len)?;
            disk.read_at(bytes, piece.start)?;
            let hash = hash(bytes);
            let append = |crc: &mut Crc| {
                crc.append(&hash);
                Ok(())
            };
            if sequencer.in_turn(number, 0, append)?.is_none() {
                return Ok(());
            }
        }
    })?;
    if crc.to_hex() == sum.part.to_hex() {
        return Ok(());
    }
    let lost = std::io::Error::other("the digests differ");
    Err(Error::io("what was written does not read back", lost))
}

/// Cuts ranges into numbered pieces that fit into a buffer.
struct Pieces<'a> {
    ranges: std::slice::Iter<'a, Range<u64>>,
    rest: Range<u64>,
    number: u64,
}

impl Pieces<'_> {
    fn next(&mut self) -> Result<Option<(u64, Range<u64>)>> {
        if self.rest.is_empty() {
            let Some(range) = self.ranges.next() else { return Ok(None) };
            self.rest = range.clone();
        }
        let end = (self.rest.start | ITEM.wrapping_sub(1)).plus(1)?.min(self.rest.end);
        let piece = self.rest.start..end;
        self.rest.start = end;
        let number = self.number;
        self.number = number.plus(1)?;
        Ok(Some((number, piece)))
    }
}

/// Shows the progress of a stretch that does not start with the disk.
struct Further<'a> {
    observer: &'a dyn Observer,
    before: u64,
}

impl Observer for Further<'_> {
    fn progress(&self, done: u64, total: u64) {
        // Disks are shorter than 2^63 bytes.
        self.observer.progress(self.before.wrapping_add(done).min(total), total);
    }
}
