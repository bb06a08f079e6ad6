//! `-p`: how far a command is, in percent, on standard output; and once on standard error for each SIGUSR1.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use qcow::Observer;
use signal_hook::consts::SIGUSR1;
use signal_hook::flag;

/// Shows progress if it is wanted. Values never sink.
#[derive(Debug)]
pub(super) struct Progress {
    shown: bool,
    asked: Arc<AtomicBool>,
    /// Hundredths of a percent that were printed last.
    last: Mutex<Option<u64>>,
    /// Least difference between two that are printed.
    step: u64,
}

impl Progress {
    /// Progress in steps of so many percent. To be started before threads are.
    pub(super) fn start(shown: bool, percent: u64) -> Self {
        let asked = Arc::new(AtomicBool::new(false));
        // Without the handler the signal ends the process, as it does anywhere.
        let _ = flag::register(SIGUSR1, Arc::clone(&asked));
        let progress =
            Self { shown, asked, last: Mutex::new(None), step: percent.saturating_mul(100) };
        progress.show(0, false);
        progress
    }

    fn show(&self, hundredths: u64, always: bool) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if self.asked.swap(false, Ordering::Relaxed) {
            let _ = io::stderr().write_all(format!("{}\n", text(hundredths)).as_bytes());
        }
        let due = last.is_none_or(|last| hundredths >= last.saturating_add(self.step));
        let sinks = last.is_some_and(|last| hundredths < last);
        let again = *last == Some(hundredths);
        if sinks || again || !(due || always) {
            return;
        }
        *last = Some(hundredths);
        if self.shown {
            // In one piece, and at once: programs read it as it comes.
            let mut out = io::stdout().lock();
            let _ = out.write_all(format!("{}\r", text(hundredths)).as_bytes());
            let _ = out.flush();
        }
    }

    /// Ends with all of it where it `succeeded`; the line is left for [`end_line`](Self::end_line).
    pub(super) fn finish(&self, succeeded: bool) {
        if succeeded {
            self.show(10_000, true);
        }
    }

    /// Leaves the line.
    pub(super) fn end_line(&self) {
        if self.shown {
            let mut out = io::stdout().lock();
            let _ = out.write_all(b"\n");
            let _ = out.flush();
        }
    }
}

impl Observer for Progress {
    fn progress(&self, done: u64, total: u64) {
        self.show(hundredths(done, total), false);
    }
}

fn hundredths(done: u64, total: u64) -> u64 {
    let part = u128::from(done.min(total)).saturating_mul(10_000);
    u64::try_from(part.checked_div(u128::from(total)).unwrap_or(10_000)).unwrap_or(10_000)
}

fn text(hundredths: u64) -> String {
    format!("    ({}.{:02}/100%)", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_shown_with_two_decimals() {
        assert_eq!(text(hundredths(1, 3)), "    (33.33/100%)");
        assert_eq!(text(hundredths(0, 0)), "    (100.00/100%)");
        assert_eq!(text(hundredths(7, 7)), "    (100.00/100%)");
    }
}
