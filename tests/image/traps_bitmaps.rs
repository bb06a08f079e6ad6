//! Bitmaps and data files: patched by hand; qemu-img says, when the test runs, what opens, how `info`
//! lists it, and what is read.

use std::path::PathBuf;

use common::{
    info_like_qemu, like_qemu, qcowtool_in, reads, reads_like_qemu, refused_by_us, refuses, small,
};
use fixtures::patch::{COPIED, ZERO, field, magic};
use fixtures::pattern::noise;
use fixtures::{
    Patch, Scratch, args, assert_bytes, crc32_hex, needs_qemu, qemu, qemu_img, qemu_io,
};

/// `small` with two bitmaps, one of them disabled, that have recorded a write.
fn with_bitmaps(scratch: &Scratch) -> Patch {
    let path = small(scratch, "").path;
    qemu_img(&args!["bitmap", "--add", "-g", "4k", path, "daily"]);
    qemu_img(&args!["bitmap", "--add", "--disable", path, "weekly"]);
    qemu_io("qcow2", &path, &["write -P 1 8k 4k"]);
    Patch::open(&path)
}

/// Where the data of the bitmaps extension begins.
fn extension_at(image: &Patch) -> usize {
    let area = &image.bytes[..image.cluster_size()];
    let found = area.windows(4).position(|w| w == magic::BITMAPS.to_be_bytes());
    found.expect("a bitmaps extension") + 8
}

/// Where the bitmap directory begins.
fn directory_at(image: &Patch) -> usize {
    usize::try_from(image.u64(extension_at(image) + 16)).unwrap()
}

#[test]
fn trap_93_bitmaps_are_listed_as_qemu_lists_them() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = with_bitmaps(&scratch);
    reads(&image);
    let info = qemu::info(&image.path);
    let listed = info["format-specific"]["data"]["bitmaps"].as_array().unwrap().len();
    assert_eq!(listed, 2, "the fixture has bitmaps to list");
    let text = common::qcowtool(args!["info", image.path]).ok();
    assert!(text.contains("daily") && text.contains("weekly"), "{text}");
}

#[test]
fn trap_94_97_flags_of_a_bitmap() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = with_bitmaps(&scratch);
    let flags = directory_at(&image) + 12;
    for bits in [0, 1, 2, 3, 4, 8, 1 << 31] {
        like_qemu(image.clone().set_u32(flags, bits));
    }
}

#[test]
fn trap_97_kind_granularity_and_extra_data_of_a_bitmap() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = with_bitmaps(&scratch);
    let entry = directory_at(&image);
    for kind in [0, 2, 255] {
        like_qemu(image.clone().set_u8(entry + 16, kind));
    }
    for granularity in [8, 9, 31, 32, 255] {
        like_qemu(image.clone().set_u8(entry + 17, granularity));
    }
    for extra in [1, 8, u32::MAX] {
        like_qemu(image.clone().set_u32(entry + 20, extra));
    }
    for name_length in [0, 3, 1023, 1024, u16::MAX] {
        like_qemu(image.clone().set_u16(entry + 18, name_length));
    }
}

#[test]
fn trap_94_99_140_a_bitmaps_table_is_bounded() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = with_bitmaps(&scratch);
    let entry = directory_at(&image);
    for offset in [0, 1, 512, u64::MAX, 1 << 40] {
        like_qemu(image.clone().set_u64(entry, offset));
    }
    for size in [0, 2, 0x0800_0000, 0x0800_0001, u32::MAX] {
        like_qemu(image.clone().set_u32(entry + 8, size));
    }
    // An offset and "all ones" in one entry of the table itself.
    let table = usize::try_from(image.u64(entry)).unwrap();
    like_qemu(image.clone().set_u64(table, 4096 | 1));
    like_qemu(image.clone().set_u64(table, 1));
}

#[test]
fn trap_95_bitmaps_in_use_are_listed_as_inconsistent() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = with_bitmaps(&scratch);
    let flags = directory_at(&image) + 12;
    reads(image.set_u32(flags, 1));
}

#[test]
fn trap_98_the_autoclear_bit_decides_whether_the_extension_counts() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = with_bitmaps(&scratch);
    reads(image.clone().set_u64(field::AUTOCLEAR, 0));
    let mut without = small(&scratch, "");
    reads(without.set_u64(field::AUTOCLEAR, 1));
}

#[test]
fn trap_140_144_the_bitmap_directory_is_bounded() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = with_bitmaps(&scratch);
    let at = extension_at(&image);
    for count in [0, 1, 3, 65_535, 65_536, u32::MAX] {
        like_qemu(image.clone().set_u32(at, count));
    }
    like_qemu(image.clone().set_u32(at + 4, 1));
    for size in [0, 8, 24, 1 << 20, (64 << 20) - 1023, u64::MAX] {
        like_qemu(image.clone().set_u64(at + 8, size));
    }
    for offset in [0, 512, 4096, 1 << 40, u64::MAX, !0xfff] {
        like_qemu(image.clone().set_u64(at + 16, offset));
    }
    // The extension itself has exactly 24 bytes.
    for length in [0, 16, 23, 32] {
        like_qemu(image.clone().set_u32(at - 4, length));
    }
}

