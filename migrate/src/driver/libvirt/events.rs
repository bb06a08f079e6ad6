//! libvirt's events, so that the end of a job or a change of state is noticed at once, and the answers of a
//! connection's far end to "are you still there?".

use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::raw::{self, Outcome};
use super::told;
use crate::{Error, Result};

/// Rings when anything happened to any domain of a connection, or to the connection. What it was, the one
/// who waits finds out by asking: an event may be lost with its connection, a state cannot.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    raised: Mutex<u64>,
    bell: Condvar,
}

impl Signal {
    /// How often it has rung.
    pub(crate) fn count(&self) -> u64 {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn raise(&self) {
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        *raised = raised.wrapping_add(1);
        self.bell.notify_all();
    }

    /// Returns when it has rung more often than `seen` times, or after `at_most`.
    pub(crate) fn wait(&self, seen: u64, at_most: Duration) {
        let raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.bell.wait_timeout_while(raised, at_most, |raised| *raised == seen));
    }
}

/// Starts libvirt's event loop in a thread of its own, once in a process. Must come before the first
/// connection.
pub(crate) fn start() -> Result<()> {
    static READY: OnceLock<Outcome<()>> = OnceLock::new();
    static TURNING: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    READY.get_or_init(raw::initialize).as_ref().map_err(told)?;
    let turning = TURNING.get_or_init(|| {
        let turn = || {
            // A failure here is one of poll(2); trying again at once could spin.
            loop {
                if raw::run_events().is_err() {
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        };
        let thread = std::thread::Builder::new().name("libvirt events".into()).spawn(turn);
        let failed = |error| format!("cannot start a thread for libvirt's events: {error}");
        thread.map(drop).map_err(failed)
    });
    turning.clone().map_err(Error::environment)
}
