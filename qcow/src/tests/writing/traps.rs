//! Traps of writing that no random request meets, each by its number.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use fixtures::qemu;

use super::images::{KINDS, leaks};
use crate::ErrorKind;
use crate::chain::{Chain, Format, OpenOptions};
use crate::disk::{Disk, WriteOptions};
use crate::io::sim::{Failure, SimStorage};
use crate::io::{Capabilities, MemoryStorage, Storage, WriteStorage, Zeroes};

const ENOSPC: i32 = 28;

/// An image on which qemu-io has run `commands`.
fn image(options: &str, size: &str, commands: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    qemu::create(&path, options, size);
    qemu::qemu_io("qcow2", &path, commands);
    std::fs::read(&path).unwrap()
}

fn open_in(storage: Arc<dyn WriteStorage>) -> Disk {
    Disk::from_storage(storage, Format::Qcow2, WriteOptions::new()).unwrap()
}

/// A disk of one byte, however large.
#[derive(Debug)]
struct Same(u64, u8);

impl Storage for Same {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let len = self.0.saturating_sub(offset).min(buf.len() as u64) as usize;
        buf[..len].fill(self.1);
        Ok(len)
    }
}

/// A storage that knows how much was written between two syncs, and lets a disk do something at its first sync.
#[derive(Default)]
struct Groups {
    memory: MemoryStorage,
    group: AtomicU64,
    largest: AtomicU64,
    disk: Mutex<Weak<Disk>>,
    others_had_their_turn: AtomicBool,
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.fmt(f)
    }
}

impl Storage for Groups {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.memory.read_at(buf, offset)
    }
}

impl WriteStorage for Groups {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.group.fetch_add(bytes.len() as u64, SeqCst);
        self.memory.write_at(bytes, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64, how: Zeroes) -> std::io::Result<()> {
        self.memory.write_zeroes(offset, len, how)
    }

    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.memory.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.memory.set_len(len)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.largest.fetch_max(self.group.swap(0, SeqCst), SeqCst);
        let disk = std::mem::take(&mut *self.disk.lock().unwrap()).upgrade();
        if let Some(disk) = disk {
            let (send, done) = channel();
            std::thread::spawn(move || {
                disk.write_at(&[7; 512], 0).unwrap();
                let _ = send.send(());
            });
            let turn = done.recv_timeout(Duration::from_secs(20)).is_ok();
            self.others_had_their_turn.store(turn, SeqCst);
        }
        Ok(())
    }
}

/// W-16: 32 GiB of zeros need 4 MiB of entries, and a cache of 64 KiB is all that there is.
#[test]
fn w_16_a_request_larger_than_all_memory_is_done_in_pieces_and_others_get_in_between() {
    fixtures::needs_qemu!();
    const SIZE: u64 = 32 << 30;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let path = path.to_str().unwrap();
    qemu::qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", "base", "-F", "raw", path, "32G"]);
    let memory = MemoryStorage::new(std::fs::read(path).unwrap());
    let storage = Arc::new(Groups { memory, ..Groups::default() });
    let base = Chain::builder().layer("base", Arc::new(Same(SIZE, 3)), Format::Raw);
    let options = WriteOptions::new().table_cache(64 << 10).backing(base.open().unwrap());
    let disk = Disk::from_storage(storage.clone(), Format::Qcow2, options).unwrap();
    let disk = Arc::new(disk);
    *storage.disk.lock().unwrap() = Arc::downgrade(&disk);
    disk.write_zeroes(0, SIZE, Zeroes::Unmap).unwrap();
    disk.flush().unwrap();
    assert!(storage.others_had_their_turn.load(SeqCst), "nobody else could write meanwhile");
    let largest = storage.largest.load(SeqCst);
    assert!(largest < 1 << 20, "{largest} bytes of tables were in memory at once");
    let mut bytes = [0; 1024];
    disk.read_at(&mut bytes, 0).unwrap();
    assert!(bytes[..512] == [7; 512] && bytes[512..] == [0; 512]);
    disk.read_at(&mut bytes, SIZE - 1024).unwrap();
    assert_eq!(bytes, [0; 1024]);
    assert_eq!(leaks(&storage.memory.bytes(), "afterwards"), 0);
}

/// W-16, of what is dropped: its places cannot be used again before a commit, so there must be one before the file has
/// become many times as long as the disk.
#[test]
fn w_16_what_is_written_and_discarded_without_a_flush_does_not_let_the_file_grow_without_end() {
    fixtures::needs_qemu!();
    let storage = Arc::new(MemoryStorage::new(image("cluster_size=64k", "1M", &[])));
    let disk = open_in(storage.clone());
    for round in 0..6000u64 {
        let at = round % 16 * 65536;
        disk.write_at(&[1; 512], at).unwrap();
        disk.discard(at, 65536).unwrap();
    }
    assert!(storage.len() < 160 << 20, "the file has {} bytes", storage.len());
    disk.close().unwrap();
    assert_eq!(leaks(&storage.bytes(), "afterwards"), 0);
}

