//! Carries out a plan: libvirt's job, watched; the flush; and the look at what is on the disk.

use std::path::Path;
use std::time::{Duration, Instant};

use qcow::chain::{Chain, Format, OpenOptions};
use qcow::ops::create::{create, like};
use qcow::{CancelToken, Observer};

use super::allocation::AllocationSummary;
use super::resume_record::ResumeRecord;
use super::value::{Flattened, LivePlan, Method};
use crate::domain::{Change, DiskEdit, XmlDisk, parse, persistent_xml};
use crate::driver::{BlockCopy, BlockJobKind, BlockJobs, Hypervisor, TICK};
use crate::facts::{DomainFacts, DomainState, Source};
use crate::store::{LocalStore, Store};
use crate::{Error, ErrorKind, Remedy, Result};

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
    if run.record.stopped {
        run.let_go()?;
    }
    let (uuid, disk) = (run.record.plan.uuid.clone(), run.record.plan.disk.clone());
    let wanted = match run.record.plan.method {
        Method::Pull => BlockJobKind::Pull,
        Method::Copy => BlockJobKind::Copy,
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
}

impl<'a> Run<'a> {
    fn new(record: ResumeRecord, context: &'a RunContext<'a>) -> Self {
        Self { context, record, start: Instant::now(), paused: Duration::ZERO }
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
            Method::Copy => {
                let plan = plan.clone();
                let open = OpenOptions::default().format(Format::Qcow2).force_share(true);
                create(&plan.becomes, &like(&plan.image, &open)?.create)?;
                let made = LocalStore::new(Path::new("/"))?.look(&plan.becomes)?;
                self.record.made = made.map(|object| object.identity);
                self.record.write(self.context.state)?;
                let copy = BlockCopy {
                    to: plan.becomes.clone(),
                    format: Format::Qcow2,
                    bandwidth: plan.bandwidth,
                };
                jobs.block_copy(&plan.uuid, &plan.disk, &copy)
            }
        }
    }

    /// Waits for the job, ends it one way or the other, and does what is left to do.
    fn settle(self, again: bool) -> Result<Flattened> {
        let stopped = match self.wait()? {
            Waited::Gone => None,
            Waited::Stop(error) => Some(error),
            Waited::Ready => self.pivot()?,
        };
        if stopped.is_some() {
            self.abort()?;
        }
        match (self.backing_state()?, stopped) {
            // It was done before it could be stopped.
            (BackingState::Alone, _) => self.finish(again),
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
                    if plan.method == Method::Copy && job.total > 0 && job.done >= job.total {
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
            Method::Copy => is_at(&disk, &plan.becomes),
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
        let open = OpenOptions::default().format(Format::Qcow2).force_share(true);
        Chain::open_alone(&self.plan().becomes, &open)
    }

    /// The disk has no backing file any more: flushes that to storage, verifies it, and updates the guest's definition.
    fn finish(mut self, again: bool) -> Result<Flattened> {
        if self.plan().method == Method::Pull {
            self.flush()?;
        }
        self.prove()?;
        self.define()?;
        self.record.remove(self.context.state)?;
        let plan = self.plan();
        let old = (plan.method == Method::Copy).then(|| plan.image.clone());
        let milliseconds =
            |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Ok(Flattened {
            domain: plan.domain.clone(),
            uuid: plan.uuid.clone(),
            disk: plan.disk.clone(),
            method: plan.method,
            image: plan.becomes.clone(),
            left: old
                .into_iter()
                .chain(plan.below.iter().map(|layer| layer.path.clone()))
                .collect(),
            length_bytes: std::fs::metadata(&plan.becomes).map_or(0, |metadata| metadata.len()),
            elapsed_ms: milliseconds(self.start.elapsed()),
            paused_ms: milliseconds(self.paused),
            tables_compared: plan.tables_compared,
            went_on: again,
        })
    }

    /// Stops the guest for a moment: QEMU writes all that it keeps in memory of its disks when a guest stops. A
    /// guest that has stopped already does not do it again.
    fn flush(&mut self) -> Result<()> {
        let uuid = self.plan().uuid.clone();
        let hypervisor = self.context.hypervisor;
        match self.patiently(|| hypervisor.state(&uuid))? {
            Some(DomainState::Running) => {}
            None | Some(DomainState::ShutOff) => return Ok(()),
            Some(DomainState::Paused | DomainState::Other) => {
                let message = format!(
                    "'{}' has no backing file any more, but the guest has stopped, and the pulled data may not all be on disk",
                    self.plan().becomes.display()
                );
                return Err(Error::environment(message).hint(
                    "do not stop the guest: resume it (virsh resume), and run the same command again",
                ));
            }
        }
        self.record.stopped = true;
        self.record.write(self.context.state)?;
        let stopped = Instant::now();
        let suspended = self.patiently(|| hypervisor.suspend(&uuid));
        self.let_go()?;
        self.paused = stopped.elapsed();
        suspended
    }

    /// Lets the guest go on that we stopped.
    fn let_go(&mut self) -> Result<()> {
        let uuid = self.plan().uuid.clone();
        let hypervisor = self.context.hypervisor;
        let gone_on = self.patiently(|| match hypervisor.state(&uuid)? {
            Some(DomainState::Paused) => hypervisor.resume(&uuid),
            _ => Ok(()),
        });
        gone_on.map_err(|error| {
            error.and_also("the guest may be paused").hint("virsh resume resumes it")
        })?;
        self.record.stopped = false;
        self.record.write(self.context.state)
    }

    /// Verifies what is on storage: the image has no backing file, and its tables lead to all data of the layers.
    fn prove(&self) -> Result<()> {
        let plan = self.plan();
        let chain = self.on_disk()?;
        let wrong = |what: String| {
            let error = Error::new(ErrorKind::Unverified, what);
            let Some(base) = plan.below.first() else { return error };
            error.hint(Remedy::KeepRunning(
                base.path.display().to_string(),
                base.format.clone(),
                plan.becomes.display().to_string(),
            ))
        };
        let name = plan.becomes.display();
        if !chain.layers().first().is_some_and(has_no_backing_file) {
            return Err(wrong(format!("the header of '{name}' still names a layer below")));
        }
        if plan.tables_compared {
            let lacking = self.record.allocation.lacking_in(&AllocationSummary::of(&chain)?);
            if let Some((offset, bytes)) = lacking {
                return Err(wrong(format!(
                    "'{name}' lacks {bytes} bytes that it and the layers below had, from about guest offset \
                     {offset} on"
                )));
            }
        }
        Ok(())
    }

    /// Has the guest's definition say the same as what runs. libvirt usually has seen to that.
    fn define(&self) -> Result<()> {
        let plan = self.plan();
        let Some((domain, _)) = self.look()? else { return Ok(()) };
        let Some(inactive) = domain.inactive_xml.filter(|_| domain.persistent) else {
            return Ok(());
        };
        let disks = parse(&inactive)?.disks;
        // The disk of the next start may be another one on purpose.
        let old = disks.iter().find(|disk| disk.target == plan.disk && is_at(disk, &plan.image));
        let stale = old.is_some_and(|disk| match plan.method {
            Method::Pull => disk.chain.layers.len() > 1,
            Method::Copy => true,
        });
        if !stale {
            return Ok(());
        }
        let block = matches!(old.map(|disk| &disk.source), Some(Source::Block { .. }));
        let change = Change::Move {
            path: plan.becomes.clone(),
            block: block && plan.method == Method::Pull,
            format: Format::Qcow2,
            below: Vec::new(),
            slice: None,
        };
        let edit = DiskEdit { target: plan.disk.clone(), change };
        let xml = persistent_xml(&inactive, &[edit])?;
        self.patiently(|| self.context.hypervisor.define(&xml))
    }

    /// Takes away what was made, and the mark. The error says what could not be.
    fn roll_back_after(&self, error: Error) -> Error {
        let error = match self.look() {
            Ok(Some((domain, _))) if self.plan().running && domain.state == DomainState::Paused => {
                error
                    .and_also("the guest is paused, as when its disk is full")
                    .hint("make room, then resume it: virsh resume")
            }
            _ => error,
        };
        match self.forget() {
            Ok(()) => error,
            Err(left) => error.and_also(format!("the roll back is incomplete: {left}")),
        }
    }

    /// Removes the new image, if it is not in use, and the mark.
    fn forget(&self) -> Result<()> {
        if let Some(made) = &self.record.made {
            let path = &self.plan().becomes;
            // Where the guest has ended it is not known whether its last writes are in it.
            let runs = matches!(
                self.look()?,
                Some((domain, Some(_))) if domain.state != DomainState::ShutOff
            );
            let used = self.patiently(|| self.context.hypervisor.paths_in_use())?.contains(path);
            if runs && !used {
                LocalStore::new(Path::new("/"))?.remove(path, made)?;
            } else {
                self.record.remove(self.context.state)?;
                let message = format!("the new image '{}' is left", path.display());
                return Err(Error::environment(message).hint(
                    "the guest may have written to it: look at its definition before it is removed",
                ));
            }
        }
        self.record.remove(self.context.state)
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
