//! `check -r`: damage by hand and at random, repaired, and judged by `qemu-img check` and by content.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::check_common::{Places, built, copied, copy, everything, ours, theirs, to};
use common::{Run, qcowtool};
use fixtures::patch::{COPIED, OFFSET_MASK, ZERO, field};
use fixtures::pattern::Random;
use fixtures::{Patch, Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};

fn repair(what: &str, image: &Path) -> Run {
    qcowtool(args!["check", "-f", "qcow2", "--output", "json", "-r", what, image])
}

/// What a guest and the snapshots of an image read, as far as qemu-img can.
fn content(image: &Path) -> Vec<Option<Vec<u8>>> {
    let read = |snapshot| qemu::try_raw_of("qcow2", image, snapshot).ok();
    vec![read(None), read(Some("one")), read(Some("two"))]
}

/// Whether all that could be read before reads the same now.
fn kept(before: &[Option<Vec<u8>>], image: &Path) -> bool {
    let pairs = before.iter().zip(content(image));
    pairs.filter(|(before, _)| before.is_some()).all(|(before, now)| *before == now)
}

/// What is broken, and how.
type Row = (&'static str, fn(&mut Patch) -> &mut Patch);

/// Breaks copies of an image, and asserts that each is clean after a repair and reads as before.
#[track_caller]
fn all_repaired(image: &[u8], rows: &[Row]) {
    for (what, damage) in rows {
        let scratch = Scratch::new();
        let mut patch = copy(&scratch, image);
        damage(&mut patch);
        patch.save();
        let before = content(&patch.path);
        assert!(theirs(&patch.path).code != Some(0), "{what}: is broken");
        let plan =
            qcowtool(args!["check", "-r", "all", "--dry-run", "--output", "json", patch.path]);
        assert_eq!(
            std::fs::read(&patch.path).unwrap(),
            patch.bytes,
            "{what}: a plan writes nothing"
        );
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout()).unwrap();
        assert!(!plan["steps"].as_array().unwrap().is_empty(), "{what}: has a plan");
        let done = repair("all", &patch.path).json();
        assert_eq!(done["steps"], plan["steps"], "{what}: what was planned was done");
        assert_eq!(theirs(&patch.path).code, Some(0), "{what}: qemu-img finds it clean");
        assert!(kept(&before, &patch.path), "{what}: content");
    }
}

#[test]
fn refcounts_are_repaired_in_place_and_rebuilt_where_they_cannot_be_trusted() {
    needs_qemu!();
    let rows: &[Row] = &[
        ("a refcount is too high", |image| {
            let cluster = image.cluster_of(image.l2_entry(20 << 10));
            image.set_u16(image.refcount_at(cluster), 9)
        }),
        ("a refcount is zero", |image| {
            let cluster = image.cluster_of(image.l2_entry(0));
            image.set_u16(image.refcount_at(cluster), 0)
        }),
        ("a refcount block is not aligned", |image| {
            image.set_u64(image.reftable(), 0x200 + image.refblock() as u64)
        }),
        ("a refcount block lies past the end", |image| {
            image.set_u64(image.reftable(), image.end() + 0x10000)
        }),
        ("an entry of the refcount table has reserved bits", |image| {
            image.or_u64(image.reftable(), 2)
        }),
        ("the refcount block is not there", |image| image.set_u64(image.reftable(), 0)),
        ("two entries name one refcount block", |image| {
            let block = image.refblock() as u64;
            image.set_u64(image.reftable() + 8, block)
        }),
        ("trap 24: the refcount table has no clusters", |image| {
            image.set_u32(field::REFTABLE_CLUSTERS, 0)
        }),
        ("the refcount table lies past the end", |image| {
            image.set_u64(field::REFTABLE_OFFSET, image.end() + 0x10000)
        }),
        ("the refcount table is data", |image| {
            let data = image.l2_entry(20 << 10) & OFFSET_MASK;
            image.set_u64(field::REFTABLE_OFFSET, data)
        }),
        ("data in the refcount block", |image| {
            let block = image.refblock() as u64;
            image.set_l2_entry(120 << 10, copied(block))
        }),
    ];
    all_repaired(everything(), rows);
}

