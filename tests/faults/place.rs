//! Where the commands run: the sources, a new directory for each run, and what an undisturbed run does.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use fixtures::pattern::noise;
use fixtures::{Holder, Loop, Patch, args, qemu};
use tempfile::TempDir;

use super::cases::Case;
use super::tracer::{Call, Disturbance, Traced, World, run};
use common::binary;

/// The sources, and room for the runs.
pub(crate) struct Place {
    dir: PathBuf,
    runs: AtomicU64,
    /// Images that a repair left and that were found to be well.
    pub(crate) well: Mutex<HashSet<Vec<u8>>>,
    /// A device that a case may write to, `DEVICE`.
    pub(crate) device: Option<Loop>,
    /// A process that a case may look into, `PID`.
    pub(crate) holder: Option<Holder>,
    /// It says that it is on another machine, so that files are copied there.
    pub(crate) remote: bool,
    /// Removed at the end.
    _scratch: Option<TempDir>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let scratch = in_memory().unwrap_or_else(|| tempfile::tempdir().unwrap());
        let place = Self::at(scratch.path());
        Self { _scratch: Some(scratch), ..place }
    }

    /// In a directory that stays.
    pub(crate) fn at(dir: &Path) -> Self {
        let src = dir.join("src");
        fs::create_dir(&src).unwrap();
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
        // They find their backing file wherever they are copied.
        let over = src.join("over");
        qemu::overlay(&over, src.join("base").to_str().unwrap(), "qcow2", "cluster_size=4k", "");
        qemu::qemu_io("qcow2", &over, &[write("32k 12k"), "write -z 68k 4k".to_owned()]);
        let merged = src.join("merged");
        fs::copy(&over, &merged).unwrap();
        qemu::qemu_img(&args!["bitmap", "--add", merged, "b"]);
        qemu::qemu_io("qcow2", &merged, &["write -P 4 8k 8k"]);
        qemu::qemu_img(&args!["bitmap", "--add", merged, "other"]);
        let marked = src.join("marked");
        fs::copy(&top, &marked).unwrap();
        qemu::qemu_img(&args!["bitmap", "--add", marked, "b"]);
        qemu::qemu_img(&args!["bitmap", "--add", "--disable", marked, "other"]);
        damaged(&src);
        Self {
            dir: dir.to_path_buf(),
            runs: AtomicU64::new(0),
            well: Mutex::default(),
            remote: false,
            device: None,
            holder: None,
            _scratch: None,
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn source(&self, name: &str) -> PathBuf {
        self.dir.join("src").join(name)
    }

    /// The arguments of a case.
    pub(crate) fn arguments(&self, case: &Case) -> Vec<OsString> {
        let src = self.dir.join("src");
        let device = self.device.as_ref().map_or(Path::new(""), |device| &device.0);
        let pid = self.holder.as_ref().map_or(0, Holder::pid).to_string();
        let put = |word: &str| {
            let word = word.replace("SRC", src.to_str().unwrap());
            word.replace("DEVICE", device.to_str().unwrap()).replace("PID", &pid).into()
        };
        case.line.split(' ').map(put).collect()
    }

    /// A new directory that is as the case wants it.
    pub(crate) fn room(&self, case: &Case) -> Room {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.join(format!("run{number}"));
        fs::create_dir(&dir).unwrap();
        if let Some(old) = case.old {
            fs::write(dir.join(case.makes[0]), old).unwrap();
        }
        if let Some(image) = case.changes {
            fs::copy(self.source(image), dir.join("image")).unwrap();
        }
        Room(dir)
    }

    /// Runs a case there, call by call.
    pub(crate) fn run(&self, case: &Case, room: &Room, disturbance: Disturbance) -> Traced {
        self.run_while(case, room, disturbance, &|| ())
    }

    /// As [`run`](Self::run); something may happen at one call.
    pub(crate) fn run_while(
        &self,
        case: &Case,
        room: &Room,
        disturbance: Disturbance,
        meanwhile: &dyn Fn(),
    ) -> Traced {
        let mut command = Command::new(binary());
        command.args(self.arguments(case)).current_dir(&room.0).stdin(self.input(case));
        let device = self.device.as_ref().map(|device| device.0.as_path());
        let world = World { watched: &self.dir, device, remote: self.remote, meanwhile };
        run(&mut command, &world, disturbance)
    }

    /// Runs a case through a shell that first does something, such as to set a limit.
    pub(crate) fn run_after(&self, case: &Case, room: &Room, first: &str) -> Output {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{first}; exec \"$@\""), "sh"]).arg(binary());
        command.args(self.arguments(case)).current_dir(&room.0).env("RUST_BACKTRACE", "0");
        command.stdin(self.input(case)).output().unwrap()
    }

    fn input(&self, case: &Case) -> Stdio {
        case.input.map_or_else(Stdio::null, |name| {
            let bytes = fs::read(self.source(name)).unwrap();
            let (reader, mut writer) = std::io::pipe().unwrap();
            // Few enough for a pipe to hold them.
            writer.write_all(&bytes).unwrap();
            Stdio::from(reader)
        })
    }
}

