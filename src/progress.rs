//! How far a long operation is, shown on standard error.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qcow::Observer;

use crate::output::eprint_line;

/// When to show progress; [`Auto`](Self::Auto) means if standard error is a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    Auto,
    Always,
    Never,
}

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_millis(500);

/// Shows progress as a bar, as lines, or not at all.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Nothing is shown.
    Hidden,
    /// A bar that redraws itself on a terminal.
    Bar(ProgressBar),
    /// Lines `NN.NN%`; holds the time of the last one.
    Lines(Mutex<Option<Instant>>),
}

impl Progress {
    /// Chooses how to show progress on this standard error.
    pub(crate) fn new(when: When) -> Self {
        Self::on(when, io::stderr().is_terminal())
    }

    fn on(when: When, terminal: bool) -> Self {
        match (when, terminal) {
            (When::Never, _) | (When::Auto, false) => Self::Hidden,
            (When::Always, false) => Self::Lines(Mutex::new(None)),
            (When::Auto | When::Always, true) => Self::Bar(bar()),
        }
    }

    /// Ends the display: complete if the operation `succeeded`, else taken away.
    pub(crate) fn finish(&self, succeeded: bool) {
        match self {
            Self::Bar(bar) if succeeded => bar.finish(),
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines(_) if succeeded => eprint_line("100.00%"),
            Self::Hidden | Self::Lines(_) => {}
        }
    }
}

impl Observer for Progress {
    fn progress(&self, done: u64, total: u64) {
        match self {
            Self::Hidden => {}
            Self::Bar(bar) => {
                if bar.length() != Some(total) {
                    bar.set_length(total);
                }
                bar.set_position(done);
            }
            // Another worker is at it: its line will do.
            Self::Lines(last) => {
                if let Ok(mut last) = last.try_lock()
                    && last.is_none_or(|last| last.elapsed() >= LINE_INTERVAL)
                    && done < total
                {
                    *last = Some(Instant::now());
                    eprint_line(percent(done, total));
                }
            }
        }
    }
}

fn bar() -> ProgressBar {
    let template = "{bar:30} {percent:>3}%  {binary_bytes} of {binary_total_bytes}  \
                    {binary_bytes_per_sec}  {eta} left";
    let style = ProgressStyle::with_template(template)
        .map(|style| style.progress_chars("=> "))
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
}

/// `done` of `total` as `NN.NN%`, rounded down.
fn percent(done: u64, total: u64) -> String {
    let hundredths = u128::from(done.min(total))
        .saturating_mul(10_000)
        .checked_div(u128::from(total))
        .unwrap_or(10_000);
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_have_two_digits_and_never_say_done_too_early() {
        assert_eq!(percent(0, 3), "0.00%");
        assert_eq!(percent(1, 3), "33.33%");
        assert_eq!(percent(u64::MAX - 1, u64::MAX), "99.99%");
        assert_eq!(percent(7, 7), "100.00%");
        assert_eq!(percent(0, 0), "100.00%");
    }

    #[test]
    fn auto_shows_a_bar_on_a_terminal_only() {
        assert!(matches!(Progress::on(When::Auto, false), Progress::Hidden));
        assert!(matches!(Progress::on(When::Auto, true), Progress::Bar(_)));
    }

    #[test]
    fn always_without_a_terminal_prints_lines() {
        assert!(matches!(Progress::on(When::Always, false), Progress::Lines(_)));
    }

    #[test]
    fn never_is_never() {
        assert!(matches!(Progress::on(When::Never, true), Progress::Hidden));
    }
}
