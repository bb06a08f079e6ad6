//! `check`: images broken by hand in every structure, held against `qemu-img check`.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod check_common;
mod common;

use std::process::Command;

use check_common::{Places, built, copied, copy, everything, judged_alike, ours, theirs, to};
use common::qcowtool;
use fixtures::patch::{COMPRESSED, COPIED, OFFSET_MASK, ZERO, field};
use fixtures::{Patch, Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};

/// One row: what is broken, how, what qemu-img's exit code is, and what kind of finding names it.
type Row = (&'static str, fn(&mut Patch) -> &mut Patch, i32, &'static str);

/// Breaks copies of an image, and asserts that both give the same counts and the expected verdict.
#[track_caller]
fn all(image: &[u8], rows: &[Row]) {
    for (what, damage, code, kind) in rows {
        let scratch = Scratch::new();
        let mut patch = copy(&scratch, image);
        damage(&mut patch);
        patch.save();
        let verdict = judged_alike(&patch.path, what);
        assert_eq!(verdict.code, Some(*code), "{what}: exit code");
        if kind.is_empty() {
            assert!(verdict.findings.is_empty(), "{what}: {:?}", verdict.findings);
        } else {
            assert!(verdict.found(kind), "{what}: no {kind} in {:#?}", verdict.findings);
        }
    }
}

#[test]
fn a_sound_image_with_everything_in_it_is_clean() {
    needs_qemu!();
    all(everything(), &[("nothing", |image| image, 0, "")]);
}

#[test]
fn trap_75_refcounts_that_lie_are_leaks_or_corruption() {
    needs_qemu!();
    let rows: &[Row] = &[
        (
            "a refcount is too high",
            |image| {
                let cluster = image.cluster_of(image.l2_entry(20 << 10));
                image.set_u16(image.refcount_at(cluster), 9)
            },
            2,
            "leaked",
        ),
        ("a free cluster is taken", leak, 3, "leaked"),
        (
            "a refcount is zero",
            |image| {
                let cluster = image.cluster_of(image.l2_entry(0));
                image.set_u16(image.refcount_at(cluster), 0)
            },
            2,
            "refcount-too-low",
        ),
        (
            "the header is not counted",
            |image| image.set_u16(image.refcount_at(0), 0),
            2,
            "refcount-too-low",
        ),
    ];
    all(everything(), rows);
}

/// Appends a cluster that has a refcount and no reference.
fn leak(image: &mut Patch) -> &mut Patch {
    let at = image.append(&[1]);
    image.set_u16(image.refcount_at(at / image.cluster_size()), 1)
}

#[test]
fn broken_refcount_structures_are_found() {
    needs_qemu!();
    let rows: &[Row] = &[
        (
            "a refcount block is not aligned",
            |image| image.set_u64(image.reftable(), 0x200 + image.refblock() as u64),
            1,
            "unreadable",
        ),
        (
            "a refcount block lies past the end",
            |image| image.set_u64(image.reftable(), image.end() + 0x10000),
            2,
            "past-end",
        ),
        (
            "a refcount block lies where no file reaches",
            |image| image.set_u64(image.reftable(), 0xffff_ffff_ffff_f000),
            1,
            "past-end",
        ),
        (
            "an entry of the refcount table has reserved bits",
            |image| image.or_u64(image.reftable(), 2),
            2,
            "reserved-bits",
        ),
        (
            "the refcount block is not there",
            |image| image.set_u64(image.reftable(), 0),
            2,
            "refcount-too-low",
        ),
        (
            "two entries name one refcount block",
            |image| {
                let block = image.refblock() as u64;
                image.set_u64(image.reftable() + 8, block)
            },
            2,
            "shared-refcount-block",
        ),
        (
            "trap 24: the refcount table has no clusters",
            |image| image.set_u32(field::REFTABLE_CLUSTERS, 0),
            2,
            "refcount-too-low",
        ),
    ];
    all(everything(), rows);
}

