//! `qcowtool commit`: writes what an overlay has into its backing file.

use std::path::PathBuf;

use clap::Args;
use qcow::Escaped;
use qcow::chain::Format;
use qcow::ops::commit::{CommitJob, CommitOptions, CommitOutcome, base_of};

use crate::args::{
    CacheArgs, ChainArgs, Common, StatedFormat, TrustArgs, WorkArgs, backing_formats, exit_codes,
    format_parser,
};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json, shown, warn_line};
use crate::sandbox::Plan;
use crate::session::{Operation, Session, changing, warn_repaired};
use crate::size::human;

/// Arguments of `commit`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "What the guest reads through the overlay is the same at every moment: the overlay keeps what it has until the \
base has it durably, and what was written is read back. A commit that was stopped or killed can be repeated.

Examples:
  qcowtool commit --dry-run overlay.qcow2
  qcowtool commit overlay.qcow2
  qcowtool commit -d overlay.qcow2
  qcowtool commit -b template.qcow2 --digest overlay.qcow2
  qcowtool commit --shared overlay.qcow2

", exit_codes!(
"  0    done
  1    refused or failed; the overlay reads as before, and the commit can be repeated")))]
pub(crate) struct Commit {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// Format of the overlay [default: detect from the header]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<Format>,

    /// Write into this image of the chain, by its path or as the image above names it, and leave the overlay and
    /// all between as they are [default: the immediate backing file]
    #[arg(short, long, value_name = "BASE")]
    base: Option<PathBuf>,

    /// Leave the overlay as it is, instead of emptying it
    #[arg(short, long)]
    drop: bool,

    /// Write into the base although other images have it for their backing file, too, and will read as something else
    #[arg(long)]
    shared: bool,

    /// Go on although internal snapshots of the overlay will read as something else
    #[arg(long)]
    change_snapshots: bool,

    /// Write nothing: print what would be written
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Also compare the CRC-32 of the guest's whole disk before and after, and print it
    #[arg(long)]
    digest: bool,

    /// Do not read back what was written
    #[arg(long)]
    no_verify: bool,

    #[command(flatten)]
    _cache: CacheArgs,

    /// Format of the backing file NAME whose overlay records no format; may be repeated
    #[arg(long, value_name = "[NAME=]FMT", value_parser = StatedFormat::parse)]
    backing_format: Vec<StatedFormat>,

    #[command(flatten)]
    chain: ChainArgs,

    #[command(flatten)]
    trust: TrustArgs,

    /// The overlay
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

impl Commit {
    /// Commits, and prints what was written.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let open = self
            .trust
            .binding(self.chain.open_options())
            .format(self.format)
            .backing_formats(backing_formats(&self.backing_format, false));
        let options = CommitOptions::default()
            .base(self.base.clone())
            .empty(!self.drop && self.base.is_none())
            .shared(self.shared)
            .change_snapshots(self.change_snapshots)
            .dry_run(self.dry_run)
            .digest(self.digest)
            .no_verify(self.no_verify)
            .threads(self.work.threads());
        let operation = Operation::start(&self.common, &self.work)?;
        let base = base_of(&self.path, &open, self.base.as_deref())?;
        let plan = Plan::new().chain(&self.path, &open).changing(&self.path).overwriting(&base);
        let plan = changing(plan, &base, &open.clone().format(None));
        let session = Session::start(&self.common, plan)?;
        self.common.verbosity.opening(&self.path, self.format);
        let open = open.cancel(operation.token());
        let outcome = operation.run(|observer, cancel| {
            let job = CommitJob::begin(&self.path, &open, &options)?;
            session.all_is_open()?;
            job.run(observer, cancel)
        })?;
        warn_repaired(&outcome.base, outcome.base_repaired, outcome.dry_run);
        warn_repaired(&outcome.filename, outcome.overlay_repaired, false);
        if self.common.format() == OutputFormat::Json {
            return print_json(&outcome);
        }
        if self.common.verbosity.quiet {
            return Ok(());
        }
        for name in &outcome.changed_snapshots {
            warn_line(format_args!(
                "the internal snapshot '{}' reads as something else",
                Escaped(name)
            ));
        }
        for path in &outcome.other_overlays {
            warn_line(format_args!("'{}' reads as something else", shown(path)));
        }
        if !outcome.emptied && !outcome.overlay_bitmaps.is_empty() {
            let names: Vec<_> =
                outcome.overlay_bitmaps.iter().map(|name| format!("'{}'", Escaped(name))).collect();
            warn_line(format_args!(
                "'{}' does not get the persistent bitmaps of '{}': {}",
                shown(&outcome.base),
                shown(&outcome.filename),
                names.join(", ")
            ));
        }
        print(text(&outcome))
    }
}

fn text(outcome: &CommitOutcome) -> String {
    let done = if outcome.dry_run { "would commit" } else { "committed" };
    let mut text = format!(
        "{done} '{}' into '{}': {} data, {} zeros\n",
        shown(&outcome.filename),
        shown(&outcome.base),
        human(outcome.data_bytes),
        human(outcome.zero_bytes),
    );
    if outcome.base_grown > 0 {
        text.push_str(&format!("the base grows by {}\n", human(outcome.base_grown)));
    }
    if outcome.emptied {
        text.push_str("the overlay is empty\n");
    }
    text.push_str(&proof(&outcome.crc32, outcome.verified, outcome.disk_crc32.as_deref()));
    text
}

/// What proves that the guest reads as before.
pub(crate) fn proof(crc32: &str, verified: bool, disk: Option<&str>) -> String {
    let mut text = String::new();
    if verified {
        text.push_str(&format!("read back, crc32 of what was written: {crc32}\n"));
    }
    if let Some(disk) = disk {
        text.push_str(&format!("crc32 of the disk, before and after: {disk}\n"));
    }
    text
}
