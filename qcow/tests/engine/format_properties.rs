//! What holds for all bytes and all values of the format: parsers never panic, and what is
//! written reads back as it was.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that overflows or panics fails, as it should"
)]

use proptest::collection::vec;
use proptest::prelude::*;
use qcow::ErrorKind;
use qcow::format::*;

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V2), Just(Version::V3)]
}

fn bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=longest)
}

/// A name that keeps all its bytes: not empty, and without NULs.
fn name(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(1u8.., 1..=longest)
}

fn geometry() -> impl Strategy<Value = Geometry> {
    (9u32..=21, any::<bool>())
        .prop_map(|(bits, extended)| Geometry::new(bits, extended && bits >= 14).unwrap())
}

prop_compose! {
    /// A multiple of the cluster size below `HOST_OFFSET_LIMIT`.
    fn aligned(geometry: Geometry)
        (cluster in 1..HOST_OFFSET_LIMIT >> geometry.cluster_bits()) -> HostOffset
    {
        HostOffset(cluster << geometry.cluster_bits())
    }
}

prop_compose! {
    /// Feature bits, compression and length of a version 3 header.
    fn v3_fields()(
        bits in [any::<u64>(), any::<u64>(), any::<u64>()],
        unknown_tail in bytes(40),
        short in any::<bool>(),
        refcount_order in 0u32..=6,
    ) -> (Incompatible, Compatible, Autoclear, u32, Option<Vec<u8>>) {
        let mut incompatible =
            Incompatible::from_bits_retain(bits[0]) - Incompatible::EXTENDED_L2;
        // A header of 104 bytes has no compression type.
        incompatible.set(Incompatible::COMPRESSION_TYPE, !short && bits[0] & 8 != 0);
        (
            incompatible,
            Compatible::from_bits_retain(bits[1]),
            Autoclear::from_bits_retain(bits[2]),
            refcount_order,
            (!short).then_some(unknown_tail),
        )
    }
}

/// Headers that parse, with any unknown feature bits.
fn header() -> impl Strategy<Value = Header> {
    (geometry(), version())
        .prop_flat_map(|(geometry, version)| {
            let tables = (aligned(geometry), aligned(geometry), aligned(geometry));
            let crypt = prop_oneof![Just(CryptMethod::None), Just(CryptMethod::Aes)];
            (Just((geometry, version)), tables, crypt, v3_fields(), any::<u64>(), 0u32..=65536)
        })
        .prop_map(|((geometry, version), tables, crypt_method, v3, size, snapshot_count)| {
            let extended = geometry.extended_l2() && version == Version::V3;
            let geometry = Geometry::new(geometry.cluster_bits(), extended).unwrap();
            let most = geometry.l2_coverage().saturating_mul(1 << 22);
            let mut header = Header::new(version, geometry, size % most);
            header.l1_entries = geometry.l1_entries_for(header.size) as u32;
            header.crypt_method = crypt_method;
            header.l1_table_offset = tables.0;
            header.refcount_table_offset = tables.1;
            header.snapshots_offset = tables.2;
            header.refcount_table_clusters = 1;
            header.snapshot_count = snapshot_count;
            if version == Version::V3 {
                header.incompatible |= v3.0;
                (header.compatible, header.autoclear, header.refcount_order) = (v3.1, v3.2, v3.3);
                header.unknown_tail = v3.4.clone().unwrap_or_default();
                header.header_length = v3.4.map_or(104, |tail| 105 + tail.len() as u32);
                if header.incompatible.contains(Incompatible::COMPRESSION_TYPE) {
                    header.compression_type = CompressionType::Zstd;
                }
            }
            header
        })
}

fn feature_name() -> impl Strategy<Value = FeatureName> {
    let kind = prop_oneof![
        Just(FeatureKind::Incompatible),
        Just(FeatureKind::Compatible),
        Just(FeatureKind::Autoclear),
        (3u8..).prop_map(FeatureKind::Unknown),
    ];
    (kind, any::<u8>(), name(46)).prop_map(|(kind, bit, name)| FeatureName { kind, bit, name })
}

fn extension() -> impl Strategy<Value = Extension> {
    let known = [0, 0xe279_2aca, 0x6803_f857, 0x2385_2875, 0x0537_be77, 0x4441_5441];
    prop_oneof![
        bytes(15).prop_map(Extension::BackingFormat),
        vec(feature_name(), 0..3).prop_map(Extension::FeatureNames),
        (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(count, directory_size, offset)| {
            let directory_offset = HostOffset(offset);
            Extension::Bitmaps(BitmapsExtension { count, directory_size, directory_offset })
        }),
        bytes(40).prop_map(Extension::DataFile),
        (any::<u32>(), bytes(40))
            .prop_filter("a known type", move |(magic, _)| !known.contains(magic))
            .prop_map(|(magic, data)| Extension::Unknown { magic, data }),
    ]
}

