//! Flattens to a pipe, front to back, without seeking or scratch space; and from one.
//!
//! A QCOW2 header says where the tables are, and the tables say where the data is, before the data
//! comes. So the source is gone through twice: first to find out where everything will lie, then
//! to write it. Both times the layout is that of a file, byte for byte.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError};

use crc32fast::Hasher;

use super::clusters::{self, Qcow2Job};
use super::options::FlattenOptions;
use super::outcome::{Done, FlattenOutcome, outcome, with_losses};
use super::qcow2;
use super::raw::{self, BLOCK};
use super::runs::runs_of;
use super::sinks::{self, Metadata};
use super::totals::Totals;
use crate::chain::{Chain, Format};
use crate::codec::is_zero;
use crate::exact::Exact;
use crate::io::{OutputFile, zeros};
use crate::ops::bitmap::{Carried, CarryBitmaps};
use crate::ops::work::crc::hash;
use crate::ops::work::offload::TransferStats;
use crate::ops::work::pipeline::{self, Input, Job};
use crate::ops::{Preallocation, Qcow2Options, TargetOptions};
use crate::sync::{Condvar, Mutex, lock};
use crate::{CancelToken, Error, Observer, Remedy, Result};

/// Small pieces are collected up to this many bytes.
const COLLECTED: usize = 256 << 10;

/// Refuses what a stream cannot hold.
pub(super) fn check_sending(options: &FlattenOptions) -> Result<()> {
    refuse(options.salvage, "salvaging")?;
    refuse(options.bitmaps != CarryBitmaps::None, "bitmaps")?;
    refuse(options.sparse.is_some(), "a size of zeros to leave out")?;
    refuse(options.rate.is_some(), "a limit of bytes a second")?;
    match &options.target {
        TargetOptions::Raw(target) => {
            raw::refuse_compression(options)?;
            refuse(target.preallocation != Preallocation::Off, "preallocation")
        }
        TargetOptions::Qcow2(target) => refuse_for_streams(target),
    }
}

