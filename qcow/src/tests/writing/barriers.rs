//! How many syncs writing takes: what QEMU pays one to three for each write, a flush pays once.

use std::sync::Arc;

use fixtures::{pattern::Random, qemu};

use crate::chain::Format;
use crate::disk::{Disk, WriteOptions};
use crate::io::MemoryStorage;

/// 100 random writes of 4 KiB to a disk of 64 MiB, then a flush: the syncs that it takes.
fn syncs(options: &str, before: &[&str], snapshot: bool) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    qemu::create(&path, options, "64M");
    qemu::qemu_io("qcow2", &path, before);
    if snapshot {
        qemu::qemu_img(&["snapshot", "-c", "one", path.to_str().unwrap()]);
    }
    let storage = Arc::new(MemoryStorage::new(std::fs::read(&path).unwrap()));
    let disk = Disk::from_storage(storage, Format::Qcow2, WriteOptions::new()).unwrap();
    let mut random = Random::new(7);
    for _ in 0..100 {
        disk.write_at(&[7; 4096], random.below(16384) * 4096).unwrap();
    }
    disk.flush().unwrap();
    disk.syncs()
}

#[test]
fn a_flush_takes_two_syncs_whatever_was_written_and_one_if_nothing_was_allocated() {
    fixtures::needs_qemu!();
    assert_eq!(syncs("", &["write -P 1 0 64M"], false), 1, "allocated");
    assert_eq!(syncs("", &[], false), 2, "empty");
    assert_eq!(syncs("", &["write -P 1 0 64M"], true), 2, "shared with a snapshot; QEMU: 304");
    assert_eq!(syncs("", &["write -c -P 1 0 64k"], false), 2, "compressed");
    assert_eq!(syncs("cluster_size=128k,extended_l2=on", &[], false), 2, "subclusters");
}
