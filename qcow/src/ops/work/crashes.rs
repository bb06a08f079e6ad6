//! What a crash leaves of a commit and of a rebase: at every moment the guest reads the same.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use std::collections::HashSet;
use std::sync::Arc;

use super::differences::Differences;
use super::overwrite::{Holes, Overwrite};
use super::sparse::Sparse;
use super::transfer;
use super::writes::Settings;
use crate::chain::{Chain, Format};
use crate::disk::{Disk, WriteOptions};
use crate::format::{GuestOffset, Version};
use crate::image::Image;
use crate::io::sim::SimStorage;
use crate::io::sim::files::{Calls, File, crashed};
use crate::io::{MemoryStorage, Storage, Zeroes};
use crate::ops::backing::{BackingFile, store_backing};
use crate::ops::check::{CheckOptions, check_storage};
use crate::ops::create::{Backing, CreateOptions, create};
use crate::ops::edit::{Opened, change};
use crate::ops::{Qcow2Options, TargetOptions};
use crate::{CancelToken, Silent};

/// Random states for each stretch between two syncs.
const DRAWN: usize = 8;

/// An image and how it is made.
struct Kind {
    cluster: u64,
    version: Version,
    extended_l2: bool,
}

const KINDS: [Kind; 4] = [
    Kind { cluster: 512, version: Version::V3, extended_l2: false },
    Kind { cluster: 4096, version: Version::V3, extended_l2: false },
    Kind { cluster: 4096, version: Version::V2, extended_l2: false },
    Kind { cluster: 16384, version: Version::V3, extended_l2: true },
];

impl Kind {
    /// Clusters of the disk, the last of which is half a one where that can be.
    fn size(&self) -> usize {
        (self.cluster * 12 - if self.cluster > 512 { self.cluster / 2 } else { 0 }) as usize
    }

    fn image(&self, backing: Option<&str>) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let target = Qcow2Options::default()
            .cluster_size(self.cluster)
            .version(self.version)
            .extended_l2(self.extended_l2);
        let backing = backing.map(|name| Backing::new(name, Format::Raw).unchecked(true));
        let options = CreateOptions::default()
            .size(self.size() as u64)
            .target(TargetOptions::Qcow2(target))
            .backing(backing);
        create(&path, &options).unwrap();
        std::fs::read(&path).unwrap()
    }

    /// Some data, some zeros, aligned and not.
    fn scribble(&self, disk: &Disk) {
        let cluster = self.cluster;
        disk.write_at(&vec![0xa1; cluster as usize * 2], cluster).unwrap();
        disk.write_at(&[0xa2; 700], cluster * 5 + 100).unwrap();
        disk.write_zeroes(cluster * 7, cluster, Zeroes::Unmap).unwrap();
        disk.flush().unwrap();
    }
}

fn raw(bytes: Vec<u8>) -> Chain {
    Chain::builder().layer("raw", Arc::new(MemoryStorage::new(bytes)), Format::Raw).open().unwrap()
}

fn over(image: &[u8], below: Option<&Chain>) -> Chain {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(image.to_vec()));
    Chain::over((std::path::Path::new("image"), storage, Format::Qcow2), None, below).unwrap()
}

fn content(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read_at(&mut bytes, GuestOffset(0)).unwrap();
    bytes
}

fn sound(image: &[u8], what: &str) {
    let storage = Arc::new(MemoryStorage::new(image.to_vec()));
    let options = CheckOptions::default().threads(1);
    let found = check_storage(storage, &options, &Silent, &CancelToken::new()).unwrap();
    assert_eq!((found.corruptions, found.check_errors), (0, 0), "{what}: {:?}", found.findings);
}

fn settings<'a>(cancel: &'a CancelToken, disk: &Disk, compress: bool) -> Settings<'a> {
    Settings {
        threads: 1,
        dry_run: false,
        verify: true,
        compress,
        sparse: Sparse::Finest,
        in_order: false,
        rate: None,
        zeros_by_entry: disk.has_zero_clusters(),
        observer: &Silent,
        cancel,
    }
}

