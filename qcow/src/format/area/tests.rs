#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use super::*;
use crate::ErrorKind;
use crate::format::Incompatible;
use crate::format::header::tests::{in_cluster, sample, with_cluster_bits};
use crate::format::{Compatible, FeatureName, Version};

fn area(version: Version) -> HeaderArea {
    HeaderArea { header: sample(version), extensions: Extensions::default(), backing_name: None }
}

fn with_extensions(version: Version, extensions: Vec<Extension>) -> HeaderArea {
    HeaderArea { extensions: Extensions(extensions), ..area(version) }
}

/// The first cluster as the file has it.
fn cluster(area: &HeaderArea) -> Vec<u8> {
    in_cluster(&area.header, &area.to_bytes().unwrap())
}

/// The first cluster of a plain image with `bytes` written over it at `offset`.
fn patched(version: Version, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut cluster = cluster(&area(version));
    cluster[offset..offset + bytes.len()].copy_from_slice(bytes);
    cluster
}

fn unknown(magic: u32, data: &[u8]) -> Extension {
    Extension::Unknown { magic, data: data.to_vec() }
}

fn format(name: &str) -> Extension {
    Extension::BackingFormat(name.into())
}

#[track_caller]
fn assert_refused(cluster: &[u8], kind: ErrorKind, part: &str) {
    let error = HeaderArea::parse(cluster).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error} lacks {part:?}");
}

#[test]
fn trap_1_a_version_2_image_has_extensions_from_byte_72() {
    let area = with_extensions(Version::V2, vec![format("qcow2")]);
    assert_eq!(area.to_bytes().unwrap()[72..76], [0xe2, 0x79, 0x2a, 0xca]);
    let parsed = HeaderArea::parse(&cluster(&area)).unwrap();
    assert_eq!(parsed.backing_format(), Some(&b"qcow2"[..]));
    assert_eq!(parsed, area);
}

#[test]
fn trap_2_extensions_start_where_the_header_ends() {
    for length in [104, 105, 108, 112, 200] {
        let mut area = with_extensions(Version::V3, vec![format("raw")]);
        area.header.header_length = length;
        area.header.unknown_tail = vec![7; length.saturating_sub(105) as usize];
        let parsed = HeaderArea::parse(&cluster(&area)).unwrap();
        assert_eq!(parsed.backing_format(), Some(&b"raw"[..]), "header length {length}");
        assert_eq!(parsed, area);
    }
}

#[test]
fn trap_3_a_header_as_long_as_the_cluster_leaves_no_room_for_extensions() {
    let mut area = area(Version::V3);
    area.header = with_cluster_bits(Version::V3, 9);
    area.header.header_length = 512;
    area.header.unknown_tail = vec![0xee; 512 - 105];
    assert_eq!(HeaderArea::parse(&area.to_bytes().unwrap()).unwrap(), area);
    area.extensions.0.push(format("raw"));
    assert_eq!(area.to_bytes().unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn trap_6_the_end_marker_is_optional_before_the_backing_name() {
    let mut bytes = patched(Version::V3, 112, b"\xe2\x79\x2a\xca\0\0\0\x03raw\0\0\0\0\0base");
    bytes[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 4]);
    let parsed = HeaderArea::parse(&bytes).unwrap();
    assert_eq!(parsed.backing_name.as_deref(), Some(&b"base"[..]));
    assert_eq!(parsed.extensions.0, [format("raw")]);
}

#[test]
fn trap_6_the_end_marker_is_optional_at_the_cluster_end() {
    let mut area = area(Version::V3);
    area.header = with_cluster_bits(Version::V3, 9);
    area.extensions.0.push(unknown(0x1234, &[1; 512 - 112 - 8]));
    let bytes = area.to_bytes().unwrap();
    assert_eq!(bytes.len(), 512);
    assert_eq!(HeaderArea::parse(&bytes).unwrap(), area);
}

#[test]
fn trap_6_nothing_after_the_end_marker_or_in_the_backing_name_is_an_extension() {
    let mut bytes = patched(Version::V3, 112, &[0; 8]);
    bytes[120..131].copy_from_slice(b"\xe2\x79\x2a\xca\0\0\0\x03raw");
    assert_eq!(HeaderArea::parse(&bytes).unwrap().backing_format(), None);
    let mut bytes = patched(Version::V3, 112, b"\xe2\x79\x2a\xca\0\0\0\x03raw");
    bytes[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 112, 0, 0, 0, 11]);
    let parsed = HeaderArea::parse(&bytes).unwrap();
    assert_eq!((parsed.backing_format(), parsed.extensions.0.len()), (None, 0));
}

