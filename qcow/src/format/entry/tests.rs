#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use super::*;
use crate::ErrorKind;

const COMPRESSED: u64 = 1 << 62;
const HOST: HostOffset = HostOffset(0x50000);

fn rules(extended_l2: bool) -> EntryRules {
    let geometry = Geometry::new(16, extended_l2).unwrap();
    EntryRules { geometry, version: Version::V3, data_file: false }
}

fn with_data_file(extended_l2: bool) -> EntryRules {
    EntryRules { data_file: true, ..rules(extended_l2) }
}

#[track_caller]
fn assert_entry(entry: u64, bitmap: u64, rules: &EntryRules, expected: L2Entry) {
    assert_eq!(L2Entry::decode(entry, bitmap, rules).unwrap(), expected);
}

#[track_caller]
fn assert_corrupt(entry: u64, bitmap: u64, rules: &EntryRules, part: &str) {
    let error = L2Entry::decode(entry, bitmap, rules).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.place().structure, Some("L2 table"));
    assert!(error.message().contains(part), "{error} lacks {part:?}");
}

#[test]
fn trap_28_offsets_are_bits_9_to_55() {
    assert_eq!(L1Entry(u64::MAX).offset(), HostOffset(0x00ff_ffff_ffff_fe00));
    assert_eq!(L1Entry(0x1ff).offset(), HostOffset(0));
    // With the smallest clusters every bit of the offset may be set, and bit 8 is none of them.
    let small = EntryRules { geometry: Geometry::new(9, false).unwrap(), ..rules(false) };
    let host = HostOffset(0x00ff_ffff_ffff_fe00);
    assert_entry(host.0 | 0x1fe, 0, &small, L2Entry::Data { host, copied: false });
}

#[test]
fn trap_29_compressed_comes_before_zero_and_bit_0_belongs_to_its_offset() {
    let span = CompressedSpan { host: HostOffset(0x50001), len: 511 };
    assert_entry(COMPRESSED | 0x50001, 0, &rules(false), L2Entry::Compressed(span));
    let v2 = EntryRules { version: Version::V2, ..rules(false) };
    assert_entry(COMPRESSED | 0x50001, 0, &v2, L2Entry::Compressed(span));
}

#[test]
fn trap_30_a_zero_cluster_may_keep_its_host_cluster() {
    let rules = rules(false);
    assert_entry(1, 0, &rules, L2Entry::Zero { host: None });
    assert_entry(COPIED | HOST.0 | 1, 0, &rules, L2Entry::Zero { host: Some(HOST) });
}

#[test]
fn trap_31_version_2_has_no_zero_flag() {
    let v2 = EntryRules { version: Version::V2, ..rules(false) };
    assert_corrupt(1, 0, &v2, "version 2");
    assert_corrupt(HOST.0 | 1, 0, &v2, "version 2");
    assert!(L2Entry::Zero { host: None }.encode(&v2).is_err());
}

#[test]
fn trap_32_offset_0_is_data_only_in_a_data_file_and_with_the_copied_flag() {
    let data = L2Entry::Data { host: HostOffset(0), copied: true };
    assert_entry(COPIED, 0, &rules(false), L2Entry::Unallocated);
    assert_entry(COPIED, 0, &with_data_file(false), data);
    assert_entry(0, 0, &with_data_file(false), L2Entry::Unallocated);
    assert_eq!(data.encode(&with_data_file(false)).unwrap(), (COPIED, 0));
    assert_eq!(data.encode(&rules(false)).unwrap_err().kind(), ErrorKind::Usage);
    // Extended entries follow the same rule.
    assert_entry(COPIED, u32::MAX.into(), &with_data_file(true), data);
    assert_corrupt(COPIED, u32::MAX.into(), &rules(true), "no offset");
}

#[test]
fn trap_33_an_unaligned_offset_is_an_error() {
    for extended in [false, true] {
        assert_corrupt(0x50200, 0, &rules(extended), "0x50200, expected a multiple of");
    }
    assert_corrupt(0x50201, 0, &rules(false), "0x50200, expected a multiple of");
    let geometry = rules(false).geometry;
    let error = L1Entry(0x50200).l2_table(geometry).unwrap_err();
    assert_eq!((error.kind(), error.place().structure), (ErrorKind::Corrupt, Some("L1 table")));
    let unaligned = L2Entry::Data { host: HostOffset(0x50200), copied: true };
    assert!(unaligned.encode(&rules(false)).is_err());
}

#[test]
fn trap_34_reserved_bits_are_ignored_by_reads_and_seen_by_check() {
    let entry = HOST.0 | 0x3f00_0000_0000_01fe;
    assert_entry(entry, 0, &rules(false), L2Entry::Data { host: HOST, copied: false });
    assert_eq!(
        RawL2Entry { word: entry, bitmap: 0 }.reserved(&rules(false)),
        0x3f00_0000_0000_01fe
    );
    assert_eq!(RawL2Entry { word: COPIED | HOST.0 | 1, bitmap: 0 }.reserved(&rules(false)), 0);
    assert_eq!(L1Entry(u64::MAX).reserved(), 0x7f00_0000_0000_01ff);
    let l1 = L1Entry(HOST.0 | 0x7f00_0000_0000_01ff);
    assert_eq!(l1.l2_table(rules(false).geometry).unwrap(), Some(HOST));
}

#[test]
fn trap_35_an_empty_l1_entry_has_no_l2_table() {
    for entry in [0, COPIED, 0x1ff] {
        assert!(L1Entry(entry).is_empty());
        assert_eq!(L1Entry(entry).l2_table(rules(false).geometry).unwrap(), None);
    }
}

