//! Images of at most 1 MiB that stand for as much work as can be.

use std::ops::Range;
use std::path::PathBuf;

use fixtures::patch::{COPIED, field, magic};
use fixtures::{Patch, Scratch, pattern};

use super::streams;

/// As long as any of them may be, all its files together.
pub(crate) const MOST: usize = 1 << 20;

/// An image, and what becomes of it.
pub(crate) struct Bomb {
    pub(crate) name: &'static str,
    pub(crate) image: PathBuf,
    /// It is within the limits of `--untrusted`.
    pub(crate) reads: bool,
    /// A snapshot of it is to be read.
    pub(crate) snapshot: bool,
    /// Its backing files are to be opened.
    pub(crate) chain: bool,
}

/// All of them, made in `scratch`; those that decode have one `share`th of the clusters that they may have.
pub(crate) fn all(scratch: &Scratch, share: usize) -> Vec<Bomb> {
    let mut bombs = Vec::new();
    let mut add = |name: &'static str, reads: bool, make: &dyn Fn(&mut Patch)| {
        let path = scratch.subdir(name).join("image");
        let mut image = Patch { path: path.clone(), bytes: Vec::new() };
        make(&mut image);
        assert!(image.bytes.len() <= MOST, "{name}: {} bytes", image.bytes.len());
        image.save();
        let snapshot = name.starts_with("snapshots-s");
        bombs.push(Bomb { name, image: path, reads, snapshot, chain: false });
    };
    add("one-l2-table", false, &one_l2_table);
    add("l1-claimed", true, &l1_claimed);
    add("zero-clusters", true, &zero_clusters);
    add("subclusters", true, &subclusters);
    add("small-clusters", true, &small_clusters);
    add("wrong-entries", false, &wrong_entries);
    add("snapshots-same", false, &|image| snapshots(image, false));
    add("snapshots-overlapping", false, &|image| snapshots(image, true));
    add("snapshots-past-the-end", true, &snapshots_past_the_end);
    add("bitmaps", true, &|image| bitmaps(image, MOST / 2));
    add("bitmaps-past-the-end", true, &|image| bitmaps(image, MOST));
    add("extensions", true, &extensions);
    add("refcounts-1-bit", true, &|image| refcounts(image, 0));
    add("refcounts-64-bit", true, &|image| refcounts(image, 6));
    for (name, cluster_bits, most) in [
        ("zlib-blocks", 16, 100 << 10),
        ("zlib-blocks-in-4k", 14, 4096),
        ("zlib-blocks-in-512", 13, 512),
    ] {
        let stream = streams::empty_blocks(most, 1 << cluster_bits);
        add(name, true, &|image| compressed(image, cluster_bits, &stream, false, share));
    }
    let zeros = vec![0; 1 << 18];
    for (name, stream, zstd) in
        [("zlib-zeros", streams::zlib(&zeros), false), ("zstd-zeros", streams::zstd(&zeros), true)]
    {
        add(name, true, &|image| compressed(image, 18, &stream, zstd, share));
    }
    let content = pattern::mixed(3, 1 << 14);
    for (name, cluster_bits, most, zstd) in [
        ("zlib-mixed-8k", 13, 512, false),
        ("zlib-mixed-16k", 14, 512, false),
        ("zlib-mixed-256k", 18, 512, false),
        ("zstd-mixed-8k", 13, 512, true),
        ("zstd-mixed-256k", 18, 512, true),
    ] {
        let compress = if zstd { streams::zstd } else { streams::zlib };
        let stream = streams::filled(&content, most, 1 << cluster_bits, compress);
        add(name, true, &|image| compressed(image, cluster_bits, &stream, zstd, share));
    }
    bombs.push(chain(scratch, "chain", false));
    bombs.push(chain(scratch, "chain-of-claims", true));
    bombs
}

/// A header of version 3 with an L1 table of `entries` at `l1`.
fn header(image: &mut Patch, cluster_bits: u32, size: u64, l1: usize, entries: usize) {
    image.set(0, b"QFI\xfb").set_u32(field::VERSION, 3).set_u32(field::CLUSTER_BITS, cluster_bits);
    image.set_u64(field::SIZE, size).set_u32(field::L1_SIZE, entries as u32);
    image.set_u64(field::L1_OFFSET, l1 as u64).set_u32(field::REFCOUNT_ORDER, 4);
    image.set_u32(field::HEADER_LENGTH, 112).set_u64(104, 0);
    // The refcount table is past the end, where all is zero.
    image.set_u64(field::REFTABLE_OFFSET, MOST as u64).set_u32(field::REFTABLE_CLUSTERS, 1);
    image.resize(2 << cluster_bits);
}

