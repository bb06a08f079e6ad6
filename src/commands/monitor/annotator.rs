//! Keeps the guests' metadata as `qcowtool annotate` would write it now. On a thread of its own, because a backing
//! file that was not read before takes its time, and scans do not wait for that.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use migrate::annotate::{Change, refresh};
use migrate::driver::Hypervisor;
use migrate::plan::Policy;
use migrate::probe::Probing;
use migrate::{ErrorKind, Silent};
use qcow::CancelToken;

use super::board::Board;
use crate::libvirt::connect;
use crate::output::eprint_line;

/// It pauses for so many times as long as it took, as scans do.
const PAUSE: u32 = 10;

/// Whose guests are annotated, and where digests are kept.
#[derive(Debug)]
pub(super) struct Annotator {
    pub(super) uris: Vec<String>,
    pub(super) digests: PathBuf,
    pub(super) interval: Duration,
    pub(super) board: Arc<Board>,
    pub(super) cancel: CancelToken,
}

/// Has the annotator look at the guests, as soon as it is done with what it does.
#[derive(Debug)]
pub(super) struct Waker(SyncSender<()>);

impl Waker {
    pub(super) fn wake(&self) {
        // It has been told already, or it has ended.
        let _ = self.0.try_send(());
    }
}

/// One round over all guests.
#[derive(Debug, Default)]
struct Round {
    complete: u64,
    incomplete: u64,
    written: u64,
    problems: BTreeSet<String>,
}

impl Annotator {
    /// Starts the thread.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub(super) fn start(self) -> std::io::Result<Waker> {
        let (sender, woken) = sync_channel(1);
        let run = move || {
            let mut said = BTreeSet::new();
            while woken.recv().is_ok() && self.cancel.check().is_ok() {
                let start = Instant::now();
                let round = self.round();
                for problem in round.problems.difference(&said) {
                    eprint_line(format_args!("qcowtool: {problem}"));
                }
                said = round.problems;
                thread::sleep(start.elapsed().saturating_mul(PAUSE).min(self.interval));
            }
        };
        thread::Builder::new().name("annotator".to_owned()).spawn(run)?;
        Ok(Waker(sender))
    }

    /// One round, for `--once`; whether all is known and written.
    pub(super) fn once(&self) -> bool {
        let round = self.round();
        for problem in &round.problems {
            eprint_line(format_args!("qcowtool: {problem}"));
        }
        round.problems.is_empty()
    }

    fn round(&self) -> Round {
        let mut round = Round::default();
        for uri in &self.uris {
            let guests = connect(uri).and_then(|host| {
                let names = host.hypervisor.names()?;
                Ok((host, names))
            });
            match guests {
                Ok((host, names)) => self.guests(host.hypervisor.as_ref(), &names, &mut round),
                Err(error) => drop(round.problems.insert(format!("{uri}: {error}"))),
            }
        }
        if self.cancel.check().is_ok() {
            let mut figures = self.board.figures();
            let annotations = &mut figures.annotations;
            (annotations.complete, annotations.incomplete) = (round.complete, round.incomplete);
            annotations.written = annotations.written.saturating_add(round.written);
            annotations.last = Some(SystemTime::now());
        }
        round
    }

    fn guests(&self, hypervisor: &dyn Hypervisor, names: &[String], round: &mut Round) {
        let policy = Policy::default();
        let probing =
            Probing::new(&policy, &Silent, &self.cancel).cache(Some(self.digests.as_path()));
        for name in names {
            let problems = match refresh(hypervisor, name, &probing) {
                Ok((change, found)) => {
                    let written = u64::from(change == Change::Written);
                    round.written = round.written.saturating_add(written);
                    let incomplete = found.map(|found| found.incomplete).unwrap_or_default();
                    let problem =
                        |(disk, why): (String, String)| format!("{name}: disk '{disk}': {why}");
                    incomplete.into_iter().map(problem).collect::<Vec<_>>()
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return,
                // It went while others were looked at.
                Err(error) if error.kind() == ErrorKind::Usage => continue,
                Err(error) => vec![format!("{name}: {error}")],
            };
            let count =
                if problems.is_empty() { &mut round.complete } else { &mut round.incomplete };
            *count = count.saturating_add(1);
            round.problems.extend(problems);
        }
    }
}
