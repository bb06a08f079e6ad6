//! Carries out the plan of an evacuation: so many guests at a time, each a migration of its own, under a journal.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use qcow::{CancelToken, Observer};

use super::journal::{Journal, Orders};
use super::report::{Ending, Evacuated, Event, Moved, Outcome, REPORT_SCHEMA, Watcher};
use super::schedule::{Begins, Schedule, least};
use super::value::{Assignment, At, EvacuationPlan, Left};
use crate::driver::JobProgress;
use crate::plan::Refusal;
use crate::run::{Phase, Report};
use crate::{Error, ErrorKind, Result};

/// So often it is looked whether nothing more shall begin.
const TICK: Duration = Duration::from_millis(100);

/// What is done for one guest. Called from several threads, for different guests.
pub trait Work: Sync {
    /// What comes before the guest moves. An error keeps it where it is.
    ///
    /// # Errors
    /// Why the guest shall stay.
    fn before(&self, _guest: &Assignment) -> Result<()> {
        Ok(())
    }

    /// Moves the guest, with so many bytes a second at most. When this fails, everything was put back as far as that
    /// can be.
    ///
    /// # Errors
    /// As [`Run::migrate`](crate::run::Run::migrate).
    fn migrate(
        &self,
        guest: &Assignment,
        bandwidth: Option<u64>,
        report: &dyn Report,
        cancel: &CancelToken,
    ) -> Result<Moved>;

    /// What comes after the guest, however it ended. An error ends the evacuation: no other guest begins.
    ///
    /// # Errors
    /// What is wrong.
    fn after(&self, _outcome: &Outcome) -> Result<()> {
        Ok(())
    }

    /// Ends what was cut off: `begun` is when the guest's run began, as in RFC 3339. `Ok(None)` if the guest is where it
    /// was, and everything was put back.
    ///
    /// # Errors
    /// If it is neither here nor there, or that cannot be found out.
    fn settle(
        &self,
        guest: &Assignment,
        begun: &str,
        report: &dyn Report,
        cancel: &CancelToken,
    ) -> Result<Option<Moved>>;
}

/// How an evacuation is stopped.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// Nothing more begins; what is under way goes on to its end.
    pub drain: CancelToken,
    /// What is under way is stopped and put back, too.
    pub cancel: CancelToken,
}

/// An evacuation under its journal. No other one of the same state directory runs meanwhile.
#[derive(Debug)]
pub struct Evacuation {
    journal: Journal,
}

impl Evacuation {
    /// Begins one. `state` is the directory of journals and locks.
    ///
    /// # Errors
    /// [`Refused`](crate::ErrorKind::Refused) if another one runs, [`Environment`](crate::ErrorKind::Environment) if
    /// there can be no journal.
    pub fn begin(state: &Path, orders: &Orders) -> Result<Self> {
        Ok(Self { journal: Journal::create(state, orders)? })
    }

    /// Takes up the evacuation `id` again, or the last one.
    ///
    /// # Errors
    /// As [`begin`](Self::begin); [`Usage`](crate::ErrorKind::Usage) if there is none.
    pub fn again(state: &Path, id: Option<&str>) -> Result<Self> {
        Ok(Self { journal: Journal::open(state, id)? })
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.journal.said.id
    }

    /// What was asked for.
    pub fn orders(&self) -> &Orders {
        &self.journal.said.orders
    }