/// Every L1 entry names one table, in which no entry continues the one before.
fn one_l2_table(image: &mut Patch) {
    let entries = (MOST - (3 << 16)) / 8;
    header(image, 16, (entries as u64 * 8192) << 16, 3 << 16, entries);
    for index in 0..8192 {
        let host = if index % 2 == 0 { 2 << 16 } else { 3 << 16 };
        image.set_u64((2 << 16) + 8 * index, COPIED | host);
    }
    for index in 0..entries {
        image.set_u64((3 << 16) + 8 * index, COPIED | 2 << 16);
    }
}

/// The largest L1 table, all of it past the end of the file.
fn l1_claimed(image: &mut Patch) {
    header(image, 16, 32 << 40, 2 << 16, (32 << 20) / 8 - (128 << 10) / 8);
}

/// As many entries as fit, which say one thing and then another.
fn zero_clusters(image: &mut Patch) {
    for entry in tables(image, 18, 8) {
        image.set_u64(entry, entry as u64 >> 3 & 1);
    }
}

/// Tables behind the L1 table up to the end; where the entries, of `width` bytes, are.
fn tables(image: &mut Patch, cluster_bits: u32, width: usize) -> std::iter::StepBy<Range<usize>> {
    let cluster = 1_usize << cluster_bits;
    let tables = MOST / cluster - 2;
    let size = (tables * cluster / width) << cluster_bits;
    header(image, cluster_bits, size as u64, cluster, tables);
    image.resize(MOST);
    for index in 0..tables {
        image.set_u64(cluster + 8 * index, COPIED | ((2 + index) * cluster) as u64);
    }
    (2 * cluster..MOST).step_by(width)
}

/// Subclusters that are zero and unallocated in turn.
fn subclusters(image: &mut Patch) {
    for entry in tables(image, 18, 16) {
        image.set_u64(entry + 8, 0x5555_5555 << 32);
    }
    image.set_u64(field::INCOMPATIBLE, 1 << 4);
}

/// As many clusters, and as many tables, as there can be.
fn small_clusters(image: &mut Patch) {
    let tables = MOST / 512 / 2 - 20;
    header(image, 9, (tables as u64 * 64) << 9, 2 << 9, tables);
    image.resize((2 << 9) + (tables * 8).next_multiple_of(512));
    for index in 0..tables {
        let at = image.append(&[0; 512]);
        image.set_u64((2 << 9) + 8 * index, COPIED | at as u64);
        for entry in 0..64 {
            image.set_u64(at + 8 * entry, (entry as u64 + index as u64) & 1);
        }
    }
    while image.bytes.len() < MOST {
        let at = image.append(&[7; 512]) as u64;
        image.set_u64(image.u64(2 << 9) as usize & 0xffff_ff00, COPIED | at);
    }
}

/// Every entry has something wrong with it.
fn wrong_entries(image: &mut Patch) {
    for entry in tables(image, 16, 8) {
        image.set_u64(entry, COPIED | ((1 << 55 | 513 << 9) + ((entry as u64) << 9)));
    }
}

/// Snapshots whose L1 tables are the same one, or lie over each other.
fn snapshots(image: &mut Patch, overlapping: bool) {
    let count = 15_000;
    let l1 = 96 << 10;
    header(image, 16, 1 << 40, 2 << 16, l1 / 8);
    image.resize((4 << 16) + 48 * count);
    for index in 0..l1 / 8 {
        image.set_u64((2 << 16) + 8 * index, COPIED | 3 << 16);
    }
    image.set_u32(field::SNAPSHOTS, count as u32).set_u64(field::SNAPSHOTS_OFFSET, 4 << 16);
    for index in 0..count {
        let at = (4 << 16) + 48 * index;
        let offset = if overlapping { (index as u64 % 16) << 16 } else { 2 << 16 };
        image.set_u64(at, offset).set_u32(at + 8, (l1 / 8) as u32 - index as u32 % 4096);
        image.set_u16(at + 12, 1).set_u16(at + 14, 1).set(at + 40, b"1n");
    }
}

fn snapshots_past_the_end(image: &mut Patch) {
    header(image, 9, 1 << 20, 2 << 9, 64);
    image.set_u32(field::SNAPSHOTS, 65_536).set_u64(field::SNAPSHOTS_OFFSET, 1 << 20);
}

