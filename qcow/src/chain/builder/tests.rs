//! Chains in memory read as QEMU reads the same images in files.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use fixtures::kept;
use fixtures::pattern::Random;

use super::*;
use crate::ErrorKind;
use crate::chain::OpenOptions;
use crate::format::GuestOffset;
use crate::io::{FileStorage, MemoryStorage};

fn memory(path: &Path) -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new(std::fs::read(path).unwrap()))
}

/// The chain at `path`, taken apart and put together again from storages in memory.
fn in_memory(path: &Path, snapshot: Option<&str>) -> Chain {
    let chain = Chain::open(path, &OpenOptions::default()).unwrap();
    let mut builder = Chain::builder();
    for layer in chain.layers() {
        builder = builder.layer(layer.path(), memory(layer.path()), layer.format());
        if layer.data_path() != layer.path() {
            builder = builder.data_file("data", memory(layer.data_path()));
        }
    }
    match snapshot {
        Some(snapshot) => builder.snapshot(snapshot),
        None => builder,
    }
    .open()
    .unwrap()
}

fn whole(chain: &Chain) -> Vec<u8> {
    let mut disk = vec![0xee; chain.virtual_size() as usize];
    chain.read_at(&mut disk, GuestOffset(0)).unwrap();
    disk
}

#[test]
fn chains_in_memory_read_as_recorded() {
    for row in kept::table() {
        let kept::Expected::Reads(expected) = row.expected else { continue };
        if row.format == "raw" {
            continue;
        }
        let chain = in_memory(&row.path(), row.snapshot.as_deref());
        assert_eq!(crc32fast::hash(&whole(&chain)), expected, "{}", row.file);
    }
}

#[test]
fn a_chain_in_memory_reads_as_qemu_img_reads_its_files() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("SKIPPED: no qemu-img");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let chain = fixtures::big::big_chain(dir.path(), 4, 4 << 20);
    let raw = dir.path().join("by-qemu.raw");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-U", "-O", "raw"]).arg(chain.top()).arg(&raw);
    assert!(convert.status().unwrap().success());
    let ours = in_memory(chain.top(), None);
    assert_eq!(ours.layers().len(), 4);
    assert!(ours.layers().iter().all(|layer| layer.file().is_none()));
    assert!(whole(&ours) == std::fs::read(&raw).unwrap());
}

/// Counts reads, and those of what is not data.
#[derive(Debug)]
struct Counting {
    bytes: MemoryStorage,
    reads: AtomicU64,
    holes: AtomicU64,
}

impl Counting {
    fn new(path: &Path) -> Arc<Self> {
        let bytes = MemoryStorage::new(std::fs::read(path).unwrap());
        Arc::new(Self { bytes, reads: AtomicU64::new(0), holes: AtomicU64::new(0) })
    }

    fn take(&self) -> (u64, u64) {
        (self.reads.swap(0, Ordering::Relaxed), self.holes.swap(0, Ordering::Relaxed))
    }
}

impl Storage for Counting {
    fn len(&self) -> u64 {
        self.bytes.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.read_at(buf, offset)
    }

    fn next_data(&self, offset: u64) -> std::io::Result<Option<u64>> {
        self.holes.fetch_add(1, Ordering::Relaxed);
        self.bytes.next_data(offset)
    }
}

#[test]
fn a_second_pass_of_random_reads_reads_no_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let files = fixtures::big::big_chain(dir.path(), 4, 8 << 20);
    let opened = Chain::open(files.top(), &OpenOptions::default()).unwrap();
    let mut storages = Vec::new();
    let mut builder = Chain::builder();
    for layer in opened.layers() {
        let storage = Counting::new(layer.path());
        storages.push(Arc::clone(&storage));
        builder = builder.layer(layer.path(), storage, layer.format());
    }
    let chain = builder.open().unwrap();
    let size = chain.virtual_size();
    let pass = || {
        for storage in &storages {
            storage.take();
        }
        let mut random = Random::new(5);
        for _ in 0..500 {
            let at = random.below(size / 4096) * 4096;
            chain.read_at(&mut [0; 4096], GuestOffset(at)).unwrap();
        }
        let counts = storages.iter().map(|storage| storage.take());
        counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
    };
    // What the data alone takes: one read for each part of a piece that lies in one place.
    let mut data = 0;
    let mut random = Random::new(5);
    for _ in 0..500 {
        let at = random.below(size / 4096) * 4096;
        let extents = chain.extents_in(GuestOffset(at), 4096).map(|extent| extent.unwrap());
        data += extents.filter(|extent| !extent.is_zero()).count() as u64;
    }
    let (first, second) = (pass(), pass());
    assert!(data > 100, "the test reads data");
    assert!(first.0 > data, "the first pass loads tables");
    assert_eq!(second, (data, 0), "(reads, searches for holes)");
}