#[test]
fn entries_are_repaired_without_changing_what_they_read_as() {
    needs_qemu!();
    let rows: &[Row] = &[
        ("an L2 table past the end", |image| {
            image.set_u64(image.l1_entry_at(0), copied(image.end() + 0x10000))
        }),
        ("an L1 entry that is a flag and no offset", |image| {
            image.set_u64(image.l1_entry_at(0), COPIED)
        }),
        ("trap 42: an L1 entry without its copied flag", |image| {
            let at = image.l1_entry_at(0);
            image.set_u64(at, image.u64(at) & !COPIED)
        }),
        ("a preallocated cluster that is not aligned", |image| {
            let entry = image.l2_entry(100 << 10);
            image.set_l2_entry(124 << 10, entry & !COPIED | 0x200 | ZERO)
        }),
        ("trap 76: a cluster past the end", |image| {
            image.set_l2_entry(124 << 10, copied(image.end()))
        }),
        ("an L2 entry without its copied flag", |image| {
            let entry = image.l2_entry(20 << 10);
            image.set_l2_entry(20 << 10, entry & !COPIED)
        }),
        ("trap 41: the copied flag on a cluster that a snapshot shares", |image| {
            image.or_u64(image.l2_entry_at(0), COPIED)
        }),
        ("a cluster that two entries name", |image| {
            let entry = image.l2_entry(20 << 10);
            image.set_l2_entry(120 << 10, entry)
        }),
        ("trap 53: the copied flag on a compressed cluster", |image| {
            image.or_u64(image.l2_entry_at(80 << 10), COPIED)
        }),
        ("the bitmaps are not vouched for, so they are leaks", |image| {
            image.set_u64(field::AUTOCLEAR, 0)
        }),
    ];
    all_repaired(everything(), rows);
}

#[test]
fn entries_of_snapshots_are_repaired_without_changing_what_they_read_as() {
    needs_qemu!();
    let rows: &[Row] = &[
        ("an L2 table past the end", |image| {
            image.set_u64(image.snapshot_l1(), image.end() + 0x10000)
        }),
        ("an L1 entry that is a flag and no offset", |image| {
            image.set_u64(image.snapshot_l1(), COPIED)
        }),
        ("a cluster past the end", |image| {
            image.set_u64(image.snapshot_l2() + 8 * 29, image.end() + 0x10000)
        }),
        ("a preallocated cluster that is not aligned", |image| {
            let data = image.u64(image.snapshot_l2() + 8);
            image.set_u64(image.snapshot_l2() + 8 * 29, data | 0x200 | ZERO)
        }),
        ("two snapshots share one L1 table", |image| {
            let (table, l1) = (image.snapshot_table(), image.snapshot_l1() as u64);
            image.set_u64(table + 40 + 24 + 8, l1)
        }),
        ("an L1 table has a refcount of zero", |image| {
            let cluster = image.snapshot_l1() / 4096;
            image.set_u16(image.refcount_at(cluster), 0)
        }),
    ];
    all_repaired(everything(), rows);
}