#[test]
fn an_end_marker_with_a_length_ends_the_extensions() {
    let bytes = patched(Version::V3, 112, &[0, 0, 0, 0, 0, 0, 0, 16]);
    assert_eq!(HeaderArea::parse(&bytes).unwrap(), area(Version::V3));
}

#[test]
fn trap_7_data_is_padded_and_lengths_are_not() {
    let extensions = (0..17).map(|len| unknown(0x100 + len, &vec![9; len as usize])).collect();
    let area = with_extensions(Version::V3, extensions);
    assert_eq!(HeaderArea::parse(&cluster(&area)).unwrap(), area);
    // Padding may be anything.
    let bytes = patched(Version::V3, 112, b"\xe2\x79\x2a\xca\0\0\0\x03rawXXXXX");
    assert_eq!(HeaderArea::parse(&bytes).unwrap().backing_format(), Some(&b"raw"[..]));
}

#[test]
fn trap_8_all_extensions_survive_a_rewrite_in_order() {
    let mut area = with_extensions(
        Version::V3,
        vec![
            unknown(0xdead_beef, b"kept"),
            Extensions::standard_feature_names(),
            Extension::Bitmaps(BitmapsExtension {
                count: 2,
                directory_size: 96,
                directory_offset: HostOffset(0x90000),
            }),
            Extension::CryptoHeader { offset: HostOffset(0x40000), len: 0x1f8000 },
            Extension::DataFile(b"data.raw".to_vec()),
            format("qcow2"),
            unknown(1, b""),
        ],
    );
    area.header.autoclear = Autoclear::BITMAPS | Autoclear::DATA_FILE_RAW;
    area.header.incompatible = Incompatible::DATA_FILE;
    area.header.crypt_method = CryptMethod::Luks;
    let parsed = HeaderArea::parse(&cluster(&area)).unwrap();
    assert_eq!(parsed, area);
    assert_eq!(parsed.data_file_name(), Some(&b"data.raw"[..]));
    assert_eq!(parsed.bitmaps().unwrap().directory_size, 96);
    assert_eq!(parsed.extensions.crypto_header(), Some((HostOffset(0x40000), 0x1f8000)));
}

#[test]
fn trap_9_the_last_extension_of_a_kind_wins() {
    let names = [b"a".to_vec(), b"b".to_vec()].map(Extension::DataFile);
    let [first, last] = names;
    let area = with_extensions(Version::V3, vec![format("raw"), first, format("qcow2"), last]);
    let parsed = HeaderArea::parse(&cluster(&area)).unwrap();
    assert_eq!(parsed.backing_format(), Some(&b"qcow2"[..]));
    assert_eq!(parsed.data_file_name(), Some(&b"b"[..]));
}

#[test]
fn trap_10_a_backing_name_is_bytes_up_to_the_cluster_end() {
    let name = vec![0xff; 512 - 120];
    let mut area = area(Version::V3);
    area.header = with_cluster_bits(Version::V3, 9);
    area.backing_name = Some(name.clone());
    let bytes = area.to_bytes().unwrap();
    assert_eq!(bytes.len(), 512);
    assert_eq!(HeaderArea::parse(&bytes).unwrap().backing_name, Some(name));
}

#[test]
fn a_nul_ends_names_as_it_does_in_qemu() {
    let mut area =
        with_extensions(Version::V3, vec![format("raw\0x"), Extension::DataFile(b"\0d".to_vec())]);
    area.backing_name = Some(b"base\0junk".to_vec());
    let parsed = HeaderArea::parse(&cluster(&area)).unwrap();
    assert_eq!(parsed.backing_name.as_deref(), Some(&b"base"[..]));
    assert_eq!(parsed.backing_format(), Some(&b"raw"[..]));
    assert_eq!(parsed.data_file_name(), Some(&b""[..]));
}

