//! Directories that were made to do harm, many images, and trees that change.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use fixtures::pattern::Random;
use fixtures::{Scratch, args, needs_qemu, qemu};

use super::{Found, mode, pair};
use common::{command, qcowtool, ten_thousand};

#[test]
fn names_with_control_characters_are_shown_escaped() {
    needs_qemu!();
    let scratch = Scratch::new();
    let name = "line\nbreak \u{1b}[31mred\u{202e}";
    qemu::create(scratch.path("base.qcow2"), "", "1M");
    qemu::overlay(scratch.path(name), "base.qcow2", "qcow2", "", "");
    fs::rename(scratch.path("base.qcow2"), scratch.path("other\n\u{1b}")).unwrap();
    let raw = std::os::unix::ffi::OsStringExt::from_vec(b"not-utf8-\xff.qcow2".to_vec());
    let raw: OsString = raw;
    fs::copy(scratch.path(name), scratch.path(&raw)).unwrap();
    let found = Found::in_dir(&scratch);
    assert_eq!(found.findings().len(), 2, "{:?}", found.findings());
    for options in [args!["--tree"], args!["--output", "prometheus"], args!["--output", "json"]] {
        let run = qcowtool([args!["audit"], options, args![scratch.dir()]].concat());
        let control = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!run.stdout().contains(control), "{:?}", run.stdout());
        assert!(!run.stdout().contains("line\nbreak"), "{:?}", run.stdout());
        assert_eq!((run.code(), run.stderr().as_str()), (Some(2), ""));
    }
    let listed = qcowtool(args!["dependents", scratch.path("base.qcow2"), "--in", scratch.dir()]);
    assert!(listed.ok().contains("line\\nbreak \\u{1b}[31mred\\u{202e}"), "{}", listed.stdout());
}

#[test]
fn fifos_devices_and_circles_of_links_do_not_stop_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let fifo = scratch.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    symlink(scratch.dir(), scratch.path("back")).unwrap();
    symlink("circle", scratch.path("circle")).unwrap();
    symlink("/dev/zero", scratch.path("zero")).unwrap();
    symlink("/dev/tty", scratch.path("tty.qcow2")).unwrap();
    for (nth, base) in ["fifo", "circle", "zero", "back"].iter().enumerate() {
        let image = scratch.path(format!("on{nth}.qcow2"));
        qemu::qemu_img(&args![
            "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "raw", image, "1M"
        ]);
    }
    Found::in_dir(&scratch).has_only(&[
        "error base-unusable on0.qcow2",
        "error base-unusable on1.qcow2",
        "error base-unusable on2.qcow2",
        "error base-unusable on3.qcow2",
    ]);
    let found = Found::of(args![fifo, scratch.dir()]);
    assert!(found.findings().contains(&"error unreadable fifo".into()), "{:?}", found.findings());
}

#[test]
fn bases_over_a_network_are_named_and_left_alone() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("remote.qcow2");
    qemu::qemu_img(&args![
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "nbd://127.0.0.1:1/x",
        "-F",
        "raw",
        image,
        "1M"
    ]);
    let found = Found::in_dir(&scratch);
    found.has_only(&["info base-not-followed remote.qcow2"]);
    assert!(found.said("base-not-followed").contains("nbd"));
}

#[test]
fn garbage_behind_the_magic_ends_in_a_line() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let sound = fs::read(scratch.path("overlay.qcow2")).unwrap();
    let mut random = Random::new(0xa0d17);
    let mut broken = 0;
    for nth in 0..300 {
        let mut bytes = sound[..4096].to_vec();
        for _ in 0..=random.below(12) {
            // The magic stays, so that it is taken for an image.
            let at = 4 + usize::try_from(random.below(600)).unwrap();
            bytes[at] = u8::try_from(random.below(256)).unwrap();
        }
        if nth % 3 == 0 {
            bytes.truncate(usize::try_from(4 + random.below(200)).unwrap());
        }
        fs::write(scratch.path(format!("garbage{nth}.qcow2")), bytes).unwrap();
    }
    let found = Found::in_dir(&scratch);
    for finding in found.findings() {
        broken += usize::from(finding.contains("header-broken") || finding.contains("unreadable"));
    }
    assert!(broken > 100, "{broken} of 300");
    assert!(matches!(found.run.code(), Some(0 | 2)), "{:?}", found.run);
    // The sound pair is still found among them.
    assert_eq!(found.image(&scratch.path("overlay.qcow2").canonicalize().unwrap())["depth"], 2);
}

