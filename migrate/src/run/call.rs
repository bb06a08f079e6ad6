//! The call to libvirt that moves the guest, and what watches over it.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use qcow::CancelToken;

use super::{Phase, Run};
use crate::driver::{JobProgress, MigrateRequest, check_request};
use crate::journal::Record;
use crate::{Error, Remedy, Result};

/// Whether a job still moves.
struct Pace {
    done: (u64, u64),
    since: Instant,
}

impl Pace {
    /// So long nothing may move before somebody asks why. libvirt itself waits for ever where the network
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
            migrate_uri: None,
        };
        check_request(&request)?;
        let timeout = plan.policy.timeout;
        self.journal.write(Record::MigrateCalled)?;
        let (begun, stop) = (Instant::now(), CancelToken::new());
        let ready_looked_at = Cell::new(false);
        let why = RefCell::new(None);
        let pace = RefCell::new(Pace::new());
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
