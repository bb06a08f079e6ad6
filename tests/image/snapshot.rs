//! `snapshot`: what it makes, QEMU reads, applies and deletes, and the other way round; what would lose something in
//! silence is refused, and nothing is written then.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{qcowtool, snapshot_like_qemu};
use fixtures::patch::field;
use fixtures::{Holder, Patch, Scratch, args, needs_qemu, qemu, qemu_img, qemu_io, try_qemu_img};

fn disk(scratch: &Scratch, options: &str) -> std::path::PathBuf {
    let path = scratch.path("disk.qcow2");
    qemu::create(&path, options, "1000k");
    qemu_io("qcow2", &path, &["write -P 1 0 300k", "write -z 300k 100k", "write -c -P 2 512k 64k"]);
    path
}

/// Asserts that it is refused with all of `words`, and that the image is untouched.
#[track_caller]
fn refused(image: &Path, arguments: &[&str], words: &[&str]) {
    let before = fs::read(image).unwrap();
    let mut all = args!["snapshot"];
    all.extend(arguments.iter().map(|word| word.into()));
    all.push(image.into());
    qcowtool(all).refused_naming(words);
    assert!(fs::read(image).unwrap() == before, "{arguments:?} wrote something");
}

#[test]
fn what_is_taken_applied_and_deleted_is_what_qemu_makes_of_it_in_turn() {
    needs_qemu!();
    for options in [
        "cluster_size=64k",
        "cluster_size=4k",
        "cluster_size=512",
        "cluster_size=16k,extended_l2=on",
        "compat=0.10,cluster_size=4k",
        "cluster_size=4k,refcount_bits=64",
        "cluster_size=4k,refcount_bits=8",
    ] {
        let scratch = Scratch::new();
        let path = disk(&scratch, options);
        qcowtool(args!["snapshot", "-q", "-c", "ours", path]).ok();
        qemu_io("qcow2", &path, &["write -P 3 100k 300k", "discard 0 64k"]);
        qemu_img(&args!["snapshot", "-c", "theirs", path]);
        qemu_io("qcow2", &path, &["write -P 4 20k 700k"]);
        qemu::assert_clean(&path);
        let (ours, theirs) =
            (snapshot_like_qemu(&path, "ours"), snapshot_like_qemu(&path, "theirs"));
        qcowtool(args!["snapshot", "-a", "theirs", path]).ok();
        qemu::assert_clean(&path);
        assert!(qemu::raw_of("qcow2", &path) == theirs, "{options}: theirs, applied by us");
        qemu_img(&args!["snapshot", "-a", "ours", path]);
        qemu::assert_clean(&path);
        assert!(qemu::raw_of("qcow2", &path) == ours, "{options}: ours, applied by QEMU");
        qcowtool(args!["snapshot", "-d", "theirs", path]).ok();
        qemu::assert_clean(&path);
        qcowtool(args!["snapshot", "-c", "again", path]).ok();
        qemu_io("qcow2", &path, &["write -P 5 0 1000k"]);
        qemu_img(&args!["snapshot", "-d", "ours", path]);
        qemu::assert_clean(&path);
        assert!(snapshot_like_qemu(&path, "again") == ours, "{options}");
        qcowtool(args!["snapshot", "-d", "again", path]).ok();
        qemu::assert_clean(&path);
        assert_eq!(qemu::raw_of("qcow2", &path), vec![5; 1000 << 10], "{options}");
    }
}

#[test]
fn the_list_is_qemus_and_ids_go_on_from_the_highest() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = disk(&scratch, "");
    assert_eq!(qcowtool(args!["snapshot", path]).ok(), "");
    for name in ["one", "two", "Grüße, Welt"] {
        qcowtool(args!["snapshot", "-c", name, path]).ok();
    }
    qcowtool(args!["snapshot", "-d", "snapshot.name=two", path]).ok();
    qcowtool(args!["snapshot", "-c", "four", path]).ok();
    let theirs = qemu_img(&args!["snapshot", "-l", path]);
    for arguments in [args!["snapshot", "-l", path], args!["snapshot", path]] {
        assert_eq!(qcowtool(arguments).ok(), theirs);
    }
    let json = qcowtool(args!["snapshot", "--output", "json", path]).json();
    let ids: Vec<_> = json.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["1", "3", "4"]);
    assert_eq!(json, qemu::info(&path)["snapshots"]);
}

