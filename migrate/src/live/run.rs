//! Carries out a plan: libvirt's job, watched; the flush; and the look at what is on the disk.

mod finish;

use std::path::Path;
use std::time::{Duration, Instant};

use qcow::chain::{Chain, OpenOptions};
use qcow::ops::create::{Backing, create, like};
use qcow::{CancelToken, Observer};

use super::allocation::AllocationSummary;
use super::resume_record::ResumeRecord;
use super::value::{Flattened, LivePlan, Method};
use crate::domain::{XmlDisk, parse};
use crate::driver::{BlockCopy, BlockJobKind, BlockJobs, Hypervisor, TICK};
use crate::facts::{DomainFacts, DomainState, Source};
use crate::store::{LocalStore, Store};
use crate::{Error, ErrorKind, Result};

/// How long a libvirt that does not answer is asked again: a daemon that is restarted is back by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// With fewer bytes free, a job is aborted: a guest that finds its disk full is stopped by QEMU.
const LOW: u64 = 8 << 20;

/// What a run needs besides its plan.
#[derive(Clone, Copy)]
pub struct RunContext<'a> {
    /// The guest's host.
    pub hypervisor: &'a dyn Hypervisor,
    /// Directory of marks and locks. The caller holds the guest's [lock](crate::journal::DomainLock) there.
    pub state: &'a Path,
    /// Is told how far the job is.
    pub observer: &'a dyn Observer,
    /// Aborts the job; the run waits for its end.
    pub cancel: &'a CancelToken,
}

impl std::fmt::Debug for RunContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunContext").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Carries out `plan`, made of facts that were looked at just now; `allocation` was looked at with them.
///
/// # Errors
/// What went wrong. The guest then has the chain that it had, unless the error says otherwise:
/// [`Unverified`](ErrorKind::Unverified) if the image has no backing file but its tables are not on the disk,
/// [`InDoubt`](ErrorKind::InDoubt) if libvirt could not be asked; the same run can then be [taken up](go_on).
pub fn flatten(
    plan: &LivePlan,
    allocation: AllocationSummary,
    context: &RunContext<'_>,
) -> Result<Flattened> {
    context.cancel.check()?;
    let mut run = Run::new(ResumeRecord::new(plan.clone(), allocation), context);
    run.record.write(context.state)?;
    match run.begin() {
        Ok(()) => run.settle(false),
        Err(error) => {
            // The answer may be lost and not the question.
            run.abort()?;
            Err(run.roll_back_after(error))
        }
    }
}

/// Goes on with a run that was cut off. `None` if nothing was left to do but to put things back: the disk has
/// the chain that it had, no job runs, and a new plan can be made.
///
/// # Errors
/// As [`flatten`].
pub fn go_on(record: ResumeRecord, context: &RunContext<'_>) -> Result<Option<Flattened>> {
    let mut run = Run::new(record, context);
    // It stands still for the comparison, which is not done.
    let compares = run.record.plan.compare && run.backing_state()? == BackingState::Alone;
    if run.record.stopped && !compares {
        run.let_go()?;
    }
    let (uuid, disk) = (run.record.plan.uuid.clone(), run.record.plan.disk.clone());
    let wanted = match run.record.plan.method {
        Method::Pull => BlockJobKind::Pull,
        Method::Copy | Method::Move => BlockJobKind::Copy,
    };
    let jobs = run.jobs()?;
    match run.patiently(|| jobs.block_progress(&uuid, &disk))? {
        Some(job) if job.kind == wanted => run.settle(true).map(Some),
        Some(_) => Err(Error::refused(format!("another job runs on disk {disk}"))
            .hint("wait for it, or abort it (virsh blockjob GUEST DISK --abort)")),
        None => match run.backing_state()? {
            BackingState::AsBefore | BackingState::Off => match run.is_flat_on_disk() {
                true => run.finish(true).map(Some),
                false => run.forget().map(|()| None),
            },
            BackingState::Alone => run.finish(true).map(Some),
        },
    }
}

/// The disk's backing files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BackingState {
    /// What it stood on when the plan was made.
    AsBefore,
    /// On nothing.
    Alone,
    /// The guest has no process; the headers tell.
    Off,
}

/// How waiting for a job ended.
enum Waited {
    /// There is no job any more.
    Gone,
    /// The copy is in step with the disk.
    Ready,
    /// It has to be aborted.
    Stop(Error),
}

struct Run<'a> {
    context: &'a RunContext<'a>,
    record: ResumeRecord,
    start: Instant,
    paused: Duration,
    /// Since when the guest stands still for the comparison.
    stood: Option<Instant>,
}

