//! How an evacuation goes, and how it ended.

use serde::{Deserialize, Serialize};

use super::value::{Assignment, EvacuationPlan, Left};
use crate::driver::JobProgress;
use crate::run::{Phase, Verified};
use crate::{ErrorKind, Remedy, Reword};

/// Name and version of the report's JSON form.
pub const REPORT_SCHEMA: &str = "qcowtool-evacuated/1";

/// How it ended for one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It is at its destination.
    Moved,
    /// It was not begun: the evacuation was stopped before.
    Waiting,
    /// Its turn came, and it stayed with nothing changed: it was refused, or the program before it said no.
    Refused,
    /// It failed, and everything was put back, unless the outcome is [unfinished](Outcome::unfinished).
    Failed,
    /// It was stopped, and everything was put back, unless the outcome is [unfinished](Outcome::unfinished).
    Stopped,
    /// Its content at the destination is not what it must be.
    Unverified,
    /// It is not known on which host it runs.
    InDoubt,
}

impl Ending {
    /// A stable word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Unverified => "unverified",
            Self::InDoubt => "in-doubt",
        }
    }

    pub(super) fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Refused | ErrorKind::Changed | ErrorKind::Usage => Self::Refused,
            ErrorKind::Interrupted => Self::Stopped,
            ErrorKind::Unverified => Self::Unverified,
            ErrorKind::InDoubt => Self::InDoubt,
            _ => Self::Failed,
        }
    }
}

/// A guest that arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Moved {
    /// Its transaction.
    pub transaction: Option<String>,
    /// Milliseconds that it took.
    pub elapsed_ms: u64,
    /// How thoroughly its disks were compared.
    pub verified: Option<Verified>,
    /// That it ran when it left, and has stopped at its destination since.
    pub stopped: Option<String>,
}

/// How it ended for one guest, with what there is to be said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Where it went, or was to go.
    pub to: String,
    /// How it ended.
    pub ending: Ending,
    /// Its transaction, if it arrived.
    pub transaction: Option<String>,
    /// Milliseconds that it took, if it arrived.
    pub elapsed_ms: Option<u64>,
    /// How thoroughly its disks were compared, if it arrived.
    pub verified: Option<Verified>,
    /// What went wrong. A guest that arrived has stopped since.
    pub error: Option<String>,
    /// What the operator can do about it.
    pub way_out: Option<Remedy>,
    /// Its transaction is open: something is left to do, at its destination or at its source.
    #[serde(default)]
    pub unfinished: bool,
    /// What the program after it said, if that failed.
    pub after: Option<String>,
}

/// Whether this is the advice of a run that could not end its transaction.
fn is_open(remedy: &Remedy) -> bool {
    matches!(
        remedy,
        Remedy::Resume(_)
            | Remedy::ResumeMoved(_)
            | Remedy::ResumePaused(_)
            | Remedy::RollBackLater(_)
            | Remedy::StartThenEnd(_)
            | Remedy::StopOneThenEnd(_)
    )
}

impl Outcome {
    pub(super) fn new(guest: &Assignment, ending: Ending) -> Self {
        Self {
            name: guest.name.clone(),
            uuid: guest.uuid.clone(),
            to: guest.to.clone(),
            ending,
            transaction: None,
            elapsed_ms: None,
            verified: None,
            error: None,
            way_out: None,
            unfinished: false,
            after: None,
        }
    }

    pub(super) fn of(guest: &Assignment, result: &crate::Result<Moved>) -> Self {
        match result {
            Ok(moved) => Self {
                transaction: moved.transaction.clone(),
                elapsed_ms: Some(moved.elapsed_ms),
                verified: moved.verified,
                error: moved.stopped.clone(),
                ..Self::new(guest, Ending::Moved)
            },
            Err(error) => Self {
                error: Some(error.message().to_owned()),
                way_out: error.what_next().cloned(),
                unfinished: error.what_next().is_some_and(is_open),
                ..Self::new(guest, Ending::of(error.kind()))
            },
        }
    }
}

/// How an evacuation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Evacuated {
    /// [`REPORT_SCHEMA`].
    pub schema: &'static str,
    /// Its name, with which it is taken up again.
    pub id: String,
    /// URI of the host that was emptied.
    pub from: String,
    /// The guests that had a place, in the order in which they ended; those that did not begin are last.
    pub guests: Vec<Outcome>,
    /// Those that had none.
    pub refused: Vec<Left>,
    /// Why no more began, if that was not the end of the list.
    pub stopped: Option<String>,
    /// Milliseconds of this run.
    pub elapsed_ms: u64,
}

impl Evacuated {
    /// Guests that ended so.
    pub fn count(&self, ending: Ending) -> usize {
        self.guests.iter().filter(|guest| guest.ending == ending).count()
    }
}

impl Reword for Outcome {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        self.way_out.reword(words);
    }
}

impl Reword for Evacuated {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        self.guests.reword(words);
        self.refused.reword(words);
    }
}

/// Something that happens.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The plan is carried out from here on.
    Begun {
        /// Name of the evacuation.
        id: &'a str,
        /// The plan.
        plan: &'a EvacuationPlan,
    },
    /// A guest begins.
    Started {
        /// The guest.
        guest: &'a Assignment,
        /// Bytes a second that it was given.
        bandwidth: Option<u64>,
    },
    /// It comes to a phase.
    Phase(&'a Assignment, Phase),
    /// So far is libvirt with it.
    Job(&'a Assignment, &'a JobProgress),
    /// So many bytes of so many are read or copied by this program.
    Files(&'a Assignment, u64, u64),
    /// Something that the operator should know.
    Note(&'a Assignment, &'a str),
    /// It is not on the way any more.
    Ended(&'a Outcome),
}

/// Is told what happens, from several threads.
pub trait Watcher: Sync {
    /// Something happens.
    fn event(&self, event: &Event<'_>);
}
