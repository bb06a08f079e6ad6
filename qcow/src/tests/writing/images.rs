//! Images of every kind that can be written to, made by qemu-img, in memory.

use std::path::Path;
use std::sync::Arc;

use fixtures::qemu;

use crate::chain::{Chain, Format};
use crate::disk::{Disk, WriteOptions};
use crate::format::GuestOffset;
use crate::image::Image;
use crate::io::{MemoryStorage, Storage, WriteStorage};
use crate::ops::check::{CheckOptions, check_storage};
use crate::{CancelToken, Silent};

/// How an image is made.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::tests) struct Kind {
    pub(in crate::tests) name: &'static str,
    /// Options of `qemu-img create -o`.
    options: &'static str,
    pub(in crate::tests) cluster: u64,
    pub(in crate::tests) clusters: u64,
    /// Length of a raw backing file.
    base: Option<u64>,
    /// What qemu-io does before a snapshot is made, and after.
    before: &'static [&'static str],
    snapshot: bool,
    after: &'static [&'static str],
    /// It has a bitmap of 2 KiB granularity that records writes.
    pub(in crate::tests) bitmap: bool,
}

/// All kinds. Disks end in the middle of a cluster where clusters are larger than a sector.
pub(in crate::tests) const KINDS: [Kind; 15] = [
    Kind { name: "plain", options: "cluster_size=4k", cluster: 4096, clusters: 24, ..NONE },
    Kind {
        name: "default clusters",
        options: "cluster_size=64k",
        cluster: 65536,
        clusters: 6,
        ..NONE
    },
    Kind {
        name: "small clusters, wide refcounts",
        options: "cluster_size=512,refcount_bits=64",
        cluster: 512,
        clusters: 300,
        ..NONE
    },
    Kind {
        name: "small clusters",
        options: "cluster_size=512",
        cluster: 512,
        clusters: 200,
        before: &["write -P 3 0 60k"],
        ..NONE
    },
    Kind {
        name: "one bit",
        options: "cluster_size=4k,refcount_bits=1",
        cluster: 4096,
        clusters: 20,
        before: &["write -P 3 8k 16k", "write -c -P 4 32k 4k"],
        ..NONE
    },
    Kind {
        name: "version 2",
        options: "compat=0.10,cluster_size=4k",
        cluster: 4096,
        clusters: 20,
        before: &["write -P 3 8k 16k"],
        ..NONE
    },
    Kind {
        name: "version 2 over a base",
        options: "compat=0.10,cluster_size=4k",
        cluster: 4096,
        clusters: 20,
        base: Some(100_000),
        before: &["write -P 3 8k 16k"],
        ..NONE
    },
    Kind {
        name: "over a short base",
        options: "cluster_size=4k",
        cluster: 4096,
        clusters: 20,
        base: Some(37_001),
        before: &["write -P 3 8k 12k", "write -z 20k 8k"],
        ..NONE
    },
    Kind {
        name: "a snapshot",
        options: "cluster_size=4k",
        cluster: 4096,
        clusters: 24,
        before: &["write -P 3 0 60k", "write -c -P 4 64k 4k", "write -c -P 5 68k 4k"],
        snapshot: true,
        after: &["write -P 6 16k 4k"],
        ..NONE
    },
    Kind {
        name: "compressed",
        options: "cluster_size=4k",
        cluster: 4096,
        clusters: 20,
        before: &[
            "write -c -P 4 0 4k",
            "write -c -P 5 4k 4k",
            "write -c -P 6 8k 4k",
            "write -c -P 7 20k 4k",
        ],
        ..NONE
    },
    Kind {
        name: "subclusters",
        options: "cluster_size=16k,extended_l2=on",
        cluster: 16384,
        clusters: 7,
        before: &[
            "write -P 3 512 1k",
            "write -P 4 16k 16k",
            "write -c -P 5 48k 16k",
            "write -z 34k 2k",
        ],
        ..NONE
    },
    Kind {
        name: "subclusters of two sectors",
        options: "cluster_size=32k,extended_l2=on",
        cluster: 32768,
        clusters: 3,
        before: &["write -P 3 1k 3k", "write -P 4 34k 3k", "write -z 40k 2k"],
        ..NONE
    },
    Kind {
        name: "subclusters over a base",
        options: "cluster_size=16k,extended_l2=on",
        cluster: 16384,
        clusters: 7,
        base: Some(70_000),
        before: &["write -P 3 512 1k", "write -P 4 16k 16k"],
        snapshot: true,
        after: &["write -P 5 33k 512"],
        bitmap: false,
    },
    Kind {
        name: "a bitmap",
        options: "cluster_size=4k",
        cluster: 4096,
        clusters: 300,
        before: &["write -P 3 8k 16k"],
        bitmap: true,
        ..NONE
    },
    Kind {
        name: "preallocated",
        options: "cluster_size=4k,preallocation=metadata",
        cluster: 4096,
        clusters: 20,
        before: &["write -z 0 16k"],
        ..NONE
    },
];

const NONE: Kind = Kind {
    name: "",
    options: "",
    cluster: 0,
    clusters: 0,
    base: None,
    before: &[],
    snapshot: false,
    after: &[],
    bitmap: false,
};

/// An image, and what it is backed by.
#[derive(Debug, Clone)]
pub(in crate::tests) struct Made {
    pub(in crate::tests) kind: Kind,
    pub(in crate::tests) image: Vec<u8>,
    base: Option<Vec<u8>>,
}

impl Kind {
    pub(in crate::tests) fn size(self) -> u64 {
        self.clusters * self.cluster - if self.cluster > 512 { self.cluster / 2 } else { 0 }
    }

