//! The commands that are disturbed, on images so small that every call they make can be.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use fixtures::pattern::noise;
use fixtures::{Patch, Scratch, args, qemu};

use super::tracer::{Call, Disturbance, Traced, pipe_with, run};
use crate::common::binary;

/// A command that is run again and again, each time in a new directory.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// As in the shell; `SRC/` is the directory of the sources.
    line: &'static str,
    /// What it makes, there or not yet.
    pub(crate) makes: &'static [&'static str],
    /// What is at the first of them before.
    old: Option<&'static [u8]>,
    /// The image of the sources that it changes, as `image`.
    pub(crate) changes: Option<&'static str>,
    /// What comes through a pipe.
    input: Option<&'static str>,
    /// The codes with which it says that it failed.
    pub(crate) failures: &'static [i32],
}

const OLD: &[u8] = b"what was there before";

const fn case(name: &'static str, line: &'static str) -> Case {
    let (makes, old, changes, input) = (&[] as &[_], None, None, None);
    Case { name, line, makes, old, changes, input, failures: &[1] }
}

const fn making(name: &'static str, line: &'static str) -> Case {
    Case { makes: &["new"], ..case(name, line) }
}

const fn replacing(name: &'static str, line: &'static str) -> Case {
    Case { old: Some(OLD), ..making(name, line) }
}

const fn repairing(name: &'static str, line: &'static str, image: &'static str) -> Case {
    Case { changes: Some(image), ..case(name, line) }
}

/// Those that make something.
pub(crate) const MAKERS: [Case; 17] = [
    making("create raw", "create new 64k"),
    making("create raw, full", "create -o preallocation=full new 64k"),
    making("create qcow2", "create -f qcow2 new 1M"),
    replacing("create over another", "create -f qcow2 --force new 1M"),
    making("create metadata", "create -f qcow2 -o preallocation=metadata new 1M"),
    making("create falloc", "create -f qcow2 -o preallocation=falloc,cluster_size=4k new 64k"),
    making("create overlay", "create -f qcow2 -b SRC/top -F qcow2 new"),
    Case {
        makes: &["new", "data"],
        ..case("create with data file", "create -f qcow2 -o data_file=data new 64k")
    },
    making("flatten", "flatten --threads 1 --digest SRC/top new"),
    replacing("flatten over another", "flatten --threads 1 --force SRC/top new"),
    making("flatten to raw", "flatten --threads 1 -O raw SRC/top new"),
    making("flatten -c", "flatten --threads 1 -c SRC/top new"),
    making("flatten --direct", "flatten --threads 1 --direct SRC/top new"),
    Case {
        makes: &["new", "data"],
        ..case("flatten with data file", "flatten --threads 1 -o data_file=data SRC/top new")
    },
    Case { input: Some("small.raw"), ..making("flatten a stream", "flatten --threads 1 - new") },
    making("checksum --manifest", "checksum --threads 1 --manifest new SRC/top"),
    making("map --picture", "map --picture new.svg SRC/top").drawing(),
];

impl Case {
    const fn drawing(self) -> Self {
        Self { makes: &["new.svg"], ..self }
    }
}

/// Those that make something with several threads, for what need not be the same each time.
pub(crate) const MANY_THREADS: [Case; 5] = [
    making("create metadata", "create -f qcow2 -o preallocation=metadata new 1M"),
    making("flatten", "flatten --threads 3 SRC/top new"),
    replacing("flatten over another", "flatten --threads 3 --force SRC/top new"),
    making("flatten to raw", "flatten --threads 3 -O raw SRC/top new"),
    making("flatten -c", "flatten --threads 3 -c SRC/top new"),
];

