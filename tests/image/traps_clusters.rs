//! L1 and L2 entries and subclusters: each image is patched by hand; qemu-img says, when the test
//! runs, whether it reads and as what.

use common::{reads, refuses, small, small_overlay};
use fixtures::patch::{COPIED, OFFSET_MASK, ZERO, field};
use fixtures::pattern::noise;
use fixtures::{Patch, Scratch, assert_bytes, needs_qemu, qemu, qemu_io};

const CLUSTER: usize = 4096;

/// The noise in the first half of `small`.
fn half() -> Vec<u8> {
    noise(0x5a11, 32 << 10)
}

/// The noise that `small_overlay` shows through.
fn base() -> Vec<u8> {
    noise(0xba5e, 64 << 10)
}

/// `small_overlay` with guest clusters 0 to 3 written with the byte 7.
fn written_overlay(scratch: &Scratch, options: &str) -> Patch {
    let overlay = small_overlay(scratch, options);
    qemu_io("qcow2", &overlay.path, &["write -P 7 0 16k"]);
    Patch::open(&overlay.path)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

#[test]
fn trap_28_34_reserved_bits_of_l1_and_l2_entries_do_not_stop_a_read() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    for guest in (0..32 << 10).step_by(CLUSTER) {
        let at = image.l2_entry_at(guest);
        image.or_u64(at, 0x3f00_0000_0000_01fe);
    }
    assert_bytes!(reads(&image)[..32 << 10], half(), "L2");
    let mut image = small(&scratch, "");
    let at = image.l1_entry_at(0);
    assert_bytes!(reads(image.or_u64(at, 0x7f00_0000_0000_01ff))[..32 << 10], half(), "L1");
}

#[test]
fn trap_41_the_copied_flag_does_not_matter_for_reading() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    let (l1, l2, entry) = (image.l1_entry_at(0), image.l2_entry_at(0), image.l2_entry(0));
    let table = image.u64(l1) & OFFSET_MASK;
    image.set_u64(l2, entry & OFFSET_MASK).set_u64(l1, table);
    assert_bytes!(reads(&image)[..32 << 10], half());
}

#[test]
fn trap_30_a_zero_flag_with_an_offset_reads_zeros() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = written_overlay(&scratch, "");
    let at = image.l2_entry_at(0);
    let content = reads(image.or_u64(at, ZERO));
    assert!(is_zero(&content[..CLUSTER]), "neither the data nor the base");
    assert_eq!(content[CLUSTER], 7);
}

#[test]
fn trap_30_a_zero_flag_without_an_offset_hides_the_backing_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    for flags in [0, COPIED] {
        let mut image = written_overlay(&scratch, "");
        let content = reads(image.set_l2_entry(20 << 10, ZERO | flags));
        assert!(is_zero(&content[20 << 10..24 << 10]));
        assert_bytes!(content[24 << 10..], base()[24 << 10..]);
    }
}

#[test]
fn trap_31_there_is_no_zero_flag_in_version_2() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = written_overlay(&scratch, "compat=0.10");
    refuses(image.set_l2_entry(20 << 10, ZERO));
    let mut image = written_overlay(&scratch, "compat=0.10");
    let at = image.l2_entry_at(0);
    refuses(image.or_u64(at, ZERO));
}

#[test]
fn trap_32_offset_zero_is_unallocated_whatever_the_copied_flag_says() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = written_overlay(&scratch, "");
    assert_bytes!(reads(image.set_l2_entry(4096, COPIED))[4096..8192], base()[4096..8192]);
}

#[test]
fn trap_33_an_unaligned_offset_is_an_error() {
    needs_qemu!();
    let scratch = Scratch::new();
    for shift in [512, 1024, 2048, 3584] {
        let mut image = small(&scratch, "");
        let (l1, l2) = (image.l1_entry_at(0), image.l2_entry_at(0));
        let (table, data) = (image.u64(l1), image.u64(l2));
        let message = refuses(image.set_u64(l2, data + shift));
        assert!(message.contains("small.qcow2"), "{message} names the file");
        refuses(image.set_u64(l2, data).set_u64(l1, table + shift));
    }
}

#[test]
fn trap_33_an_unaligned_offset_under_the_zero_flag_is_an_error_too() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    let at = image.l2_entry_at(0);
    refuses(image.or_u64(at, ZERO | 512));
}