#[test]
fn broken_l1_entries_are_found() {
    needs_qemu!();
    let rows: &[Row] = &[
        ("reserved bits", |image| image.or_u64(image.l1_entry_at(0), 4), 2, "reserved-bits"),
        (
            "an L2 table that is not aligned",
            |image| image.or_u64(image.l1_entry_at(0), 0x200),
            2,
            "misaligned",
        ),
        (
            "an L2 table past the end",
            |image| image.set_u64(image.l1_entry_at(0), copied(image.end() + 0x10000)),
            2,
            "past-end",
        ),
        (
            "an entry that is a flag and no offset",
            |image| image.set_u64(image.l1_entry_at(0), COPIED),
            2,
            "refcount-too-low",
        ),
        (
            "trap 42: the copied flag is not set",
            |image| {
                let at = image.l1_entry_at(0);
                image.set_u64(at, image.u64(at) & !COPIED)
            },
            2,
            "copied-flag",
        ),
        (
            "the L1 table lies past the end",
            |image| image.set_u64(field::L1_OFFSET, image.end() + 0x10000),
            2,
            "past-end",
        ),
        ("the L1 table is the header", |image| image.set_u64(field::L1_OFFSET, 0), 2, "overlap"),
    ];
    all(everything(), rows);
}

#[test]
fn trap_34_broken_l2_entries_are_found() {
    needs_qemu!();
    let rows: &[Row] = &[
        ("reserved bits", |image| image.or_u64(image.l2_entry_at(0), 4), 2, "reserved-bits"),
        (
            "a data cluster that is not aligned",
            |image| image.or_u64(image.l2_entry_at(20 << 10), 0x200),
            2,
            "misaligned",
        ),
        (
            "a preallocated cluster that is not aligned",
            |image| {
                let entry = image.l2_entry(20 << 10);
                image.set_l2_entry(20 << 10, entry | 0x200 | ZERO)
            },
            2,
            "misaligned",
        ),
        (
            "trap 76: a cluster wholly past the end",
            |image| image.set_l2_entry(124 << 10, copied(image.end())),
            2,
            "past-end",
        ),
        (
            "the copied flag is not set",
            |image| {
                let entry = image.l2_entry(20 << 10);
                image.set_l2_entry(20 << 10, entry & !COPIED)
            },
            2,
            "copied-flag",
        ),
        (
            "trap 41: the copied flag is set on a cluster that a snapshot shares",
            |image| image.or_u64(image.l2_entry_at(0), COPIED),
            2,
            "copied-flag",
        ),
        (
            "a cluster that two entries name",
            |image| {
                let entry = image.l2_entry(20 << 10);
                image.set_l2_entry(120 << 10, entry)
            },
            2,
            "refcount-too-low",
        ),
        (
            "trap 142: data in the L2 table",
            |image| {
                let table = image.l2() as u64;
                image.set_l2_entry(120 << 10, copied(table))
            },
            2,
            "overlap",
        ),
        (
            "data in the refcount table",
            |image| {
                let table = image.reftable() as u64;
                image.set_l2_entry(120 << 10, table)
            },
            2,
            "overlap",
        ),
        (
            "trap 53: the copied flag on a compressed cluster",
            |image| image.or_u64(image.l2_entry_at(80 << 10), COPIED),
            2,
            "copied-flag",
        ),
        (
            "a compressed cluster past the end",
            |image| {
                let end = image.end();
                image.set_l2_entry(80 << 10, image.compressed_entry(end + 0x1000, 1))
            },
            2,
            "past-end",
        ),
        (
            "trap 54: a compressed cluster that claims too many sectors",
            |image| {
                let entry = image.l2_entry(64 << 10) & !(0xf << 58);
                image.set_l2_entry(64 << 10, entry | 0xf << 58)
            },
            2,
            "refcount-too-low",
        ),
    ];
    all(everything(), rows);
}

#[test]
fn trap_76_less_than_a_cluster_past_the_end_is_clean() {
    needs_qemu!();
    let image = built("cluster_size=4k", |image| qemu_io("qcow2", image, &["write 0 16k"]));
    let rows: &[Row] = &[
        ("cut in the last cluster", |image| image.resize(image.bytes.len() - 4000), 0, ""),
        ("cut in the one before", |image| image.resize(image.bytes.len() - 4097), 2, "past-end"),
        ("cut down to the header", |image| image.resize(4096), 2, "past-end"),
    ];
    all(&image, rows);
}