#[test]
fn what_cannot_be_read_is_told_and_never_taken_for_nothing() {
    needs_qemu!();
    let scratch = Scratch::new();
    mode(scratch.dir(), 0o755);
    pair(&scratch);
    let closed = scratch.subdir("closed");
    fs::rename(scratch.path("overlay.qcow2"), closed.join("overlay.qcow2")).unwrap();
    mode(&closed, 0);
    let readable_by_nobody = |arguments: Vec<OsString>| {
        // As root nothing is unreadable.
        let mut command = command(&arguments);
        if is_root() {
            std::os::unix::process::CommandExt::uid(&mut command, 65534);
        }
        command.output().unwrap()
    };
    let audit = readable_by_nobody(args!["audit", scratch.dir()]);
    let text = String::from_utf8(audit.stdout).unwrap();
    assert!(text.contains("warning: unreadable: ") && text.contains("closed"), "{text}");
    let asked =
        args!["dependents", scratch.path("base.qcow2"), "--in", scratch.dir(), "--may-delete"];
    let answer = readable_by_nobody(asked);
    assert_eq!(answer.status.code(), Some(6), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.stderr).contains("closed"), "{answer:?}");
    mode(&closed, 0o755);
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout == b"0\n"
}

#[test]
fn a_tree_that_changes_under_the_scan_does_not_bring_it_down() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let overlay = fs::read(scratch.path("overlay.qcow2")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..2_u64 {
            let (scratch, overlay, stop) = (&scratch, &overlay, &stop);
            scope.spawn(move || {
                let mut random = Random::new(worker);
                let name = |n: u64| scratch.path(format!("w{worker}-{}.qcow2", n % 8));
                while !stop.load(Ordering::SeqCst) {
                    let (one, other) = (name(random.below(8)), name(random.below(8)));
                    let _ = match random.below(5) {
                        0 => fs::write(&one, overlay),
                        1 => {
                            fs::write(&one, &overlay[..usize::try_from(random.below(900)).unwrap()])
                        }
                        2 => fs::rename(&one, &other),
                        3 => fs::remove_file(&one),
                        _ => symlink(&other, &one),
                    };
                }
            });
        }
        for _ in 0..25 {
            let found = Found::in_dir(&scratch);
            assert!(matches!(found.run.code(), Some(0 | 2)), "{:?}", found.run);
            let base = scratch.path("base.qcow2").canonicalize().unwrap();
            assert_eq!(found.image(&base)["presence"], "here");
        }
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn ten_thousand_images_are_told_apart() {
    needs_qemu!();
    let scratch = Scratch::new();
    ten_thousand(scratch.dir());
    let found = Found::in_dir(&scratch);
    found.has_only(&[]);
    let summary = &found.json["summary"];
    assert_eq!((&summary["images"], &summary["overlays"]), (&10_000.into(), &9_900.into()));
    assert_eq!((&summary["bases"], &summary["deepest"]), (&100.into(), &2.into()));
    let bases = found.json["bases"].as_array().unwrap();
    assert!(bases.iter().all(|base| base["users"] == 99 && base["overlays"] == 99));
    let base = scratch.path("pool3/group3/base.qcow2");
    let asked = args!["dependents", "--output", "json", base, "--in", scratch.dir()];
    assert_eq!(qcowtool(asked).json()["images"].as_array().unwrap().len(), 99);
}

#[test]
fn a_chain_of_thousands_takes_no_stack() {
    needs_qemu!();
    let scratch = Scratch::new();
    fixtures::chains::deep(scratch.dir(), 3000);
    let found = Found::in_dir(&scratch);
    found.has_only(&["warning chain-deep layer2999.qcow2"]);
    assert_eq!(found.json["summary"]["deepest"], 3000);
    let template = scratch.path("layer0.qcow2");
    let listed = qcowtool(args!["dependents", template, "--in", scratch.dir()]).ok();
    assert!(listed.contains("layer2999.qcow2 (by 2999 steps)"));
    let drawn = qcowtool(args!["audit", "--tree", scratch.dir()]).ok();
    assert!(drawn.len() < 2 << 20, "{}", drawn.len());
}
