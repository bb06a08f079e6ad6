#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use super::*;
use crate::ErrorKind;

#[test]
fn tables_are_big_endian_and_a_partial_entry_is_ignored() {
    let bytes = [0, 0, 0, 0, 0, 0, 0, 1, 0x80, 0, 0, 0, 0, 5, 0, 0, 0xff, 0xff];
    assert_eq!(decode_table(&bytes), [1, 0x8000_0000_0005_0000]);
    assert_eq!(encode_table(&[1, 0x8000_0000_0005_0000]), bytes[..16]);
}

#[test]
fn trap_39_extended_entries_are_16_bytes_wide() {
    let mut table = encode_table(&[1, 2, 3, 4]);
    let (standard, extended) =
        (Geometry::new(16, false).unwrap(), Geometry::new(16, true).unwrap());
    assert_eq!(raw_l2_entry(&table, 1, standard), raw(2, 0));
    assert_eq!(raw_l2_entry(&table, 1, extended), raw(3, 4));
    set_raw_l2_entry(&mut table, 0, raw(9, 7), standard).unwrap();
    set_raw_l2_entry(&mut table, 1, raw(5, 6), extended).unwrap();
    assert_eq!(decode_table(&table), [9, 2, 5, 6]);
}

#[test]
fn trap_36_entries_beyond_the_end_of_the_table_are_empty() {
    let mut table = encode_table(&[1, 2, 3]);
    let extended = Geometry::new(16, true).unwrap();
    assert_eq!(raw_l2_entry(&table, 1, extended), raw(3, 0));
    assert_eq!(raw_l2_entry(&table, u64::MAX, extended), raw(0, 0));
    // Half an entry is not there either.
    for index in [1, 2, 3, u64::MAX / 16, u64::MAX] {
        let error = set_raw_l2_entry(&mut table, index, raw(9, 9), extended).unwrap_err();
        assert_eq!((error.kind(), error.place().index), (ErrorKind::Usage, Some(index)));
    }
    assert_eq!(decode_table(&table), [1, 2, 3]);
}

fn raw(word: u64, bitmap: u64) -> RawL2Entry {
    RawL2Entry { word, bitmap }
}
