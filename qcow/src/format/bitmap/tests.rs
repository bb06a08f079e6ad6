#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use super::*;
use crate::ErrorKind;

fn geometry() -> Geometry {
    Geometry::new(16, false).unwrap()
}

fn sample() -> BitmapEntry {
    BitmapEntry {
        table_offset: HostOffset(0x90000),
        table_entries: 1,
        flags: BitmapFlags::AUTO,
        kind: BitmapEntry::DIRTY_TRACKING,
        granularity_bits: 16,
        extra: Vec::new(),
        name: b"backup-1".to_vec(),
    }
}

#[track_caller]
fn assert_refused(entry: &BitmapEntry, kind: ErrorKind) {
    let error = entry.check(geometry(), 1 << 30).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(error.place().structure, Some("bitmap directory"));
}

#[test]
fn an_entry_has_qemus_layout() {
    let bytes = [
        &[0, 0, 0, 0, 0, 9, 0, 0][..],
        &[0, 0, 0, 1],
        &[0, 0, 0, 2],
        &[1],
        &[16],
        &[0, 8],
        &[0, 0, 0, 0],
        b"backup-1",
    ]
    .concat();
    assert_eq!(BitmapEntry::parse(&bytes).unwrap(), (sample(), 32));
    assert_eq!(sample().to_bytes().unwrap(), bytes);
    sample().check(geometry(), 1 << 30).unwrap();
}

#[test]
fn entries_follow_each_other_padded_to_8_bytes() {
    let first = BitmapEntry { name: b"odd".to_vec(), extra: b"extra".to_vec(), ..sample() };
    let bytes = [first.to_bytes().unwrap(), sample().to_bytes().unwrap()].concat();
    let (parsed, consumed) = BitmapEntry::parse(&bytes).unwrap();
    assert_eq!((parsed, consumed), (first, 32));
    assert_eq!(BitmapEntry::parse(&bytes[consumed..]).unwrap().0, sample());
}

#[test]
fn an_entry_cut_short_is_corrupt() {
    let bytes = BitmapEntry { name: b"odd".to_vec(), ..sample() }.to_bytes().unwrap();
    for len in 0..bytes.len() {
        let error = BitmapEntry::parse(&bytes[..len]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{len} bytes");
    }
}

#[test]
fn trap_144_nothing_is_reserved_for_extra_data_that_is_not_there() {
    let mut bytes = sample().to_bytes().unwrap();
    bytes[20..24].fill(0xff);
    assert_eq!(BitmapEntry::parse(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn trap_97_extra_data_and_further_flags_are_refused_as_qemu_does() {
    let known = BitmapFlags::IN_USE | BitmapFlags::AUTO;
    BitmapEntry { flags: known, ..sample() }.check(geometry(), 1 << 30).unwrap();
    for flags in [BitmapFlags::EXTRA_DATA_COMPATIBLE, BitmapFlags::from_bits_retain(1 << 31)] {
        let entry = BitmapEntry { flags, ..sample() };
        assert_refused(&entry, ErrorKind::Unsupported);
        assert_eq!(BitmapEntry::parse(&entry.to_bytes().unwrap()).unwrap().0, entry);
    }
    assert_refused(&BitmapEntry { extra: vec![0], ..sample() }, ErrorKind::Unsupported);
    assert_refused(&BitmapEntry { kind: 2, ..sample() }, ErrorKind::Unsupported);
}

#[test]
fn names_granularities_and_tables_are_bounded() {
    let accepted = |entry: BitmapEntry| entry.check(geometry(), 1 << 20).unwrap();
    accepted(BitmapEntry { name: vec![b'x'; 1023], ..sample() });
    accepted(BitmapEntry { granularity_bits: 9, ..sample() });
    accepted(BitmapEntry { granularity_bits: 31, ..sample() });
    accepted(BitmapEntry { table_entries: 8192, ..sample() });
    assert_refused(&BitmapEntry { name: vec![b'x'; 1024], ..sample() }, ErrorKind::Corrupt);
    assert_refused(&BitmapEntry { name: vec![], ..sample() }, ErrorKind::Corrupt);
    assert_refused(&BitmapEntry { granularity_bits: 8, ..sample() }, ErrorKind::Corrupt);
    assert_refused(&BitmapEntry { granularity_bits: 32, ..sample() }, ErrorKind::Corrupt);
    assert_refused(&BitmapEntry { table_entries: 0, ..sample() }, ErrorKind::Corrupt);
    assert_refused(&BitmapEntry { table_entries: 8193, ..sample() }, ErrorKind::Limit);
    assert_refused(&BitmapEntry { table_entries: u32::MAX, ..sample() }, ErrorKind::Limit);
    assert_refused(&BitmapEntry { table_offset: HostOffset(0), ..sample() }, ErrorKind::Corrupt);
    let unaligned = HostOffset(0x90200);
    assert_refused(&BitmapEntry { table_offset: unaligned, ..sample() }, ErrorKind::Corrupt);
}

#[test]
fn trap_99_a_bitmap_too_short_for_the_disk_is_valid_only_while_in_use() {
    // One cluster of bits for 512 bytes each covers 256 MiB.
    let entry = BitmapEntry { granularity_bits: 9, ..sample() };
    entry.check(geometry(), 256 << 20).unwrap();
    let error = entry.check(geometry(), (256 << 20) + 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let in_use = BitmapEntry { flags: BitmapFlags::IN_USE, ..entry };
    in_use.check(geometry(), u64::MAX).unwrap();
}

#[test]
fn trap_93_table_entries_are_zeros_ones_or_a_cluster() {
    for (raw, entry) in [
        (0, BitmapTableEntry::AllZeros),
        (1, BitmapTableEntry::AllOnes),
        (0x00ff_ffff_ffff_0000, BitmapTableEntry::Stored(HostOffset(0x00ff_ffff_ffff_0000))),
    ] {
        assert_eq!(BitmapTableEntry::decode(raw, geometry()).unwrap(), entry);
        assert_eq!(entry.encode(), raw);
    }
}

#[test]
fn trap_94_invalid_table_entries_are_refused() {
    for (raw, part) in [
        (0x90001, "both an offset and the all-ones bit"),
        (0x90200, "multiple of the cluster size"),
        (2, "reserved"),
        (1 << 56, "reserved"),
        (0x90000 | 1 << 63, "reserved"),
    ] {
        let error = BitmapTableEntry::decode(raw, geometry()).unwrap_err();
        assert_eq!(error.place().structure, Some("bitmap table"));
        assert!(error.message().contains(part), "{error} lacks {part:?}");
    }
}
