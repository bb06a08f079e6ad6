//! `qcowtool transactions`, `resume` and `rollback`: what became of earlier runs, and their end.

use std::fmt::Write;

use clap::Args;
use migrate::Error;
use migrate::journal::{Ended, Journal, RolledBack, Transaction};
use migrate::run::{CutOff, Run, expire};
use serde::Serialize;

use super::args::reach;
use super::migrate::in_words;
use super::progress::ProgressReporter;
use super::{State, migration_codes};
use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::output::{OutputFormat, eprint_line, print, print_json, shown};
use crate::progress::When;
use crate::signals::Watch;

/// Arguments of `transactions`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "Lists the runs of migrate and prepare on this host: those that have ended, and interrupted ones that \
wait for 'qcowtool resume' or 'qcowtool rollback'.

Examples:
  qcowtool transactions
  qcowtool transactions --open --output json
  qcowtool transactions --expire    # from a timer, once a day

", migration_codes!()))]
pub(crate) struct Transactions {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    state: State,

    /// List only transactions that have not ended
    #[arg(long)]
    open: bool,

    /// First remove archived source files whose retention time (--retain) is over
    #[arg(long)]
    expire: bool,
}

/// Arguments of `resume`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "Continues an interrupted run: waits for libvirt's job if it is still running, asks both hosts where the guest \
runs, then completes the migration or rolls it back.

Examples:
  qcowtool resume 20261122-175501-123-0badcafe

", migration_codes!()))]
pub(crate) struct Resume {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    ending: Ending,
}

/// Arguments of `rollback`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "Stops libvirt if it is still at it, and removes exactly what the transaction made. Refused once the \
guest has arrived.

Examples:
  qcowtool rollback 20261122-175501-123-0badcafe

", migration_codes!()))]
pub(crate) struct Rollback {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    ending: Ending,

    /// End the transaction although files that it created remain
    #[arg(long)]
    leave: bool,
}

/// Which transaction is to be ended, and how its hosts are reached.
#[derive(Debug, Args)]
struct Ending {
    /// Transaction ID
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    state: State,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Listed {
    transaction: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    begun: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<String>,
    made: Vec<String>,
    kept: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Transactions {
    /// Lists them.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut left = None;
        if self.expire {
            for expired in expire(self.state.directory(), jiff::Timestamp::now())? {
                match expired.removed {
                    Ok(()) => eprint_line(format_args!("removed: '{}'", shown(&expired.path))),
                    // The first decides how this ends: a timer must notice.
                    Err(error) if left.is_none() => left = Some(error),
                    Err(error) => eprint_line(format_args!("kept: {error}")),
                }
            }
        }
        let mut all: Vec<_> = Journal::list(&self.state.journals())?
            .into_iter()
            .map(|listed| match listed.transaction {
                Ok(transaction) => listed_as(&transaction),
                Err(error) => unreadable(listed.id, &error),
            })
            .collect();
        all.retain(|listed| !self.open || matches!(listed.state, "open" | "unreadable"));
        match self.output.output {
            OutputFormat::Json => print_json(&all)?,
            OutputFormat::Human => print(table(&all))?,
        }
        left.map_or(Ok(()), |error| Err(error.into()))
    }
}

fn listed_as(transaction: &Transaction) -> Listed {
    Listed {
        transaction: transaction.id.clone(),
        begun: Some(transaction.begun.clone()),
        domain: Some(transaction.plan.domain.clone()),
        to: Some(transaction.plan.to.clone()),
        state: match transaction.closed {
            None => "open",
            Some(Ended::Done) => "done",
            Some(Ended::RolledBack) => "rolled-back",
        },
        phase: transaction.phase.as_ref().map(|(_, name)| name.clone()),
        made: transaction.objects.iter().map(|made| shown(&made.path)).collect(),
        kept: transaction.renamed.iter().map(|renamed| shown(&renamed.to)).collect(),
        error: None,
    }
}

fn unreadable(transaction: String, error: &Error) -> Listed {
    Listed {
        transaction,
        begun: None,
        domain: None,
        to: None,
        state: "unreadable",
        phase: None,
        made: Vec::new(),
        kept: Vec::new(),
        error: Some(error.to_string()),
    }
}

fn table(all: &[Listed]) -> String {
    let mut text = String::new();
    for one in all {
        let domain = one.domain.as_deref().unwrap_or_default();
        let to = one.to.as_deref().unwrap_or_default();
        let _ = writeln!(text, "{}  {:11}  {domain} to {to}", one.transaction, one.state);
        if let (Some(phase), "open") = (&one.phase, one.state) {
            let _ = writeln!(text, "    interrupted in phase: {phase}");
        }
        for path in one.made.iter().filter(|_| one.state == "open") {
            let _ = writeln!(text, "    created at the destination: '{path}'");
        }
        for path in &one.kept {
            let _ = writeln!(text, "    kept at the source: '{path}'");
        }
        if let Some(error) = &one.error {
            let _ = writeln!(text, "    {error}");
        }
    }
    text
}

impl Ending {
    /// The transaction.
    fn cut_off(&self) -> Result<CutOff, Failure> {
        Ok(CutOff::find(self.state.directory(), &self.id)?)
    }

    /// Takes the transaction up again and hands it to `act`.
    fn run<T>(
        &self,
        cut_off: &CutOff,
        act: impl FnOnce(Run<'_>, &Watch) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let hosts = reach(cut_off.route()?)?;
        let watch = Watch::start()?;
        let reporter = ProgressReporter::new(When::Auto, false);
        let run = cut_off.take_up(&hosts, &reporter, watch.token())?;
        let done = act(run, &watch);
        reporter.finish();
        done
    }
}

impl Resume {
    /// Ends it forwards.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let finished = {
            let cut_off = self.ending.cut_off()?;
            self.ending.run(&cut_off, |run, watch| watch.settle_migration(run.resume()))?
        };
        match self.output.output {
            OutputFormat::Json => print_json(&finished),
            OutputFormat::Human => print(in_words(&finished)),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct RollbackReport {
    removed: Vec<String>,
    left: Vec<String>,
    complete: bool,
}

impl Rollback {
    /// Ends it backwards.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let leave = self.leave;
        let cut_off = self.ending.cut_off()?;
        let done = match cut_off.close_if_not_begun()? {
            true => RolledBack::default(),
            false => self
                .ending
                .run(&cut_off, |run, watch| watch.settle_migration(run.roll_back(leave)))?,
        };
        let rolled_back = RollbackReport {
            removed: done.removed.iter().map(|(_, path)| shown(path)).collect(),
            left: done
                .left
                .iter()
                .map(|left| format!("{}: {}", shown(&left.path), left.why))
                .collect(),
            complete: done.is_complete(),
        };
        match self.output.output {
            OutputFormat::Json => print_json(&rolled_back)?,
            OutputFormat::Human => {
                for path in &rolled_back.removed {
                    print(format_args!("removed: '{path}'\n"))?;
                }
                for left in &rolled_back.left {
                    eprint_line(format_args!("left: {left}"));
                }
            }
        }
        if rolled_back.complete || leave {
            return Ok(());
        }
        Err(Error::environment("not everything could be removed")
            .hint("remove it by hand if it is not needed, then end the transaction with --leave")
            .into())
    }
}
