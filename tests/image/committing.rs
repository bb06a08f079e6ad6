//! `commit`: the overlay's data goes into its base, and the guest reads the same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Instant;

use common::{checksum, command, qcowtool};
use fixtures::pattern::Random;
use fixtures::{Holder, Scratch, args, assert_bytes, needs_qemu, qemu, qemu_img};

/// A base and an overlay with all kinds of clusters.
fn overlay(scratch: &Scratch, options: &str, size: &str) -> (PathBuf, PathBuf) {
    let (base, top) = (scratch.path("base.qcow2"), scratch.path("top.qcow2"));
    qemu::create(&base, options, "8M");
    qemu::qemu_io("qcow2", &base, &["write -P 1 0 3M", "write -P 2 6M 1M"]);
    qemu::overlay(&top, "base.qcow2", "qcow2", "", size);
    let writes = [
        "write -P 3 1M 700k",
        "write -z 2M 256k",
        "write -P 4 12345 20000",
        "write -c -P 9 5M 64k",
    ];
    qemu::qemu_io("qcow2", &top, &writes);
    (base, top)
}

#[test]
fn the_base_reads_as_the_overlay_did_and_is_what_qemu_img_makes_of_it() {
    needs_qemu!();
    for options in
        ["", "cluster_size=4k", "compat=0.10", "cluster_size=16k,extended_l2=on", "cluster_size=2M"]
    {
        let scratch = Scratch::new();
        let (base, top) = overlay(&scratch, options, "");
        let theirs = scratch.subdir("theirs");
        fs::copy(&base, theirs.join("base.qcow2")).unwrap();
        fs::copy(&top, theirs.join("top.qcow2")).unwrap();
        qemu_img(&args!["commit", "-q", "-d", theirs.join("top.qcow2")]);
        let (expected, kept) = (qemu::raw_of("qcow2", &top), fs::read(&top).unwrap());

        let plan = qcowtool(args!["commit", "-n", "-d", "--output", "json", top]).json();
        assert_eq!(plan["dry-run"], true);
        assert_bytes!(qemu::raw_of("qcow2", &top), expected, "a plan changes nothing");
        let done = qcowtool(args!["commit", "-d", "--digest", "--output", "json", top]).json();
        assert_eq!(
            (&done["verified"], &done["disk-crc32"]),
            (&true.into(), &fixtures::crc32_hex(&expected).into())
        );
        for key in ["data-bytes", "zero-bytes", "crc32"] {
            assert_eq!(done[key], plan[key], "{key}: what was said before");
        }
        assert_bytes!(qemu::raw_of("qcow2", &base), expected, "{options}: the base");
        qemu::assert_same("qcow2", &base, "qcow2", theirs.join("base.qcow2"));
        qemu::assert_clean(&base);
        assert_bytes!(fs::read(&top).unwrap(), kept, "-d leaves the overlay");
    }
}

#[test]
fn the_overlay_is_empty_afterwards_and_its_snapshots_are_kept() {
    needs_qemu!();
    for options in ["", "cluster_size=4k", "compat=0.10"] {
        let scratch = Scratch::new();
        let (_, top) = overlay(&scratch, options, "");
        let expected = qemu::raw_of("qcow2", &top);
        let done = qcowtool(args!["commit", "--output", "json", top]).json();
        assert_eq!((&done["emptied"], &done["verified"]), (&true.into(), &true.into()));
        assert_bytes!(qemu::raw_of("qcow2", &top), expected, "{options}: over the base");
        qemu::assert_clean(&top);
        assert!(fs::metadata(&top).unwrap().blocks() * 512 < 512 << 10, "its space is given back");
        let plan = qcowtool(args!["commit", "-n", "--output", "json", top]).json();
        let nothing = (&0.into(), &0.into());
        assert_eq!((&plan["data-bytes"], &plan["zero-bytes"]), nothing, "nothing is left");
        qemu::qemu_io("qcow2", &top, &["write -P 3 1M 700k", "write -P 5 4M 64k"]);
        qemu_img(&args!["snapshot", "-c", "s", top]);
        let snapshot = || qemu::try_raw_of("qcow2", &top, Some("s")).unwrap();
        let (expected, before) = (qemu::raw_of("qcow2", &top), snapshot());
        // All that changes in the base the snapshot has itself.
        qcowtool(args!["commit", "-q", top]).ok();
        assert_bytes!(qemu::raw_of("qcow2", &top), expected, "{options}: again");
        assert_bytes!(snapshot(), before, "{options}: the snapshot");
        qemu::assert_clean(&top);
    }
}

