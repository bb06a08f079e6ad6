#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use super::*;
use crate::ErrorKind;

#[test]
fn trap_43_the_offset_has_62_minus_cluster_bits_minus_8_bits() {
    for (cluster_bits, offset_bits) in [(9, 61), (12, 58), (16, 54), (21, 49)] {
        // The highest offset, and the lowest bit of the count just above it.
        let span = CompressedSpan::decode((1 << offset_bits) - 1, cluster_bits);
        assert_eq!(span, CompressedSpan { host: HostOffset((1 << offset_bits) - 1), len: 1 });
        let span = CompressedSpan::decode(1 << offset_bits, cluster_bits);
        assert_eq!(span, CompressedSpan { host: HostOffset(0), len: 1024 });
    }
}

#[test]
fn trap_44_the_length_counts_additional_sectors_from_the_start_of_the_first() {
    let entry = 3 << 54 | 0x50123;
    let span = CompressedSpan::decode(entry, 16);
    assert_eq!(span, CompressedSpan { host: HostOffset(0x50123), len: 4 * 512 - 0x123 });
    // The largest count of 64 KiB clusters, with both flag bits, which do not count.
    let span = CompressedSpan::decode(u64::MAX, 16);
    assert_eq!(span, CompressedSpan { host: HostOffset((1 << 54) - 1), len: 256 * 512 - 511 });
}

#[test]
fn a_descriptor_covers_its_data_and_no_further_sector() {
    for cluster_bits in 9..=21 {
        for host in [512, 513, 0x501ff, 0x7_0000_0000] {
            for len in [1, 2, 511, (1 << cluster_bits) - 1, 1 << cluster_bits] {
                let entry = CompressedSpan::encode(HostOffset(host), len, cluster_bits).unwrap();
                let span = CompressedSpan::decode(entry, cluster_bits);
                assert_eq!((span.host.0, entry >> 62), (host, 1));
                assert!(span.len >= len && span.len - len < 512, "{span:?} for {len}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_the_fields_is_refused() {
    let kind =
        |host, len, bits| CompressedSpan::encode(HostOffset(host), len, bits).unwrap_err().kind();
    // Clusters of 2 MiB leave 49 bits of offset, those of 512 bytes more than files may have.
    assert_eq!(kind(1 << 49, 1, 21), ErrorKind::Limit);
    assert_eq!(kind(1 << 56, 1, 9), ErrorKind::Limit);
    assert!(CompressedSpan::encode(HostOffset((1 << 56) - 1), 1, 9).is_ok());
    // Clusters of 512 bytes have one bit of count: two sectors.
    assert!(CompressedSpan::encode(HostOffset(512), 1024, 9).is_ok());
    assert_eq!(kind(512, 1025, 9), ErrorKind::Limit);
    assert_eq!(kind(512, 0, 16), ErrorKind::Usage);
    assert_eq!(kind(512, u64::MAX, 16), ErrorKind::Usage);
}