/// Writes the image to `output`, front to back. The options have been checked.
pub(super) fn send(
    chain: &Chain,
    output: File,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<FlattenOutcome> {
    let mut stream = Stream::new(output);
    let (format, done) = match &options.target {
        TargetOptions::Raw(_) => {
            (Format::Raw, send_raw(chain, &mut stream, options, observer, cancel)?)
        }
        TargetOptions::Qcow2(target) => {
            (Format::Qcow2, send_qcow2(chain, &mut stream, target, options, observer, cancel)?)
        }
    };
    let outcome = outcome(Path::new("-"), format, chain.virtual_size(), done);
    let none = Carried::of(chain, CarryBitmaps::None, None)?;
    with_losses(chain, &options.target, &none, outcome)
}

/// What a stream is written to.
pub(super) enum Receiver {
    Raw(OutputFile),
    Qcow2(Box<qcow2::Begun>),
}

/// Refuses what needs the size of the disk before its end, and starts the image at `path`.
pub(super) fn begin_receiving(path: &Path, options: &FlattenOptions) -> Result<Receiver> {
    refuse(options.salvage, "salvaging")?;
    refuse(options.bitmaps != CarryBitmaps::None, "bitmaps")?;
    refuse(options.sparse.is_some(), "a size of zeros to leave out")?;
    refuse(options.rate.is_some(), "a limit of bytes a second")?;
    match &options.target {
        TargetOptions::Raw(target) => {
            refuse(target.preallocation != Preallocation::Off, "preallocation")?;
            Ok(Receiver::Raw(raw::begin(path, options)?))
        }
        TargetOptions::Qcow2(target) => {
            refuse_for_streams(target)?;
            Ok(Receiver::Qcow2(Box::new(qcow2::begin_growing(path, target, options)?)))
        }
    }
}

/// Reads a disk of `size` bytes, if that is known, from `input`.
pub(super) fn receive(
    (input, size): (File, Option<u64>),
    (path, receiver): (&Path, Receiver),
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<FlattenOutcome> {
    let (looks_like, raw_stated) = (Arc::new(OnceLock::new()), options.raw_stated);
    let input = Input { file: input, size, raw_stated, looks_like: Arc::clone(&looks_like) };
    let (format, (size, done)) = match receiver {
        Receiver::Raw(output) => {
            (Format::Raw, raw::receive(input, output, options, observer, cancel)?)
        }
        Receiver::Qcow2(begun) => {
            (Format::Qcow2, qcow2::receive(input, *begun, options, observer, cancel)?)
        }
    };
    let looks_like = looks_like.get().copied();
    Ok(FlattenOutcome { looks_like, ..outcome(path, format, size, done) })
}

fn refuse_for_streams(target: &Qcow2Options) -> Result<()> {
    refuse(target.data_file.is_some(), "a data file")?;
    refuse(target.preallocation != Preallocation::Off, "preallocation")
}

fn refuse(wanted: bool, what: &str) -> Result<()> {
    if wanted {
        return Err(
            Error::usage(format!("{what} and a stream do not go together")).hint(Remedy::NameFile)
        );
    }
    Ok(())
}

fn send_raw(
    chain: &Chain,
    stream: &mut Stream,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Done> {
    let job = RawStream { stream, digest: options.digest };
    let state = RawState { tickets: 0, totals: Totals::new(options.digest) };
    let state = pipeline::run(chain, &job, state, options.threads, observer, cancel)?;
    let written = stream.finish(chain.virtual_size())?;
    let (file_length, transfer) = (chain.virtual_size(), sent(written));
    let (totals, warnings) = (state.totals, Vec::new());
    Ok(Done { file_length, transfer, totals, warnings, damage: None })
}

fn send_qcow2(
    chain: &Chain,
    stream: &mut Stream,
    target: &Qcow2Options,
    options: &FlattenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Done> {
    let (target, placer) = qcow2::prepared(chain, target, options)?;
    let planning = Qcow2Job::new(None, &target, options, cancel);
    let state = clusters::State::new(placer, false);
    let halves = Halves { observer, second: false };
    let state = pipeline::run(chain, &planning, state, options.threads, &halves, cancel)?;
    let mut planned = Metadata::Kept(Vec::new());
    let plan = state.placer.finish(&mut planned)?;

    let header = target.header_area(chain.virtual_size(), &plan, None)?.to_bytes()?;
    let l1_end = plan.l1_offset.plus(u64::from(plan.l1_entries) << 3)?.0;
    let is_l1 = |offset: u64| (plan.l1_offset.0..l1_end).contains(&offset);
    let planned_l1: Vec<_> = planned.into_kept().filter(|(offset, _)| is_l1(*offset)).collect();
    stream.write(0, &header)?;
    for (offset, bytes) in &planned_l1 {
        stream.write(*offset, bytes)?;
    }

    let (_, placer) = qcow2::prepared(chain, &target, options)?;
    let inner = Qcow2Job::new(None, &target, options, cancel);
    let job = Qcow2Stream { inner, stream };
    let state = Sending { tickets: 0, image: clusters::State::new(placer, options.digest) };
    let halves = Halves { observer, second: true };
    let state = pipeline::run(chain, &job, state, options.threads, &halves, cancel)?.image;
    let mut rest = Metadata::Kept(Vec::new());
    let finished = state.placer.finish(&mut rest)?;
    let (l1, rest): (Vec<_>, Vec<_>) = rest.into_kept().partition(|(offset, _)| is_l1(*offset));
    if finished != plan || l1 != planned_l1 {
        return Err(Error::io(
            "the source changed between the two times that it was read",
            std::io::Error::other("what was written is not a whole image"),
        )
        .hint(Remedy::StopChanges));
    }
    stream.keep(rest);
    let written = stream.finish(finished.file_length)?;
    let (file_length, transfer) = (finished.file_length, sent(written));
    let (totals, warnings) = (state.totals, Vec::new());
    Ok(Done { file_length, transfer, totals, warnings, damage: None })
}

fn sent(written_bytes: u64) -> TransferStats {
    TransferStats { written_bytes, ..TransferStats::default() }
}

/// Shows two runs over the disk as one.
struct Halves<'a> {
    observer: &'a dyn Observer,
    second: bool,
}

impl Observer for Halves<'_> {
    fn progress(&self, done: u64, total: u64) {
        // Disks are shorter than 2^63 bytes.
        let before = if self.second { total } else { 0 };
        self.observer.progress(before.wrapping_add(done), total.wrapping_mul(2));
    }
}

/// Writes items in the order of their tickets, and what belongs further back when its time comes.
struct Stream {
    state: Mutex<Written>,
    advanced: Condvar,
}

struct Written {
    output: BufWriter<File>,
    /// Whose turn it is.
    next: u64,
    /// Bytes written so far.
    at: u64,
    /// What lies behind something that is not there yet.
    pending: BTreeMap<u64, Vec<u8>>,
    abandoned: bool,
}

/// When an item may be written, and what is final then.
struct Ticket {
    number: u64,
    /// No later item has anything before this offset.
    low_water_mark: u64,
}

impl Stream {
    fn new(output: File) -> Self {
        let output = BufWriter::with_capacity(COLLECTED, output);
        let (pending, abandoned) = (BTreeMap::new(), false);
        let state = Written { output, next: 0, at: 0, pending, abandoned };
        Self { state: Mutex::new(state), advanced: Condvar::new() }
    }

    /// Waits for the item's turn and writes its pieces, each with its offset, in any order.
    fn submit(&self, ticket: &Ticket, mut pieces: Vec<(u64, &[u8])>) -> Result<()> {
        let mut state = lock(&self.state);
        while state.next != ticket.number && !state.abandoned {
            state = self.advanced.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.abandoned {
            // Whoever failed says why.
            return Ok(());
        }
        pieces.sort_unstable_by_key(|(offset, _)| *offset);
        for (offset, bytes) in pieces {
            state.write_pending(offset.min(ticket.low_water_mark))?;
            if offset < ticket.low_water_mark {
                state.write(offset, bytes)?;
            } else {
                state.pending.insert(offset, bytes.to_vec());
            }
        }
        state.write_pending(ticket.low_water_mark)?;
        state.next = state.next.plus(1)?;
        drop(state);
        self.advanced.notify_all();
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).write(offset, bytes)
    }

    fn keep(&mut self, pieces: Vec<(u64, Vec<u8>)>) {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).pending.extend(pieces);
    }

    /// Writes what is left, up to `len` bytes in all, and returns how many those are.
    fn finish(&mut self, len: u64) -> Result<u64> {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.write_pending(u64::MAX)?;
        state.fill(len)?;
        state.output.flush().map_err(failed)?;
        Ok(state.at)
    }

    fn abandon(&self) {
        lock(&self.state).abandoned = true;
        self.advanced.notify_all();
    }
}

impl Written {
    /// Writes what is pending before `end`.
    fn write_pending(&mut self, end: u64) -> Result<()> {
        while let Some(first) = self.pending.first_entry().filter(|first| *first.key() < end) {
            let (offset, bytes) = first.remove_entry();
            self.write(offset, &bytes)?;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if offset < self.at {
            return Err(Error::internal("a piece of the stream came too late").host_offset(offset));
        }
        self.fill(offset)?;
        self.output.write_all(bytes).map_err(failed)?;
        self.at = offset.plus(bytes.len() as u64)?;
        Ok(())
    }

    /// Writes zeros up to `end`.
    fn fill(&mut self, end: u64) -> Result<()> {
        while self.at < end {
            let zeros = zeros(end.minus(self.at)?);
            self.output.write_all(zeros).map_err(failed)?;
            self.at = self.at.plus(zeros.len() as u64)?;
        }
        Ok(())
    }
}

fn failed(error: std::io::Error) -> Error {
    let gone = error.kind() == std::io::ErrorKind::BrokenPipe;
    let error = Error::io("could not write the stream", error);
    if gone { error.hint("its reader ended before the image was whole") } else { error }
}

struct RawStream<'a> {
    stream: &'a Stream,
    digest: bool,
}

struct RawState {
    tickets: u64,
    totals: Totals,
}

struct RawReady {
    guest: u64,
    data_bytes: u64,
    hash: Option<Hasher>,
}

impl Job for RawStream<'_> {
    type Worker = ();
    type Ready = RawReady;
    type Ordered = RawState;
    type Placed = Ticket;

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, (): &mut (), guest: u64, bytes: &[u8]) -> Result<RawReady> {
        let runs = runs_of(bytes, BLOCK, |block| !is_zero(block));
        let len = |(from, to): &(usize, usize)| to.minus(*from).map(|len| len as u64);
        let data_bytes = runs.iter().map(len).sum::<Result<u64>>()?;
        Ok(RawReady { guest, data_bytes, hash: self.digest.then(|| hash(bytes)) })
    }

    fn place(&self, state: &mut RawState, ready: &RawReady) -> Result<Ticket> {
        state.totals.add(ready.data_bytes, ready.hash.as_ref());
        Ok(Ticket { number: next(&mut state.tickets)?, low_water_mark: u64::MAX })
    }

    fn place_zeros(&self, state: &mut RawState, _guest: u64, len: u64) -> Result<()> {
        state.totals.add_zeros(len);
        Ok(())
    }

    fn write(&self, (): &mut (), bytes: &[u8], ready: RawReady, ticket: Ticket) -> Result<()> {
        self.stream.submit(&ticket, vec![(ready.guest, bytes)])
    }

    fn abandon(&self) {
        self.stream.abandon();
    }
}

