//! Whether two images hold the same, and where they differ.

mod status;

use std::ops::Range;

use serde::Serialize;

use super::work::pieces::{Pieces, Work};
use super::work::sequencer::{self, Sequencer};
use crate::chain::Chain;
use crate::codec::is_zero;
use crate::extent::{Extent, ExtentKind, Reader, Truncation};
use crate::format::SECTOR;
use crate::io::Buffer;
use crate::setters::setters;
use crate::sync::{Mutex, lock};
use crate::{CancelToken, Error, Observer, Result};

/// So much is read of each image before it is compared, while it is still in the cache.
const BITE: u64 = 256 << 10;
/// Of compressed clusters so much is read of each image: they lie near each other in their file, and one call
/// reads many.
const COMPRESSED_BITE: u64 = 1 << 20;

/// How to compare.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CompareOptions {
    /// Sizes must be equal, and what is allocated, zero and compressed must be so on both sides.
    pub strict: bool,
    /// Look for every difference, not only the first.
    pub all: bool,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
}

setters!(CompareOptions {
    strict: bool,
    all: bool,
    threads: usize,
} into {});

/// What was found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CompareOutcome {
    /// Whether nothing differs that was asked about.
    pub identical: bool,
    /// The virtual sizes in bytes.
    pub virtual_sizes: [u64; 2],
    /// The first difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_difference: Option<Difference>,
    /// Bytes that were skipped because both images take them from one place.
    pub shared_bytes: u64,
    /// Bytes in differing sectors; up to the end of the disk only if `all` was asked for.
    pub different_bytes: u64,
    /// Files of both chains that end before what their images refer to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<Truncation>,
}

/// One difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Difference {
    /// The first byte of the guest's disk that differs.
    pub offset: u64,
    /// In what.
    pub kind: DifferenceKind,
}

/// In what images can differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DifferenceKind {
    /// What the guest reads.
    Content,
    /// Whether it is allocated, zero, compressed (strict only).
    Status,
    /// The virtual sizes (strict only); the offset is the smaller one.
    Size,
}

/// What kept a comparison from its verdict. The steps have exit codes of their own in `qemu-img`.
#[derive(Debug)]
#[non_exhaustive]
pub enum CompareError {
    /// The tables that say where things lie.
    Allocation(Error),
    /// The guest's data; or the comparison was cancelled.
    Reading(Error),
}

impl CompareError {
    /// What went wrong.
    pub fn into_error(self) -> Error {
        match self {
            Self::Allocation(error) | Self::Reading(error) => error,
        }
    }
}

impl From<CompareError> for Error {
    fn from(error: CompareError) -> Self {
        error.into_error()
    }
}

/// Compares what a guest would read from `one` and from `other`. A longer image may be identical
/// to a shorter one: what is beyond must read as zeros (trap 135).
///
/// Ranges that both take from the same place of the same file are not read. With
/// [`all`](CompareOptions::all), `found` gets each differing range, start and length in bytes, in
/// order; ranges are made of whole sectors. The result does not depend on the number of threads.
///
/// ```no_run
/// use std::path::Path;
/// use qcow::chain::{Chain, OpenOptions};
/// use qcow::ops::compare::{CompareOptions, compare};
/// use qcow::{CancelToken, Silent};
///
/// let one = Chain::open(Path::new("vm.qcow2"), &OpenOptions::default())?;
/// let other = Chain::open(Path::new("copy.qcow2"), &OpenOptions::default())?;
/// let options = CompareOptions::default().all(true);
/// let mut found = |start, length| println!("{length} bytes at {start}");
/// let outcome = compare(&one, &other, &options, &mut found, &Silent, &CancelToken::new())?;
/// println!("identical: {}", outcome.identical);
/// # Ok::<(), qcow::Error>(())
/// ```
///
/// # Errors
/// [`CompareError`], at the first place where one image cannot be understood or read, if nothing
/// before it differs or all is wanted; or if a file changed meanwhile.
pub fn compare(
    one: &Chain,
    other: &Chain,
    options: &CompareOptions,
    found: &mut (dyn FnMut(u64, u64) + Send),
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<CompareOutcome, CompareError> {
    let sizes = [one.virtual_size(), other.virtual_size()];
    let [shorter, longer] =
        [sizes.into_iter().min(), sizes.into_iter().max()].map(Option::unwrap_or_default);
    let mut limit = longer;
    let mut first = None;
    if options.strict && shorter != longer {
        first = Some(Difference { offset: shorter, kind: DifferenceKind::Size });
        limit = shorter;
    } else if options.strict
        && let Some(offset) =
            status::first_difference(one, other).map_err(CompareError::Allocation)?
    {
        first = Some(Difference { offset, kind: DifferenceKind::Status });
        // Contents that differ further on come second.
        limit = if options.all { longer } else { offset };
    }
    let state = State { all: options.all, found, first: None, open: None, shared: 0, different: 0 };
    // Sizes are what is reported, whatever else differs.
    let state = if first.is_some_and(|first| first.kind == DifferenceKind::Size) && !options.all {
        state
    } else {
        contents([one, other], limit, state, options.threads, observer, cancel)?
    };
    let mut truncated: Vec<Truncation> = Vec::new();
    for chain in [one, other] {
        for found in chain.truncations().map_err(CompareError::Allocation)? {
            if !truncated.contains(&found) {
                truncated.push(found);
            }
        }
        chain.check_unchanged().map_err(CompareError::Reading)?;
    }
    let content = state.first.map(|offset| Difference { offset, kind: DifferenceKind::Content });
    let first = [first, content].into_iter().flatten().min_by_key(|difference| difference.offset);
    Ok(CompareOutcome {
        identical: first.is_none(),
        virtual_sizes: sizes,
        first_difference: first,
        shared_bytes: state.shared,
        different_bytes: state.different,
        truncated,
    })
}

/// What is known so far, put together in disk order.
struct State<'f> {
    all: bool,
    found: &'f mut (dyn FnMut(u64, u64) + Send),
    first: Option<u64>,
    /// A differing range that may still grow: start and end.
    open: Option<(u64, u64)>,
    shared: u64,
    different: u64,
}

