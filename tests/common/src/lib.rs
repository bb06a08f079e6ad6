//! What the tests of the whole product share: running the binary, and comparing it with qemu-img.
//!
//! A crate rather than a module, so that it is compiled once for all test programs. Everything here panics when it fails.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fixtures::{Patch, Scratch, args, crc32_hex, qemu};
use serde_json::Value;
use wait4::Wait4 as _;

/// The binary under test; `QCOWTOOL_BIN` names another build of it.
pub fn binary() -> PathBuf {
    let named = ["QCOWTOOL_BIN", "CARGO_BIN_EXE_qcowtool"].into_iter().find_map(std::env::var_os);
    named.map_or_else(beside_the_tests, PathBuf::from)
}

/// Where cargo puts the binary, for a test program that was not started by cargo: `deps/` is beside it.
fn beside_the_tests() -> PathBuf {
    let program = std::env::current_exe().expect("a test program is a file");
    let deps = program.parent().expect("it is in a directory");
    deps.with_file_name("qcowtool")
}

/// Runs the binary with these arguments; see [`args!`].
pub fn qcowtool(arguments: Vec<OsString>) -> Run {
    run(command(&arguments), &arguments)
}

/// Runs the binary in a working directory.
pub fn qcowtool_in(dir: &Path, arguments: Vec<OsString>) -> Run {
    let mut command = command(&arguments);
    command.current_dir(dir);
    run(command, &arguments)
}

/// The binary with arguments and no input, not yet started.
pub fn command(arguments: &[OsString]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs the binary; the most memory that it had resident, in bytes.
#[track_caller]
pub fn peak(arguments: Vec<OsString>) -> u64 {
    let child = command(&arguments).stdout(Stdio::null()).spawn().expect("the binary starts");
    let used = child.wait4().expect("it ends");
    assert!(used.status.success(), "{arguments:?}");
    used.rusage.maxrss
}

/// A hundred bases with 99 overlays each, made of two models.
pub fn ten_thousand(dir: &Path) {
    let model = dir.join("model");
    qemu::create(&model, "cluster_size=512", "32k");
    let base = Patch::open(&model);
    std::fs::remove_file(&model).expect("the scratch directory is writable");
    for group in 0..100 {
        let here = dir.join(format!("pool{}/group{group}", group % 7));
        std::fs::create_dir_all(&here).expect("the scratch directory is writable");
        base.save_as(here.join("base.qcow2"));
        let mut overlay = base.clone();
        overlay.set_header_area(112, &[(fixtures::patch::magic::BACKING_FORMAT, b"qcow2")], true);
        overlay.set_backing(256, b"base.qcow2");
        for nth in 0..99 {
            overlay.save_as(here.join(format!("overlay{nth}.qcow2")));
        }
    }
}

fn run(mut command: Command, arguments: &[OsString]) -> Run {
    let output = command.output().expect("the binary starts");
    let words: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    Run { shown: format!("qcowtool {}", words.join(" ")), output }
}

/// One finished run of the binary.
#[derive(Debug)]
pub struct Run {
    shown: String,
    output: Output,
}

impl Run {
    /// What it printed.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// What it said.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Its exit code, unless a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// Whether it ended with exit code 0.
    pub fn succeeded(&self) -> bool {
        self.output.status.success()
    }

    /// Asserts success and returns what was printed.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert!(self.succeeded(), "{} failed: {:?} {}", self.shown, self.code(), self.stderr());
        self.stdout()
    }

    /// Asserts success and parses what was printed.
    #[track_caller]
    pub fn json(&self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e} in {text}", self.shown))
    }

    /// Asserts a clean refusal (exit code 1, nothing on stdout, one printable line on stderr that
    /// begins with the program's name) and returns that line.
    #[track_caller]
    pub fn refused(&self) -> String {
        let (stdout, stderr) = (self.stdout(), self.stderr());
        assert_eq!(self.code(), Some(1), "{}: {stdout}{stderr}", self.shown);
        assert_eq!(stdout, "", "{} refused, and printed", self.shown);
        let line = stderr.strip_suffix('\n').unwrap_or_else(|| panic!("no line end: {stderr:?}"));
        assert!(line.starts_with("qcowtool: "), "{}: {line:?}", self.shown);
        assert!(!line.chars().any(char::is_control), "{}: {line:?}", self.shown);
        line.into()
    }

    /// Asserts a refusal whose line contains all of `words`, whatever their case.
    #[track_caller]
    pub fn refused_naming(&self, words: &[&str]) {
        let line = self.refused();
        let lower = line.to_lowercase();
        for word in words {
            assert!(lower.contains(&word.to_lowercase()), "{:?} does not say {word:?}", line);
        }
    }

    /// Asserts a refusal as one JSON object on stderr and returns the error in it.
    #[track_caller]
    pub fn refused_json(&self) -> Value {
        let stderr = self.stderr();
        assert_eq!(self.code(), Some(1), "{}: {stderr}", self.shown);
        assert_eq!(self.stdout(), "", "{} refused, and printed", self.shown);
        let value: Value = serde_json::from_str(&stderr)
            .unwrap_or_else(|e| panic!("{}: {e} in {stderr:?}", self.shown));
        let error = &value["error"];
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{value}");
        let kinds = [
            "io",
            "not-found",
            "exists",
            "in-use",
            "no-space",
            "corrupt",
            "wrong-format",
            "encrypted",
            "unsupported",
            "limit",
            "denied",
            "usage",
            "interrupted",
        ];
        assert!(error["kind"].as_str().is_some_and(|kind| kinds.contains(&kind)), "{value}");
        error.clone()
    }
}

