//! `-p`: how far a command is, in percent, on standard output; and once on standard error for each SIGUSR1.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use qcow::chain::Chain;
use qcow::ops::map::{MapOptions, map};
use qcow::{Observer, Result};
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
    /// How much of the data comes before each of [`MARKS`] places of the disk, where that is what counts.
    data: OnceLock<Vec<u64>>,
}

/// Places of a disk, evenly spread, up to which its data is counted.
const MARKS: u64 = 4096;

impl Progress {
    /// Progress in steps of so many percent. To be started before threads are.
    pub(super) fn start(shown: bool, percent: u64) -> Self {
        let asked = Arc::new(AtomicBool::new(false));
        // Without the handler the signal ends the process, as it does anywhere.
        let _ = flag::register(SIGUSR1, Arc::clone(&asked));
        let progress = Self {
            shown,
            asked,
            last: Mutex::new(None),
            step: percent.saturating_mul(100),
            data: OnceLock::new(),
        };
        progress.show(0, false);
        progress
    }

    /// From here on the progress through the disk of `chain` is that through its data, if it is shown at all: whoever
    /// watches wants to know how long it takes, and what reads as zeros takes no time.
    ///
    /// # Errors
    /// What reading its tables raises.
    pub(super) fn by_data(&self, chain: &Chain) -> Result<()> {
        if !self.shown {
            return Ok(());
        }
        let size = chain.virtual_size();
        let mut before: Vec<u64> = Vec::new();
        let (mut sum, mut mark) = (0_u64, 0_u64);
        let place = |mark: u64| {
            let place = u128::from(mark).saturating_mul(size.into()).checked_div(MARKS.into());
            place.and_then(|place| u64::try_from(place).ok()).unwrap_or(size)
        };
        for entry in map(chain, &MapOptions::default()) {
            let entry = entry?;
            let counts = entry.data && !entry.zero;
            while mark <= MARKS && place(mark) <= entry.end() {
                let within = if counts { place(mark).saturating_sub(entry.start) } else { 0 };
                before.push(sum.saturating_add(within));
                mark = mark.saturating_add(1);
            }
            sum = sum.saturating_add(if counts { entry.length } else { 0 });
        }
        if sum > 0 {
            // It is set once: no command copies twice.
            let _ = self.data.set(before);
        }
        Ok(())
    }

    /// The part that is done, in hundredths of a percent.
    fn part(&self, done: u64, total: u64) -> u64 {
        let Some(before) = self.data.get() else { return hundredths(done, total) };
        let mark = u128::from(done.min(total)).saturating_mul(MARKS.into());
        let mark = mark.checked_div(total.into()).and_then(|mark| usize::try_from(mark).ok());
        let all = before.last().copied().unwrap_or(0);
        hundredths(mark.and_then(|mark| before.get(mark)).copied().unwrap_or(all), all)
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

    /// As [`finish`](Self::finish), and once more if all of it was shown already, as most commands of QEMU do.
    pub(super) fn finish_again(&self, succeeded: bool) {
        if succeeded {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.finish(succeeded);
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
        self.show(self.part(done, total), false);
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