#[test]
fn broken_snapshots_are_found() {
    needs_qemu!();
    let rows: &[Row] = &[
        (
            "an L1 table that is not aligned",
            |image| image.or_u64(image.snapshot_table(), 0x200),
            2,
            "snapshot",
        ),
        (
            "an L1 table that is too long",
            |image| image.set_u32(image.snapshot_table() + 8, 0x0100_0000),
            2,
            "snapshot",
        ),
        (
            "an L1 table past the end",
            |image| image.set_u64(image.snapshot_table(), image.end() + 0x4000),
            2,
            "past-end",
        ),
        (
            "an L1 table where no file reaches",
            |image| image.set_u64(image.snapshot_table(), 0x7fff_ffff_ffff_f000),
            1,
            "",
        ),
        (
            "trap 81: extra data too short for version 3",
            |image| {
                // The entry loses eight bytes of extra data, and its id moves with its name.
                let at = image.snapshot_table();
                let entry = image.bytes[at + 64..at + 64 + 8].to_vec();
                image.set_u32(at + 36, 8).set(at + 48, &entry).set(at + 56, &[0; 16]);
                image.set_u32(field::SNAPSHOTS, 1)
            },
            2,
            "snapshot",
        ),
        (
            "extra data that is too long",
            |image| image.set_u32(image.snapshot_table() + 36, 1025),
            1,
            "",
        ),
        (
            "the snapshot table lies past the end",
            |image| image.set_u64(field::SNAPSHOTS_OFFSET, image.end() + 0x4000),
            2,
            "past-end",
        ),
        (
            "an L2 entry that only a snapshot has",
            |image| {
                let l1 = to(image.u64(image.snapshot_table()));
                let l2 = to(image.u64(l1) & OFFSET_MASK);
                image.or_u64(l2, 4)
            },
            2,
            "reserved-bits",
        ),
        (
            "two snapshots share one L1 table",
            |image| {
                let table = image.snapshot_table();
                let second = table + 40 + 24 + 8;
                let l1 = image.u64(table);
                image.set_u64(second, l1)
            },
            2,
            "leaked",
        ),
    ];
    all(everything(), rows);
}

#[test]
fn broken_bitmaps_are_found() {
    needs_qemu!();
    let rows: &[Row] = &[
        (
            "a table past the end",
            |image| {
                let at = image.bitmap_directory();
                image.set_u64(at, image.end() + 0x4000)
            },
            2,
            "past-end",
        ),
        (
            "a table entry with reserved bits, in a bitmap that is loaded",
            |image| {
                let table = to(image.u64(image.bitmap_directory()));
                image.or_u64(table, 2)
            },
            1,
            "",
        ),
        (
            "bits past the end",
            |image| {
                let table = to(image.u64(image.bitmap_directory()));
                image.set_u64(table, image.end() + 0x4000)
            },
            2,
            "past-end",
        ),
        (
            "bits in the L2 table",
            |image| {
                let table = to(image.u64(image.bitmap_directory()));
                image.set_u64(table, image.l2() as u64)
            },
            2,
            "overlap",
        ),
        (
            "the autoclear bit is gone, so the bitmaps are leaks",
            |image| image.set_u64(field::AUTOCLEAR, 0),
            3,
            "leaked",
        ),
    ];
    all(everything(), rows);
}

#[test]
fn a_broken_bitmap_that_is_not_loaded_is_corruption_where_qemu_gives_up() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = copy(&scratch, everything());
    let at = image.bitmap_directory();
    let (flags, table) = (image.u32(at + 12), to(image.u64(at)));
    image.set_u32(at + 12, flags | 1).or_u64(table, 2).save();
    assert_eq!(theirs(&image.path).code, Some(1));
    let verdict = ours(&image.path);
    assert_eq!((verdict.code, verdict.found("bitmap")), (Some(2), true));
}