#[test]
fn l1_entries_come_back() {
    let entry = L1Entry::new(HOST, true);
    assert_eq!((entry.0, entry.offset(), entry.copied()), (COPIED | HOST.0, HOST, true));
    assert!(!L1Entry::new(HOST, false).copied());
}

#[test]
fn trap_53_a_compressed_entry_may_have_the_copied_flag_but_gets_none() {
    let span = CompressedSpan { host: HostOffset(0x50000), len: 1024 };
    let (entry, _) = L2Entry::Compressed(span).encode(&rules(false)).unwrap();
    assert!(!RawL2Entry { word: entry, bitmap: 0 }.is_copied());
    assert_entry(
        RawL2Entry { word: entry, bitmap: 0 }.with_copied(true).word,
        0,
        &rules(false),
        L2Entry::Compressed(span),
    );
}

#[test]
fn trap_59_data_files_have_no_compressed_clusters() {
    assert_corrupt(COMPRESSED | HOST.0, 0, &with_data_file(false), "external data file");
    let span = CompressedSpan { host: HOST, len: 512 };
    assert!(L2Entry::Compressed(span).encode(&with_data_file(false)).is_err());
}

#[test]
fn trap_61_low_half_is_allocated_high_half_is_zero() {
    let expected =
        L2Entry::Subclusters { host: Some(HOST), allocated: 0b01, zero: 0b10, copied: true };
    let raw = (COPIED | HOST.0, 0x0000_0002_0000_0001);
    assert_entry(raw.0, raw.1, &rules(true), expected);
    assert_eq!(expected.encode(&rules(true)).unwrap(), raw);
}

#[test]
fn trap_62_a_subcluster_that_is_both_makes_the_entry_invalid() {
    assert_corrupt(HOST.0, 0x8000_0000_8000_0001, &rules(true), "0x80000000 are both");
    let both = L2Entry::Subclusters { host: Some(HOST), allocated: 3, zero: 2, copied: false };
    assert!(both.encode(&rules(true)).is_err());
}

#[test]
fn trap_63_without_an_offset_subclusters_may_be_zero_but_not_allocated() {
    assert_corrupt(0, 4, &rules(true), "0x00000004 are allocated");
    let zeros = L2Entry::Subclusters { host: None, allocated: 0, zero: 1, copied: false };
    assert_entry(0, 1 << 32, &rules(true), zeros);
    assert_entry(0, u64::from(u32::MAX) << 32, &rules(true), L2Entry::Zero { host: None });
    assert_entry(0, 0, &rules(true), L2Entry::Unallocated);
}

#[test]
fn trap_64_an_offset_with_an_empty_bitmap_is_space_over_the_backing_file() {
    let expected = L2Entry::Subclusters { host: Some(HOST), allocated: 0, zero: 0, copied: true };
    assert_entry(COPIED | HOST.0, 0, &rules(true), expected);
}

#[test]
fn trap_65_bit_0_is_no_zero_flag_in_extended_entries() {
    let data = L2Entry::Data { host: HOST, copied: false };
    assert_entry(HOST.0 | 1, u32::MAX.into(), &rules(true), data);
    assert_entry(1, 0, &rules(true), L2Entry::Unallocated);
}

#[test]
fn trap_66_the_bitmap_of_a_compressed_entry_is_reserved() {
    let rules = rules(true);
    let span = CompressedSpan { host: HOST, len: 512 };
    assert_entry(COMPRESSED | HOST.0, 0xff, &rules, L2Entry::Compressed(span));
    assert_eq!(RawL2Entry { word: COMPRESSED | HOST.0, bitmap: 0xff }.reserved(&rules), 0xff);
    assert_eq!(L2Entry::Compressed(span).encode(&rules).unwrap(), (COMPRESSED | HOST.0, 0));
}

#[test]
fn entries_come_back() {
    let standard = [
        L2Entry::Unallocated,
        L2Entry::Zero { host: None },
        L2Entry::Zero { host: Some(HOST) },
        L2Entry::Data { host: HOST, copied: false },
        L2Entry::Data { host: HostOffset(HOST_OFFSET_LIMIT - 65536), copied: true },
        L2Entry::Compressed(CompressedSpan { host: HostOffset(0x12345), len: 512 - 0x145 }),
    ];
    let extended = [
        L2Entry::Unallocated,
        L2Entry::Zero { host: None },
        L2Entry::Data { host: HOST, copied: true },
        L2Entry::Subclusters { host: Some(HOST), allocated: 0, zero: u32::MAX, copied: true },
        L2Entry::Subclusters { host: None, allocated: 0, zero: 7, copied: false },
    ];
    for (entries, rules) in [(&standard[..], rules(false)), (&extended[..], rules(true))] {
        for entry in entries {
            let (raw, bitmap) = entry.encode(&rules).unwrap();
            assert_entry(raw, bitmap, &rules, *entry);
            assert_eq!(RawL2Entry { word: raw, bitmap }.reserved(&rules), 0);
        }
    }
}

#[test]
fn what_an_image_cannot_express_is_not_written() {
    let beyond = L2Entry::Data { host: HostOffset(HOST_OFFSET_LIMIT), copied: true };
    assert_eq!(beyond.encode(&rules(false)).unwrap_err().kind(), ErrorKind::Limit);
    let subclusters = L2Entry::Subclusters { host: None, allocated: 0, zero: 1, copied: false };
    assert_eq!(subclusters.encode(&rules(false)).unwrap_err().kind(), ErrorKind::Usage);
}
