#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use super::*;
use crate::ErrorKind;

fn width(order: u32) -> RefcountWidth {
    RefcountWidth::new(order).unwrap()
}

#[test]
fn trap_68_narrow_refcounts_start_at_the_least_significant_bit() {
    let block = [0b1110_0100, 0x21];
    let values = |order, count| (0..count).map(|n| width(order).get(&block, n).unwrap()).collect();
    let bits: Vec<u64> = values(0, 8);
    assert_eq!(bits, [0, 0, 1, 0, 0, 1, 1, 1]);
    let pairs: Vec<u64> = values(1, 4);
    assert_eq!(pairs, [0, 1, 2, 3]);
    let nibbles: Vec<u64> = values(2, 4);
    assert_eq!(nibbles, [4, 14, 1, 2]);
}

#[test]
fn trap_68_wide_refcounts_are_big_endian() {
    let block = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
    assert_eq!(width(3).get(&block, 1).unwrap(), 0x23);
    assert_eq!(width(4).get(&block, 1).unwrap(), 0x4567);
    assert_eq!(width(5).get(&block, 1).unwrap(), 0x89ab_cdef);
    assert_eq!(width(6).get(&block, 0).unwrap(), 0x0123_4567_89ab_cdef);
}

/// Every refcount of a block of so many bytes is looked at after every change, and each is changed. Under Miri that
/// takes minutes, so there the block is shorter, and each seventh is changed.
const BYTES: usize = if cfg!(miri) { 8 } else { 32 };
const STEP: usize = if cfg!(miri) { 7 } else { 1 };

#[test]
fn setting_a_refcount_changes_no_other() {
    for order in 0..=6 {
        let width = width(order);
        let count = BYTES as u64 * 8 / u64::from(width.bits());
        let old = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) & width.max();
        let mut block = [0; BYTES];
        (0..count).for_each(|n| width.set(&mut block, n, old(n)).unwrap());
        for changed in (0..count).step_by(STEP) {
            let mut block = block;
            for value in [width.max(), 0, 1] {
                width.set(&mut block, changed, value).unwrap();
                for n in 0..count {
                    let expected = if n == changed { value } else { old(n) };
                    assert_eq!(width.get(&block, n).unwrap(), expected, "order {order}");
                }
            }
        }
    }
}

#[test]
fn trap_72_a_refcount_that_does_not_fit_is_refused_and_changes_nothing() {
    for order in 0..6 {
        let mut block = [0x5a; 8];
        let error = width(order).set(&mut block, 0, width(order).max() + 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert_eq!(block, [0x5a; 8]);
    }
    width(6).set(&mut [0; 8], 0, u64::MAX).unwrap();
}

#[test]
fn indices_beyond_the_block_are_refused() {
    for order in 0..=6 {
        let width = width(order);
        let mut block = [0; 16];
        let count = 128 / u64::from(width.bits());
        assert!(width.get(&block, count - 1).is_ok());
        for index in [count, u64::MAX] {
            assert_eq!(width.get(&block, index).unwrap_err().place().index, Some(index));
            assert_eq!(width.set(&mut block, index, 1).unwrap_err().kind(), ErrorKind::Usage);
        }
    }
}

#[test]
fn a_block_is_one_cluster_of_refcounts() {
    let geometry = Geometry::new(16, false).unwrap();
    assert_eq!(width(0).entries_per_block(geometry), 524_288);
    assert_eq!(width(4).entries_per_block(geometry), 32_768);
    assert_eq!(width(6).entries_per_block(geometry), 8_192);
    assert_eq!(width(4).entries_per_block(Geometry::new(9, false).unwrap()), 256);
    assert_eq!(RefcountWidth::new(7).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn trap_69_an_empty_table_entry_has_no_block() {
    assert_eq!(RefcountTableEntry(0x1ff).block_offset(), None);
    assert_eq!(RefcountTableEntry(0x1ff).reserved(), 0x1ff);
    let entry = RefcountTableEntry(0xffff_ffff_ffff_fe00);
    assert_eq!(entry.block_offset(), Some(HostOffset(0xffff_ffff_ffff_fe00)));
    assert_eq!(entry.reserved(), 0);
}

#[test]
fn the_next_refcount_that_is_zero_or_is_not_is_found_from_everywhere() {
    for order in 0..=6 {
        let width = width(order);
        let count = BYTES as u64 * 8 / u64::from(width.bits());
        for pattern in [0, 1, 0b1000_0100, 0x00ff_0f01, 0xffff_fffe, u64::MAX] {
            let mut block = [0; BYTES];
            (0..count).filter(|n| pattern >> (n % 32) & 1 == 1).for_each(|n| {
                width.set(&mut block, n, 1 << (n % u64::from(width.bits()).min(63))).unwrap()
            });
            for (from, zero) in (0..=count).step_by(STEP).flat_map(|n| [(n, true), (n, false)]) {
                let is = |n: &u64| (width.get(&block, *n).unwrap() == 0) == zero;
                let found = width.find(&block, from, zero);
                assert_eq!(found, (from..count).find(is), "order {order}, from {from}");
            }
        }
    }
}
