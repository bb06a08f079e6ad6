//! Carries out plans, each step under a journal: prepare, migrate, look where the guest is, verify,
//! resume, put the source's files away; or put everything back.

mod archive;
mod call;
mod cut_off;
mod expire;
mod offline;
mod outcome;
mod report;
mod settle;
mod still;
mod verify;

use std::path::Path;
use std::time::Instant;

use qcow::CancelToken;

use crate::facts::{DomainState, Facts, Route};
use crate::journal::{DomainLock, Ended, Journal, Record, RolledBack, roll_back};
use crate::plan::{Mode, Plan};
use crate::prepare::Preparation;
use crate::probe::{Hosts, PinnedFiles};
use crate::store::LocalStore;
use crate::{Error, ErrorKind, Remedy, Result};

pub use cut_off::CutOff;
pub use expire::{Expired, expire};
use outcome::GuestLocation;
pub use report::{Finished, Phase, Report, Retained, Verified};

/// Where journals are, below the state directory.
pub const JOURNALS: &str = "transactions";

/// A plan that is being carried out.
pub struct Run<'a> {
    /// Both hosts.
    hosts: Hosts<'a>,
    /// The files of the guest's own host.
    source_store: LocalStore,
    facts: &'a Facts,
    pinned: &'a PinnedFiles,
    journal: Journal,
    report: &'a dyn Report,
    cancel: &'a CancelToken,
    /// Keeps others away from this guest.
    _lock: DomainLock,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("journal", &self.journal).finish_non_exhaustive()
    }
}

/// What a run needs besides its plan.
#[derive(Clone, Copy)]
pub struct RunContext<'a> {
    /// Both hosts.
    pub hosts: Hosts<'a>,
    /// What a probe found just now; the plan must be of these facts.
    pub facts: &'a Facts,
    /// Deleted files that the probe holds open.
    pub pinned: &'a PinnedFiles,
    /// How both hosts are reached.
    pub route: &'a Route,
    /// Directory of journals and locks.
    pub state: &'a Path,
    /// Is told what happens.
    pub report: &'a dyn Report,
    /// Stops it: the run is rolled back.
    pub cancel: &'a CancelToken,
}

impl std::fmt::Debug for RunContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunContext").field("state", &self.state).finish_non_exhaustive()
    }
}

impl<'a> Run<'a> {
    /// Begins to carry out `plan`.
    ///
    /// # Errors
    /// [`Changed`](ErrorKind::Changed) if the plan was made of other facts,
    /// [`Refused`](ErrorKind::Refused) if another run is at this guest,
    /// [`Environment`](ErrorKind::Environment) if there can be no journal.
    pub fn begin(plan: &Plan, context: &RunContext<'a>) -> Result<Self> {
        if plan.facts != context.facts.fingerprint() {
            return Err(Error::changed("a host is no longer as it was when the plan was made")
                .hint("plan again, and look what is different"));
        }
        let lock = DomainLock::take(context.state, &plan.uuid)?;
        let mut journal = Journal::create(&context.state.join(JOURNALS), plan)?;
        let (facts, route) = (Box::new(context.facts.clone()), Box::new(context.route.clone()));
        journal.write(Record::Begun { facts, route })?;
        Self::over(journal, lock, context)
    }

    /// Takes up the transaction `id` again.
    ///
    /// # Errors
    /// As [`Journal::open`]; [`Refused`](ErrorKind::Refused) if another run is at this guest.
    pub fn again(id: &str, context: &RunContext<'a>) -> Result<Self> {
        let journal = Journal::open(&context.state.join(JOURNALS), id)?;
        let lock = DomainLock::take(context.state, &journal.transaction().plan.uuid)?;
        Self::over(journal, lock, context)
    }

    fn over(journal: Journal, lock: DomainLock, context: &RunContext<'a>) -> Result<Self> {
        Ok(Self {
            hosts: context.hosts,
            source_store: LocalStore::new(context.hosts.source_root)?,
            facts: context.facts,
            pinned: context.pinned,
            journal,
            report: context.report,
            cancel: context.cancel,
            _lock: lock,
        })
    }

    /// Name of the transaction.
    pub fn id(&self) -> &str {
        &self.journal.transaction().id
    }

    fn plan(&self) -> &Plan {
        &self.journal.transaction().plan
    }

    fn phase(&mut self, phase: Phase) -> Result<()> {
        let name = phase.name().to_owned();
        self.journal.write(Record::Phase { number: phase.number(), name })?;
        self.report.phase(phase);
        Ok(())
    }

    /// Creates what must be at the destination, and leaves the rest to the caller. If that fails,
    /// the run is rolled back.
    ///
    /// # Errors
    /// What went wrong first; what could not be rolled back is named in it.
    pub fn prepare(mut self) -> Result<String> {
        match self.make_targets() {
            Ok(()) => Ok(self.id().to_owned()),
            Err(error) => Err(self.roll_back_after(error)),
        }
    }

    /// Carries out the whole plan. If it fails, the run is rolled back as far as both hosts can be reached.
    ///
    /// # Errors
    /// What went wrong first, by the caller's next step: see [`ErrorKind`].
    pub fn migrate(mut self) -> Result<Finished> {
        let start = Instant::now();
        if let Err(error) = self.make_targets() {
            return Err(self.roll_back_after(error));
        }
        if self.plan().mode == Mode::Offline {
            return match self.move_definition() {
                Ok(verified) => self.finish(start, verified),
                Err(error) => Err(self.roll_back_after(error)),
            };
        }
        let called = self.call();
        self.settle(start, called)
    }

