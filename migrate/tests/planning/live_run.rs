//! How a plan of live flattening is carried out on a host that behaves as libvirt sometimes does: answers are lost,
//! jobs end early, guests are stopped by others, definitions are left as they were.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use migrate::driver::{
    BlockCopy, BlockJobKind, BlockJobs, BlockProgress, Hypervisor, Inventory, JobProgress,
    MigrateRequest,
};
use migrate::facts::{
    Abilities, Cpu, CpuFit, DomainFacts, DomainState, HostFacts, PoolFacts, VolumeFacts,
};
use migrate::live::{
    AllocationSummary, Below, LivePlan, Method, ResumeRecord, RunContext, flatten, go_on,
};
use migrate::{Error, ErrorKind, Result};
use qcow::chain::{Chain, Format, OpenOptions};
use qcow::ops::create::{Backing, CreateOptions, create};
use qcow::ops::flatten::FlattenOptions;
use qcow::{CancelToken, Silent};

const UUID: &str = "6f1a9b52-6f2b-4a6e-9a53-0d8a6d0a7c11";
const SIZE: u64 = 1 << 20;

/// What is odd about the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Odd {
    /// The job ends and has done nothing.
    ends_early: bool,
    /// Somebody stops the guest while the job runs.
    stopped_by_others: bool,
    /// The copy is in step only when it is asked a second time.
    not_yet: bool,
    /// The answer to the change-over is lost.
    no_answer: bool,
    /// The definition keeps what it had.
    old_definition: bool,
    /// QEMU says that it stands alone, and its tables are not on the disk.
    tables_lost: bool,
}

#[derive(Debug)]
struct Now {
    state: DomainState,
    disk: PathBuf,
    alone: bool,
    defined: PathBuf,
    job: Option<BlockJobKind>,
    target: Option<PathBuf>,
    suspends: u32,
    aborts: u32,
    asked: u32,
}

struct World {
    dir: tempfile::TempDir,
    odd: Odd,
    now: Mutex<Now>,
    cancel: CancelToken,
}

impl World {
    /// An overlay on a base that holds data, and a guest that runs on it.
    fn new(odd: Odd) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("base.raw"), [7; SIZE as usize]).unwrap();
        let backing = Backing::new(at("base.raw"), Format::Raw);
        let options = CreateOptions::default().backing(backing);
        create(&at("disk.qcow2"), &options).unwrap();
        let now = Now {
            state: DomainState::Running,
            disk: at("disk.qcow2"),
            alone: false,
            defined: at("disk.qcow2"),
            job: None,
            target: None,
            suspends: 0,
            aborts: 0,
            asked: 0,
        };
        Self { dir, odd, now: Mutex::new(now), cancel: CancelToken::new() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap()
    }

    fn plan(&self, method: Method) -> LivePlan {
        let becomes = if method == Method::Pull { "disk.qcow2" } else { "new.qcow2" };
        LivePlan {
            domain: "web".into(),
            uuid: UUID.into(),
            disk: "vda".into(),
            method,
            image: self.at("disk.qcow2"),
            becomes: self.at(becomes),
            format: Format::Qcow2,
            keeps_below: false,
            compare: false,
            virtual_size: SIZE,
            below: vec![Below { path: self.at("base.raw"), format: "raw".into(), deleted: false }],
            copied_bytes: SIZE,
            grows_bytes: SIZE,
            length_bytes: SIZE,
            available_bytes: None,
            bandwidth: None,
            timeout: None,
            tables_compared: method == Method::Pull,
            running: true,
            notes: vec![],
        }
    }

    fn allocation(&self) -> AllocationSummary {
        AllocationSummary::of(
            &Chain::open(&self.at("disk.qcow2"), &OpenOptions::default()).unwrap(),
        )
        .unwrap()
    }

    fn context(&self) -> RunContext<'_> {
        RunContext {
            hypervisor: self,
            state: self.dir.path(),
            observer: &Silent,
            cancel: &self.cancel,
        }
    }

    fn flatten(&self, method: Method) -> Result<migrate::live::Flattened> {
        flatten(&self.plan(method), self.allocation(), &self.context())
    }

    fn record(&self) -> Option<ResumeRecord> {
        ResumeRecord::read(self.dir.path(), UUID, "vda").unwrap()
    }

    fn xml(&self, disk: &Path, alone: bool) -> String {
        let below = format!(
            "<backingStore type='file'><format type='raw'/><source file='{}'/><backingStore/></backingStore>",
            self.at("base.raw").display()
        );
        let below = if alone { "<backingStore/>" } else { &below };
        format!(
            "<domain><name>web</name><uuid>{UUID}</uuid><devices><disk type='file' device='disk'>\
             <driver name='qemu' type='qcow2'/><source file='{}'/>{below}<target dev='vda'/></disk>\
             </devices></domain>",
            disk.display()
        )
    }

    /// What QEMU does to the files when a job is done.
    fn write_whole(&self, to: &Path) {
        let chain = Chain::open(&self.at("disk.qcow2"), &OpenOptions::default()).unwrap();
        let options = FlattenOptions::default();
        if self.odd.tables_lost {
            let size = Some(chain.virtual_size());
            fs::remove_file(to).unwrap();
            create(to, &CreateOptions::default().size(size)).unwrap();
        } else {
            let whole = self.at("whole.qcow2");
            let never = CancelToken::new();
            qcow::ops::flatten::flatten(&chain, &whole, &options, &Silent, &never).unwrap();
            drop(chain);
            fs::rename(whole, to).unwrap();
        }
    }
}

