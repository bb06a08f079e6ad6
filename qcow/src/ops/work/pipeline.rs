//! The engine behind flatten and digests: extents are cut into work items, workers handle the
//! items in parallel, and each item takes its turn in disk order for the one step that must be
//! ordered (its place in the output, its part of the digest). Memory is one item per worker.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, OnceLock, PoisonError};

use crc32fast::Hasher;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::item::{ITEM, read_item};
use super::offload::{Offload, OffloadRange, Place, none_here};
use super::salvage::Salvage;
use super::sequencer::{self, Sequencer};
use crate::chain::{Chain, END, Foreign};
use crate::extent::{Extent, Extents};
use crate::io::Buffer;
use crate::sync::{Mutex, lock};
use crate::{CancelToken, Error, Observer, Result, Silent};

/// The part of an offset that is within an item.
const IN_ITEM: u64 = ITEM - 1;

/// What happens to the items.
pub(in crate::ops) trait Job: Sync {
    /// What each worker keeps to itself: buffers, codec contexts.
    type Worker;
    /// What the worker knows about an item after the parallel part.
    type Ready;
    /// What only the item whose turn it is may touch.
    type Ordered: Send;
    /// Where the item went.
    type Placed;

    /// Sets up a worker.
    fn worker(&self) -> Result<Self::Worker>;
    /// In parallel: looks at the item's bytes.
    fn prepare(&self, worker: &mut Self::Worker, guest: u64, bytes: &[u8]) -> Result<Self::Ready>;
    /// As [`prepare`](Self::prepare), of an item that consists of `extents`.
    fn prepare_extents(
        &self,
        worker: &mut Self::Worker,
        guest: u64,
        bytes: &[u8],
        _extents: &[Extent],
    ) -> Result<Self::Ready> {
        self.prepare(worker, guest, bytes)
    }

    /// In disk order: gives the item its place. Must be quick.
    fn place(&self, ordered: &mut Self::Ordered, ready: &Self::Ready) -> Result<Self::Placed>;
    /// In disk order: `len` bytes from `guest` on are zeros.
    fn place_zeros(&self, ordered: &mut Self::Ordered, guest: u64, len: u64) -> Result<()>;
    /// In parallel: writes the item out.
    fn write(
        &self,
        worker: &mut Self::Worker,
        bytes: &[u8],
        ready: Self::Ready,
        placed: Self::Placed,
    ) -> Result<()>;

    /// What need not pass through memory.
    fn offload(&self) -> Option<&Offload<'_>> {
        None
    }

    /// Where to list what cannot be read, if that is not to end the job: such ranges are zeros.
    fn salvage(&self) -> Option<&Salvage> {
        None
    }

    /// In disk order: gives a range that is offloaded its places.
    fn place_offloaded(
        &self,
        _ordered: &mut Self::Ordered,
        _range: &OffloadRange,
        _hash: Option<&Hasher>,
    ) -> Result<Vec<Place>> {
        Err(none_here())
    }

    /// A worker has failed: what others wait for may never come.
    fn abandon(&self) {}
}

/// Tells the job when a worker leaves early.
struct Leaving<'j, J: Job>(&'j J);

