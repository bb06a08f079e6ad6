//! The pieces of the engine that every byte or every table entry passes through.

use std::hint::black_box;

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use fixtures::pattern::mixed;
use qcow::codec::{Codec, Compressor, Decompressor, is_zero};
use qcow::format::{
    EntryRules, Geometry, HostOffset, L2Entry, RefcountWidth, Version, raw_l2_entry,
    set_raw_l2_entry,
};

const CLUSTER: usize = 64 << 10;

fn clusters(c: &mut Criterion) {
    let mut group = c.benchmark_group("cluster of 64 KiB");
    group.throughput(Throughput::Bytes(CLUSTER as u64));
    let (content, zeros) = (mixed(1, CLUSTER), vec![0; CLUSTER]);
    group.bench_function("find out that it is zero", |b| b.iter(|| is_zero(black_box(&zeros))));
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
        let entry = L2Entry::Data { host, copied: true }.encode(&rules).expect("a valid entry");
        set_raw_l2_entry(&mut table, index, entry, geometry).expect("inside the table");
    }

    let mut group = c.benchmark_group("table of 64 KiB");
    group.throughput(Throughput::Elements(entries));
    group.bench_function("decode L2 entries", |b| {
        b.iter(|| {
            for index in 0..entries {
                let (entry, bitmap) = raw_l2_entry(black_box(&table), index, geometry);
                black_box(L2Entry::decode(entry, bitmap, &rules).expect("a valid entry"));
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

criterion_group!(pieces, clusters, tables);
criterion_main!(pieces);
