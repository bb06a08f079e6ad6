//! Nothing that an image says of its free clusters is believed by what writes to it (W-67, W-87): a refcount that is too
//! low is found before the first write, and an image that was not closed properly is repaired first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::qcowtool;
use fixtures::patch::field;
use fixtures::{Patch, Scratch, args, assert_bytes, needs_qemu, qemu, qemu_img};

use crate::serve::Served;

/// A base of 1 MiB, an image over it with a snapshot, and an overlay over that.
fn chain(scratch: &Scratch, options: &str) -> (PathBuf, PathBuf) {
    let base = scratch.file("base.raw", &vec![0xb5; 1 << 20]);
    fs::copy(&base, scratch.path("other.raw")).unwrap();
    // In another directory: nothing is written into an image that is seen to be a backing file.
    let overlay = scratch.subdir("above").join("overlay.qcow2");
    let image = scratch.path("image.qcow2");
    let backing = format!("{options},backing_file=base.raw,backing_fmt=raw");
    qemu::create(&image, backing.trim_start_matches(','), "4M");
    qemu::qemu_io("qcow2", &image, &["write -P 1 0 512k", "write -P 2 2M 256k"]);
    qemu_img(&args!["snapshot", "-c", "one", image]);
    qemu::qemu_io("qcow2", &image, &["write -P 3 64k 64k"]);
    qemu::overlay(&overlay, "../image.qcow2", "qcow2", "", "");
    qemu::qemu_io("qcow2", &overlay, &["write -P 4 3M 64k"]);
    (image, overlay)
}

/// Every command that writes into an image, with what it is to write to.
fn commands(image: &Path, overlay: &Path) -> Vec<Vec<std::ffi::OsString>> {
    vec![
        args!["io", "-c", "write 3M 64k 7", image],
        args!["resize", "-q", image, "+1M"],
        args!["resize", "-q", "--shrink", image, "1M"],
        args!["snapshot", "-c", "two", image],
        args!["snapshot", "-a", "one", image],
        args!["snapshot", "-d", "one", image],
        args!["bitmap", "--add", image, "monday"],
        args!["amend", "-o", "refcount_bits=64", image],
        args!["sparsify", "--compact", image],
        args!["commit", "-d", overlay],
        args!["rebase", "-q", "-b", "other.raw", "-F", "raw", image],
        args!["convert", "-q", "-n", "-f", "raw", image.with_file_name("other.raw"), image],
    ]
}

#[test]
fn a_refcount_that_is_too_low_is_found_before_anything_is_written() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, overlay) = chain(&scratch, "");
    let sound = Patch::open(&image);
    let block = sound.u64(sound.u64(field::REFTABLE_OFFSET) as usize) as usize;
    let cluster_of = |entry: u64| ((entry & 0x00ff_ffff_ffff_fe00) >> 16) as usize;
    let forged = [
        // Free, and used by the guest; used by a snapshot too, and said to be used once.
        ("data", cluster_of(sound.l2_entry(2 << 20)), 0u16),
        ("shared data", cluster_of(sound.l2_entry(0)), 1),
        ("an L2 table", cluster_of(sound.u64(sound.l1_entry_at(0))), 0),
        ("the L1 table", cluster_of(sound.u64(field::L1_OFFSET)), 0),
        ("the snapshot table", cluster_of(sound.u64(field::SNAPSHOTS_OFFSET)), 0),
    ];
    for (what, cluster, count) in forged {
        let mut lying = sound.clone();
        lying.set_u16(block + cluster * 2, count).save();
        let bytes = fs::read(&image).unwrap();
        for command in commands(&image, &overlay) {
            let shown = format!("{what}: {command:?}");
            let run = qcowtool(command);
            assert!(!run.succeeded(), "{shown}: {}", run.stdout());
            assert!(run.stderr().contains("errors in its metadata"), "{shown}: {}", run.stderr());
            assert!(run.stderr().contains("check -r all"), "{shown}: {}", run.stderr());
            assert_bytes!(fs::read(&image).unwrap(), bytes, "{shown}");
        }
        let socket = scratch.path("socket");
        let run = qcowtool(args!["serve", "--socket", socket, image]);
        assert!(!run.succeeded() && run.stderr().contains("errors in its metadata"), "{what}");
        assert_bytes!(fs::read(&image).unwrap(), bytes, "{what}: serve");
        // What is advised works, and the guest's bytes are all there.
        qcowtool(args!["check", "-q", "-r", "all", image]).ok();
        qcowtool(args!["io", "-q", "-c", "write 3M 64k 7", image]).ok();
        let reads =
            ["read -P 1 0 64k", "read -P 3 64k 64k", "read -P 2 2M 256k", "read -P 7 3M 64k"];
        qemu::qemu_io("qcow2", &image, &reads);
        sound.save();
    }
}

