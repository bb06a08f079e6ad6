//! Requests of one connection that are in flight: taken, and not answered yet.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::budget::lock;

/// So many are in flight at once.
const IN_FLIGHT: usize = 64;

/// What of a connection is not over yet.
#[derive(Debug, Default)]
pub(super) struct Flight {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    in_flight: usize,
    finished: bool,
}

/// A request in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Flight>);

impl Flight {
    /// Waits until another request may be in flight.
    pub(super) fn slot(self: &Arc<Self>) -> Slot {
        let mut state = lock(&self.state);
        while state.in_flight >= IN_FLIGHT {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.in_flight = state.in_flight.saturating_add(1);
        Slot(Arc::clone(self))
    }

    /// One more in flight, whatever the bound.
    pub(super) fn slot_beyond(self: &Arc<Self>) -> Slot {
        let mut state = lock(&self.state);
        state.in_flight = state.in_flight.saturating_add(1);
        Slot(Arc::clone(self))
    }

    /// Waits until nothing is in flight.
    pub(super) fn wait_until_idle(&self) {
        let mut state = lock(&self.state);
        while state.in_flight > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that nothing of this connection will happen any more.
    pub(super) fn finish(&self) {
        lock(&self.state).finished = true;
        self.changed.notify_all();
    }

    /// Waits until nothing of this connection can happen any more, at most until `deadline`; whether that is so.
    pub(super) fn wait_until_finished(&self, deadline: Instant) -> bool {
        let mut state = lock(&self.state);
        while !state.finished {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let step = left.min(Duration::from_millis(100));
            let waited = self.changed.wait_timeout(state, step);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub(super) fn is_finished(&self) -> bool {
        lock(&self.state).finished
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.in_flight = state.in_flight.saturating_sub(1);
        self.0.changed.notify_all();
    }
}