    pub(in crate::tests) fn make(self) -> Made {
        let dir = tempfile::tempdir().unwrap();
        let (path, base_path) = (dir.path().join("image.qcow2"), dir.path().join("base.raw"));
        let base = self.base.map(|len| (0..len).map(|at| (at / 512 % 100 + 100) as u8).collect());
        let mut options = self.options.to_owned();
        if let Some(base) = &base {
            std::fs::write(&base_path, base).unwrap();
            options = format!("{options},backing_file={},backing_fmt=raw", base_path.display());
        }
        qemu::create(&path, &options, &self.size().to_string());
        qemu::qemu_io("qcow2", &path, self.before);
        if self.snapshot {
            qemu::qemu_img(&["snapshot", "-c", "one", path.to_str().unwrap()]);
            qemu::qemu_io("qcow2", &path, self.after);
        }
        if self.bitmap {
            let arguments = ["bitmap", "--add", "-g", "2048", path.to_str().unwrap(), "b0"];
            qemu::qemu_img(&arguments);
        }
        Made { kind: self, image: std::fs::read(&path).unwrap(), base }
    }
}

impl Made {
    pub(in crate::tests) fn base(&self) -> Option<Chain> {
        let storage = Arc::new(MemoryStorage::new(self.base.clone()?));
        Some(Chain::builder().layer("base", storage, Format::Raw).open().unwrap())
    }

    /// Opens `storage`, which has the image or what became of it, for writing.
    pub(in crate::tests) fn open(&self, storage: Arc<dyn WriteStorage>) -> Disk {
        self.try_open(storage).unwrap()
    }

    pub(in crate::tests) fn try_open(&self, storage: Arc<dyn WriteStorage>) -> crate::Result<Disk> {
        let mut options = WriteOptions::new().table_cache(64 << 10);
        if let Some(base) = self.base() {
            options = options.backing(base);
        }
        Disk::from_storage(storage, Format::Qcow2, options)
    }

    /// What `image` reads as, by the reader that shares nothing with the writer.
    pub(in crate::tests) fn content(&self, image: &[u8], snapshot: Option<&str>) -> Vec<u8> {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(image.to_vec()));
        let mut builder = Chain::builder().layer("image", storage, Format::Qcow2);
        if let Some(base) = &self.base {
            let base = Arc::new(MemoryStorage::new(base.clone()));
            builder = builder.layer("base", base, Format::Raw);
        }
        if let Some(snapshot) = snapshot {
            builder = builder.snapshot(snapshot);
        }
        let chain = builder.open().unwrap();
        let mut bytes = vec![0; chain.virtual_size() as usize];
        chain.read_at(&mut bytes, GuestOffset(0)).unwrap();
        bytes
    }

    /// Which sectors the bitmap has as dirty; `None` if it is not to be believed.
    pub(in crate::tests) fn dirty(&self, image: &[u8]) -> Option<Vec<bool>> {
        let image = Image::open(Arc::new(MemoryStorage::new(image.to_vec()))).unwrap();
        let bitmap = image.bitmap(b"b0").unwrap();
        if bitmap.info().in_use {
            return None;
        }
        let mut dirty = vec![false; (self.kind.size() / 512) as usize];
        for range in bitmap.dirty_ranges().unwrap() {
            let range = range.unwrap();
            dirty[(range.start.0 / 512) as usize..(range.end.0 / 512) as usize].fill(true);
        }
        Some(dirty)
    }

    pub(in crate::tests) fn snapshots(&self) -> &'static [&'static str] {
        if self.kind.snapshot { &["one"] } else { &[] }
    }

    /// Whether discarding does anything.
    pub(in crate::tests) fn discards(&self) -> bool {
        !(self.kind.options.contains("compat=0.10") && self.base.is_some())
    }

    pub(in crate::tests) fn compresses(&self) -> bool {
        self.kind.cluster > 512
    }

    /// What qemu-img says about `image`: its check, and its content.
    pub(in crate::tests) fn qemu_agrees(&self, image: &[u8], leaks: bool, what: &str) {
        let dir = tempfile::tempdir().unwrap();
        let (path, raw) = (dir.path().join("image.qcow2"), dir.path().join("raw"));
        std::fs::write(&path, image).unwrap();
        if let Some(base) = &self.base {
            // By the name that the image has for it, which is gone: name another.
            let base_path = dir.path().join("base.raw");
            std::fs::write(&base_path, base).unwrap();
            let arguments = ["rebase", "-u", "-F", "raw", "-b", "base.raw"];
            qemu::qemu_img(&[&arguments[..], &[path.to_str().unwrap()]].concat());
        }
        check_by_qemu(&path, leaks, what);
        let arguments = ["convert", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()];
        qemu::qemu_img(&arguments);
        assert!(std::fs::read(&raw).unwrap() == self.content(image, None), "{what}: content");
    }
}

fn check_by_qemu(path: &Path, leaks: bool, what: &str) {
    let result = qemu::try_qemu_img(&["check", path.to_str().unwrap()]);
    match result {
        Ok(_) => {}
        // 3 means leaks and nothing else.
        Err(error) if leaks && error.contains("exit status: 3") => {}
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Our own check: no corruption; how many clusters are leaked.
pub(in crate::tests) fn leaks(image: &[u8], what: &str) -> u64 {
    let storage = Arc::new(MemoryStorage::new(image.to_vec()));
    let options = CheckOptions { threads: 1, ..CheckOptions::default() };
    let outcome = check_storage(storage, &options, &Silent, &CancelToken::new()).unwrap();
    let found = (outcome.corruptions, outcome.check_errors);
    assert_eq!(found, (0, 0), "{what}: {:?}", outcome.findings);
    outcome.leaks
}
