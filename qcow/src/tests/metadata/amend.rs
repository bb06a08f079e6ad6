//! Version, refcount width, lazy refcounts, data file.

use fixtures::args;

use super::*;
use crate::chain::{Chain, Format};
use crate::format::{GuestOffset, Version};
use crate::image::Image;
use crate::ops::amend::{AmendOptions, amend, amend_in};
use crate::ops::create::{CreateOptions, create};
use crate::ops::{Preallocation, Qcow2Options, TargetOptions};
use crate::{ErrorKind, Result};

/// What amending changes, and what it must not: the guest's view, of all snapshots.
#[derive(Debug, PartialEq)]
struct Seen {
    version: Version,
    refcount_bits: u32,
    lazy: bool,
    bitmaps: usize,
    data_file: Option<String>,
    raw: bool,
    content: Vec<u32>,
}

fn base() -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new(vec![0xba; 37_001]))
}

fn seen(storage: Arc<dyn Storage>) -> Seen {
    let image = Image::open(Arc::clone(&storage)).unwrap();
    let header = image.header();
    let view = |snapshot: Option<&[u8]>| {
        let mut chain = Chain::builder().layer("image", Arc::clone(&storage), Format::Qcow2);
        if image.has_data_file() {
            chain = chain.data_file("data", Arc::new(MemoryStorage::new(vec![7; 1 << 20])));
        }
        if image.area().backing_name.is_some() {
            chain = chain.layer("base", base(), Format::Raw);
        }
        if let Some(id) = snapshot {
            chain = chain.snapshot(String::from_utf8(id.to_vec()).unwrap());
        }
        let chain = chain.open().unwrap();
        let mut bytes = vec![0; chain.virtual_size() as usize];
        chain.read_at(&mut bytes, GuestOffset(0)).unwrap();
        crc32fast::hash(&bytes)
    };
    let snapshots = image.snapshots().iter().map(|snapshot| Some(&*snapshot.id));
    Seen {
        version: header.version,
        refcount_bits: header.refcounts().bits(),
        lazy: header.compatible.contains(crate::format::Compatible::LAZY_REFCOUNTS),
        bitmaps: image.bitmaps().len(),
        data_file: image.area().data_file_name().map(|n| String::from_utf8(n.to_vec()).unwrap()),
        raw: header.autoclear.contains(crate::format::Autoclear::DATA_FILE_RAW),
        content: std::iter::once(None).chain(snapshots).map(view).collect(),
    }
}

fn change(storage: Arc<dyn WriteStorage>, options: &AmendOptions) -> Result<()> {
    let options = options.clone().threads(1);
    amend_in(storage, &options, &Silent, &CancelToken::new()).map(drop)
}

fn to(version: Version) -> AmendOptions {
    AmendOptions::default().version(version)
}

/// An image with data, zero clusters with and without a place, compressed clusters and three snapshots that share
/// tables. Its disk is 16 times `unit`.
fn full(dir: &Path, options: &str, unit: u64) -> Vec<u8> {
    let path = dir.join("image.qcow2");
    let _ = std::fs::remove_file(&path);
    qemu::create(&path, options, &(16 * unit).to_string());
    let write = |commands: &[(&str, u64, u64)]| {
        let command =
            |(what, at, len): &(&str, u64, u64)| format!("{what} {} {}", at * unit, len * unit);
        qemu::qemu_io("qcow2", &path, &commands.iter().map(command).collect::<Vec<_>>());
    };
    write(&[("write -P 1", 0, 5), ("write -z", 8, 1)]);
    if !options.contains("0.10") {
        write(&[("write -z", 1, 1)]);
    }
    if !options.contains("refcount_bits=1") {
        qemu::qemu_img(&args!["snapshot", "-c", "one", path]);
        write(&[("write -P 2", 1, 1), ("write -z", 2, 1), ("write -c -P 3", 12, 1)]);
        qemu::qemu_img(&args!["snapshot", "-c", "two", path]);
        qemu::qemu_img(&args!["snapshot", "-c", "three", path]);
        write(&[("write -P 4", 4, 1), ("write -z", 6, 1)]);
    }
    std::fs::read(&path).unwrap()
}

