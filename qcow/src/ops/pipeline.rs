//! The engine behind flatten and checksum: extents are cut into work items, workers handle the
//! items in parallel, and each item takes its turn in disk order for the one step that must be
//! ordered (its place in the output, its part of the digest). Memory is one item per worker.

use std::sync::Mutex;

use super::turns::{self, Turns, lock};
use crate::chain::Chain;
use crate::extent::{Extent, Extents, Reader};
use crate::io::Buffer;
use crate::{CancelToken, Error, Observer, Result};

/// Items start and end at multiples of this many bytes, unless they are all zeros. Clusters of
/// any size fit in without being cut.
pub(super) const ITEM: u64 = 2 << 20;
const IN_ITEM: u64 = ITEM - 1;

/// What happens to the items.
pub(super) trait Job: Sync {
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
}

/// Runs `job` over the whole disk of `chain` with `threads` workers (0: one per core, at most 16)
/// and gives back the ordered state.
pub(super) fn run<J: Job>(
    chain: &Chain,
    job: &J,
    ordered: J::Ordered,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<J::Ordered> {
    let items = Mutex::new(Items::new(chain));
    turns::run(threads, ordered, chain.virtual_size(), observer, |turns| {
        work_through(chain, job, &items, turns, cancel)
    })
}

fn work_through<J: Job>(
    chain: &Chain,
    job: &J,
    items: &Mutex<Items<'_>>,
    turns: &Turns<'_, J::Ordered>,
    cancel: &CancelToken,
) -> Result<()> {
    let mut worker = job.worker()?;
    let mut reader = chain.reader();
    let mut buffer = Buffer::new(usize::try_from(ITEM).unwrap_or_default())?;
    loop {
        cancel.check()?;
        let next = lock(items).next_item();
        let Some((number, item)) = next.transpose()? else { return Ok(()) };
        let Item::Data { guest, len, extents } = item else {
            let Item::Zeros { guest, len } = item else { continue };
            if turns.in_turn(number, len, |ordered| job.place_zeros(ordered, guest, len))?.is_none()
            {
                return Ok(());
            }
            continue;
        };
        let bytes = read_item(&mut reader, &mut buffer, guest, len, &extents)?;
        let ready = job.prepare(&mut worker, guest, bytes)?;
        let placed = turns.in_turn(number, len, |ordered| job.place(ordered, &ready))?;
        let Some(placed) = placed else { return Ok(()) };
        job.write(&mut worker, bytes, ready, placed)?;
    }
}

/// Reads the item's bytes into `buffer`.
fn read_item<'b>(
    reader: &mut Reader<'_>,
    buffer: &'b mut Buffer,
    guest: u64,
    len: u64,
    extents: &[Extent],
) -> Result<&'b [u8]> {
    let len = usize::try_from(len).map_err(|_| Error::limit("a work item is too long"))?;
    let bytes = buffer.first(len)?;
    reader.read_extents(guest, extents, bytes)?;
    Ok(bytes)
}

/// One unit of work.
enum Item {
    /// `len` bytes that read as zeros by what the tables say.
    Zeros { guest: u64, len: u64 },
    /// `len` bytes, at most [`ITEM`], and where they come from.
    Data { guest: u64, len: u64, extents: Vec<Extent> },
}

/// Cuts the extents of a chain into numbered items. The cut depends on nothing but the chain.
struct Items<'a> {
    extents: Extents<'a>,
    /// An extent of which a part is left.
    left: Option<Extent>,
    number: u64,
}

impl<'a> Items<'a> {
    fn new(chain: &'a Chain) -> Self {
        Self { extents: chain.extents(), left: None, number: 0 }
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
            let cut = extent.end().min(boundary);
            extents.push(extent.slice(extent.guest.0, cut));
            at = cut;
            self.give_back(extent, cut);
            next = if at < boundary { self.take()? } else { None };
        }
        let len = at.saturating_sub(guest);
        if extents.iter().all(Extent::is_zero) {
            return Ok(Some(Item::Zeros { guest, len }));
        }
        Ok(Some(Item::Data { guest, len, extents }))
    }

    fn take(&mut self) -> Result<Option<Extent>> {
        match self.left.take() {
            Some(extent) => Ok(Some(extent)),
            None => self.extents.next().transpose(),
        }
    }

    /// Keeps what `extent` has from `from` on for the next item.
    fn give_back(&mut self, extent: Extent, from: u64) {
        self.left = (from < extent.end()).then(|| extent.slice(from, extent.end()));
    }
}
