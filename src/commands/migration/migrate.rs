//! `qcowtool migrate` and `qcowtool prepare`: a plan is carried out, all of it or up to libvirt's part.

use std::path::{Path, PathBuf};

use clap::Args;
use migrate::Error;
use migrate::plan::{CopyMode, Flag, Plan, plan};
use migrate::probe::Probed;
use migrate::run::{Finished, Run, RunContext, Verified};
use serde::Serialize;

use super::args::{PolicyArgs, RouteArgs, reach};
use super::plan::refuse;
use super::progress::ProgressReporter;
use super::{State, look, migration_codes};
use crate::args::{OutputArgs, Verbosity};
use crate::failure::Failure;
use crate::output::{OutputFormat, eprint_lines, print, print_json, shown};
use crate::progress::When;
use crate::remedies::reworded;
use crate::signals::Watch;

/// What `migrate` and `prepare` share.
#[derive(Debug, Args)]
struct Work {
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    state: State,
    #[command(flatten)]
    verbosity: Verbosity,

    /// Carry out this plan of 'qcowtool plan --output json', if both hosts are unchanged
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,

    /// Show progress on standard error: as bars on a terminal; otherwise as lines, only with 'always'
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    progress: When,
}

/// Arguments of `migrate`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "Plans, prepares the destination, has libvirt migrate the guest, asks both hosts where it runs, compares, and \
archives the source files under another name. If a step fails, all changes are rolled back and the guest \
continues on the source. A run that was killed is listed by 'qcowtool transactions' and completed by \
'qcowtool resume' or undone by 'qcowtool rollback'.

A guest that is shut off is copied as files.

Examples:
  qcowtool migrate web-1 --to qemu+tls://host-b/system
  qcowtool migrate web-1 --to qemu+ssh://host-b/system -e 'ssh host-b' --policy thin
  qcowtool migrate web-1 --to qemu+tls://host-b/system --dry-run
  qcowtool migrate web-1 --to qemu+tls://host-b/system --plan plan.json --verify content
  qcowtool migrate --domain-xml web-1.xml --source-root /mnt/a --to dir:/mnt/b

", migration_codes!()))]
pub(crate) struct Migrate {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    work: Work,

    /// Print the plan without carrying it out, as 'qcowtool plan' does
    #[arg(long)]
    dry_run: bool,
}

/// Arguments of `prepare`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "For a manager that calls libvirt itself: creates and verifies the images at the destination, and prints the \
flags, disks and XML with which to call virDomainMigrateToURI3. 'qcowtool rollback ID' removes what was \
created, and nothing else.

Examples:
  qcowtool prepare web-1 --to qemu+tls://host-b/system --output json
  qcowtool prepare --domain-xml web-1.xml --running --source-root /mnt/a --to dir:/mnt/b

", migration_codes!()))]
pub(crate) struct Prepare {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    work: Work,
}

/// What a manager has to tell libvirt.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Prepared<'a> {
    transaction: &'a str,
    copy: CopyMode,
    flags: &'a [Flag],
    migrate_disks: &'a [String],
    detect_zeroes: &'a [String],
    bandwidth_mib: Option<u64>,
    destination_xml: &'a str,
    persistent_xml: Option<&'a str>,
    plan: &'a Plan,
}

impl Migrate {
    /// Moves the guest.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let format = self.output.output;
        let (dry_run, quiet) = (self.dry_run, self.work.verbosity.quiet);
        self.work.run(format, |plan, context, watch| {
            if dry_run {
                return match format {
                    OutputFormat::Json => print_json(plan),
                    OutputFormat::Human => print(plan),
                };
            }
            let run = watch.settle_migration(Run::begin(plan, context))?;
            let finished = watch.settle_migration(run.migrate())?;
            match format {
                OutputFormat::Json => print_json(&finished),
                OutputFormat::Human if quiet => Ok(()),
                OutputFormat::Human => print(in_words(&finished)),
            }
        })
    }
}

impl Prepare {
    /// Makes the targets.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let format = self.output.output;
        self.work.run(format, |plan, context, watch| {
            let run = watch.settle_migration(Run::begin(plan, context))?;
            let id = watch.settle_migration(run.prepare())?;
            let prepared = Prepared {
                transaction: &id,
                copy: plan.copy,
                flags: &plan.flags,
                migrate_disks: &plan.migrate_disks,
                detect_zeroes: &plan.detect_zeroes,
                bandwidth_mib: plan.bandwidth_mib,
                destination_xml: &plan.destination_xml,
                persistent_xml: plan.persistent_xml.as_deref(),
                plan,
            };
            match format {
                OutputFormat::Json => print_json(&prepared),
                OutputFormat::Human => {
                    print(format_args!("{}\nprepared as transaction {id}\n", plan))
                }
            }
        })
    }
}

impl Work {
    /// Looks, plans, and hands over to `act`.
    fn run(
        self,
        format: OutputFormat,
        act: impl FnOnce(&Plan, &RunContext<'_>, &Watch) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let kept = self.plan.as_deref().map(read).transpose()?;
        let reached = reach(&self.route.route()?)?;
        let policy = match &kept {
            Some(plan) => plan.policy.clone(),
            None => self.policy.policy(&reached)?,
        };
        let watch = Watch::start()?;
        let probed = look(&reached, &policy, &self.state, self.progress, &watch)?;
        let plan = match kept {
            Some(plan) => plan,
            None => plan(&probed.facts, &policy)
                .map_err(|refusals| reworded(refusals, "migrate"))
                .map_err(|refusals| refuse(refusals, format, |text| eprint_lines(&text)))?,
        };
        if self.verbosity.verbose {
            eprint_lines(&plan.to_string())?;
        }
        let reporter = ProgressReporter::new(self.progress, self.verbosity.quiet);
        let Probed { facts, pinned } = &probed;
        let hosts = reached.hosts();
        let state = self.state.directory();
        let context = RunContext {
            hosts,
            facts,
            pinned,
            route: reached.route(),
            state,
            report: &reporter,
            cancel: watch.token(),
        };
        let done = act(&plan, &context, &watch);
        reporter.finish();
        done
    }
}

fn read(path: &Path) -> migrate::Result<Plan> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::usage(format!("{} could not be read: {error}", shown(path))))?;
    Plan::from_json(&text)
}

/// The outcome as text.
pub(crate) fn in_words(finished: &Finished) -> String {
    let Finished { domain, to, elapsed_ms, verified, retained, stopped, transaction, .. } =
        finished;
    let seconds = elapsed_ms / 1000;
    let tenths = elapsed_ms % 1000 / 100;
    let compared = match verified {
        Verified::Nothing => "nothing was compared",
        Verified::Structure => "headers and chains were compared",
        Verified::Sample => "parts of the content were compared",
        Verified::Content => "all content was compared",
    };
    let mut text = format!("{domain} is at {to} after {seconds}.{tenths} s; {compared}\n");
    for file in retained {
        text += &match &file.is {
            Some(kept) => format!("kept: '{}'\n", shown(kept)),
            None => format!("removed: '{}'\n", shown(&file.was)),
        };
    }
    if let Some(stopped) = stopped {
        text += &format!("{stopped}\n");
    }
    text += &format!("transaction {transaction}\n");
    text
}