impl Inventory for World {
    fn host(&self) -> Result<HostFacts> {
        unimplemented!()
    }

    fn names(&self) -> Result<Vec<String>> {
        unimplemented!()
    }

    fn domains(&self) -> Result<Vec<DomainFacts>> {
        unimplemented!()
    }

    fn pools(&self) -> Result<Vec<PoolFacts>> {
        unimplemented!()
    }

    fn volumes(&self, _: &str) -> Result<Vec<VolumeFacts>> {
        unimplemented!()
    }

    fn volume_path(&self, _: &str, _: &str) -> Result<Option<PathBuf>> {
        unimplemented!()
    }

    fn pool_path(&self, _: &str) -> Result<Option<PathBuf>> {
        unimplemented!()
    }

    fn paths_in_use(&self) -> Result<Vec<PathBuf>> {
        let now = self.now();
        Ok(vec![now.disk.clone(), now.defined.clone()])
    }
}

impl Hypervisor for World {
    fn block_jobs(&self) -> Option<&dyn BlockJobs> {
        Some(self)
    }

    fn domain(&self, _: &str) -> Result<Option<DomainFacts>> {
        let now = self.now();
        let live = self.xml(&now.disk, now.alone);
        // It spells the chain out, as some do.
        let inactive = self.xml(&now.defined, false);
        Ok(Some(DomainFacts {
            state: now.state,
            live_xml: live.clone(),
            migratable_xml: live,
            inactive_xml: Some(if self.odd.old_definition {
                inactive
            } else {
                self.xml(&now.disk, now.alone)
            }),
            ..crate::plan_facts::guest(vec![]).domain
        }))
    }

    fn state(&self, _: &str) -> Result<Option<DomainState>> {
        Ok(Some(self.now().state))
    }

    fn suspend(&self, _: &str) -> Result<()> {
        let mut now = self.now();
        now.suspends += 1;
        now.state = DomainState::Paused;
        Ok(())
    }

    fn resume(&self, _: &str) -> Result<()> {
        self.now().state = DomainState::Running;
        Ok(())
    }

    fn define(&self, xml: &str) -> Result<()> {
        let disk = migrate::domain::parse(xml)?.disks.remove(0);
        assert_eq!(disk.chain.layers.len(), 1, "{xml}");
        self.now().defined = disk.chain.layers[0].path.clone();
        fs::write(self.at("defined"), xml).unwrap();
        Ok(())
    }

    fn wait(&self, _: std::time::Duration) {}

