//! What the threads of one connection share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::out::Out;
use crate::budget::{Own, lock};
use crate::transport::Transport;

/// Requests of one connection that are in flight at once: taken, and not answered yet.
const IN_FLIGHT: usize = 64;
/// Requests that take longer than this, on average, are given to other threads.
const QUICK: u64 = 60_000;
/// One request counts as this long at most: a single one that waited for a processor says nothing.
const LONGEST: u64 = 200_000;
/// A longer request may take as much longer.
const UNIT: u64 = 64 << 10;

/// The shared part of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    transport: Arc<dyn Transport>,
    /// What took its place when encryption began.
    encrypted: OnceLock<Arc<dyn Transport>>,
    out: Out,
    own: Arc<Own>,
    state: Mutex<State>,
    changed: Condvar,
    /// Nobody wants replies any more: what has not begun is not to begin.
    gone: AtomicBool,
    /// No more requests are to be taken.
    stopping: AtomicBool,
    /// Nanoseconds that a short request takes, on average.
    pace: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    in_flight: usize,
    finished: bool,
}

/// A request in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Link>);

impl Link {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Self {
        Self {
            transport,
            encrypted: OnceLock::new(),
            out: Out::default(),
            own: Arc::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            gone: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            pace: AtomicU64::new(0),
        }
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        &**self.encrypted.get().unwrap_or(&self.transport)
    }

    /// From now on everything goes through what `encrypt` makes of the stream.
    #[cfg(feature = "tls")]
    pub(crate) fn encrypt<T: Transport + 'static>(
        &self,
        encrypt: impl FnOnce(Arc<dyn Transport>) -> std::io::Result<T>,
    ) -> std::io::Result<()> {
        let encrypted = encrypt(Arc::clone(&self.transport))?;
        let _ = self.encrypted.set(Arc::new(encrypted));
        Ok(())
    }

    pub(crate) fn out(&self) -> &Out {
        &self.out
    }

    pub(crate) fn own(&self) -> &Arc<Own> {
        &self.own
    }

    /// Waits until another request may be in flight.
    pub(crate) fn slot(self: &Arc<Self>) -> Slot {
        let mut state = lock(&self.state);
        while state.in_flight >= IN_FLIGHT {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.in_flight = state.in_flight.saturating_add(1);
        Slot(Arc::clone(self))
    }

    /// One more in flight, whatever the bound: the end of a reply whose pieces had their places.
    pub(crate) fn slot_beyond(self: &Arc<Self>) -> Slot {
        let mut state = lock(&self.state);
        state.in_flight = state.in_flight.saturating_add(1);
        Slot(Arc::clone(self))
    }

    /// Waits until nothing is in flight.
    pub(crate) fn wait_until_idle(&self) {
        let mut state = lock(&self.state);
        while state.in_flight > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that nothing of this connection will happen any more.
    pub(crate) fn finish(&self) {
        lock(&self.state).finished = true;
        self.changed.notify_all();
    }

    /// Waits until nothing of this connection can happen any more, at most until `deadline`; whether that is so.
    pub(crate) fn wait_until_finished(&self, deadline: Instant) -> bool {
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

    pub(crate) fn is_finished(&self) -> bool {
        lock(&self.state).finished
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(SeqCst)
    }

    /// The client is gone.
    pub(crate) fn lose(&self) {
        self.gone.store(true, SeqCst);
        self.out.fail();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Takes no more requests.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.transport.stop_receiving();
    }

    /// Ends the stream now.
    pub(crate) fn cut(&self) {
        self.transport.cut();
    }

    /// Whether short requests are answered by the thread that takes them.
    pub(crate) fn is_quick(&self) -> bool {
        self.pace.load(SeqCst) < QUICK
    }

    /// A request of `len` bytes took so long. A lost update does no harm.
    pub(crate) fn took(&self, time: Duration, len: u64) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let time = time.checked_div(len.div_ceil(UNIT).max(1)).unwrap_or(time).min(LONGEST);
        let pace = self.pace.load(SeqCst);
        let pace = pace.saturating_sub(pace >> 3).saturating_add(time >> 3);
        self.pace.store(pace, SeqCst);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.in_flight = state.in_flight.saturating_sub(1);
        self.0.changed.notify_all();
    }
}
