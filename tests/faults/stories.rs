//! What is disturbed: a guest that is shut off moves from one directory to another, which stand for hosts; the
//! journal says what is made, and `rollback` or `resume` ends what was cut off. And how that is judged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use fixtures::{args, qemu};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::cases::{Case, case};
use super::place::{Place, Room};
use super::tracer::{Call, Disturbance, Fate, Traced, World, run};
use common::binary;

const IMAGES: &str = "var/lib/libvirt/images";
const UUID: &str = "3b9a37ba-8e1c-4a3f-9c0e-8c1a52a6d6a1";
pub(crate) const DISK: &str = "var/lib/libvirt/images/vm.qcow2";
const DEFINITION: &str = "b/etc/libvirt/qemu/vm.xml";
const HOSTS: &str = "--domain-xml vm.xml --source-root a --to dir:b --state-dir state";
const EMPTY: Case = case("migration", "");

/// What was on both hosts before, and what is there when all is done: by name, without journals.
pub(crate) type Hosts = BTreeMap<String, Vec<u8>>;

/// A command that is disturbed. `HOSTS` and `ID` stand for how both hosts are reached and for the open transaction.
pub(crate) struct Story {
    pub(crate) name: &'static str,
    /// What is run before, if anything.
    first: Option<&'static str>,
    /// And at which call that is killed.
    cut: Option<fn(&Call) -> bool>,
    /// The times in the journals are changed, so that what is kept has been kept for long enough.
    pub(crate) aged: bool,
    pub(crate) line: &'static str,
    /// It looks at what others do not look at, and so its calls that only look are disturbed too.
    pub(crate) looks: bool,
    /// Files that it is to make at the destination, and to take away, so that it does something.
    makes: usize,
    removes: usize,
}

const fn story(name: &'static str, line: &'static str) -> Story {
    Story { name, first: None, cut: None, aged: false, line, looks: false, makes: 0, removes: 0 }
}

const MIGRATE: &str = "migrate --policy full HOSTS";
const THIN: &str = "migrate --policy thin --retain 0 HOSTS";

const MADE: &str =
    "migrate --policy full --target-dir /var/lib/libvirt/images/new/deeper --mkdir HOSTS";

/// The second directory is about to get its name.
fn names_a_directory(call: &Call) -> bool {
    call.name == "renameat2" && call.to.ends_with("images/new/deeper")
}

/// The guest's new disk is about to get its name.
fn names_the_target(call: &Call) -> bool {
    call.name == "renameat2" && call.to.ends_with("b/var/lib/libvirt/images/vm.qcow2")
}

/// The guest is defined at the destination, and it is about to be said that its files are put away.
fn will_put_away(call: &Call) -> bool {
    call.name == "write" && String::from_utf8_lossy(&call.data).contains("\"name\":\"retire\"")
}

/// They are about to be put away.
fn puts_away(call: &Call) -> bool {
    call.name == "renameat2" && call.to.to_string_lossy().contains(".migrated-")
}

pub(crate) const STORIES: [Story; 10] = [
    Story { makes: 2, looks: true, ..story("prepare", "prepare --running --policy thin HOSTS") },
    Story { makes: 3, removes: 1, ..story("migrate", MIGRATE) },
    Story { makes: 3, removes: 1, looks: true, ..story("migrate, nothing kept", THIN) },
    // Two directories and what is in them.
    Story { makes: 5, removes: 1, ..story("migrate, nowhere to go yet", MADE) },
    Story {
        first: Some(MADE),
        cut: Some(names_a_directory),
        removes: 1,
        ..story("rollback of half the directories", "rollback ID --state-dir state")
    },
    Story {
        first: Some("prepare --running --policy thin HOSTS"),
        removes: 2,
        ..story("rollback", "rollback ID --state-dir state")
    },
    Story {
        first: Some(MIGRATE),
        cut: Some(names_the_target),
        removes: 1,
        ..story("rollback of half a target", "rollback ID --state-dir state")
    },
    Story {
        first: Some(MIGRATE),
        cut: Some(will_put_away),
        removes: 2,
        looks: true,
        ..story("rollback of a definition", "rollback ID --state-dir state")
    },
    Story {
        first: Some(MIGRATE),
        cut: Some(puts_away),
        makes: 1,
        removes: 1,
        looks: true,
        ..story("resume", "resume ID --state-dir state")
    },
    Story {
        first: Some(MIGRATE),
        aged: true,
        removes: 1,
        looks: true,
        ..story("expire", "transactions --expire --state-dir state")
    },
];

