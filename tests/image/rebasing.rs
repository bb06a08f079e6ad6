//! `rebase`: another backing file, and the guest reads the same.

use std::fs;
use std::path::PathBuf;

use common::{checksum, qcowtool};
use fixtures::{Scratch, args, assert_bytes, crc32_hex, needs_qemu, qemu, qemu_img};

use crate::committing::killed;

/// An overlay on a base, and another base of another length.
fn overlay(scratch: &Scratch, options: &str, size: &str) -> PathBuf {
    let (base, other) = (scratch.path("base.qcow2"), scratch.path("other.qcow2"));
    qemu::create(&base, "", "6M");
    qemu::qemu_io("qcow2", &base, &["write -P 1 0 3M", "write -P 2 4M 1M"]);
    qemu::create(&other, "cluster_size=4k", "9M");
    qemu::qemu_io(
        "qcow2",
        &other,
        &["write -P 1 0 2M", "write -P 6 4500k 100k", "write -P 7 6500k 2M"],
    );
    let top = scratch.path("top.qcow2");
    qemu::overlay(&top, "base.qcow2", "qcow2", options, size);
    qemu::qemu_io(
        "qcow2",
        &top,
        &["write -P 3 1M 700k", "write -z 2M 256k", "write -P 4 12345 20000"],
    );
    top
}

#[test]
fn the_guest_reads_the_same_over_another_backing_file_and_over_none() {
    needs_qemu!();
    for (options, size, compress) in [
        ("", "5M", false),
        ("cluster_size=4k", "8M", true),
        ("compat=0.10", "8M", false),
        ("cluster_size=16k,extended_l2=on", "", true),
        ("cluster_size=2M", "", false),
    ] {
        let scratch = Scratch::new();
        let top = overlay(&scratch, options, size);
        let expected = qemu::raw_of("qcow2", &top);
        let mut rebase = args!["rebase", "--digest", "--output", "json"];
        if compress {
            rebase.push("-c".into());
        }
        for (backing, format) in
            [("other.qcow2", Some("qcow2")), ("base.qcow2", Some("qcow2")), ("", None)]
        {
            let what = format!("{options}, {size}: to '{backing}'");
            let mut new = args!["-b", backing];
            new.extend(format.iter().flat_map(|format| args!["-F", format]));
            let kept = fs::read(&top).unwrap();
            let plan = qcowtool([rebase.clone(), new.clone(), args!["-n", top]].concat()).json();
            assert_bytes!(fs::read(&top).unwrap(), kept, "{what}: a plan changes nothing");
            let done = qcowtool([rebase.clone(), new, args![top]].concat()).json();
            assert_eq!(done["disk-crc32"], crc32_hex(&expected), "{what}");
            assert_eq!(
                (&done["data-bytes"], &done["crc32"]),
                (&plan["data-bytes"], &plan["crc32"]),
                "{what}"
            );
            assert_bytes!(qemu::raw_of("qcow2", &top), expected, "{what}");
            qemu::assert_clean(&top);
            let info = qemu::info(&top);
            let named = info["backing-filename"].as_str().unwrap_or_default();
            assert_eq!(
                (named, info["backing-filename-format"].as_str()),
                (backing, format),
                "{what}"
            );
        }
    }
}

#[test]
fn what_is_equal_in_both_backing_files_is_not_copied_and_what_they_share_is_not_read() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = overlay(&scratch, "", "");
    let (base, mid) = (scratch.path("base.qcow2"), scratch.path("mid.qcow2"));
    qemu::overlay(&mid, "base.qcow2", "qcow2", "", "");
    qemu::qemu_io("qcow2", &mid, &["write -P 9 5M 128k"]);
    let to = |name: &str| {
        qcowtool(args!["rebase", "-b", name, "-F", "qcow2", "--output", "json", top]).json()
    };
    // What only the middle one has is hidden: zeros of the old backing file.
    let done = to("mid.qcow2");
    assert_eq!(
        (&done["data-bytes"], &done["zero-bytes"]),
        (&0.into(), &(128 << 10).into()),
        "{done}"
    );
    let done = to("base.qcow2");
    assert_eq!((&done["data-bytes"], &done["zero-bytes"]), (&0.into(), &0.into()), "{done}");
    let copy = scratch.path("copy.qcow2");
    qemu_img(&args!["convert", "-O", "qcow2", "-c", base, copy]);
    let done = to("copy.qcow2");
    assert_eq!((&done["data-bytes"], &done["zero-bytes"]), (&0.into(), &0.into()), "{done}");
}

