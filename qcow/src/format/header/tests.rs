#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use super::*;
use crate::ErrorKind;

/// A header that QEMU would open: 64 KiB clusters, 1 GiB, all tables in place.
pub(in crate::format) fn sample(version: Version) -> Header {
    with_cluster_bits(version, 16)
}

/// As [`sample`], with room for any test's L1 table.
pub(in crate::format) fn with_cluster_bits(version: Version, cluster_bits: u32) -> Header {
    let geometry = Geometry::new(cluster_bits, false).unwrap();
    let mut header = Header::new(version, geometry, geometry.l2_coverage() * 2);
    header.l1_entries = 2;
    header.l1_table_offset = HostOffset(3 << cluster_bits);
    header.refcount_table_offset = HostOffset(1 << cluster_bits);
    header.refcount_table_clusters = 1;
    header
}

/// `bytes` and then zeros, as many as `header` has in a cluster. By copying: Miri takes half a minute to put
/// zeros behind a vector, one by one.
pub(in crate::format) fn in_cluster(header: &Header, bytes: &[u8]) -> Vec<u8> {
    let mut cluster = vec![0; header.geometry().cluster_size() as usize];
    cluster[..bytes.len()].copy_from_slice(bytes);
    cluster
}

/// The header in the first cluster, with `bytes` written over it at `offset`.
fn patched(header: &Header, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut cluster = in_cluster(header, &header.to_bytes().unwrap());
    cluster[offset..offset + bytes.len()].copy_from_slice(bytes);
    cluster
}

#[track_caller]
fn assert_refused(cluster: &[u8], kind: ErrorKind, offset: u64, part: &str) {
    let error = Header::parse(cluster).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(error.place().structure, Some("header"), "{error}");
    assert_eq!(error.place().host_offset, Some(offset), "{error}");
    assert!(error.message().contains(part), "{error} lacks {part:?}");
}

#[track_caller]
fn assert_field_refused(offset: usize, bytes: &[u8], kind: ErrorKind, part: &str) {
    let cluster = patched(&sample(Version::V3), offset, bytes);
    assert_refused(&cluster, kind, offset as u64, part);
}

#[test]
fn headers_of_both_versions_come_back() {
    for version in [Version::V2, Version::V3] {
        let mut header = sample(version);
        header.crypt_method = CryptMethod::Aes;
        header.snapshot_count = 3;
        header.snapshots_offset = HostOffset(0x50000);
        header.backing_name_offset = 0x200;
        header.backing_name_len = 17;
        assert_eq!(Header::parse(&header.to_bytes().unwrap()).unwrap(), header);
    }
}

#[test]
fn a_header_has_qemus_layout() {
    // What qemu-img 10.0 writes for `create -f qcow2 disk.qcow2 1G`.
    let bytes: Vec<u8> = [
        &b"QFI\xfb\0\0\0\x03"[..],
        &[0; 12],
        &[0, 0, 0, 16],
        &[0, 0, 0, 0, 0x40, 0, 0, 0],
        &[0; 4],
        &[0, 0, 0, 2],
        &[0, 0, 0, 0, 0, 3, 0, 0],
        &[0, 0, 0, 0, 0, 1, 0, 0],
        &[0, 0, 0, 1],
        &[0; 12],
        &[0; 24],
        &[0, 0, 0, 4],
        &[0, 0, 0, 112],
        &[0; 8],
    ]
    .concat();
    assert_eq!(Header::parse(&bytes).unwrap(), sample(Version::V3));
    assert_eq!(sample(Version::V3).to_bytes().unwrap(), bytes);
}

#[test]
fn peek_tells_version_and_cluster_size_from_24_bytes() {
    let bytes = with_cluster_bits(Version::V2, 21).to_bytes().unwrap();
    assert_eq!(Header::peek(&bytes[..Header::PEEK_BYTES]).unwrap(), (Version::V2, 21));
    for len in 0..Header::PEEK_BYTES {
        let kind = if len < 4 { ErrorKind::WrongFormat } else { ErrorKind::Corrupt };
        assert_eq!(Header::peek(&bytes[..len]).unwrap_err().kind(), kind);
    }
}

#[test]
fn what_is_no_qcow2_image_is_named_so() {
    for bytes in [&b""[..], b"QFI", b"KDMV\0\0\0\x01", &[0; 512]] {
        let error = Header::peek(bytes).unwrap_err();
        assert!(error.message().starts_with("not a QCOW2 image"), "{error}");
        assert_eq!(error.kind(), ErrorKind::WrongFormat);
    }
}

#[test]
fn only_versions_2_and_3_are_read() {
    for version in [0, 1, 4] {
        assert_field_refused(4, &[0, 0, 0, version], ErrorKind::Unsupported, "expected 2 or 3");
    }
}

