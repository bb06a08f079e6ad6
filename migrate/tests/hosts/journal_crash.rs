//! A run that ends anywhere leaves a journal from which everything can be put back.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use migrate::ErrorKind;
use migrate::journal::{DomainLock, Ended, Journal, Outcome, Record, RolledBack, Side, roll_back};
use migrate::plan::{CopyMode, Mode as How, Plan, Policy, Predicted, SCHEMA};
use migrate::store::{LocalStore, Mode, Store};
use proptest::prelude::*;
use qcow::{CancelToken, Silent};

const UUID: &str = "c7a5fdbd-cdaf-9455-926a-d65c16db1809";

fn plan() -> Plan {
    Plan {
        schema: SCHEMA.to_owned(),
        digest: "d".repeat(64),
        facts: "f".repeat(64),
        domain: "guest \u{1f980}\n".to_owned(),
        uuid: UUID.to_owned(),
        from: "qemu:///system".to_owned(),
        to: "qemu+ssh://there/system".to_owned(),
        mode: How::Live,
        copy: CopyMode::Full,
        flags: vec![],
        migrate_disks: vec!["vda".to_owned()],
        detect_zeroes: vec![],
        bandwidth_mib: None,
        directories: vec![],
        disks: vec![],
        files: vec![],
        destination_xml: "<domain/>\n".to_owned(),
        persistent_xml: None,
        predicted: Predicted::default(),
        warnings: vec![],
        policy: Policy::default(),
    }
}

/// Two hosts and a place for journals.
struct World {
    dir: tempfile::TempDir,
    source: LocalStore,
    destination: LocalStore,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["source", "destination"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let store = |name: &str| LocalStore::new(&dir.path().join(name)).unwrap();
        let (source, destination) = (store("source"), store("destination"));
        Self { dir, source, destination }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn real(&self, path: &Path) -> PathBuf {
        self.dir.path().join("destination").join(path.strip_prefix("/").unwrap())
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(self.dir.path().join("destination"))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read(entry.path()).unwrap())
            })
            .collect()
    }

    fn put(&self, path: &Path, content: &File) -> migrate::facts::Identity {
        let cancel = CancelToken::new();
        self.destination.put(path, content, Mode::Private, &Silent, &cancel).unwrap()
    }

    /// As after a crash: with nothing but the journal's file.
    fn roll_back(&self, id: &str) -> migrate::Result<RolledBack> {
        let mut journal = Journal::open(&self.state(), id)?;
        roll_back(&mut journal, &self.source, &self.destination)
    }
}

fn content(text: &str) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(3 << 20).unwrap();
    file.write_all_at(text.as_bytes(), 0).unwrap();
    file.write_all_at(text.as_bytes(), 2 << 20).unwrap();
    file
}

/// What is left when a run that prepares `disks` files ends after `steps` steps.
struct Crash {
    /// The journal's transaction, if it was begun.
    id: Option<String>,
    journal: Option<PathBuf>,
    /// The last step wrote to the journal; so long was it before.
    torn: Option<u64>,
    /// A file that has its name while the journal does not say that it was made.
    nameless: Option<PathBuf>,
    /// The file that the last step wrote into the journal as made.
    being_told: Option<PathBuf>,
    /// It was not the end of the run.
    cut: bool,
}

fn run(world: &World, disks: usize, steps: usize) -> Crash {
    let mut crash =
        Crash { id: None, journal: None, torn: None, nameless: None, being_told: None, cut: true };
    let mut left = steps;
    macro_rules! step {
        () => {
            if left == 0 {
                return crash;
            }
            left -= 1;
            crash.torn = None;
            crash.being_told = None;
        };
    }
    step!();
    let mut journal = Journal::create(&world.state(), &plan()).unwrap();
    crash.id = Some(journal.transaction().id.clone());
    crash.journal = Some(journal.path().to_path_buf());
    macro_rules! write {
        ($record:expr) => {
            step!();
            crash.torn = Some(fs::metadata(journal.path()).unwrap().len());
            journal.write($record).unwrap();
        };
    }
    write!(Record::Phase { number: 3, name: "prepare".to_owned() });
    for disk in 0..disks {
        let (host, path) = (Side::Destination, PathBuf::from(format!("/disk{disk}")));
        let content = content(&format!("disk {disk}"));
        let temporary = world.destination.temporary(&path, &content).unwrap();
        let intended = Record::Intended {
            host,
            path: path.clone(),
            temporary: temporary.clone(),
            proof: None,
            directory: false,
        };
        write!(intended);
        step!();
        let temporary = world.real(&temporary.unwrap());
        let unfinished =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary).unwrap();
        step!();
        unfinished.write_all_at(b"dis", 0).unwrap();
        drop(unfinished);
        step!();
        let identity = world.put(&path, &content);
        crash.nameless = Some(path.clone());
        write!(Record::Made { host, path, identity });
        crash.being_told = crash.nameless.take();
    }
    crash.cut = false;
    crash
}