    fn abilities(&self) -> Result<Option<Abilities>> {
        unimplemented!()
    }
    fn compare_cpu(&self, _: &Cpu<'_>) -> Result<CpuFit> {
        unimplemented!()
    }
    fn capacity(&self, _: &str, _: &str) -> Result<u64> {
        unimplemented!()
    }
    fn block_job(&self, _: &str, _: &str) -> Result<Option<String>> {
        unimplemented!()
    }
    fn migrate(&self, _: &MigrateRequest, _: &dyn Fn(&JobProgress), _: &CancelToken) -> Result<()> {
        unimplemented!()
    }
    fn abort(&self, _: &str) -> Result<()> {
        unimplemented!()
    }
    fn job(&self, _: &str) -> Result<Option<JobProgress>> {
        unimplemented!()
    }
    fn start(&self, _: &str) -> Result<()> {
        unimplemented!()
    }
    fn destroy(&self, _: &str) -> Result<()> {
        unimplemented!()
    }
    fn undefine(&self, _: &str) -> Result<()> {
        unimplemented!()
    }
    fn refresh_pools(&self, _: &[&Path]) -> Result<()> {
        unimplemented!()
    }
}

impl BlockJobs for World {
    fn block_pull(&self, _: &str, _: &str, _: Option<u64>) -> Result<()> {
        self.now().job = Some(BlockJobKind::Pull);
        Ok(())
    }

    fn block_copy(&self, _: &str, _: &str, copy: &BlockCopy) -> Result<()> {
        let mut now = self.now();
        (now.job, now.target) = (Some(BlockJobKind::Copy), Some(copy.to.clone()));
        Ok(())
    }

    fn block_progress(&self, _: &str, _: &str) -> Result<Option<BlockProgress>> {
        let mut now = self.now();
        let Some(kind) = now.job else { return Ok(None) };
        now.asked += 1;
        if now.asked == 2 {
            if self.odd.stopped_by_others {
                now.state = DomainState::Paused;
            }
            if self.odd.ends_early {
                now.job = None;
            } else if kind == BlockJobKind::Pull {
                self.write_whole(&self.at("disk.qcow2"));
                (now.job, now.alone) = (None, true);
            }
        }
        let done = if now.asked == 1 { SIZE / 2 } else { SIZE };
        Ok(now.job.map(|kind| BlockProgress { kind, done, total: SIZE }))
    }

    fn pivot(&self, _: &str, _: &str) -> Result<bool> {
        let mut now = self.now();
        if self.odd.not_yet && now.asked < 3 {
            return Ok(false);
        }
        let target = now.target.clone().unwrap();
        self.write_whole(&target);
        (now.disk, now.alone, now.job) = (target, true, None);
        if self.odd.no_answer {
            return Err(Error::environment("the connection broke"));
        }
        Ok(true)
    }

    fn abort_block_job(&self, _: &str, _: &str) -> Result<()> {
        let mut now = self.now();
        now.aborts += 1;
        now.job = None;
        Ok(())
    }
}

#[test]
fn a_pull_stops_the_guest_for_a_moment_and_a_copy_does_not() {
    for (method, suspends) in [(Method::Pull, 1), (Method::Copy, 0)] {
        let world = World::new(Odd::default());
        let done = world.flatten(method).unwrap();
        assert_eq!(done.image, world.plan(method).becomes);
        assert_eq!(world.now().suspends, suspends);
        assert_eq!(world.now().state, DomainState::Running);
        assert_eq!(world.record(), None);
        assert!(!world.at("defined").exists(), "the definition was right already");
    }
}

#[test]
fn a_definition_that_was_left_as_it_was_is_changed() {
    for method in [Method::Pull, Method::Copy] {
        let world = World::new(Odd { old_definition: true, ..Odd::default() });
        let done = world.flatten(method).unwrap();
        let defined = fs::read_to_string(world.at("defined")).unwrap();
        assert!(defined.contains(done.image.to_str().unwrap()), "{defined}");
        assert!(!defined.contains("base.raw"), "{defined}");
    }
}