#[test]
fn a_sparse_disk_costs_no_scan_of_its_tables() {
    fixtures::needs_qemu!();
    // 64 TiB, of which nothing is allocated: the L1 table alone is 1 MiB.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.qcow2");
    fixtures::qemu::create(&path, "", "64T");
    let storage = Counting::new(&path);
    let chain =
        Chain::builder().layer("sparse", Arc::clone(&storage) as _, Format::Qcow2).open().unwrap();
    storage.take();
    let mut buf = [1; 4096];
    chain.read_at(&mut buf, GuestOffset(1 << 40)).unwrap();
    assert_eq!(buf, [0; 4096]);
    assert_eq!(storage.take(), (1, 0), "one page of L1 entries");
}

#[test]
fn a_small_cache_reads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let files = fixtures::big::big_chain(dir.path(), 4, 8 << 20);
    let opened = Chain::open(files.top(), &OpenOptions::default()).unwrap();
    let mut builder = Chain::builder().table_cache(0);
    for layer in opened.layers() {
        builder = builder.layer(layer.path(), memory(layer.path()), layer.format());
    }
    assert!(whole(&builder.open().unwrap()) == whole(&opened));
}

#[test]
fn layers_that_do_not_belong_together_are_refused() {
    let image = |name: &str| memory(&kept::dir().join(name));
    let usage = |builder: ChainBuilder, expected: &str| {
        let error = builder.open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    usage(Chain::builder(), "needs a layer");
    usage(Chain::builder().data_file("data", image("base.raw")), "needs a layer");
    let overlay = || Chain::builder().layer("top", image("v2-overlay.qcow2"), Format::Qcow2);
    usage(overlay(), "no layer is given below");
    let alone = overlay().partial(true).open().unwrap();
    assert_eq!(alone.layers().len(), 1);
    let two = Chain::builder().layer("top", image("v3.qcow2"), Format::Qcow2);
    usage(two.layer("below", image("base.raw"), Format::Raw), "no backing file");
    let data = || Chain::builder().layer("top", image("data-file-raw-on.qcow2"), Format::Qcow2);
    usage(data(), "needs an external data file");
    let raw = Chain::builder().layer("top", image("base.raw"), Format::Raw);
    usage(raw.data_file("data", image("base.raw")), "has no external data file, and one");
}

#[test]
fn images_in_files_are_locked_unless_they_are_shared() {
    let temporary = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(kept::dir().join("v3.qcow2"), temporary.path()).unwrap();
    let writer = crate::io::WritableFile::open(temporary.path()).unwrap();
    let open = |share| {
        let file: Arc<dyn Storage> = Arc::new(FileStorage::open(temporary.path()).unwrap());
        Chain::builder().layer("top", file, Format::Qcow2).force_share(share).open()
    };
    assert!(open(false).is_err());
    open(true).unwrap();
    drop(writer);
    open(false).unwrap();
}

#[test]
fn layers_of_files_give_their_descriptors() {
    use std::os::fd::AsFd;
    let chain = Chain::open(&kept::dir().join("v3.qcow2"), &OpenOptions::default()).unwrap();
    let file = chain.layers()[0].data_file().unwrap();
    let own = std::fs::File::from(file.as_fd().try_clone_to_owned().unwrap());
    assert_eq!(own.metadata().unwrap().len(), file.len());
}
