//! What is done once libvirt has called back: where the guest is decides.

use std::time::Instant;

use super::outcome::{GuestLocation, guest_location};
use super::{Finished, Phase, Run, Verified};
use crate::facts::DomainState;
use crate::journal::{Ended, Outcome, Record};
use crate::plan::{Flag, Mode};
use crate::{Error, ErrorKind, Remedy, Result};

/// The guest came to its end while it was copied. What its disks hold is what it last wrote to them: nothing of them was
/// changed here.
fn stopped(why: Option<Error>) -> Error {
    let why = why.map(|error| format!(" ({})", error.message())).unwrap_or_default();
    Error::environment(format!(
        "the guest stopped while it was copied, before it could move: it is shut off at the source, with its disks as it left \
         them{why}"
    ))
    .hint("find out why it stopped; start it there, or migrate it as it is")
}

impl Run<'_> {
    /// Where the guest is, also on record.
    pub(super) fn look(&mut self) -> Result<GuestLocation> {
        let uuid = self.plan().uuid.clone();
        let place = guest_location(self.hosts.source, self.hosts.destination, &uuid);
        let guest = match place {
            GuestLocation::Source | GuestLocation::SourceStopped => Outcome::AtSource,
            GuestLocation::Destination => Outcome::AtDestination,
            GuestLocation::Nowhere => Outcome::Lost,
            GuestLocation::SourceAndUnreachable | GuestLocation::Unknown => Outcome::InDoubt,
        };
        self.journal.write(Record::Outcome { guest })?;
        Ok(place)
    }

    /// What is to be done once libvirt has `called` back.
    pub(super) fn settle(mut self, start: Instant, called: Result<()>) -> Result<Finished> {
        self.report.phase(Phase::Outcome);
        match self.look()? {
            GuestLocation::Destination => {
                if let Err(error) = called {
                    self.report
                        .note(&format!("libvirt reported an error, but the guest moved: {error}"));
                }
                let verified = match self.verify() {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {
                        self.report.note("the comparison was stopped; the guest runs on");
                        Verified::Structure
                    }
                    Err(error) if error.kind() != ErrorKind::Unverified => {
                        let id = self.id();
                        return Err(error.hint(Remedy::ResumePaused(id.to_owned())));
                    }
                    verified => verified?,
                };
                self.finish(start, verified)
            }
            GuestLocation::Source => {
                let error = match called {
                    Err(error) => error,
                    Ok(()) => Error::environment("libvirt reported success, but the guest stayed"),
                };
                self.wake_source();
                Err(self.roll_back_after(error))
            }
            GuestLocation::SourceStopped => {
                let error = stopped(called.err());
                Err(self.roll_back_after(error))
            }
            GuestLocation::SourceAndUnreachable => Err(self.unreachable(called.err())),
            other => Err(self.in_doubt(other)),
        }
    }

    /// A guest that ran before, and is the only one, runs again.
    fn wake_source(&self) {
        let uuid = &self.plan().uuid;
        let ran = self.facts.domain.state == DomainState::Running;
        if ran && matches!(self.hosts.source.state(uuid), Ok(Some(DomainState::Paused))) {
            let _ = self.hosts.source.resume(uuid);
        }
    }

    fn unreachable(&self, error: Option<Error>) -> Error {
        let why = error.map(|error| format!(" ({error})")).unwrap_or_default();
        Error::environment(format!(
            "the guest runs on at the source; the destination cannot be reached{why}"
        ))
        .hint(Remedy::RollBackLater(self.id().to_owned()))
    }

    pub(super) fn in_doubt(&self, place: GuestLocation) -> Error {
        let id = self.id().to_owned();
        let (what, remedy) = match place {
            GuestLocation::Nowhere => {
                ("the guest runs on neither host; all of its files exist", Remedy::StartThenEnd(id))
            }
            _ => ("it is not known on which host the guest runs", Remedy::StopOneThenEnd(id)),
        };
        Error::new(ErrorKind::InDoubt, what).hint(remedy)
    }

    /// The guest cannot be resumed. Whether that is because its QEMU ends, which libvirt may hear of a moment later.
    fn stops_at_destination(&self) -> bool {
        (0..20).any(|again| {
            if again > 0 {
                std::thread::sleep(crate::driver::TICK);
            }
            let state = self.hosts.destination.state(&self.plan().uuid);
            matches!(state, Ok(Some(DomainState::ShutOff)))
        })
    }

    /// What the operator has to know of a guest that arrived and does not run any more.
    fn stopped_at_destination(&self) -> Option<String> {
        let live = self.plan().mode == Mode::Live;
        let state = self.hosts.destination.state(&self.plan().uuid);
        (live && matches!(state, Ok(Some(DomainState::ShutOff)))).then(|| {
            "it arrived, and has stopped since: it is shut off at the destination, where its disks are".to_owned()
        })
    }

    /// The last steps of a guest that has moved.
    pub(super) fn finish(self, start: Instant, verified: Verified) -> Result<Finished> {
        let id = self.id().to_owned();
        self.last_steps(start, verified).map_err(|error| error.hint(Remedy::ResumeMoved(id)))
    }

    fn last_steps(mut self, start: Instant, verified: Verified) -> Result<Finished> {
        if self.plan().flags.contains(&Flag::Paused)
            && self.facts.domain.state == DomainState::Running
        {
            self.phase(Phase::Resume)?;
            let uuid = self.plan().uuid.clone();
            // A run that was cut off may have got so far already.
            if self.hosts.destination.state(&uuid)? == Some(DomainState::Paused)
                && let Err(error) = self.hosts.destination.resume(&uuid)
                && !self.stops_at_destination()
            {
                return Err(error);
            }
        }
        let elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let retained = self.archive()?;
        let stopped = self.stopped_at_destination();
        self.journal.write(Record::Closed { result: Ended::Done })?;
        let plan = self.plan();
        Ok(Finished {
            transaction: self.id().to_owned(),
            domain: plan.domain.clone(),
            uuid: plan.uuid.clone(),
            to: plan.to.clone(),
            mode: plan.mode,
            copy: plan.copy,
            elapsed_ms,
            verified,
            retained,
            stopped,
            warnings: plan.warnings.clone(),
        })
    }
}
