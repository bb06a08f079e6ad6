//! When to scan again. Pure: the caller passes the time.

use std::time::{Duration, Instant};

/// Events come in bursts: a scan starts after this time without one.
const QUIET: Duration = Duration::from_millis(500);
/// If events do not end, a scan starts after this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a scan, a pause of this many times its duration: a directory in which something happens all the time
/// must not keep a host busy.
const REST: u32 = 10;

/// When the last scan was, and what happened since.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    /// The start and the end of the last scan.
    last: Option<(Instant, Instant)>,
    /// The first and the last event since.
    events: Option<(Instant, Instant)>,
}

impl Pace {
    /// Nothing was looked at yet.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, last: None, events: None }
    }

    /// A scan was made. What happened while it ran is kept: it may have come too late for it.
    pub(super) fn scanned(&mut self, start: Instant, end: Instant) {
        self.last = Some((start, end));
        self.events = None;
    }

    /// Something happened.
    pub(super) fn event(&mut self, now: Instant) {
        let first = self.events.map_or(now, |(first, _)| first);
        self.events = Some((first, now));
    }

    /// When the next scan is due, and whether an event asks for it; `None` means at once.
    pub(super) fn due(&self) -> Option<(Instant, bool)> {
        let (start, end) = self.last?;
        let after = |instant: Instant, time: Duration| instant.checked_add(time).unwrap_or(instant);
        let regular = after(start, self.interval).max(end);
        let Some((first, last)) = self.events else { return Some((regular, false)) };
        let rest = after(end, end.saturating_duration_since(start).saturating_mul(REST));
        let asked = after(last, QUIET).min(after(first, PATIENCE)).max(rest);
        Some(if asked < regular { (asked, true) } else { (regular, false) })
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "instants in tests are in range")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    /// A pace of a minute whose last scan took 10 ms and ended at the returned instant.
    fn pace() -> (Pace, Instant) {
        let mut pace = Pace::new(SECOND * 60);
        assert_eq!(pace.due(), None);
        let end = Instant::now() + SECOND;
        pace.scanned(end - MS * 10, end);
        (pace, end)
    }

    #[test]
    fn without_events_it_is_the_interval() {
        let (pace, end) = pace();
        assert_eq!(pace.due(), Some((end - MS * 10 + SECOND * 60, false)));
    }

    #[test]
    fn an_event_is_followed_by_a_scan_when_it_is_quiet_again() {
        let (mut pace, end) = pace();
        pace.event(end + SECOND);
        assert_eq!(pace.due(), Some((end + SECOND + QUIET, true)));
        pace.event(end + SECOND + MS * 400);
        assert_eq!(pace.due(), Some((end + SECOND + MS * 400 + QUIET, true)));
        pace.scanned(end + SECOND * 2, end + SECOND * 2);
        assert!(!pace.due().unwrap().1, "the event was answered");
    }

    #[test]
    fn events_without_end_do_not_put_it_off_for_ever() {
        let (mut pace, end) = pace();
        for nth in 0..100 {
            pace.event(end + SECOND + MS * 100 * nth);
        }
        assert_eq!(pace.due(), Some((end + SECOND + PATIENCE, true)));
        // And never later than the interval.
        let mut pace = Pace::new(SECOND);
        pace.scanned(end, end);
        pace.event(end + MS * 900);
        assert_eq!(pace.due(), Some((end + SECOND, false)));
    }

    #[test]
    fn long_scans_are_followed_by_a_rest() {
        let (mut pace, end) = pace();
        pace.scanned(end, end + SECOND * 3);
        pace.event(end + SECOND * 3);
        assert_eq!(pace.due(), Some((end + SECOND * 33, true)));
        // A scan that takes longer than the interval is followed by the next one, without end.
        pace.scanned(end, end + SECOND * 90);
        assert_eq!(pace.due(), Some((end + SECOND * 90, false)));
    }
}
