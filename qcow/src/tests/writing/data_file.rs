//! Images with an external data file: two files that a crash stops at different moments (W-24).

use std::sync::Arc;

use fixtures::{pattern::Random, qemu};

use super::images::leaks;
use crate::chain::{Chain, Format};
use crate::disk::{Disk, WriteOptions};
use crate::format::GuestOffset;
use crate::io::sim::files::{Calls, File, crashed};
use crate::io::{MemoryStorage, Zeroes};

fn content(image: &[u8], data: &[u8]) -> Vec<u8> {
    let image = Arc::new(MemoryStorage::new(image.to_vec()));
    let data = Arc::new(MemoryStorage::new(data.to_vec()));
    let chain = Chain::builder().layer("image", image, Format::Qcow2).data_file("data", data);
    let chain = chain.open().unwrap();
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read_at(&mut bytes, GuestOffset(0)).unwrap();
    bytes
}

#[test]
fn a_crash_leaves_both_files_with_what_was_flushed_or_something_newer() {
    fixtures::needs_qemu!();
    const CLUSTER: u64 = 4096;
    const CLUSTERS: u64 = 16;
    for raw in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (path, data) = (dir.path().join("image.qcow2"), dir.path().join("data.raw"));
        let options = format!("cluster_size=4k,data_file={},data_file_raw={raw}", data.display());
        qemu::create(&path, &options.replace("=true", "=on").replace("=false", "=off"), "64k");
        let start = [std::fs::read(&path).unwrap(), std::fs::read(&data).unwrap()];
        for seed in 0..4 {
            let calls = Calls::default();
            let file = |number: usize| {
                let memory = MemoryStorage::new(start[number].clone());
                Arc::new(File { number, calls: Arc::clone(&calls), memory })
            };
            let options = WriteOptions::new().data_file(file(1));
            let disk = Disk::from_storage(file(0), Format::Qcow2, options).unwrap();
            let mut random = Random::new(seed);
            // For each cluster what was written and when it began; when flushes began that have ended, and when that was.
            let mut written = vec![vec![(0, 0u8)]; CLUSTERS as usize];
            let mut flushes = vec![(0, 0)];
            for number in 1..40u8 {
                let cluster = random.below(CLUSTERS);
                let before = calls.lock().unwrap().len();
                match random.below(6) {
                    0 => {
                        disk.flush().unwrap();
                        flushes.push((before, calls.lock().unwrap().len()));
                        continue;
                    }
                    1 => {
                        disk.write_zeroes(cluster * CLUSTER, CLUSTER, Zeroes::Unmap).unwrap();
                        written[cluster as usize].push((before, 0));
                    }
                    _ => {
                        disk.write_at(&[number; CLUSTER as usize], cluster * CLUSTER).unwrap();
                        written[cluster as usize].push((before, number));
                    }
                }
            }
            disk.close().unwrap();
            let calls = calls.lock().unwrap().clone();
            for cut in 0..=calls.len() {
                for draw in 0..4 {
                    let what = format!("raw {raw}, seed {seed}, after {cut} calls, draw {draw}");
                    let [image, data] = [0, 1].map(|number| {
                        crashed(&start[number], number, &calls[..cut], draw * (7 + number as u64))
                    });
                    leaks(&image, &what);
                    let found = content(&image, &data);
                    let ended = flushes.iter().rev().find(|(_, ended)| *ended <= cut);
                    let flushed = ended.map_or(0, |(began, _)| *began);
                    for (cluster, written) in written.iter().enumerate() {
                        let last = written.iter().rposition(|(began, _)| *began < flushed);
                        let allowed = &written[last.unwrap_or(0)..];
                        let bytes = &found[cluster * CLUSTER as usize..][..CLUSTER as usize];
                        for sector in bytes.chunks(512) {
                            let fits = allowed.iter().any(|(began, value)| {
                                *began <= cut && sector.iter().all(|byte| byte == value)
                            });
                            assert!(fits, "{what}: cluster {cluster} has {}", sector[0]);
                        }
                    }
                    if raw {
                        let shown = data.iter().copied().chain(std::iter::repeat(0));
                        let same = found.iter().copied().eq(shown.take(found.len()));
                        assert!(same, "{what}: the data file is not the disk");
                    }
                }
            }
        }
    }
}
