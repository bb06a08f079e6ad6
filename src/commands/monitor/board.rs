//! What is shown until the next scan: everything is ready, so that to answer takes no time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One scan, in all the forms in which it is asked for.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) metrics: String,
    pub(super) json: Arc<[u8]>,
    pub(super) page: Arc<[u8]>,
    pub(super) graph: Arc<[u8]>,
}

/// What set a scan off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    Interval,
    Event,
}

impl Cause {
    const ALL: [Self; 2] = [Self::Interval, Self::Event];

    fn as_str(self) -> &'static str {
        match self {
            Self::Interval => "interval",
            Self::Event => "event",
        }
    }
}

/// How the monitor itself is.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) interval: Duration,
    pub(super) scans: BTreeMap<Cause, u64>,
    pub(super) failures: u64,
    /// Everything that was asked about could be looked at, the last time.
    pub(super) complete: bool,
    /// When the last scan that did not fail ended.
    pub(super) last: Option<SystemTime>,
    pub(super) duration: Duration,
    pub(super) watched: usize,
    pub(super) unwatched: usize,
    pub(super) textfile_failures: u64,
    pub(super) requests: u64,
    pub(super) refused: u64,
    pub(super) annotations: Annotations,
}

/// What `--annotate` did; nothing without it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Annotations {
    /// Guests of whose disks all is known and written.
    pub(super) complete: u64,
    /// Guests of whose disks something is not known, or could not be written.
    pub(super) incomplete: u64,
    /// Times that something was written.
    pub(super) written: u64,
    /// When the last round over all guests ended.
    pub(super) last: Option<SystemTime>,
}

/// Shared by the scanner and the server.
#[derive(Debug, Default)]
pub(super) struct Board {
    shown: Mutex<Option<Arc<Shown>>>,
    figures: Mutex<Figures>,
}

/// So many intervals without a scan are too many.
const STALE: u32 = 3;
/// Scans of big hosts take their time, whatever the interval is.
const SLACK: Duration = Duration::from_secs(60);

impl Board {
    pub(super) fn new(interval: Duration) -> Self {
        let figures = Figures { interval, ..Figures::default() };
        Self { shown: Mutex::default(), figures: Mutex::new(figures) }
    }

    pub(super) fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn show(&self, shown: Shown) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(shown));
    }

    /// What the last scan found; `None` before the first has ended.
    pub(super) fn shown(&self) -> Option<Arc<Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The audit's metrics, as far as there are any, and the monitor's own.
    pub(super) fn metrics(&self) -> String {
        let audit = self.shown().map(|shown| shown.metrics.clone()).unwrap_or_default();
        audit + &self.figures().metrics()
    }

    /// Why what is shown should not be believed; `None` if it can be.
    pub(super) fn ill(&self, now: SystemTime) -> Option<String> {
        let figures = self.figures();
        let Some(last) = figures.last else { return Some("nothing was looked at yet".into()) };
        let age = now.duration_since(last).unwrap_or_default();
        let limit = figures.interval.saturating_mul(STALE).saturating_add(SLACK);
        (age > limit).then(|| format!("the last scan ended {} s ago", age.as_secs()))
    }
}

impl Figures {
    fn metrics(&self) -> String {
        let mut text = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: &dyn std::fmt::Display| {
            let name = format!("qcowtool_monitor_{name}");
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let last = self.last.map(since).unwrap_or_default().as_secs_f64();
        one("interval_seconds", "gauge", "Time between scans.", &self.interval.as_secs());
        one(
            "last_scan_timestamp_seconds",
            "gauge",
            "When the last scan that did not fail ended; 0 before the first.",
            &last,
        );
        one(
            "last_scan_duration_seconds",
            "gauge",
            "Duration of the last scan.",
            &self.duration.as_secs_f64(),
        );
        one(
            "last_scan_complete",
            "gauge",
            "1 if all directories and hosts that were asked for could be looked at.",
            &u8::from(self.complete),
        );
        one("scan_failures_total", "counter", "Scans that failed.", &self.failures);
        one("watched_directories", "gauge", "Directories whose events are heard.", &self.watched);
        one(
            "unwatched_directories",
            "gauge",
            "Directories that only the interval looks at.",
            &self.unwatched,
        );
        one(
            "textfile_failures_total",
            "counter",
            "Times that the textfile could not be written.",
            &self.textfile_failures,
        );
        one("http_requests_total", "counter", "Requests that were answered.", &self.requests);
        one(
            "http_refused_total",
            "counter",
            "Requests that were refused: another method or host.",
            &self.refused,
        );
        let Annotations { complete, incomplete, written, last } = self.annotations;
        one(
            "annotated_guests",
            "gauge",
            "Guests whose metadata has the sizes and digests of all their disks.",
            &complete,
        );
        one(
            "unannotated_guests",
            "gauge",
            "Guests of whose disks something is not known, or could not be written.",
            &incomplete,
        );
        one("annotations_written_total", "counter", "Times that metadata was written.", &written);
        one(
            "last_annotation_timestamp_seconds",
            "gauge",
            "When the last round over the guests' metadata ended; 0 before the first.",
            &last.map(since).unwrap_or_default().as_secs_f64(),
        );
        let name = "qcowtool_monitor_scans_total";
        let _ = writeln!(text, "# HELP {name} Scans, by what set them off.\n# TYPE {name} counter");
        for cause in Cause::ALL {
            let count = self.scans.get(&cause).copied().unwrap_or(0);
            let _ = writeln!(text, "{name}{{cause=\"{}\"}} {count}", cause.as_str());
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "times in tests are in range")]
mod tests {
    use super::*;

    #[test]
    fn it_is_ill_before_the_first_scan_and_when_scans_stop() {
        let board = Board::new(Duration::from_secs(10));
        let now = SystemTime::now();
        assert!(board.ill(now).is_some());
        board.figures().last = Some(now);
        assert_eq!(board.ill(now + Duration::from_secs(80)), None);
        assert_eq!(
            board.ill(now + Duration::from_secs(100)).unwrap(),
            "the last scan ended 100 s ago"
        );
        // A clock that was set back is no reason.
        assert_eq!(board.ill(now - Duration::from_secs(100)), None);
    }
}