#[test]
fn trap_35_a_missing_l2_table_means_the_backing_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    scratch.file("base.raw", &base());
    let path = scratch.path("overlay.qcow2");
    // 512-byte clusters: each L2 table covers 32 KiB.
    qemu::overlay(&path, "base.raw", "raw", "cluster_size=512", "");
    qemu_io("qcow2", &path, &["write -P 7 0 512", "write -P 8 32k 512"]);
    let mut image = Patch::open(&path);
    let l1 = image.l1_entry_at(0);
    let content = reads(image.set_u64(l1, 0));
    assert_bytes!(content[..32 << 10], base()[..32 << 10]);
    assert_eq!(content[32 << 10], 8);
}

#[test]
fn trap_36_data_past_the_end_of_the_file_reads_zeros() {
    needs_qemu!();
    let scratch = Scratch::new();
    let whole = small(&scratch, "");
    let data = usize::try_from(whole.l2_entry(0) & OFFSET_MASK).unwrap();
    for cut in [CLUSTER * 2, CLUSTER * 2 + 512, CLUSTER * 2 + 1000, CLUSTER / 2, 7] {
        let mut image = whole.clone();
        let content = reads(image.resize(data + cut));
        assert_bytes!(content[..cut], half()[..cut], "what is there");
        assert!(is_zero(&content[cut..]), "what is not");
    }
    let mut image = whole.clone();
    for far in [1 << 40, 1 << 55, OFFSET_MASK & !0xfff] {
        assert!(is_zero(&reads(image.set_l2_entry(0, COPIED | far))[..CLUSTER]));
    }
}

#[test]
fn trap_36_an_l2_table_past_the_end_of_the_file_is_all_unallocated() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = written_overlay(&scratch, "");
    let at = image.l1_entry_at(0);
    for far in [1 << 40, 1 << 55, OFFSET_MASK & !0xfff] {
        assert_bytes!(reads(image.set_u64(at, COPIED | far)), base());
    }
    // Cut inside the table: the rest of its entries are zero.
    let mut image = written_overlay(&scratch, "");
    let table = image.append(&[]);
    let first = image.l2_entry(0);
    image.set_u64(at, COPIED | table as u64).set_u64(table, first);
    let content = reads(&image);
    assert_bytes!(content[..CLUSTER], [7; CLUSTER]);
    assert_bytes!(content[CLUSTER..], base()[CLUSTER..]);
}

#[test]
fn trap_36_an_l1_table_past_the_end_of_the_file_is_all_unallocated() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = written_overlay(&scratch, "");
    for far in [1 << 20, 1 << 40] {
        common::like_qemu(image.set_u64(field::L1_OFFSET, far));
    }
}

#[test]
fn trap_37_entries_past_the_virtual_size_are_ignored() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    // Garbage that would be refused if it were looked at.
    image.set_l2_entry(20 << 10, COPIED | 512).set_l2_entry(40 << 10, !0);
    let content = reads(image.set_u64(field::SIZE, 17 << 10));
    assert_bytes!(content, half()[..17 << 10]);
}

#[test]
fn trap_38_the_last_cluster_may_be_partial() {
    needs_qemu!();
    let scratch = Scratch::new();
    for size in [CLUSTER * 4 + 512, CLUSTER * 4 - 512, 512] {
        let mut image = small(&scratch, "");
        assert_bytes!(reads(image.set_u64(field::SIZE, size as u64)), half()[..size]);
    }
}

#[test]
fn trap_69_refcounts_do_not_matter_for_reading() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = small(&scratch, "");
    let at = usize::try_from(image.u64(field::REFTABLE_OFFSET)).unwrap();
    for entry in [0, 0x1ff, 512, !0, 1 << 40] {
        assert_bytes!(reads(image.clone().set_u64(at, entry))[..32 << 10], half());
    }
    common::like_qemu(image.clone().set_u64(field::REFTABLE_OFFSET, 1 << 40));
}

#[test]
fn trap_142_entries_that_point_at_metadata_read_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = small(&scratch, "");
    let l1 = image.u64(field::L1_OFFSET);
    let l2 = image.u64(image.l1_entry_at(0)) & OFFSET_MASK;
    let content = reads(image.clone().set_l2_entry(0, l1).set_l2_entry(4096, l2));
    let patched = Patch::open(&image.path).bytes;
    let at = usize::try_from(l2).unwrap();
    assert_bytes!(content[4096..8192], patched[at..at + CLUSTER]);
    // Two entries for one cluster.
    let shared = image.l2_entry(0);
    let content = reads(image.clone().set_l2_entry(4096, shared));
    assert_bytes!(content[..4096], content[4096..8192]);
    // The L1 table as an L2 table, and an L2 table that describes itself.
    let at = image.l1_entry_at(0);
    common::like_qemu(image.clone().set_u64(at, l1));
    common::like_qemu(image.clone().set_l2_entry(0, l2));
}

