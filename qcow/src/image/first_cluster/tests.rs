#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use std::sync::Arc;

use fixtures::pattern::Random;

use super::*;
use crate::format::{Extensions, FeatureKind, FeatureName, Geometry, Header, HostOffset, Version};
use crate::io::sim::SimStorage;

/// An area with whatever a first cluster can have.
fn random(random: &mut Random, cluster_bits: u32) -> HeaderArea {
    let version = if random.below(4) == 0 { Version::V2 } else { Version::V3 };
    let mut header = Header::new(version, Geometry::new(cluster_bits, false).unwrap(), 1 << 20);
    header.refcount_table_clusters = 1;
    header.l1_entries = 64;
    header.l1_table_offset = HostOffset(random.below(9) << cluster_bits);
    if version == Version::V3 && random.below(3) == 0 {
        header.header_length = 104;
        header.unknown_tail.clear();
    } else if version == Version::V3 && random.below(4) == 0 {
        let len = random.below(100) as u32;
        header.header_length = 105 + len;
        header.unknown_tail = vec![7; len as usize];
    }
    let mut text = |most: u64| vec![b'a' + random.below(20) as u8; random.below(most) as usize + 1];
    let mut extensions = vec![
        Extension::BackingFormat(text(15)),
        Extension::DataFile(text(300)),
        Extension::Unknown { magic: 0x1234_5678, data: text(60) },
        Extension::Unknown { magic: 0x1234_5679, data: text(500) },
    ];
    let backing_name = Some(text(1000));
    let name = FeatureName { kind: FeatureKind::Unknown(7), bit: 63, name: text(46) };
    extensions.push(Extension::FeatureNames(vec![name; random.below(9) as usize]));
    extensions.push(Extensions::standard_feature_names());
    for _ in 0..random.below(6) {
        extensions.remove(random.below(extensions.len() as u64) as usize);
    }
    let extensions = Extensions(extensions);
    HeaderArea { header, extensions, backing_name: backing_name.filter(|_| random.below(3) > 0) }
}

fn parsed(image: &[u8]) -> HeaderArea {
    let mut cluster = image.to_vec();
    cluster.resize(1 << 16, 0);
    let mut area = HeaderArea::parse(&cluster).unwrap();
    // Where the name lies is not what is said.
    area.header.backing_name_offset = 0;
    area.header.backing_name_len = 0;
    area.extensions.0.retain(|extension| {
        !matches!(extension, Extension::Unknown { magic: SPANNING_EXTENSION, .. })
    });
    area
}

#[test]
fn a_crash_leaves_the_old_area_or_the_new_one_whatever_they_have() {
    let mut numbers = Random::new(14);
    let (mut at_once, mut aside) = (0, 0);
    for run in 0..80 {
        let cluster_bits = if run % 8 == 0 { 16 } else { 12 };
        let (old, new) = (random(&mut numbers, cluster_bits), random(&mut numbers, cluster_bits));
        let (Ok(mut image), Ok(_)) = (old.to_bytes(), new.to_bytes()) else { continue };
        image.resize(1 << cluster_bits, 0);
        let storage = Arc::new(SimStorage::new(image));
        let mut staged = Staged::new(storage.clone());
        if let Err(error) = FirstCluster::stage(&mut staged, &new) {
            assert!(error.to_string().contains("do not fit"), "{error}");
            assert_eq!(cluster_bits, 12, "64 KiB are enough for both");
            continue;
        }
        match FirstCluster::new(&*storage, &new).unwrap().steps.len() {
            0 | 1 => at_once += 1,
            _ => aside += 1,
        }
        staged.apply(&*storage).unwrap();
        for crash in storage.crashes(run, 6) {
            let found = parsed(&crash.bytes);
            let is_one = found == parsed(&old.to_bytes().unwrap())
                || found == parsed(&new.to_bytes().unwrap());
            assert!(is_one, "run {run}, {}: {found:?}", crash.moment);
        }
        assert_eq!(parsed(&storage.bytes()), parsed(&new.to_bytes().unwrap()), "run {run}");
        let left = read_header_area(&*storage, Purpose::Read).unwrap().extensions.0;
        let spans = |extension: &Extension| matches!(extension, Extension::Unknown { magic, .. } if *magic == SPANNING_EXTENSION);
        assert!(!left.iter().any(spans), "run {run}: {left:?}");
    }
    assert!(at_once > 8 && aside > 8, "both ways are tried: {at_once}, {aside}");
}

#[test]
fn nothing_is_written_where_nothing_changes() {
    let mut numbers = Random::new(1);
    let area = random(&mut numbers, 16);
    let mut image = area.to_bytes().unwrap();
    image.resize(1 << 16, 0);
    let storage = Arc::new(SimStorage::new(image));
    let mut staged = Staged::new(storage);
    FirstCluster::stage(&mut staged, &area).unwrap();
    assert!(staged.is_empty());
}
