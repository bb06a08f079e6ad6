//! `qcowtool rebase`: gives an image another backing file.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use qcow::chain::{Format, OpenOptions, resolve_name};
use qcow::ops::backing::{BackingFile, ChangeBackingOptions, ChangeBackingOutcome, change_backing};
use qcow::ops::rebase::{NewBacking, RebaseJob, RebaseOptions, RebaseOutcome};
use qcow::{Error, Escaped};

use super::commit::proof;
use crate::args::{
    CacheArgs, ChainArgs, Common, StatedFormat, TrustArgs, WorkArgs, backing_formats, exit_codes,
    format_parser,
};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json, shown, warn_line};
use crate::sandbox::Plan;
use crate::session::{Operation, Session, changing, warn_repaired};
use crate::size::human;

/// Arguments of `rebase`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "Ranges that the image does not have itself are compared through the old and the new backing file; what differs is \
copied into the image, made durable and read back, and only then the header names the new backing file. A rebase \
that was stopped or killed has left an image with its old backing file, only larger: it can be repeated.

With -u nothing is compared: only the name in the header changes, for a backing file that was moved or renamed.

Examples:
  qcowtool rebase -b new-template.qcow2 -F qcow2 overlay.qcow2
  qcowtool rebase -b new-template.qcow2 -F qcow2 --dry-run overlay.qcow2
  qcowtool rebase -b '' --digest overlay.qcow2
  qcowtool rebase -c -b none overlay.qcow2
  qcowtool rebase -u -b /moved/template.qcow2 -F qcow2 overlay.qcow2

", exit_codes!(
"  0    done
  1    refused or failed; the image reads as before, and the rebase can be repeated")))]
pub(crate) struct Rebase {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// Format of the image [default: detect from the header]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<Format>,

    /// The new backing file, relative to the image's directory; 'none' or an empty name: the image is to need none
    #[arg(short, long, value_name = "BACKING", required_unless_present = "unsafe_mode")]
    backing: Option<OsString>,

    /// Format of the new backing file; required with it
    #[arg(short = 'F', long = "new-format", value_name = "FMT", value_parser = format_parser())]
    new_format: Option<Format>,

    /// Change only the name in the header: the guest sees the same just if the new file has the old one's content
    #[arg(short = 'u', long = "backing-unsafe")]
    unsafe_mode: bool,

    /// With -u: the new backing file need not exist
    #[arg(long, requires = "unsafe_mode")]
    unchecked: bool,

    /// Compress the clusters that are copied
    #[arg(short, long, conflicts_with = "unsafe_mode")]
    compress: bool,

    /// Read the new backing file although another process may be writing to it
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Go on although internal snapshots will read as something else
    #[arg(long)]
    change_snapshots: bool,

    /// Write nothing: print what would be written
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Also compare the CRC-32 of the guest's whole disk before and after, and print it
    #[arg(long, conflicts_with = "unsafe_mode")]
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

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

impl Rebase {
    /// Rebases, and prints what was written.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let open = self
            .trust
            .binding(self.chain.open_options())
            .format(self.format)
            .backing_formats(backing_formats(&self.backing_format, false));
        let new = self.new_backing()?;
        let mut plan = changing(Plan::new().chain(&self.path, &open), &self.path, &open);
        if let Some((name, _)) = &new
            && let Ok(file) = resolve_name(name, &self.path, &open.working_directory)
        {
            plan = plan.chain(&file, &open);
        }
        if self.unsafe_mode {
            return self.change_name(new, open, plan);
        }
        let backing = new.map(|(name, format)| {
            let open = OpenOptions::default()
                .policy(open.policy.clone())
                .limits(open.limits.clone())
                .force_share(self.force_share);
            NewBacking::new(name, format).open(open)
        });
        let options = RebaseOptions::default()
            .backing(backing)
            .compress(self.compress)
            .change_snapshots(self.change_snapshots)
            .dry_run(self.dry_run)
            .digest(self.digest)
            .no_verify(self.no_verify)
            .threads(self.work.threads());
        let operation = Operation::start(&self.common, &self.work)?;
        let session = Session::start(&self.common, plan)?;
        self.common.verbosity.opening(&self.path, self.format);
        let open = open.cancel(operation.token());
        let outcome = operation.run(|observer, cancel| {
            let job = RebaseJob::begin(&self.path, &open, &options)?;
            session.all_is_open()?;
            job.run(observer, cancel)
        })?;
        warn_repaired(&outcome.filename, outcome.repaired, outcome.dry_run);
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
        print(text(&outcome))
    }

    /// The new backing file and its format; none if the image is to have none.
    fn new_backing(&self) -> Result<Option<(PathBuf, Format)>, Failure> {
        let name = self.backing.clone().unwrap_or_default();
        if name.is_empty() || name == "none" {
            return match self.new_format {
                Some(_) => Err(Error::usage("a backing format is given, but no backing file")
                    .hint("name it with -b")
                    .into()),
                None => Ok(None),
            };
        }
        match self.new_format {
            Some(format) => Ok(Some((name.into(), format))),
            None => Err(Error::usage("a backing file is given, but not its format")
                .hint("state it with -F qcow2 or -F raw")
                .into()),
        }
    }

    /// Changes the header, and nothing else.
    fn change_name(
        &self,
        new: Option<(PathBuf, Format)>,
        open: OpenOptions,
        plan: Plan,
    ) -> Result<(), Failure> {
        Session::start(&self.common, plan)?;
        let backing = new.map(|(name, format)| BackingFile::new(name, format.as_str()));
        let options = ChangeBackingOptions::default()
            .unchecked(self.unchecked)
            .dry_run(self.dry_run)
            .open(open);
        let outcome = change_backing(&self.path, backing.as_ref(), &options)?;
        match self.common.format() {
            OutputFormat::Json => print_json(&outcome),
            OutputFormat::Human if self.common.verbosity.quiet => Ok(()),
            OutputFormat::Human => print(renamed(&outcome)),
        }
    }
}

fn text(outcome: &RebaseOutcome) -> String {
    let done = if outcome.dry_run { "would rebase" } else { "rebased" };
    let to = outcome.backing_filename.as_ref();
    let to = to.map_or_else(|| "no backing file".to_owned(), |name| format!("'{}'", Escaped(name)));
    let mut text = format!(
        "{done} '{}' to {to}: {} data and {} zeros copied\n",
        shown(&outcome.filename),
        human(outcome.data_bytes),
        human(outcome.zero_bytes),
    );
    text.push_str(&proof(&outcome.crc32, outcome.verified, outcome.disk_crc32.as_deref()));
    text
}

fn renamed(outcome: &ChangeBackingOutcome) -> String {
    let shown_name = |name: &Option<String>| match name {
        Some(name) => format!("'{}'", Escaped(name)),
        None => "none".to_owned(),
    };
    let done = if outcome.dry_run { "would change" } else { "changed" };
    format!(
        "{done} the backing file of '{}' from {} to {}, in the header only\n",
        shown(&outcome.filename),
        shown_name(&outcome.old_backing),
        shown_name(&outcome.new_backing),
    )
}