/// How somebody ends what was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Rollback,
    Resume,
}

/// The hosts as they are before each story.
pub(crate) fn place() -> Place {
    let place = Place::new();
    let images = place.source("a").join(IMAGES);
    fs::create_dir_all(&images).unwrap();
    fs::create_dir_all(place.source("b").join(IMAGES)).unwrap();
    fs::write(place.source("b").join(IMAGES).join("other"), "somebody else's").unwrap();
    let (template, disk) = (images.join("template.qcow2"), images.join("vm.qcow2"));
    fs::copy(place.source("base"), &template).unwrap();
    qemu::overlay(&disk, "template.qcow2", "qcow2", "cluster_size=4k", "");
    qemu::qemu_io("qcow2", &disk, &["write -P 9 8k 12k"]);
    let base = format!("/{IMAGES}/template.qcow2");
    qemu::qemu_img(&args!["rebase", "-q", "-u", "-F", "qcow2", "-b", base, disk]);
    let xml = format!(
        "<domain type='kvm'><name>vm</name><uuid>{UUID}</uuid>\
         <memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os><devices>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='/{IMAGES}/vm.qcow2'/><target dev='vda' bus='virtio'/></disk>\
         </devices></domain>"
    );
    fs::write(place.source("vm.xml"), xml).unwrap();
    place
}

/// Two hosts, a definition, room for journals and for temporary files.
pub(crate) fn room(place: &Place) -> Room {
    let room = place.room(&EMPTY);
    for part in ["a", "b"] {
        copy(&place.source(part), &room.0.join(part));
    }
    fs::copy(place.source("vm.xml"), room.0.join("vm.xml")).unwrap();
    fs::create_dir(room.0.join("tmp")).unwrap();
    room
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// The files of both hosts, and the directories of the destination, with a slash at their end. Names that a transaction
/// gave end in `ID` here.
pub(crate) fn hosts(room: &Room) -> Hosts {
    let mut files = room.files();
    files.retain(|(name, _)| name.starts_with("a/") || name.starts_with("b/"));
    let named = |(name, bytes): (String, Vec<u8>)| match name.split_once(".migrated-") {
        Some((name, _)) => (format!("{name}.migrated-ID"), bytes),
        None => (name, bytes),
    };
    let mut hosts: Hosts = files.into_iter().map(named).collect();
    let mut rest = vec![format!("b/{IMAGES}")];
    while let Some(above) = rest.pop() {
        let entries = fs::read_dir(room.0.join(&above)).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.path().is_dir()) {
            let name = format!("{above}/{}", entry.file_name().to_string_lossy());
            hosts.insert(format!("{name}/"), Vec::new());
            rest.push(name);
        }
    }
    hosts
}

/// What a process that was killed may leave beside images and definitions: unnamed work, never read again.
pub(crate) fn without_litter(mut hosts: Hosts) -> Hosts {
    hosts.retain(|name, _| !name.contains("/.tmp") && !name.contains("/.qcowtool-"));
    hosts
}

static NEXT_PROCESSOR: AtomicUsize = AtomicUsize::new(0);

/// The command, not yet run, on one processor, so that its calls come in one order.
fn command(room: &Room, line: &str) -> Command {
    let threads = Pid::from_raw(0);
    let allowed = sched_getaffinity(threads).unwrap();
    let allowed: Vec<_> = (0..CpuSet::count()).filter(|n| allowed.is_set(*n).unwrap()).collect();
    if allowed.len() > 1 {
        // For this thread, which starts the command and waits for it.
        let mut one = CpuSet::new();
        let next = NEXT_PROCESSOR.fetch_add(1, Ordering::Relaxed);
        one.set(allowed[next % allowed.len()]).unwrap();
        sched_setaffinity(threads, &one).unwrap();
    }
    let line = line.replace("HOSTS", HOSTS);
    let line = if line.contains("ID") { line.replace("ID", &open(room)[0]) } else { line };
    let mut command = Command::new(binary());
    command.args(line.split(' ')).current_dir(&room.0).stdin(Stdio::null());
    command.env("TMPDIR", room.0.join("tmp"));
    command
}

fn quietly(room: &Room, line: &str) -> Output {
    command(room, line).output().unwrap()
}

pub(crate) fn traced(room: &Room, line: &str, disturbance: Disturbance) -> Traced {
    run(&mut command(room, line), &World::of(&room.0), disturbance)
}

