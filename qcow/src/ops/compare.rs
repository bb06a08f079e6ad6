//! Whether two images hold the same, and where they differ.

mod differences;
mod status;

use serde::Serialize;

use self::differences::{Differences, Side, differences};
use super::work::pieces::Pieces;
use super::work::sequencer::{self, Sequencer};
use crate::chain::Chain;
use crate::extent::Truncation;
use crate::setters::setters;
use crate::sync::{Mutex, lock};
use crate::{CancelToken, Error, Observer, Result};

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