    /// Goes on where a run was cut off: waits for libvirt if it is still at it, then finds out where the
    /// guest is, and does what is left to do there.
    ///
    /// # Errors
    /// As [`migrate`](Self::migrate).
    pub fn resume(self) -> Result<Finished> {
        self.not_ended()?;
        let start = Instant::now();
        if self.defined_at_destination()? {
            return self.finish(start, Verified::Content);
        }
        if !self.journal.transaction().migrate_called {
            self.not_moved_by_another_program()?;
            let error = Error::environment("the run was cut off before the guest could move")
                .hint("the run was rolled back: migrate again");
            return Err(self.roll_back_after(error));
        }
        self.wait_for_job()?;
        self.settle(start, Err(Error::environment("the migration did not succeed")))
    }

    /// Puts everything back: stops libvirt if it is at it, and removes what this transaction made. What
    /// cannot be proven to be that is left and named; with `leave` the transaction ends all the same.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) if the guest has moved already, [`InDoubt`](ErrorKind::InDoubt) if
    /// that is not known.
    pub fn roll_back(mut self, leave: bool) -> Result<RolledBack> {
        self.not_ended()?;
        let uuid = self.plan().uuid.clone();
        if self.defined_at_destination()? {
            self.undefine_at_destination()?;
        } else if !self.journal.transaction().migrate_called {
            self.not_moved_by_another_program()?;
        } else {
            let _ = self.hosts.source.abort(&uuid);
            match self.look()? {
                GuestLocation::Source | GuestLocation::SourceStopped => {}
                GuestLocation::Destination => {
                    return Err(Error::refused("the guest has arrived at the destination")
                        .hint(Remedy::Resume(self.id().to_owned())));
                }
                other => return Err(self.in_doubt(other)),
            }
        }
        let done = roll_back(&mut self.journal, &self.source_store, self.hosts.store)?;
        if leave && !done.is_complete() {
            self.journal.write(Record::Closed { result: Ended::RolledBack })?;
        }
        let _ = self.refresh();
        Ok(done)
    }

    /// The guest is one that is shut off, and this run has defined it at the destination, or was about to
    /// and another program has.
    fn defined_at_destination(&self) -> Result<bool> {
        let offline = self.plan().mode == Mode::Offline && self.has_begun(Phase::Define);
        Ok(offline && self.hosts.destination.state(&self.plan().uuid)?.is_some())
    }

    fn has_begun(&self, phase: Phase) -> bool {
        self.journal.transaction().furthest >= phase.number()
    }

    /// Whoever asked for a preparation may have moved the guest since. Then the images are its disks.
    fn not_moved_by_another_program(&self) -> Result<()> {
        match self.hosts.destination.state(&self.plan().uuid)? {
            None => Ok(()),
            Some(_) => {
                Err(Error::refused("the destination has the guest: the images are its disks")
                    .hint("undefine it there first, if that is wrong"))
            }
        }
    }

    /// Takes that back, as long as the source still has the guest, and all of its files under their names.
    fn undefine_at_destination(&self) -> Result<()> {
        let uuid = &self.plan().uuid;
        let shut_off = Some(DomainState::ShutOff);
        if self.has_begun(Phase::Archive)
            || self.hosts.source.state(uuid)? != shut_off
            || self.hosts.destination.state(uuid)? != shut_off
        {
            return Err(Error::refused("the guest has arrived at the destination")
                .hint(Remedy::Resume(self.id().to_owned())));
        }
        self.hosts.destination.undefine(uuid)
    }

    fn not_ended(&self) -> Result<()> {
        match self.journal.transaction().closed {
            Some(_) => Err(Error::refused(format!("the transaction {} has ended", self.id()))),
            None => Ok(()),
        }
    }

    fn make_targets(&mut self) -> Result<()> {
        self.phase(Phase::Prepare)?;
        let plan = self.plan().clone();
        Preparation {
            plan: &plan,
            facts: self.facts,
            pinned: self.pinned,
            destination: self.hosts.destination,
            store: self.hosts.store,
            journal: &mut self.journal,
            observer: self.report.observer(),
            cancel: self.cancel,
        }
        .run()?;
        self.lower_layers_are_still_the_same()?;
        self.targets_are_still_ours()?;
        self.cancel.check().map_err(Error::from)
    }

    /// Undoes what was made, because of `error`.
    fn roll_back_after(mut self, error: Error) -> Error {
        self.report.phase(Phase::RollBack);
        if matches!(self.defined_at_destination(), Ok(true))
            && let Err(undo) = self.undefine_at_destination()
        {
            return error.and_also(format!("the guest is defined on both hosts: {undo}"));
        }
        match roll_back(&mut self.journal, &self.source_store, self.hosts.store) {
            Ok(done) if done.left.is_empty() => {
                let _ = self.refresh();
                match error.kind() {
                    ErrorKind::Interrupted => error.and_also("the run was rolled back"),
                    _ => error,
                }
            }
            Ok(done) => {
                let left: Vec<_> = done
                    .left
                    .iter()
                    .map(|left| format!("{}: {}", left.path.display(), left.why))
                    .collect();
                error.and_also(format!("left at the destination: {}", left.join("; ")))
            }
            Err(undo) => error
                .and_also(format!("the roll back is incomplete: {undo}"))
                .hint(Remedy::RollBackLater(self.id().to_owned())),
        }
    }

    fn refresh(&self) -> Result<()> {
        self.hosts.destination.refresh_pools(&self.plan().made_directories())
    }
}