/// Those that only look, and those that only print.
pub(crate) const READERS: [Case; 9] = [
    case("info", "info --backing-chain SRC/top"),
    case("map", "map --output json SRC/top"),
    case("measure", "measure -O qcow2 SRC/top"),
    case("checksum", "checksum --threads 1 SRC/top"),
    case("check", "check --threads 1 --output json SRC/top"),
    Case {
        failures: &[2, 3, 4],
        ..case("compare", "compare --threads 1 -f qcow2 -F raw SRC/top SRC/same.raw")
    },
    case("flatten to a stream", "flatten --threads 1 SRC/top -"),
    case("flatten to a raw stream", "flatten --threads 1 -O raw SRC/top -"),
    case(
        "checksum --untrusted",
        "checksum --threads 1 --untrusted -f qcow2 --allow-dir SRC SRC/top",
    ),
];

/// Those that change an image where it is.
pub(crate) const REPAIRS: [Case; 3] = [
    repairing("check -r leaks", "check --threads 1 -r leaks image", "leaks"),
    repairing("check -r all", "check --threads 1 -r all image", "corrupt"),
    repairing("check -r all, refcounts anew", "check --threads 1 -r all image", "uncounted"),
];

/// The sources, and room for the runs.
pub(crate) struct Place {
    scratch: Scratch,
    runs: AtomicU64,
}

impl Place {
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new();
        let src = scratch.subdir("src");
        let content = noise(0xfa17, 96 << 10);
        fs::write(src.join("content"), &content).unwrap();
        fs::write(src.join("small.raw"), &content[..48 << 10]).unwrap();
        let write = |at: &str| format!("write -s {} {at}", src.join("content").display());
        qemu::create(src.join("base"), "cluster_size=4k", "256k");
        qemu::qemu_io("qcow2", src.join("base"), &[write("0 40k"), write("64k 20k")]);
        let top = src.join("top");
        qemu::overlay(&top, "base", "qcow2", "cluster_size=4k", "");
        qemu::qemu_io(
            "qcow2",
            &top,
            &["write -c -P 7 8k 4k".to_owned(), write("32k 12k"), "write -z 68k 4k".to_owned()],
        );
        fs::write(src.join("same.raw"), qemu::raw_of("qcow2", &top)).unwrap();
        damaged(&src);
        Self { scratch, runs: AtomicU64::new(0) }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.scratch.dir()
    }

    pub(crate) fn source(&self, name: &str) -> PathBuf {
        self.dir().join("src").join(name)
    }

    /// The arguments of a case.
    pub(crate) fn arguments(&self, case: &Case) -> Vec<OsString> {
        let src = self.dir().join("src");
        let put = |word: &str| word.replace("SRC", src.to_str().unwrap()).into();
        case.line.split(' ').map(put).collect()
    }

    /// A new directory that is as the case wants it.
    pub(crate) fn room(&self, case: &Case) -> Room {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let dir = self.scratch.subdir(format!("run{number}"));
        if let Some(old) = case.old {
            fs::write(dir.join(case.makes[0]), old).unwrap();
        }
        if let Some(image) = case.changes {
            fs::copy(self.source(image), dir.join("image")).unwrap();
        }
        Room(dir)
    }

    /// Runs a case there.
    pub(crate) fn run(&self, case: &Case, room: &Room, disturbance: Disturbance) -> Traced {
        let mut command = Command::new(binary());
        command.args(self.arguments(case)).current_dir(&room.0);
        match case.input {
            Some(input) => command.stdin(pipe_with(&fs::read(self.source(input)).unwrap())),
            None => command.stdin(Stdio::null()),
        };
        run(&mut command, self.dir(), disturbance)
    }
}

/// A directory of one run, removed at its end.
pub(crate) struct Room(pub(crate) PathBuf);