#[test]
fn a_rebase_that_crashes_leaves_what_the_guest_read_over_the_backing_file_that_the_header_names() {
    for (kind, compress) in KINDS.iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let size = kind.size();
        let mut old_bytes: Vec<u8> = (0..size - 1024).map(|at| (at / 512 % 7 + 1) as u8).collect();
        old_bytes[kind.cluster as usize * 4..kind.cluster as usize * 5].fill(0);
        let mut new_bytes = old_bytes.clone();
        new_bytes[kind.cluster as usize * 3..kind.cluster as usize * 6].fill(0xb1);
        new_bytes.resize(size + 4096, 0xb2);
        let (old, new) = (raw(old_bytes), raw(new_bytes));
        let start = {
            let storage = Arc::new(MemoryStorage::new(kind.image(Some("old"))));
            let write = WriteOptions::new().backing(old.clone());
            let disk = Disk::from_storage(storage.clone(), Format::Qcow2, write).unwrap();
            kind.scribble(&disk);
            disk.close().unwrap();
            storage.bytes()
        };
        let before = content(&over(&start, Some(&old)));
        let sim = Arc::new(SimStorage::new(start));
        let write = WriteOptions::new().backing(new.clone());
        let disk = Disk::from_storage(sim.clone(), Format::Qcow2, write).unwrap();
        let cancel = CancelToken::new();
        let steps = Differences::new(&old, &new, &disk, compress).unwrap();
        let done = transfer::run(&steps, &disk, settings(&cancel, &disk, compress)).unwrap();
        assert!(done.data_bytes > 0);
        disk.close().unwrap();
        store_backing(sim.clone(), Some(&BackingFile::new("new", "raw"))).unwrap();
        let (mut seen, mut switched) = (HashSet::new(), 0);
        for crash in sim.crashes(kind.cluster, DRAWN) {
            if !seen.insert(crash.bytes.clone()) {
                continue;
            }
            let what = format!("clusters of {}, {}", kind.cluster, crash.moment);
            sound(&crash.bytes, &what);
            let image = Image::open(Arc::new(MemoryStorage::new(crash.bytes.clone()))).unwrap();
            let below = match image.area().backing_name.as_deref() {
                Some(b"old") => &old,
                Some(b"new") => &new,
                other => panic!("{what}: {other:?}"),
            };
            switched += u32::from(std::ptr::eq(below, &new));
            assert!(content(&over(&crash.bytes, Some(below))) == before, "{what}");
        }
        assert!(seen.len() > 5 && switched > 0, "{} states, {switched} switched", seen.len());
        assert!(content(&over(&sim.bytes(), Some(&new))) == before);
    }
}

#[test]
fn a_commit_that_crashes_leaves_what_the_guest_reads_through_the_overlay() {
    for (base_kind, overlay_kind) in KINDS.iter().flat_map(|a| KINDS.iter().map(move |b| (a, b))) {
        let (start, overlay) = {
            let storage = Arc::new(MemoryStorage::new(base_kind.image(None)));
            let base = Disk::from_storage(storage.clone(), Format::Qcow2, WriteOptions::new());
            let base = base.unwrap();
            base.write_at(&vec![0xc1; base_kind.size() - 512], 512).unwrap();
            base.close().unwrap();
            let below = over(&storage.bytes(), None);
            if overlay_kind.size() > base_kind.size() {
                continue;
            }
            let image = Arc::new(MemoryStorage::new(overlay_kind.image(Some("base"))));
            let write = WriteOptions::new().backing(below);
            let disk = Disk::from_storage(image.clone(), Format::Qcow2, write).unwrap();
            overlay_kind.scribble(&disk);
            disk.close().unwrap();
            (storage.bytes(), image.bytes())
        };
        let before = content(&over(&overlay, Some(&over(&start, None))));
        let sim = Arc::new(SimStorage::new(start));
        let disk = Disk::from_storage(sim.clone(), Format::Qcow2, WriteOptions::new()).unwrap();
        let cancel = CancelToken::new();
        let upper = over(&overlay, None);
        let steps = Overwrite::new(&upper, disk.size(), Holes::Leave).unwrap();
        let settings = Settings { zeros_by_entry: true, ..settings(&cancel, &disk, false) };
        transfer::run(&steps, &disk, settings).unwrap();
        disk.close().unwrap();
        let mut seen = HashSet::new();
        for crash in sim.crashes(base_kind.cluster ^ overlay_kind.cluster, DRAWN) {
            if seen.insert(crash.bytes.clone()) {
                let what = format!(
                    "{} into {}, {}",
                    overlay_kind.cluster, base_kind.cluster, crash.moment
                );
                sound(&crash.bytes, &what);
                let base = over(&crash.bytes, None);
                assert!(content(&over(&overlay, Some(&base))) == before, "{what}");
            }
        }
        let after = content(&over(&sim.bytes(), None));
        assert!(after[..before.len()] == before, "the base has all");
        assert!(after[before.len()..].iter().all(|byte| *byte == 0xc1), "and keeps its end");
    }
}