/// The digest that `qcowtool checksum` prints, as eight hexadecimal digits.
#[track_caller]
pub fn checksum(image: &Path, options: &[&str]) -> String {
    let mut arguments = args!["checksum", "--output", "json"];
    arguments.extend(options.iter().map(OsString::from));
    arguments.push(image.into());
    let outcome = qcowtool(arguments).json();
    outcome["crc32"].as_str().unwrap_or_else(|| panic!("no crc32 in {outcome}")).to_owned()
}

/// The bytes that `qcowtool flatten -O raw` writes.
#[track_caller]
pub fn flattened(image: &Path, options: &[&str]) -> Vec<u8> {
    let scratch = Scratch::new();
    let raw = scratch.path("flat.raw");
    let mut arguments = args!["flatten", "-q", "-O", "raw"];
    arguments.extend(options.iter().map(OsString::from));
    arguments.extend(args![image, raw]);
    qcowtool(arguments).ok();
    let bytes = std::fs::read(&raw).expect("flatten wrote its output");
    assert_eq!(scratch.names(), ["flat.raw"], "flatten leaves only its output");
    bytes
}

/// Asserts that qemu-img reads the image and that we read the same bytes, by `flatten` and `checksum`,
/// and print the same `info`. Returns the bytes.
#[track_caller]
pub fn reads_like_qemu(image: &Path) -> Vec<u8> {
    content_like_qemu("qcow2", image, &[]);
    info_like_qemu(image, &[]);
    qemu::raw_of("qcow2", image)
}

/// Asserts that our content of an image is what qemu-img converts it to. `options` are ours only.
#[track_caller]
pub fn content_like_qemu(format: &str, image: &Path, options: &[&str]) {
    let theirs = qemu::raw_of(format, image);
    assert_content(image, options, &theirs);
}

/// Asserts that one of the image's snapshots reads as qemu-img reads it.
#[track_caller]
pub fn snapshot_like_qemu(image: &Path, snapshot: &str) -> Vec<u8> {
    let theirs = qemu::try_raw_of("qcow2", image, Some(snapshot))
        .unwrap_or_else(|e| panic!("{} -l {snapshot}: {e}", image.display()));
    assert_content(image, &["--snapshot", snapshot], &theirs);
    theirs
}

/// Asserts that `flatten -O raw` and `checksum` see exactly these bytes.
#[track_caller]
pub fn assert_content(image: &Path, options: &[&str], expected: &[u8]) {
    let ours = flattened(image, options);
    assert_eq!(ours.len(), expected.len(), "{}: size of the disk", image.display());
    let difference = ours.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(difference, None, "{}: first different byte", image.display());
    assert_eq!(checksum(image, options), crc32_hex(expected), "{}: checksum", image.display());
}

/// Asserts that both qemu-img and we refuse to read the image, that our `flatten` leaves nothing
/// behind, and that both agree whether `info` still works. Returns our complaint.
#[track_caller]
pub fn refused_like_qemu(image: &Path) -> String {
    let theirs = qemu::try_raw_of("qcow2", image, None);
    assert!(theirs.is_err(), "{}: qemu-img reads it", image.display());
    info_like_qemu(image, &[]);
    refused_by_us(image, &[])
}