/// First clusters that parse.
fn area() -> impl Strategy<Value = HeaderArea> {
    (header(), vec(extension(), 0..6), proptest::option::of(name(1023))).prop_map(
        |(mut header, extensions, backing_name)| {
            header.incompatible = Incompatible::from_bits_truncate(header.incompatible.bits());
            header.autoclear.remove(Autoclear::BITMAPS | Autoclear::DATA_FILE_RAW);
            HeaderArea { header, extensions: Extensions(extensions), backing_name }
        },
    )
}

prop_compose! {
    fn snapshot()(
        numbers in [any::<u64>(), any::<u64>(), any::<u64>()],
        words in [any::<u32>(), any::<u32>(), any::<u32>()],
        names in [bytes(300), bytes(300)],
        disk_size in any::<Option<u64>>(),
        icount in proptest::option::of(0..u64::MAX),
        unknown_extra in bytes(1000),
    ) -> Snapshot {
        let [id, name] = names;
        Snapshot {
            l1_table_offset: HostOffset(numbers[0]),
            l1_entries: words[0],
            id,
            name,
            date_sec: words[1],
            date_nsec: words[2],
            vm_clock_nsec: numbers[1],
            vm_state_size: numbers[2],
            disk_size,
            icount: icount.filter(|_| disk_size.is_some()),
            unknown_extra: if disk_size.is_some() { unknown_extra } else { Vec::new() },
        }
    }
}

prop_compose! {
    fn bitmap()(
        table_offset in any::<u64>(),
        table_entries in any::<u32>(),
        flags in any::<u32>(),
        (kind, granularity_bits) in any::<(u8, u8)>(),
        extra in bytes(100),
        name in bytes(1100),
    ) -> BitmapEntry {
        let flags = BitmapFlags::from_bits_retain(flags);
        let table_offset = HostOffset(table_offset);
        BitmapEntry { table_offset, table_entries, flags, kind, granularity_bits, extra, name }
    }
}

/// Any entry, often with few bits set, so that valid ones are common.
fn raw_entry() -> impl Strategy<Value = u64> {
    let cluster = (0u64..1 << 20).prop_map(|n| n << 16);
    let flags = prop_oneof![Just(0), Just(1), Just(1 << 63), Just(1 << 62), Just(3 << 62)];
    prop_oneof![any::<u64>(), (cluster, flags).prop_map(|(cluster, flags)| cluster | flags)]
}

prop_compose! {
    fn rules()(geometry in geometry(), version in version(), data_file in any::<bool>())
        -> EntryRules
    {
        EntryRules { geometry, version, data_file }
    }
}

/// The first cluster as the file has it.
fn padded(area: &HeaderArea, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(area.header.geometry().cluster_size() as usize, 0);
    bytes
}

/// `base` with some of its bytes replaced, which comes closer to real images than noise does.
fn damage(base: &mut [u8], changes: &[(prop::sample::Index, u8)]) {
    for (at, value) in changes {
        let at = at.index(base.len());
        base[at] = *value;
    }
}