/// A directory of one run, removed at its end.
pub(crate) struct Room(pub(crate) PathBuf);

impl Room {
    /// The files in it, by name.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let (mut files, mut directories) = (Vec::new(), vec![self.0.clone()]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
                let path = entry.path();
                if entry.file_type().unwrap().is_dir() {
                    directories.push(path);
                    continue;
                }
                let name = path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned();
                files.push((name, fs::read(path).unwrap()));
            }
        }
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

/// Whether this is one line, or one JSON object, that says what went wrong.
pub(crate) fn is_one_error(stderr: &str) -> bool {
    let json = serde_json::from_str::<serde_json::Value>(stderr);
    let json = json.is_ok_and(|value| value["error"]["message"].is_string());
    json || stderr.starts_with("qcowtool: ") && stderr.lines().count() == 1
}

/// What is left when files under temporary names are taken away.
pub(crate) fn without_temporary(mut files: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    files.retain(|(name, _)| !(name.starts_with('.') && name.ends_with(".tmp")));
    files
}

/// A directory in memory, where thousands of syncs take no time, if files there can be opened past a cache.
fn in_memory() -> Option<TempDir> {
    let dir = TempDir::with_prefix_in("qcowtool-", "/dev/shm").ok()?;
    let mut options = fs::File::options();
    let direct = options.write(true).create(true).custom_flags(nix::libc::O_DIRECT);
    let probe = dir.path().join("probe");
    direct.open(&probe).ok()?;
    fs::remove_file(probe).ok()?;
    Some(dir)
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
    fs::write(src.join("sound.raw"), qemu::raw_of("qcow2", &sound)).unwrap();
    let sound = Patch::open(&sound);
    let mut leaks = sound.clone();
    for at in [0, 5, 9] {
        leaks.set_l2_entry(at << 12, 0);
    }
    leaks.save_as(src.join("leaks"));
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
    corrupt.save_as(src.join("corrupt"));
    scattered(src);
    wiped(src);
    gappy(src);
    let mut uncounted = sound.clone();
    uncounted.set(usize::try_from(table).unwrap(), &[0; 8]);
    uncounted.save_as(src.join("uncounted"));
}

/// Stored zeros, and free places before data that a snapshot has, too.
fn wiped(src: &Path) {
    let path = src.join("wiped");
    let content = src.join("content");
    let write = |at: &str| format!("write -s {} {at}", content.display());
    qemu::create(&path, "cluster_size=4k", "256k");
    qemu::qemu_io(
        "qcow2",
        &path,
        &[write("0 40k"), write("100k 20k"), "write -c -P 5 200k 4k".to_owned()],
    );
    qemu::qemu_img(&args!["snapshot", "-c", "s", path]);
    let then =
        ["write -P 0 100k 12k", "write -P 0 140k 20k", "write -P 9 240k 12k", "discard 8k 28k"];
    qemu::qemu_io("qcow2", &path, &then);
    qemu::qemu_img(&args!["snapshot", "-d", "s", path]);
    qemu::qemu_img(&args!["snapshot", "-c", "t", path]);
    qemu::qemu_io("qcow2", &path, &["write -P 8 244k 4k"]);
}

/// More free places before data and compressed clusters at the end than all tables take: they can move there.
fn gappy(src: &Path) {
    let path = src.join("gappy");
    let content = src.join("content");
    let write = |at: &str| format!("write -s {} {at}", content.display());
    qemu::create(&path, "cluster_size=4k", "512k");
    qemu::qemu_io("qcow2", &path, &[write("0 32k")]);
    qemu::qemu_img(&args!["snapshot", "-c", "t", path]);
    let then =
        ["write -P 7 32k 160k", &write("192k 60k"), "write -c -P 5 300k 8k", "discard 32k 160k"];
    qemu::qemu_io("qcow2", &path, &then);
}