    /// How guests ended so far.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.journal.said.outcomes
    }

    /// The UUIDs of guests that were to go and are not known to have arrived, or to be unfinished or in doubt.
    pub fn remaining(&self) -> Vec<String> {
        let said = &self.journal.said;
        let Some(plan) = &said.plan else { return said.orders.guests.clone() };
        let settled = |uuid: &str| {
            let outcome = said.outcomes.iter().find(|outcome| outcome.uuid == uuid);
            outcome.is_some_and(|outcome| {
                let ending = outcome.ending;
                outcome.unfinished
                    || matches!(ending, Ending::Moved | Ending::InDoubt | Ending::Unverified)
            })
        };
        let all = plan.guests.iter().map(|guest| &guest.uuid);
        let all = all.chain(plan.refused.iter().map(|left| &left.uuid));
        all.filter(|uuid| !settled(uuid)).cloned().collect()
    }

    /// Ends what was cut off, is unfinished or in doubt: every guest that was under way has arrived, or is where it was, or has an
    /// outcome that says what is wrong with it.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) if the journal cannot be written.
    pub fn settle(&mut self, work: &dyn Work, watcher: &dyn Watcher, stops: &Stops) -> Result<()> {
        let said = &self.journal.said;
        let doubtful = said.outcomes.iter().filter(|outcome| {
            outcome.unfinished || matches!(outcome.ending, Ending::InDoubt | Ending::Unverified)
        });
        let open: BTreeSet<_> =
            doubtful.map(|outcome| &outcome.uuid).chain(&said.under_way).collect();
        let begun = |uuid: &String| said.begun.get(uuid).cloned().unwrap_or_default();
        let open: Vec<_> = open.into_iter().map(|uuid| (uuid.clone(), begun(uuid))).collect();
        for (uuid, begun) in open {
            if stops.drain.is_cancelled() {
                return Err(Error::interrupted());
            }
            let Some(guest) = self.journal.said.assignments.get(&uuid).cloned() else { continue };
            watcher.event(&Event::Started { guest: &guest, bandwidth: None });
            let reporter = Reporter { guest: &guest, watcher };
            let outcome = match work.settle(&guest, &begun, &reporter, &stops.cancel) {
                Ok(Some(moved)) => finish(&guest, &Ok(moved), work),
                Ok(None) => Outcome::new(&guest, Ending::Waiting),
                Err(error) => Outcome::of(&guest, &Err(error)),
            };
            self.journal.ended(&outcome)?;
            watcher.event(&Event::Ended(&outcome));
        }
        Ok(())
    }

    /// Carries out `plan`, which is of the guests that [remain](Self::remaining).
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) if the journal cannot be written: what was under way has ended,
    /// and nothing more began. What goes wrong with a guest is in its outcome.
    pub fn run(
        &mut self,
        plan: EvacuationPlan,
        work: &dyn Work,
        watcher: &dyn Watcher,
        stops: &Stops,
    ) -> Result<Evacuated> {
        let begun = Instant::now();
        let orders = self.journal.said.orders.clone();
        let plan = within_budget(plan, orders.bandwidth);
        self.journal.planned(&plan)?;
        watcher.event(&Event::Begun { id: &self.journal.said.id, plan: &plan });
        let schedule = Schedule::new(&plan.guests, orders.at_once, orders.bandwidth);
        let mut going =
            Going { journal: &mut self.journal, work, watcher, stops, schedule, stopped: None };
        let failed = going.all();
        let Going { schedule, stopped, .. } = going;
        failed?;
        let mut guests = self.journal.said.outcomes.clone();
        // Who has no place any more is told among those.
        let refused = |uuid: &str| plan.refused.iter().any(|left| left.uuid == uuid);
        guests.retain(|it| it.ending != Ending::Waiting && !refused(&it.uuid));
        let known = |uuid: &str| guests.iter().any(|outcome| outcome.uuid == uuid);
        let waiting: Vec<_> =
            schedule.waiting().iter().filter(|guest| !known(&guest.uuid)).collect();
        let waiting: Vec<_> =
            waiting.into_iter().map(|guest| Outcome::new(guest, Ending::Waiting)).collect();
        guests.extend(waiting);
        Ok(Evacuated {
            schema: REPORT_SCHEMA,
            id: self.journal.said.id.clone(),
            from: plan.from,
            guests,
            refused: plan.refused,
            stopped,
            elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}

/// Guests whose streams need more than the whole link stay: libvirt knows no rate below 1 MiB/s for a stream.
fn within_budget(mut plan: EvacuationPlan, bandwidth: Option<u64>) -> EvacuationPlan {
    let Some(all) = bandwidth else { return plan };
    let (go, stay): (Vec<_>, Vec<_>) =
        plan.guests.into_iter().partition(|guest| least(guest) <= all);
    plan.guests = go;
    plan.refused.extend(stay.into_iter().map(|guest| {
        let refusal = Refusal {
            code: "bandwidth".into(),
            disk: None,
            message: format!(
                "it has {} streams, which take at least {} bytes a second, and {all} are given to all guests",
                guest.streams,
                least(&guest)
            ),
            way_out: "give the evacuation more bandwidth".into(),
        };
        let at = At { to: guest.to, refusals: vec![refusal] };
        Left { name: guest.name, uuid: guest.uuid, reasons: vec![at] }
    }));
    (plan.total.placed, plan.total.refused) = (plan.guests.len(), plan.refused.len());
    plan
}

/// What is under way.
struct Going<'a> {
    journal: &'a mut Journal,
    work: &'a dyn Work,
    watcher: &'a dyn Watcher,
    stops: &'a Stops,
    schedule: Schedule,
    stopped: Option<String>,
}

impl Going<'_> {
    /// Until nothing is under way and nothing more begins.
    fn all(&mut self) -> Result<()> {
        let (work, watcher, cancel) = (self.work, self.watcher, &self.stops.cancel);
        let mut failed = Ok(());
        std::thread::scope(|scope| {
            let (send, receive) = mpsc::channel::<Outcome>();
            loop {
                if self.stops.drain.is_cancelled() {
                    self.stop("it was stopped, as asked");
                }
                while let Some(begins) = self.schedule.next() {
                    if let Err(error) = self.journal.started(&begins.guest.uuid) {
                        self.schedule.ended(&begins.guest.uuid, false);
                        self.stop("the journal cannot be written");
                        failed = Err(error);
                        break;
                    }
                    let send = send.clone();
                    scope.spawn(move || {
                        let whole = || one(&begins, work, watcher, cancel);
                        // The evacuation would wait for ever for a guest whose thread is gone.
                        let outcome = catch_unwind(AssertUnwindSafe(whole))
                            .unwrap_or_else(|_| Outcome::of(&begins.guest, &Err(bug())));
                        // It is not heard only if the journal failed.
                        let _ = send.send(outcome);
                    });
                }
                if self.schedule.is_over() {
                    break;
                }
                match receive.recv_timeout(TICK) {
                    Ok(outcome) => {
                        let noted = self.note(&outcome);
                        failed = std::mem::replace(&mut failed, Ok(())).and(noted);
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        });
        failed
    }

    fn stop(&mut self, why: &str) {
        self.schedule.stop();
        self.stopped.get_or_insert_with(|| why.to_owned());
    }

    /// A guest is not under way any more.
    fn note(&mut self, outcome: &Outcome) -> Result<()> {
        self.schedule.ended(&outcome.uuid, outcome.ending == Ending::Moved);
        self.watcher.event(&Event::Ended(outcome));
        if outcome.ending == Ending::InDoubt {
            self.stop(&format!("it is not known where {} runs", outcome.name));
        }
        if outcome.after.is_some() {
            self.stop(&format!("the program after {} failed", outcome.name));
        }
        self.journal.ended(outcome).inspect_err(|_| self.stop("the journal cannot be written"))
    }
}

/// One guest, from the program before it to the one after it.
fn one(begins: &Begins, work: &dyn Work, watcher: &dyn Watcher, cancel: &CancelToken) -> Outcome {
    let Begins { guest, bandwidth } = begins;
    watcher.event(&Event::Started { guest, bandwidth: *bandwidth });
    let reporter = Reporter { guest, watcher };
    match work.before(guest) {
        // Nothing was begun: what comes after need not hear of it.
        Err(error) => Outcome { ending: Ending::Refused, ..Outcome::of(guest, &Err(error)) },
        Ok(()) => finish(guest, &work.migrate(guest, *bandwidth, &reporter, cancel), work),
    }
}

fn bug() -> Error {
    Error::new(
        ErrorKind::InDoubt,
        "this program has a bug: what was done for the guest ended early",
    )
    .hint("resume the evacuation, and report the bug")
}

fn finish(guest: &Assignment, result: &Result<Moved>, work: &dyn Work) -> Outcome {
    let outcome = Outcome::of(guest, result);
    let after = work.after(&outcome).err().map(|error| error.to_string());
    Outcome { after, ..outcome }
}

/// Passes on what one guest's run tells.
struct Reporter<'a> {
    guest: &'a Assignment,
    watcher: &'a dyn Watcher,
}

impl Report for Reporter<'_> {
    fn phase(&self, phase: Phase) {
        self.watcher.event(&Event::Phase(self.guest, phase));
    }

    fn job(&self, job: &JobProgress) {
        self.watcher.event(&Event::Job(self.guest, job));
    }

    fn note(&self, text: &str) {
        self.watcher.event(&Event::Note(self.guest, text));
    }

    fn observer(&self) -> &dyn Observer {
        self
    }
}

impl Observer for Reporter<'_> {
    fn progress(&self, done: u64, total: u64) {
        self.watcher.event(&Event::Files(self.guest, done, total));
    }
}