impl State<'_> {
    /// Whether nothing more needs to be known.
    fn is_answered(&self) -> bool {
        self.first.is_some() && !self.all
    }

    fn add(&mut self, differences: &Differences) {
        self.shared = self.shared.saturating_add(differences.shared);
        self.first = self.first.or(differences.first);
        for &(start, end) in &differences.ranges {
            self.different = self.different.saturating_add(end.saturating_sub(start));
            match &mut self.open {
                Some(open) if open.1 == start => open.1 = end,
                _ => {
                    self.close();
                    self.open = Some((start, end));
                }
            }
        }
    }

    fn close(&mut self) {
        if let Some((start, end)) = self.open.take()
            && self.all
        {
            (self.found)(start, end.saturating_sub(start));
        }
    }
}

/// Differences of one work item.
#[derive(Default)]
struct Differences {
    first: Option<u64>,
    ranges: Vec<(u64, u64)>,
    shared: u64,
}

/// Compares the contents of the first `limit` bytes.
fn contents<'f>(
    chains: [&Chain; 2],
    limit: u64,
    state: State<'f>,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<State<'f>, CompareError> {
    let pieces = Mutex::new(Pieces::new(chains, limit));
    let done = sequencer::run(threads, (state, Ok(())), limit, observer, |sequencer| {
        work_through(chains, &pieces, sequencer, cancel)
    });
    let (mut state, result) = done.map_err(CompareError::Reading)?;
    result?;
    state.close();
    Ok(state)
}

type Ordered<'f> = (State<'f>, Result<(), CompareError>);

fn work_through(
    chains: [&Chain; 2],
    pieces: &Mutex<Pieces<'_>>,
    sequencer: &Sequencer<'_, Ordered<'_>>,
    cancel: &CancelToken,
) -> Result<()> {
    let mut sides = [Side::new(chains[0])?, Side::new(chains[1])?];
    loop {
        cancel.check()?;
        let Some((number, work)) = lock(pieces).next_work() else { return Ok(()) };
        let (len, (found, result)) = match work {
            Err(error) => (0, (Differences::default(), Err(CompareError::Allocation(error)))),
            Ok(work) => (work.len, differences(&mut sides, &work)),
        };
        let over = sequencer.in_turn(number, len, |(state, verdict)| {
            // Another worker may get here before it hears that all is over.
            if verdict.is_ok() && !state.is_answered() {
                state.add(&found);
                // What differs before an error is the answer.
                if !state.is_answered() {
                    *verdict = result;
                }
            }
            Ok(verdict.is_err() || state.is_answered())
        })?;
        if over != Some(false) {
            sequencer.end();
            return Ok(());
        }
    }
}

/// How a worker reads one image.
struct Side {
    reader: Reader,
    buffer: Buffer,
}

impl Side {
    fn new(chain: &Chain) -> Result<Self> {
        let buffer = Buffer::new(in_memory(COMPRESSED_BITE))?;
        Ok(Self { reader: chain.reader(), buffer })
    }

