//! Geometry, chain and writes at random: what we read is what qemu-img reads, and what we write is
//! what it reads back.
//!
//! `PROPTEST_CASES` sets the number of cases.

use std::path::{Path, PathBuf};

use common::{checksum, qcowtool, snapshot_like_qemu};
use fixtures::{Scratch, args, assert_bytes, crc32_hex, qemu, qemu_img, qemu_io};
use proptest::prelude::*;

const SECTOR: u64 = 512;

/// What a guest does; places and lengths are in sectors and are cut to the disk.
#[derive(Debug, Clone)]
enum Act {
    Write { at: u64, len: u64, seed: u8 },
    Fill { at: u64, len: u64, byte: u8 },
    Zero { at: u64, len: u64, unmap: bool },
    Discard { at: u64, len: u64 },
    Compress { at: u64, seed: u8 },
}

/// One image of a chain.
#[derive(Debug, Clone)]
struct LayerPlan {
    cluster_bits: u32,
    version2: bool,
    extended: bool,
    zstd: bool,
    refcount_bits: u32,
    sectors: u64,
    snapshot_after: Option<usize>,
    acts: Vec<Act>,
}

impl LayerPlan {
    fn options(&self) -> String {
        let mut options = format!("cluster_size={}", 1 << self.cluster_bits);
        if self.version2 {
            return options + ",compat=0.10";
        }
        options += &format!(",refcount_bits={}", self.refcount_bits);
        if self.extended && self.cluster_bits >= 14 {
            options += ",extended_l2=on";
        }
        if self.zstd {
            options += ",compression_type=zstd";
        }
        options
    }

    fn commands(&self, content: &Path) -> Vec<String> {
        let cluster = (1_u64 << self.cluster_bits) / SECTOR;
        // QEMU does not write a compressed cluster over one that has data.
        let (first, rest): (Vec<_>, Vec<_>) =
            self.acts.iter().partition(|act| matches!(act, Act::Compress { .. }));
        let mut compressed = std::collections::HashSet::new();
        let cut = |at: u64, len: u64| {
            (at % self.sectors * SECTOR, len.min(self.sectors - at % self.sectors) * SECTOR)
        };
        let mut commands = Vec::new();
        for act in first.into_iter().chain(rest) {
            let pattern =
                |seed: &u8| format!("-s {}", content.join(format!("{}", seed % 4)).display());
            commands.push(match act {
                Act::Write { at, len, seed } => {
                    let (at, len) = cut(*at, *len);
                    format!("write {} {at} {len}", pattern(seed))
                }
                Act::Fill { at, len, byte } => {
                    let (at, len) = cut(*at, *len);
                    format!("write -P {byte} {at} {len}")
                }
                Act::Zero { at, len, unmap } => {
                    let (at, len) = cut(*at, *len);
                    format!("write -z {} {at} {len}", if *unmap { "-u" } else { "" })
                }
                Act::Discard { at, len } => {
                    let (at, len) = cut(*at, *len);
                    format!("discard {at} {len}")
                }
                Act::Compress { at, seed } => {
                    let start = at % self.sectors / cluster * cluster;
                    if !compressed.insert(start) {
                        continue;
                    }
                    let (at, len) = cut(start, cluster);
                    format!("write -c {} {at} {len}", pattern(seed))
                }
            });
        }
        commands
    }
}

fn act() -> impl Strategy<Value = Act> {
    let place = || 0..2048_u64;
    let length = || prop_oneof![1..16_u64, 1..300_u64];
    prop_oneof![
        4 => (place(), length(), any::<u8>()).prop_map(|(at, len, seed)| Act::Write { at, len, seed }),
        2 => (place(), length(), any::<u8>()).prop_map(|(at, len, byte)| Act::Fill { at, len, byte }),
        2 => (place(), length(), any::<bool>()).prop_map(|(at, len, unmap)| Act::Zero { at, len, unmap }),
        1 => (place(), length()).prop_map(|(at, len)| Act::Discard { at, len }),
        2 => (place(), any::<u8>()).prop_map(|(at, seed)| Act::Compress { at, seed }),
    ]
}

