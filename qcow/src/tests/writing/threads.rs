//! Many threads at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use fixtures::pattern::Random;

use super::images::{KINDS, leaks};
use super::operations::Request;
use crate::io::{MemoryStorage, Zeroes};

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
            for writer in writers {
                writer.join().unwrap();
            }
            stop.store(true, SeqCst);
        });
        disk.close().unwrap();
        assert_eq!(leaks(&storage.bytes(), kind.name), 0, "{}", kind.name);
        made.qemu_agrees(&storage.bytes(), false, kind.name);
    }
}