impl<'a> Run<'a> {
    fn new(record: ResumeRecord, context: &'a RunContext<'a>) -> Self {
        Self { context, record, start: Instant::now(), paused: Duration::ZERO, stood: None }
    }

    fn jobs(&self) -> Result<&'a dyn BlockJobs> {
        let jobs = self.context.hypervisor.block_jobs();
        jobs.ok_or_else(|| Error::environment("this host has no jobs on disks"))
    }

    fn plan(&self) -> &LivePlan {
        &self.record.plan
    }

    /// Asks again, for a while, where the connection broke.
    fn patiently<T>(&self, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            match ask() {
                Err(error)
                    if error.kind() == ErrorKind::Environment && start.elapsed() < PATIENCE =>
                {
                    std::thread::sleep(TICK);
                }
                Err(error) if error.kind() == ErrorKind::Environment => {
                    let message =
                        format!("libvirt does not report its outcome: {}", error.message());
                    return Err(Error::new(ErrorKind::InDoubt, message)
                        .hint("the same command, run again, continues"));
                }
                answer => return answer,
            }
        }
    }

    /// Has libvirt begin the job.
    fn begin(&mut self) -> Result<()> {
        let jobs = self.jobs()?;
        let ResumeRecord { plan, .. } = &self.record;
        match plan.method {
            Method::Pull => jobs.block_pull(&plan.uuid, &plan.disk, plan.bandwidth),
            Method::Copy | Method::Move => {
                let plan = plan.clone();
                let open = OpenOptions::default().format(plan.format).force_share(true);
                let mut options = like(&plan.image, &open)?.create;
                if let Some(base) = plan.below.first().filter(|_| plan.keeps_below) {
                    options = options.backing(Backing::new(&base.path, base.format.parse()?));
                }
                create(&plan.becomes, &options)?;
                let made = LocalStore::new(Path::new("/"))?.look(&plan.becomes)?;
                self.record.made = made.map(|object| object.identity);
                self.record.write(self.context.state)?;
                let copy = BlockCopy {
                    to: plan.becomes.clone(),
                    format: plan.format,
                    bandwidth: plan.bandwidth,
                    shallow: plan.keeps_below,
                };
                jobs.block_copy(&plan.uuid, &plan.disk, &copy)
            }
        }
    }

    /// Waits for the job, ends it one way or the other, and does what is left to do.
    fn settle(mut self, again: bool) -> Result<Flattened> {
        let stopped = match self.wait()? {
            Waited::Gone => None,
            Waited::Stop(error) => Some(error),
            Waited::Ready => {
                if self.plan().compare {
                    self.stand_still()?;
                }
                self.pivot()?
            }
        };
        if stopped.is_some() {
            self.abort()?;
        }
        match (self.backing_state()?, stopped) {
            // It was done before it could be stopped.
            (BackingState::Alone, _) => self.finish(again),
            (_, Some(error)) if self.record.stopped => {
                self.let_go()?;
                Err(self.roll_back_after(error))
            }
            (BackingState::Off, stopped) if self.is_flat_on_disk() => {
                drop(stopped);
                self.finish(again)
            }
            (_, Some(error)) => Err(self.roll_back_after(error)),
            (BackingState::Off, None) => {
                let error = Error::environment("the guest ended meanwhile")
                    .hint("its disk has the chain that it had");
                Err(self.roll_back_after(error))
            }
            (BackingState::AsBefore, None) => {
                let error = self.ended_early();
                Err(self.roll_back_after(error))
            }
        }
    }

    fn abort(&self) -> Result<()> {
        let (plan, jobs) = (self.plan(), self.jobs()?);
        self.patiently(|| jobs.abort_block_job(&plan.uuid, &plan.disk))
    }

    fn wait(&self) -> Result<Waited> {
        let jobs = self.jobs()?;
        let RunContext { hypervisor, observer, cancel, .. } = *self.context;
        let plan = self.plan();
        let limit = plan.timeout.map(Duration::from_secs);
        loop {
            if cancel.is_cancelled() {
                return Ok(Waited::Stop(Error::new(
                    ErrorKind::Interrupted,
                    "stopped as asked; the disk has the chain that it had",
                )));
            }
            if limit.is_some_and(|limit| self.start.elapsed() >= limit) {
                let message = format!("not done after {} seconds", plan.timeout.unwrap_or(0));
                return Ok(Waited::Stop(
                    Error::environment(message).hint("the disk has the chain that it had"),
                ));
            }
            if let Some(error) = self.too_full() {
                return Ok(Waited::Stop(error));
            }
            match self.patiently(|| jobs.block_progress(&plan.uuid, &plan.disk))? {
                None => return Ok(Waited::Gone),
                Some(job) => {
                    observer.progress(job.done, job.total);
                    if plan.method.copies() && job.total > 0 && job.done >= job.total {
                        return Ok(Waited::Ready);
                    }
                }
            }
            hypervisor.wait(TICK);
        }
    }

    /// An error if the guest is about to find its disk full.
    fn too_full(&self) -> Option<Error> {
        let available = self.available()?;
        let name = self.plan().becomes.display();
        (available < LOW).then(|| {
            Error::environment(format!("there are only {available} bytes left for '{name}'"))
                .hint("make room and try again; the disk has the chain that it had")
        })
    }

    /// Free bytes where something grows; `None` on a device.
    fn available(&self) -> Option<u64> {
        let path = &self.plan().becomes;
        let file = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        let store = LocalStore::new(Path::new("/")).ok().filter(|_| file)?;
        store.available(path.parent()?).ok()
    }

    /// Has the guest use the copy. `Some` if it must not, because the caller asked to stop.
    fn pivot(&self) -> Result<Option<Error>> {
        let plan = self.plan();
        let jobs = self.jobs()?;
        let hypervisor = self.context.hypervisor;
        loop {
            match jobs.pivot(&plan.uuid, &plan.disk) {
                Ok(true) => return Ok(None),
                // Not in step any more, or yet.
                Ok(false) => match self.wait()? {
                    Waited::Ready => hypervisor.wait(TICK),
                    Waited::Gone => return Ok(None),
                    Waited::Stop(error) => return Ok(Some(error)),
                },
                // The answer may be lost, or the copy: which, is looked at.
                Err(error) => {
                    let job = self.patiently(|| jobs.block_progress(&plan.uuid, &plan.disk))?;
                    return Ok(job.map(|_| error));
                }
            }
        }
    }

    /// Why a job that was not stopped did not complete.
    fn ended_early(&self) -> Error {
        let available = self.available();
        let room =
            available.map(|bytes| format!(", where {bytes} bytes are free")).unwrap_or_default();
        let message = format!(
            "the job on '{}' ended before it was done{room}",
            self.plan().becomes.display()
        );
        Error::environment(message)
            .hint("the disk has the chain that it had; the guest's log in /var/log/libvirt/qemu may tell why")
    }

    fn look(&self) -> Result<Option<(DomainFacts, Option<XmlDisk>)>> {
        let plan = self.plan();
        let Some(domain) = self.patiently(|| self.context.hypervisor.domain(&plan.uuid))? else {
            return Ok(None);
        };
        let disk = parse(&domain.live_xml)?.disks.into_iter().find(|disk| disk.target == plan.disk);
        Ok(Some((domain, disk)))
    }

    fn backing_state(&self) -> Result<BackingState> {
        let plan = self.plan();
        let Some((domain, Some(disk))) = self.look()? else { return Ok(BackingState::Off) };
        let off = domain.state == DomainState::ShutOff;
        let alone = match plan.method {
            // What a definition says of layers below is nothing that a job did.
            Method::Pull => !off && disk.chain.layers.len() <= 1,
            // A guest that has ended since goes on from its definition.
            Method::Copy | Method::Move => is_at(&disk, &plan.becomes),
        };
        Ok(match (alone, off) {
            (true, _) => BackingState::Alone,
            (false, true) => BackingState::Off,
            (false, false) => BackingState::AsBefore,
        })
    }

    /// Whether the image that a pull fills says in its header that nothing is below it. For a guest that has no
    /// process any more.
    fn is_flat_on_disk(&self) -> bool {
        self.plan().method == Method::Pull
            && self
                .on_disk()
                .is_ok_and(|chain| chain.layers().first().is_some_and(has_no_backing_file))
    }

    fn on_disk(&self) -> qcow::Result<Chain> {
        let open = OpenOptions::default().format(self.plan().format).force_share(true);
        Chain::open_alone(&self.plan().becomes, &open)
    }
}

fn is_at(disk: &XmlDisk, path: &Path) -> bool {
    let (Source::File { path: own } | Source::Block { path: own }) = &disk.source else {
        return false;
    };
    own == path
}

fn has_no_backing_file(layer: &qcow::chain::Layer) -> bool {
    layer.image().is_some_and(|image| image.area().backing_name.is_none())
}