#[test]
fn trap_139_a_bitmaps_name_is_shown_escaped() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = with_bitmaps(&scratch);
    let name = directory_at(&image) + 24;
    image.set(name, b"\x1b[3\nm").save();
    let text = common::qcowtool(args!["info", image.path]).ok();
    assert!(!text.contains('\x1b'), "{text:?}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with('m')), "{text:?}");
    info_like_qemu(&image.path, &[]);
}

/// An image of 64 KiB whose clusters lie in `disk.data`, named by its whole path; the first half is
/// full of noise.
fn with_data_file(scratch: &Scratch, raw: &str) -> (Patch, PathBuf) {
    let data = scratch.path("disk.data");
    let _ = std::fs::remove_file(&data);
    let image = small(scratch, &format!("data_file={},data_file_raw={raw}", data.display()));
    (image, data)
}

#[test]
fn trap_32_111_host_offsets_in_a_data_file_equal_guest_offsets() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, _) = with_data_file(&scratch, "off");
    assert_eq!(image.l2_entry(0), COPIED, "offset 0, allocated");
    assert_bytes!(reads(&image)[..32 << 10], noise(0x5a11, 32 << 10));
    like_qemu(image.clone().set_l2_entry(0, 0));
    like_qemu(image.clone().set_l2_entry(0, COPIED | 4096));
    like_qemu(image.clone().set_l2_entry(4096, COPIED));
    like_qemu(image.clone().set_l2_entry(4096, 4096));
    like_qemu(image.clone().set_l2_entry(4096, 4096 | ZERO));
    like_qemu(image.clone().set_l2_entry(0, COPIED | ZERO));
    like_qemu(image.clone().set_l2_entry(4096, COPIED | 4096 | 512));
}

#[test]
fn trap_112_a_raw_data_file_against_its_l2_table() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, _) = with_data_file(&scratch, "on");
    for entry in [0, ZERO, COPIED | 4096 | ZERO, 4096, COPIED | 8192] {
        like_qemu(image.clone().set_l2_entry(4096, entry));
    }
    // The raw bit needs the data file's.
    let mut plain = small(&scratch, "");
    refuses(plain.set_u64(field::AUTOCLEAR, 2));
}

#[test]
fn trap_113_a_data_files_name_is_a_path_and_never_a_protocol() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, data) = with_data_file(&scratch, "off");
    let expected = crc32_hex(&qemu::raw_of("qcow2", &image.path));
    for name in ["plain", "nbd:unix:sock", "json:{}", "a, b=c"] {
        let mut image = image.clone();
        image.set_header_area(112, &[(magic::DATA_FILE, name.as_bytes())], true).save();
        std::fs::copy(&data, scratch.path(name)).unwrap();
        info_like_qemu(&image.path, &[]);
        // From the image's own directory, so that it does not matter that QEMU resolves the names of
        // data files, unlike those of backing files, in the working directory.
        let arguments = args!["checksum", "--output", "json", "small.qcow2"];
        let outcome = qcowtool_in(scratch.dir(), arguments).json();
        assert_eq!(outcome["crc32"], expected, "{name}");
    }
}

#[test]
fn trap_114_info_does_not_open_the_data_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, data) = with_data_file(&scratch, "off");
    std::fs::remove_file(data).unwrap();
    common::info_like_qemu(&image.path, &[]);
    let message = refused_by_us(&image.path, &[]);
    assert!(message.contains("disk.data"), "{message}");
}

#[test]
fn a_data_file_may_be_shorter_than_the_disk_and_is_never_probed() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, data) = with_data_file(&scratch, "off");
    // Content that looks like an image is content.
    let inner = std::fs::read(scratch.path("small.qcow2")).unwrap();
    std::fs::write(&data, &inner[..inner.len().min(20_000)]).unwrap();
    assert_bytes!(reads_like_qemu(&image.path)[..4096], inner[..4096]);
    std::fs::write(&data, b"short").unwrap();
    assert_bytes!(reads_like_qemu(&image.path)[..6], *b"short\0");
}

#[test]
fn the_data_file_bit_and_its_name() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, _) = with_data_file(&scratch, "off");
    // The bit without a name; the name without the bit.
    refuses(image.clone().set_header_area(112, &[], true));
    like_qemu(image.clone().set_u64(field::INCOMPATIBLE, 0));
    let mut empty = image.clone();
    like_qemu(empty.set_header_area(112, &[(magic::DATA_FILE, b"")], true));
    let mut absent = image.clone();
    refuses(absent.set_header_area(112, &[(magic::DATA_FILE, b"nowhere")], true));
}
