//! Bounds for memory: payloads of all connections together, and requests of each.

use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Locks what is only ever replaced whole, so that a panic elsewhere spoils nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A payload up to this long is always allowed once per connection, however much others hold: a client that does
/// not read its replies does not stop those of others.
pub(crate) const OWN: usize = 1 << 20;
/// A payload from this length on starts at a page boundary: see `qcow`'s own buffers for what that is worth.
const LONG: usize = 32 << 10;
const PAGE: usize = 4096;
/// How long a longer one waits for others before it is refused.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often who waits looks whether its connection is still there.
const LOOK: Duration = Duration::from_millis(100);

/// Bytes of payloads that all connections together may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    free: Mutex<usize>,
    freed: Condvar,
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// A connection's own part of the budget.
#[derive(Debug, Default)]
pub(crate) struct Own(AtomicBool);

/// Bytes that are held until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    /// Of the connection's own part.
    own: Option<Arc<Own>>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { free: Mutex::new(bytes), freed: Condvar::new(), buffers: Mutex::default() }
    }

    /// Waits for `bytes`; `None` if `lives` says that nobody wants them any more, or for a long payload after some time.
    pub(crate) fn take(
        self: &Arc<Self>,
        own: &Arc<Own>,
        bytes: usize,
        lives: impl Fn() -> bool,
    ) -> Option<Permit> {
        let start = Instant::now();
        let mut free = lock(&self.free);
        loop {
            if bytes <= OWN && !own.0.swap(true, SeqCst) {
                return Some(Permit {
                    budget: Arc::clone(self),
                    own: Some(Arc::clone(own)),
                    bytes,
                });
            }
            if let Some(left) = free.checked_sub(bytes) {
                *free = left;
                return Some(Permit { budget: Arc::clone(self), own: None, bytes });
            }
            if !lives() || (bytes > OWN && start.elapsed() > PATIENCE) {
                return None;
            }
            free = self.freed.wait_timeout(free, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A buffer of `len` bytes; what is in it does not matter. It is kept for later when it is dropped: fresh memory costs
    /// more than reading into it.
    pub(crate) fn buffer(self: &Arc<Self>, len: usize) -> Buffer {
        let mut bytes = lock(&self.buffers).pop().unwrap_or_default();
        let room = if len < LONG { 0 } else { PAGE };
        bytes.resize(len.saturating_add(room), 0);
        let skipped = bytes.as_ptr().align_offset(PAGE).min(room);
        let range = skipped..skipped.saturating_add(len);
        Buffer { bytes, range, budget: Some(Arc::clone(self)) }
    }
}

/// Bytes of a payload.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// Where the payload is in it.
    range: Range<usize>,
    budget: Option<Arc<Budget>>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(self.range.clone()).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.range.clone()).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        const KEPT: usize = 32;
        let fits = (1..=OWN.saturating_add(PAGE)).contains(&self.bytes.capacity());
        if let Some(budget) = self.budget.as_ref().filter(|_| fits) {
            let mut buffers = lock(&budget.buffers);
            if buffers.len() < KEPT {
                buffers.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

impl Permit {
    /// Gives back all but `bytes`.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        if self.own.is_none() && bytes < self.bytes {
            let mut free = lock(&self.budget.free);
            *free = free.saturating_add(self.bytes.saturating_sub(bytes));
            self.bytes = bytes;
            self.budget.freed.notify_all();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut free = lock(&self.budget.free);
        match &self.own {
            Some(own) => own.0.store(false, SeqCst),
            None => *free = free.saturating_add(self.bytes),
        }
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_has_a_part_of_its_own_when_all_else_is_taken() {
        let budget = Arc::new(Budget::new(OWN));
        let (greedy, modest) = (Arc::new(Own::default()), Arc::new(Own::default()));
        let take = |own: &Arc<Own>| budget.take(own, OWN, || false);
        let held = [take(&greedy).unwrap(), take(&greedy).unwrap()];
        assert!(take(&greedy).is_none());
        drop(take(&modest).unwrap());
        let own = take(&modest).unwrap();
        assert!(take(&modest).is_none());
        drop(own);
        drop(held);
        assert_eq!(*lock(&budget.free), OWN);
    }

    #[test]
    fn long_payloads_start_at_a_page_boundary_whatever_was_kept() {
        let budget = Arc::new(Budget::new(OWN));
        for len in [1, 100, LONG, OWN, LONG - 1, OWN, 5 << 20, 0] {
            let mut buffer = budget.buffer(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.iter_mut().len(), len);
            assert!(len < LONG || buffer.as_ptr().align_offset(PAGE) == 0, "{len}");
        }
    }

    #[test]
    fn what_is_not_needed_is_given_back() {
        let budget = Arc::new(Budget::new(100));
        let own = Arc::new(Own(true.into()));
        let mut permit = budget.take(&own, 100, || false).unwrap();
        permit.shrink(30);
        assert_eq!(*lock(&budget.free), 70);
        drop(permit);
        assert_eq!(*lock(&budget.free), 100);
    }
}