#[test]
fn a_crash_leaves_the_old_image_or_the_amended_one_and_the_guest_sees_the_same() {
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let over = format!("backing_file={},backing_fmt=raw", dir.join("base.raw").display());
    std::fs::write(dir.join("base.raw"), base().bytes()).unwrap();
    let bits = |bits| AmendOptions::default().refcount_bits(bits);
    let lazy = |on| AmendOptions::default().lazy_refcounts(on);
    let rows: [(u64, String, Vec<AmendOptions>); 6] = [
        (
            8 << 10,
            "cluster_size=8k,compat=0.10".into(),
            vec![
                to(Version::V3).lazy_refcounts(true),
                bits(8),
                lazy(false),
                to(Version::V2).refcount_bits(16),
            ],
        ),
        (
            16 << 10,
            format!("cluster_size=4k,{over}"),
            vec![bits(64), to(Version::V2).refcount_bits(16)],
        ),
        (
            4 << 10,
            "cluster_size=4k".into(),
            vec![to(Version::V2), to(Version::V3).refcount_bits(32)],
        ),
        (
            4 << 10,
            format!("cluster_size=512,{over}"),
            vec![bits(64), bits(8), lazy(true), to(Version::V2).refcount_bits(16), to(Version::V3)],
        ),
        (
            64 << 10,
            "cluster_size=64k,refcount_bits=1".into(),
            vec![bits(64), bits(1), bits(16), bits(2)],
        ),
        (4 << 10, "cluster_size=4k,refcount_bits=64".into(), vec![bits(4), bits(64)]),
    ];
    for (unit, options, steps) in rows {
        let mut image = full(dir, &options, unit);
        let before = seen(Arc::new(MemoryStorage::new(image.clone()))).content;
        for (number, step) in steps.iter().enumerate() {
            let what = format!("{options}: step {number}");
            image = old_or_new(&what, &image, dir, |storage| change(storage, step), seen);
            let now = seen(Arc::new(MemoryStorage::new(image.clone())));
            assert_eq!(now.content, before, "{what}: content");
            if let Some(bits) = step.refcount_bits {
                assert_eq!(now.refcount_bits, bits, "{what}");
            }
            if let Some(version) = step.version {
                assert_eq!(now.version, version, "{what}");
            }
            if let Some(lazy) = step.lazy_refcounts {
                assert_eq!(now.lazy, lazy, "{what}");
            }
            // QEMU reads the same, and goes on with it.
            let path = dir.join("goes-on.qcow2");
            std::fs::write(&path, &image).unwrap();
            let crc = crc32fast::hash(&qemu::raw_of("qcow2", &path));
            assert_eq!(crc, before[0], "{what}: as QEMU reads it");
            let crc = qemu::try_raw_of("qcow2", &path, before.get(1).map(|_| "one"));
            let first = before.get(1).unwrap_or(&before[0]);
            assert_eq!(crc32fast::hash(&crc.unwrap()), *first, "{what}: snapshot");
            qemu::qemu_io("qcow2", &path, &["write -P 9 3k 40k"]);
            qemu::assert_clean(&path);
        }
    }
}