impl Room {
    /// The files in it, by name.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> = entries
            .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    /// Their names and lengths.
    pub(crate) fn names(&self) -> Vec<(String, usize)> {
        self.files().into_iter().map(|(name, bytes)| (name, bytes.len())).collect()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether this is the directory of a run.
pub(crate) fn is_room(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run"))
}

/// What is left when files under temporary names are taken away.
pub(crate) fn without_temporary(mut files: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    files.retain(|(name, _)| !(name.starts_with('.') && name.ends_with(".tmp")));
    files
}

/// Images to repair: one with leaks, one with refcounts too low and too high, one without its refcounts.
fn damaged(src: &Path) {
    let sound = src.join("sound");
    qemu::create(&sound, "cluster_size=4k", "256k");
    let content = src.join("content");
    qemu::qemu_io(
        "qcow2",
        &sound,
        &[
            format!("write -s {} 0 48k", content.display()),
            format!("write -s {} 100k 20k", content.display()),
        ],
    );
    let sound = Patch::open(&sound);
    let mut leaks = sound.clone();
    for at in [0, 5, 9] {
        leaks.set_l2_entry(at << 12, 0);
    }
    leaks.save_as(&src.join("leaks"));
    let (table, entry) = (sound.u64(48), |n: u64| sound.l2_entry(n << 12) & 0x00ff_ffff_ffff_fe00);
    let block = sound.u64(usize::try_from(table).unwrap());
    let count = |cluster: u64| usize::try_from(block + 2 * (cluster >> 12)).unwrap();
    let mut corrupt = sound.clone();
    for n in 2..6 {
        corrupt.set(count(entry(n)), &[0, 0]);
    }
    corrupt.set(count(entry(8)), &[0, 3]);
    corrupt.set_l2_entry(9 << 12, 0);
    corrupt.set_u64(72, 1);
    corrupt.save_as(&src.join("corrupt"));
    let mut uncounted = sound.clone();
    uncounted.set(usize::try_from(table).unwrap(), &[0; 8]);
    uncounted.save_as(&src.join("uncounted"));
}

/// What an undisturbed run does; qemu-img has judged it.
pub(crate) struct Golden {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) before: Vec<(String, Vec<u8>)>,
    pub(crate) after: Vec<(String, Vec<u8>)>,
    pub(crate) calls: Vec<Call>,
    pub(crate) all_calls: usize,
}

impl Golden {
    pub(crate) fn of(place: &Place, case: &Case) -> Self {
        let room = place.room(case);
        let before = room.files();
        let run = place.run(case, &room, Disturbance::None);
        let code = run.ended.unwrap_or_else(|signal| panic!("{}: {signal}", case.name));
        assert_eq!(code, 0, "{}: {}", case.name, run.stderr);
        let after = room.files();
        let names: Vec<_> = after.iter().map(|(name, _)| name.as_str()).collect();
        let made: HashSet<_> =
            case.makes.iter().copied().chain(case.changes.map(|_| "image")).collect();
        assert_eq!(names.iter().copied().collect::<HashSet<_>>(), made, "{}", case.name);
        judged(place, case, &room);
        let Traced { stdout, stderr, calls, all_calls, .. } = run;
        Self { code, stdout, stderr, before, after, calls, all_calls }
    }
}

/// Asks qemu-img, from where the files are: it looks there for a data file.
fn judged(place: &Place, case: &Case, room: &Room) {
    let qemu_img = |arguments: Vec<OsString>| {
        let mut command = Command::new("qemu-img");
        let output = command.args(arguments).current_dir(&room.0).output().unwrap();
        assert!(output.status.success(), "{}: {output:?}", case.name);
    };
    let new = room.0.join("new");
    if case.changes.is_some() {
        qemu_img(args!["check", "-q", "image"]);
    } else if case.name.starts_with("flatten") && new.exists() {
        let source = place.source(case.input.unwrap_or("same.raw"));
        let format = if case.line.contains("-O raw") { "raw" } else { "qcow2" };
        qemu_img(args!["compare", "-q", "-f", "raw", "-F", format, source, "new"]);
    } else if case.line.contains("-f qcow2") && new.exists() {
        qemu_img(args!["check", "-q", "new"]);
    }
}

/// Does the work for all items on a few threads; what went wrong, in words.
pub(crate) fn on_threads<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<(), String> + Sync) {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = work(item) {
                        wrong.lock().unwrap().push(error);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} of {} went wrong:\n{}",
        wrong.len(),
        items.len(),
        wrong.join("\n")
    );
}