#[test]
fn trap_81_a_snapshot_table_without_disk_sizes_is_completed() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("image.qcow2");
    qemu::create(&path, "cluster_size=4k,compat=0.10", "128k");
    qemu_io("qcow2", &path, &["write -P 1 0 32k"]);
    qemu_img(&args!["snapshot", "-c", "one", path]);
    qemu_io("qcow2", &path, &["write -P 2 8k 40k"]);
    qemu_img(&args!["snapshot", "-c", "two", path]);
    let mut image = Patch::open(&path);
    let end = to(image.end());
    image.resize(end);
    // Version 2 asks for no extra data. What one entry loses moves its names.
    let (at, rest) = (image.snapshot_table(), image.snapshot_table() + 40);
    let names = image.bytes[rest + 24..rest + 32].to_vec();
    let second = image.bytes[rest + 32..rest + 72].to_vec();
    let tail = image.bytes[rest + 72..rest + 104].to_vec();
    image.set_u32(at + 36, 0).set(rest, &names).set(rest + 8, &second).set(rest + 48, &tail);
    image.set_u32(field::VERSION, 3).set_u32(field::HEADER_LENGTH, 104);
    image.set(field::INCOMPATIBLE, &[0; 24]).set_u32(field::REFCOUNT_ORDER, 4);
    image.set(104, &[0; 8]).save();
    let before = content(&path);
    assert!(before.iter().all(Option::is_some));
    assert_eq!(theirs(&path).count("corruptions"), 1, "one entry lacks its disk size");
    let done = repair("all", &path).json();
    assert_eq!(done["steps"][0]["action"], "write-snapshots");
    assert_eq!(done["steps"][1]["action"], "switch-snapshots");
    assert_eq!(theirs(&path).code, Some(0));
    assert_eq!(content(&path), before);
    assert_eq!(Patch::open(&path).u32(Patch::open(&path).snapshot_table() + 36), 16);
}

#[test]
fn extra_data_of_snapshots_that_keeps_images_from_being_opened_is_left_out() {
    needs_qemu!();
    for (version, extra) in [("1.1", 2000), ("1.1", 1025), ("0.10", 20_000)] {
        let scratch = Scratch::new();
        let path = scratch.path("image.qcow2");
        qemu::create(&path, &format!("compat={version}"), "1M");
        qemu_io("qcow2", &path, &["write -P 1 0 64k"]);
        qemu_img(&args!["snapshot", "-c", "one", path]);
        qemu_io("qcow2", &path, &["write -P 2 0 128k"]);
        qemu_img(&args!["snapshot", "-c", "two", path]);
        let before = content(&path);
        let mut image = Patch::open(&path);
        let (at, end) = (image.snapshot_table(), image.end());
        image.resize(to(end));
        // Both entries have 24 bytes that are known, an id of one byte and a name of three.
        let (first, second) =
            (image.bytes[at..at + 72].to_vec(), image.bytes[at + 72..at + 144].to_vec());
        let mut longer = first[..64].to_vec();
        longer.resize(40 + extra, b'x');
        longer.extend(&first[64..68]);
        longer.resize(longer.len().next_multiple_of(8), 0);
        let table = [longer, second].concat();
        image.set(at, &table).set_u32(at + 36, u32::try_from(extra).unwrap()).save();
        let theirs_path = scratch.path("theirs.qcow2");
        std::fs::copy(&path, &theirs_path).unwrap();
        for what in ["leaks", "all"] {
            let dry = qcowtool(args!["check", "-r", what, "--dry-run", path]);
            assert_eq!(dry.code(), if what == "all" { Some(2) } else { Some(1) });
            assert_eq!(std::fs::read(&path).unwrap(), image.bytes, "a plan writes nothing");
        }
        qcowtool(args!["check", path]).refused_naming(&["extra data", "check -r all"]);
        let done = repair("all", &path).json();
        assert_eq!(done["corruptions-fixed"], 1);
        assert_eq!(done["steps"][0]["action"], "cut-extra-data");
        assert_eq!(
            (&done["steps"][0]["from"], &done["steps"][0]["to"]),
            (&extra.into(), &1024.into())
        );
        assert_eq!(theirs(&path).code, Some(0));
        assert_eq!(content(&path), before);
        // What is left is what QEMU leaves, and what it says is what is said under its name.
        let copy = scratch.file("copy.qcow2", &image.bytes);
        let said = qcowtool(args!["qemu-img", "check", "-q", "-r", "all", copy]).stderr();
        let theirs_said =
            Command::new("qemu-img").args(["check", "-q", "-r", "all"]).arg(&theirs_path).output();
        assert_eq!(said.as_bytes(), theirs_said.unwrap().stderr);
        let table = |path: &Path| {
            let image = Patch::open(path);
            image.bytes[image.snapshot_table()..][..40 + 1024 + 8 + 72].to_vec()
        };
        assert_eq!(table(&path), table(&theirs_path), "{version} {extra}");
    }
}

