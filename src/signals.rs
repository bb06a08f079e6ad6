//! SIGINT, SIGTERM and SIGHUP ask a long operation to stop; a second signal does not ask.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use qcow::{CancelToken, Error, ErrorKind, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::failure::Failure;

/// Makes a write past the limit for files (`ulimit -f`) an error like any other: without this a signal would end
/// the process, and what was half made would stay.
pub(crate) fn survive_file_limit() {
    // If that cannot be, it is as it was.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// A thread that waits for signals, and what it heard. Started by long operations only, so that
/// short commands start without it.
#[derive(Debug)]
pub(crate) struct Watch {
    cancel: CancelToken,
    caught: Arc<AtomicI32>,
}

impl Watch {
    /// Starts to listen.
    ///
    /// # Errors
    /// `Io` if the handlers or the thread cannot be set up.
    pub(crate) fn start() -> Result<Self> {
        Self::start_telling(|| {})
    }

    /// As [`start`](Self::start); the first signal is told, too, for those that wait and cannot look at a token.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) fn start_telling(tell: impl Fn() + Send + 'static) -> Result<Self> {
        let failed = |error| Error::io("could not watch for signals", error);
        let watch = Self { cancel: CancelToken::new(), caught: Arc::default() };
        let (cancel, caught) = (watch.cancel.clone(), Arc::clone(&watch.caught));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hangup = (!ignores(&status, SIGHUP)).then_some(SIGHUP);
        let mut signals =
            Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup)).map_err(failed)?;
        let listen = move || {
            for signal in signals.forever() {
                if caught.swap(signal, Ordering::SeqCst) != 0 {
                    low_level::exit(signal.saturating_add(128));
                }
                cancel.cancel();
                tell();
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(listen).map_err(failed)?;
        Ok(watch)
    }

    /// The token that the first signal sets.
    pub(crate) fn token(&self) -> &CancelToken {
        &self.cancel
    }

    /// Tells an operation that stopped because of a signal from one that failed. One that was
    /// done before it saw the signal stays done.
    pub(crate) fn settle<T>(&self, result: Result<T>) -> Result<T, Failure> {
        result.map_err(|error| match self.caught.load(Ordering::SeqCst) {
            signal if signal != 0 && error.kind() == ErrorKind::Interrupted => {
                Failure::Stopped { signal, error }
            }
            _ => Failure::Error(error),
        })
    }

    /// As [`settle`](Self::settle), for migrations.
    pub(crate) fn settle_migration<T>(&self, result: migrate::Result<T>) -> Result<T, Failure> {
        result.map_err(|error| match self.caught.load(Ordering::SeqCst) {
            signal if signal != 0 && error.kind() == migrate::ErrorKind::Interrupted => {
                // With what could not be put back, if there is any.
                let error = Error::new(ErrorKind::Interrupted, error.to_string());
                Failure::Stopped { signal, error }
            }
            _ => Failure::Migration(error),
        })
    }
}

/// Whether a process with this `/proc/PID/status` ignores a signal, as `nohup` makes it ignore
/// SIGHUP: to listen for it would undo that. What cannot be told is left alone.
fn ignores(status: &str, signal: i32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_none_or(|mask| mask >> signal.saturating_sub(1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_nohup_ignores_stays_ignored() {
        let status = |mask| format!("Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t{mask}\n");
        assert!(ignores(&status("0000000000000001"), SIGHUP));
        assert!(!ignores(&status("0000000000001000"), SIGHUP));
        assert!(ignores("", SIGHUP));
    }

    fn watch_that_heard(signal: i32) -> Watch {
        Watch { cancel: CancelToken::new(), caught: Arc::new(AtomicI32::new(signal)) }
    }

    #[test]
    fn an_interrupted_operation_is_put_down_to_the_signal() {
        let settled = watch_that_heard(SIGTERM).settle::<()>(Err(Error::interrupted()));
        assert!(matches!(settled, Err(Failure::Stopped { signal: SIGTERM, .. })));
    }

    #[test]
    fn a_failure_stays_a_failure_even_if_a_signal_came() {
        let settled = watch_that_heard(SIGTERM).settle::<()>(Err(Error::corrupt("x")));
        assert!(matches!(settled, Err(Failure::Error(_))));
    }

    #[test]
    fn what_was_done_before_the_signal_stays_done() {
        assert!(matches!(watch_that_heard(SIGINT).settle(Ok(7)), Ok(7)));
    }
}