/// An overlay with subclusters of 512 bytes (clusters of 16 KiB) on `base.raw`, whose first cluster is
/// full of the byte 7.
fn subclusters(scratch: &Scratch) -> Patch {
    let path = scratch.path("extended.qcow2");
    scratch.file("base.raw", &base());
    qemu::overlay(&path, "base.raw", "raw", "cluster_size=16k,extended_l2=on", "");
    qemu_io("qcow2", &path, &["write -P 7 0 16k"]);
    let image = Patch::open(&path);
    assert_eq!(image.u64(image.l2_entry_at(0) + 8), 0xffff_ffff, "all allocated");
    image
}

#[test]
fn trap_61_low_bits_allocate_high_bits_zero_least_significant_first() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = subclusters(&scratch);
    // Subcluster 0 data, 1 zero, 2 from the base, 31 zero.
    let content = reads(image.set_subclusters(0, 1 | 0b10 << 32 | 1 << 63));
    assert_bytes!(content[..512], [7; 512]);
    assert!(is_zero(&content[512..1024]));
    assert_bytes!(content[1024..31 * 512], base()[1024..31 * 512]);
    assert!(is_zero(&content[31 * 512..32 * 512]));
    let mut random = fixtures::pattern::Random::new(61);
    for _ in 0..8 {
        let (alloc, zero) = (random.next_u64() >> 32, random.next_u64() >> 32);
        reads(image.set_subclusters(0, alloc | (zero & !alloc) << 32));
    }
}

#[test]
fn trap_62_a_subcluster_both_allocated_and_zero_spoils_the_whole_entry() {
    needs_qemu!();
    let scratch = Scratch::new();
    for subcluster in [0, 1, 31] {
        let mut image = subclusters(&scratch);
        refuses(image.set_subclusters(0, 0xffff_ffff | 1 << (32 + subcluster)));
    }
    // The disk ends before the bad subcluster, which still spoils what the disk does have.
    let mut image = subclusters(&scratch);
    image.set_subclusters(0, 0xffff_ffff | 1 << 63);
    refuses(image.set_u64(field::SIZE, 1024));
}

#[test]
fn trap_63_allocated_subclusters_need_an_offset_and_zero_ones_do_not() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = subclusters(&scratch);
    let content = reads(image.set_l2_entry(0, 0).set_subclusters(0, 0b101 << 32));
    assert!(is_zero(&content[..512]) && is_zero(&content[1024..1536]));
    assert_bytes!(content[512..1024], base()[512..1024]);
    refuses(image.set_subclusters(0, 1));
}

#[test]
fn trap_64_an_offset_with_an_empty_bitmap_reads_the_backing_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = subclusters(&scratch);
    assert_bytes!(reads(image.set_subclusters(0, 0)), base());
}

#[test]
fn trap_65_bit_0_is_not_the_zero_flag_with_subclusters() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = subclusters(&scratch);
    let at = image.l2_entry_at(0);
    assert_bytes!(reads(image.or_u64(at, 1))[..16 << 10], [7; 16 << 10]);
    let mut image = subclusters(&scratch);
    assert_bytes!(reads(image.set_l2_entry(0, 1).set_subclusters(0, 0)), base());
}

#[test]
fn trap_66_a_compressed_entry_with_a_bitmap() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = subclusters(&scratch);
    qemu_io("qcow2", &image.path, &["write -c -P 9 16k 16k"]);
    let image = Patch::open(&image.path);
    assert_bytes!(reads(&image)[16 << 10..32 << 10], [9; 16 << 10]);
    for bitmap in [1, 1 << 32, 1 | 1 << 32, 0xffff_ffff] {
        common::like_qemu(image.clone().set_subclusters(16 << 10, bitmap));
    }
}

#[test]
fn trap_33_unaligned_offsets_with_subclusters() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = subclusters(&scratch);
    let at = image.l2_entry_at(0);
    refuses(image.or_u64(at, 512));
    common::like_qemu(image.set_subclusters(0, 0));
    common::like_qemu(image.set_subclusters(0, 0xffff_ffff << 32));
}
