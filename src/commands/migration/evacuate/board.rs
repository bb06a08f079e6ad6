//! What is seen of an evacuation while it is under way: lines, JSON lines, metrics.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use migrate::Error;
use migrate::driver::JobProgress;
use migrate::evacuate::{Assignment, Ending, Event, Outcome, Watcher};
use migrate::run::Phase;
use serde_json::{Value, json};

use super::seen::{Guest, Seen};
use super::{Show, metrics, text};
use crate::failure::Failure;
use crate::output::eprint_line;
use crate::remedies::reworded;

/// How far a guest is, is said so often at most.
const PACE: Duration = Duration::from_secs(1);
/// The same for people.
const SLOW: Duration = Duration::from_secs(5);

/// Shows what happens.
pub(super) struct Board {
    show: Show,
    metrics: Option<PathBuf>,
    id: String,
    seen: Mutex<Seen>,
}

impl Board {
    pub(super) fn new(show: Show, metrics: Option<PathBuf>, id: String) -> Self {
        let seen = Mutex::new(Seen { begun: now(), ..Seen::default() });
        Self { show, metrics, id, seen }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the last metrics.
    pub(super) fn finish(&self) -> Result<(), Failure> {
        let mut seen = self.seen();
        seen.over = now();
        self.keep(&mut seen, true);
        match (seen.failed.take(), &self.metrics) {
            (Some(error), Some(path)) => {
                let what = format!("could not write '{}'", crate::output::shown(path));
                Err(Error::io(what, error).into())
            }
            _ => Ok(()),
        }
    }

    /// Writes the metrics, if they are due.
    fn keep(&self, seen: &mut Seen, at_once: bool) {
        let Some(path) = &self.metrics else { return };
        let due = seen.written.is_none_or(|written| written.elapsed() >= PACE);
        if at_once || due {
            seen.written = Some(Instant::now());
            seen.failed = metrics::write(path, &metrics::metrics(seen)).err();
        }
    }

    /// Prints a line for people, and the same thing for programs.
    fn say(&self, line: &str, object: impl FnOnce() -> Value) {
        match self.show {
            Show::Never => {}
            Show::Json => {
                let mut object = object();
                if let Some(fields) = object.as_object_mut() {
                    fields.insert("evacuation".into(), json!(self.id));
                    fields.insert("time".into(), json!(jiff::Timestamp::now().to_string()));
                }
                // In one piece, as several threads do it.
                let _ = io::stderr().write_all(format!("{object}\n").as_bytes());
            }
            Show::Auto | Show::Always => eprint_line(line),
        }
    }

    /// Whether how far a guest is, is to be said now.
    fn is_due(&self, guest: &mut Guest) -> bool {
        let pace = match self.show {
            Show::Never => return false,
            Show::Json => PACE,
            Show::Auto if !io::stderr().is_terminal() => return false,
            Show::Auto | Show::Always => SLOW,
        };
        let due = guest.said.is_none_or(|said| said.elapsed() >= pace);
        if due {
            guest.said = Some(Instant::now());
        }
        due
    }

    fn job(&self, guest: &Assignment, job: &JobProgress) {
        let mut seen = self.seen();
        let known = seen.guest(guest);
        known.job = *job;
        let due = self.is_due(known);
        self.keep(&mut seen, false);
        drop(seen);
        if due {
            let line = format!(
                "{}: disks {} of {} bytes, memory {} of {} bytes",
                guest.name,
                job.disk_processed,
                job.disk_total,
                job.memory_processed,
                job.memory_total
            );
            self.say(&line, || {
                json!({
                    "event": "job", "guest": guest.name, "uuid": guest.uuid,
                    "disk-total": job.disk_total, "disk-processed": job.disk_processed,
                    "disk-rate": job.disk_rate, "memory-total": job.memory_total,
                    "memory-processed": job.memory_processed, "memory-rate": job.memory_rate,
                    "elapsed-ms": job.elapsed_ms,
                })
            });
        }
    }

    fn files(&self, guest: &Assignment, done: u64, total: u64) {
        let due = {
            let mut seen = self.seen();
            let due = self.is_due(seen.guest(guest));
            self.keep(&mut seen, false);
            due
        };
        if due {
            self.say(&format!("{}: files {done} of {total} bytes", guest.name), || {
                json!({"event": "files", "guest": guest.name, "uuid": guest.uuid, "done": done, "total": total})
            });
        }
    }

    fn ended(&self, outcome: &Outcome) {
        {
            let mut seen = self.seen();
            let known = seen.guests.entry(outcome.name.clone()).or_default();
            (known.under_way, known.ending) = (false, Some(outcome.ending));
            self.keep(&mut seen, true);
        }
        let outcome = reworded(outcome.clone(), "evacuate");
        self.say(&text::outcome(&outcome), || {
            let mut object = json!({"event": "ended"});
            if let (Some(fields), Ok(Value::Object(own))) =
                (object.as_object_mut(), serde_json::to_value(&outcome))
            {
                fields.extend(own);
            }
            object
        });
    }
}

impl Watcher for Board {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Begun { id, plan } => {
                let mut seen = self.seen();
                (seen.refused, seen.transfer_bytes) =
                    (plan.refused.len(), plan.total.transfer_bytes);
                for guest in &plan.guests {
                    let known = seen.guest(guest);
                    known.to.clone_from(&guest.to);
                    known.ending = Some(Ending::Waiting);
                }
                self.keep(&mut seen, true);
                drop(seen);
                let line = format!(
                    "evacuation {id}: {} guests, {} stay",
                    plan.guests.len(),
                    plan.refused.len()
                );
                self.say(&line, || json!({"event": "begun", "plan": plan}));
            }
            Event::Started { guest, bandwidth } => {
                let mut seen = self.seen();
                let known = seen.guest(guest);
                known.to.clone_from(&guest.to);
                known.under_way = true;
                self.keep(&mut seen, true);
                drop(seen);
                self.say(&format!("{} to {}", guest.name, guest.to), || {
                    json!({
                        "event": "started", "guest": guest.name, "uuid": guest.uuid,
                        "to": guest.to, "bandwidth": bandwidth,
                    })
                });
            }
            Event::Phase(guest, phase) => {
                let line = format!("{}: {}", guest.name, words(phase));
                self.say(&line, || {
                    json!({"event": "phase", "guest": guest.name, "uuid": guest.uuid, "phase": phase.name()})
                });
            }
            Event::Job(guest, job) => self.job(guest, job),
            Event::Files(guest, done, total) => self.files(guest, done, total),
            Event::Note(guest, note) => self.say(
                &format!("{}: note: {note}", guest.name),
                || json!({"event": "note", "guest": guest.name, "uuid": guest.uuid, "note": note}),
            ),
            Event::Ended(outcome) => self.ended(outcome),
            _ => {}
        }
    }
}

fn words(phase: Phase) -> &'static str {
    super::super::progress::words(phase)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