#[test]
fn a_snapshot_that_another_could_be_meant_by_is_named_exactly() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = disk(&scratch, "");
    qcowtool(args!["snapshot", "-c", "2", path]).ok();
    refused(&path, &["-c", "2"], &["has the name '2'", "choose another name"]);
    qcowtool(args!["snapshot", "-c", "2", "--duplicate", path]).ok();
    refused(&path, &["-d", "2"], &["several internal snapshots", "snapshot.id=ID"]);
    refused(&path, &["-a", "2"], &["several internal snapshots", "snapshot.name=NAME"]);
    refused(&path, &["-d", "snapshot.name=2"], &["several internal snapshots"]);
    qcowtool(args!["snapshot", "-a", "snapshot.id=1", path]).ok();
    qcowtool(args!["snapshot", "-d", "snapshot.id=2", path]).ok();
    qcowtool(args!["snapshot", "-d", "2", path]).ok();
    refused(&path, &["-d", "2"], &["no internal snapshot", "`qcowtool info` lists"]);
    refused(&path, &["-c", ""], &["needs a name"]);
    refused(&path, &["-c", &"n".repeat(256)], &["256 bytes", "at most 255"]);
    qcowtool(args!["snapshot", "-c", "n".repeat(255), path]).ok();
    qemu::assert_clean(&path);
}

#[test]
fn a_dry_run_says_what_would_be_lost_and_writes_nothing() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("disk.qcow2");
    qemu::create(&path, "", "64M");
    qcowtool(args!["snapshot", "-c", "empty", path]).ok();
    qemu_io("qcow2", &path, &["write -P 1 0 8M"]);
    let before = fs::read(&path).unwrap();
    let said = qcowtool(args!["snapshot", "-a", "empty", "--dry-run", path]).ok();
    assert!(said.contains("Would apply snapshot 1") && said.contains("8 MiB of data"), "{said}");
    let json = qcowtool(args!["snapshot", "-d", "1", "--dry-run", "--output", "json", path]).json();
    assert_eq!((&json["action"], &json["data-lost"]), (&"delete".into(), &0.into()));
    assert!(fs::read(&path).unwrap() == before);
    // It can be asked while a guest only reads.
    let said = qcowtool(args!["snapshot", "-a", "empty", path]).ok();
    assert!(said.contains("8 MiB of data that only the state before had are gone"), "{said}");
    assert!(fs::metadata(&path).unwrap().blocks() < 2048, "the space was not given back");
}

#[test]
fn applying_takes_the_disks_size_back_with_it() {
    needs_qemu!();
    for (first, second) in [("1000k", "3M"), ("3M", "1000k")] {
        let scratch = Scratch::new();
        let path = scratch.path("disk.qcow2");
        qemu::create(&path, "cluster_size=512", first);
        qemu_io("qcow2", &path, &["write -P 1 900k 100k"]);
        qcowtool(args!["snapshot", "-c", "one", path]).ok();
        let before = qemu::raw_of("qcow2", &path);
        qemu_img(&args!["resize", "-q", "--shrink", path, second]);
        qcowtool(args!["snapshot", "-c", "two", path]).ok();
        let after = qemu::raw_of("qcow2", &path);
        for (name, content) in [("one", &before), ("two", &after), ("one", &before)] {
            qcowtool(args!["snapshot", "-a", name, path]).ok();
            qemu::assert_clean(&path);
            assert!(qemu::raw_of("qcow2", &path) == *content, "{name}");
        }
    }
}

