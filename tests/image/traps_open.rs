//! Opening: the traps of headers and extensions. Each image is patched by hand; qemu-img says, when
//! the test runs, whether it opens and what it holds.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use common::{
    checksum, content_like_qemu, qcowtool, reads, reads_like_qemu, refuses, small, small_overlay,
};
use fixtures::patch::{field, magic};
use fixtures::pattern::noise;
use fixtures::{Patch, Scratch, args, assert_bytes, crc32_hex, needs_qemu, qemu, qemu_img};

const RAW: (u32, &[u8]) = (magic::BACKING_FORMAT, b"raw");
const QCOW2: (u32, &[u8]) = (magic::BACKING_FORMAT, b"qcow2");

/// The noise that `small_overlay` shows through.
fn base() -> Vec<u8> {
    noise(0xba5e, 64 << 10)
}

#[test]
fn trap_01_version_2_carries_extensions_and_its_backing_format_counts() {
    needs_qemu!();
    let scratch = Scratch::new();
    // Whoever misses the format and probes sees a qcow2 image of another size here.
    let inner = small(&scratch, "");
    let overlay = scratch.path("v2.qcow2");
    qemu::overlay(&overlay, "small.qcow2", "raw", "compat=0.10", "");
    assert_bytes!(reads_like_qemu(&overlay)[..inner.bytes.len()], inner.bytes);
}

#[test]
fn trap_02_extensions_begin_at_a_header_length_of_exactly_104() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small_overlay(&scratch, "");
    image.set_header_area(104, &[RAW], true).set_backing(200, b"base.raw");
    assert_bytes!(reads(&image), base());
}

#[test]
fn trap_03_header_length_may_be_odd_or_a_whole_cluster() {
    needs_qemu!();
    let scratch = Scratch::new();
    for length in [105, 107, 108, 111, 113, 120, 1001] {
        let mut image = small_overlay(&scratch, "");
        image.set_header_area(length, &[RAW], true).set_backing(2000, b"base.raw");
        assert_bytes!(reads(&image), base(), "header length {length}");
    }
    let mut image = small(&scratch, "");
    image.set_header_area(4096, &[], false);
    reads(&image);
    for length in [0, 72, 103, 4097, u32::MAX] {
        refuses(small(&scratch, "").set_u32(field::HEADER_LENGTH, length));
    }
}

#[test]
fn trap_03_unknown_fields_of_a_longer_header_do_not_stop_a_read() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    image.set_header_area(512, &[], true).set(105, &noise(1, 407));
    reads(&image);
}

#[test]
fn trap_04_no_compression_type_in_a_header_of_104_bytes() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    image.set_header_area(104, &[(magic::UNKNOWN, b"")], true);
    assert_ne!(image.bytes[field::COMPRESSION], 0);
    reads(&image);
    // The bit says zstd, but there is no field to agree with it.
    refuses(image.set_u64(field::INCOMPATIBLE, 8));
}

#[test]
fn trap_05_compression_bit_and_type_agree_both_ways() {
    needs_qemu!();
    let scratch = Scratch::new();
    for (bits, kind) in [(0, 1), (8, 0), (8, 2), (0, 2), (8, 255)] {
        let mut image = small(&scratch, "");
        refuses(image.set_u64(field::INCOMPATIBLE, bits).set_u8(field::COMPRESSION, kind));
    }
    let mut image = small(&scratch, "");
    reads(image.set_u64(field::INCOMPATIBLE, 8).set_u8(field::COMPRESSION, 1));
}

#[test]
fn trap_06_the_backing_name_ends_the_extensions() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small_overlay(&scratch, "");
    image.set_header_area(112, &[RAW], false).set_backing(128, b"base.raw");
    // What follows the name is nobody's.
    image.set(136, &[0xff; 3000]);
    assert_bytes!(reads(&image), base());

    let mut image = small_overlay(&scratch, "");
    image.set_header_area(112, &[RAW, (magic::UNKNOWN, &[7; 64])], false);
    refuses(image.set_backing(160, b"base.raw"));
}

#[test]
fn trap_06_the_cluster_ends_the_extensions_when_there_is_no_backing_name() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    reads(image.set_header_area(112, &[(magic::UNKNOWN, &[7; 4096 - 112 - 8])], false));
    let mut image = small(&scratch, "");
    image.set_header_area(112, &[], false).set_u32(112, magic::UNKNOWN).set_u32(116, 4096 - 112);
    refuses(&image);
    refuses(image.set_u32(116, u32::MAX));
    // An end marker with a length is still the end, as long as that length fits.
    refuses(image.set_u32(112, magic::END));
    reads(image.set_u32(116, 40).set(120, &[0xff; 100]));
}