/// Asserts that `checksum` and `flatten` refuse the image and leave nothing behind.
#[track_caller]
pub fn refused_by_us(image: &Path, options: &[&str]) -> String {
    let options: Vec<_> = options.iter().map(OsString::from).collect();
    let scratch = Scratch::new();
    let target = scratch.path("flat.raw");
    qcowtool([args!["flatten", "-O", "raw"], options.clone(), args![image, target]].concat())
        .refused();
    assert_eq!(scratch.names(), [""; 0], "a refused flatten leaves nothing");
    qcowtool([args!["checksum"], options, args![image]].concat()).refused()
}

/// Asserts that `info --output json` of a qcow2 image prints what qemu-img prints, or that both refuse.
#[track_caller]
pub fn info_like_qemu(image: impl AsRef<OsStr>, options: &[&str]) {
    let image = image.as_ref();
    let mut arguments = args!["info", "--output", "json"];
    arguments.extend(options.iter().map(OsString::from));
    arguments.push(image.into());
    let ours = qcowtool(arguments);
    match qemu::try_info(image, &[options, &["-f", "qcow2"]].concat()) {
        Ok(theirs) => same_json(&ours.json(), &theirs, &image.to_string_lossy()),
        // Of a chain, what is above the fault is shown.
        Err(_) if options.contains(&"--backing-chain") => assert_eq!(ours.code(), Some(1)),
        Err(_) => drop(ours.refused_json()),
    }
}

/// Asserts that two JSON values are equal but for the order of keys; says where they differ.
#[track_caller]
pub fn same_json(ours: &Value, theirs: &Value, place: &str) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()) {
                same_json(&ours[key], &theirs[key], &format!("{place}: {key}"));
            }
            assert_eq!(a.len(), b.len(), "{place}: number of keys");
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs.for_each(|(i, (a, b))| same_json(a, b, &format!("{place}[{i}]")));
        }
        _ => assert_eq!(ours, theirs, "{place}"),
    }
}

/// A qcow2 image of 64 KiB in clusters of 4 KiB (unless `options` say otherwise) whose first half is
/// full of noise, ready to be patched.
pub fn small(scratch: &Scratch, options: &str) -> Patch {
    let image = scratch.path("small.qcow2");
    let noise = scratch.file("noise", &fixtures::pattern::noise(0x5a11, 32 << 10));
    let options = if options.contains("cluster_size") {
        options.to_owned()
    } else {
        format!("cluster_size=4k,{options}").trim_end_matches(',').to_owned()
    };
    qemu::create(&image, &options, "64k");
    qemu::qemu_io("qcow2", &image, &[format!("write -s {} 0 32k", noise.display())]);
    Patch::open(&image)
}

/// An empty overlay on `base.raw`, which holds 64 KiB of noise, in clusters of 4 KiB; ready to be
/// patched.
pub fn small_overlay(scratch: &Scratch, options: &str) -> Patch {
    let image = scratch.path("overlay.qcow2");
    scratch.file("base.raw", &fixtures::pattern::noise(0xba5e, 64 << 10));
    let options = format!("cluster_size=4k,{options}");
    qemu::overlay(&image, "base.raw", "raw", options.trim_end_matches(','), "");
    Patch::open(&image)
}

/// Saves a patched image and asserts that both read it, and the same; returns the bytes.
#[track_caller]
pub fn reads(patch: &Patch) -> Vec<u8> {
    patch.save();
    reads_like_qemu(&patch.path)
}

/// Saves a patched image and asserts that both refuse it; returns our complaint.
#[track_caller]
pub fn refuses(patch: &Patch) -> String {
    patch.save();
    refused_like_qemu(&patch.path)
}

/// Saves a patched image and asserts that we do what qemu-img does with it, be it reading or refusing.
/// For images whose fate the format leaves open; where it does not, say which.
#[track_caller]
pub fn like_qemu(patch: &Patch) {
    patch.save();
    match qemu::try_raw_of("qcow2", &patch.path, None) {
        Ok(_) => drop(reads_like_qemu(&patch.path)),
        Err(_) => drop(refused_like_qemu(&patch.path)),
    }
}