/// What the file grows by when a sector of each cluster is written that has some of `range`.
fn growth_by_writing(
    storage: &dyn WriteStorage,
    disk: &Disk,
    range: std::ops::Range<u64>,
    cluster: u64,
) -> u64 {
    let before = storage.len();
    let mut at = range.start / cluster * cluster;
    while at < range.end {
        disk.write_at(&[9; 512], at).unwrap();
        at += cluster;
    }
    disk.flush().unwrap();
    storage.len() - before
}

/// W-53: what is zeroed so that it is allocated has a place for later writes, and the file is as long as it will be.
#[test]
fn w_53_zeroing_that_allocates_leaves_nothing_to_be_allocated() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        for (at, end) in [(0, kind.size()), (512, kind.size() - 512)] {
            let what = format!("{}, {at} to {end}", kind.name);
            let storage = Arc::new(MemoryStorage::new(made.image.clone()));
            let disk = made.open(storage.clone());
            let mut model = made.content(&made.image, None);
            disk.write_zeroes(at, end - at, Zeroes::Allocate).unwrap();
            model[at as usize..end as usize].fill(0);
            let mut now = vec![0; model.len()];
            disk.read_at(&mut now, 0).unwrap();
            assert!(now == model, "{what}");
            disk.flush().unwrap();
            assert_eq!(growth_by_writing(&*storage, &disk, at..end, kind.cluster), 0, "{what}");
            let clusters = at / kind.cluster..end.div_ceil(kind.cluster);
            clusters.for_each(|number| model[(number * kind.cluster) as usize..][..512].fill(9));
            disk.close().unwrap();
            let image = storage.bytes();
            assert!(made.content(&image, None) == model, "{what}: closed");
            assert_eq!(leaks(&image, &what), 0, "{what}");
            for snapshot in made.snapshots() {
                let before = made.content(&made.image, Some(snapshot));
                assert!(made.content(&image, Some(snapshot)) == before, "{what}: snapshot");
            }
            made.qemu_agrees(&image, false, &what);
        }
    }
}

/// W-63: in a raw data file every cluster of the disk has its entry, whatever is discarded and zeroed, so that nothing
/// behind the tables' back shows.
#[test]
fn w_63_the_tables_of_a_raw_data_file_stay_complete() {
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let (path, data) = (dir.path().join("image.qcow2"), dir.path().join("data.raw"));
    let options = format!("cluster_size=4k,data_file={},data_file_raw=on", data.display());
    qemu::create(&path, &options, "1M");
    let complete = |what: &str| {
        let mapped = qemu::qemu_img(&["map", "--output=json", path.to_str().unwrap()]);
        let mapped: serde_json::Value = serde_json::from_str(&mapped).unwrap();
        for range in mapped.as_array().unwrap() {
            assert_eq!(range["present"], true, "{what}: {range}");
            assert_eq!(range["offset"], range["start"], "{what}: {range}");
        }
        let raw = std::fs::read(&data).unwrap();
        assert!(qemu::raw_of("qcow2", &path) == raw, "{what}: not the same bytes");
        qemu::assert_clean(&path);
    };
    complete("made");
    let disk = Disk::open(&path, &OpenOptions::default(), WriteOptions::new()).unwrap();
    disk.write_at(&[1; 1 << 20], 0).unwrap();
    disk.discard(0, 1 << 19).unwrap();
    disk.write_zeroes(1 << 19, 1 << 18, Zeroes::Unmap).unwrap();
    disk.write_zeroes(3 << 18, 4096, Zeroes::Keep).unwrap();
    disk.write_zeroes((3 << 18) + 8192, 5000, Zeroes::Allocate).unwrap();
    disk.close().unwrap();
    complete("zeroed");
    let options = crate::ops::resize::ResizeOptions::default();
    let cancel = crate::CancelToken::new();
    let size = crate::ops::resize::NewSize::Exactly(3 << 20);
    crate::ops::resize::resize(&path, size, &options, &crate::Silent, &cancel).unwrap();
    complete("grown");
    let disk = Disk::open(&path, &OpenOptions::default(), WriteOptions::new()).unwrap();
    disk.discard(0, 3 << 20).unwrap();
    disk.close().unwrap();
    complete("discarded");
    let taken = crate::ops::snapshot::create(
        &path,
        "one",
        &crate::ops::snapshot::SnapshotOptions::default(),
        &crate::Silent,
        &cancel,
    );
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::Unsupported);
    complete("a snapshot was refused");
}