#[test]
fn trap_07_extension_data_is_padded_and_its_length_is_not() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small_overlay(&scratch, "");
    image.set_header_area(112, &[(magic::UNKNOWN, b"12345"), RAW], true);
    assert_bytes!(reads(image.set_backing(200, b"base.raw")), base());
}

#[test]
fn trap_09_the_last_of_two_backing_formats_wins() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small_overlay(&scratch, "");
    image.set_header_area(112, &[QCOW2, RAW], true).set_backing(200, b"base.raw");
    assert_bytes!(reads(&image), base());
    image.set_header_area(112, &[RAW, QCOW2], true).set_backing(200, b"base.raw");
    refuses(&image);
}

#[test]
fn trap_10_the_backing_name_may_end_at_the_cluster_and_need_not_be_utf8() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small_overlay(&scratch, "");
    image.set_header_area(112, &[RAW], true).set_backing(4096 - 8, b"base.raw");
    assert_bytes!(reads(&image), base());
    let name = b"b\xe4se\xff.raw";
    fs::rename(scratch.path("base.raw"), scratch.path(std::ffi::OsStr::from_bytes(name))).unwrap();
    image.set_header_area(112, &[RAW], true).set_backing(4096 - 9, name).save();
    content_like_qemu("qcow2", &image.path, &[]);
    qcowtool(args!["info", image.path]).ok();
}

#[test]
fn trap_10_backing_names_beyond_their_limits_are_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small_overlay(&scratch, "");
    image.set_header_area(112, &[RAW], true).set_backing(4096 - 8, b"base.raw");
    refuses(image.set_u32(field::BACKING_SIZE, 9));
    refuses(image.set_u64(field::BACKING_OFFSET, 5000).set_u32(field::BACKING_SIZE, 8));
    refuses(image.set_u64(field::BACKING_OFFSET, u64::MAX));
    refuses(image.set_u64(field::BACKING_OFFSET, 200).set_u32(field::BACKING_SIZE, 1024));
    refuses(image.set_u32(field::BACKING_SIZE, u32::MAX));
}

#[test]
fn trap_11_a_backing_offset_with_length_zero_is_no_backing_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    image.set_header_area(112, &[RAW], true).set_backing(200, b"");
    reads(&image);
}

#[test]
fn trap_14_15_a_version_2_header_ends_at_byte_72() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "compat=0.10");
    // An end marker, then what would be feature bits and a refcount order of 7 in version 3.
    image.set_header_area(72, &[], true).set(80, &[0xff; 16]).set_u32(96, 7).set(100, &[0xff; 60]);
    reads(&image);
}

#[test]
fn trap_16_encrypted_content_is_never_handed_out() {
    needs_qemu!();
    let scratch = Scratch::new();
    for method in ["aes", "luks"] {
        let image = scratch.path(method);
        let mut options = format!("encrypt.format={method},encrypt.key-secret=s");
        if method == "luks" {
            options += ",encrypt.iter-time=10";
        }
        let secret = "secret,id=s,data=geheim";
        let create = args!["create", "-q", "-f", "qcow2", "--object", secret, "-o", options];
        qemu_img(&[create, args![image, "64k"]].concat());
        let message = refuses(&Patch::open(&image));
        assert!(message.contains("encrypt"), "{message}");
    }
    let mut image = small(&scratch, "");
    refuses(image.set_u32(field::CRYPT, 1));
    refuses(image.set_u32(field::CRYPT, 2));
    refuses(image.set_u32(field::CRYPT, 3));
}

#[test]
fn trap_17_20_unknown_incompatible_bits_refuse_and_nothing_is_written() {
    needs_qemu!();
    let scratch = Scratch::new();
    for bit in [5, 31, 32, 63] {
        let mut image = small(&scratch, "");
        refuses(image.set_u64(field::INCOMPATIBLE, 1 << bit));
        assert_bytes!(fs::read(&image.path).unwrap(), image.bytes);
    }
}

#[test]
fn trap_18_139_a_feature_name_is_shown_escaped() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    let mut entry = [0; 48];
    entry[..2].copy_from_slice(&[0, 9]);
    entry[2..2 + 18].copy_from_slice(b"evil\x1b[31m\nfea\x07ture");
    image.set_header_area(112, &[(magic::FEATURE_NAMES, &entry)], true);
    let message = refuses(image.set_u64(field::INCOMPATIBLE, 1 << 9));
    assert!(message.contains("evil") && message.contains("ture"), "{message}");
}

#[test]
fn unknown_compatible_and_autoclear_bits_do_not_stop_a_read() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    reads(image.set_u64(field::COMPATIBLE, !0));
    reads(image.set_u64(field::AUTOCLEAR, !2));
}