impl<J: Job> Drop for Leaving<'_, J> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Runs `job` over the whole disk of `chain` with `threads` workers (0: one per core, at most 16)
/// and gives back the ordered state.
///
/// # Errors
/// Besides the job's own, [`Io`](crate::ErrorKind::Io) if a file of the chain was changed meanwhile:
/// a result that mixes two states of the disk is never handed out.
pub(in crate::ops) fn run<J: Job>(
    chain: &Chain,
    job: &J,
    ordered: J::Ordered,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<J::Ordered> {
    let items = Mutex::new(Items::new(chain, job.offload(), job.salvage()));
    let ordered = sequencer::run(threads, ordered, chain.virtual_size(), observer, |sequencer| {
        let leaving = Leaving(job);
        work_through(chain, job, &items, sequencer, cancel)?;
        std::mem::forget(leaving);
        Ok(())
    })?;
    chain.check_unchanged()?;
    Ok(ordered)
}

/// A stream that brings a disk from its first byte to its last.
pub(in crate::ops) struct Input {
    pub(in crate::ops) file: File,
    /// How long it must be, if that is known.
    pub(in crate::ops) size: Option<u64>,
    /// It is a raw disk whatever its bytes look like.
    pub(in crate::ops) raw_stated: bool,
    /// What its first bytes look like, once they are read.
    pub(in crate::ops) looks_like: Arc<OnceLock<Foreign>>,
}

/// Fills `space` from the stream: how many bytes came, and whether the stream has ended.
fn fill(mut file: &File, space: &mut [u8], cancel: &CancelToken) -> Result<(usize, bool)> {
    let mut filled = 0;
    while let Some(rest) = space.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        wait_for_input(file, cancel)?;
        match file.read(rest) {
            Ok(0) => return Ok((filled, true)),
            Ok(read) => filled = filled.saturating_add(read),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("could not read the stream", error)),
        }
    }
    Ok((filled, false))
}

/// Runs `job` over the disk that `input` brings. Returns its length too.
pub(in crate::ops) fn receive<J: Job>(
    input: Input,
    job: &J,
    ordered: J::Ordered,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<(u64, J::Ordered)> {
    let total = input.size.unwrap_or(0);
    let observer = if input.size.is_some() { observer } else { &Silent };
    let incoming = Mutex::new(Incoming { input, number: 0, at: 0, ended: false, end: Vec::new() });
    let ordered = sequencer::run(threads, ordered, total, observer, |sequencer| {
        let leaving = Leaving(job);
        take_in(job, &incoming, sequencer, cancel)?;
        std::mem::forget(leaving);
        Ok(())
    })?;
    let incoming = incoming.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((incoming.at, ordered))
}

fn take_in<J: Job>(
    job: &J,
    incoming: &Mutex<Incoming>,
    sequencer: &Sequencer<'_, J::Ordered>,
    cancel: &CancelToken,
) -> Result<()> {
    let mut worker = job.worker()?;
    let mut buffer = Buffer::new(usize::try_from(ITEM).unwrap_or_default())?;
    loop {
        cancel.check()?;
        let next = lock(incoming).next_item(&mut buffer, cancel)?;
        let Some((number, guest, bytes)) = next else { return Ok(()) };
        let ready = job.prepare(&mut worker, guest, bytes)?;
        let place = |ordered: &mut _| job.place(ordered, &ready);
        let Some(placed) = sequencer.in_turn(number, bytes.len() as u64, place)? else {
            return Ok(());
        };
        job.write(&mut worker, bytes, ready, placed)?;
    }
}

/// How far the input has been read.
struct Incoming {
    input: Input,
    number: u64,
    at: u64,
    ended: bool,
    /// The last bytes that came.
    end: Vec<u8>,
}

impl Incoming {
    /// The next item's number, its place on the disk and its bytes; `None` at the end.
    fn next_item<'b>(
        &mut self,
        buffer: &'b mut Buffer,
        cancel: &CancelToken,
    ) -> Result<Option<(u64, u64, &'b [u8])>> {
        let space = buffer.first(usize::try_from(ITEM).unwrap_or_default())?;
        let mut filled = 0;
        if !self.ended {
            (filled, self.ended) = fill(&self.input.file, space, cancel)?;
        }
        if let Err(error) = self.check_format(space.get(..filled).unwrap_or_default()) {
            // For the other workers there is no more, and nothing else to complain of.
            (self.ended, self.input.size) = (true, None);
            return Err(error);
        }
        let (number, guest) = (self.number, self.at);
        self.number = number.saturating_add(1);
        self.at = guest.saturating_add(filled as u64);
        match self.input.size {
            Some(size) if self.at > size => Err(another_length("has more than", size, size)),
            Some(size) if self.ended && self.at < size => {
                Err(another_length("ended after", self.at, size))
            }
            _ => Ok(space
                .get(..filled)
                .filter(|bytes| !bytes.is_empty())
                .map(|bytes| (number, guest, bytes))),
        }
    }
}