#[test]
fn a_snapshot_table_that_is_too_long_is_not_cut() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("image.qcow2");
    qemu::create(&path, "", "1M");
    qemu_img(&args!["snapshot", "-c", "one", path]);
    let mut image = Patch::open(&path);
    image.set_u32(field::SNAPSHOTS, 65_537).save();
    // QEMU keeps 65536 entries, of which all but one are empty, and gives up what the others have.
    qcowtool(args!["check", "-r", "all", path]).refused_naming(&["snapshots", "expected at most"]);
    // A length that is wrong itself: behind it is no snapshot, and what QEMU leaves has no name.
    let at = image.snapshot_table();
    image.set_u32(field::SNAPSHOTS, 1).set_u32(at + 36, 0x1_0000).save();
    qcowtool(args!["check", "-r", "all", path])
        .refused_naming(&["no snapshot", "removes the snapshots"]);
    assert_eq!(std::fs::read(&path).unwrap(), image.bytes);
}

#[test]
fn data_in_a_cluster_of_metadata_gets_one_of_its_own() {
    needs_qemu!();
    let rows: &[Row] = &[
        ("trap 142: data in the L2 table", |image| {
            let table = image.l2() as u64;
            image.set_l2_entry(120 << 10, table)
        }),
        ("twice in the L2 table", |image| {
            let table = copied(image.l2() as u64);
            image.set_l2_entry(120 << 10, table).set_l2_entry(124 << 10, table)
        }),
        ("in the L1 table", |image| {
            let table = copied(image.u64(field::L1_OFFSET));
            image.set_l2_entry(120 << 10, table)
        }),
        ("in the snapshot table", |image| {
            let table = image.snapshot_table() as u64;
            image.set_l2_entry(120 << 10, table)
        }),
        ("in a snapshot's L1 table", |image| {
            let table = image.snapshot_l1() as u64;
            image.set_l2_entry(120 << 10, table)
        }),
        ("a snapshot's data in the active L1 table", |image| {
            let table = image.u64(field::L1_OFFSET);
            image.set_u64(image.snapshot_l2() + 8 * 29, table)
        }),
        ("preallocated in the L1 table", |image| {
            let table = copied(image.u64(field::L1_OFFSET));
            image.set_l2_entry(120 << 10, table | ZERO)
        }),
        ("in a bitmap's table", |image| {
            let table = image.u64(image.bitmap_directory());
            image.set_l2_entry(120 << 10, table)
        }),
    ];
    all_repaired(everything(), rows);
    let wide = built("cluster_size=16k,extended_l2=on", |image| {
        qemu_io("qcow2", image, &["write -P 1 0 100k"]);
    });
    all_repaired(
        &wide,
        &[("in the L1 table, in part", |image| {
            let table = copied(image.u64(field::L1_OFFSET));
            image.set_l2_entry(112 << 10, table).set_subclusters(112 << 10, 0xf0_0000_000f)
        })],
    );
}

