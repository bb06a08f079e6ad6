//! Stopping `flatten`: a signal removes what was half made, and nothing ever appears at the target but
//! the whole image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{checksum, command};
use fixtures::chains::Chain;
use fixtures::pattern::Random;
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img};

/// A chain that takes a moment to flatten, and a directory for the target.
fn long_work(scratch: &Scratch) -> (Chain, PathBuf) {
    (fixtures::big::big_chain(&scratch.subdir("source"), 2, 24 << 20), scratch.subdir("out"))
}

fn start(source: &Path, target: &Path, options: &[&str]) -> Child {
    let mut arguments = args!["flatten", "-q"];
    arguments.extend(options.iter().map(Into::into));
    arguments.extend(args![source, target]);
    command(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// Waits until the temporary file is there, so that there is something to clean up.
fn wait_for_work(child: &mut Child, out: &Path) {
    let begun = Instant::now();
    while names(out).is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "ended before it began to write");
        assert!(begun.elapsed() < Duration::from_secs(60), "never began to write");
        sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, name: &str) {
    let kill = format!("kill -{name} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Starts compressing, sends a signal in the middle, and returns how it ended and what it said.
fn stopped_by(name: &str, options: &[&str]) -> (ExitStatus, String, Vec<String>) {
    let scratch = Scratch::new();
    let (chain, out) = long_work(&scratch);
    let mut child = start(chain.top(), &out.join("target"), &[&["-c"], options].concat());
    wait_for_work(&mut child, &out);
    signal(&child, name);
    let output = child.wait_with_output().unwrap();
    (output.status, String::from_utf8(output.stderr).unwrap(), names(&out))
}

#[test]
fn sigint_removes_the_temporary_file_and_exits_with_130() {
    let (status, stderr, left) = stopped_by("INT", &[]);
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert!(stderr.starts_with("qcowtool: ") && stderr.lines().count() == 1, "{stderr:?}");
    assert_eq!(left, [""; 0]);
}

#[test]
fn sigterm_removes_the_temporary_file_and_exits_with_143() {
    let (status, stderr, left) = stopped_by("TERM", &[]);
    assert_eq!(status.code(), Some(143), "{stderr}");
    assert_eq!(left, [""; 0]);
}

#[test]
fn two_signals_at_once_are_one() {
    let scratch = Scratch::new();
    let (chain, out) = long_work(&scratch);
    let mut child = start(chain.top(), &out.join("target"), &["-c"]);
    wait_for_work(&mut child, &out);
    // As `timeout` does; two different ones, because two of a kind can be delivered as one.
    let kill = format!("kill -TERM {0}; kill -INT {0}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(130 | 143)), "{code:?}");
    assert_eq!(names(&out), [""; 0]);
}

#[test]
fn an_interruption_is_reported_as_json_when_asked_for() {
    let (status, stderr, left) = stopped_by("INT", &["--output", "json"]);
    assert_eq!(status.code(), Some(130), "{stderr}");
    let error: serde_json::Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!(error["error"]["kind"], "interrupted");
    assert_eq!(left, [""; 0]);
}

#[test]
fn an_interrupted_flatten_by_force_keeps_the_old_target() {
    let scratch = Scratch::new();
    let (chain, out) = long_work(&scratch);
    let target = out.join("target");
    fs::write(&target, b"precious").unwrap();
    let mut child = start(chain.top(), &target, &["-c", "--force"]);
    let begun = Instant::now();
    while names(&out).len() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "ended before it began to write");
        assert!(begun.elapsed() < Duration::from_secs(60), "never began to write");
        sleep(Duration::from_millis(1));
    }
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert_eq!(names(&out), ["target"]);
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_or_the_whole_image_at_the_target() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (chain, out) = long_work(&scratch);
    let expected = checksum(chain.top(), &[]);
    let target = out.join("target");
    for options in [&[][..], &["-O", "raw"]] {
        let begun = Instant::now();
        assert!(start(chain.top(), &target, options).wait().unwrap().success());
        let whole = begun.elapsed();
        fs::remove_file(&target).unwrap();

        let mut random = Random::new(9);
        let mut killed_in_the_middle = 0;
        for _ in 0..20 {
            let mut child = start(chain.top(), &target, options);
            sleep(whole.mul_f64(random.below(1000) as f64 / 900.0));
            child.kill().unwrap();
            child.wait().unwrap();
            killed_in_the_middle += usize::from(!names(&out).contains(&"target".into()));
            if target.exists() {
                let format = if options.is_empty() { "qcow2" } else { "raw" };
                assert_eq!(checksum(&target, &["-f", format]), expected);
                if format == "qcow2" {
                    qemu::assert_clean(&target);
                }
            }
            fs::remove_dir_all(&out).unwrap();
            fs::create_dir(&out).unwrap();
        }
        assert!(killed_in_the_middle > 3, "only {killed_in_the_middle} of 20 came in time");
    }
}

#[test]
fn a_killed_flatten_does_not_stand_in_the_way_of_the_next() {
    let scratch = Scratch::new();
    let (chain, out) = long_work(&scratch);
    let target = out.join("target");
    let mut child = start(chain.top(), &target, &["-c"]);
    wait_for_work(&mut child, &out);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!target.exists());
    assert!(start(chain.top(), &target, &[]).wait().unwrap().success());
    assert_eq!(checksum(&target, &[]), checksum(chain.top(), &[]));
}

#[test]
fn a_source_cut_short_while_it_is_read_is_an_error_and_no_signal() {
    needs_qemu!();
    let scratch = Scratch::new();
    let out = scratch.subdir("out");
    let content = fixtures::pattern::mixed(5, 24 << 20);
    let (raw, qcow2) = (scratch.file("disk.raw", &content), scratch.path("disk.qcow2"));
    qemu_img(&args!["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
    let target = out.join("target");
    let mut random = Random::new(5);
    for (source, format) in [(&raw, "raw"), (&qcow2, "qcow2")] {
        let bytes = fs::read(source).unwrap();
        for round in 0..16 {
            fs::write(source, &bytes).unwrap();
            let output = if round % 2 == 0 { "raw" } else { "qcow2" };
            let mut child = start(source, &target, &["-f", format, "-O", output]);
            sleep(Duration::from_millis(random.below(120)));
            fs::OpenOptions::new().write(true).open(source).unwrap().set_len(1 << 20).unwrap();
            match child.wait().unwrap().code() {
                // Before it was opened, or after it was read.
                Some(0) => fs::remove_file(&target).unwrap(),
                code => assert_eq!(code, Some(1), "{format} to {output}"),
            }
            assert_eq!(names(&out), [""; 0]);
        }
    }
}