impl Incoming {
    /// Refuses a stream whose start or end is not that of a raw disk; `bytes` came now.
    fn check_format(&mut self, bytes: &[u8]) -> Result<()> {
        let start = if self.number == 0 { Foreign::at_start(bytes) } else { None };
        if let Some(found) = start {
            let _ = self.input.looks_like.set(found);
        }
        if self.input.raw_stated {
            return Ok(());
        }
        self.keep_end(bytes);
        let end = if self.ended { Foreign::at_end(&self.end) } else { None };
        start.or(end).map_or(Ok(()), |found| Err(found.refused_as_stream()))
    }

    /// Keeps the last bytes of the stream, of which `bytes` came now.
    fn keep_end(&mut self, bytes: &[u8]) {
        let bytes = bytes.get(bytes.len().saturating_sub(END)..).unwrap_or(bytes);
        let old = self.end.len().saturating_add(bytes.len()).saturating_sub(END);
        self.end.drain(..old.min(self.end.len()));
        self.end.extend_from_slice(bytes);
    }
}

fn another_length(what: &str, len: u64, size: u64) -> Error {
    Error::usage(format!("the stream {what} {len} bytes, and {size} were announced"))
        .hint(crate::Remedy::CheckStream)
}

/// Waits until something can be read, or the caller wants to stop.
fn wait_for_input(file: &File, cancel: &CancelToken) -> Result<()> {
    let tenth = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        cancel.check()?;
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&tenth)) {
            Ok(0) | Err(Errno::INTR) => {}
            // What is wrong with it, reading will say.
            Ok(_) | Err(_) => return Ok(()),
        }
    }
}

fn work_through<J: Job>(
    chain: &Chain,
    job: &J,
    items: &Mutex<Items<'_>>,
    sequencer: &Sequencer<'_, J::Ordered>,
    cancel: &CancelToken,
) -> Result<()> {
    let mut worker = job.worker()?;
    let mut reader = chain.reader();
    if job.salvage().is_some() {
        reader.tolerate();
    }
    let mut buffer = Buffer::new(usize::try_from(ITEM).unwrap_or_default())?;
    loop {
        cancel.check()?;
        let next = lock(items).next_item();
        let Some((number, item)) = next.transpose()? else { return Ok(()) };
        let (guest, len, extents) = match item {
            Item::Data { guest, len, extents } => (guest, len, extents),
            Item::Zeros { guest, len } => {
                let place = |ordered: &mut _| job.place_zeros(ordered, guest, len);
                if sequencer.in_turn(number, len, place)?.is_none() {
                    return Ok(());
                }
                continue;
            }
            Item::Offload(range) => {
                let Some(offload) = job.offload() else { return Err(none_here()) };
                let hash = offload.digest(&mut reader, &mut buffer, &range)?;
                let place = |ordered: &mut _| job.place_offloaded(ordered, &range, hash.as_ref());
                let Some(places) = sequencer.in_turn(number, range.len, place)? else {
                    return Ok(());
                };
                offload.carry(&mut reader, &mut buffer, &range, &places, cancel)?;
                continue;
            }
        };
        let bytes = read_item(&mut reader, &mut buffer, guest, len, &extents)?;
        let damage = reader.take_damage();
        let ready = job.prepare_extents(&mut worker, guest, bytes, &extents)?;
        let placed = sequencer.in_turn(number, len, |ordered| {
            if let Some(salvage) = job.salvage() {
                salvage.add_data(damage);
            }
            job.place(ordered, &ready)
        })?;
        let Some(placed) = placed else { return Ok(()) };
        job.write(&mut worker, bytes, ready, placed)?;
    }
}

/// One unit of work.
enum Item {
    /// `len` bytes that read as zeros by what the tables say.
    Zeros { guest: u64, len: u64 },
    /// `len` bytes, at most [`ITEM`], and where they come from.
    Data { guest: u64, len: u64, extents: Vec<Extent> },
    /// A stretch that does not pass through memory.
    Offload(OffloadRange),
}

