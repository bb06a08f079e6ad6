//! Transactions that were cut off, and how a later process ends them.

use std::path::{Path, PathBuf};

use qcow::CancelToken;

use super::{JOURNALS, Report, Run, RunContext};
use crate::facts::Route;
use crate::hosts::Connections;
use crate::journal::{Ended, Journal, Record, Transaction};
use crate::probe::PinnedFiles;
use crate::{Error, Remedy, Result};

/// A transaction whose run was cut off, found by its name. It has all that ending it takes: only its hosts have
/// to be reached, by its [`route`](Self::route).
///
/// ```no_run
/// # fn end(report: &dyn migrate::run::Report) -> migrate::Result<()> {
/// use migrate::run::CutOff;
/// let state = std::path::Path::new("/var/lib/control-plane");
/// let cut_off = CutOff::find(state, "20261122-175501-123-0badcafe")?;
/// if cut_off.close_if_not_begun()? {
///     return Ok(());
/// }
/// let hosts = cut_off.route()?.connect_by(|uri| todo!("connect to {uri}"))?;
/// let cancel = migrate::CancelToken::new();
/// let finished = cut_off.take_up(&hosts, report, &cancel)?.resume()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CutOff {
    state: PathBuf,
    transaction: Transaction,
    /// Deleted files that were held open went with the process that held them.
    pinned: PinnedFiles,
}

impl CutOff {
    /// The transaction `id`. `state` is the directory of journals and locks.
    ///
    /// # Errors
    /// As [`Journal::peek`].
    pub fn find(state: &Path, id: &str) -> Result<Self> {
        let transaction = Journal::peek(&state.join(JOURNALS), id)?;
        Ok(Self { state: state.to_path_buf(), transaction, pinned: PinnedFiles::of_guest(true) })
    }

    /// What its journal says.
    pub fn transaction(&self) -> &Transaction {
        &self.transaction
    }

    /// How its hosts are reached.
    ///
    /// # Errors
    /// [`Refused`](crate::ErrorKind::Refused) if it has ended, [`Environment`](crate::ErrorKind::Environment) if it
    /// was cut off before it wrote that down.
    pub fn route(&self) -> Result<&Route> {
        match (&self.transaction.facts, &self.transaction.route) {
            (Some(_), Some(route)) => Ok(route),
            _ if self.transaction.closed.is_some() => {
                let id = &self.transaction.id;
                Err(Error::refused(format!("the transaction {id} has ended")))
            }
            _ => Err(Error::environment("the run was cut off before it began")
                .hint(Remedy::RollBackNothing)),
        }
    }

    /// Ends it if it was cut off before it wrote down how to reach the hosts, which it does before anything
    /// else: nothing was made. Whether it did.
    ///
    /// # Errors
    /// As [`Journal::open`]: refused while a run that has just begun holds it.
    pub fn close_if_not_begun(&self) -> Result<bool> {
        let not_begun = |transaction: &Transaction| {
            transaction.closed.is_none()
                && transaction.route.is_none()
                && transaction.objects.is_empty()
        };
        if !not_begun(&self.transaction) {
            return Ok(false);
        }
        let mut journal = Journal::open(&self.state.join(JOURNALS), &self.transaction.id)?;
        let still = not_begun(journal.transaction());
        if still {
            journal.write(Record::Closed { result: Ended::RolledBack })?;
        }
        Ok(still)
    }

    /// Takes it up again, to [resume](Run::resume) it or to [roll it back](Run::roll_back).
    ///
    /// # Errors
    /// As [`route`](Self::route) and [`Run::again`].
    pub fn take_up<'a>(
        &'a self,
        connections: &'a Connections,
        report: &'a dyn Report,
        cancel: &'a CancelToken,
    ) -> Result<Run<'a>> {
        let route = self.route()?;
        let facts = self.transaction.facts.as_ref();
        let facts =
            facts.ok_or_else(|| Error::environment("the run was cut off before it began"))?;
        let context = RunContext {
            hosts: connections.hosts(),
            facts,
            pinned: &self.pinned,
            route,
            state: &self.state,
            report,
            cancel,
        };
        Run::again(&self.transaction.id, &context)
    }
}
