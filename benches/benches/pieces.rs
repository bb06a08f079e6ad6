//! The pieces of the engine that every byte or every table entry passes through.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use fixtures::pattern::mixed;
use qcow::chain::{Chain, OpenOptions};
use qcow::codec::{Codec, Compressor, Decompressor, is_zero};
use qcow::format::{
    EntryRules, Geometry, HostOffset, L2Entry, RawL2Entry, RefcountWidth, Version, decode_table,
    raw_l2_entry, set_raw_l2_entry,
};
use qcow::io::Replace;
use qcow::ops::create::{CreateOptions, create};
use qcow::ops::digest::{Algorithm, DigestOptions, digest};
use qcow::ops::{Preallocation, Qcow2Options, TargetOptions};
use qcow::{CancelToken, Silent};
use tempfile::TempDir;

const CLUSTER: usize = 64 << 10;

fn clusters(c: &mut Criterion) {
    let mut group = c.benchmark_group("cluster of 64 KiB");
    group.throughput(Throughput::Bytes(CLUSTER as u64));
    let (content, zeros) = (mixed(1, CLUSTER), vec![0; CLUSTER]);
    let mut nearly = zeros.clone();
    nearly[CLUSTER - 1] = 1;
    group.bench_function("find out that it is zero", |b| b.iter(|| is_zero(black_box(&zeros))));
    group
        .bench_function("find the one byte at its end", |b| b.iter(|| is_zero(black_box(&nearly))));
    group.bench_function("find that it begins with data", |b| {
        b.iter(|| is_zero(black_box(&content)));
    });
    group.bench_function("CRC-32", |b| b.iter(|| crc32fast::hash(black_box(&content))));
    codec(&mut group, "zlib", Codec::Zlib, &content);
    codec(&mut group, "zstd", Codec::Zstd, &content);
    group.finish();
}

fn codec(
    group: &mut BenchmarkGroup<'_, criterion::measurement::WallTime>,
    name: &str,
    codec: Codec,
    content: &[u8],
) {
    let mut compressor = Compressor::new(codec, None).expect("a compressor");
    let mut compressed = Vec::new();
    group.bench_function(format!("compress, {name}"), |b| {
        b.iter(|| compressor.compress(black_box(content), &mut compressed).expect("it compresses"));
    });
    assert!(compressor.compress(content, &mut compressed).expect("it compresses"));
    let mut decompressor = Decompressor::new(codec).expect("a decompressor");
    let mut output = vec![0; CLUSTER];
    group.bench_function(format!("decompress, {name}"), |b| {
        b.iter(|| decompressor.decompress(black_box(&compressed), &mut output).expect("sound"));
    });
    assert_eq!(output, content);
}

fn tables(c: &mut Criterion) {
    let geometry = Geometry::new(16, false).expect("a geometry");
    let rules = EntryRules { geometry, version: Version::V3, data_file: false };
    let entries = geometry.l2_entries();
    let mut table = vec![0; CLUSTER];
    for index in 0..entries {
        let host = HostOffset((index + 5) << 16);
        let (word, bitmap) =
            L2Entry::Data { host, copied: true }.encode(&rules).expect("a valid entry");
        let entry = RawL2Entry { word, bitmap };
        set_raw_l2_entry(&mut table, index, entry, geometry).expect("inside the table");
    }

    let mut group = c.benchmark_group("table of 64 KiB");
    group.throughput(Throughput::Elements(entries));
    group.bench_function("parse", |b| b.iter(|| decode_table(black_box(&table))));
    group.bench_function("decode L2 entries", |b| {
        b.iter(|| {
            for index in 0..entries {
                let raw = raw_l2_entry(black_box(&table), index, geometry);
                black_box(L2Entry::decode(raw.word, raw.bitmap, &rules).expect("a valid entry"));
            }
        });
    });
    for order in [0, 4] {
        let width = RefcountWidth::new(order).expect("a width");
        let mut block = vec![0; CLUSTER];
        group.bench_function(format!("set refcounts of {} bits", width.bits()), |b| {
            b.iter(|| {
                for index in 0..entries {
                    width.set(black_box(&mut block), index, 1).expect("inside the block");
                }
            });
        });
    }
    group.finish();
}

/// Refcounts and tables of a whole image, as `create` generates them.
fn metadata(c: &mut Criterion) {
    let dir = scratch();
    let path = dir.path().join("created.qcow2");
    let mut group = c.benchmark_group("metadata of 16 GiB");
    group.sample_size(10);
    for cluster_size in [4 << 10, 64 << 10] {
        let qcow2 = Qcow2Options::default()
            .cluster_size(cluster_size)
            .preallocation(Preallocation::Metadata);
        let target = TargetOptions::Qcow2(qcow2);
        let options =
            CreateOptions::default().size(16 << 30).target(target).replace(Replace::Unused);
        group.throughput(Throughput::Elements((16 << 30) / cluster_size));
        group.bench_function(format!("create, clusters of {} KiB", cluster_size >> 10), |b| {
            b.iter(|| create(&path, &options).expect("an image"));
        });
    }
    group.finish();
}

/// Everything that has to look through the tables of all layers.
fn extents(c: &mut Criterion) {
    let dir = scratch();
    let mut group = c.benchmark_group("extents of a fragmented chain");
    for depth in [1, 4, 32] {
        let chain = big_chain(dir.path(), depth);
        group.throughput(Throughput::Elements(chain.virtual_size() / CLUSTER as u64));
        group.bench_function(format!("merge, {depth} layers"), |b| {
            b.iter(|| {
                black_box(&chain).extents().map(|extent| extent.expect("sound").len).sum::<u64>()
            });
        });
    }
    group.finish();
}

/// Digests of a whole chain, with one worker.
fn digests(c: &mut Criterion) {
    let dir = scratch();
    let chain = big_chain(dir.path(), 4);
    let never = CancelToken::new();
    let mut group = c.benchmark_group("digest of a chain, one worker");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(DATA));
    for (name, algorithm) in [
        ("CRC-32", Algorithm::Crc32),
        ("tree hash", Algorithm::Blake3Tree),
        ("SHA-256", Algorithm::Sha256),
    ] {
        let options = DigestOptions::default().algorithm(algorithm).threads(1);
        group.bench_function(name, |b| {
            b.iter(|| digest(&chain, &options, &Silent, &never).expect("a digest"));
        });
    }
    group.finish();
}

/// Data of the chains, in bytes.
const DATA: u64 = 32 << 20;

fn big_chain(dir: &Path, depth: usize) -> Chain {
    let dir = dir.join(depth.to_string());
    std::fs::create_dir(&dir).expect("a directory");
    let chain = fixtures::big::big_chain(&dir, depth, DATA);
    Chain::open(chain.top(), &OpenOptions::default()).expect("a sound chain")
}

/// In memory if there is such a place: the pieces are measured, not the disk.
fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory")
}

/// Enough to see a change of a few percent, within a minute for all.
fn brief() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(300), Duration::from_secs(1));
    Criterion::default().sample_size(30).warm_up_time(warm_up).measurement_time(measurement)
}

criterion_group! {
    name = pieces;
    config = brief();
    targets = clusters, tables, metadata, extents, digests
}
criterion_main!(pieces);