#[test]
fn bitmaps_that_cannot_be_trusted_are_dropped_and_nothing_else() {
    needs_qemu!();
    let rows: &[(Row, bool)] = &[
        (
            ("a table past the end", |image| {
                let at = image.bitmap_directory();
                image.set_u64(at, image.end() + 0x4000)
            }),
            true,
        ),
        (
            ("bits past the end", |image| {
                let table = to(image.u64(image.bitmap_directory()));
                image.set_u64(table, image.end() + 0x4000)
            }),
            true,
        ),
        (
            ("bits in the L2 table", |image| {
                let table = to(image.u64(image.bitmap_directory()));
                image.set_u64(table, image.l2() as u64)
            }),
            true,
        ),
        (
            ("bits in guest data", |image| {
                let table = to(image.u64(image.bitmap_directory()));
                let data = image.l2_entry(20 << 10) & OFFSET_MASK;
                image.set_u64(table, data)
            }),
            true,
        ),
        (
            ("a table in the L2 table", |image| {
                let (at, table) = (image.bitmap_directory(), image.l2() as u64);
                image.or_u64(at + 8, 1).set_u64(at, table)
            }),
            true,
        ),
        (
            ("a table entry with reserved bits: QEMU does not open the image", |image| {
                let table = to(image.u64(image.bitmap_directory()));
                image.or_u64(table, 2)
            }),
            true,
        ),
        (
            ("a directory of garbage: QEMU does not open the image", |image| {
                image.set_u64(image.bitmap_directory() + 8, u64::MAX)
            }),
            true,
        ),
        (
            ("a directory past the end: QEMU does not open the image", |image| {
                let magic = fixtures::patch::magic::BITMAPS.to_be_bytes();
                let at = image.bytes.windows(4).position(|bytes| bytes == magic).unwrap();
                image.set_u64(at + 24, image.end() + 0x4000)
            }),
            true,
        ),
        (
            ("a directory with a refcount of zero is sound", |image| {
                let cluster = image.bitmap_directory() / 4096;
                image.set_u16(image.refcount_at(cluster), 0)
            }),
            false,
        ),
    ];
    for ((what, damage), dropped) in rows {
        let scratch = Scratch::new();
        let mut patch = copy(&scratch, everything());
        let sound = content(&patch.path);
        damage(&mut patch);
        patch.save();
        repair("leaks", &patch.path);
        let vouched = Patch::open(&patch.path).u64(field::AUTOCLEAR);
        assert_eq!(vouched, patch.u64(field::AUTOCLEAR), "{what}: leaks only");
        patch.save();
        let plan =
            qcowtool(args!["check", "-r", "all", "--dry-run", "--output", "json", patch.path]);
        assert!(
            std::fs::read(&patch.path).unwrap() == patch.bytes,
            "{what}: a plan writes nothing"
        );
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout())
            .unwrap_or_else(|_| panic!("{what}: no plan, but {}", plan.stderr()));
        let done = repair("all", &patch.path).json();
        assert_eq!(done["steps"], plan["steps"], "{what}: what was planned was done");
        let says = done["steps"][0]["action"] == "drop-bitmaps";
        assert_eq!(says, *dropped, "{what}: {}", done["steps"]);
        assert_eq!(theirs(&patch.path).code, Some(0), "{what}: qemu-img finds it clean");
        assert_eq!(content(&patch.path), sound, "{what}: disk and snapshots");
        let left = qemu_img(&args!["info", patch.path]).contains("bitmaps:");
        assert_eq!(left, !*dropped, "{what}: bitmaps");
    }
}

#[test]
fn every_width_of_refcounts_can_be_rebuilt() {
    needs_qemu!();
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let options = format!("cluster_size=512,refcount_bits={bits}");
        let image = built(&options, |image| qemu_io("qcow2", image, &["write 0 100k"]));
        all_repaired(&image, &[("no refcounts", |image| image.set_u64(image.reftable(), 0))]);
    }
    for options in ["cluster_size=4k,compat=0.10", "cluster_size=16k,extended_l2=on"] {
        let image = built(options, |image| qemu_io("qcow2", image, &["write 0 100k"]));
        let rows: &[Row] = &[
            ("no refcounts", |image| image.set_u64(image.reftable(), 0)),
            ("a cluster past the end", |image| image.set_l2_entry(16 << 10, copied(image.end()))),
        ];
        all_repaired(&image, rows);
    }
}