/// The journals; each can be read.
pub(crate) fn transactions(room: &Room) -> Result<Vec<Value>, String> {
    let mut command = Command::new(binary());
    command.args(["transactions", "--output", "json", "--state-dir", "state"]);
    let output = command.current_dir(&room.0).output().unwrap();
    let all: Vec<Value> = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("transactions: {error}, {output:?}"))?;
    match all.iter().find(|one| one["state"] == "unreadable") {
        Some(unreadable) => Err(format!("a journal cannot be read: {unreadable}")),
        None => Ok(all),
    }
}

fn open(room: &Room) -> Vec<String> {
    let all = transactions(room).unwrap();
    let open = all.iter().filter(|one| one["state"] == "open");
    open.map(|one| one["transaction"].as_str().unwrap().to_owned()).collect()
}

/// The calls at which stories are cut off, by name.
static CUTS: Mutex<BTreeMap<&str, (&str, usize)>> = Mutex::new(BTreeMap::new());

/// A story in a room of its own, up to where it is disturbed.
pub(crate) fn begun(place: &Place, story: &Story) -> Room {
    let room = room(place);
    match (story.first, story.cut) {
        (Some(first), None) => {
            let output = quietly(&room, first);
            assert!(output.status.success(), "{}: {output:?}", story.name);
        }
        (Some(first), Some(cut)) => {
            let mut known = CUTS.lock().unwrap();
            let (name, nth) = *known.entry(story.name).or_insert_with(|| {
                let calls = traced(&self::room(place), first, Disturbance::None).calls;
                let at = calls.iter().find(|call| cut(call)).expect("a call to kill it at");
                (at.name, at.nth)
            });
            drop(known);
            let killed = traced(&room, first, Disturbance::AtCall(name, nth, Fate::Killed));
            assert_eq!(killed.ended, Err(Signal::SIGKILL), "{}", story.name);
        }
        (None, _) => {}
    }
    if story.aged {
        for journal in fs::read_dir(room.0.join("state/transactions")).unwrap() {
            let path = journal.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, text.replace("\"time\":\"20", "\"time\":\"19")).unwrap();
        }
    }
    room
}

/// An undisturbed run.
pub(crate) struct Golden {
    pub(crate) calls: Vec<Call>,
    /// With nothing begun.
    pub(crate) nothing: Hosts,
    /// With nothing disturbed.
    pub(crate) all: Hosts,
    /// With nothing cut off, if something is in the story.
    done: Hosts,
    /// Whatever is whole.
    whole: Hosts,
}

impl Golden {
    pub(crate) fn of(place: &Place, story: &Story) -> Self {
        let nothing = hosts(&room(place));
        let room = begun(place, story);
        let before = without_litter(hosts(&room));
        let run = traced(&room, story.line, Disturbance::None);
        assert_eq!(run.ended, Ok(0), "{}: {}", story.name, run.stderr);
        let all = without_litter(hosts(&room));
        let (makes, removes) = (new(&all, &before), new(&before, &all));
        assert_eq!((makes, removes), (story.makes, story.removes), "{}", story.name);
        let done = story.first.map_or(all.clone(), |first| {
            let room = self::room(place);
            assert!(quietly(&room, first).status.success(), "{}", story.name);
            hosts(&room)
        });
        let whole = [&nothing, &done, &all].into_iter().flatten();
        let whole = whole.map(|(name, bytes)| (name.clone(), bytes.clone())).collect();
        // qemu-img judges what others must be equal to.
        let disk = room.0.join("b").join(DISK);
        if disk.exists() {
            qemu::assert_clean(disk);
        }
        Self { calls: run.calls, nothing, all, done, whole }
    }
}

/// How many files one has and the other has not.
fn new(one: &Hosts, other: &Hosts) -> usize {
    one.keys().filter(|name| !other.contains_key(*name)).count()
}