#[test]
fn a_raw_base_and_a_lower_base_get_the_data() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (raw, mid, top) =
        (scratch.file("base.raw", &vec![7; 4 << 20]), scratch.path("mid"), scratch.path("top"));
    qemu::overlay(&mid, "base.raw", "raw", "", "3M");
    qemu::overlay(&top, "mid", "qcow2", "", "4M");
    qemu::qemu_io("qcow2", &mid, &["write -P 1 0 1M", "write -z 2M 512k"]);
    qemu::qemu_io("qcow2", &top, &["write -P 2 512k 1000k", "write -P 3 3500k 100k"]);
    // Past the end of the middle one the top shows zeros, whatever the base has.
    let expected = qemu::raw_of("qcow2", &top);
    qcowtool(args!["commit", "-q", "-b", "base.raw", top]).ok();
    assert_bytes!(fs::read(&raw).unwrap(), expected, "the raw base");
    assert_bytes!(qemu::raw_of("qcow2", &top), expected, "the overlay");
}

#[test]
fn trap_125_a_shorter_base_grows_and_a_longer_one_stays_as_long() {
    needs_qemu!();
    for (size, grown) in [("11M", 3 << 20), ("7M", 0)] {
        let scratch = Scratch::new();
        let (base, top) = overlay(&scratch, "", size);
        let (expected, end) = (qemu::raw_of("qcow2", &top), qemu::raw_of("qcow2", &base));
        let plan = qcowtool(args!["commit", "-n", "--output", "json", top]).json();
        let done = qcowtool(args!["commit", "--digest", "--output", "json", top]).json();
        for found in [&plan["base-grown"], &done["base-grown"]] {
            assert_eq!(*found, grown, "{size}");
        }
        let mut whole = expected.clone();
        whole.extend_from_slice(end.get(expected.len()..).unwrap_or_default());
        assert_bytes!(qemu::raw_of("qcow2", &base), whole, "{size}: the base");
        assert_bytes!(qemu::raw_of("qcow2", &top), expected, "{size}: the overlay");
        qemu::assert_clean(&base);
        qemu::assert_clean(&top);
    }
    let scratch = Scratch::new();
    let (raw, top) = (scratch.file("base.raw", &[7; 100_000]), scratch.path("top.qcow2"));
    qemu::overlay(&top, "base.raw", "raw", "", "1M");
    qemu::qemu_io("qcow2", &top, &["write -P 1 90k 64k"]);
    let expected = qemu::raw_of("qcow2", &top);
    qcowtool(args!["commit", "-q", top]).ok();
    assert_bytes!(fs::read(raw).unwrap(), expected, "a raw base");
}

#[test]
fn another_overlay_of_the_base_is_not_changed_unasked() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (base, top) = overlay(&scratch, "", "");
    let other = scratch.path("other.qcow2");
    qemu::overlay(&other, "base.qcow2", "qcow2", "", "");
    let before = checksum(&other, &[]);
    let refused = qcowtool(args!["commit", "-d", top]);
    refused.refused_naming(&["other.qcow2", "give --shared"]);
    assert_eq!(checksum(&other, &[]), before);
    let expected = qemu::raw_of("qcow2", &top);
    let done = qcowtool(args!["commit", "-d", "--shared", "--output", "json", top]).json();
    assert_eq!(done["other-overlays"].as_array().unwrap().len(), 1, "{done}");
    assert_bytes!(qemu::raw_of("qcow2", &base), expected, "the base");
}

#[test]
fn snapshots_are_not_changed_unasked() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (_, top) = overlay(&scratch, "", "");
    qemu_img(&args!["snapshot", "-c", "before", top]);
    // All that is committed is the snapshot's own too, so that it does not see the base there.
    qcowtool(args!["commit", "-d", "-q", top]).ok();
    qemu::qemu_io("qcow2", &top, &["write -P 5 4M 64k"]);
    let before = qemu::try_raw_of("qcow2", &top, Some("before")).unwrap();
    qcowtool(args!["commit", "-d", top]).refused_naming(&["before", "--change-snapshots"]);
    assert_bytes!(qemu::try_raw_of("qcow2", &top, Some("before")).unwrap(), before, "the snapshot");
    let done =
        qcowtool(args!["commit", "-d", "--change-snapshots", "--output", "json", top]).json();
    assert_eq!(done["changed-snapshots"][0], "before");
    assert_ne!(qemu::try_raw_of("qcow2", &top, Some("before")).unwrap(), before, "as was said");
}

#[test]
fn what_cannot_be_committed_is_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (base, top) = overlay(&scratch, "", "");
    let before = fs::read(&base).unwrap();
    qcowtool(args!["commit", "-d", base]).refused_naming(&["no backing file"]);
    let away = ["not in the backing chain", "name a backing file of the chain"];
    qcowtool(args!["commit", "-b", "elsewhere.qcow2", top]).refused_naming(&away);
    qcowtool(args!["commit", "-b", top, top]).refused_naming(&["not in the backing chain"]);
    let with_data = scratch.path("with-data.qcow2");
    let options = format!("data_file={}", scratch.path("data").display());
    qemu::overlay(&with_data, "base.qcow2", "qcow2", &options, "");
    qcowtool(args!["commit", "--shared", with_data]).refused_naming(&["data file", "give -d"]);
    qcowtool(args!["commit", "--shared", "-d", with_data]).ok();
    fs::remove_file(&with_data).unwrap();
    let holder = Holder::new(&["-r"], &top);
    qcowtool(args!["commit", "-d", top]).refused_naming(&["in use"]);
    drop(holder);
    assert_bytes!(fs::read(&base).unwrap(), before, "the base");
}

