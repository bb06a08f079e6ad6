//! `qcowtool check`: checks an image's metadata, and repairs it if asked.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use qcow::chain::{BackingFormats, Format, OpenOptions, Policy, check_backing};
use qcow::io::FileStorage;
use qcow::ops::check::{
    CheckOptions, CheckOutcome, Finding, RepairOptions, RepairOutcome, Scope, Step, check, repair,
};
use qcow::{Error, ErrorKind, Escaped};
use serde::Serialize;

use crate::args::{CacheArgs, Common, WorkArgs, exit_codes, format_parser};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json};
use crate::sandbox::Plan;
use crate::session::{Operation, Session};

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
    after_help = concat!(
    "Only the image itself is checked. Its backing files and data file must be there, but only headers \
are looked at (with --alone and --untrusted they are not opened at all). \
The counts are those of `qemu-img check`. Findings marked 'note' are qcowtool's own and are not \
counted.

A repair is planned and verified in memory first, and is refused, with nothing written, if anything in the \
image is not understood. It needs exclusive access to the image.

Examples:
  qcowtool check vm.qcow2
  qcowtool check --output json vm.qcow2
  qcowtool check -r all --dry-run vm.qcow2
  qcowtool check -r all vm.qcow2

", exit_codes!(
"  0    clean (after the repair, if one was asked for)
  1    could not be checked, or not completely; standard error says why
  2    corrupt
  3    leaks, and nothing worse
  63   the format does not support checks")))]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// Image format [default: detect from the header]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<Format>,

    /// Check an image that another process may be writing to, such as QEMU of a running guest
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Check the image even if its backing file or data file is missing
    #[arg(long)]
    alone: bool,

    #[command(flatten)]
    cache: CacheArgs,

    /// Treat the image as hostile: require -f, and do not follow a symbolic link
    #[arg(long)]
    untrusted: bool,

    /// Repair in place: only leaks, or all errors
    #[arg(short, long, value_enum, value_name = "WHAT", conflicts_with = "force_share")]
    repair: Option<What>,

    /// Print what a repair would do, without writing
    #[arg(long, requires = "repair")]
    dry_run: bool,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// What is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Leaks,
    All,
}

impl Check {
    /// Checks, prints what was found, and ends with QEMU's exit code.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let operation = Operation::start(&self.common, &self.work)?;
        self.common.verbosity.opening(&self.path, self.format);
        let options = CheckOptions::default()
            .format(self.format)
            .force_share(self.force_share)
            .threads(self.work.threads())
            .policy(Policy::default().strict(self.untrusted));
        let changed = self.repair.is_some() && !self.dry_run;
        let looked_at = self.enter_sandbox(changed, &options)?;
        let settle = |failure| match failure {
            Failure::Error(error) => refusal(error),
            other => other,
        };
        if let Some(what) = self.repair {
            let scope = if what == What::All { Scope::All } else { Scope::Leaks };
            let options = RepairOptions::new(scope).dry_run(self.dry_run).check(options);
            let outcome = operation
                .run(|observer, cancel| repair(&self.path, &options, observer, cancel))
                .map_err(settle)?;
            self.print(&outcome, repaired_text)?;
            return verdict(&outcome.check);
        }
        let checked = operation.run(|observer, cancel| {
            let outcome = check(&self.path, &options, observer, cancel)?;
            // It was opened twice.
            match looked_at {
                Some(file) if !self.force_share => file.check_unchanged().map(|()| outcome),
                _ => Ok(outcome),
            }
        });
        let outcome = checked.map_err(settle)?;
        self.print(&outcome, text)?;
        verdict(&outcome)
    }

    /// Makes sure that the backing chain is there, then gives up all but the image itself. Returns the
    /// image's file if its header was looked at.
    fn enter_sandbox(
        &self,
        changed: bool,
        options: &CheckOptions,
    ) -> Result<Option<FileStorage>, Failure> {
        let plan = Plan::new().opened_again();
        let plan = if changed { plan.changing(&self.path) } else { plan };
        if self.alone || self.untrusted {
            Session::start(&self.common, plan.image(&self.path))?;
            return Ok(None);
        }
        let open = OpenOptions::default()
            .format(self.format)
            .force_share(self.force_share)
            .policy(options.policy.clone())
            // A format that is not recorded is not guessed; that the file is there is all that counts.
            .backing_formats(BackingFormats::new().only(Format::Raw));
        let session = Session::start(&self.common, plan.chain(&self.path, &open))?;
        let file = match check_backing(&self.path, &open) {
            Ok(file) => Some(file),
            // Not for us to open, but QEMU may be able to. Of the image itself the check tells.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Unsupported
                        | ErrorKind::WrongFormat
                        | ErrorKind::Denied
                        | ErrorKind::InUse
                ) =>
            {
                None
            }
            Err(error) => return Err(error.into()),
        };
        session.all_is_open()?;
        Ok(file)
    }

    fn print<T: Serialize>(&self, outcome: &T, text: fn(&T) -> String) -> Result<(), Failure> {
        match self.common.format() {
            OutputFormat::Json => print_json(outcome),
            OutputFormat::Human if self.common.verbosity.quiet => Ok(()),
            OutputFormat::Human => print(text(outcome)),
        }
    }
}

/// A format that cannot be checked has an exit code of its own; an image that needs something
/// unknown to be opened, which the header says, is one that could not be checked.
fn refusal(error: Error) -> Failure {
    let format = matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::WrongFormat);
    if format && error.place().structure.is_none() {
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

/// What was done, step by step, then the image as it is now.
fn repaired_text(outcome: &RepairOutcome) -> String {
    let mut text = String::new();
    if !outcome.steps.is_empty() {
        text.push_str(if outcome.dry_run { "A repair would:\n" } else { "Repaired:\n" });
    }
    text.extend(outcome.steps.iter().map(step_line));
    if outcome.steps_left_out > 0 {
        text.push_str(&format!("  and {} more steps\n", outcome.steps_left_out));
    }
    let (leaks, corruptions) = (outcome.leaks_fixed, outcome.corruptions_fixed);
    if leaks > 0 || corruptions > 0 {
        text.push_str("The following inconsistencies were found and repaired:\n\n");
        text.push_str(&format!("    {leaks} leaked clusters\n    {corruptions} corruptions\n\n"));
        text.push_str("Double checking the fixed image now...\n");
    }
    text.push_str(&self::text(&outcome.check));
    text
}

fn step_line(step: &Step) -> String {
    let Step { action, structure, index, host_offset, from, to, .. } = step;
    let (action, structure) = (action.as_str(), structure.as_str());
    format!(
        "  {action}: {structure} entry {index}, at byte {host_offset:#x}: {from:#x} -> {to:#x}\n"
    )
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
    let message = Escaped(&finding.message);
    format!("{}: {place}: {message}\n", finding.severity.as_str())
}

/// What `qemu-img check` says of an outcome.
pub(crate) fn summary(outcome: &CheckOutcome) -> String {
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