/// Clusters of one sector: refcounts too low, leaks and lying flags in tables that are far from each other.
fn scattered(src: &Path) {
    let path = src.join("scattered");
    qemu::create(&path, "cluster_size=512", "192k");
    let content = src.join("content");
    qemu::qemu_io("qcow2", &path, &[format!("write -s {} 0 96k", content.display())]);
    let mut image = Patch::open(&path);
    let offset = |entry: u64| entry & 0x00ff_ffff_ffff_fe00;
    let (table, data) = (image.u64(48), |image: &Patch, n: u64| offset(image.l2_entry(n * 512)));
    for n in [3, 80, 170] {
        let cluster = data(&image, n) / 512;
        let block = image.u64(usize::try_from(table + cluster / 256 * 8).unwrap());
        image.set_u16(usize::try_from(block + cluster % 256 * 2).unwrap(), 0);
    }
    for n in [20, 90, 180] {
        image.set_l2_entry(n * 512, 0);
    }
    for n in [40, 100, 150] {
        image.set_l2_entry(n * 512, data(&image, n));
    }
    image.save_as(&path);
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
    /// By a run that is traced, with its calls.
    pub(crate) fn of(place: &Place, case: &Case) -> Self {
        let (room, before) = Self::start(place, case);
        let run = place.run(case, &room, Disturbance::None);
        let code = run.ended.unwrap_or_else(|signal| panic!("{}: {signal}", case.name));
        let Traced { stdout, stderr, calls, all_calls, .. } = run;
        Self { code, stdout, stderr, before, after: room.files(), calls, all_calls }
            .judged(place, case, &room)
    }

    /// Without its calls.
    pub(crate) fn of_untraced(place: &Place, case: &Case) -> Self {
        let (room, before) = Self::start(place, case);
        let Output { status, stdout, stderr } = place.run_after(case, &room, ":");
        let code = status.code().unwrap_or_else(|| panic!("{}: {status}", case.name));
        let stderr = String::from_utf8(stderr).unwrap();
        let (calls, all_calls) = (Vec::new(), 0);
        Self { code, stdout, stderr, before, after: room.files(), calls, all_calls }
            .judged(place, case, &room)
    }

    fn start(place: &Place, case: &Case) -> (Room, Vec<(String, Vec<u8>)>) {
        let room = place.room(case);
        let before = room.files();
        (room, before)
    }

    fn judged(self, place: &Place, case: &Case, room: &Room) -> Self {
        assert_eq!(self.code, 0, "{}: {}", case.name, self.stderr);
        let made: HashSet<_> =
            case.makes.iter().copied().chain(case.changes.map(|_| "image")).collect();
        let names = self.after.iter().map(|(name, _)| name.as_str());
        assert_eq!(names.collect::<HashSet<_>>(), made, "{}", case.name);
        judged(place, case, room);
        self
    }
}

/// Asks qemu-img, from where the files are: it looks there for a data file.
pub(crate) fn judged(place: &Place, case: &Case, room: &Room) {
    let qemu_img = |arguments: Vec<OsString>| {
        let mut command = Command::new("qemu-img");
        let output = command.args(arguments).current_dir(&room.0).output().unwrap();
        assert!(output.status.success(), "{}: {output:?}", case.name);
    };
    let new = room.0.join("new");
    if case.line.contains("-r ") {
        qemu_img(args!["check", "-q", "image"]);
    } else if ["flatten", "convert"].iter().any(|name| case.name.starts_with(name)) && new.exists()
    {
        let source = match () {
            () if case.changes.is_some() => "sound.raw",
            () if case.input.is_some() || case.line.contains("small.raw") => "small.raw",
            () => "same.raw",
        };
        let source = place.source(source);
        let format = if case.line.contains("-O raw") { "raw" } else { "qcow2" };
        qemu_img(args!["compare", "-q", "-f", "raw", "-F", format, source, "new"]);
        if format == "qcow2" {
            qemu_img(args!["check", "-q", "new"]);
        }
        if case.line.contains("--bitmaps") {
            let bitmaps =
                |image: &Path| qemu::info(image)["format-specific"]["data"]["bitmaps"].clone();
            assert_eq!(bitmaps(&new), bitmaps(&place.source("marked")));
        }
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

/// As [`on_threads`], for so many that only `make test-long` tries all of them; else a sample of this commit's.
pub(crate) fn on_a_sample<T: Sync>(
    what: &str,
    items: &[T],
    work: impl Fn(&T) -> Result<(), String> + Sync,
) {
    on_threads(&fixtures::search::sample(what, items), |item| work(item));
}
