//! Bitmaps as qemu-nbd tells them, and forged ones.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fixtures::pattern::Random;
use fixtures::qemu;

use super::*;
use crate::ErrorKind;
use crate::io::MemoryStorage;

fn open(bytes: Vec<u8>) -> Image {
    Image::open(Arc::new(MemoryStorage::new(bytes))).unwrap()
}

fn dirty(image: &Image, name: &str) -> Result<Vec<Range<u64>>> {
    let ranges = image.bitmap(name.as_bytes())?.dirty_ranges()?;
    ranges.map(|range| range.map(|range| range.start.0..range.end.0)).collect()
}

/// An image of `size` with a bitmap, written to at random.
fn written(path: &Path, (options, size, granularity): (&str, u64, u64), seed: u64) {
    qemu::create(path, options, &size.to_string());
    let (path_text, granularity) = (path.to_str().unwrap(), granularity.to_string());
    qemu::qemu_img(&["bitmap", "--add", "-g", &granularity, path_text, "b0"]);
    let mut random = Random::new(seed);
    let writes = (0..20).map(|_| {
        let len = 512 * (1 + random.below(200));
        let at = 512 * random.below((size - len) / 512 + 1);
        format!("write {at} {len}")
    });
    let mut writes: Vec<String> = writes.collect();
    writes.push(format!("write {} 512", size - 512));
    qemu::qemu_io("qcow2", path, &writes);
}

/// The dirty ranges as qemu-nbd tells a client.
fn dirty_by_qemu(path: &Path) -> Option<Vec<Range<u64>>> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd");
    let mut server = Command::new("qemu-nbd");
    server.args(["-r", "-f", "qcow2", "-B", "b0", "-k"]).arg(&socket).arg(path);
    let Ok(mut server) = server.spawn() else {
        println!("SKIPPED: no qemu-nbd");
        return None;
    };
    let start = Instant::now();
    while !socket.exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let server_options = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:b0",
        socket.display()
    );
    let map = qemu::qemu_img(&["map", "--output=json", "--image-opts", &server_options]);
    assert!(server.wait().unwrap().success());
    let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    let number = |entry: &serde_json::Value, key: &str| entry[key].as_u64().unwrap();
    // What is dirty is shown as if it were no data.
    let dirty = map.iter().filter(|entry| entry["data"] == false);
    Some(
        dirty
            .map(|entry| {
                let start = number(entry, "start");
                start..start + number(entry, "length")
            })
            .collect(),
    )
}

#[test]
fn dirty_ranges_are_those_that_qemu_nbd_tells() {
    if !qemu::require_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let cases = [
        // Several clusters of bits; a last granule that the disk cuts.
        ("cluster_size=512", (8 << 20) - 512, 512),
        ("cluster_size=4k", 300 << 20, 512),
        ("cluster_size=64k", 64 << 20, 64 << 10),
        ("cluster_size=2M,extended_l2=on", (1 << 30) + 1536, 4096),
    ];
    for (case, seed) in cases.into_iter().zip(1..) {
        written(&path, case, seed);
        let ours = dirty(&open(std::fs::read(&path).unwrap()), "b0").unwrap();
        assert!(ours.len() > 2, "{case:?}: {ours:?}");
        let Some(theirs) = dirty_by_qemu(&path) else { return };
        assert_eq!(ours, theirs, "{case:?}");
        std::fs::remove_file(&path).unwrap();
    }
}

/// The image with bitmaps that is kept in git, and where the table and the first cluster of bits of its
/// first good bitmap lie.
fn kept() -> (Vec<u8>, String, usize) {
    let bytes = std::fs::read(fixtures::kept::dir().join("bitmaps.qcow2")).unwrap();
    let image = open(bytes.clone());
    let info = image.bitmaps().iter().find(|info| !info.in_use).unwrap();
    let name = String::from_utf8(info.name.clone()).unwrap();
    (bytes, name, info.table_offset.0 as usize)
}

