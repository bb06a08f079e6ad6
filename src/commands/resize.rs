//! `qcowtool resize`: changes the size of a disk in place.

use std::path::PathBuf;

use clap::Args;
use qcow::Result;
use qcow::chain::Format;
use qcow::ops::Preallocation;
use qcow::ops::resize::{NewSize, ResizeOptions, ResizeOutcome, resize};

use crate::args::{
    ChainArgs, Common, StatedFormat, TrustArgs, WorkArgs, backing_formats, exit_codes,
    format_parser,
};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json};
use crate::sandbox::Plan;
use crate::session::{Operation, Session, changing, warn_repaired};
use crate::size::{self, human};

/// Arguments of `resize`.
#[derive(Debug, Args)]
#[command(
    override_usage = "qcowtool resize [OPTIONS] <PATH> [+|-]<SIZE>",
    after_help = concat!(
    "SIZE is in bytes, or has a suffix k, M, G, T, P or E (powers of 1024); with + or - the disk becomes larger or \
smaller by it. The format of a raw disk must be stated with -f raw.

What a disk becomes larger by reads as zeros, whatever a longer backing file has there. What lies behind the end \
of a smaller disk is lost: make the guest's partitions and file systems smaller first. Internal snapshots keep \
their own size.

A qcow2 image is checked first, the new state is made beside the old one and checked too, and then one write to the \
header switches: a crash leaves the image as it was or as it is to be. An image that a guest uses is refused.

Examples:
  qcowtool resize vm.qcow2 +10G
  qcowtool resize vm.qcow2 100G
  qcowtool resize --shrink --dry-run vm.qcow2 20G
  qcowtool resize --shrink vm.qcow2 -5G
  qcowtool resize -f raw --preallocation falloc vm.raw +10G

", exit_codes!(
"  0    done
  1    refused or failed; one line on standard error says why, and the image is as it was")))]
pub(crate) struct Resize {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// Image format [default: detect from the header; a raw disk must be stated]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<Format>,

    /// Allow that the disk becomes smaller, and what lies behind its new end is lost
    #[arg(long)]
    shrink: bool,

    /// What is allocated of the new part: off, metadata (qcow2), falloc or full
    #[arg(long, value_name = "MODE", default_value = "off", value_parser = preallocation)]
    preallocation: Preallocation,

    /// Print what would be done, without writing
    #[arg(long)]
    dry_run: bool,

    /// Format of the backing file NAME whose overlay records no format; may be repeated
    #[arg(long, value_name = "[NAME=]FMT", value_parser = StatedFormat::parse)]
    backing_format: Vec<StatedFormat>,

    #[command(flatten)]
    chain: ChainArgs,

    #[command(flatten)]
    trust: TrustArgs,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// The new size, or + or - and the difference
    #[arg(value_name = "[+|-]SIZE", allow_hyphen_values = true)]
    size: String,
}

impl Resize {
    /// Does it, and says what was done.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let size = new_size(&self.size)?;
        let operation = Operation::start(&self.common, &self.work)?;
        self.common.verbosity.opening(&self.path, self.format);
        let open = self
            .trust
            .binding(self.chain.open_options())
            .format(self.format)
            .backing_formats(backing_formats(&self.backing_format, false));
        let mut plan = Plan::new().chain(&self.path, &open);
        if !self.dry_run {
            plan = changing(plan, &self.path, &open);
        }
        let options = ResizeOptions::default()
            .open(open)
            .shrink(self.shrink)
            .preallocation(self.preallocation)
            .dry_run(self.dry_run)
            .threads(self.work.threads());
        Session::start(&self.common, plan)?;
        let outcome = operation
            .run(|observer, cancel| resize(&self.path, size, &options, observer, cancel))?;
        warn_repaired(&self.path, outcome.repaired, outcome.dry_run);
        match self.common.format() {
            OutputFormat::Json => print_json(&outcome),
            OutputFormat::Human if self.common.verbosity.quiet => Ok(()),
            OutputFormat::Human => print(text(&outcome)),
        }
    }
}

fn preallocation(text: &str) -> Result<Preallocation> {
    let modes =
        [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];
    modes.into_iter().find(|mode| mode.as_str() == text).ok_or_else(|| {
        qcow::Error::usage(format!("'{text}' is no way to preallocate"))
            .hint("use off, metadata, falloc or full")
    })
}

fn new_size(text: &str) -> Result<NewSize> {
    Ok(match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(more), _) => NewSize::Plus(size::parse_disk(more)?),
        (_, Some(less)) => NewSize::Minus(size::parse_disk(less)?),
        (None, None) => NewSize::Exactly(size::parse_disk(text)?),
    })
}

/// One line, and one for each thing that is lost or hidden.
fn text(outcome: &ResizeOutcome) -> String {
    let ResizeOutcome { size_before: before, size, .. } = *outcome;
    let mut text = match (outcome.dry_run, before == size) {
        (false, true) => format!("The disk has {size} bytes.\n"),
        (true, true) => format!("The disk would keep its {size} bytes.\n"),
        (false, false) => format!("Image resized: {before} bytes before, {size} now.\n"),
        (true, false) => format!("The disk has {before} bytes, and would have {size}.\n"),
    };
    if outcome.data_lost > 0 {
        let lost = human(outcome.data_lost);
        let verb = if outcome.dry_run { "would be" } else { "were" };
        text.push_str(&format!("{lost} of allocated data behind the new end {verb} dropped.\n"));
    }
    if outcome.hidden > 0 {
        let hidden = human(outcome.hidden);
        text.push_str(&format!("{hidden} of the longer backing file stay hidden behind zeros.\n"));
    }
    text
}
