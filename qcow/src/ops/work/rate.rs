//! A limit of how many bytes are written in a second.

use std::time::{Duration, Instant};

use crate::sync::{Mutex, lock};
use crate::{CancelToken, Result};

/// A cancelled operation waits no longer than this.
const PATIENCE: Duration = Duration::from_millis(100);

/// Lets no more than so many bytes a second pass, whichever threads write them.
#[derive(Debug)]
pub(in crate::ops) struct Rate {
    per_second: u64,
    started: Instant,
    /// When all that has passed is paid for, counted from the start.
    paid: Mutex<Duration>,
}

impl Rate {
    /// For a limit in bytes a second; 0 is none.
    pub(in crate::ops) fn of(per_second: Option<u64>) -> Option<Self> {
        let per_second = per_second.filter(|limit| *limit > 0)?;
        Some(Self { per_second, started: Instant::now(), paid: Mutex::new(Duration::ZERO) })
    }

    /// Waits until `len` more bytes may be written.
    ///
    /// # Errors
    /// [`Interrupted`](crate::ErrorKind::Interrupted).
    pub(in crate::ops) fn wait(&self, len: u64, cancel: &CancelToken) -> Result<()> {
        let start = {
            let mut paid = lock(&self.paid);
            let start = self.started.elapsed().max(*paid);
            *paid = start.saturating_add(price(len, self.per_second));
            start
        };
        loop {
            cancel.check()?;
            match start.checked_sub(self.started.elapsed()) {
                Some(left) if !left.is_zero() => std::thread::sleep(left.min(PATIENCE)),
                _ => return Ok(()),
            }
        }
    }
}

/// As [`Rate::wait`], if there is a limit.
///
/// # Errors
/// As there.
pub(in crate::ops) fn wait(rate: Option<&Rate>, len: u64, cancel: &CancelToken) -> Result<()> {
    rate.map_or(Ok(()), |rate| rate.wait(len, cancel))
}

/// How long `len` bytes take.
fn price(len: u64, per_second: u64) -> Duration {
    let whole = Duration::from_secs(len.checked_div(per_second).unwrap_or_default());
    let rest = len.checked_rem(per_second).unwrap_or_default();
    let nanos = u128::from(rest).saturating_mul(1_000_000_000);
    let nanos = nanos.checked_div(u128::from(per_second)).unwrap_or_default();
    // Less than a second.
    whole.saturating_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_share_of_a_second() {
        assert_eq!(price(0, 1), Duration::ZERO);
        assert_eq!(price(1500, 1000), Duration::from_millis(1500));
        assert_eq!(price(1, 4), Duration::from_millis(250));
        assert_eq!(price(u64::MAX, 1), Duration::from_secs(u64::MAX));
        assert_eq!(price(u64::MAX / 2, u64::MAX), Duration::from_nanos(499_999_999));
    }

    #[test]
    fn what_was_written_is_paid_for_before_more_is() {
        let rate = Rate::of(Some(1 << 40)).unwrap();
        for _ in 0..8 {
            rate.wait(1 << 27, &CancelToken::new()).unwrap();
        }
        let paid = *lock(&rate.paid);
        assert!(paid >= price(8 << 27, 1 << 40));
        // A long wait ends when the operation is cancelled.
        let (slow, cancel) = (Rate::of(Some(1)).unwrap(), CancelToken::new());
        slow.wait(1 << 40, &cancel).unwrap();
        cancel.cancel();
        let error = slow.wait(1, &cancel).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Interrupted);
        assert!(Rate::of(Some(0)).is_none() && Rate::of(None).is_none());
    }
}