/// The image as QEMU leaves it that keeps refcounts lazily and crashes: marked, and with clusters counted as free.
fn crashed(image: &Path) {
    let mut dying = Command::new("qemu-io");
    dying.args(args!["-f", "qcow2", "-c", "write -P 9 1M 256k", "-c", "flush", "-c", "abort"]);
    assert!(!dying.arg(image).output().unwrap().status.success());
    assert_eq!(Patch::open(image).u64(field::INCOMPATIBLE) & 1, 1, "QEMU marked it");
}

#[test]
fn an_image_that_qemu_did_not_close_is_repaired_and_changed() {
    needs_qemu!();
    let count = commands(Path::new(""), Path::new("")).len();
    for number in 0..=count {
        let scratch = Scratch::new();
        let (image, overlay) = chain(&scratch, "lazy_refcounts=on");
        crashed(&image);
        match commands(&image, &overlay).into_iter().nth(number) {
            Some(command) => {
                let shown = format!("{command:?}");
                let run = qcowtool(command);
                assert!(run.succeeded(), "{shown}: {}", run.stderr());
                let said = run.stderr();
                assert!(said.contains("not closed properly"), "{shown}: {said}");
                assert!(said.contains("was repaired"), "{shown}: {said}");
            }
            None => {
                let served = Served::start(&scratch, "", &[&image]);
                qemu::qemu_io("raw", &served.uri, &["write -P 7 3M 64k"]);
                assert_eq!(served.end(), Some(0));
            }
        }
        assert_eq!(Patch::open(&image).u64(field::INCOMPATIBLE) & 1, 0, "command {number}");
        qemu::assert_clean(&image);
        if number < 2 {
            let reads = ["read -P 9 1M 256k", "read -P 1 0 64k", "read -P 2 2M 256k"];
            qemu::qemu_io("qcow2", &image, &reads);
            let header = Patch::open(&image);
            assert_eq!(header.u64(field::COMPATIBLE) & 1, 1, "its refcounts may still be lazy");
        }
    }
}

/// What was repaired is a field of each outcome, and of each plan.
#[test]
fn an_outcome_has_what_was_repaired_before() {
    needs_qemu!();
    for number in 1..commands(Path::new(""), Path::new("")).len() {
        for plan in [true, false] {
            let scratch = Scratch::new();
            let (image, overlay) = chain(&scratch, "lazy_refcounts=on");
            crashed(&image);
            let mut command = commands(&image, &overlay).swap_remove(number);
            let shown = format!("{command:?}, plan {plan}");
            if plan && shown.contains("\"convert\"") {
                continue;
            }
            command.extend(args!["--output", "json"]);
            command.extend(plan.then(|| "--dry-run".into()));
            let run = qcowtool(command);
            assert!(run.succeeded(), "{shown}: {}", run.stderr());
            let outcome: serde_json::Value = serde_json::from_str(&run.stdout()).unwrap();
            let key = if shown.contains("\"commit\"") { "base-repaired" } else { "repaired" };
            assert!(outcome[key]["corruptions"].as_u64() > Some(0), "{shown}: {outcome}");
            let would = if plan { "would be repaired" } else { "was repaired" };
            assert!(run.stderr().contains(would), "{shown}: {}", run.stderr());
        }
    }
    // Of an image that was closed there is nothing to say.
    let scratch = Scratch::new();
    let (image, _) = chain(&scratch, "");
    let run = qcowtool(args!["snapshot", "-c", "two", "--output", "json", image]);
    let outcome: serde_json::Value = serde_json::from_str(&run.stdout()).unwrap();
    assert!(outcome.get("repaired").is_none() && run.stderr().is_empty(), "{outcome}");
}

/// A change that fails after the repair says that the image is not quite as it was.
#[test]
fn what_is_refused_after_a_repair_says_that_there_was_one() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, _) = chain(&scratch, "lazy_refcounts=on");
    crashed(&image);
    qcowtool(args!["snapshot", "-c", "one", image])
        .refused_naming(&["has the name 'one'", "was repaired before"]);
    qemu::assert_clean(&image);
}

#[test]
fn a_plan_for_an_image_that_qemu_did_not_close_leaves_it_as_it_is() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, overlay) = chain(&scratch, "lazy_refcounts=on");
    crashed(&image);
    let before = fs::read(&image).unwrap();
    for command in [
        args!["commit", "--dry-run", "-d", overlay],
        args!["rebase", "--dry-run", "-b", "other.raw", "-F", "raw", image],
        args!["snapshot", "--dry-run", "-c", "two", image],
        args!["resize", "--dry-run", image, "+1M"],
        args!["amend", "--dry-run", "-o", "refcount_bits=64", image],
    ] {
        let shown = format!("{command:?}");
        let run = qcowtool(command);
        assert!(run.succeeded(), "{shown}: {}", run.stderr());
        assert_bytes!(fs::read(&image).unwrap(), before, "{shown}");
    }
}
