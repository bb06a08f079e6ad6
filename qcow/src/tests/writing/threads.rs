//! Many threads at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use fixtures::{pattern::Random, qemu};

use super::images::{KINDS, leaks};
use super::operations::Request;
use crate::chain::Format;
use crate::disk::{Disk, RangeKind, WriteOptions};
use crate::io::{Capabilities, MemoryStorage, Storage, WriteStorage, Zeroes};

/// Threads that own every n-th sector each write to clusters that they share.
#[test]
fn threads_that_share_clusters_find_their_own_sectors_as_they_wrote_them() {
    fixtures::needs_qemu!();
    const THREADS: u64 = 4;
    for kind in KINDS {
        let made = kind.make();
        let storage = Arc::new(MemoryStorage::new(made.image.clone()));
        let disk = made.open(storage.clone());
        let sectors = kind.size() / 512;
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let disk = &disk;
                scope.spawn(move || {
                    let mut random = Random::new(thread);
                    let mut model = std::collections::HashMap::new();
                    for number in 0..200u8 {
                        let sector = random.below(sectors / THREADS) * THREADS + thread;
                        match random.below(8) {
                            0 => disk.write_zeroes(sector * 512, 512, Zeroes::Unmap).unwrap(),
                            1 => {
                                disk.flush().unwrap();
                                continue;
                            }
                            2 => {
                                let mut bytes = [0; 512];
                                disk.read_at(&mut bytes, sector * 512).unwrap();
                                if let Some(value) = model.get(&sector) {
                                    assert_eq!(bytes, [*value; 512], "{}: {sector}", kind.name);
                                }
                                continue;
                            }
                            _ => disk.write_at(&[number + 1; 512], sector * 512).unwrap(),
                        }
                        let mut bytes = [0; 512];
                        disk.read_at(&mut bytes, sector * 512).unwrap();
                        let own = &bytes[0];
                        assert!(
                            bytes.iter().all(|byte| byte == own),
                            "{}: {sector}: {bytes:?}",
                            kind.name
                        );
                        model.insert(sector, bytes[0]);
                    }
                });
            }
        });
        disk.close().unwrap();
        assert_eq!(leaks(&storage.bytes(), kind.name), 0, "{}", kind.name);
        made.qemu_agrees(&storage.bytes(), false, kind.name);
    }
}

/// W-01 to W-03: reads, writes and discards of the same clusters at once. Every read finds one of the values
/// that were ever written there, never another cluster's bytes.
#[test]
fn a_read_never_returns_another_clusters_bytes() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        let storage = Arc::new(MemoryStorage::new(made.image.clone()));
        let disk = made.open(storage.clone());
        let (cluster, clusters) = (kind.cluster, kind.clusters.min(100) - 1);
        for at in 0..clusters {
            disk.write_at(&vec![at as u8 + 1; cluster as usize], at * cluster).unwrap();
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (disk, stop) = (&disk, &stop);
                scope.spawn(move || {
                    let mut random = Random::new(thread);
                    let mut bytes = vec![0; cluster as usize];
                    while !stop.load(SeqCst) {
                        let at = random.below(clusters);
                        disk.read_at(&mut bytes, at * cluster).unwrap();
                        let own = at as u8 + 1;
                        let strange = bytes.iter().find(|byte| **byte != own && **byte != 0);
                        assert_eq!(strange, None, "{}: cluster {at}", kind.name);
                    }
                });
            }
            let writers: Vec<_> = (10..12)
                .map(|thread| {
                    let disk = &disk;
                    scope.spawn(move || {
                        let mut random = Random::new(thread);
                        for number in 0..400 {
                            let at = random.below(clusters);
                            let value = at as u8 + 1;
                            let (at, len) = (at * cluster, cluster);
                            let request = match random.below(6) {
                                0 | 1 => Request::Discard { at, len },
                                2 if kind.cluster > 512 => Request::Compressed { at, len, value },
                                _ => Request::Write { at, len, value },
                            };
                            request.run(disk).unwrap();
                            if number % 40 == 0 {
                                disk.flush().unwrap();
                            }
                        }
                    })
                })
                .collect();
            let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
            // Also if one has failed: the readers must end.
            stop.store(true, SeqCst);
            ended.into_iter().for_each(|ended| ended.unwrap());
        });
        disk.close().unwrap();
        assert_eq!(leaks(&storage.bytes(), kind.name), 0, "{}", kind.name);
        made.qemu_agrees(&storage.bytes(), false, kind.name);
    }
}

/// Another thread's write, which comes just after these bytes are read.
#[derive(Debug)]
struct Interrupted {
    memory: MemoryStorage,
    /// Where, and what.
    write: std::sync::Mutex<Option<(u64, Vec<u8>)>>,
}

impl Storage for Interrupted {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let read = self.memory.read_at(buf, offset);
        let mut write = self.write.lock().unwrap();
        let end = offset + buf.len() as u64;
        if let Some((at, bytes)) = write.take_if(|(at, _)| (offset..end).contains(at)) {
            self.memory.write_at(&bytes, at)?;
        }
        read
    }
}

impl WriteStorage for Interrupted {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
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

/// A subcluster of four sectors is allocated: one thread writes its first sector and the unallocated subcluster in
/// front, the other its last sector, at the same time.
#[test]
fn what_is_written_to_an_allocated_subcluster_is_not_undone_by_a_write_to_its_neighbour() {
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    qemu::create(&path, "cluster_size=64k,extended_l2=on", "1M");
    qemu::qemu_io("qcow2", &path, &["write -P 1 2k 2k"]);
    for in_steps in [false, true] {
        let memory = MemoryStorage::new(std::fs::read(&path).unwrap());
        let storage = Arc::new(Interrupted { memory, write: std::sync::Mutex::default() });
        let options = WriteOptions::new();
        let disk = Disk::from_storage(storage.clone(), Format::Qcow2, options).unwrap();
        let ranges = disk.ranges(2048, 2048).unwrap();
        let RangeKind::Data { host } = ranges[0].kind else { panic!("{ranges:?}") };
        *storage.write.lock().unwrap() = Some((host.0 + 1536, vec![9; 512]));
        let (at, len) = (512, 2048 - 512 + 512);
        match in_steps {
            false => disk.write_at(&vec![5; len], at).unwrap(),
            true => Request::Steps { at, len: len as u64, value: 5 }.run(&disk).unwrap(),
        }
        // If nobody read it, the other thread writes now.
        if let Some((at, bytes)) = storage.write.lock().unwrap().take() {
            storage.memory.write_at(&bytes, at).unwrap();
        }
        let mut bytes = vec![0; 4096];
        disk.read_at(&mut bytes, 0).unwrap();
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        assert_eq!(sectors, [0, 5, 5, 5, 5, 1, 1, 9], "in steps: {in_steps}");
    }
}