struct Qcow2Stream<'a> {
    inner: Qcow2Job<'a>,
    stream: &'a Stream,
}

struct Sending {
    tickets: u64,
    image: clusters::State,
}

struct Placed {
    writes: Vec<sinks::Write>,
    tables: Vec<(u64, Vec<u8>)>,
    ticket: Ticket,
}

impl Job for Qcow2Stream<'_> {
    type Worker = clusters::Worker;
    type Ready = clusters::Ready;
    type Ordered = Sending;
    type Placed = Placed;

    fn worker(&self) -> Result<clusters::Worker> {
        self.inner.worker()
    }

    fn prepare(
        &self,
        worker: &mut clusters::Worker,
        guest: u64,
        bytes: &[u8],
    ) -> Result<clusters::Ready> {
        self.inner.prepare(worker, guest, bytes)
    }

    fn place(&self, state: &mut Sending, ready: &clusters::Ready) -> Result<Placed> {
        ready.count_in(&mut state.image.totals);
        let mut metadata = Metadata::Kept(Vec::new());
        let writes = self.inner.place_clusters(&mut state.image.placer, ready, &mut metadata)?;
        let number = next(&mut state.tickets)?;
        let ticket = Ticket { number, low_water_mark: state.image.placer.low_water_mark() };
        Ok(Placed { writes, tables: metadata.into_kept().collect(), ticket })
    }

    fn place_zeros(&self, state: &mut Sending, guest: u64, len: u64) -> Result<()> {
        self.inner.place_zeros(&mut state.image, guest, len)
    }

    fn write(
        &self,
        worker: &mut clusters::Worker,
        bytes: &[u8],
        _ready: clusters::Ready,
        placed: Placed,
    ) -> Result<()> {
        let tables = placed.tables.iter();
        let mut pieces: Vec<(u64, &[u8])> =
            tables.map(|(offset, bytes)| (*offset, bytes.as_slice())).collect();
        for write in &placed.writes {
            self.inner.pieces(worker, bytes, write, |offset, piece| {
                pieces.push((offset, piece));
                Ok(())
            })?;
        }
        self.stream.submit(&placed.ticket, pieces)
    }

    fn abandon(&self) {
        self.stream.abandon();
    }
}

fn next(tickets: &mut u64) -> Result<u64> {
    let number = *tickets;
    *tickets = number.plus(1)?;
    Ok(number)
}