/// Copies of a chain that takes a moment to commit.
fn chain(scratch: &Scratch, name: &str) -> (PathBuf, PathBuf) {
    let dir = scratch.subdir(name);
    let (base, top) = (dir.join("base.qcow2"), dir.join("top.qcow2"));
    for (from, to) in [("model-base", &base), ("model-top", &top)] {
        fs::copy(scratch.path(from), to).unwrap();
    }
    (base, top)
}

/// The time that a run takes.
fn timed(arguments: &[std::ffi::OsString]) -> std::time::Duration {
    let begun = Instant::now();
    assert!(command(arguments).status().unwrap().success());
    begun.elapsed()
}

/// Kills runs at random moments; after each the image reads as before, and the run can be repeated.
pub(crate) fn killed(
    model: impl Fn(&str) -> PathBuf,
    command_of: impl Fn(&Path) -> Vec<std::ffi::OsString>,
    judge: impl Fn(&Path),
) {
    let image = model("whole");
    let expected = checksum(&image, &[]);
    let whole = timed(&command_of(&image));
    let mut random = Random::new(7);
    let mut in_the_middle = 0;
    for number in 0..10 {
        let image = model(&format!("killed{number}"));
        let mut child = command(&command_of(&image)).spawn().unwrap();
        sleep(whole.mul_f64(random.below(1000) as f64 / 1000.0));
        child.kill().unwrap();
        in_the_middle += u32::from(!child.wait().unwrap().success());
        assert_eq!(checksum(&image, &[]), expected, "after kill {number}");
        judge(&image);
        qcowtool(command_of(&image)).ok();
        assert_eq!(checksum(&image, &[]), expected, "repeated after kill {number}");
        judge(&image);
    }
    assert!(in_the_middle > 0, "none was killed in the middle");
}

#[test]
fn a_kill_at_any_moment_leaves_what_the_guest_read_and_the_commit_can_be_repeated() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (base, top) = (scratch.path("model-base"), scratch.path("model-top"));
    qemu::create(&base, "", "64M");
    qemu::qemu_io("qcow2", &base, &["write -P 1 0 24M"]);
    fs::copy(&base, scratch.path("base.qcow2")).unwrap();
    qemu::overlay(&top, "base.qcow2", "qcow2", "", "64M");
    let writes: Vec<_> = (0..40).map(|n| format!("write -P {} {}k 300k", n + 2, n * 800)).collect();
    qemu::qemu_io("qcow2", &top, &writes);
    fs::remove_file(scratch.path("base.qcow2")).unwrap();
    killed(
        |name| chain(&scratch, name).1,
        |top| args!["commit", "-q", top],
        |top| {
            let base = top.with_file_name("base.qcow2");
            for image in [&*base, top] {
                let found = qcowtool(args!["check", "-q", image]).code();
                // 3 is for leaks, which a crash may leave.
                assert!(matches!(found, Some(0 | 3)), "{found:?}");
            }
        },
    );
}

#[test]
fn bitmaps_stay_where_they_are_and_those_that_the_base_does_not_get_are_named() {
    needs_qemu!();
    for drop in [false, true] {
        let dirty = |ours: bool| {
            let scratch = Scratch::new();
            let (base, top) = (scratch.path("base.qcow2"), scratch.path("top.qcow2"));
            qemu::create(&base, "", "4M");
            qemu_img(&args!["bitmap", "--add", base, "on"]);
            qemu_img(&args!["bitmap", "--add", "--disable", base, "off"]);
            qemu::overlay(&top, "base.qcow2", "qcow2", "", "");
            qemu_img(&args!["bitmap", "--add", top, "backup"]);
            qemu::qemu_io("qcow2", &top, &["write -P 1 1M 64k", "write -z 3M 64k"]);
            let commit =
                [args!["commit"], drop.then(|| "-d".into()).into_iter().collect(), args![top]];
            if ours {
                let done = qcowtool(commit.concat());
                assert!(done.succeeded(), "{}", done.stderr());
                let named = done.stderr().contains("does not get the persistent bitmaps")
                    && done.stderr().contains("'backup'");
                assert_eq!(named, drop, "{}", done.stderr());
            } else {
                qemu_img(&commit.concat());
            }
            let of = |image: &Path, name: &str| qcowtool(args!["bitmap", image, name]).ok();
            [of(&base, "on"), of(&base, "off"), of(&top, "backup")]
        };
        assert_eq!(dirty(true), dirty(false), "-d: {drop}");
    }
}