#[test]
fn trap_20_21_22_dirty_and_corrupt_images_read_and_are_left_alone() {
    needs_qemu!();
    let scratch = Scratch::new();
    for bits in [1, 2, 3] {
        let mut image = small(&scratch, "lazy_refcounts=on");
        image.set_u64(field::INCOMPATIBLE, bits).save();
        let before = fs::metadata(&image.path).unwrap().modified().unwrap();
        let ours = checksum(&image.path, &[]);
        assert_eq!(ours, crc32_hex(&qemu::raw_of("qcow2", &image.path)));
        assert_bytes!(fs::read(&image.path).unwrap(), image.bytes);
        assert_eq!(fs::metadata(&image.path).unwrap().modified().unwrap(), before);
        reads(&image);
    }
}

#[test]
fn trap_24_the_refcount_table_is_present_bounded_and_aligned() {
    needs_qemu!();
    let scratch = Scratch::new();
    refuses(small(&scratch, "").set_u32(field::REFTABLE_CLUSTERS, 0));
    refuses(small(&scratch, "").set_u32(field::REFTABLE_CLUSTERS, u32::MAX));
    refuses(small(&scratch, "").set_u32(field::REFTABLE_CLUSTERS, (8 << 20) / 4096 + 1));
    refuses(small(&scratch, "").set_u64(field::REFTABLE_OFFSET, 4096 + 512));
    refuses(small(&scratch, "").set_u64(field::REFTABLE_OFFSET, !0xfff));
}

#[test]
fn trap_25_the_l1_table_may_be_longer_than_the_disk_and_never_shorter() {
    needs_qemu!();
    let scratch = Scratch::new();
    reads(small(&scratch, "").set_u32(field::L1_SIZE, 64));
    refuses(small(&scratch, "").set_u32(field::L1_SIZE, 0));
    // 512-byte clusters: each L1 entry covers 32 KiB, so this disk needs two.
    refuses(small(&scratch, "cluster_size=512").set_u32(field::L1_SIZE, 1));
    let mut empty = small(&scratch, "");
    assert!(reads(empty.set_u64(field::SIZE, 0)).is_empty());
    assert!(reads(empty.set_u32(field::L1_SIZE, 0)).is_empty());
}

#[test]
fn trap_25_140_141_the_l1_table_is_bounded_and_aligned() {
    needs_qemu!();
    let scratch = Scratch::new();
    refuses(small(&scratch, "").set_u32(field::L1_SIZE, (32 << 20) / 8 + 1));
    refuses(small(&scratch, "").set_u32(field::L1_SIZE, u32::MAX));
    let l1 = small(&scratch, "").u64(field::L1_OFFSET);
    for offset in [l1 + 8, l1 + 512, u64::MAX, !0xfff, 1 << 63, (1 << 63) - 4096] {
        refuses(small(&scratch, "").set_u64(field::L1_OFFSET, offset));
    }
    for size in [u64::MAX, 1 << 63, (1 << 63) - 512, 1 << 62] {
        refuses(small(&scratch, "").set_u64(field::SIZE, size));
    }
}

#[test]
fn trap_26_the_virtual_size_is_rounded_down_to_512() {
    needs_qemu!();
    let scratch = Scratch::new();
    for (size, expected) in [(65535, 65024), (1000, 512), (511, 0)] {
        assert_eq!(reads(small(&scratch, "").set_u64(field::SIZE, size)).len(), expected);
    }
}

#[test]
fn other_versions_and_cluster_sizes_are_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    for version in [0, 4, u32::MAX] {
        refuses(small(&scratch, "").set_u32(field::VERSION, version));
    }
    for bits in [0, 8, 22, 63, 64, u32::MAX] {
        refuses(small(&scratch, "").set_u32(field::CLUSTER_BITS, bits));
    }
    for order in [7, 64, u32::MAX] {
        refuses(small(&scratch, "").set_u32(field::REFCOUNT_ORDER, order));
    }
    let mut extended = small(&scratch, "cluster_size=8k");
    refuses(extended.set_u64(field::INCOMPATIBLE, 0x10));
}

#[test]
fn a_backing_format_of_15_bytes_opens_and_of_16_is_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    reads(image.set_header_area(112, &[(magic::BACKING_FORMAT, b"fifteen bytes !")], true));
    refuses(image.set_header_area(112, &[(magic::BACKING_FORMAT, b"sixteen bytes !!")], true));
}

#[test]
fn trap_36_what_is_cut_from_a_header_counts_as_zeros() {
    needs_qemu!();
    let scratch = Scratch::new();
    for length in [8, 71, 72, 103] {
        refuses(small(&scratch, "").resize(length));
    }
    for length in [104, 111, 112, 4000] {
        assert!(reads(small(&scratch, "").resize(length)).iter().all(|&b| b == 0));
    }
}
