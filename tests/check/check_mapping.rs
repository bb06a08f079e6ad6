//! `check`: L1 and L2 entries broken by hand, held against `qemu-img check`.

use crate::check_common::{Places, Row, all, built, copied, everything};
use fixtures::patch::{COPIED, ZERO, field};
use fixtures::{needs_qemu, qemu_io};

#[test]
fn trap_42_broken_l1_entries_are_found() {
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
fn trap_31_a_zero_flag_in_version_2_is_noted() {
    needs_qemu!();
    let image =
        built("cluster_size=4k,compat=0.10", |image| qemu_io("qcow2", image, &["write 0 16k"]));
    let rows: &[Row] =
        &[("the zero flag", |image| image.or_u64(image.l2_entry_at(0), ZERO), 0, "zero-flag")];
    all(&image, rows);
}