/// Cuts the extents of a chain into numbered items. The cut depends on nothing but the chain.
struct Items<'a> {
    extents: Extents,
    offload: Option<&'a Offload<'a>>,
    salvage: Option<&'a Salvage>,
    /// An extent of which a part is left.
    left: Option<Extent>,
    number: u64,
}

impl<'a> Items<'a> {
    fn new(
        chain: &'a Chain,
        offload: Option<&'a Offload<'a>>,
        salvage: Option<&'a Salvage>,
    ) -> Self {
        let mut extents = chain.extents();
        if salvage.is_some() {
            extents.tolerate();
        }
        Self { extents, offload, salvage, left: None, number: 0 }
    }

    fn next_item(&mut self) -> Option<Result<(u64, Item)>> {
        let item = self.cut().transpose()?;
        let number = self.number;
        self.number = number.saturating_add(1);
        Some(item.map(|item| (number, item)))
    }

    fn cut(&mut self) -> Result<Option<Item>> {
        let Some(first) = self.take()? else { return Ok(None) };
        let guest = first.guest.0;
        if self.offloadable(&first).is_some_and(|(start, _)| start == guest) {
            return self.cut_offload(first).map(|range| Some(Item::Offload(range)));
        }
        // Zeros go in one piece up to the last item boundary they reach.
        let whole = first.end() & !IN_ITEM;
        if first.is_zero() && guest & IN_ITEM == 0 && whole > guest {
            self.give_back(first, whole);
            return Ok(Some(Item::Zeros { guest, len: whole.saturating_sub(guest) }));
        }
        let boundary = (guest | IN_ITEM).saturating_add(1);
        let (mut extents, mut at) = (Vec::new(), guest);
        let mut next = Some(first);
        while let Some(extent) = next {
            let range = self.offloadable(&extent).map_or(boundary, |(start, _)| start);
            let cut = extent.end().min(boundary).min(range);
            if cut == extent.guest.0 {
                self.give_back(extent, cut);
                break;
            }
            extents.push(extent.slice(extent.guest.0, cut));
            at = cut;
            self.give_back(extent, cut);
            next = if at < boundary.min(range) { self.take()? } else { None };
        }
        let len = at.saturating_sub(guest);
        if extents.iter().all(Extent::is_zero) {
            return Ok(Some(Item::Zeros { guest, len }));
        }
        Ok(Some(Item::Data { guest, len, extents }))
    }

    /// The range from `first` on that can be offloaded.
    fn cut_offload(&mut self, first: Extent) -> Result<OffloadRange> {
        let guest = first.guest.0;
        let (mut extents, mut at) = (Vec::new(), guest);
        let Some(offload) = self.offload else {
            return Ok(OffloadRange { guest, len: 0, extents });
        };
        let (limit, most) = (offload.reach(guest)?, offload.most_extents());
        let mut next = Some(first);
        while let Some(extent) = next.take() {
            let end = match offload.offloadable(&extent) {
                Some((start, end)) if start == at && extents.len() < most => end.min(limit),
                None if extent.is_zero() => offload.passable(extent.end()).unwrap_or(at),
                _ => at,
            };
            if end > at {
                if !extent.is_zero() {
                    extents.push(extent.slice(at, end));
                }
                at = end;
            }
            self.give_back(extent, at);
            if self.left.is_none() && at < limit {
                next = self.take()?;
            }
        }
        Ok(OffloadRange { guest, len: at.saturating_sub(guest), extents })
    }

    fn offloadable(&self, extent: &Extent) -> Option<(u64, u64)> {
        self.offload.and_then(|offload| offload.offloadable(extent))
    }

    fn take(&mut self) -> Result<Option<Extent>> {
        match self.left.take() {
            Some(extent) => Ok(Some(extent)),
            None => {
                let extent = self.extents.next().transpose();
                if let Some(salvage) = self.salvage {
                    salvage.add_tables(self.extents.take_damage());
                }
                extent
            }
        }
    }

    /// Keeps what `extent` has from `from` on for the next item.
    fn give_back(&mut self, extent: Extent, from: u64) {
        self.left = (from < extent.end()).then(|| extent.slice(from, extent.end()));
    }
}