#[test]
fn cluster_bits_are_9_to_21() {
    for bits in [9, 21] {
        let header = with_cluster_bits(Version::V3, bits);
        assert_eq!(Header::parse(&patched(&header, 0, b"Q")).unwrap().cluster_bits, bits);
    }
    for bits in [0, 8, 22, 255] {
        assert_field_refused(20, &[0, 0, 0, bits], ErrorKind::Corrupt, "expected 9 to 21");
    }
}

#[test]
fn trap_3_odd_header_lengths_are_accepted_and_their_tail_is_kept() {
    for length in [105, 106, 108, 112, 113, 200, 512] {
        let mut header = with_cluster_bits(Version::V3, 9);
        header.header_length = length;
        header.unknown_tail = (0..length - 105).map(|n| n as u8).collect();
        let bytes = header.to_bytes().unwrap();
        assert_eq!(bytes.len(), length as usize);
        assert_eq!(Header::parse(&patched(&header, 0, b"Q")).unwrap(), header);
    }
}

#[test]
fn header_length_is_104_to_the_cluster_size() {
    assert_field_refused(100, &[0, 0, 0, 103], ErrorKind::Corrupt, "at least 104");
    assert_field_refused(100, &[0, 1, 0, 1], ErrorKind::Corrupt, "at most the cluster size");
}

#[test]
fn trap_4_a_header_of_104_bytes_has_no_compression_type() {
    let mut header = sample(Version::V3);
    header.header_length = 104;
    header.unknown_tail.clear();
    // Byte 104 belongs to the first extension here.
    let parsed = Header::parse(&patched(&header, 104, &[0xe2])).unwrap();
    assert_eq!(parsed.compression_type, CompressionType::Zlib);
    assert_eq!(parsed, header);
}

