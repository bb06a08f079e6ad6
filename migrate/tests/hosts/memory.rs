//! A whole live migration without libvirt, as a control plane would test its own: on two hosts in memory.

use std::fs;
use std::path::PathBuf;

use migrate::driver::{Hypervisor, JobProgress};
use migrate::facts::{DomainState, Route};
use migrate::memory::{Fault, MemoryHost, pair};
use migrate::plan::{CopyMode, Plan, Policy, Verify, plan};
use migrate::probe::{Hosts, Probing, probe};
use migrate::run::{Finished, Phase, Report, Run, RunContext};
use migrate::store::LocalStore;
use migrate::{CancelToken, Format, Observer, Result, Silent};
use qcow::chain::{Chain, OpenOptions};
use qcow::ops::create::{Backing, CreateOptions, create};
use qcow::ops::digest::tree_hash;

const UUID: &str = "6f1a9b52-6f2b-4a6e-9a53-0d8a6d0a7c11";
const SIZE: u64 = 1 << 20;

struct Quiet;

impl Report for Quiet {
    fn phase(&self, _: Phase) {}
    fn job(&self, _: &JobProgress) {}
    fn note(&self, _: &str) {}
    fn observer(&self) -> &dyn Observer {
        &Silent
    }
}

struct World {
    dir: tempfile::TempDir,
    source: MemoryHost,
    destination: MemoryHost,
}

impl World {
    /// A guest that runs at the source on an overlay over a base with data.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fs::create_dir(&images).unwrap();
        fs::write(images.join("base.raw"), vec![7; SIZE as usize]).unwrap();
        let backing = Backing::new(images.join("base.raw"), Format::Raw);
        let options = CreateOptions::default().backing(backing);
        create(&images.join("disk.qcow2"), &options).unwrap();
        let root = dir.path().join("destination");
        fs::create_dir_all(root.join(images.strip_prefix("/").unwrap())).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        let [source, destination] = pair(&root);
        let xml = format!(
            "<domain type='kvm'><name>web</name><uuid>{UUID}</uuid><devices><disk type='file' \
             device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' \
             bus='virtio'/></disk></devices></domain>",
            images.join("disk.qcow2").display()
        );
        source.run(&xml).unwrap();
        Self { dir, source, destination }
    }

    fn image(&self, at_destination: bool) -> PathBuf {
        let image = self.dir.path().join("images/disk.qcow2");
        match at_destination {
            false => image,
            true => self.dir.path().join("destination").join(image.strip_prefix("/").unwrap()),
        }
    }

    fn migrate(&self) -> (Plan, Result<Finished>) {
        let (store, cancel) =
            (LocalStore::new(&self.dir.path().join("destination")).unwrap(), CancelToken::new());
        let hosts = Hosts {
            source: &self.source,
            destination: &self.destination,
            source_root: "/".as_ref(),
            store: &store,
        };
        let policy = Policy::default().verify(Verify::Content);
        let probing = Probing::new(&policy, &Silent, &cancel);
        let probed = probe(&hosts, "web", &probing).unwrap();
        let plan = plan(&probed.facts, &policy).unwrap();
        let route = Route {
            domain: "web".into(),
            from: "memory:///source".into(),
            to: "memory:///destination".into(),
            rsh: None,
            rsh_program: String::new(),
            domain_xml: None,
            source_root: "/".into(),
            running: true,
        };
        let context = RunContext {
            hosts,
            facts: &probed.facts,
            pinned: &probed.pinned,
            route: &route,
            state: &self.dir.path().join("state"),
            report: &Quiet,
            cancel: &cancel,
        };
        let run = Run::begin(&plan, &context).unwrap();
        // A run may end on another thread than it began on.
        let finished =
            std::thread::scope(|scope| scope.spawn(move || run.migrate()).join().unwrap());
        (plan, finished)
    }

    fn states(&self) -> [Option<DomainState>; 2] {
        [&self.source, &self.destination].map(|host| host.state(UUID).unwrap())
    }
}

fn content(path: &std::path::Path) -> String {
    let chain = Chain::open(path, &OpenOptions::default()).unwrap();
    tree_hash(&chain, 0, &Silent, &CancelToken::new()).unwrap().root.to_string()
}

#[test]
fn a_guest_moves_with_its_disk() {
    let world = World::new();
    let before = content(&world.image(false));
    let (plan, finished) = world.migrate();
    let finished = finished.unwrap();
    assert_eq!(plan.copy, CopyMode::Full);
    let text = plan.to_string();
    assert!(text.contains("web from memory:///") && text.contains("vda  becomes '"), "{text}");
    assert_eq!(finished.domain, "web");
    assert_eq!(world.states()[1], Some(DomainState::Running));
    assert_ne!(world.states()[0], Some(DomainState::Running));
    assert_eq!(content(&world.image(true)), before);
}

#[test]
fn what_libvirt_answers_does_not_decide_where_the_guest_is() {
    let world = World::new();
    world.source.fault(Fault::AnswerLost);
    world.migrate().1.unwrap();
    assert_eq!(world.states()[1], Some(DomainState::Running));

    let world = World::new();
    world.source.fault(Fault::Fails);
    let error = world.migrate().1.unwrap_err();
    assert!(error.message().contains("as was asked for"), "{error}");
    assert_eq!(world.states(), [Some(DomainState::Running), None]);
    assert!(!world.image(true).exists(), "what was made is removed");
    // And then it goes.
    world.migrate().1.unwrap();
    assert_eq!(world.states()[1], Some(DomainState::Running));
}
