//! `qcowtool check`: holds an image's metadata against itself.

use std::path::PathBuf;

use clap::Args;
use qcow::chain::Format;
use qcow::ops::check::{CheckOptions, CheckOutcome, Finding, check};
use qcow::{Error, ErrorKind, Printable};

use crate::args::{OutputArgs, Voice, WorkArgs, format_parser};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json};
use crate::progress::Progress;
use crate::signals::Watch;

/// The check could not be done, or not all of it.
const NOT_CHECKED: u8 = 1;
/// The image is corrupt.
const CORRUPT: u8 = 2;
/// The image has leaks and nothing worse.
const LEAKS: u8 = 3;
/// There is nothing to check in this format.
const NOT_SUPPORTED: u8 = 63;

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Only the image itself is looked at: neither its backing file nor its data file is opened.
The counts are those of `qemu-img check`. Findings marked 'note' are our own and count for
nothing.

Examples:
  qcowtool check vm.qcow2
  qcowtool check --output json vm.qcow2

Exit codes:
  0    clean
  1    could not be checked, or not completely; standard error says why
  2    corrupt
  3    leaks, and nothing worse
  63   the format has nothing to check
  130  stopped by SIGINT (Ctrl-C)
  143  stopped by SIGTERM (129 by SIGHUP)"
)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    voice: Voice,
    #[command(flatten)]
    work: WorkArgs,

    /// Format of the image; left out, its first bytes tell
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<Format>,

    /// Accepted for qemu-img's sake: reading never waits for a writer's lock
    #[arg(short = 'U', long)]
    force_share: bool,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

impl Check {
    /// Checks, prints what was found, and ends with QEMU's exit code.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let watch = Watch::start()?;
        self.voice.opening(&self.path, self.format);
        let options = CheckOptions {
            format: self.format,
            threads: self.work.threads(),
            ..CheckOptions::default()
        };
        let progress = Progress::new(self.work.progress(&self.voice));
        let result = check(&self.path, &options, &progress, watch.token());
        progress.finish(result.is_ok());
        let outcome = watch.settle(result).map_err(|failure| match failure {
            Failure::Error(error) => refusal(error),
            other => other,
        })?;
        match self.output.output {
            OutputFormat::Json => print_json(&outcome)?,
            OutputFormat::Human if self.voice.quiet => {}
            OutputFormat::Human => print(text(&outcome))?,
        }
        verdict(&outcome)
    }
}

/// A format that cannot be checked has an exit code of its own; an image that needs something
/// unknown to be opened, which the header says, is one that could not be checked.
fn refusal(error: Error) -> Failure {
    if error.kind() == ErrorKind::Unsupported && error.place().structure.is_none() {
        Failure::Coded { code: NOT_SUPPORTED, error }
    } else {
        Failure::Error(error)
    }
}

/// How the program ends after the outcome was printed.
fn verdict(outcome: &CheckOutcome) -> Result<(), Failure> {
    if outcome.check_errors > 0 {
        let error = Error::corrupt("the image could not be checked completely");
        return Err(Failure::Coded { code: NOT_CHECKED, error: error.file(&outcome.filename) });
    }
    match (outcome.corruptions, outcome.leaks) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::Verdict(LEAKS)),
        _ => Err(Failure::Verdict(CORRUPT)),
    }
}

/// One line for each finding, then what `qemu-img check` says.
fn text(outcome: &CheckOutcome) -> String {
    let mut text: String = outcome.findings.iter().map(line).collect();
    if outcome.findings_left_out > 0 {
        text.push_str(&format!("and {} more findings\n", outcome.findings_left_out));
    }
    text.push_str(&summary(outcome));
    text
}

fn line(finding: &Finding) -> String {
    let mut place = finding.structure.as_str().to_owned();
    if let Some(index) = finding.index {
        place.push_str(&format!(" entry {index}"));
    }
    if let Some(offset) = finding.host_offset {
        place.push_str(&format!(", at byte {offset:#x}"));
    }
    if let Some(offset) = finding.guest_offset {
        place.push_str(&format!(", guest offset {offset:#x}"));
    }
    let message = Printable(&finding.message);
    format!("{}: {place}: {message}\n", finding.severity.as_str())
}

fn summary(outcome: &CheckOutcome) -> String {
    let CheckOutcome { corruptions, leaks, check_errors, .. } = *outcome;
    let mut text = String::new();
    if corruptions == 0 && leaks == 0 && check_errors == 0 {
        text.push_str("No errors were found on the image.\n");
    }
    if corruptions > 0 {
        text.push_str(&format!(
            "\n{corruptions} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.\n"
        ));
    }
    if leaks > 0 {
        text.push_str(&format!(
            "\n{leaks} leaked clusters were found on the image.\n\
             This means waste of disk space, but no harm to data.\n"
        ));
    }
    if check_errors > 0 {
        text.push_str(&format!(
            "\n{check_errors} internal errors have occurred during the check.\n"
        ));
    }
    let (total, allocated) = (outcome.total_clusters, outcome.allocated_clusters);
    if total > 0 && allocated > 0 {
        text.push_str(&format!(
            "{allocated}/{total} = {} allocated, {} fragmented, {} compressed clusters\n",
            percent(allocated, total),
            percent(outcome.fragmented_clusters, allocated),
            percent(outcome.compressed_clusters, allocated),
        ));
    }
    if outcome.image_end_offset > 0 {
        text.push_str(&format!("Image end offset: {}\n", outcome.image_end_offset));
    }
    text
}

/// `part` of `whole`, with two digits after the point.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn percent(part: u64, whole: u64) -> String {
    format!("{:.2}%", part as f64 * 100.0 / whole as f64)
}