/// W-65: what a guest discards is its disk, and not the state of a machine that is stored behind it.
#[test]
fn w_65_a_whole_disk_is_discarded_and_the_vm_state_behind_it_stays() {
    fixtures::needs_qemu!();
    let commands = ["write -P 1 0 1000k", "write -b -P 9 0 300k"];
    let start = image("", "1000k", &commands);
    for zero in [false, true] {
        let storage = Arc::new(MemoryStorage::new(start.clone()));
        let disk = open_in(storage.clone());
        match zero {
            false => disk.discard(0, disk.size()).unwrap(),
            true => disk.write_zeroes(0, disk.size(), Zeroes::Unmap).unwrap(),
        }
        disk.close().unwrap();
        assert_eq!(leaks(&storage.bytes(), "afterwards"), 0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.qcow2");
        std::fs::write(&path, storage.bytes()).unwrap();
        qemu::qemu_io("qcow2", &path, &["read -P 0 0 1000k", "read -b -P 9 0 300k"]);
        qemu::assert_clean(&path);
    }
}

/// W-84: what is flushed is safe, and a bitmap that could not be stored is not believed.
#[test]
fn w_84_a_disk_that_is_full_while_bitmaps_are_stored_loses_at_most_the_bitmap() {
    fixtures::needs_qemu!();
    let made = KINDS.into_iter().find(|kind| kind.bitmap).unwrap().make();
    let run = |failure: Option<u64>| {
        let storage = Arc::new(SimStorage::new(made.image.clone()));
        let disk = made.open(storage.clone());
        let mut model = made.content(&made.image, None);
        for at in [0, 300_000, 1_000_000] {
            disk.write_at(&[7; 8192], at as u64).unwrap();
            model[at..at + 8192].fill(7);
        }
        disk.flush().unwrap();
        let calls = storage.calls();
        if let Some(call) = failure {
            let call = calls + call;
            storage.fail(Failure { call, errno: ENOSPC, written: 100, for_good: true });
        }
        (disk.close(), storage.bytes(), model, storage.calls() - calls)
    };
    let (closed, image, _, calls) = run(None);
    closed.unwrap();
    let whole = made.dirty(&image).expect("stored cleanly");
    assert!(calls > 4, "{calls} calls");
    for call in 0..calls {
        let what = format!("from call {call} of {calls} on");
        let (closed, image, model, _) = run(Some(call));
        assert_eq!(closed.expect_err(&what).kind(), ErrorKind::NoSpace, "{what}");
        assert!(made.content(&image, None) == model, "{what}: what was flushed");
        leaks(&image, &what);
        // The write that takes the mark back may have been complete.
        match made.dirty(&image) {
            None => {}
            Some(dirty) => assert!(dirty == whole, "{what}: a bitmap that lacks bits is believed"),
        }
    }
}

fn open(path: &Path) -> crate::Result<Disk> {
    Disk::open(path, &OpenOptions::default(), WriteOptions::new())
}

/// W-88: the locks are those of the open file, and a duplicate of its descriptor, in another process too, keeps them.
#[test]
fn w_88_an_image_is_locked_until_the_last_duplicate_of_its_descriptor_is_closed() {
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    qemu::create(&path, "", "1M");
    let disk = open(&path).unwrap();
    let storage = disk.storage();
    let file = storage.as_file().unwrap();
    let duplicate = std::os::fd::AsFd::as_fd(file).try_clone_to_owned().unwrap();
    drop(storage);
    disk.close().unwrap();
    assert_eq!(open(&path).unwrap_err().kind(), ErrorKind::InUse);
    let child = std::process::Command::new("sleep").arg("60").stdin(duplicate).spawn();
    let mut child = child.unwrap();
    assert_eq!(open(&path).unwrap_err().kind(), ErrorKind::InUse);
    child.kill().unwrap();
    child.wait().unwrap();
    open(&path).unwrap().close().unwrap();
}

/// W-89: overlays share what they are backed by, and nobody writes to it meanwhile; QEMU's locks say the same.
#[test]
fn w_89_two_overlays_of_one_base_are_open_and_the_base_is_not_written_to() {
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.qcow2");
    qemu::create(&base, "", "1M");
    qemu::qemu_io("qcow2", &base, &["write -P 1 0 1M"]);
    let overlays = ["one.qcow2", "two.qcow2"].map(|name| {
        let path = dir.path().join(name);
        let arguments = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2"];
        qemu::qemu_img(&[&arguments[..], &[path.to_str().unwrap()]].concat());
        path
    });
    let [one, two] = overlays.each_ref().map(|path| open(path).unwrap());
    one.write_at(&[2; 512], 0).unwrap();
    two.write_at(&[3; 512], 0).unwrap();
    assert_eq!(open(&base).unwrap_err().kind(), ErrorKind::InUse);
    let path = base.to_str().unwrap();
    let refused = qemu::try_qemu_img(&["resize", path, "+1M"]).unwrap_err();
    assert!(refused.contains("lock"), "{refused}");
    // Reading it is allowed.
    assert!(qemu::raw_of("qcow2", &base).iter().all(|byte| *byte == 1));
    one.close().unwrap();
    assert_eq!(open(&base).unwrap_err().kind(), ErrorKind::InUse, "the other is open");
    two.close().unwrap();
    let written = open(&base).unwrap();
    assert_eq!(open(&overlays[0]).unwrap_err().kind(), ErrorKind::InUse, "its base is written to");
    written.close().unwrap();
    qemu::assert_clean(&base);
}
