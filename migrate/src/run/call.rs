//! The call to libvirt that moves the guest, and what watches over it.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use qcow::CancelToken;

use super::{Phase, Run};
use crate::driver::{JobProgress, MigrateRequest, check_request};
use crate::journal::Record;
use crate::{Error, Remedy, Result};

/// That the guest outruns the copy, and what follows.
fn outrun(job: &JobProgress, what: &str) -> String {
    let remaining = job.disk_total.saturating_sub(job.disk_processed);
    format!(
        "the guest writes to its disks as fast as they are copied: {remaining} bytes are left to copy, and \
         that does not fall; {what}"
    )
}

/// Whether a job still moves.
struct Pace {
    done: (u64, u64),
    since: Instant,
}

impl Pace {
    /// Time without progress after which the hosts are asked why. libvirt itself waits for ever where the network
    /// was cut for longer than its own patience.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn new() -> Self {
        Self { done: (0, 0), since: Instant::now() }
    }

    /// True once whenever nothing has moved for that long.
    fn stalls(&mut self, job: &JobProgress) -> bool {
        let done = (job.disk_processed, job.memory_processed);
        let moved = done != self.done;
        let due = !moved && self.since.elapsed() >= Self::PATIENCE;
        if moved || due {
            *self = Self { done, since: Instant::now() };
        }
        due
    }
}

/// Whether the copies of the disks come nearer to them, although the guest writes.
struct Convergence {
    /// The fewest bytes that were left so far, of so many in total, and since when.
    least: u64,
    total: u64,
    since: Instant,
    told: bool,
}

/// What is to be done about a guest that outruns the copy.
#[derive(Debug, PartialEq, Eq)]
enum Outrun {
    No,
    /// It is so for a while: say it, once.
    Say,
    /// It is so for too long.
    End,
}

impl Convergence {
    /// So long nothing is said: guests write in bursts.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn new(now: Instant) -> Self {
        Self { least: u64::MAX, total: 0, since: now, told: false }
    }

    /// `stall` is how long to bear it; `None` is for ever.
    fn look(&mut self, job: &JobProgress, now: Instant, stall: Option<Duration>) -> Outrun {
        let remaining = job.disk_total.saturating_sub(job.disk_processed);
        // Once memory is sent, the disks are in step.
        let nothing = job.disk_total == 0 || job.memory_total > 0;
        // Less by a hundredth is progress; the last bytes go up and down.
        let falls = remaining < self.least.saturating_sub(self.least / 100);
        if nothing || falls {
            let told = self.told;
            *self = Self { least: remaining, total: job.disk_total, since: now, told };
            return Outrun::No;
        }
        // What does not grow is not written to; the network may be at fault.
        let lasts = now.saturating_duration_since(self.since);
        if job.disk_total <= self.total {
            return Outrun::No;
        }
        if stall.is_some_and(|stall| lasts >= stall) {
            return Outrun::End;
        }
        if !self.told && lasts >= Self::PATIENCE {
            self.told = true;
            return Outrun::Say;
        }
        Outrun::No
    }
}