#[test]
fn what_does_not_go_together_is_refused_as_a_whole_and_nothing_is_written() {
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = dir.join("image.qcow2");
    let v2 = made(dir, "compat=0.10", "1M", &[]);
    let data = format!("data_file={}", dir.join("data").display());
    let with_file = made(dir, &data, "1M", &[]);
    let raw = made(dir, &format!("{data},data_file_raw=on"), "1M", &[]);
    let zstd = made(dir, "compression_type=zstd", "1M", &["write -c -P 1 0 64k"]);
    let wide = made(dir, "extended_l2=on", "1M", &[]);
    let shared = full(dir, "", 64 << 10);
    let bits = |bits| AmendOptions::default().refcount_bits(bits);
    let v3 = made(dir, "", "1M", &[]);
    qemu::qemu_img(&args!["bitmap", "--add", path, "b"]);
    let bitmap = std::fs::read(&path).unwrap();
    let sized = {
        made(dir, "", "1M", &[]);
        qemu::qemu_img(&args!["snapshot", "-c", "small", path]);
        qemu::qemu_img(&args!["resize", "-q", path, "2M"]);
        std::fs::read(&path).unwrap()
    };
    let file = |name: &str| AmendOptions::default().data_file(std::path::PathBuf::from(name));
    let rows: [(&[u8], AmendOptions, ErrorKind, &str); 18] = [
        (&v2, bits(8), ErrorKind::Usage, "refcounts of 16 bits"),
        (&v2, AmendOptions::default().lazy_refcounts(true), ErrorKind::Usage, "no lazy"),
        (&v3, bits(3), ErrorKind::Usage, "power of two"),
        (&v3, bits(128), ErrorKind::Usage, "power of two"),
        (&v3, bits(0), ErrorKind::Usage, "power of two"),
        (&v3, to(Version::V2).refcount_bits(8), ErrorKind::Usage, "16 bits"),
        (&v3, to(Version::V2).lazy_refcounts(true), ErrorKind::Usage, "no lazy"),
        (&v3, file("other"), ErrorKind::Usage, "no external data file"),
        (&with_file, to(Version::V2), ErrorKind::Unsupported, "data file"),
        (&with_file, file(""), ErrorKind::Usage, "1 to 1023"),
        (
            &with_file,
            AmendOptions::default().data_file_raw(true),
            ErrorKind::Usage,
            "cannot become",
        ),
        (&raw, to(Version::V2), ErrorKind::Unsupported, "data file"),
        (&zstd, to(Version::V2), ErrorKind::Unsupported, "zstd"),
        (&wide, to(Version::V2), ErrorKind::Unsupported, "subclusters"),
        (&bitmap, to(Version::V2), ErrorKind::Unsupported, "bitmaps"),
        (&sized, to(Version::V2), ErrorKind::Unsupported, "another size"),
        (&shared, bits(1), ErrorKind::Limit, "references"),
        (&shared, bits(1).lazy_refcounts(true), ErrorKind::Limit, "count no further than 1"),
    ];
    for (image, options, kind, words) in rows {
        let storage = Arc::new(SimStorage::new(image.to_vec()));
        let error = change(storage.clone(), &options).unwrap_err();
        assert_eq!(error.kind(), kind, "{options:?}: {error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(storage.calls(), 0, "{error}");
    }
    // What is as it is to be is not written.
    let storage = Arc::new(SimStorage::new(v3));
    change(storage.clone(), &to(Version::V3).refcount_bits(16).lazy_refcounts(false)).unwrap();
    assert_eq!(storage.calls(), 0);
    // Bitmaps go if that is asked for, without a leak.
    let drop = to(Version::V2).drop_bitmaps(true);
    let image = old_or_new("drop", &bitmap, dir, |storage| change(storage, &drop), seen);
    assert_eq!(leaks(&image, "drop"), 0);
    // zstd without a cluster that is compressed with it.
    let zstd = made(dir, "compression_type=zstd", "1M", &["write -P 1 0 64k"]);
    old_or_new("zstd", &zstd, dir, |storage| change(storage, &to(Version::V2)), seen);
}

#[test]
fn a_data_file_is_renamed_if_the_new_one_has_the_same_content() {
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = dir.join("image.qcow2");
    let data = dir.join("data");
    let options = format!("data_file={},data_file_raw=on", data.display());
    let image = made(dir, &options, "1M", &["write -P 1 0 64k"]);
    let new = dir.join("other");
    let amend_to = |name: &str, unchecked: bool| {
        let options = AmendOptions::default().data_file(std::path::PathBuf::from(name));
        let options = options.unchecked(unchecked);
        when_free(|| amend(&path, &options, &Silent, &CancelToken::new()))
    };
    let error = amend_to("other", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[1 << 19] ^= 1;
    std::fs::write(&new, &bytes).unwrap();
    let error = amend_to("other", false).unwrap_err();
    assert!(error.to_string().contains("differs from the old data file at 0x80000"), "{error}");
    std::fs::write(&new, &bytes[..100]).unwrap();
    let error = amend_to("other", false).unwrap_err();
    assert!(error.to_string().contains("it has 100 bytes"), "{error}");
    assert!(std::fs::read(&path).unwrap() == image, "untouched");
    std::fs::copy(&data, &new).unwrap();
    let outcome = amend_to("other", false).unwrap();
    assert_eq!(outcome.changes[0].option, "data_file");
    assert_eq!(outcome.changes[0].to, "other");
    // Moved: the old one is gone.
    std::fs::rename(&new, dir.join("third")).unwrap();
    std::fs::write(&new, b"short").unwrap();
    std::fs::remove_file(&new).unwrap();
    let third = dir.join("third");
    // QEMU looks for a relative name in its own directory.
    amend_to(third.to_str().unwrap(), false).unwrap();
    let shown = qemu::info(&path);
    assert_eq!(shown["format-specific"]["data"]["data-file"], third.to_str().unwrap());
    assert_eq!(qemu::raw_of("qcow2", &path)[..65536], [1; 65536]);
    amend_to("nowhere", true).unwrap();
    amend_to(third.to_str().unwrap(), false).unwrap();
    // No longer raw.
    let image = std::fs::read(&path).unwrap();
    let off = AmendOptions::default().data_file_raw(false);
    let image = old_or_new("raw off", &image, dir, |storage| change(storage, &off), seen);
    assert!(!seen(Arc::new(MemoryStorage::new(image))).raw);
}

/// The refcounts of an image with small clusters are a row of thousands of clusters, which have refcounts too.
#[test]
fn a_change_of_refcounts_in_a_full_image_with_small_clusters_takes_little_more_than_its_refcounts()
{
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    for (from, to) in [(1, 64), (64, 1), (16, 64)] {
        let what = format!("refcounts of {from} bits, then of {to}");
        let path = dir.path().join(format!("{from}-{to}.qcow2"));
        let target = Qcow2Options::default()
            .cluster_size(512)
            .refcount_bits(from)
            .preallocation(Preallocation::Metadata);
        let options = CreateOptions::default().size(24 << 20).target(TargetOptions::Qcow2(target));
        create(&path, &options).unwrap();
        let storage = Arc::new(MemoryStorage::new(std::fs::read(&path).unwrap()));
        let before = storage.len();
        change(storage.clone(), &AmendOptions::default().refcount_bits(to)).unwrap();
        let image = storage.bytes();
        assert_eq!(leaks(&image, &what), 0, "{what}");
        // New refcounts of all clusters, and the old ones of those; the rest is a table, and blocks cut short.
        let clusters = before / 512 * 11 / 10;
        let most = before + clusters / 8 * u64::from(from + to) * 5 / 4 + (64 << 10);
        assert!(image.len() as u64 <= most, "{what}: {before}, then {}, {most}", image.len());
        by_qemu(&image, dir.path(), &what);
    }
}