/// The guest's disk is whole somewhere, what it stands on is untouched, and so is what is somebody else's.
fn nothing_is_lost(golden: &Golden, now: &Hosts) -> Result<(), String> {
    let before = &golden.nothing;
    for name in [format!("a/{IMAGES}/template.qcow2"), format!("b/{IMAGES}/other")] {
        if now.get(&name) != before.get(&name) {
            return Err(format!("{name} was changed"));
        }
    }
    let (here, there) = (format!("a/{DISK}"), format!("b/{DISK}"));
    let names = [here.clone(), format!("{here}.migrated-ID")];
    let left: Vec<_> = names.iter().filter_map(|name| now.get(name)).collect();
    if left.iter().any(|bytes| Some(*bytes) != before.get(&here)) || left.len() > 1 {
        return Err("the guest's disk was changed at the source".to_owned());
    }
    // It may be gone there only if nothing is to be kept, and the guest has arrived with all of it.
    let arrived = now.contains_key(DEFINITION) && now.get(&there) == golden.whole.get(&there);
    if left.is_empty() && !arrived {
        return Err("the guest has no disk any more".to_owned());
    }
    Ok(())
}

/// Ends what is open as an operator does who reads what the commands say. Afterwards all has been done or nothing.
pub(crate) fn settle(
    story: &Story,
    golden: &Golden,
    room: &Room,
    end: End,
) -> Result<bool, String> {
    nothing_is_lost(golden, &hosts(room))?;
    let said = end_all(room, end)?;
    if let Some(open) = transactions(room)?.iter().find(|one| one["state"] == "open") {
        return Err(format!("it has not ended: {open}, {said}"));
    }
    let mut now = without_litter(hosts(room));
    nothing_is_lost(golden, &now)?;
    if story.aged && now != golden.all {
        let again = quietly(room, story.line);
        now = without_litter(hosts(room));
        if !again.status.success() {
            return Err(format!("is not repeated: {again:?}"));
        }
    }
    if now == golden.all || now == golden.done {
        return Ok(true);
    }
    // What has its name, but is not on record as made, is left and named, with the directories it is in. It is whole.
    let left: Vec<_> = now.iter().filter(|(name, _)| !golden.nothing.contains_key(*name)).collect();
    for (name, bytes) in left.iter().rev() {
        let named = said.contains(name.trim_start_matches('b').trim_end_matches('/'));
        if !named || golden.whole.get(*name) != Some(bytes) {
            let whole = if named { "half of it" } else { "unnamed" };
            return Err(format!("{name} is left, {whole}: {said}"));
        }
        let path = room.0.join(name);
        match path.is_dir() {
            true => fs::remove_dir(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }
    let left = left.len();
    if without_litter(hosts(room)) != golden.nothing {
        let names: Vec<_> = now.keys().collect();
        return Err(format!("neither all nor nothing: {names:?}, {left} left, {said}"));
    }
    Ok(false)
}

/// Ends the open transactions; what was said.
fn end_all(room: &Room, end: End) -> Result<String, String> {
    let mut all_said = String::new();
    for one in transactions(room)?.iter().filter(|one| one["state"] == "open") {
        let id = one["transaction"].as_str().unwrap();
        let mut run = |verb: &str| {
            let output = quietly(room, &format!("{verb} {id} --state-dir state"));
            let stderr = String::from_utf8_lossy(&output.stderr);
            all_said += &format!("{verb}: {:?}, {stderr}", output.status.code());
            output.status.code()
        };
        let ended = match end {
            // The guest has arrived: the rest is to be done there.
            End::Rollback => match run("rollback") {
                Some(2) => run("resume"),
                code => code,
            },
            // It had not begun, or it was put back.
            End::Resume => match run("resume") {
                Some(6) if self::open(room).is_empty() => Some(0),
                Some(6) => run("rollback"),
                code => code,
            },
        };
        if ended != Some(0) {
            return Err(format!("it cannot be ended: {all_said}"));
        }
    }
    Ok(all_said)
}

/// Nothing stands in the way of doing all of it after all.
pub(crate) fn done_again(story: &Story, golden: &Golden, room: &Room) -> Result<(), String> {
    if story.first.is_some() {
        return Ok(());
    }
    let again = quietly(room, story.line);
    match again.status.success() && without_litter(hosts(room)) == golden.all {
        true => Ok(()),
        false => Err(format!("the next run: {again:?}")),
    }
}

/// What is there once a run has said that all is done.
pub(crate) fn end_state(story: &Story, golden: &Golden, room: &Room) -> Result<(), String> {
    let now = without_litter(hosts(room));
    if now != golden.all {
        return Err(format!("done, and {:?} is there", now.keys().collect::<Vec<_>>()));
    }
    match transactions(room)?.first().map(|one| one["state"].as_str().unwrap().to_owned()) {
        Some(state) if (state == "open") == (story.name == "prepare") => Ok(()),
        state => Err(format!("done, and the journal says {state:?}")),
    }
}
