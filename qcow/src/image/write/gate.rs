//! Who is in flight: lets a freed cluster be used again only when every request that may still have looked
//! it up has ended.
//!
//! Every request holds a [`Pass`] from before its first look at the mapping until its last byte has moved.
//! Passes belong to an epoch. After the mapping has changed, [`flip`](Gate::flip) starts a new epoch; when
//! the old one is [`drained`](Gate::drained), no request is left that can have seen the old mapping.
//! Entering and leaving are two atomic additions each on a line that threads seldom share.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::sync::{AtomicU64, fence};

/// Counters; more threads than this share some.
const SLOTS: usize = if cfg!(all(test, loom)) { 1 } else { 64 };

/// Counts the requests in flight, by epoch.
#[derive(Debug)]
pub(super) struct Gate {
    epoch: AtomicU64,
    slots: Box<[Slot]>,
}

/// For even and odd epochs; on lines of its own, so that threads do not take them from each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot([AtomicU64; 2]);

/// A request in flight.
#[derive(Debug)]
pub(super) struct Pass<'a>(Option<&'a AtomicU64>);

impl Gate {
    pub(super) fn new() -> Self {
        Self { epoch: AtomicU64::new(0), slots: (0..SLOTS).map(|_| Slot::default()).collect() }
    }

    /// Begins a request.
    pub(super) fn enter(&self) -> Pass<'_> {
        let Some(slot) = self.slots.get(own_slot()) else { return Pass(None) };
        loop {
            let epoch = self.epoch.load(SeqCst);
            let counter = slot.of(epoch);
            counter.fetch_add(1, SeqCst);
            // Of the two threads that write and then look at what the other wrote, one at least sees it.
            fence(SeqCst);
            // If the epoch has not changed since, whoever changes it from now on sees the counter.
            if self.epoch.load(SeqCst) == epoch {
                return Pass(Some(counter));
            }
            counter.fetch_sub(1, SeqCst);
        }
    }

    /// Starts a new epoch and gives back the old one, whose end to wait for; `None` if requests of the one
    /// before it are still in flight. Only one thread may do so at a time.
    pub(super) fn flip(&self) -> Option<u64> {
        let old = self.epoch.load(SeqCst);
        // The new epoch uses the counters of the one before the old.
        if !self.drained(old.wrapping_add(1)) {
            return None;
        }
        self.epoch.store(old.wrapping_add(1), SeqCst);
        fence(SeqCst);
        Some(old)
    }

    /// Whether all requests of this epoch, the one before the current, have ended.
    pub(super) fn drained(&self, epoch: u64) -> bool {
        self.slots.iter().all(|slot| slot.of(epoch).load(SeqCst) == 0)
    }
}

impl Slot {
    fn of(&self, epoch: u64) -> &AtomicU64 {
        let [even, odd] = &self.0;
        if epoch & 1 == 0 { even } else { odd }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(counter) = self.0 {
            counter.fetch_sub(1, SeqCst);
        }
    }
}

/// Threads take slots in turn.
fn own_slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, SeqCst) % SLOTS;
    }
    OWN.with(|own| *own)
}

/// Every order of the steps of two requests and of one thread that takes a place away and gives it to
/// another, tried by loom: `make loom`.
#[cfg(all(test, loom))]
mod tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    #[test]
    fn a_place_is_given_away_only_when_no_request_that_saw_it_is_in_flight() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let place = AtomicU64::new(0);
            let bytes = [AtomicU64::new(10), AtomicU64::new(11)];
            let shared = Arc::new((Gate::new(), place, bytes));
            let requests: Vec<_> = (0..2)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        let (gate, place, bytes) = &*shared;
                        let pass = gate.enter();
                        let seen = place.load(SeqCst);
                        assert_eq!(bytes[seen as usize].load(SeqCst), 10 + seen);
                        drop(pass);
                    })
                })
                .collect();
            let (gate, place, bytes) = &*shared;
            place.store(1, SeqCst);
            let epoch = loop {
                match gate.flip() {
                    Some(epoch) => break epoch,
                    None => thread::yield_now(),
                }
            };
            while !gate.drained(epoch) {
                thread::yield_now();
            }
            bytes[0].store(99, SeqCst);
            requests.into_iter().for_each(|request| request.join().unwrap());
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_ends_when_all_that_entered_in_it_have_left() {
        let gate = Gate::new();
        let before = gate.enter();
        let epoch = gate.flip().unwrap();
        assert!(!gate.drained(epoch));
        let after = gate.enter();
        assert_eq!(gate.flip(), None, "a third epoch would share the first one's counters");
        drop(before);
        assert!(gate.drained(epoch), "who entered later does not count");
        let second = gate.flip().unwrap();
        assert!(!gate.drained(second));
        drop(after);
        assert!(gate.drained(second));
    }

    #[test]
    fn nothing_is_handed_out_again_while_a_request_may_use_it() {
        // One place that is taken away and given back; readers that saw it must never find it changed.
        let gate = Gate::new();
        let (place, bytes) = (AtomicUsize::new(0), [AtomicU64::new(0), AtomicU64::new(1)]);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        let pass = gate.enter();
                        let seen = place.load(SeqCst);
                        let first = bytes[seen].load(SeqCst);
                        std::thread::yield_now();
                        assert_eq!(bytes[seen].load(SeqCst), first, "changed while in use");
                        drop(pass);
                    }
                });
            }
            for round in 2..2000 {
                let old = place.load(SeqCst);
                place.store(1 - old, SeqCst);
                let epoch = loop {
                    match gate.flip() {
                        Some(epoch) => break epoch,
                        None => std::thread::yield_now(),
                    }
                };
                while !gate.drained(epoch) {
                    std::thread::yield_now();
                }
                bytes[old].store(round, SeqCst);
            }
            stop.store(true, SeqCst);
        });
    }
}