#[test]
fn broken_subclusters_are_found() {
    needs_qemu!();
    let image = built("cluster_size=16k,extended_l2=on", |image| {
        qemu_io("qcow2", image, &["write 0 3k", "write 20k 12k", "write -c 64k 16k"]);
    });
    let rows: &[Row] = &[
        (
            "trap 62: allocated and zero",
            |image| image.set_subclusters(0, 1 << 32 | 1),
            2,
            "subclusters",
        ),
        (
            "trap 63: allocated without an offset",
            |image| image.set_subclusters(48 << 10, 1),
            2,
            "subclusters",
        ),
        ("zero without an offset", |image| image.set_subclusters(48 << 10, 1 << 32), 0, ""),
        (
            "trap 66: compressed with a bitmap",
            |image| image.set_subclusters(64 << 10, 1),
            2,
            "compressed",
        ),
        ("trap 65: bit 0 set", |image| image.or_u64(image.l2_entry_at(0), 1), 0, ""),
    ];
    all(&image, rows);
}

#[test]
fn trap_74_with_a_data_file_only_metadata_is_counted() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("image.qcow2");
    let data = scratch.path("data.raw");
    qemu::create(&path, &format!("cluster_size=4k,data_file={}", data.display()), "128k");
    qemu_io("qcow2", &path, &["write 0 16k", "write 40k 4k"]);
    let image = std::fs::read(&path).unwrap();
    let rows: &[Row] = &[
        ("nothing", |image| image, 0, ""),
        (
            "trap 59: a compressed cluster",
            |image| image.set_l2_entry(60 << 10, COMPRESSED | 0x1000),
            2,
            "compressed",
        ),
        (
            "the copied flag is not set",
            |image| {
                let entry = image.l2_entry(4 << 10);
                image.set_l2_entry(4 << 10, entry & !COPIED)
            },
            2,
            "copied-flag",
        ),
        (
            "trap 111: a cluster that is not at its guest offset",
            |image| image.set_l2_entry(4 << 10, copied(0x9000)),
            0,
            "data-file-offset",
        ),
    ];
    all(&image, rows);
}

#[test]
fn trap_31_a_zero_flag_in_version_2_is_noted() {
    needs_qemu!();
    let image =
        built("cluster_size=4k,compat=0.10", |image| qemu_io("qcow2", image, &["write 0 16k"]));
    let rows: &[Row] =
        &[("the zero flag", |image| image.or_u64(image.l2_entry_at(0), ZERO), 0, "zero-flag")];
    all(&image, rows);
}

#[test]
fn trap_68_refcounts_of_every_width_are_held_against_the_references() {
    needs_qemu!();
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let options = format!("cluster_size=4k,refcount_bits={bits}");
        let image = built(&options, |image| {
            qemu_io("qcow2", image, &["write 0 32k"]);
            if bits > 1 {
                qemu_img(&args!["snapshot", "-c", "one", image]);
            }
        });
        let rows: &[Row] = &[
            ("nothing", |image| image, 0, ""),
            (
                "three more references",
                |image| {
                    let entry = image.l2_entry(0);
                    image.set_l2_entry(40 << 10, entry).set_l2_entry(44 << 10, entry);
                    image.set_l2_entry(48 << 10, entry)
                },
                2,
                // With one or two bits, the references do not even fit.
                if bits <= 2 { "refcount-overflow" } else { "refcount-too-low" },
            ),
            ("a reference less", |image| image.set_l2_entry(0, 0), 3, "leaked"),
        ];
        all(&image, rows);
    }
}