    /// Reads `extents`, which lie in guest order within a bite, and returns the bytes from the start of the
    /// first to the end of the last. Where they are zeros, or between them, the bytes are any.
    fn read(&mut self, extents: &[Extent]) -> Result<&[u8]> {
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else { return Ok(&[]) };
        let bytes = self.buffer.first(in_memory(last.end().saturating_sub(first.guest.0)))?;
        let stored: Vec<Extent> =
            extents.iter().filter(|extent| !extent.is_zero()).copied().collect();
        self.reader.read_extents(first.guest.0, &stored, bytes)?;
        Ok(bytes)
    }
}

/// The same range in both images.
type Pair = (Extent, Extent);

/// Cuts pairs into what is read at once: a part of one pair, or many compressed clusters.
fn bites(pairs: &[Pair]) -> Vec<Vec<Pair>> {
    let compressed = |(a, b): &Pair| {
        [a, b].into_iter().any(|extent| matches!(extent.kind, ExtentKind::Compressed { .. }))
    };
    let mut bites: Vec<Vec<Pair>> = Vec::new();
    for pair in pairs {
        let longest = if compressed(pair) { COMPRESSED_BITE } else { BITE };
        let mut at = pair.0.guest.0;
        while at < pair.0.end() {
            let end = at.saturating_add(longest).min(pair.0.end());
            let part = (pair.0.slice(at, end), pair.1.slice(at, end));
            let joins = |first: &Pair| {
                compressed(first) && end.saturating_sub(first.0.guest.0) <= COMPRESSED_BITE
            };
            match bites.last_mut() {
                Some(bite) if compressed(pair) && bite.first().is_some_and(joins) => {
                    bite.push(part)
                }
                _ => bites.push(vec![part]),
            }
            at = end;
        }
    }
    bites
}

/// What differs, as far as it can be read.
fn differences(sides: &mut [Side; 2], work: &Work) -> (Differences, Result<(), CompareError>) {
    let mut found = Differences { shared: work.shared, ..Differences::default() };
    let result = bites(&work.pairs).iter().try_for_each(|bite| match found.add_bite(sides, bite) {
        // What differs before the cluster that cannot be read comes first.
        Err(_) if bite.len() > 1 => bite.chunks(1).try_for_each(|pair| found.add_bite(sides, pair)),
        result => result,
    });
    (found, result.map_err(CompareError::Reading))
}

impl Differences {
    /// Adds what differs in `bite`, or nothing if not all of it can be read.
    fn add_bite(&mut self, sides: &mut [Side; 2], bite: &[Pair]) -> Result<()> {
        let Some((first, _)) = bite.first() else { return Ok(()) };
        let (a, b): (Vec<Extent>, Vec<Extent>) = bite.iter().copied().unzip();
        let [one, other] = sides;
        let (one, other) = (one.read(&a)?, other.read(&b)?);
        for (a, b) in bite {
            let from = in_memory(a.guest.0.saturating_sub(first.guest.0));
            let range = from..from.saturating_add(in_memory(a.len));
            let part = |extent: &Extent, bytes| match extent.is_zero() {
                true => Ok(None),
                false => stored(bytes, range.clone()).map(Some),
            };
            self.add_range(a.guest.0, part(a, one)?, part(b, other)?);
        }
        Ok(())
    }

    /// Adds what differs from `start` on, where `None` is zeros.
    fn add_range(&mut self, start: u64, one: Option<&[u8]>, other: Option<&[u8]>) {
        let sector = in_memory(SECTOR);
        match (one, other) {
            (Some(one), Some(other)) if one != other => {
                let pairs = one.chunks(sector).zip(other.chunks(sector));
                self.add(start, pairs.map(|(one, other)| mismatch(one, other)));
            }
            (Some(bytes), None) | (None, Some(bytes)) if !is_zero(bytes) => {
                let nonzero = |sector: &[u8]| sector.iter().position(|&byte| byte != 0);
                self.add(start, bytes.chunks(sector).map(nonzero));
            }
            _ => {}
        }
    }

    /// Adds sectors from `start` on, each with the position of its first differing byte, if any.
    fn add(&mut self, start: u64, sectors: impl Iterator<Item = Option<usize>>) {
        let mut at = start;
        for sector in sectors {
            let end = at.saturating_add(SECTOR);
            if let Some(position) = sector {
                self.first.get_or_insert(at.saturating_add(position as u64));
                match self.ranges.last_mut() {
                    Some(last) if last.1 == at => last.1 = end,
                    _ => self.ranges.push((at, end)),
                }
            }
            at = end;
        }
    }
}

/// A part of what was read.
fn stored(bytes: &[u8], range: Range<usize>) -> Result<&[u8]> {
    bytes.get(range).ok_or_else(|| Error::internal("an extent reaches out of what was read"))
}

fn mismatch(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b { None } else { a.iter().zip(b).position(|(a, b)| a != b) }
}

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
