//! `qcowtool snapshot`: lists, takes, applies and deletes internal snapshots.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use qcow::chain::{Format, OpenOptions};
use qcow::ops::info::{InfoOptions, info};
use qcow::ops::snapshot::{BitmapRule, SnapshotOptions, SnapshotOutcome, apply, create, delete};
use qcow::{Error, Escaped};
use serde::Serialize;

use super::info::snapshot_list;
use crate::args::{Common, WorkArgs, exit_codes, format_parser};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json};
use crate::sandbox::Plan;
use crate::session::{Operation, Session, warn_repaired};
use crate::size::human;

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
#[command(
    override_usage = "qcowtool snapshot [OPTIONS] [-l | -c <NAME> | -a <SNAPSHOT> | -d <SNAPSHOT>] <PATH>",
    after_help = concat!(
    "SNAPSHOT is an ID or a name, or snapshot.id=ID or snapshot.name=NAME where that would be more than one. Without \
an action, the snapshots are listed.

The image is checked first, the new state is made beside the old one and checked too, and then one write to the \
header switches: a crash leaves the image as it was or as it is to be. An image that a guest uses is refused.

Examples:
  qcowtool snapshot vm.qcow2
  qcowtool snapshot -c before-upgrade vm.qcow2
  qcowtool snapshot -a before-upgrade --dry-run vm.qcow2
  qcowtool snapshot -a before-upgrade vm.qcow2
  qcowtool snapshot -d snapshot.id=1 vm.qcow2

", exit_codes!(
"  0    done
  1    refused or failed; one line on standard error says why, and the image is as it was")))]
pub(crate) struct Snapshot {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    action: Action,

    /// Image format [default: detect from the header]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<Format>,

    /// List the snapshots of an image that another process may be writing to, such as QEMU of a running guest
    #[arg(short = 'U', long, conflicts_with_all = ["create", "apply", "delete"])]
    force_share: bool,

    /// With -c: take the snapshot although another has the same name
    #[arg(long, requires = "create")]
    duplicate: bool,

    /// With -a: what becomes of persistent bitmaps, for which the disk changes unseen
    #[arg(long, value_enum, value_name = "WHAT", requires = "apply", default_value = "refuse")]
    bitmaps: Bitmaps,

    /// Print what would be done, without writing
    #[arg(long, conflicts_with = "list")]
    dry_run: bool,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// What is done.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Action {
    /// List all snapshots
    #[arg(short, long)]
    list: bool,

    /// Take a snapshot with this name
    #[arg(short, long, value_name = "NAME")]
    create: Option<String>,

    /// Make the disk what this snapshot is; what was written since it was taken, and is in no other, is lost
    #[arg(short, long, value_name = "SNAPSHOT")]
    apply: Option<String>,

    /// Delete this snapshot
    #[arg(short, long, value_name = "SNAPSHOT")]
    delete: Option<String>,
}

/// What becomes of persistent bitmaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bitmaps {
    /// An image with bitmaps is refused.
    Refuse,
    /// What changes is dirty in bitmaps that record writes, so that the next backup copies it.
    Mark,
    /// The bitmaps are removed, and the next backup is a full one.
    Drop,
}

/// An outcome, and what it is one of.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Done<'a> {
    action: &'static str,
    #[serde(flatten)]
    outcome: &'a SnapshotOutcome,
}

impl Snapshot {
    /// Does it, and says what was done.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Action { create: name, apply: applied, delete: deleted, .. } = &self.action;
        let wanted = name.as_ref().or(applied.as_ref()).or(deleted.as_ref());
        let Some(wanted) = wanted else { return self.list() };
        let operation = Operation::start(&self.common, &self.work)?;
        self.common.verbosity.opening(&self.path, self.format);
        let plan = Plan::new().image(&self.path).opened_again();
        let plan = if self.dry_run { plan } else { plan.changing(&self.path) };
        let bitmaps = match self.bitmaps {
            Bitmaps::Refuse => BitmapRule::Refuse,
            Bitmaps::Mark => BitmapRule::Mark,
            Bitmaps::Drop => BitmapRule::Drop,
        };
        let options = SnapshotOptions::default()
            .format(self.format)
            .dry_run(self.dry_run)
            .threads(self.work.threads())
            .duplicate(self.duplicate)
            .bitmaps(bitmaps);
        Session::start(&self.common, plan)?;
        let (action, work): (_, Work) = match (name, applied) {
            (Some(_), _) => ("create", create),
            (None, Some(_)) => ("apply", apply),
            (None, None) => ("delete", delete),
        };
        let outcome = operation
            .run(|observer, cancel| work(&self.path, wanted, &options, observer, cancel))?;
        warn_repaired(&self.path, outcome.repaired, outcome.dry_run);
        match self.common.format() {
            OutputFormat::Json => print_json(&Done { action, outcome: &outcome }),
            OutputFormat::Human if self.common.verbosity.quiet => Ok(()),
            OutputFormat::Human => print(text(action, &outcome)),
        }
    }

    /// Lists the snapshots, as QEMU does: nothing at all where there are none.
    fn list(&self) -> Result<(), Failure> {
        if self.dry_run {
            return Err(Error::usage("nothing is written when snapshots are listed").into());
        }
        let mut plan = Plan::new().image(&self.path);
        if self.common.format() == OutputFormat::Human {
            plan = plan.local_time();
        }
        Session::start(&self.common, plan)?;
        self.common.verbosity.opening(&self.path, self.format);
        let open = OpenOptions::default().format(self.format).force_share(self.force_share);
        let images = info(&self.path, &InfoOptions::default().open(open))?;
        let snapshots: Vec<_> = images.into_iter().flat_map(|image| image.snapshots).collect();
        match self.common.format() {
            OutputFormat::Json => print_json(&snapshots),
            OutputFormat::Human => print(snapshot_list(&snapshots)),
        }
    }
}

type Work = fn(
    &std::path::Path,
    &str,
    &SnapshotOptions,
    &dyn qcow::Observer,
    &qcow::CancelToken,
) -> qcow::Result<SnapshotOutcome>;

/// One line, and one for each thing that is not as before.
fn text(action: &str, outcome: &SnapshotOutcome) -> String {
    let done = match (action, outcome.dry_run) {
        ("create", false) => "Took",
        ("create", true) => "Would take",
        ("apply", false) => "Applied",
        ("apply", true) => "Would apply",
        (_, false) => "Deleted",
        (_, true) => "Would delete",
    };
    let mut text =
        format!("{done} snapshot {} '{}'.\n", Escaped(&outcome.id), Escaped(&outcome.name));
    if outcome.size != outcome.size_before {
        let (before, after) = (outcome.size_before, outcome.size);
        text.push_str(&format!("Disk size: {before} bytes before, {after} after.\n"));
    }
    if outcome.data_lost > 0 {
        let of = if action == "apply" { "the state before" } else { "it" };
        let lost = human(outcome.data_lost);
        let verb = if outcome.dry_run { "would go" } else { "are gone" };
        text.push_str(&format!("{lost} of data that only {of} had {verb}.\n"));
    }
    if outcome.bitmaps_marked > 0 {
        let verb = if outcome.dry_run { "would get" } else { "have" };
        let marked = outcome.bitmaps_marked;
        text.push_str(&format!("Bitmaps that {verb} what changed as dirty: {marked}.\n"));
    }
    if outcome.bitmaps_dropped > 0 {
        let verb = if outcome.dry_run { "would be removed" } else { "were removed" };
        text.push_str(&format!("Bitmaps that {verb}: {}.\n", outcome.bitmaps_dropped));
    }
    text
}