#[test]
fn trap_116_the_luks_header_is_counted_without_its_key() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("luks.qcow2");
    let secret = ["--object", "secret,id=s,data=abc"];
    let options = "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let mut create = args!["create", "-q", "-f", "qcow2", "-o", options];
    create.extend(args![secret[0], secret[1], path, "128k"]);
    qemu_img(&create);
    let check = |path: &std::path::Path| {
        let mut command = Command::new("qemu-img");
        command.args(["check", "--output", "json"]).args(secret).arg("--image-opts");
        let options = format!("driver=qcow2,encrypt.key-secret=s,file.filename={}", path.display());
        let output = command.arg(options).output().unwrap();
        let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), outcome)
    };
    for refcount in [1, 0, 2] {
        let mut image = Patch::open(&path);
        image.set_u16(image.refcount_at(7), refcount);
        image.save();
        let (code, theirs) = check(&path);
        let verdict = ours(&path);
        assert_eq!(verdict.code, code);
        for key in ["corruptions", "leaks", "image-end-offset", "check-errors"] {
            assert_eq!(verdict.count(key), theirs[key].as_u64().unwrap_or(0), "{key}");
        }
    }
}

#[test]
fn fragmentation_is_counted_as_qemu_counts_it() {
    needs_qemu!();
    let image = built("cluster_size=4k", |image| {
        let writes: Vec<_> = (0..32).rev().map(|i| format!("write {} 4k", (i * 4) << 10)).collect();
        qemu_io("qcow2", image, &writes);
    });
    let scratch = Scratch::new();
    let verdict = judged_alike(&copy(&scratch, &image).path, "written backwards");
    assert_eq!(verdict.count("fragmented-clusters"), 31);
}

#[test]
fn a_missing_backing_file_does_not_hinder_the_check() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("overlay.qcow2");
    qemu_img(&args![
        "create", "-q", "-u", "-f", "qcow2", "-b", "gone.raw", "-F", "raw", path, "1M"
    ]);
    assert_eq!(ours(&path).code, Some(0));
}

#[test]
fn the_text_has_the_findings_and_qemus_summary() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = copy(&scratch, everything());
    let cluster = image.cluster_of(image.l2_entry(0));
    image.set_u16(image.refcount_at(cluster), 0);
    leak(&mut image);
    image.save();
    let run = qcowtool(args!["check", image.path]);
    let mut qemu = Command::new("qemu-img");
    let theirs = qemu.arg("check").arg(&image.path).output().unwrap();
    assert_eq!(run.code(), Some(2));
    let text = run.stdout();
    assert!(text.ends_with(&String::from_utf8(theirs.stdout).unwrap()), "{text}");
    let expected =
        format!("cluster entry {cluster}, at byte {:#x}: the refcount is 0", cluster * 4096);
    assert!(text.contains(&expected), "{text}");
    assert_eq!(qcowtool(args!["check", "-q", image.path]).stdout(), "");
}

#[test]
fn formats_without_anything_to_check_have_their_own_exit_code() {
    let scratch = Scratch::new();
    let raw = scratch.file("disk.raw", &[0; 4096]);
    for arguments in [args!["check", raw], args!["check", "-f", "raw", "--output", "json", raw]] {
        let run = qcowtool(arguments);
        assert_eq!((run.code(), run.stdout().as_str()), (Some(63), ""));
    }
    assert_eq!(qcowtool(args!["check", scratch.path("missing")]).code(), Some(1));
    assert_eq!(qcowtool(args!["check", "-f", "qcow2", raw]).code(), Some(1));
}

#[test]
fn the_findings_do_not_depend_on_threads_and_are_bounded() {
    needs_qemu!();
    let image = built("cluster_size=512", |image| {
        let path = image.to_str().unwrap().to_owned();
        qemu_img(&args!["resize", "-q", path, "2M"]);
        qemu_io("qcow2", image, &["write 0 2M"]);
    });
    let scratch = Scratch::new();
    let mut patch = copy(&scratch, &image);
    let table = patch.reftable();
    patch.set_u64(table, 0).set_u64(table + 8, 0).set_u64(table + 16, 0);
    patch.save();
    let run = |threads: &str| {
        qcowtool(args!["check", "--output", "json", "--threads", threads, patch.path]).stdout()
    };
    let one: serde_json::Value = serde_json::from_str(&run("1")).unwrap();
    let many: serde_json::Value = serde_json::from_str(&run("7")).unwrap();
    assert_eq!(one, many);
    assert_eq!(one["findings"].as_array().unwrap().len(), 1000);
    assert!(one["findings-left-out"].as_u64().unwrap() > 0);
}
