//! Workers that process items in parallel, with one step per item in order.
//!
//! Work comes in numbered items, handed out in order. A worker that is ready waits only for items
//! before its own, all of which are held by other workers, so there is always one that can go on.

use std::sync::PoisonError;

use crate::sync::{Condvar, Mutex, lock};
use crate::threads;
use crate::{Error, Observer, Result};

/// Runs `work` in `threads` workers (0: one per core) and gives back the ordered state.
pub(in crate::ops) fn run<O: Send>(
    threads: usize,
    ordered: O,
    total: u64,
    observer: &dyn Observer,
    work: impl Fn(&Sequencer<'_, O>) -> Result<()> + Sync,
) -> Result<O> {
    let sequencer = Sequencer::new(ordered, total, observer);
    let worker = || sequencer.worker(&work);
    match threads::count(threads) {
        1 => worker(),
        count => {
            threads::pool(count)?.broadcast(|_| worker());
        }
    }
    sequencer.finish()
}

/// Lets numbered items run one step each in order, whichever worker has them.
pub(in crate::ops) struct Sequencer<'a, O> {
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
    /// The result is known: workers stop.
    ended: bool,
    /// `None` only while a worker uses it, so a worker that panics leaves no half-made state.
    ordered: Option<O>,
    failure: Option<Error>,
}

impl<'a, O> Sequencer<'a, O> {
    fn new(ordered: O, total: u64, observer: &'a dyn Observer) -> Self {
        let turn = Turn { next: 0, done: 0, ended: false, ordered: Some(ordered), failure: None };
        Self { turn: Mutex::new(turn), advanced: Condvar::new(), total, observer }
    }

    /// What one thread does.
    fn worker(&self, work: impl Fn(&Self) -> Result<()>) {
        let _watch = Watch(self);
        if let Err(error) = work(self) {
            self.fail(error);
        }
    }

    /// What came of it, when all threads have ended.
    fn finish(self) -> Result<O> {
        let mut turn = self.turn.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (turn.failure.take(), turn.ordered.take()) {
            (Some(failure), _) => Err(failure),
            (None, Some(ordered)) => Ok(ordered),
            (None, None) => Err(died()),
        }
    }

    /// Waits for the item's turn and runs `step` in it; `None` if the work has ended meanwhile.
    pub(in crate::ops) fn in_turn<T>(
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

    /// Stops all workers early; the result is already known.
    pub(in crate::ops) fn end(&self) {
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

/// Stops the other workers if one panics; they would wait for its item for ever.
struct Watch<'t, 'a, O>(&'t Sequencer<'a, O>);

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

/// What loom cannot try: its locks may not be held by a thread that panics.
#[cfg(all(test, not(loom)))]
mod panics {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::Silent;

    #[test]
    fn a_panic_in_a_turn_leaves_nobody_waiting() {
        let (sequencer, next) = (Sequencer::new((), 0, &Silent), AtomicU64::new(0));
        let work = |sequencer: &Sequencer<'_, ()>| {
            let number = next.fetch_add(1, Relaxed);
            let step = |(): &mut ()| {
                assert!(number != 1, "on purpose");
                Ok(())
            };
            sequencer.in_turn(number, 1, step).map(drop)
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| catch_unwind(AssertUnwindSafe(|| sequencer.worker(work))));
            }
        });
        assert!(sequencer.finish().unwrap_err().to_string().contains("died"));
    }
}

