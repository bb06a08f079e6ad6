//! Progress of a migration on standard error.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use migrate::driver::JobProgress;
use migrate::run::{Phase, Report};
use qcow::Observer;

use crate::output::eprint_line;
use crate::progress::{Progress, When};

/// Prints phases, and shows two bars while libvirt's job runs: disks and memory.
pub(crate) struct ProgressReporter {
    files: Progress,
    bars: Option<Bars>,
    quiet: bool,
    /// When a line was printed last, in milliseconds since the start; `u64::MAX` before the first.
    last: AtomicU64,
    /// Bytes of all disks when the job began. libvirt's total grows with what the guest writes meanwhile.
    disks: AtomicU64,
}

struct Bars {
    all: MultiProgress,
    disks: ProgressBar,
    memory: ProgressBar,
}

/// Milliseconds between two lines where there is no terminal.
const LINE_MS: u64 = 1000;

impl ProgressReporter {
    pub(crate) fn new(when: When, quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal() && when != When::Never;
        Self {
            files: Progress::new(when),
            bars: terminal.then(Bars::new),
            quiet: quiet || (when != When::Always && !terminal),
            last: AtomicU64::new(u64::MAX),
            disks: AtomicU64::new(0),
        }
    }

    /// Takes the bars away.
    pub(crate) fn finish(&self) {
        self.files.finish(false);
        if let Some(bars) = &self.bars {
            let _ = bars.all.clear();
        }
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let template = "{prefix:7} {bar:30} {percent:>3}%  {binary_bytes} of {binary_total_bytes}  \
                        {binary_bytes_per_sec}  {eta} left";
        let style = ProgressStyle::with_template(template)
            .map(|style| style.progress_chars("=> "))
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |prefix: &'static str| {
            all.add(ProgressBar::new(0).with_style(style.clone()).with_prefix(prefix))
        };
        let (disks, memory) = (bar("disks"), bar("memory"));
        Self { all, disks, memory }
    }
}

impl Report for ProgressReporter {
    fn phase(&self, phase: Phase) {
        if !self.quiet {
            eprint_line(words(phase));
        }
    }

    fn job(&self, job: &JobProgress) {
        let (done, total) = disks_done(job, &self.disks);
        if let Some(bars) = &self.bars {
            bars.disks.set_length(total);
            bars.disks.set_position(done);
            bars.memory.set_length(job.memory_total);
            bars.memory.set_position(job.memory_processed);
            return;
        }
        let last = self.last.load(Ordering::Relaxed);
        let due = last == u64::MAX || job.elapsed_ms.saturating_sub(last) >= LINE_MS;
        if !self.quiet && due {
            self.last.store(job.elapsed_ms, Ordering::Relaxed);
            eprint_line(format_args!(
                "disks {} of {} bytes, memory {} of {} bytes",
                done, total, job.memory_processed, job.memory_total
            ));
        }
    }

    fn note(&self, text: &str) {
        eprint_line(format_args!("note: {text}"));
    }

    fn observer(&self) -> &dyn Observer {
        &self.files
    }
}

/// What is being done, in words.
pub(super) fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Prepare => "preparing the destination",
        Phase::Migrate => "migrating",
        Phase::Define => "defining the guest at the destination",
        Phase::Outcome => "asking both hosts where the guest runs",
        Phase::Verify => "comparing",
        Phase::Resume => "resuming the guest",
        Phase::Archive => "archiving the source files",
        Phase::RollBack => "rolling back",
    }
}

/// How many bytes of the disks are equal at the destination, and of how many. libvirt counts what the guest writes
/// again into both figures, so that theirs comes to 100 % of a growing total; here it is done when memory follows.
fn disks_done(job: &JobProgress, first_total: &AtomicU64) -> (u64, u64) {
    let known = first_total.load(Ordering::Relaxed);
    let total = if known == 0 { job.disk_total } else { known };
    first_total.store(total, Ordering::Relaxed);
    let remaining = job.disk_total.saturating_sub(job.disk_processed);
    let remaining = if job.memory_total == 0 { remaining.max(1) } else { remaining };
    (total.saturating_sub(remaining), total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_total_is_never_done_before_memory_follows() {
        let first = AtomicU64::new(0);
        let job = |total, done, memory_total| JobProgress {
            disk_total: total,
            disk_processed: done,
            memory_total,
            ..JobProgress::default()
        };
        assert_eq!(disks_done(&job(0, 0, 0), &first), (0, 0));
        assert_eq!(disks_done(&job(1000, 100, 0), &first), (100, 1000));
        // The guest wrote 5000 bytes meanwhile.
        assert_eq!(disks_done(&job(6000, 5900, 0), &first), (900, 1000));
        assert_eq!(disks_done(&job(9000, 9000, 0), &first), (999, 1000));
        assert_eq!(disks_done(&job(9000, 9000, 64), &first), (1000, 1000));
        assert_eq!(disks_done(&job(9000, 2000, 64), &first), (0, 1000));
    }
}
