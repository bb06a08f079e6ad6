//! Damage at random, judged by qemu-img when the test runs: we read what it reads, and refuse what it
//! refuses.
//!
//! `PROPTEST_CASES` sets the number of damaged images of each kind.

use std::path::Path;

use common::{qcowtool, small};
use fixtures::pattern::Random;
use fixtures::{Patch, Scratch, args, crc32_hex, needs_qemu, qemu, qemu_img, qemu_io};

/// An image whose metadata has something of everything, and the bytes of it that are worth damaging.
fn whole(scratch: &Scratch, options: &str) -> (Patch, Vec<usize>) {
    let path = small(scratch, options).path;
    qemu_io("qcow2", &path, &["write -c -P 7 48k 16k", "write -z 32k 16k"]);
    qemu_img(&args!["snapshot", "-c", "s", path]);
    if !options.contains("compat=0.10") {
        qemu_img(&args!["bitmap", "--add", path, "b"]);
    }
    let image = Patch::open(&path);
    let noise = fixtures::pattern::noise(0x5a11, 32 << 10);
    let clusters = image.bytes.chunks(512).enumerate();
    let metadata = clusters.filter(|(_, bytes)| {
        bytes.iter().any(|&b| b != 0) && !noise.chunks(512).any(|sector| sector == *bytes)
    });
    let places = metadata.flat_map(|(i, bytes)| {
        // Fields that are used, and a few bytes behind them.
        let used = bytes.iter().rposition(|&b| b != 0).unwrap_or(0) + 8;
        i * 512..i * 512 + used.min(512)
    });
    let places = places.filter(|&at| (4..image.bytes.len()).contains(&at)).collect();
    (image, places)
}

#[test]
fn trap_140_to_144_damaged_metadata_is_judged_as_qemu_judges_it() {
    needs_qemu!();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    let kinds = [
        "cluster_size=512",
        "compression_type=zstd",
        "cluster_size=16k,extended_l2=on",
        "compat=0.10,cluster_size=1k",
    ];
    for (kind, options) in kinds.into_iter().enumerate() {
        let scratch = Scratch::new();
        let (image, places) = whole(&scratch, options);
        let mut random = Random::new(kind as u64);
        for round in 0..cases.unwrap_or(40) {
            let mut image = image.clone();
            let mut changes = Vec::new();
            for _ in 0..1 + random.below(3) {
                // The header, the first of these, is as often hit as all the rest.
                let among = if random.below(2) == 0 { 124.min(places.len()) } else { places.len() };
                let at = places[usize::try_from(random.below(among as u64)).unwrap()];
                let value = match random.below(3) {
                    0 => image.bytes[at] ^ 1 << random.below(8),
                    1 => [0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize],
                    _ => random.below(256) as u8,
                };
                changes.push(format!("{at:#x}={value:02x}"));
                image.set_u8(at, value);
            }
            let size = image.u64(fixtures::patch::field::SIZE);
            if size > 64 << 20 {
                continue;
            }
            image.save();
            let what = format!("{options}, round {round}: {}", changes.join(" "));
            judged_alike(&image.path, &what);
        }
    }
}

/// Asserts that both read the same, or that both refuse, and likewise that both list or refuse.
fn judged_alike(image: &Path, what: &str) {
    let ours = qcowtool(args!["checksum", "-f", "qcow2", "--output", "json", image]);
    match qemu::try_raw_of("qcow2", image, None) {
        Ok(theirs) if ours.succeeded() => {
            assert_eq!(ours.json()["crc32"], crc32_hex(&theirs), "{what}");
        }
        // Some damage to a zstd frame passes QEMU's way of decoding; nobody wants what comes of it.
        Ok(_) => {
            let error = ours.refused_json();
            assert_eq!(
                error["structure"], "compressed cluster",
                "{what}: qemu-img reads it: {error}"
            );
        }
        Err(theirs) => {
            assert!(!ours.succeeded(), "{what}: we read what qemu-img refuses: {theirs}")
        }
    }
    let ours = qcowtool(args!["info", "-f", "qcow2", "--output", "json", image]);
    match qemu::try_info(image, &["-f", "qcow2"]) {
        Ok(theirs) => {
            let ours = ours.json();
            for key in
                ["virtual-size", "cluster-size", "backing-filename", "encrypted", "dirty-flag"]
            {
                assert_eq!(ours[key], theirs[key], "{what}: {key}");
            }
        }
        Err(_) => drop(ours.refused_json()),
    }
}
