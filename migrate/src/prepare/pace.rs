//! Files that we send keep to the bandwidth that the guest was given, as what libvirt sends does.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use qcow::{CancelToken, Observer};

/// No store sends more between two words on how far it is; what is further apart is holes, which are not sent.
const PIECE: u64 = 1 << 20;

/// So long it sleeps at most before it looks whether it shall stop.
const NAP: Duration = Duration::from_millis(100);

/// Passes on how far the sending is, and lets it wait where it is ahead of its rate.
pub(super) struct Pace<'a> {
    observer: &'a dyn Observer,
    cancel: &'a CancelToken,
    /// Bytes a second.
    rate: Option<u64>,
    begun: Instant,
    /// Offset that was reached, and bytes that were sent at most.
    sent: Mutex<(u64, u64)>,
}

impl<'a> Pace<'a> {
    pub(super) fn new(
        observer: &'a dyn Observer,
        cancel: &'a CancelToken,
        rate: Option<u64>,
    ) -> Self {
        Self { observer, cancel, rate, begun: Instant::now(), sent: Mutex::new((0, 0)) }
    }

    /// When so many bytes may have been sent, counted from the beginning.
    fn due(rate: u64, sent: u64) -> Duration {
        let milliseconds = u128::from(sent).saturating_mul(1000).checked_div(u128::from(rate));
        Duration::from_millis(milliseconds.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0))
    }
}

impl Observer for Pace<'_> {
    fn progress(&self, done: u64, total: u64) {
        self.observer.progress(done, total);
        let Some(rate) = self.rate else { return };
        let due = {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            let step = done.saturating_sub(sent.0).min(PIECE);
            *sent = (done.max(sent.0), sent.1.saturating_add(step));
            Self::due(rate, sent.1)
        };
        loop {
            let early = due.saturating_sub(self.begun.elapsed());
            if early.is_zero() || self.cancel.is_cancelled() {
                return;
            }
            thread::sleep(early.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qcow::Silent;

    #[test]
    fn what_is_sent_waits_for_its_time_and_holes_are_not_counted() {
        assert_eq!(Pace::due(1 << 20, 3 << 20), Duration::from_secs(3));
        assert_eq!(Pace::due(0, 1), Duration::ZERO);
        let cancel = CancelToken::new();
        // Stopped, so that it does not wait: only what is counted is looked at.
        cancel.cancel();
        let pace = Pace::new(&Silent, &cancel, Some(1));
        for done in [1 << 10, 1 << 40, (1 << 40) + 5] {
            pace.progress(done, 1 << 41);
        }
        assert_eq!(*pace.sent.lock().unwrap(), ((1 << 40) + 5, (1 << 10) + PIECE + 5));
    }
}