#[test]
fn trap_21_22_the_dirty_and_corrupt_bits_are_cleared_when_earned() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = copy(&scratch, everything());
    image.or_u64(field::INCOMPATIBLE, 3).save();
    repair("all", &image.path).ok();
    assert_eq!(Patch::open(&image.path).u64(field::INCOMPATIBLE), 0);

    image.or_u64(image.l2_entry_at(0), 4).save();
    assert_eq!(repair("all", &image.path).code(), Some(1));
    assert_eq!(Patch::open(&image.path).u64(field::INCOMPATIBLE), 3, "not earned");
}

#[test]
fn what_is_not_understood_is_not_touched() {
    needs_qemu!();
    let rows: &[Row] = &[
        ("reserved bits in L1", |image| image.or_u64(image.l1_entry_at(0), 4)),
        ("reserved bits in L2", |image| image.or_u64(image.l2_entry_at(0), 4)),
        ("misaligned data", |image| image.or_u64(image.l2_entry_at(20 << 10), 0x200)),
        ("a misaligned L2 table", |image| image.or_u64(image.l1_entry_at(0), 0x200)),
        ("a snapshot's L1 table past the end", |image| {
            image.set_u64(image.snapshot_table(), image.end() + 0x4000)
        }),
        ("a snapshot's L1 table that is not aligned", |image| {
            image.or_u64(image.snapshot_table(), 0x200)
        }),
        ("a snapshot's L1 table that is too long", |image| {
            image.set_u32(image.snapshot_table() + 8, 0x0100_0000)
        }),
        ("reserved bits in a snapshot's L1", |image| image.or_u64(image.snapshot_l1(), 4)),
        ("a misaligned L2 table of a snapshot", |image| image.or_u64(image.snapshot_l1(), 0x200)),
        ("misaligned data of a snapshot", |image| image.or_u64(image.snapshot_l2() + 8, 0x200)),
        ("a snapshot table past the end", |image| {
            image.set_u64(field::SNAPSHOTS_OFFSET, image.end() + 0x4000)
        }),
        ("a snapshot table that is not aligned", |image| {
            let table = image.snapshot_table() as u64;
            image.set_u64(field::SNAPSHOTS_OFFSET, table + 8)
        }),
        ("a snapshot that is not there", |image| image.set_u32(field::SNAPSHOTS, 3)),
        ("too many snapshots", |image| image.set_u32(field::SNAPSHOTS, 70_000)),
        ("extra data that is too long", |image| image.set_u32(image.snapshot_table() + 36, 1025)),
        ("the L1 table in the snapshot table", |image| {
            let table = image.snapshot_table() as u64;
            image.set_u64(field::L1_OFFSET, table)
        }),
        ("an L2 table in the L1 table", |image| {
            let table = copied(image.u64(field::L1_OFFSET));
            image.set_u64(image.l1_entry_at(0), table)
        }),
        ("compressed data in the L2 table", |image| {
            let entry = image.compressed_entry(image.l2() as u64, 0);
            image.set_l2_entry(120 << 10, entry)
        }),
        ("an unknown incompatible feature", |image| image.or_u64(field::INCOMPATIBLE, 1 << 40)),
    ];
    let mut advised = 0;
    for (what, damage) in rows {
        let scratch = Scratch::new();
        let mut patch = copy(&scratch, everything());
        // There is something to repair besides.
        let at = patch.append(&[1]);
        patch.set_u16(patch.refcount_at(at / 4096), 1);
        damage(&mut patch);
        patch.save();
        for scope in ["all", "leaks"] {
            let run = repair(scope, &patch.path);
            assert_eq!(run.code(), Some(1), "{what}: {}", run.stdout());
            assert_eq!(std::fs::read(&patch.path).unwrap(), patch.bytes, "{what}");
            if run.stderr().contains("`qcowtool flatten --salvage`") {
                advised += 1;
                let saved = scratch.path(format!("saved-{scope}"));
                let run = qcowtool(args!["flatten", "--salvage", patch.path, saved]);
                assert!([Some(0), Some(7)].contains(&run.code()), "{what}: {}", run.stderr());
                qemu::assert_clean(&saved);
            }
        }
    }
    assert!(advised > 10, "{advised}");
}