#[test]
fn a_job_that_ends_early_changes_nothing() {
    for method in [Method::Pull, Method::Copy] {
        let world = World::new(Odd { ends_early: true, ..Odd::default() });
        let error = world.flatten(method).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
        assert!(!world.at("new.qcow2").exists(), "the new image is left");
        assert_eq!(world.record(), None);
    }
}

#[test]
fn a_copy_is_asked_again_and_looked_at_when_the_answer_is_lost() {
    for odd in [Odd { not_yet: true, ..Odd::default() }, Odd { no_answer: true, ..Odd::default() }]
    {
        let world = World::new(odd);
        let done = world.flatten(Method::Copy).unwrap();
        assert_eq!(done.image, world.at("new.qcow2"));
        assert_eq!(world.now().aborts, 0);
        assert!(world.at("new.qcow2").exists());
    }
}

/// Whoever stopped it has his reasons: it is not let go on, and what was pulled is not called safe.
#[test]
fn a_guest_that_others_stopped_is_left_standing_and_the_run_can_be_taken_up() {
    let world = World::new(Odd { stopped_by_others: true, ..Odd::default() });
    let error = world.flatten(Method::Pull).unwrap_err();
    assert!(error.to_string().contains("virsh resume"), "{error}");
    assert_eq!(world.now().state, DomainState::Paused);
    assert_eq!(world.now().suspends, 0);
    world.now().state = DomainState::Running;
    let done = go_on(world.record().unwrap(), &world.context()).unwrap().unwrap();
    assert!(done.went_on);
    assert_eq!(world.now().suspends, 1);
    assert_eq!(world.record(), None);
}

/// As the model of the hole: the header is on the disk, and the tables are not.
#[test]
fn tables_that_are_not_on_the_disk_are_found_out() {
    let world = World::new(Odd { tables_lost: true, ..Odd::default() });
    let error = world.flatten(Method::Pull).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unverified, "{error}");
    assert!(matches!(error.what_next(), Some(migrate::Remedy::KeepRunning(..))), "{error}");
    assert!(world.record().is_some(), "it was forgotten");
    assert_eq!(world.now().state, DomainState::Running);
}