#[test]
fn vm_state_stays_with_the_snapshots_that_have_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = disk(&scratch, "cluster_size=4k");
    let content = qemu::raw_of("qcow2", &path);
    qemu_io("qcow2", &path, &["write -b -P 9 0 200k"]);
    qcowtool(args!["snapshot", "-c", "with", path]).ok();
    qemu::assert_clean(&path);
    qcowtool(args!["snapshot", "-c", "without", path]).ok();
    qemu_img(&args!["snapshot", "-a", "without", path]);
    qemu_io("qcow2", &path, &["read -b -P 0 0 200k"]);
    qcowtool(args!["snapshot", "-a", "with", path]).ok();
    qemu::assert_clean(&path);
    assert!(qemu::raw_of("qcow2", &path) == content);
    qemu_img(&args!["snapshot", "-a", "with", path]);
    qemu_io("qcow2", &path, &["read -b -P 9 0 200k"]);
    // QEMU has it in the active image now, too; deleting finds the right counts.
    qcowtool(args!["snapshot", "-d", "with", path]).ok();
    qemu::assert_clean(&path);
    qemu_io("qcow2", &path, &["read -b -P 9 0 200k"]);
    qcowtool(args!["snapshot", "-a", "without", path]).ok();
    qemu::assert_clean(&path);
    qcowtool(args!["snapshot", "-d", "without", path]).ok();
    qemu::assert_clean(&path);
    assert!(qemu::raw_of("qcow2", &path) == content);
}

#[test]
fn bitmaps_are_kept_and_an_image_with_some_is_not_changed_behind_their_backs() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = disk(&scratch, "");
    qemu_img(&args!["bitmap", "--add", path, "daily"]);
    qcowtool(args!["snapshot", "-c", "one", path]).ok();
    qemu_io("qcow2", &path, &["write -P 6 0 64k"]);
    let bitmaps = |path: &Path| qemu::info(path)["format-specific"]["data"]["bitmaps"].clone();
    assert_eq!(bitmaps(&path).as_array().unwrap().len(), 1);
    let words = ["persistent bitmaps", "give --bitmaps mark", "--bitmaps drop to remove them"];
    refused(&path, &["-a", "one"], &words);
    let said = qcowtool(args!["snapshot", "-a", "one", "--bitmaps", "drop", path]).ok();
    assert!(said.contains("Bitmaps that were removed: 1."), "{said}");
    assert!(bitmaps(&path).is_null());
    qemu::assert_clean(&path);
    // QEMU writes to it, and adds bitmaps again.
    qemu_io("qcow2", &path, &["write -P 7 64k 64k"]);
    qemu_img(&args!["bitmap", "--add", path, "weekly"]);
    qcowtool(args!["snapshot", "-d", "one", path]).ok();
    qemu::assert_clean(&path);
    assert_eq!(bitmaps(&path)[0]["name"], "weekly");
}

/// A backup that copies what the bitmap has as dirty is right although the disk went back to a snapshot.
#[test]
fn what_a_snapshot_changes_is_dirty_in_bitmaps_that_record_writes() {
    needs_qemu!();
    for other_size in [false, true] {
        let scratch = Scratch::new();
        let path = scratch.path("disk.qcow2");
        qemu::create(&path, "", "4M");
        qemu_io("qcow2", &path, &["write -P 1 0 1M", "write -c -P 2 2M 64k"]);
        qcowtool(args!["snapshot", "-c", "one", path]).ok();
        qemu_io("qcow2", &path, &["write -P 6 64k 4k", "write -z 512k 64k", "write -P 7 3M 64k"]);
        if other_size {
            qcowtool(args!["resize", "-q", "--shrink", path, "3136k"]).ok();
        }
        // The backup, and from here on it is recorded what changes.
        let backup = scratch.path("backup.raw");
        fs::write(&backup, qemu::raw_of("qcow2", &path)).unwrap();
        qcowtool(args!["bitmap", "-q", "--add", "-g", "4k", path, "daily"]).ok();
        qcowtool(args!["bitmap", "-q", "--add", "--disable", path, "old"]).ok();
        qemu_io("qcow2", &path, &["write -P 8 128k 4k"]);
        let apply = args!["snapshot", "-a", "one", "--bitmaps", "mark", path];
        let said = qcowtool(apply).ok();
        assert!(said.contains("Bitmaps that have what changed as dirty: 1."), "{said}");
        qemu::assert_clean(&path);
        let dirty = qcowtool(args!["bitmap", "--output", "json", path, "daily"]).ok();
        let dirty: serde_json::Value = serde_json::from_str(&dirty).unwrap();
        let bytes = dirty.as_array().unwrap().iter().map(|range| range["length"].as_u64().unwrap());
        // Clusters in which the two states differ, and no others.
        assert_eq!(bytes.sum::<u64>(), 4 * 65536, "{dirty}");
        let old = qcowtool(args!["bitmap", "--output", "json", path, "old"]).ok();
        assert_eq!(old.trim(), "[]", "what is disabled stays as it is");
        let now = qemu::raw_of("qcow2", &path);
        fs::File::options().write(true).open(&backup).unwrap().set_len(now.len() as u64).unwrap();
        let copy = args!["convert", "-q", "-n", "-O", "raw", "--bitmap", "daily", path, backup];
        qcowtool(copy).ok();
        assert!(fs::read(&backup).unwrap() == now, "the backup is not the disk");
        // QEMU believes both, and goes on recording.
        qemu_io("qcow2", &path, &["write -P 9 1M 4k"]);
        qemu::assert_clean(&path);
    }
}