#[test]
fn trap_11_a_backing_offset_with_length_zero_is_no_backing_file() {
    let mut bytes = cluster(&with_extensions(Version::V3, vec![format("raw")]));
    bytes[8..16].copy_from_slice(&[0, 0, 0, 0, 0, 0, 2, 0]);
    let parsed = HeaderArea::parse(&bytes).unwrap();
    assert_eq!(parsed.backing_name, None);
    assert_eq!(parsed.backing_format(), Some(&b"raw"[..]));
}

#[test]
fn trap_13_what_does_not_fit_the_first_cluster_has_no_space() {
    let mut area = area(Version::V3);
    area.header = with_cluster_bits(Version::V3, 9);
    for (len, fits) in [(392, true), (400, true), (401, false), (600, false)] {
        area.backing_name = Some(vec![b'x'; len]);
        let bytes = area.to_bytes();
        assert_eq!(bytes.is_ok(), fits, "a name of {len} bytes");
        if let Err(error) = bytes {
            assert_eq!(error.kind(), ErrorKind::Limit);
            assert!(error.message().starts_with("no space"), "{error}");
        }
    }
}

#[test]
fn what_leaves_a_few_bytes_that_a_reader_would_take_for_an_extension_has_no_space() {
    let mut area = area(Version::V3);
    area.header = with_cluster_bits(Version::V3, 9);
    (area.header.header_length, area.header.unknown_tail) = (105, Vec::new());
    area.extensions.0.push(unknown(7, &[1; 512 - 105 - 8 - 7]));
    assert_eq!(area.to_bytes().unwrap_err().kind(), ErrorKind::Limit);
    // A backing name fills the gap.
    area.backing_name = Some(b"b".to_vec());
    assert_eq!(HeaderArea::parse(&cluster(&area)).unwrap().backing_name, area.backing_name);
}