#[test]
fn stopped_at_once_nothing_is_begun_and_later_the_job_is_aborted() {
    let world = World::new(Odd::default());
    world.cancel.cancel();
    assert_eq!(world.flatten(Method::Copy).unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(!world.at("new.qcow2").exists());

    // A run that was killed while libvirt is at it, taken up and then stopped.
    let other = World::new(Odd::default());
    other.now().job = Some(BlockJobKind::Pull);
    let record = ResumeRecord::new(other.plan(Method::Pull), other.allocation());
    other.cancel.cancel();
    let error = go_on(record, &other.context()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    assert_eq!(other.now().aborts, 1);
}

/// The job is gone, the disk stands on what it stood on: the new image goes, and a new plan can be made.
#[test]
fn what_a_killed_run_made_is_removed_and_what_others_made_is_not() {
    let world = World::new(Odd { ends_early: true, ..Odd::default() });
    world.now().job = None;
    let record = ResumeRecord::new(world.plan(Method::Copy), world.allocation());
    fs::write(world.at("new.qcow2"), "somebody's").unwrap();
    assert_eq!(go_on(record, &world.context()).unwrap(), None);
    assert!(world.at("new.qcow2").exists(), "it was not ours");
}

/// The guest was stopped for the flush when the run was killed.
#[test]
fn a_guest_that_a_killed_run_had_stopped_is_let_go_on() {
    let world = World::new(Odd::default());
    world.write_whole(&world.at("disk.qcow2"));
    let mut record = ResumeRecord::new(world.plan(Method::Pull), world.allocation());
    record.stopped = true;
    {
        let mut now = world.now();
        (now.state, now.alone) = (DomainState::Paused, true);
    }
    assert!(go_on(record, &world.context()).unwrap().unwrap().went_on);
    assert_eq!(world.now().state, DomainState::Running);
}

impl World {
    /// Moves the disk, and has all of it compared.
    fn compared(&self) -> LivePlan {
        let plan = self.plan(Method::Copy);
        LivePlan { method: Method::Move, compare: true, ..plan }
    }

    /// How often the guest was stopped, and what it does now.
    fn still(&self) -> (u32, DomainState) {
        let now = self.now();
        (now.suspends, now.state)
    }
}

#[test]
fn a_moved_disk_is_compared_while_the_guest_stands_still() {
    let world = World::new(Odd::default());
    let done = flatten(&world.compared(), world.allocation(), &world.context()).unwrap();
    assert!(done.compared);
    assert_eq!(world.still(), (1, DomainState::Running));
    assert_eq!(world.record(), None);

    // A paused guest stays paused.
    let world = World::new(Odd { stopped_by_others: true, ..Odd::default() });
    let done = flatten(&world.compared(), world.allocation(), &world.context()).unwrap();
    assert!(done.compared);
    assert_eq!(world.still(), (0, DomainState::Paused));

    // Killed while it compared, and called again.
    let world = World::new(Odd::default());
    let plan = world.compared();
    create(&plan.becomes, &CreateOptions::default().size(Some(SIZE))).unwrap();
    world.write_whole(&plan.becomes);
    let mut record = ResumeRecord::new(plan.clone(), world.allocation());
    record.stopped = true;
    {
        let mut now = world.now();
        (now.state, now.disk, now.alone) = (DomainState::Paused, plan.becomes.clone(), true);
    }
    let done = go_on(record, &world.context()).unwrap().unwrap();
    assert!(done.compared && done.went_on);
    assert_eq!(world.now().state, DomainState::Running);
}

#[test]
fn a_moved_disk_that_differs_keeps_the_guest_from_running() {
    let world = World::new(Odd { tables_lost: true, ..Odd::default() });
    let error = flatten(&world.compared(), world.allocation(), &world.context()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unverified, "{error}");
    assert_eq!(world.now().state, DomainState::Paused);
    assert!(world.record().is_some() && world.at("disk.qcow2").exists());

    // What is no difference is no reason: it goes on with the old image.
    let world = World::new(Odd { ends_early: true, ..Odd::default() });
    flatten(&world.compared(), world.allocation(), &world.context()).unwrap_err();
    assert_eq!(world.now().state, DomainState::Running);
    assert!(!world.at("new.qcow2").exists());
}

/// Another kind of job on the disk is nobody's to go on with.
#[test]
fn a_job_of_another_kind_is_not_taken_for_ours() {
    let world = World::new(Odd::default());
    let record = ResumeRecord::new(world.plan(Method::Pull), world.allocation());
    world.now().job = Some(BlockJobKind::Other);
    let error = go_on(record, &world.context()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert_eq!(world.now().aborts, 0);
}

/// The guest used the copy, and ended, while nobody looked: the new image is its disk.
#[test]
fn a_copy_that_the_guest_used_is_never_removed() {
    for (method, disk) in [("taken", "new.qcow2"), ("unknown", "disk.qcow2")] {
        let world = World::new(Odd::default());
        let plan = world.plan(Method::Copy);
        let size = Some(SIZE);
        create(&plan.becomes, &CreateOptions::default().size(size)).unwrap();
        let store = migrate::store::LocalStore::new(Path::new("/")).unwrap();
        let made = migrate::store::Store::look(&store, &plan.becomes).unwrap().unwrap().identity;
        let mut record = ResumeRecord::new(plan.clone(), world.allocation());
        record.made = Some(made);
        {
            let mut now = world.now();
            (now.state, now.disk, now.alone) = (DomainState::ShutOff, world.at(disk), true);
        }
        let outcome = go_on(record, &world.context());
        assert!(plan.becomes.exists(), "{method}: the guest's disk was removed");
        match method {
            "taken" => assert!(outcome.unwrap().unwrap().went_on),
            _ => assert!(outcome.unwrap_err().to_string().contains("is left")),
        }
    }
}
