//! Limits and places that give way for real: files that may not grow, no memory, no space, no right to write,
//! and sources that change under the reader.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fixtures::{Mounted, Scratch, args, needs_qemu, skipped};

use super::cases::{Case, MAKERS, READERS, REPAIRS, WHILE_CHANGED};
use super::place::{Golden, Place, Room, is_one_error, on_a_sample, on_threads, without_temporary};
use super::repairs;
use super::tracer::{Disturbance, Fate, can_trace};
use common::binary;

/// Asserts that a run did its work, or refused in one line and left all as it was.
fn all_or_nothing(
    place: &Place,
    case: &Case,
    golden: &Golden,
    room: &Room,
    output: &Output,
) -> Result<(), String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) if room.files() == golden.after => Ok(()),
        Some(code) if case.failures.contains(&code) && is_one_error(&stderr) => {
            if case.changes.is_some() {
                repairs::at_worst_leaks(place, case, &room.0.join("image"))
            } else if room.files() == golden.before {
                Ok(())
            } else {
                Err(format!("left {:?}: {stderr}", room.names()))
            }
        }
        code => Err(format!("{code:?}, {:?}, {stderr}", room.names())),
    }
}

#[test]
fn a_file_that_may_not_grow_is_an_error_and_no_signal() {
    needs_qemu!();
    let place = Place::new();
    let cases: Vec<_> = MAKERS.iter().chain(&REPAIRS).collect();
    let golden: Vec<_> =
        cases.iter().map(|case| (*case, Golden::of_untraced(&place, case))).collect();
    let sectors = [0, 1, 60, 127, 128, 300, 700];
    let points: Vec<_> =
        golden.iter().flat_map(|(case, golden)| sectors.map(|n| (*case, golden, n))).collect();
    let refused = AtomicUsize::new(0);
    on_threads(&points, |(case, golden, sectors)| {
        let room = place.room(case);
        let output = place.run_after(case, &room, &format!("ulimit -f {sectors}"));
        refused.fetch_add(usize::from(!output.status.success()), Ordering::Relaxed);
        all_or_nothing(&place, case, golden, &room, &output)
            .map_err(|error| format!("{}: {sectors} sectors: {error}", case.name))
    });
    let refused = refused.into_inner();
    assert!(refused > cases.len(), "only {refused} of {} met the limit", points.len());
    println!("{} limits for the length of files, {refused} met", points.len());
}

#[test]
fn without_memory_a_target_is_whole_or_as_it_was() {
    needs_qemu!();
    let place = Place::new();
    let cases: Vec<_> = MAKERS.iter().chain(&READERS).chain(&REPAIRS).collect();
    let golden: Vec<_> =
        cases.iter().map(|case| (*case, Golden::of_untraced(&place, case))).collect();
    // In KiB. With less the program is not even loaded.
    let limit = |kib| format!("ulimit -v {kib}; exec {} --version", binary().display());
    let loads = |kib: &u64| {
        let output = Command::new("sh").args(["-c", &limit(*kib)]).output().unwrap();
        output.status.success()
    };
    let least = (10..500).map(|n| n * 1000).find(loads).expect("memory for the program itself");
    let points: Vec<_> = golden
        .iter()
        .flat_map(|(case, golden)| (0..9).map(move |n| (*case, golden, least + n * 700)))
        .collect();
    let [refused, gave_up] = [AtomicUsize::new(0), AtomicUsize::new(0)];
    on_threads(&points, |(case, golden, kib)| {
        let room = place.room(case);
        let output = place.run_after(case, &room, &format!("ulimit -v {kib}"));
        refused.fetch_add(usize::from(!output.status.success()), Ordering::Relaxed);
        let verdict = if gives_up(&output) {
            gave_up.fetch_add(1, Ordering::Relaxed);
            left_by_giving_up(&place, case, golden, &room)
        } else {
            all_or_nothing(&place, case, golden, &room, &output)
        };
        verdict.map_err(|error| format!("{}: {kib} KiB: {error}", case.name))
    });
    let [refused, gave_up] = [refused.into_inner(), gave_up.into_inner()];
    assert!(refused > 0, "there was memory enough");
    println!("{} limits for memory, {refused} met, {gave_up} by giving up", points.len());
}

/// Whether the process was ended where nobody can go on: the language's runtime without memory, a stack that cannot grow,
/// or a decoder that lost the race for the last of it.
fn gives_up(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        None => {
            [Some(nix::libc::SIGABRT), Some(nix::libc::SIGSEGV)].contains(&output.status.signal())
        }
        Some(code) => code == 101 && said.contains("MemError"),
    }
}

fn left_by_giving_up(
    place: &Place,
    case: &Case,
    golden: &Golden,
    room: &Room,
) -> Result<(), String> {
    let left = without_temporary(room.files());
    match case.changes {
        Some(_) => repairs::at_worst_leaks(place, case, &room.0.join("image")),
        None if left == golden.before || left == golden.after => Ok(()),
        None => Err(format!("left {:?}", room.names())),
    }
}