#[test]
fn a_bitmap_that_was_not_stored_cleanly_does_not_get_another_size() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = disk(&scratch, "");
    qcowtool(args!["snapshot", "-c", "one", path]).ok();
    qcowtool(args!["resize", "-q", path, "2M"]).ok();
    qemu_img(&args!["bitmap", "--add", path, "daily"]);
    let mut dying = std::process::Command::new("qemu-io");
    dying.args(args!["-f", "qcow2", "-c", "write 0 4k", "-c", "flush", "-c", "abort", path]);
    assert!(!dying.output().unwrap().status.success());
    let words = ["'daily' was not stored cleanly", "give --bitmaps drop"];
    refused(&path, &["-a", "one", "--bitmaps", "mark"], &words);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_written() {
    needs_qemu!();
    let scratch = Scratch::new();
    let raw = scratch.file("raw", &[0; 4096]);
    refused(&raw, &["-f", "raw", "-c", "one"], &["raw images have no internal snapshots"]);
    let narrow = scratch.path("narrow");
    qemu::create(&narrow, "refcount_bits=1", "1M");
    qemu_io("qcow2", &narrow, &["write 64k 64k"]);
    refused(&narrow, &["-c", "one"], &["has 1 references", "refcounts of 1 bits", "flatten"]);
    let outside = scratch.path("outside");
    let data = format!("data_file={}", scratch.path("data").display());
    qemu::create(&outside, &data, "1M");
    refused(&outside, &["-c", "one"], &["external data file", "internal snapshots"]);

    let path = disk(&scratch, "lazy_refcounts=on");
    qcowtool(args!["snapshot", "-c", "one", path]).ok();
    let holder = Holder::new(&["-f", "qcow2"], &path);
    for action in ["-c", "-a", "-d"] {
        refused(&path, &[action, "one"], &["in use"]);
    }
    qcowtool(args!["snapshot", "-l", "-U", path]).ok();
    holder.finish("quit\n");
    let mut marked = Patch::open(&path);
    let marked_path = scratch.path("marked");
    marked.or_u64(field::INCOMPATIBLE, 2).save_as(&marked_path);
    refused(&marked_path, &["-d", "one"], &["marked corrupt", "check -r all"]);
    let mut damaged = Patch::open(&path);
    let entry = damaged.l2_entry(0);
    damaged.set_l2_entry(65536, entry).save_as(scratch.path("damaged"));
    refused(&scratch.path("damaged"), &["-c", "two"], &["errors in its metadata", "check -r all"]);
    qcowtool(args!["check", "-r", "all", scratch.path("damaged")]).ok();
    qcowtool(args!["snapshot", "-c", "two", scratch.path("damaged")]).ok();
    assert!(try_qemu_img(&args!["check", scratch.path("damaged")]).is_ok());
}