#[test]
fn repairing_leaks_leaves_corruption_alone() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = copy(&scratch, everything());
    let at = image.append(&[1]);
    image.set_u16(image.refcount_at(at / 4096), 1);
    let cluster = image.cluster_of(image.l2_entry(0));
    image.set_u16(image.refcount_at(cluster), 1).save();
    let (before, read) = (ours(&image.path), content(&image.path));
    assert!(before.count("leaks") > 0 && before.count("corruptions") > 0);
    let run = repair("leaks", &image.path);
    assert_eq!(run.code(), Some(2));
    let after = theirs(&image.path);
    assert_eq!(after.count("leaks"), 0);
    assert_eq!(after.count("corruptions"), before.count("corruptions"));
    assert!(kept(&read, &image.path));
}

#[test]
fn repairing_leaks_corrects_copied_flags_where_refcounts_are_right_as_qemu_does() {
    needs_qemu!();
    type Damage = fn(&mut Patch) -> &mut Patch;
    let rows: &[(&str, Damage)] = &[
        ("two entries share a cluster, and their flags lie", |image| share(image, 2)),
        ("they share it, and the refcount is too low", |image| share(image, 1)),
        ("they share it, and the refcount is too high", |image| share(image, 3)),
        ("a flag is missing", |image| clear_copied(image, 0)),
        ("a flag is missing, and a cluster leaks", |image| {
            clear_copied(image, 0).set_l2_entry(4 << 10, 0)
        }),
        ("a refcount is too high", |image| {
            let cluster = image.cluster_of(image.l2_entry(0));
            image.set_u16(image.refcount_at(cluster), 2)
        }),
        ("a refcount is too high, and the flag is missing", |image| {
            let cluster = image.cluster_of(image.l2_entry(0));
            let refcount = image.refcount_at(cluster);
            clear_copied(image, 0).set_u16(refcount, 2)
        }),
        ("the flag of an L2 table is missing", |image| {
            let at = image.l1_entry_at(0);
            image.set_u64(at, image.u64(at) & !COPIED)
        }),
        ("all at once", |image| clear_copied(share(image, 2), 8 << 10).set_l2_entry(12 << 10, 0)),
    ];
    let image = built("cluster_size=4k", |image| qemu_io("qcow2", image, &["write -P 1 0 32k"]));
    for (what, damage) in rows {
        let scratch = Scratch::new();
        let mut patch = copy(&scratch, &image);
        damage(&mut patch);
        patch.save();
        let before = content(&patch.path);
        let by_qemu = scratch.path("by-qemu");
        std::fs::copy(&patch.path, &by_qemu).unwrap();
        let output = Command::new("qemu-img")
            .args(["check", "-q", "-r", "leaks", "-f", "qcow2"])
            .arg(&by_qemu)
            .output()
            .unwrap();
        let run = repair("leaks", &patch.path);
        assert_eq!(run.code(), output.status.code(), "{what}: {}{}", run.stdout(), run.stderr());
        assert_eq!(theirs(&patch.path).code, theirs(&by_qemu).code, "{what}");
        // Byte for byte, but that QEMU punches a hole where a leaked cluster was.
        let (ours, theirs) =
            [&patch.path, &by_qemu].map(|path| std::fs::read(path).unwrap()).into();
        assert_eq!(ours.len(), theirs.len(), "{what}");
        let mut clusters = ours.chunks(4096).zip(theirs.chunks(4096));
        let alike = |(a, b): (&[u8], &[u8])| a == b || b.iter().all(|byte| *byte == 0);
        assert!(clusters.all(alike), "{what}");
        assert!(kept(&before, &patch.path), "{what}: content");
    }
}