/// Files that were there before, with names much like ours.
fn foreign(world: &World, names: &[String]) -> BTreeMap<String, Vec<u8>> {
    for name in names {
        fs::write(world.real(&Path::new("/").join(name)), format!("theirs: {name}")).unwrap();
    }
    world.files()
}

fn check(disks: usize, steps: usize, tear: Option<u64>, names: &[String]) -> bool {
    let world = World::new();
    let before = foreign(&world, names);
    let crash = run(&world, disks, steps);
    let mut nameless = crash.nameless.clone();
    if let (Some(tear), Some(whole)) = (tear, crash.torn) {
        // The last record was being written: what follows it has not happened.
        let journal = OpenOptions::new().write(true).open(crash.journal.unwrap()).unwrap();
        let end = journal.metadata().unwrap().len();
        journal.set_len(whole + tear % (end - whole)).unwrap();
        nameless = nameless.or(crash.being_told);
    }
    let Some(id) = crash.id else {
        assert_eq!(world.files(), before);
        return crash.cut;
    };
    let result = world.roll_back(&id).unwrap();
    let mut after = world.files();
    let left: Vec<_> = result.left.iter().map(|left| left.path.clone()).collect();
    assert_eq!(left, nameless.iter().cloned().collect::<Vec<_>>(), "after {steps} steps");
    if let Some(path) = nameless {
        after.remove(path.file_name().unwrap().to_str().unwrap()).expect("it is still there");
    }
    assert_eq!(after, before, "after {steps} steps");
    assert!(result.is_complete());
    // It is over: nothing is undone twice.
    assert_eq!(world.roll_back(&id).unwrap_err().kind(), ErrorKind::Refused);
    crash.cut
}

