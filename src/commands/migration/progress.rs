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
            eprint_line(match phase {
                Phase::Prepare => "preparing the destination",
                Phase::Migrate => "migrating",
                Phase::Define => "defining the guest at the destination",
                Phase::Outcome => "asking both hosts where the guest runs",
                Phase::Verify => "comparing",
                Phase::Resume => "resuming the guest",
                Phase::Archive => "archiving the source files",
                Phase::RollBack => "rolling back",
            });
        }
    }

    fn job(&self, job: &JobProgress) {
        if let Some(bars) = &self.bars {
            bars.disks.set_length(job.disk_total);
            bars.disks.set_position(job.disk_processed);
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
                job.disk_processed, job.disk_total, job.memory_processed, job.memory_total
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