#[test]
fn trap_5_compression_type_and_its_bit_must_agree() {
    let mut zstd = sample(Version::V3);
    zstd.compression_type = CompressionType::Zstd;
    zstd.incompatible = Incompatible::COMPRESSION_TYPE;
    assert_eq!(Header::parse(&zstd.to_bytes().unwrap()).unwrap(), zstd);
    assert_refused(&patched(&zstd, 104, &[0]), ErrorKind::Corrupt, 104, "is set");
    assert_field_refused(104, &[1], ErrorKind::Corrupt, "is not set");
    assert_field_refused(104, &[2], ErrorKind::Unsupported, "expected 0 (zlib) or 1 (zstd)");
    zstd.incompatible = Incompatible::empty();
    assert_eq!(zstd.to_bytes().unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn traps_14_15_what_follows_a_version_2_header_is_not_header() {
    let header = sample(Version::V2);
    let parsed = Header::parse(&patched(&header, 72, &[0xff; 40])).unwrap();
    assert_eq!(parsed, header);
    assert_eq!((parsed.refcount_order, parsed.header_length), (4, 72));
    assert!(parsed.incompatible.is_empty());
}

#[test]
fn trap_16_encryption_is_reported() {
    for (number, method) in [(1, CryptMethod::Aes), (2, CryptMethod::Luks)] {
        let parsed = Header::parse(&patched(&sample(Version::V3), 32, &[0, 0, 0, number]));
        assert_eq!(parsed.unwrap().crypt_method, method);
    }
    assert_field_refused(32, &[0, 0, 0, 3], ErrorKind::Unsupported, "encryption method is 3");
}

#[test]
fn traps_19_23_unknown_feature_bits_are_kept() {
    let mut header = sample(Version::V3);
    header.incompatible = Incompatible::DIRTY | Incompatible::from_bits_retain(1 << 40);
    header.compatible = Compatible::LAZY_REFCOUNTS | Compatible::from_bits_retain(1 << 63);
    header.autoclear = Autoclear::from_bits_retain(1 << 7);
    let parsed = Header::parse(&header.to_bytes().unwrap()).unwrap();
    assert_eq!(parsed, header);
    assert_eq!(parsed.incompatible.unknown(), 1 << 40);
    assert_eq!(parsed.compatible.unknown(), 1 << 63);
    assert_eq!(parsed.autoclear.unknown(), 1 << 7);
}

#[test]
fn extended_l2_needs_clusters_of_16_kib() {
    let mut header = with_cluster_bits(Version::V3, 14);
    header.incompatible = Incompatible::EXTENDED_L2;
    header.size = header.geometry().l2_coverage();
    assert!(Header::parse(&header.to_bytes().unwrap()).unwrap().geometry().extended_l2());
    let small = patched(&with_cluster_bits(Version::V3, 13), 79, &[0x10]);
    assert_refused(&small, ErrorKind::Corrupt, 20, "at least 16384 bytes");
}

#[test]
fn refcount_order_is_at_most_6() {
    let parsed = Header::parse(&patched(&sample(Version::V3), 96, &[0, 0, 0, 6])).unwrap();
    assert_eq!(parsed.refcounts().bits(), 64);
    assert_field_refused(96, &[0, 0, 0, 7], ErrorKind::Corrupt, "expected 0 to 6");
}

#[test]
fn trap_24_a_refcount_table_without_clusters_is_refused() {
    assert_field_refused(56, &[0; 4], ErrorKind::Corrupt, "0 clusters");
}

#[test]
fn trap_25_the_l1_table_may_be_longer_than_needed_but_not_shorter() {
    assert!(Header::parse(&patched(&sample(Version::V3), 36, &[0, 0, 1, 0])).is_ok());
    assert_field_refused(
        36,
        &[0, 0, 0, 1],
        ErrorKind::Corrupt,
        "has 1 entries, expected at least 2",
    );
    let mut empty = sample(Version::V3);
    (empty.size, empty.l1_entries) = (0, 0);
    assert_eq!(Header::parse(&empty.to_bytes().unwrap()).unwrap(), empty);
}

#[test]
fn trap_26_the_virtual_size_is_rounded_down_to_sectors() {
    let mut header = sample(Version::V3);
    header.size = 1_049_087;
    let parsed = Header::parse(&header.to_bytes().unwrap()).unwrap();
    assert_eq!((parsed.size, parsed.virtual_size()), (1_049_087, 1_048_576));
    header.size = 511;
    assert_eq!(header.virtual_size(), 0);
}

#[test]
fn trap_140_tables_are_bounded() {
    // 8 MiB of refcount table are 128 clusters; 32 MiB of L1 table are 2^22 entries.
    let most = patched(&sample(Version::V3), 56, &[0, 0, 0, 128]);
    assert!(Header::parse(&most).is_ok());
    let more = patched(&sample(Version::V3), 56, &[0, 0, 0, 129]);
    assert_refused(&more, ErrorKind::Limit, 48, "at most 128");
    assert!(Header::parse(&patched(&sample(Version::V3), 36, &[0, 0x40, 0, 0])).is_ok());
    let more = patched(&sample(Version::V3), 36, &[0, 0x40, 0, 1]);
    assert_refused(&more, ErrorKind::Limit, 40, "at most 4194304");
    assert!(Header::parse(&patched(&sample(Version::V3), 60, &[0, 1, 0, 0])).is_ok());
    let more = patched(&sample(Version::V3), 60, &[0, 1, 0, 1]);
    assert_refused(&more, ErrorKind::Limit, 64, "at most 65536");
}

#[test]
fn trap_141_tables_that_end_beyond_63_bits_are_refused() {
    // The last cluster below 2^63 has room for the two entries of the L1 table, but a refcount
    // table of one cluster ends just beyond the largest file.
    let last = b"\x7f\xff\xff\xff\xff\xff\0\0";
    assert!(Header::parse(&patched(&sample(Version::V3), 40, last)).is_ok());
    assert_field_refused(48, last, ErrorKind::Corrupt, "the refcount table");
    let wraps = b"\xff\xff\xff\xff\xff\xff\0\0";
    assert_field_refused(40, wraps, ErrorKind::Corrupt, "the L1 table");
    assert_field_refused(48, wraps, ErrorKind::Corrupt, "the refcount table");
    assert_field_refused(64, wraps, ErrorKind::Corrupt, "the snapshot table");
}

#[test]
fn trap_141_a_size_near_64_bits_is_refused() {
    assert_refused(
        &patched(&sample(Version::V3), 24, &[0xff; 8]),
        ErrorKind::Corrupt,
        36,
        "the L1 table has 2 entries",
    );
}

#[test]
fn tables_must_be_aligned_even_if_they_are_empty() {
    for field in [40, 48, 64] {
        assert_field_refused(field, &[0, 0, 0, 0, 0, 1, 2, 0], ErrorKind::Corrupt, "multiple of");
    }
}

#[test]
fn the_backing_name_starts_within_the_first_cluster() {
    let at_end = patched(&sample(Version::V3), 8, &[0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(Header::parse(&at_end).unwrap().backing_name_offset, 65536);
    assert_field_refused(8, &[0, 0, 0, 0, 0, 1, 0, 1], ErrorKind::Corrupt, "at most the cluster");
}

#[test]
fn a_header_that_cannot_be_written_is_refused() {
    let refused = |change: fn(&mut Header)| {
        let mut header = sample(Version::V2);
        change(&mut header);
        header.to_bytes().unwrap_err();
    };
    refused(|header| header.autoclear = Autoclear::BITMAPS);
    refused(|header| header.refcount_order = 5);
    refused(|header| header.compression_type = CompressionType::Zstd);
    refused(|header| header.header_length = 104);
    refused(|header| header.unknown_tail = vec![0]);
    refused(|header| header.cluster_bits = 8);
    refused(|header| (header.version, header.header_length) = (Version::V3, 103));
}