fn layer() -> impl Strategy<Value = LayerPlan> {
    let geometry = (9..=18_u32, prop::bool::weighted(0.2), any::<bool>(), any::<bool>(), 0..=6_u32);
    // Sizes of their own: bases shorter and longer than what stands on them.
    let rest =
        (1..2048_u64, prop::option::weighted(0.2, 0..8_usize), prop::collection::vec(act(), 0..12));
    (geometry, rest).prop_map(
        |((cluster_bits, version2, extended, zstd, order), (sectors, snapshot_after, acts))| {
            // One-bit refcounts cannot count a snapshot.
            let refcount_bits = if snapshot_after.is_some() { 16 } else { 1 << order };
            LayerPlan {
                cluster_bits,
                version2,
                extended,
                zstd,
                refcount_bits,
                sectors,
                snapshot_after,
                acts,
            }
        },
    )
}

/// A raw base of so many bytes, or none, and the layers on it.
fn chain() -> impl Strategy<Value = (Option<usize>, Vec<LayerPlan>)> {
    (prop::option::weighted(0.4, 0..400_000_usize), prop::collection::vec(layer(), 1..=4))
}

/// How to flatten.
fn target() -> impl Strategy<Value = String> {
    let options = [
        "",
        "-o cluster_size=512",
        "-o cluster_size=4k",
        "-o cluster_size=2M",
        "-o compat=0.10",
        "-o refcount_bits=1",
        "-o extended_l2=on,cluster_size=16k",
        "-o preallocation=metadata",
        "-c -o cluster_size=1k",
        "-c",
        "-c -o cluster_size=512",
        "-c -o cluster_size=16k",
        "-c -o compression_type=zstd",
        "-c -o compression_type=zstd,cluster_size=512,refcount_bits=8",
        "-c -o extended_l2=on,compression_type=zstd",
    ];
    (prop::sample::select(options.to_vec()), 1..5_u32)
        .prop_map(|(options, threads)| format!("{options} --threads {threads}"))
}

/// Builds the chain with qemu-img and qemu-io.
fn build(scratch: &Scratch, base: Option<usize>, layers: &[LayerPlan]) -> Vec<PathBuf> {
    let content = scratch.subdir("content");
    for seed in 0..4 {
        let bytes = if seed < 2 { fixtures::pattern::mixed } else { fixtures::pattern::noise };
        std::fs::write(content.join(seed.to_string()), bytes(seed, 65536)).unwrap();
    }
    let mut below = base.map(|size| {
        scratch.file("base", &fixtures::pattern::noise(42, size));
        ("base".to_owned(), "raw")
    });
    let mut images = Vec::new();
    for (depth, plan) in layers.iter().enumerate() {
        let (name, size) = (format!("layer{depth}"), (plan.sectors * SECTOR).to_string());
        let image = scratch.path(&name);
        match &below {
            None => qemu::create(&image, &plan.options(), &size),
            Some((below, format)) => qemu::overlay(&image, below, format, &plan.options(), &size),
        }
        let commands = plan.commands(&content);
        let (first, second) =
            commands.split_at(plan.snapshot_after.unwrap_or(0).min(commands.len()));
        if !first.is_empty() {
            qemu_io("qcow2", &image, first);
        }
        if plan.snapshot_after.is_some() {
            qemu_img(&args!["snapshot", "-c", "s", image]);
        }
        if !second.is_empty() {
            // After a snapshot a compressed write may meet data of before.
            let second: Vec<_> = match plan.snapshot_after {
                Some(_) => second.iter().map(|c| c.replace("write -c ", "write ")).collect(),
                None => second.to_vec(),
            };
            qemu_io("qcow2", &image, &second);
        }
        below = Some((name, "qcow2"));
        images.push(image);
    }
    images
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(40),
        // A failing chain is printed whole; there is no file to keep.
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_chain_reads_and_flattens_as_qemu_img_has_it(
        (base, layers) in chain(),
        target in target(),
    ) {
        if !fixtures::require_qemu() {
            return Ok(());
        }
        let scratch = Scratch::new();
        let images = build(&scratch, base, &layers);
        let top = images.last().unwrap();
        let expected = qemu::raw_of("qcow2", top);
        prop_assert_eq!(checksum(top, &[]), crc32_hex(&expected));

        let raw = scratch.path("flat.raw");
        qcowtool(args!["flatten", "-q", "-O", "raw", top, raw]).ok();
        assert_bytes!(std::fs::read(&raw).unwrap(), expected, "flatten -O raw");

        let flat = scratch.path("flat.qcow2");
        let mut arguments = args!["flatten", "--digest", "--output", "json"];
        arguments.extend(target.split_whitespace().map(Into::into));
        let outcome = qcowtool([arguments, args![top, flat]].concat()).json();
        prop_assert_eq!(&outcome["crc32"], &serde_json::Value::from(crc32_hex(&expected)));
        qemu::assert_clean(&flat);
        assert_bytes!(qemu::raw_of("qcow2", &flat), expected, "flatten {target}");

        for (image, plan) in images.iter().zip(&layers) {
            if plan.snapshot_after.is_some() {
                snapshot_like_qemu(image, "s");
            }
        }
    }
}