#[test]
fn entries_of_all_ones_and_all_zeros_are_whole_stretches() {
    let (mut bytes, name, table) = kept();
    let size = open(bytes.clone()).virtual_size();
    bytes[table..table + 8].copy_from_slice(&1u64.to_be_bytes());
    #[expect(clippy::single_range_in_vec_init, reason = "one range is what is expected")]
    let whole = [0..size];
    assert_eq!(dirty(&open(bytes.clone()), &name).unwrap(), whole);
    bytes[table..table + 8].copy_from_slice(&0u64.to_be_bytes());
    assert_eq!(dirty(&open(bytes), &name).unwrap(), []);
}

#[test]
fn bits_that_are_not_in_the_file_are_an_error_and_not_clean() {
    let (mut bytes, name, table) = kept();
    let past = bytes.len().next_multiple_of(1 << 16) as u64;
    bytes[table..table + 8].copy_from_slice(&past.to_be_bytes());
    let image = open(bytes.clone());
    let error = dirty(&image, &name).unwrap_err();
    assert_eq!((error.kind(), error.place().structure), (ErrorKind::Corrupt, Some("bitmap data")));
    let mut ranges = image.bitmap(name.as_bytes()).unwrap().dirty_ranges().unwrap();
    assert!(ranges.next().unwrap().is_err());
    assert!(ranges.next().is_none(), "it ends with the error");
    // The table itself: what the directory's entry says of its place.
    let mut at = image.area().bitmaps().unwrap().directory_offset.0 as usize;
    for _ in image.bitmaps() {
        bytes[at..at + 8].copy_from_slice(&past.to_be_bytes());
        at += crate::format::BitmapEntry::parse(&bytes[at..]).unwrap().1;
    }
    let error = dirty(&open(bytes), &name).unwrap_err();
    assert_eq!((error.kind(), error.place().structure), (ErrorKind::Corrupt, Some("bitmap table")));
}

#[test]
fn a_bitmap_in_use_tells_nothing_and_one_that_is_not_there_is_named() {
    let (mut bytes, name, _) = kept();
    let error = dirty(&open(bytes.clone()), "no such\x1b").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("no such\\u{1b}"), "{error}");
    let image = open(bytes.clone());
    let directory = image.area().bitmaps().unwrap().directory_offset.0 as usize;
    // The flags of all entries: in use.
    let mut at = directory;
    for _ in image.bitmaps() {
        let (entry, len) = crate::format::BitmapEntry::parse(&bytes[at..]).unwrap();
        let flags = entry.flags.bits() | 1;
        bytes[at + 12..at + 16].copy_from_slice(&flags.to_be_bytes());
        at += len;
    }
    let error = dirty(&open(bytes), &name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("not stored cleanly"), "{error}");
}

#[test]
fn alternating_bits_are_as_many_ranges() {
    let (mut bytes, name, table) = kept();
    let data = bytes.len().next_multiple_of(1 << 16);
    bytes.resize(data + (1 << 16), 0b0101_0101);
    bytes[table..table + 8].copy_from_slice(&(data as u64).to_be_bytes());
    let image = open(bytes);
    let bitmap = image.bitmap(name.as_bytes()).unwrap();
    let bits = image.virtual_size().div_ceil(bitmap.info().granularity);
    assert_eq!(dirty(&image, &name).unwrap().len() as u64, bits.div_ceil(2));
}

#[test]
fn bits_are_counted_from_the_least_significant() {
    let bytes = [0b0000_0000, 0b1000_0001, 0b1111_1111, 0b0000_0111];
    let ones: Vec<u64> = (0..32).filter(|at| position(&bytes, *at, true) == *at).collect();
    let expected = [8, 15].into_iter().chain(16..27).collect::<Vec<u64>>();
    assert_eq!(ones, expected);
    assert_eq!(position(&bytes, 0, true), 8);
    assert_eq!(position(&bytes, 15, false), 16 + 11);
    assert_eq!(position(&bytes, 27, true), 32);
}