/// The base is two files, and the overlay is emptied: three files that a crash stops at different moments (W-24, W-39).
#[test]
fn a_commit_into_a_base_with_a_data_file_that_crashes_leaves_what_the_guest_reads() {
    fixtures::needs_qemu!();
    let kind = &KINDS[1];
    for raw_outside in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (path, data) = (dir.path().join("base.qcow2"), dir.path().join("data.raw"));
        let raw = if raw_outside { "on" } else { "off" };
        let options = format!("cluster_size=4k,data_file={},data_file_raw={raw}", data.display());
        fixtures::qemu::create(&path, &options, &kind.size().to_string());
        let chain_of = |image: &[u8], data: &[u8]| {
            let storage = |bytes: &[u8]| Arc::new(MemoryStorage::new(bytes.to_vec()));
            let builder = Chain::builder().layer("base", storage(image), Format::Qcow2);
            builder.data_file("data", storage(data)).open().unwrap()
        };
        let [image, data] = [path, data].map(|file| {
            let bytes = std::fs::read(file).unwrap();
            Arc::new(MemoryStorage::new(bytes))
        });
        let write = WriteOptions::new().data_file(data.clone());
        let disk = Disk::from_storage(image.clone(), Format::Qcow2, write).unwrap();
        disk.write_at(&[0xc1; 5 * 4096], 4096).unwrap();
        disk.close().unwrap();
        let (image, data) = (image.bytes(), data.bytes());
        let overlay = {
            let storage = Arc::new(MemoryStorage::new(kind.image(Some("base"))));
            let write = WriteOptions::new().backing(chain_of(&image, &data));
            let disk = Disk::from_storage(storage.clone(), Format::Qcow2, write).unwrap();
            kind.scribble(&disk);
            disk.close().unwrap();
            storage.bytes()
        };
        let before = content(&over(&overlay, Some(&chain_of(&image, &data))));
        let start = [image, data, overlay];
        let calls = Calls::default();
        let file = |number: usize| {
            let memory = MemoryStorage::new(start[number].clone());
            Arc::new(File { number, calls: Arc::clone(&calls), memory })
        };
        let write = WriteOptions::new().data_file(file(1));
        let disk = Disk::from_storage(file(0), Format::Qcow2, write).unwrap();
        let cancel = CancelToken::new();
        let upper = over(&start[2], None);
        let steps = Overwrite::new(&upper, disk.size(), Holes::Leave).unwrap();
        let settings = Settings { zeros_by_entry: true, ..settings(&cancel, &disk, false) };
        transfer::run(&steps, &disk, settings).unwrap();
        disk.close().unwrap();
        let opened = Opened::storage(file(2));
        change(&opened, 1, &Silent, &cancel, |edit| edit.empty()).unwrap();
        let calls = calls.lock().unwrap().clone();
        let mut emptied = 0;
        for cut in 0..=calls.len() {
            for draw in 0..6 {
                let what = format!("raw {raw}, after {cut} of {} calls, draw {draw}", calls.len());
                let [image, data, overlay] = [0, 1, 2].map(|number| {
                    crashed(&start[number], number, &calls[..cut], draw * (7 + number as u64))
                });
                sound(&image, &what);
                sound(&overlay, &what);
                let base = chain_of(&image, &data);
                assert!(content(&over(&overlay, Some(&base))) == before, "{what}");
                let holds = content(&base) == before;
                emptied +=
                    u32::from(holds && content(&over(&overlay, None)).iter().all(|b| *b == 0));
                if raw_outside {
                    let shown = data.iter().copied().chain(std::iter::repeat(0)).take(before.len());
                    assert!(content(&base).into_iter().eq(shown), "{what}: the data file");
                }
            }
        }
        assert!(emptied > 0, "raw {raw}: the overlay is emptied in the end");
    }
}