#[test]
fn only_the_name_is_changed_when_that_is_asked_for() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = overlay(&scratch, "", "");
    let expected = qemu::raw_of("qcow2", &top);
    fs::rename(scratch.path("base.qcow2"), scratch.path("moved.qcow2")).unwrap();
    qcowtool(args!["rebase", "-u", "-b", "moved.qcow2", "-F", "qcow2", top]).ok();
    assert_bytes!(qemu::raw_of("qcow2", &top), expected, "over the moved file");
    qcowtool(args!["rebase", "-u", "-b", "gone.qcow2", "-F", "qcow2", top]).refused();
    qcowtool(args!["rebase", "-u", "--unchecked", "-b", "gone.qcow2", "-F", "qcow2", top]).ok();
    assert_eq!(qemu::info(qemu::alone(&top))["format"], "qcow2");
    // The old backing file cannot be read: only -u helps.
    qcowtool(args!["rebase", "-b", "moved.qcow2", "-F", "qcow2", top])
        .refused_naming(&["gone.qcow2"]);
    qcowtool(args!["rebase", "-u", "-b", "moved.qcow2", "-F", "qcow2", top]).ok();
    assert_bytes!(qemu::raw_of("qcow2", &top), expected, "again");
}

#[test]
fn snapshots_that_show_the_backing_file_are_not_changed_unasked() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = overlay(&scratch, "", "");
    qemu_img(&args!["snapshot", "-c", "before", top]);
    let snapshot = || qemu::try_raw_of("qcow2", &top, Some("before")).unwrap();
    let (expected, before) = (qemu::raw_of("qcow2", &top), snapshot());
    let to = |name: &str, more: &[&str]| {
        let more = more.iter().map(Into::into).collect();
        qcowtool([args!["rebase", "-b", name, "-F", "qcow2"], more, args![top]].concat())
    };
    to("other.qcow2", &[]).refused_naming(&["before", "--change-snapshots"]);
    let copy = scratch.path("copy.qcow2");
    qemu_img(&args!["convert", "-O", "qcow2", scratch.path("base.qcow2"), copy]);
    to("copy.qcow2", &[]).ok();
    assert_bytes!(snapshot(), before, "the copy has the same content");
    to("other.qcow2", &["--change-snapshots"]).ok();
    assert_bytes!(qemu::raw_of("qcow2", &top), expected, "the current state");
    assert_ne!(snapshot(), before, "as was said");
    qemu::assert_clean(&top);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_copied() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = overlay(&scratch, "cluster_size=512", "");
    let before = fs::read(&top).unwrap();
    let long = format!("{}other.qcow2", "./".repeat(200));
    qcowtool(args!["rebase", "-b", "other.qcow2", top]).refused_naming(&["-F qcow2"]);
    qcowtool(args!["rebase", "-F", "qcow2", "-b", "top.qcow2", top]).refused();
    qcowtool(args!["rebase", "-F", "qcow2", "-b", "gone.qcow2", top])
        .refused_naming(&["gone.qcow2"]);
    qcowtool(args!["rebase", "-F", "qcow2", "-b", long, top]).refused();
    let above = scratch.path("above.qcow2");
    qemu::overlay(&above, "top.qcow2", "qcow2", "", "");
    qcowtool(args!["rebase", "-F", "qcow2", "-b", "above.qcow2", top]).refused();
    assert_bytes!(fs::read(&top).unwrap(), before, "the image");
}

#[test]
fn a_kill_at_any_moment_leaves_what_the_guest_read_and_the_rebase_can_be_repeated() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (old, new) = (scratch.path("old.qcow2"), scratch.path("new.qcow2"));
    qemu::create(&old, "", "64M");
    qemu::create(&new, "", "64M");
    qemu::qemu_io("qcow2", &old, &["write -P 1 0 24M"]);
    qemu::qemu_io("qcow2", &new, &["write -P 1 0 6M", "write -P 2 9M 12M"]);
    let model = |name: &str| {
        let top = scratch.subdir(name).join("top.qcow2");
        qemu::overlay(&top, "../old.qcow2", "qcow2", "", "64M");
        qemu::qemu_io("qcow2", &top, &["write -P 9 1M 3M"]);
        top
    };
    killed(
        model,
        |top| args!["rebase", "-q", "-b", "../new.qcow2", "-F", "qcow2", top],
        |top| {
            let found = qcowtool(args!["check", "-q", top]).code();
            assert!(matches!(found, Some(0 | 3)), "{found:?}");
            assert!(!checksum(top, &[]).is_empty());
        },
    );
}
