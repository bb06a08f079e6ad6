//! The work of an evacuation done by migrations of this crate.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use qcow::CancelToken;

use super::journal::Orders;
use super::report::{Moved, Outcome};
use super::run::Work;
use super::value::Assignment;
use crate::facts::Route;
use crate::hosts::{Connected, Connections};
use crate::journal::{Ended, Journal, Transaction};
use crate::plan::{Policy, plan};
use crate::probe::{Probed, Probing, probe};
use crate::run::{CutOff, Finished, JOURNALS, Report, Run, RunContext};
use crate::{Error, Result};

/// Runs programs of the operator around each guest.
pub trait Programs: Sync {
    /// Before it; an error keeps it where it is.
    ///
    /// # Errors
    /// Why it shall stay.
    fn before(&self, guest: &Assignment) -> Result<()>;

    /// After it.
    ///
    /// # Errors
    /// What is wrong.
    fn after(&self, outcome: &Outcome) -> Result<()>;
}

/// Connections that one guest has used, and the next one to the same destination may use. To log in at the destination takes
/// longer than to examine a guest.
#[derive(Debug, Default)]
pub struct Spare(Mutex<Vec<Connections>>);

impl Spare {
    fn all(&self) -> MutexGuard<'_, Vec<Connections>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps them.
    pub fn put(&self, connections: Connections) {
        self.all().push(connections);
    }

    /// Some that lead to this destination, if there are any that still do.
    fn take(&self, to: &str) -> Option<Connections> {
        loop {
            let found = {
                let mut all = self.all();
                let at = all.iter().position(|connections| connections.route().to == to)?;
                all.swap_remove(at)
            };
            if found.is_alive() {
                return Some(found);
            }
        }
    }

    /// Something is wrong: what is kept may be, too.
    fn clear(&self) {
        let old = std::mem::take(&mut *self.all());
        // They take their leave of the other end, which may take a moment.
        drop(old);
    }
}

/// Migrates guests as `migrate` does: each is examined and planned anew when its turn comes.
#[derive(Clone, Copy)]
pub struct Migrations<'a> {
    /// The destinations.
    pub orders: &'a Orders,
    /// Connects to a libvirt.
    pub connect: &'a (dyn Fn(&str) -> Result<Connected> + Sync),
    /// Programs around each guest.
    pub programs: &'a dyn Programs,
    /// Connections that are not in use.
    pub spare: &'a Spare,
    /// Directory of journals and locks.
    pub state: &'a Path,
    /// Directory where digests are kept; `None` keeps none.
    pub cache: Option<&'a Path>,
}

impl std::fmt::Debug for Migrations<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Migrations").field("orders", &self.orders).finish_non_exhaustive()
    }
}

impl Migrations<'_> {
    /// How a guest's destination is reached, and what is wanted there.
    fn way(&self, guest: &Assignment) -> Result<(Route, &Policy)> {
        let way = self.orders.ways.iter().find(|(route, _)| route.to == guest.to);
        let (route, policy) =
            way.ok_or_else(|| Error::usage(format!("{} is no destination", guest.to)))?;
        Ok((Route { domain: guest.uuid.clone(), ..route.clone() }, policy))
    }

    fn reach(&self, route: &Route) -> Result<Connections> {
        route.connect_by(|uri| (self.connect)(uri))
    }

    /// Examines the guest, plans and moves it.
    fn migrate_over(
        &self,
        connections: &Connections,
        policy: &Policy,
        report: &dyn Report,
        cancel: &CancelToken,
    ) -> Result<Moved> {
        let route = connections.route();
        let observer = report.observer();
        let probing = Probing { policy, cache: self.cache, observer, cancel };
        let Probed { facts, pinned } = probe(&connections.hosts(), &route.domain, &probing)?;
        let plan = plan(&facts, policy).map_err(|refusals| {
            let first = refusals.first().map(|refusal| refusal.way_out.clone());
            let all: Vec<_> = (refusals.iter())
                .map(|refusal| {
                    let disk = refusal.disk.as_ref().map(|disk| format!("{disk}: "));
                    format!("{}: {}{}", refusal.code, disk.unwrap_or_default(), refusal.message)
                })
                .collect();
            let error = Error::refused(all.join("; "));
            match first {
                Some(way_out) => error.hint(way_out),
                None => error,
            }
        })?;
        let context = RunContext {
            hosts: connections.hosts(),
            facts: &facts,
            pinned: &pinned,
            route,
            state: self.state,
            report,
            cancel,
        };
        Ok(moved(Run::begin(&plan, &context)?.migrate()?))
    }

    /// The guest's last run since `begun`.
    fn last_run(&self, uuid: &str, begun: &str) -> Result<Option<Transaction>> {
        let begun = begun.parse::<jiff::Timestamp>().ok();
        let since =
            |transaction: &Transaction| transaction.begun.parse::<jiff::Timestamp>().ok() >= begun;
        let listed = Journal::list(&self.state.join(JOURNALS))?;
        let of_guest = listed.into_iter().filter_map(|listed| listed.transaction.ok());
        Ok(of_guest.filter(|it| it.plan.uuid == uuid && since(it)).last())
    }
}

impl Work for Migrations<'_> {
    fn before(&self, guest: &Assignment) -> Result<()> {
        self.programs.before(guest)
    }

    fn after(&self, outcome: &Outcome) -> Result<()> {
        self.programs.after(outcome)
    }

    fn migrate(
        &self,
        guest: &Assignment,
        bandwidth: Option<u64>,
        report: &dyn Report,
        cancel: &CancelToken,
    ) -> Result<Moved> {
        let (route, policy) = self.way(guest)?;
        let policy = policy.clone().bandwidth(bandwidth);
        let connections = match self.spare.take(&route.to) {
            Some(spare) => spare.for_guest(&route.domain),
            None => self.reach(&route)?,
        };
        let moved = self.migrate_over(&connections, &policy, report, cancel);
        match &moved {
            Ok(_) => self.spare.put(connections),
            Err(_) => self.spare.clear(),
        }
        moved
    }

    fn settle(
        &self,
        guest: &Assignment,
        begun: &str,
        report: &dyn Report,
        cancel: &CancelToken,
    ) -> Result<Option<Moved>> {
        // Killed before it had a run of its own: nothing was made.
        let Some(transaction) = self.last_run(&guest.uuid, begun)? else { return Ok(None) };
        match transaction.closed {
            Some(Ended::RolledBack) => return Ok(None),
            Some(Ended::Done) => {
                return Ok(Some(Moved { transaction: Some(transaction.id), ..Moved::default() }));
            }
            None => {}
        }
        let cut_off = CutOff::find(self.state, &transaction.id)?;
        if cut_off.close_if_not_begun()? {
            return Ok(None);
        }
        let connections = self.reach(cut_off.route()?)?;
        match cut_off.take_up(&connections, report, cancel)?.resume() {
            Ok(finished) => Ok(Some(moved(finished))),
            // That it did not move is no failure of ours, if all was put back.
            Err(error) => {
                let now = Journal::peek(&self.state.join(JOURNALS), &transaction.id)?;
                match now.closed {
                    Some(Ended::RolledBack) => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }
}

fn moved(finished: Finished) -> Moved {
    Moved {
        transaction: Some(finished.transaction),
        elapsed_ms: finished.elapsed_ms,
        verified: Some(finished.verified),
        stopped: finished.stopped,
    }
}
