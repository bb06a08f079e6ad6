//! Workers that do things in parallel, and one thing in order.
//!
//! Work comes in numbered items, handed out in order. A worker that is ready waits only for items
//! before its own, all of which are held by other workers, so there is always one that can go on.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::{Error, Observer, Result};

/// More workers than this only wait for memory and for each other's turn.
const MOST_THREADS: usize = 256;
/// How many are started unasked: with 16 the buffers of all stay below 128 MiB.
const USUAL_THREADS: usize = 16;

/// Runs `work` in `threads` workers (0: one per core) and gives back the ordered state.
pub(super) fn run<O: Send>(
    threads: usize,
    ordered: O,
    total: u64,
    observer: &dyn Observer,
    work: impl Fn(&Turns<'_, O>) -> Result<()> + Sync,
) -> Result<O> {
    let turns = Turns {
        turn: Mutex::new(Turn {
            next: 0,
            done: 0,
            ended: false,
            ordered: Some(ordered),
            failure: None,
        }),
        advanced: Condvar::new(),
        total,
        observer,
    };
    let worker = || {
        let _watch = Watch(&turns);
        if let Err(error) = work(&turns) {
            turns.fail(error);
        }
    };
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(USUAL_THREADS),
        threads => threads.min(MOST_THREADS),
    };
    if threads == 1 {
        worker();
    } else {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("worker-{index}"))
            .build()
            .map_err(|error| Error::io("could not start threads", std::io::Error::other(error)))?;
        pool.broadcast(|_| worker());
    }
    let mut turn = turns.turn.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (turn.failure.take(), turn.ordered.take()) {
        (Some(failure), _) => Err(failure),
        (None, Some(ordered)) => Ok(ordered),
        (None, None) => Err(died()),
    }
}

/// Whose turn it is.
pub(super) struct Turns<'a, O> {
    turn: Mutex<Turn<O>>,
    advanced: Condvar,
    total: u64,
    observer: &'a dyn Observer,
}

struct Turn<O> {
    /// Number of the item whose turn it is.
    next: u64,
    /// Guest bytes before that item.
    done: u64,
    /// Nobody needs to go on.
    ended: bool,
    /// `None` only while somebody holds it, so a worker that dies leaves no half-made state.
    ordered: Option<O>,
    failure: Option<Error>,
}

impl<O> Turns<'_, O> {
    /// Waits for the item's turn and runs `step` in it; `None` if the work has ended meanwhile.
    pub(super) fn in_turn<T>(
        &self,
        number: u64,
        len: u64,
        step: impl FnOnce(&mut O) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut turn = lock(&self.turn);
        while turn.next != number && !turn.is_over() {
            turn = self.advanced.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        if turn.is_over() {
            return Ok(None);
        }
        let Some(mut ordered) = turn.ordered.take() else { return Ok(None) };
        let result = step(&mut ordered)?;
        turn.ordered = Some(ordered);
        turn.next = turn.next.saturating_add(1);
        turn.done = turn.done.saturating_add(len);
        self.observer.progress(turn.done, self.total);
        drop(turn);
        self.advanced.notify_all();
        Ok(Some(result))
    }

    /// Sends everybody home: the result is complete.
    pub(super) fn end(&self) {
        lock(&self.turn).ended = true;
        self.advanced.notify_all();
    }

    fn fail(&self, error: Error) {
        lock(&self.turn).failure.get_or_insert(error);
        self.advanced.notify_all();
    }
}

impl<O> Turn<O> {
    fn is_over(&self) -> bool {
        self.ended || self.failure.is_some()
    }
}

/// Lets the others go home if a worker panics, instead of waiting for its turn for ever.
struct Watch<'t, 'a, O>(&'t Turns<'a, O>);

impl<O> Drop for Watch<'_, '_, O> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(died());
        }
    }
}

fn died() -> Error {
    Error::io("a worker died", std::io::Error::other("panic"))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The state behind these locks is only ever replaced whole, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
