#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use super::*;
use crate::ErrorKind;

fn sample() -> Snapshot {
    Snapshot {
        l1_table_offset: HostOffset(0x40000),
        l1_entries: 1,
        id: b"1".to_vec(),
        name: b"s1".to_vec(),
        date_sec: 0x6b02_fc84,
        date_nsec: 0x3a06_1870,
        vm_clock_nsec: 7,
        vm_state_size: 0,
        disk_size: Some(1 << 20),
        icount: Some(0),
        unknown_extra: Vec::new(),
    }
}

/// An entry with this extra data, VM state size 5 in the fixed part, id "1" and name "s1".
fn entry(extra: &[u8]) -> Vec<u8> {
    let mut fixed = vec![0; 40];
    fixed[13] = 1;
    fixed[15] = 2;
    fixed[35] = 5;
    fixed[38] = (extra.len() >> 8) as u8;
    fixed[39] = extra.len() as u8;
    [&fixed, extra, b"1s1"].concat()
}

fn parse(bytes: &[u8]) -> Snapshot {
    Snapshot::parse(bytes, Version::V3).unwrap().0
}

#[test]
fn an_entry_has_qemus_layout() {
    // What `qemu-img snapshot -c s1` of QEMU 10.0 wrote, with another clock (trap 83).
    let bytes = [
        &[0, 0, 0, 0, 0, 4, 0, 0][..],
        &[0, 0, 0, 1],
        &[0, 1],
        &[0, 2],
        &[0x6b, 0x02, 0xfc, 0x84],
        &[0x3a, 0x06, 0x18, 0x70],
        &[0, 0, 0, 0, 0, 0, 0, 7],
        &[0, 0, 0, 0],
        &[0, 0, 0, 24],
        &[0; 8],
        &[0, 0, 0, 0, 0, 0x10, 0, 0],
        &[0; 8],
        b"1s1",
        &[0; 5],
    ]
    .concat();
    assert_eq!(Snapshot::parse(&bytes, Version::V3).unwrap(), (sample(), 72));
    assert_eq!(sample().to_bytes().unwrap(), bytes);
}

#[test]
fn trap_80_entries_are_padded_to_8_bytes_of_anything() {
    let mut bytes = sample().to_bytes().unwrap();
    let len = bytes.len();
    bytes[len - 5..].fill(0xee);
    let second = Snapshot { id: b"2".to_vec(), ..sample() };
    bytes.extend(second.to_bytes().unwrap());
    let (first, consumed) = Snapshot::parse(&bytes, Version::V3).unwrap();
    assert_eq!((first, consumed), (sample(), len));
    assert_eq!(Snapshot::entry_len(&bytes[..40]).unwrap(), len);
    assert_eq!(parse(&bytes[consumed..]), second);
}

#[test]
fn trap_80_the_last_entry_may_lack_its_padding() {
    let bytes = sample().to_bytes().unwrap();
    let (snapshot, consumed) = Snapshot::parse(&bytes[..bytes.len() - 5], Version::V3).unwrap();
    assert_eq!((snapshot, consumed), (sample(), bytes.len()));
}

#[test]
fn trap_81_without_extra_data_there_is_no_disk_size() {
    for len in [0, 8, 15] {
        let (snapshot, consumed) = Snapshot::parse(&entry(&vec![0; len]), Version::V2).unwrap();
        assert_eq!((snapshot.disk_size, snapshot.icount), (None, None));
        assert_eq!(consumed, (43 + len).next_multiple_of(8));
        assert_eq!(snapshot.name, b"s1");
        assert!(snapshot.is_incomplete(Version::V3) && !snapshot.is_incomplete(Version::V2));
    }
    let whole = parse(&entry(&[0; 16]));
    assert_eq!((whole.disk_size, whole.icount), (Some(0), None));
    assert!(!whole.is_incomplete(Version::V3));
}

#[test]
fn trap_82_the_64_bit_vm_state_size_wins() {
    assert_eq!(parse(&entry(&[])).vm_state_size, 5);
    assert_eq!(parse(&entry(&[0; 7])).vm_state_size, 5);
    assert_eq!(parse(&entry(&[0, 0, 0, 1, 0, 0, 0, 0])).vm_state_size, 1 << 32);
}

#[test]
fn trap_82_a_large_vm_state_is_not_cut_to_32_bits() {
    let snapshot = Snapshot { vm_state_size: (1 << 32) + 5, ..sample() };
    let bytes = snapshot.to_bytes().unwrap();
    assert_eq!(bytes[32..36], [0; 4]);
    assert_eq!(parse(&bytes), snapshot);
}

#[test]
fn trap_83_an_instruction_count_of_all_ones_is_none() {
    assert_eq!(parse(&entry(&[[0; 16].as_slice(), &[0xff; 8]].concat())).icount, None);
    assert_eq!(parse(&entry(&[0; 24])).icount, Some(0));
    assert_eq!(parse(&entry(&[0; 23])).icount, None);
}

#[test]
fn unknown_extra_data_is_kept() {
    let snapshot = Snapshot { icount: None, unknown_extra: vec![9; 1000], ..sample() };
    assert_eq!(parse(&snapshot.to_bytes().unwrap()), snapshot);
    let more = Snapshot { unknown_extra: vec![9; 1001], ..sample() };
    assert_eq!(more.to_bytes().unwrap_err().kind(), ErrorKind::Limit);
    let no_size = Snapshot { disk_size: None, ..snapshot };
    assert_eq!(no_size.to_bytes().unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn trap_86_ids_and_names_may_be_empty_long_or_not_text() {
    for (id, name) in [(vec![], vec![]), (vec![0xff; 300], vec![b'n'; 65535])] {
        let snapshot = Snapshot { id, name, ..sample() };
        assert_eq!(parse(&snapshot.to_bytes().unwrap()), snapshot);
    }
    let longer = Snapshot { name: vec![b'n'; 65536], ..sample() };
    assert_eq!(longer.to_bytes().unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn trap_144_nothing_is_reserved_for_extra_data_beyond_its_limit() {
    let mut bytes = entry(&[]);
    bytes[36..40].copy_from_slice(&[0, 0, 4, 1]);
    let error = Snapshot::parse(&bytes, Version::V3).unwrap_err();
    assert_eq!((error.kind(), error.place().structure), (ErrorKind::Limit, Some("snapshot table")));
    assert_eq!(Snapshot::entry_len(&bytes).unwrap_err().kind(), ErrorKind::Limit);
    bytes[36..40].copy_from_slice(&[0, 0, 4, 0]);
    assert_eq!(Snapshot::entry_len(&bytes).unwrap(), 1072);
}

#[test]
fn an_entry_cut_short_is_corrupt() {
    let bytes = sample().to_bytes().unwrap();
    for len in 0..bytes.len() - 5 {
        let error = Snapshot::parse(&bytes[..len], Version::V3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{len} bytes");
    }
}

#[test]
fn trap_140_the_l1_table_of_a_snapshot_is_bounded() {
    let geometry = Geometry::new(16, false).unwrap();
    let check = |offset, entries| {
        let snapshot =
            Snapshot { l1_table_offset: HostOffset(offset), l1_entries: entries, ..sample() };
        snapshot.check_l1(geometry).map_err(|error| error.kind())
    };
    assert_eq!(check(0x40000, 1 << 22), Ok(()));
    assert_eq!(check(0x40000, (1 << 22) + 1), Err(ErrorKind::Limit));
    assert_eq!(check(0x40200, 1), Err(ErrorKind::Corrupt));
    assert_eq!(check(u64::MAX - 0xffff, 1), Err(ErrorKind::Corrupt));
}