/// Every way in which threads can take turns, tried by loom: `make loom`.
#[cfg(all(test, loom))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::{ErrorKind, Silent};

    type Order = Vec<u64>;

    /// Runs `work` in `threads` threads, in all orders of their steps. Loom fails where anybody waits for ever.
    fn all_orders(
        threads: usize,
        work: impl Fn(&Sequencer<'static, Order>, &AtomicU64) -> Result<()>
        + Clone
        + Send
        + Sync
        + 'static,
        judge: impl Fn(Result<Order>) + Send + Sync + 'static,
    ) {
        // More switches than this away from a thread that could go on take too long to try.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let shared = Arc::new((Sequencer::new(Order::new(), 0, &Silent), AtomicU64::new(0)));
            let run =
                |shared: &(Sequencer<'static, Order>, AtomicU64),
                 work: &dyn Fn(&Sequencer<'static, Order>, &AtomicU64) -> Result<()>| {
                    // A panic ends its thread and nothing else, as it does under rayon until all have ended.
                    let _ = catch_unwind(AssertUnwindSafe(|| {
                        shared.0.worker(|sequencer| work(sequencer, &shared.1));
                    }));
                };
            let others: Vec<_> = (1..threads)
                .map(|_| {
                    let (shared, work) = (Arc::clone(&shared), work.clone());
                    loom::thread::spawn(move || run(&shared, &work))
                })
                .collect();
            run(&shared, &work);
            others.into_iter().for_each(|thread| thread.join().unwrap());
            let shared = Arc::try_unwrap(shared).ok().unwrap();
            judge(shared.0.finish());
        });
    }

    /// Takes numbers up to `last` as the pipeline does, and notes each in its turn; `odd` may make an end of it.
    fn numbered(
        last: u64,
        odd: impl Fn(u64, &Sequencer<'static, Order>) -> Result<()> + Clone,
    ) -> impl Fn(&Sequencer<'static, Order>, &AtomicU64) -> Result<()> + Clone {
        move |sequencer, next| {
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number > last {
                    return Ok(());
                }
                odd(number, sequencer)?;
                let note = |order: &mut Order| {
                    order.push(number);
                    Ok(())
                };
                if sequencer.in_turn(number, 1, note)?.is_none() {
                    return Ok(());
                }
            }
        }
    }

    #[test]
    fn turns_are_taken_in_order_by_however_many() {
        for (threads, last) in [(2, 3), (3, 2)] {
            all_orders(threads, numbered(last, |_, _| Ok(())), move |order| {
                assert_eq!(order.unwrap(), (0..=last).collect::<Vec<_>>());
            });
        }
    }

    #[test]
    fn an_error_of_one_sends_all_home() {
        let fail = |number, _: &Sequencer<'_, Order>| {
            if number == 1 { Err(Error::limit("enough")) } else { Ok(()) }
        };
        for threads in [2, 3] {
            all_orders(threads, numbered(3, fail), |order| {
                assert_eq!(order.unwrap_err().kind(), ErrorKind::Limit);
            });
        }
    }

    #[test]
    fn an_error_in_a_turn_sends_all_home() {
        let work = |sequencer: &Sequencer<'static, Order>, next: &AtomicU64| {
            let number = next.fetch_add(1, Relaxed);
            let fail = |_: &mut Order| Err::<(), _>(Error::limit("enough"));
            if number == 0 {
                sequencer.in_turn(0, 1, fail)?;
            }
            sequencer.in_turn(number, 1, |_| Ok(()))?;
            Ok(())
        };
        all_orders(3, work, |order| assert_eq!(order.unwrap_err().kind(), ErrorKind::Limit));
    }

    #[test]
    fn a_panic_leaves_nobody_waiting() {
        std::panic::set_hook(Box::new(|_| {}));
        let die = |number, _: &Sequencer<'_, Order>| {
            assert!(number != 1);
            Ok(())
        };
        all_orders(3, numbered(3, die), |order| {
            assert!(order.unwrap_err().to_string().contains("died"));
        });
        let _ = std::panic::take_hook();
    }

    #[test]
    fn the_first_error_is_the_one_that_is_told() {
        let work = |sequencer: &Sequencer<'static, Order>, next: &AtomicU64| {
            let number = next.fetch_add(1, Relaxed);
            if number == 0 {
                return Err(Error::limit("first"));
            }
            // Whoever is sent home by it may fail as well.
            sequencer.in_turn(number, 1, |_| Ok(()))?.ok_or_else(|| Error::usage("later"))
        };
        all_orders(3, work, |order| assert_eq!(order.unwrap_err().kind(), ErrorKind::Limit));
    }

    #[test]
    fn an_end_sends_home_all_who_wait() {
        let work = |sequencer: &Sequencer<'static, Order>, next: &AtomicU64| {
            let number = next.fetch_add(1, Relaxed);
            if number == 0 {
                sequencer.end();
                return Ok(());
            }
            let step = |order: &mut Order| {
                order.push(number);
                Ok(())
            };
            sequencer.in_turn(number, 1, step).map(drop)
        };
        all_orders(3, work, |order| assert_eq!(order.unwrap(), Order::new()));
    }

    #[test]
    fn a_result_that_is_complete_early_ends_all() {
        let end = |number, sequencer: &Sequencer<'_, Order>| {
            if number == 2 {
                sequencer.end();
            }
            Ok(())
        };
        all_orders(3, numbered(3, end), |order| {
            let order = order.unwrap();
            assert!((0..order.len() as u64).eq(order));
        });
    }
}
