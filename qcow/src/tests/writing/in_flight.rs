//! Requests that are stopped in the middle while others run: the holes of QEMU's that `qemu-io` shows with breakpoints
//! (W-01 to W-03), each at the one moment that counts.

use std::fmt;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fixtures::qemu;

use super::images::leaks;
use crate::chain::Format;
use crate::disk::{Disk, RangeKind, WriteOptions};
use crate::io::{Capabilities, MemoryStorage, Storage, WriteStorage, Zeroes};

/// What runs meanwhile.
type Meanwhile = Box<dyn FnOnce() + Send>;

/// A storage that stops the first call for a range of its bytes, runs something else, and goes on.
#[derive(Default)]
struct Stopping {
    memory: MemoryStorage,
    reading: Mutex<Option<(u64, Meanwhile)>>,
    writing: Mutex<Option<(u64, Meanwhile)>>,
}

impl fmt::Debug for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.fmt(f)
    }
}

fn stop(at: &Mutex<Option<(u64, Meanwhile)>>, offset: u64, len: usize) {
    let within = |(at, _): &mut (u64, Meanwhile)| (offset..offset + len as u64).contains(at);
    let meanwhile = at.lock().unwrap().take_if(within);
    if let Some((_, meanwhile)) = meanwhile {
        meanwhile();
    }
}

impl Storage for Stopping {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        stop(&self.reading, offset, buf.len());
        self.memory.read_at(buf, offset)
    }
}

impl WriteStorage for Stopping {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        stop(&self.writing, offset, bytes.len());
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
        self.memory.sync()
    }
}

/// A disk of 2 MiB on which qemu-io has run `commands`, and where the data of guest offset 0 lies.
fn disk(commands: &[&str]) -> (Arc<Stopping>, Arc<Disk>, u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    qemu::create(&path, "", "2M");
    qemu::qemu_io("qcow2", &path, commands);
    let entry = fixtures::Patch::open(&path).l2_entry(0);
    let host = match entry >> 62 & 1 {
        0 => entry & 0x00ff_ffff_ffff_fe00,
        // Compressed, with clusters of 64 KiB.
        _ => entry & ((1 << 54) - 1),
    };
    let memory = MemoryStorage::new(std::fs::read(&path).unwrap());
    let storage = Arc::new(Stopping { memory, ..Stopping::default() });
    let options = WriteOptions::new();
    let disk = Disk::from_storage(storage.clone(), Format::Qcow2, options).unwrap();
    (storage, Arc::new(disk), host)
}

/// What gives the place of guest offset 0 to another range, if nothing forbids it.
fn reuse(disk: &Disk) {
    disk.discard(0, 65536).unwrap();
    for at in 1..30 {
        disk.flush().unwrap();
        disk.write_at(&[2; 65536], at * 65536).unwrap();
    }
}

#[test]
fn a_read_in_flight_returns_the_old_bytes_whatever_becomes_of_its_cluster() {
    fixtures::needs_qemu!();
    for command in ["write -P 1 0 64k", "write -c -P 1 0 64k"] {
        let (storage, disk, host) = disk(&[command]);
        let other = Arc::clone(&disk);
        *storage.reading.lock().unwrap() = Some((host, Box::new(move || reuse(&other))));
        let mut bytes = [0; 4096];
        disk.read_at(&mut bytes, 0).unwrap();
        assert!(storage.reading.lock().unwrap().is_none(), "{command}: it was not stopped");
        assert!(bytes == [1; 4096], "{command}: the read returned {}", bytes[0]);
        // Once it has ended, the place is used again.
        disk.flush().unwrap();
        disk.flush().unwrap();
        disk.write_at(&[3; 65536], 31 * 65536).unwrap();
        if command.starts_with("write -P") {
            let ranges = disk.ranges(31 * 65536, 65536).unwrap();
            let RangeKind::Data { host: now } = ranges[0].kind else { panic!("{ranges:?}") };
            assert_eq!(now.0, host, "the place is not lost");
        }
        disk.flush().unwrap();
    }
}

/// The writer has found the place that a zero cluster keeps; before its data is written, another thread discards the
/// cluster, and would give the place away.
#[test]
fn a_write_in_flight_never_links_a_cluster_that_a_discard_has_freed() {
    fixtures::needs_qemu!();
    let (storage, disk, host) = disk(&["write -P 7 0 64k", "write -z 0 64k"]);
    let (send, done) = channel();
    let other = Arc::clone(&disk);
    let meanwhile = move || {
        std::thread::spawn(move || {
            reuse(&other);
            let _ = send.send(());
        });
        // It waits for this write, and this write for as long as it may take to see that.
        let _ = done.recv_timeout(Duration::from_millis(300));
    };
    *storage.writing.lock().unwrap() = Some((host, Box::new(meanwhile)));
    disk.write_at(&[1; 65536], 0).unwrap();
    assert!(storage.writing.lock().unwrap().is_none(), "it was not stopped");
    let disk = {
        // The other thread has ended when it has given up the disk.
        let mut disk = disk;
        loop {
            match Arc::try_unwrap(disk) {
                Ok(disk) => break disk,
                Err(shared) => disk = shared,
            }
            std::thread::yield_now();
        }
    };
    let mut bytes = vec![0; 65536];
    disk.read_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]) && bytes[0] != 2, "found {}", bytes[0]);
    disk.read_at(&mut bytes, 65536).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 2), "another range has {}", bytes[0]);
    disk.close().unwrap();
    assert_eq!(leaks(&storage.memory.bytes(), "afterwards"), 0);
}