impl Run<'_> {
    /// Asks libvirt to migrate, and watches it.
    pub(super) fn call(&mut self) -> Result<()> {
        self.phase(Phase::Migrate)?;
        let plan = self.plan().clone();
        let request = MigrateRequest {
            uuid: plan.uuid,
            to: plan.to,
            flags: plan.flags,
            migrate_disks: plan.migrate_disks,
            detect_zeroes: plan.detect_zeroes,
            destination_xml: plan.destination_xml,
            persistent_xml: plan.persistent_xml,
            bandwidth_mib: plan.bandwidth_mib,
            migrate_uri: plan.policy.tuning.uri(),
            tuning: plan.policy.tuning.clone(),
        };
        check_request(&request)?;
        let timeout = plan.policy.timeout;
        self.journal.write(Record::MigrateCalled)?;
        let (begun, stop) = (Instant::now(), CancelToken::new());
        let ready_looked_at = Cell::new(false);
        let why = RefCell::new(None);
        let pace = RefCell::new(Pace::new());
        let convergence = RefCell::new(Convergence::new(begun));
        let stall = Some(plan.policy.stall).filter(|stall| *stall > 0).map(Duration::from_secs);
        let give_up = |error: Error| {
            why.borrow_mut().get_or_insert(error);
            stop.cancel();
        };
        let watch = |job: &JobProgress| {
            self.report.job(job);
            if self.cancel.is_cancelled() {
                give_up(Error::interrupted());
            }
            if timeout.is_some_and(|seconds| begun.elapsed().as_secs() >= seconds) {
                give_up(
                    Error::environment("the migration did not end within its time")
                        .hint(Remedy::MoreTime),
                );
            }
            if pace.borrow_mut().stalls(job) && self.hosts.destination.state(&request.uuid).is_err()
            {
                give_up(Error::environment("the destination cannot be reached any more"));
            }
            match convergence.borrow_mut().look(job, Instant::now(), stall) {
                Outrun::No => {}
                Outrun::Say => self.report.note(&outrun(
                    job,
                    &match plan.policy.stall {
                        0 => "only synchronous writes end that".to_owned(),
                        stall => format!("the migration is ended if that lasts {stall} s"),
                    },
                )),
                Outrun::End => {
                    let error = Error::environment(outrun(job, "the migration was ended"));
                    give_up(error.hint(Remedy::CopyFaster));
                }
            }
            // The disks are in step: a last look below them, before the guest moves.
            if job.memory_total > 0 && !ready_looked_at.replace(true) {
                let still = self
                    .lower_layers_are_still_the_same()
                    .and_then(|()| self.bases_are_still_the_same());
                if let Err(error) = still {
                    give_up(error);
                }
            }
        };
        let called = self.hosts.source.migrate(&request, &watch, &stop);
        match why.take() {
            Some(error) if called.is_err() => Err(error),
            _ => called,
        }
    }

    /// Waits until no job runs on the guest.
    pub(super) fn wait_for_job(&self) -> Result<()> {
        let uuid = &self.plan().uuid;
        while let Ok(Some(job)) = self.hosts.source.job(uuid) {
            self.report.job(&job);
            if self.cancel.is_cancelled() {
                self.hosts.source.abort(uuid)?;
            }
            std::thread::sleep(crate::driver::TICK);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// What is done about a job of which every second so much is in total, and so much is done.
    fn seen(
        stall: Option<u64>,
        seconds: u64,
        at: impl Fn(u64) -> JobProgress,
    ) -> Vec<(u64, Outrun)> {
        let start = Instant::now();
        let mut convergence = Convergence::new(start);
        let stall = stall.map(Duration::from_secs);
        (0..seconds)
            .map(|second| {
                let now = start.checked_add(Duration::from_secs(second)).unwrap();
                (second, convergence.look(&at(second), now, stall))
            })
            .filter(|(_, outrun)| *outrun != Outrun::No)
            .collect()
    }

    fn disks(total: u64, remaining: u64) -> JobProgress {
        let disk_processed = total.saturating_sub(remaining);
        JobProgress { disk_total: total, disk_processed, ..JobProgress::default() }
    }

    #[test]
    fn a_guest_that_outruns_the_copy_is_noticed_and_ended() {
        // From the tenth second on it writes as fast as it is copied.
        let at = |second: u64| {
            let remaining = 64_u64.saturating_sub(second.min(10) * 4) * MIB;
            disks((64 + second.saturating_sub(10) * 4) * MIB, remaining + second % 3)
        };
        let told = seen(Some(300), 400, at);
        assert_eq!(told[..2], [(40, Outrun::Say), (310, Outrun::End)]);
        assert_eq!(seen(None, 4000, at), [(40, Outrun::Say)]);
    }

    #[test]
    fn a_copy_that_gains_on_the_guest_goes_on() {
        let gains =
            |second: u64| disks((1000 + second) * MIB, (1000_u64.saturating_sub(second)) * MIB);
        assert_eq!(seen(Some(60), 900, gains), []);
        // A burst that passes.
        let burst = |second: u64| match second {
            0..50 => disks((100 + second) * MIB, 50 * MIB),
            _ => disks(150 * MIB, (50_u64.saturating_sub(second / 3)) * MIB),
        };
        assert_eq!(seen(Some(300), 100, burst), [(30, Outrun::Say)]);
    }

    #[test]
    fn what_stands_still_without_being_written_to_is_not_outrun() {
        assert_eq!(seen(Some(300), 900, |_| disks(100 * MIB, 50 * MIB)), []);
        let memory =
            |second: u64| JobProgress { memory_total: MIB, ..disks((9 + second) * MIB, 0) };
        assert_eq!(seen(Some(300), 900, memory), []);
    }
}
