//! `qcowtool sparsify`: gives back the space that an image does not need, in place.

use std::path::PathBuf;

use clap::Args;
use qcow::chain::Format;
use qcow::ops::sparsify::{SparsifyJob, SparsifyOptions, SparsifyOutcome};

use crate::args::{ChainArgs, Common, TrustArgs, WorkArgs, exit_codes, format_parser};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json, shown};
use crate::sandbox::Plan;
use crate::session::{Operation, Session, changing, warn_repaired};
use crate::size::human;

/// Arguments of `sparsify`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "What reads as zeros is not stored any more, what is free within the file becomes a hole, and the file is cut behind \
what it has last. With --compact what lies at its end is moved to free places before, so that the file gets as short \
as what it holds. The guest's disk and all internal snapshots stay what they are: all of it is read again and compared \
before a change is made. Backing files are not touched, and not opened.

An image that a guest uses is refused. A signal or a crash at any moment leaves the same disk, in a file that is as \
large as before or smaller; the command can be run again.

Examples:
  qcowtool sparsify vm.qcow2
  qcowtool sparsify --compact --dry-run vm.qcow2
  qcowtool sparsify --compact -p vm.qcow2
  qcowtool sparsify -f raw vm.raw
  qcowtool sparsify --output json vm.qcow2

", exit_codes!(
"  0    done
  1    refused or failed; one line on standard error says why, and the disk is as it was")))]
pub(crate) struct Sparsify {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// Image format [default: detect from the header; a raw disk must be stated]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<Format>,

    /// Move clusters from the end of the file to free places nearer its beginning, so that the file gets shorter
    #[arg(long)]
    compact: bool,

    /// Write nothing: print what would be given back
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Do not read the disk again to compare it with what it was
    #[arg(long)]
    no_verify: bool,

    #[command(flatten)]
    chain: ChainArgs,

    #[command(flatten)]
    trust: TrustArgs,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

impl Sparsify {
    /// Does it, and says what was given back.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let operation = Operation::start(&self.common, &self.work)?;
        let open = self.trust.binding(self.chain.open_options()).format(self.format);
        let mut plan = Plan::new().chain(&self.path, &open);
        if !self.dry_run {
            plan = changing(plan, &self.path, &open);
        }
        let options = SparsifyOptions::default()
            .open(open)
            .compact(self.compact)
            .dry_run(self.dry_run)
            .no_verify(self.no_verify)
            .threads(self.work.threads());
        let session = Session::start(&self.common, plan)?;
        self.common.verbosity.opening(&self.path, self.format);
        let outcome = operation.run(|observer, cancel| {
            let job = SparsifyJob::begin(&self.path, &options)?;
            session.all_is_open()?;
            job.run(observer, cancel)
        })?;
        warn_repaired(&self.path, outcome.repaired, outcome.dry_run);
        match self.common.format() {
            OutputFormat::Json => print_json(&outcome),
            OutputFormat::Human if self.common.verbosity.quiet => Ok(()),
            OutputFormat::Human => print(text(&outcome)),
        }
    }
}

fn text(outcome: &SparsifyOutcome) -> String {
    let name = shown(&outcome.filename);
    let (before, now) = (human(outcome.file_size_before), human(outcome.file_size));
    let mut text = match outcome.dry_run {
        true => format!("'{name}' has a length of {before}, and would have {now}\n"),
        false => format!("'{name}' had a length of {before}, and has {now}\n"),
    };
    let zeros = human(outcome.zero_bytes);
    text.push_str(&match outcome.dry_run {
        true => format!("{zeros} of zeros are stored\n"),
        false => format!("{zeros} of zeros were stored\n"),
    });
    if outcome.moved > 0 {
        let verb = if outcome.dry_run { "would be" } else { "were" };
        text.push_str(&format!("{} {verb} moved\n", human(outcome.moved)));
    }
    if let Some(allocated) = outcome.allocated {
        let before = human(outcome.allocated_before);
        text.push_str(&format!("{before} of space before, {} now\n", human(allocated)));
    }
    if outcome.verified {
        let crc32 = &outcome.crc32;
        text.push_str(&format!("read again, crc32 of what the image has: {crc32}\n"));
    }
    text
}
