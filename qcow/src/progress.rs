//! How long operations tell how far they are, and how they are asked to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// Watches a long operation. Called from worker threads, so it must be quick and `Sync`.
pub trait Observer: Sync {
    /// `done` of `total` guest bytes are finished; `done` never falls.
    fn progress(&self, done: u64, total: u64);
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn progress(&self, _done: u64, _total: u64) {}
}

/// Asks an operation to stop; clones share one flag. Safe to set from a signal handler.
///
/// ```
/// let cancel = qcow::CancelToken::new();
/// let for_the_handler = cancel.clone();
/// for_the_handler.cancel();
/// assert!(cancel.check().is_err());
/// ```
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the operation to stop at its next safe point.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// The flag itself, for a signal handler to set.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An [`Interrupted`](crate::ErrorKind::Interrupted) error if the token is set.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::interrupted()) } else { Ok(()) }
    }
}
