//! `check`: refcounts, snapshots, bitmaps and data files broken by hand, held against `qemu-img check`.

use crate::check_common::{
    Places, Row, all, built, copied, copy, everything, leak, ours, theirs, to,
};
use fixtures::patch::{COMPRESSED, COPIED, OFFSET_MASK, field};
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};

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
            "copied flags in a snapshot's tables mean nothing",
            |image| {
                let (l1, l2) = (image.snapshot_l1(), image.snapshot_l2());
                image.or_u64(l1, COPIED).or_u64(l2, COPIED)
            },
            0,
            "",
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
            "one table for two bitmaps",
            |image| {
                let at = image.bitmap_directory();
                image.set_u64(at + 32, image.u64(at))
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