/// Fewer cases: each takes several images.
fn fewer() -> ProptestConfig {
    let config = config();
    ProptestConfig { cases: config.cases.div_ceil(8), ..config }
}

proptest! {
    #![proptest_config(fewer())]

    #[test]
    fn any_chain_is_rebased_copied_onto_a_file_and_committed_without_a_change_for_the_guest(
        (base, layers) in chain(),
        (other_size, other_seed, compress) in (0..1_200_000_usize, any::<u64>(), any::<bool>()),
        (same, threads) in (0..1_200_000_usize, 1..4_u32),
    ) {
        if !fixtures::require_qemu() {
            return Ok(());
        }
        let scratch = Scratch::new();
        let images = build(&scratch, base, &layers);
        let top = images.last().unwrap();
        let expected = qemu::raw_of("qcow2", top);
        // Some of it is what the guest reads, the rest is not.
        let mut other = fixtures::pattern::noise(other_seed, other_size);
        let same = same.min(other.len()).min(expected.len());
        other[..same].copy_from_slice(&expected[..same]);
        scratch.file("other", &other);
        let threads = threads.to_string();
        let compressed = if compress { args!["-c"] } else { Vec::new() };
        let run = |command: &str, more: Vec<std::ffi::OsString>| {
            let common = args![command, "--output", "json", "--threads", threads];
            qcowtool([common, more].concat())
        };

        let onto = scratch.path("onto");
        let copy = [args!["-B", "other", "-F", "raw"], compressed.clone(), args![top, onto]];
        let done = run("convert", copy.concat()).json();
        prop_assert_eq!(&done["verified"], &serde_json::Value::from(true));
        qemu::assert_clean(&onto);
        assert_bytes!(qemu::raw_of("qcow2", &onto), expected, "onto another file");

        // In place, on copies beside the originals.
        let moved = scratch.path("moved");
        for (backing, format) in [("other", Some("raw")), ("", None)] {
            std::fs::copy(top, &moved).unwrap();
            let new = format.into_iter().flat_map(|format| args!["-F", format]);
            let mut more = args!["--digest", "--change-snapshots", "-b", backing];
            more.extend(new.chain(compressed.clone()).chain(args![moved]));
            let done = run("rebase", more).json();
            prop_assert_eq!(&done["disk-crc32"], &serde_json::Value::from(crc32_hex(&expected)));
            qemu::assert_clean(&moved);
            assert_bytes!(qemu::raw_of("qcow2", &moved), expected, "rebased to '{backing}'");
        }
        std::fs::remove_file(&moved).unwrap();
        std::fs::remove_file(&onto).unwrap();

        let below = layers.len().checked_sub(2).map(|index| &layers[index]);
        let lowest = match layers.len().checked_sub(3) {
            Some(index) => layers[index].sectors * 512,
            None => base.map_or(0, |len| len as u64),
        };
        // Version 2 with snapshots cannot grow, and cannot hide what a longer backing file has.
        let stuck = below.is_some_and(|below| {
            let grows = below.sectors < layers[layers.len() - 1].sectors;
            let hides = lowest > below.sectors * 512;
            grows && below.version2 && (below.snapshot_after.is_some() || hides)
        });
        if (below.is_some() || base.is_some()) && !stuck {
            let done = run("commit", args!["--change-snapshots", "--digest", top]).json();
            prop_assert_eq!(&done["disk-crc32"], &serde_json::Value::from(crc32_hex(&expected)));
            qemu::assert_clean(top);
            assert_bytes!(qemu::raw_of("qcow2", top), expected, "the overlay");
            let (format, base) = match below {
                Some(_) => ("qcow2", images[images.len() - 2].clone()),
                None => ("raw", scratch.path("base")),
            };
            let found = qemu::raw_of(format, &base);
            assert_bytes!(found[..expected.len().min(found.len())], expected[..], "the base");
            if format == "qcow2" {
                qemu::assert_clean(&base);
            }
        }
    }
}