/// As many bitmaps as fit before `table`, all of them with the table that is there, as long as one may be.
fn bitmaps(image: &mut Patch, table: usize) {
    let cluster = 4096_usize;
    let entries = (512 << 20) / cluster / if table < MOST { 2 } else { 1 };
    let size = (entries * cluster * 8) << 9;
    header(image, 12, size as u64, MOST, size / (cluster / 8 * cluster));
    image.resize(table);
    let count = (table - 2 * cluster) / 32;
    let mut directory = Vec::new();
    for index in 0..count {
        directory.extend((table as u64).to_be_bytes());
        directory.extend((entries as u32).to_be_bytes());
        directory.extend([0, 0, 0, 0, 1, 9, 0, 6, 0, 0, 0, 0]);
        directory.extend(format!("{index:06x}").bytes());
        directory.resize(directory.len().next_multiple_of(8), 0);
    }
    let mut extension = Vec::new();
    extension.extend((count as u32).to_be_bytes());
    extension.extend([0; 4]);
    extension.extend((directory.len() as u64).to_be_bytes());
    extension.extend((2 * cluster as u64).to_be_bytes());
    image.set_header_area(112, &[(magic::BITMAPS, &extension)], true).set_u64(field::AUTOCLEAR, 1);
    image.set(2 * cluster, &directory).resize(MOST);
}

/// A first cluster full of extensions that nobody knows.
fn extensions(image: &mut Patch) {
    header(image, 19, 1 << 30, 1 << 19, 1);
    let list = vec![(magic::UNKNOWN, &b""[..]); ((1 << 19) - 128) / 8];
    image.set_header_area(112, &list, true);
}

/// A refcount table as large as one may be, whose entries name one block.
fn refcounts(image: &mut Patch, order: u32) {
    header(image, 9, 1 << 20, 4 << 9, 32);
    image.set_u32(field::REFCOUNT_ORDER, order).resize(MOST);
    image.set_u64(field::REFTABLE_OFFSET, 8 << 9).set_u32(field::REFTABLE_CLUSTERS, (8 << 20) >> 9);
    for at in (8 << 9..MOST).step_by(8) {
        image.set_u64(at, 2 << 9);
    }
}

/// As many guest clusters as `--untrusted` lets pass, or a `share` of them, all on one compressed cluster.
fn compressed(image: &mut Patch, cluster_bits: u32, stream: &[u8], zstd: bool, share: usize) {
    let cluster = 1_usize << cluster_bits;
    let own = stream.len().next_multiple_of(512);
    // The stream lies in the header's cluster or behind the tables.
    let inside = 512 + own <= cluster;
    let room = MOST - 2 * cluster - if inside { 0 } else { own };
    let charge = (own - 511).max(cluster / 1032).max(14);
    let clusters = (MOST / charge).min(room / cluster * (cluster / 8)) / share;
    let tables = clusters.div_ceil(cluster / 8);
    header(image, cluster_bits, (clusters * cluster) as u64, cluster, tables);
    if zstd {
        image.set_u64(field::INCOMPATIBLE, 1 << 3).set_u8(field::COMPRESSION, 1);
    }
    image.resize((2 + tables) * cluster);
    let host = if inside { 512 } else { image.bytes.len() };
    image.set(host, stream).resize(MOST);
    let entry = image.compressed_entry(host as u64, (own / 512 - 1) as u64);
    for index in 0..clusters {
        image.set_u64(2 * cluster + 8 * index, entry);
    }
    for index in 0..tables {
        image.set_u64(cluster + 8 * index, COPIED | ((2 + index) * cluster) as u64);
    }
}

/// As many images on each other as may be, each with clusters where the others have none.
fn chain(scratch: &Scratch, name: &'static str, claims: bool) -> Bomb {
    let dir = scratch.subdir(name);
    let mut bytes = 0;
    for depth in 0..200_usize {
        let mut image = Patch { path: dir.join(format!("{depth}")), bytes: Vec::new() };
        let (entries, tables) = if claims { ((32 << 20) / 8 - 128, 1) } else { (64, 6) };
        header(&mut image, 9, (entries as u64 * 64) << 9, 3 << 9, entries);
        image.resize(5120);
        for table in 0..tables {
            let at = (9 - table) << 9;
            image.set_u64((3 << 9) + (depth + 11 * table) % 64 * 8, COPIED | at as u64);
            for index in (depth % 2..64).step_by(2) {
                image.set_u64(at + 8 * index, 1);
            }
        }
        if depth > 0 {
            image.set_header_area(112, &[(magic::BACKING_FORMAT, b"qcow2")], true);
            image.set_backing(400, format!("{}", depth - 1).as_bytes());
        }
        bytes += image.bytes.len();
        image.save();
    }
    assert!(bytes <= MOST, "{bytes}");
    Bomb { name, image: dir.join("199"), reads: true, snapshot: false, chain: true }
}