proptest! {
    #[test]
    fn headers_come_back(header in header()) {
        let bytes = header.to_bytes().unwrap();
        prop_assert_eq!(bytes.len(), header.header_length as usize);
        prop_assert_eq!(Header::parse(&bytes).unwrap(), header);
    }

    #[test]
    fn first_clusters_come_back(area in area()) {
        if let Ok(bytes) = area.to_bytes() {
            let bytes = padded(&area, bytes);
            let parsed = HeaderArea::parse(&bytes).unwrap();
            // Writing decides where the name goes; all else is as it was.
            let mut expected = area;
            expected.header.backing_name_offset = parsed.header.backing_name_offset;
            expected.header.backing_name_len = parsed.header.backing_name_len;
            prop_assert_eq!(&parsed, &expected);
            prop_assert_eq!(padded(&parsed, parsed.to_bytes().unwrap()), bytes);
        }
    }

    #[test]
    fn damaged_first_clusters_never_panic(
        area in area(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        if let Ok(mut bytes) = area.to_bytes() {
            damage(&mut bytes, &changes);
            let cluster = padded(&area, bytes);
            if let Ok(parsed) = HeaderArea::parse(&cluster) {
                // What is accepted can be written again and means the same. Only padding that the
                // original did without may be too much for a full cluster.
                let again = match parsed.to_bytes() {
                    Ok(again) => padded(&parsed, again),
                    Err(error) => {
                        prop_assert_eq!(error.kind(), ErrorKind::Limit);
                        return Ok(());
                    }
                };
                let reparsed = HeaderArea::parse(&again).unwrap();
                prop_assert_eq!(reparsed.extensions, parsed.extensions);
                prop_assert_eq!(reparsed.backing_name, parsed.backing_name);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in bytes(600), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic && bytes.len() >= 24 {
            bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            bytes[20..24].copy_from_slice(&[0, 0, 0, 9]);
        }
        let _ = Header::peek(&bytes);
        let _ = Header::parse(&bytes);
        let _ = HeaderArea::parse(&bytes);
        let _ = Snapshot::entry_len(&bytes);
        let _ = Snapshot::parse(&bytes, Version::V2);
        let _ = BitmapEntry::parse(&bytes);
        let _ = decode_table(&bytes);
    }

    #[test]
    fn snapshots_come_back(snapshot in snapshot(), version in version()) {
        let bytes = snapshot.to_bytes().unwrap();
        prop_assert_eq!(Snapshot::entry_len(&bytes).unwrap(), bytes.len());
        let len = bytes.len();
        prop_assert_eq!(Snapshot::parse(&bytes, version).unwrap(), (snapshot, len));
    }

    #[test]
    fn bitmaps_come_back(bitmap in bitmap()) {
        let bytes = bitmap.to_bytes().unwrap();
        let len = bytes.len();
        prop_assert_eq!(BitmapEntry::parse(&bytes).unwrap(), (bitmap, len));
    }

    #[test]
    fn bitmap_rules_never_panic(bitmap in bitmap(), geometry in geometry(), size in any::<u64>()) {
        let _ = bitmap.check(geometry, size);
    }

    #[test]
    fn l2_entries_mean_the_same_after_a_rewrite(
        entry in raw_entry(),
        bitmap in any::<u64>(),
        disjoint in any::<bool>(),
        rules in rules(),
    ) {
        // Half of the bitmaps contradict themselves nowhere.
        let bitmap = if disjoint { bitmap & !(bitmap << 32) } else { bitmap };
        if let Ok(decoded) = L2Entry::decode(entry, bitmap, &rules)
            && let Ok((entry, bitmap)) = decoded.encode(&rules)
        {
            prop_assert_eq!(L2Entry::decode(entry, bitmap, &rules).unwrap(), decoded);
            prop_assert_eq!(RawL2Entry { word: entry, bitmap }.reserved(&rules), 0);
        }
    }

    #[test]
    fn whole_clusters_can_be_written_wherever_they_are_read(
        (rules, host) in rules().prop_flat_map(|rules| (Just(rules), aligned(rules.geometry))),
        copied in any::<bool>(),
    ) {
        let data = L2Entry::Data { host, copied };
        let (entry, bitmap) = data.encode(&rules).unwrap();
        prop_assert_eq!(L2Entry::decode(entry, bitmap, &rules).unwrap(), data);
    }

    #[test]
    fn compressed_spans_cover_their_data(
        host in 0u64..1 << 49,
        len in 1u64..=1 << 21,
        cluster_bits in 9u32..=21,
    ) {
        if len > 1 << cluster_bits {
            return Ok(());
        }
        let entry = CompressedSpan::encode(HostOffset(host), len, cluster_bits).unwrap();
        let span = CompressedSpan::decode(entry, cluster_bits);
        prop_assert_eq!(span.host, HostOffset(host));
        prop_assert!(span.len >= len && span.len - len < 512);
        prop_assert_eq!(CompressedSpan::encode(span.host, span.len, cluster_bits).ok(), Some(entry));
    }

    #[test]
    fn any_descriptor_is_a_span(entry in any::<u64>(), cluster_bits in any::<u32>()) {
        prop_assert!(CompressedSpan::decode(entry, cluster_bits).len > 0);
    }

    #[test]
    fn refcounts_come_back_and_leave_their_neighbours_alone(
        order in 0u32..=6,
        block in vec(any::<u8>(), 64),
        at in any::<prop::sample::Index>(),
        value in any::<u64>(),
    ) {
        let width = RefcountWidth::new(order).unwrap();
        let count = 64 * 8 / u64::from(width.bits());
        let at = at.index(count as usize) as u64;
        let value = value & width.max();
        let mut changed = block.clone();
        width.set(&mut changed, at, value).unwrap();
        for n in 0..count {
            let expected = if n == at { value } else { width.get(&block, n).unwrap() };
            prop_assert_eq!(width.get(&changed, n).unwrap(), expected);
        }
    }

    #[test]
    fn bitmap_table_entries_come_back(entry in raw_entry(), geometry in geometry()) {
        if let Ok(decoded) = BitmapTableEntry::decode(entry, geometry) {
            prop_assert_eq!(decoded.encode(), entry);
        }
    }

    #[test]
    fn tables_come_back(entries in vec(any::<u64>(), 0..100)) {
        prop_assert_eq!(decode_table(&encode_table(&entries)), entries);
    }
}