#[test]
fn trap_12_the_feature_names_leave_no_room_in_small_clusters() {
    let mut area = with_extensions(Version::V3, vec![Extensions::standard_feature_names()]);
    area.header = with_cluster_bits(Version::V3, 9);
    area.backing_name = Some(b"base.qcow2".to_vec());
    assert_eq!(area.to_bytes().unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn backing_names_are_at_most_1023_bytes() {
    let mut area = area(Version::V3);
    area.backing_name = Some(vec![b'x'; 1023]);
    let mut bytes = cluster(&area);
    assert_eq!(HeaderArea::parse(&bytes).unwrap().backing_name, area.backing_name);
    bytes[18..20].copy_from_slice(&[4, 0]);
    assert_refused(&bytes, ErrorKind::Corrupt, "1024 bytes, expected at most 1023");
    area.backing_name = Some(vec![b'x'; 1024]);
    assert_eq!(area.to_bytes().unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn a_backing_name_that_runs_over_the_cluster_end_is_refused() {
    let mut bytes = patched(Version::V3, 8, &[0, 0, 0, 0, 0, 0, 0xff, 0xfe]);
    bytes[19] = 2;
    assert_eq!(HeaderArea::parse(&bytes).unwrap().backing_name, None);
    bytes[19] = 3;
    assert_refused(&bytes, ErrorKind::Corrupt, "3 bytes, expected at most 2");
}

#[test]
fn trap_17_unknown_incompatible_features_are_refused_by_name() {
    let mut area = with_extensions(
        Version::V3,
        vec![
            Extension::FeatureNames(vec![
                FeatureName {
                    kind: FeatureKind::Compatible,
                    bit: 41,
                    name: b"wrong kind".to_vec(),
                },
                FeatureName {
                    kind: FeatureKind::Incompatible,
                    bit: 41,
                    name: b"time travel".to_vec(),
                },
                FeatureName { kind: FeatureKind::Incompatible, bit: 200, name: b"no bit".to_vec() },
            ]),
            unknown(7, &[0; 96]),
        ],
    );
    area.header.incompatible = Incompatible::from_bits_retain(1 << 41 | 1 << 63 | 1);
    let error = HeaderArea::parse(&cluster(&area)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.message(), "unknown incompatible features: 'time travel' (bit 41), bit 63");
}

#[test]
fn trap_17_unknown_features_are_reported_before_what_they_may_have_changed() {
    let mut bytes = patched(Version::V3, 79, &[0x20]);
    bytes[99] = 7;
    bytes[56..60].copy_from_slice(&[0xff; 4]);
    // An extension that runs over the area.
    bytes[112..120].copy_from_slice(&[0xff; 8]);
    assert_refused(&bytes, ErrorKind::Unsupported, "bit 5");
}

#[test]
fn trap_18_feature_names_are_escaped() {
    let mut area = with_extensions(
        Version::V3,
        vec![Extension::FeatureNames(vec![FeatureName {
            kind: FeatureKind::Incompatible,
            bit: 5,
            name: b"\x1b[2J\xff".to_vec(),
        }])],
    );
    area.header.incompatible = Incompatible::from_bits_retain(1 << 5);
    assert_refused(&cluster(&area), ErrorKind::Unsupported, "'\\u{1b}[2J\u{fffd}' (bit 5)");
}

#[test]
fn the_standard_feature_names_name_every_known_bit() {
    let Extension::FeatureNames(names) = Extensions::standard_feature_names() else {
        panic!("not a feature name table");
    };
    for (kind, known) in [
        (FeatureKind::Incompatible, Incompatible::all().bits()),
        (FeatureKind::Compatible, Compatible::all().bits()),
        (FeatureKind::Autoclear, Autoclear::all().bits()),
    ] {
        let bits = names.iter().filter(|name| name.kind == kind).map(|name| 1 << name.bit);
        assert_eq!(bits.sum::<u64>(), known, "{kind:?}");
    }
}

#[test]
fn an_extension_that_runs_over_its_area_is_refused() {
    let bytes = patched(Version::V3, 112, &[0, 0, 0, 1, 0, 0, 0xff, 0x90]);
    assert_refused(&bytes, ErrorKind::Corrupt, "65424 bytes, expected at most 65416");
    let bytes = patched(Version::V3, 112, &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
    assert_refused(&bytes, ErrorKind::Corrupt, "at byte 0x70");
    // Four bytes before the backing name cannot hold an extension.
    let bytes = patched(Version::V3, 8, &[0, 0, 0, 0, 0, 0, 0, 116]);
    assert_refused(&bytes, ErrorKind::Corrupt, "truncated");
}

#[test]
fn a_backing_format_has_at_most_15_bytes() {
    let longest = with_extensions(Version::V3, vec![format(&"x".repeat(15))]);
    assert!(HeaderArea::parse(&cluster(&longest)).is_ok());
    let bytes = patched(Version::V3, 112, b"\xe2\x79\x2a\xca\0\0\0\x10xxxxxxxxxxxxxxxx");
    assert_refused(&bytes, ErrorKind::Corrupt, "16 bytes, expected at most 15");
    assert!(with_extensions(Version::V3, vec![format(&"x".repeat(16))]).to_bytes().is_err());
}

#[test]
fn extensions_of_fixed_length_have_that_length() {
    let bitmaps = patched(Version::V3, 112, &[0x23, 0x85, 0x28, 0x75, 0, 0, 0, 23]);
    assert_refused(&bitmaps, ErrorKind::Corrupt, "23 bytes, expected 24");
    let crypto = patched(Version::V3, 112, &[0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 17]);
    assert_refused(&crypto, ErrorKind::Corrupt, "17 bytes, expected 16");
}

#[test]
fn bitmaps_count_only_with_their_autoclear_bit() {
    let bitmaps = |count, directory_size, offset| {
        let directory_offset = HostOffset(offset);
        Extension::Bitmaps(BitmapsExtension { count, directory_size, directory_offset })
    };
    for (extension, refused) in [
        (bitmaps(1, 64, 0x10000), None),
        (bitmaps(0, 64, 0x10000), Some("0 bitmaps")),
        (bitmaps(65536, 64, 0x10000), Some("at most 65535")),
        (bitmaps(1, 64, 0x10200), Some("multiple of the cluster size")),
        (bitmaps(1, 67_107_841, 0x10000), Some("at most 67107840")),
        // A bitmaps extension with a reserved byte set.
        (unknown(0x2385_2875, &[[1; 8], [0; 8], [0; 8]].concat()), Some("reserved")),
    ] {
        let mut area = with_extensions(Version::V3, vec![extension]);
        let ignored = HeaderArea::parse(&cluster(&area)).unwrap();
        assert_eq!((ignored.bitmaps(), &ignored), (None, &area));
        area.header.autoclear = Autoclear::BITMAPS;
        match refused {
            None => assert!(HeaderArea::parse(&cluster(&area)).unwrap().bitmaps().is_some()),
            Some(part) => {
                let error = HeaderArea::parse(&cluster(&area)).unwrap_err();
                assert!(error.to_string().contains(part), "{error} lacks {part:?}");
            }
        }
    }
}

#[test]
fn trap_116_luks_and_its_header_extension_need_each_other() {
    let at = |offset| Extension::CryptoHeader { offset: HostOffset(offset), len: 4096 };
    let mut area = with_extensions(Version::V3, vec![at(0x40000)]);
    assert_refused(&cluster(&area), ErrorKind::Corrupt, "does not use LUKS");
    area.header.crypt_method = CryptMethod::Luks;
    assert_eq!(HeaderArea::parse(&cluster(&area)).unwrap(), area);
    area.extensions.0 = vec![at(0x40200)];
    assert_refused(&cluster(&area), ErrorKind::Corrupt, "multiple of the cluster size");
    area.extensions.0.clear();
    assert_refused(&cluster(&area), ErrorKind::Corrupt, "no extension names its header");
}

#[test]
fn trap_130_a_rewrite_changes_only_what_was_asked_for() {
    let mut area = with_extensions(Version::V3, vec![unknown(77, b"keep me"), format("raw")]);
    area.header = with_cluster_bits(Version::V3, 9);
    area.header.compatible = Compatible::from_bits_retain(1 << 20);
    area.header.unknown_tail = vec![1, 2, 3, 4, 5, 6, 7];
    area.header.incompatible = Incompatible::DIRTY;
    area.backing_name = Some(b"base".to_vec());
    let before = cluster(&area);
    let mut parsed = HeaderArea::parse(&before).unwrap();
    parsed.header.incompatible.remove(Incompatible::DIRTY);
    let after = cluster(&parsed);
    let changed: Vec<usize> = (0..before.len()).filter(|&at| before[at] != after[at]).collect();
    assert_eq!(changed, [79]);
}

#[test]
fn less_than_the_first_cluster_is_refused() {
    let bytes = cluster(&area(Version::V3));
    let error = HeaderArea::parse(&bytes[..4096]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
}

/// What is behind the reach of a header area changes nothing.
#[test]
fn what_is_parsed_lies_within_reach() {
    let lengths = [0, 8, 100, 3900, 3960, 3968, 3976, 3984, 3992, 4000, 5000];
    let mut told = 0;
    for (length, name) in lengths.into_iter().flat_map(|length| [(length, 0), (length, 60)]) {
        for version in [Version::V2, Version::V3] {
            let mut area =
                with_extensions(version, vec![format("raw"), unknown(7, &vec![1; length])]);
            area.backing_name = Some(vec![b'b'; name]).filter(|name| !name.is_empty());
            let whole = cluster(&area);
            let parsed = HeaderArea::parse(&whole).unwrap();
            for end in [512, 4096, whole.len()] {
                let Some(reach) = HeaderArea::reach(&whole[..end]) else { continue };
                let mut other = whole.clone();
                other[reach..].fill(0xee);
                assert_eq!(HeaderArea::parse(&other).unwrap(), parsed, "{length} {name} {end}");
                told += usize::from(reach <= end);
            }
            assert!(HeaderArea::reach(&whole).is_some());
        }
    }
    assert!(told > 70, "{told}");
}

/// Nor does an extension, a name or a mistake that the first bytes do not show pass for none.
#[test]
fn what_the_first_bytes_do_not_show_is_not_within_reach() {
    for at in [0, 16, 100, 101, 104, 112, 116, 119, 200] {
        for byte in [0, 1, 0x10, 0xff] {
            let whole = patched(Version::V3, at, &[byte]);
            let Some(reach) = HeaderArea::reach(&whole[..4096]).filter(|reach| *reach <= 4096)
            else {
                continue;
            };
            let mut other = whole.clone();
            other[reach..].fill(0xee);
            let shown = |cluster: &[u8]| std::format!("{:?}", HeaderArea::parse(cluster));
            assert_eq!(shown(&other), shown(&whole), "{byte} at {at}");
        }
    }
}