/// Has two entries lead to one cluster, with a refcount, and both with copied flags.
fn share(image: &mut Patch, refcount: u16) -> &mut Patch {
    let entry = image.l2_entry(0) | COPIED;
    let at = image.refcount_at(image.cluster_of(entry));
    image.set_l2_entry(64 << 10, entry).set_u16(at, refcount)
}

fn clear_copied(image: &mut Patch, guest: u64) -> &mut Patch {
    let entry = image.l2_entry(guest) & !COPIED;
    image.set_l2_entry(guest, entry)
}

#[test]
fn an_image_in_use_is_not_repaired() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = copy(&scratch, everything());
    let at = image.append(&[1]);
    image.set_u16(image.refcount_at(at / 4096), 1).save();
    let mut holder = Command::new("qemu-io")
        .args(["-r", "-f", "qcow2"])
        .arg(&image.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::Write::write_all(holder.stdin.as_mut().unwrap(), b"length\n").unwrap();
    let mut answer = std::io::BufReader::new(holder.stdout.as_mut().unwrap());
    std::io::BufRead::read_line(&mut answer, &mut line).unwrap();
    let run = qcowtool(args!["check", "-r", "all", image.path]);
    let bytes = std::fs::read(&image.path).unwrap();
    drop(holder.stdin.take());
    holder.wait().unwrap();
    run.refused_naming(&["in use"]);
    assert!(bytes == image.bytes);
    assert!(qcowtool(args!["check", "-r", "all", image.path]).succeeded());
}

#[test]
fn the_text_says_what_was_done_and_how_the_image_is_now() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = copy(&scratch, everything());
    let at = image.append(&[1]);
    image.set_u16(image.refcount_at(at / 4096), 1).save();
    let plan = qcowtool(args!["check", "-r", "leaks", "--dry-run", image.path]);
    assert_eq!(plan.code(), Some(3), "nothing was repaired yet");
    let line =
        format!("lower the refcount: cluster entry {}, at byte {at:#x}: 0x1 -> 0x0", at / 4096);
    assert!(plan.stdout().contains(&line), "{}", plan.stdout());
    let text = qcowtool(args!["check", "-r", "leaks", image.path]).ok();
    assert!(text.contains(&line) && text.contains("    1 leaked clusters\n"), "{text}");
    assert!(text.contains("No errors were found on the image."), "{text}");
}

#[test]
fn random_damage_is_repaired_or_left_alone() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.file("image.qcow2", everything());
    let sound = Patch::open(&path);
    let l1 = sound.l1_entry_at(0);
    let bitmaps = sound.bitmap_directory();
    let places = [
        (l1, 8),
        (sound.l2(), 256),
        (sound.reftable(), 16),
        (sound.refblock(), 80),
        (sound.snapshot_table(), 144),
        (sound.snapshot_l1(), 8),
        (sound.snapshot_l2(), 256),
        (bitmaps, 64),
        (to(sound.u64(bitmaps)), 8),
    ];
    let mut random = Random::new(0x4e9a);
    let (mut repaired, mut refused) = (0, 0);
    for _ in 0..150 {
        let mut patch = sound.clone();
        let (start, len) = places[random.below(places.len() as u64) as usize];
        let at = start + random.below(len) as usize;
        patch.bytes[at] ^= 1 << random.below(8);
        patch.save();
        let before = content(&path);
        let run = repair("all", &path);
        if run.code() == Some(0) {
            repaired += 1;
            assert_eq!(theirs(&path).code, Some(0), "byte {at:#x}");
        } else {
            refused += 1;
            assert_eq!(run.code(), Some(1), "byte {at:#x}");
            assert!(std::fs::read(&path).unwrap() == patch.bytes, "byte {at:#x}: refused");
        }
        assert!(kept(&before, &path), "byte {at:#x}: content");
    }
    assert!(repaired > 20 && refused > 5, "{repaired} repaired, {refused} refused");
}