#[test]
fn a_preparation_that_ends_after_any_step_can_be_put_back() {
    let names = ["other".to_owned(), "disk0.part-0123456789abcdef".to_owned()];
    for tear in [None, Some(0), Some(30)] {
        let mut steps = 0;
        while check(2, steps, tear, &names) {
            steps += 1;
        }
        assert_eq!(steps, 12, "every step was the last once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn foreign_files_survive_whatever_they_are_called(
        steps in 0usize..20,
        tear in proptest::option::of(any::<u64>()),
        names in proptest::collection::btree_set("(disk[0-3]?)?(\\.part|\\.part-[0-9a-f]{16}|x)", 0..5),
    ) {
        let names: Vec<String> = names.into_iter().collect();
        check(3, steps, tear, &names);
    }

    /// Whatever becomes of a journal's bytes: it is read, or it is an error.
    #[test]
    fn a_damaged_journal_does_no_harm(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let world = World::new();
        let before = foreign(&world, &["other".to_owned()]);
        let crash = run(&world, 1, 5);
        let path = crash.journal.unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        fs::write(&path, &bytes).unwrap();
        let listed = Journal::list(&world.state()).unwrap();
        prop_assert_eq!(listed.len(), 1);
        let _ = world.roll_back(&crash.id.unwrap());
        let after = world.files();
        prop_assert_eq!(after.get("other"), before.get("other"));
    }
}

#[test]
fn a_journal_tells_what_happened() {
    let world = World::new();
    let mut journal = Journal::create(&world.state(), &plan()).unwrap();
    let id = journal.transaction().id.clone();
    journal.write(Record::Phase { number: 4, name: "create".to_owned() }).unwrap();
    journal.write(Record::PoolMade { host: Side::Source, name: "p".to_owned() }).unwrap();
    journal.write(Record::MigrateCalled).unwrap();
    journal.write(Record::Outcome { guest: Outcome::InDoubt }).unwrap();
    let told = journal.transaction().clone();
    // While it is open, nobody else goes on with it; but everybody may look.
    let error = Journal::open(&world.state(), &id).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let listed = Journal::list(&world.state()).unwrap();
    assert_eq!(listed[0].transaction.as_ref().unwrap(), &told);
    drop(journal);
    let journal = Journal::open(&world.state(), &id).unwrap();
    assert_eq!(journal.transaction(), &told);
    assert_eq!(told.plan, plan());
    assert_eq!(told.phase, Some((4, "create".to_owned())));
    assert_eq!(told.pools, [(Side::Source, "p".to_owned())]);
    assert!(told.migrate_called);
    assert_eq!(told.outcome, Some(Outcome::InDoubt));
}

#[test]
fn a_journal_has_its_name_when_its_first_record_is_whole() {
    let world = World::new();
    // The one that is being begun is hidden, and nobody's business.
    fs::create_dir(world.state()).unwrap();
    fs::write(world.state().join(".journal-x"), "{\"time\":").unwrap();
    assert!(Journal::list(&world.state()).unwrap().is_empty());
    let journal = Journal::create(&world.state(), &plan()).unwrap();
    let names: Vec<_> = fs::read_dir(world.state()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let bytes = fs::read(journal.path()).unwrap();
    assert!(bytes.ends_with(b"\n") && bytes.starts_with(b"{"));
    let mode = fs::metadata(journal.path()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn nothing_is_put_back_while_nobody_knows_where_the_guest_is() {
    for outcome in [None, Some(Outcome::InDoubt), Some(Outcome::AtDestination), Some(Outcome::Lost)]
    {
        let world = World::new();
        let crash = run(&world, 1, 100);
        let id = crash.id.unwrap();
        let files = world.files();
        let mut journal = Journal::open(&world.state(), &id).unwrap();
        journal.write(Record::MigrateCalled).unwrap();
        if let Some(guest) = outcome {
            journal.write(Record::Outcome { guest }).unwrap();
        }
        drop(journal);
        assert_eq!(world.roll_back(&id).unwrap_err().kind(), ErrorKind::InDoubt);
        assert_eq!(world.files(), files);
        // Once it is known to have stayed, everything goes.
        let mut journal = Journal::open(&world.state(), &id).unwrap();
        journal.write(Record::Outcome { guest: Outcome::AtSource }).unwrap();
        drop(journal);
        assert!(world.roll_back(&id).unwrap().is_complete());
        assert!(world.files().is_empty());
    }
}

#[test]
fn what_somebody_put_in_place_of_ours_is_left() {
    let world = World::new();
    let crash = run(&world, 2, 100);
    let disk = world.real(Path::new("/disk1"));
    fs::rename(&disk, world.real(Path::new("/moved"))).unwrap();
    fs::write(&disk, "theirs").unwrap();
    let result = world.roll_back(&crash.id.unwrap()).unwrap();
    assert_eq!(fs::read(&disk).unwrap(), b"theirs");
    assert_eq!(result.left[0].path, Path::new("/disk1"));
    assert_eq!(result.removed, [(Side::Destination, PathBuf::from("/disk0"))]);
    assert!(result.is_complete(), "it will never be ours again");
}

#[test]
fn a_file_that_was_just_given_its_name_goes_with_both() {
    // Where the two names cannot be exchanged in one step, there is a moment with both.
    let world = World::new();
    let before = foreign(&world, &["other".to_owned()]);
    let crash = run(&world, 1, 5);
    let temporary = world.files().into_keys().find(|name| name.contains(".part-")).unwrap();
    let temporary = world.real(&Path::new("/").join(temporary));
    fs::hard_link(temporary, world.real(Path::new("/disk0"))).unwrap();
    assert!(world.roll_back(&crash.id.unwrap()).unwrap().is_complete());
    assert_eq!(world.files(), before);
}

/// The run that is killed, when this file runs as a child of its own test; otherwise nothing.
#[test]
fn victim() {
    let Some(dir) = std::env::var_os("VICTIM").map(PathBuf::from) else { return };
    let store = LocalStore::new(&dir.join("destination")).unwrap();
    let mut journal = Journal::create(&dir.join("state"), &plan()).unwrap();
    for disk in 0..1000 {
        let (host, path) = (Side::Destination, PathBuf::from(format!("/disk{disk}")));
        let content = content(&format!("disk {disk}"));
        let temporary = store.temporary(&path, &content).unwrap();
        journal
            .write(Record::Intended {
                host,
                path: path.clone(),
                temporary,
                proof: None,
                directory: false,
            })
            .unwrap();
        let cancel = CancelToken::new();
        let identity = store.put(&path, &content, Mode::Private, &Silent, &cancel).unwrap();
        journal.write(Record::Made { host, path, identity }).unwrap();
    }
}

#[test]
fn a_run_that_is_killed_at_any_moment_can_be_put_back() {
    for round in 0..12u64 {
        let world = World::new();
        let before = foreign(&world, &["disk0.part".to_owned(), "diskette".to_owned()]);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "journal_crash::victim"])
            .env("VICTIM", world.dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(3000 + round * 2713));
        child.kill().unwrap();
        child.wait().unwrap();
        for listed in Journal::list(&world.state()).unwrap() {
            // A journal of which not even the first record is whole made nothing.
            if listed.transaction.is_err() {
                continue;
            }
            let result = world.roll_back(&listed.id).unwrap();
            assert!(result.is_complete(), "{:?}", result.left);
            // At most the one that had its name, but not yet its record.
            assert!(result.left.len() <= 1, "{:?}", result.left);
            for left in result.left {
                fs::remove_file(world.real(&left.path)).unwrap();
            }
        }
        assert_eq!(world.files(), before);
    }
}

#[test]
fn another_host_is_put_back_in_the_same_way() {
    use std::io::pipe;
    let world = World::new();
    let before = foreign(&world, &["other".to_owned()]);
    // One file is made, the next one is being made.
    let crash = run(&world, 2, 9);
    let (from_near, to_far) = pipe().unwrap();
    let (from_far, to_near) = pipe().unwrap();
    let store = LocalStore::new(&world.real(Path::new("/"))).unwrap();
    std::thread::spawn(move || migrate::agent::serve(from_near, to_near, &store));
    let far = migrate::store::RemoteStore::over(from_far.into(), to_far.into()).unwrap();
    let mut journal = Journal::open(&world.state(), &crash.id.unwrap()).unwrap();
    assert_eq!(world.files().len(), 3);
    let result = roll_back(&mut journal, &world.source, &far).unwrap();
    assert!(result.is_complete());
    assert_eq!(world.files(), before);
}

#[test]
fn what_is_in_use_can_be_put_back_later() {
    let world = World::new();
    let crash = run(&world, 2, 100);
    let id = crash.id.unwrap();
    let mut reader = std::process::Command::new("sleep")
        .arg("60")
        .stdin(File::open(world.real(Path::new("/disk0"))).unwrap())
        .spawn()
        .unwrap();
    let result = world.roll_back(&id).unwrap();
    assert!(!result.is_complete());
    assert_eq!(result.left.len(), 1);
    assert_eq!(world.files().keys().collect::<Vec<_>>(), ["disk0"]);
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert!(world.roll_back(&id).unwrap().is_complete());
    assert!(world.files().is_empty());
    let listed = Journal::list(&world.state()).unwrap();
    assert_eq!(listed[0].transaction.as_ref().unwrap().closed, Some(Ended::RolledBack));
}

#[test]
fn two_runs_on_one_guest_exclude_each_other() {
    let world = World::new();
    let first = DomainLock::take(&world.state(), UUID).unwrap();
    let error = DomainLock::take(&world.state(), &UUID.to_uppercase()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    DomainLock::take(&world.state(), &UUID.replace('c', "d")).unwrap();
    drop(first);
    DomainLock::take(&world.state(), UUID).unwrap();
    for name in ["", "../../../../../../../../etc/passwd00000000", "../x"] {
        let error = DomainLock::take(&world.state(), name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{name}");
        assert_eq!(Journal::open(&world.state(), name).unwrap_err().kind(), ErrorKind::Usage);
    }
}

#[test]
fn journals_are_listed_in_the_order_of_time() {
    let world = World::new();
    assert!(Journal::list(&world.state()).unwrap().is_empty());
    let ids: Vec<_> = (0..5)
        .map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(2));
            Journal::create(&world.state(), &plan()).unwrap().transaction().id.clone()
        })
        .collect();
    fs::write(world.state().join("notes.txt"), "not ours").unwrap();
    let listed: Vec<_> =
        Journal::list(&world.state()).unwrap().into_iter().map(|listed| listed.id).collect();
    assert_eq!(listed, ids);
}