/// Runs a maker so that its target lies on a file system with too little room.
fn on_a_full(system: &Mounted) {
    let place = Place::new();
    let dir = system.0.join("out");
    let mut refused = 0;
    let mut runs = 0;
    let makers = MAKERS.iter().filter(|case| !case.name.contains("--direct"));
    for case in makers.chain(&REPAIRS) {
        let golden = Golden::of_untraced(&place, case);
        for free in [0, 8, 64, 160, 300, 420] {
            fs::create_dir(&dir).unwrap();
            for (name, bytes) in &golden.before {
                fs::write(dir.join(name), bytes).unwrap();
            }
            let filler = system.fill(free << 10);
            let room = Room(dir.clone());
            let before = room.files();
            let output = place.run_after(case, &room, ":");
            let full = !output.status.success();
            let stderr = String::from_utf8_lossy(&output.stderr);
            refused += usize::from(full);
            runs += 1;
            let verdict = all_or_nothing(&place, case, &golden, &room, &output);
            assert!(verdict.is_ok(), "{}: {free} KiB free: {verdict:?}", case.name);
            assert!(!full || stderr.contains("free some space"), "{}: {stderr}", case.name);
            assert!(!full || before == golden.before);
            fs::remove_file(filler).unwrap();
            if full {
                let again = place.run_after(case, &room, ":");
                assert!(again.status.success(), "{}: {again:?}", case.name);
            }
            drop(room);
        }
    }
    assert!(refused > runs / 4, "only {refused} of {runs} met the end of the space");
    println!("{runs} targets on a full file system, {refused} did not fit");
}

#[test]
fn a_full_ext4_is_an_error_and_nothing_is_left() {
    needs_qemu!();
    let scratch = Scratch::new();
    if let Some(system) = Mounted::ext4(scratch.subdir("full")) {
        on_a_full(&system);
    }
}

#[test]
fn a_full_tmpfs_is_an_error_and_nothing_is_left() {
    needs_qemu!();
    let scratch = Scratch::new();
    if let Some(system) = Mounted::tmpfs(scratch.subdir("full")) {
        on_a_full(&system);
    }
}

/// A command that runs the binary as somebody who is not root, from where that user can reach it.
fn as_nobody(scratch: &Scratch, arguments: &[OsString]) -> Option<Command> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        let mut command = Command::new(binary());
        command.args(arguments);
        return Some(command);
    }
    let reachable = scratch.path("qcowtool");
    if !reachable.exists() {
        fs::copy(binary(), &reachable).unwrap();
    }
    let mode = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    mode(scratch.dir());
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&reachable)
        .args(arguments);
    let works = Command::new("setpriv").args(["--reuid=65534", "true"]).status();
    if !works.is_ok_and(|status| status.success()) {
        skipped("no setpriv here");
        return None;
    }
    Some(command)
}

#[test]
fn a_directory_or_image_that_may_not_be_written_is_an_error() {
    needs_qemu!();
    let scratch = Scratch::new();
    let place = Place::new();
    let closed = scratch.subdir("closed");
    let image = closed.join("image");
    fs::copy(place.source("leaks"), &image).unwrap();
    let old = fs::read(&image).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    for arguments in [
        args!["create", "-f", "qcow2", closed.join("new"), "1M"],
        args!["create", "-f", "qcow2", "--force", image, "1M"],
        args!["flatten", image, closed.join("new")],
        args!["checksum", "--manifest", closed.join("new"), image],
        args!["check", "-r", "leaks", image],
    ] {
        let Some(mut command) = as_nobody(&scratch, &arguments) else { return };
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(is_one_error(&stderr) && stderr.contains("ermission denied"), "{stderr}");
        assert_eq!(names(&closed), ["image"], "{arguments:?}");
        assert!(fs::read(&image).unwrap() == old, "{arguments:?}");
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What happens to a source.
type Change = fn(&File);

#[test]
fn a_source_that_changes_at_any_call_is_an_error_or_was_read_before() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = Place::new();
    let golden: Vec<_> =
        WHILE_CHANGED.iter().map(|case| (case, Golden::of(&place, case))).collect();
    let cut: Change = |file| file.set_len(10 << 10).unwrap();
    let written: Change = |file| file.write_all_at(&[0x5a; 512], 30 << 10).unwrap();
    let changes: [(&str, Change); 2] = [("cut short", cut), ("written", written)];
    let mut points = Vec::new();
    for (case, golden) in &golden {
        for call in golden.calls.iter().filter(|call| ["pread64", "lseek"].contains(&call.name)) {
            points.extend(changes.iter().map(|change| (*case, golden, call, change)));
        }
    }
    let noticed = AtomicUsize::new(0);
    on_a_sample("changes of a source", &points, |(case, golden, call, (what, change))| {
        let room = place.room(case);
        let image = room.0.join("image");
        let file = File::options().write(true).open(&image).unwrap();
        // So that the change is seen in the times, however coarse the clock of the file system.
        file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
        let meanwhile = || change(&file);
        let when = Disturbance::AtCall(call.name, call.nth, Fate::Meanwhile);
        let run = place.run_while(case, &room, when, &meanwhile);
        let failed = |what: &str| {
            Err(format!(
                "{}, {} at {} {}: {what}: {:?} {:?}",
                case.name, what, call.nth, call.name, run.ended, run.stderr
            ))
        };
        match run.ended {
            Ok(0) if run.stdout != golden.stdout => failed("another outcome"),
            Ok(0) if case.makes.iter().any(|name| !same(golden, &room, name)) => {
                failed("another target")
            }
            Ok(0) => Ok(()),
            Ok(code) if case.failures.contains(&code) => {
                noticed.fetch_add(1, Ordering::Relaxed);
                let left = room.names().len() > 1;
                if left {
                    failed("left a file")
                } else if is_one_error(&run.stderr) {
                    Ok(())
                } else {
                    failed(what)
                }
            }
            _ => failed(what),
        }
    });
    println!(
        "{} changes of a source under a reader, {} noticed",
        points.len(),
        noticed.into_inner()
    );
}

fn names(dir: &Path) -> Vec<OsString> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

fn same(golden: &Golden, room: &Room, name: &str) -> bool {
    let of = |files: Vec<(String, Vec<u8>)>| files.into_iter().find(|(file, _)| file == name);
    of(golden.after.clone()) == of(room.files())
}
