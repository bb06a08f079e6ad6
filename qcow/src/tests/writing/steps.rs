//! The steps beneath the disk: a place, the caller's own transfer, the commit.

use std::sync::Arc;

use super::images::{KINDS, Made, leaks};
use crate::ErrorKind;
use crate::chain::Format;
use crate::disk::steps::{MappedRange, PreparedWrite};
use crate::disk::{Disk, RangeKind, WriteOptions};
use crate::io::sim::SimStorage;
use crate::io::{MemoryStorage, Storage, read_padded};

/// Reads all of the disk where it lies, as far as it lies somewhere.
pub(super) fn read_in_steps(disk: &Disk, bytes: &mut [u8]) {
    let mapped = disk.map(0, disk.size()).unwrap();
    let mut at = 0;
    for range in mapped.ranges() {
        assert_eq!(range.at, at);
        at += range.len;
        let part = &mut bytes[range.at as usize..at as usize];
        match range.kind {
            RangeKind::Data { host } => read_padded(disk.data_storage(), part, host.0).unwrap(),
            RangeKind::Zero => part.fill(0),
            RangeKind::Backing | RangeKind::Compressed => disk.read_at(part, range.at).unwrap(),
        }
    }
    assert_eq!(at, disk.size());
}

fn transfer(disk: &Disk, write: &PreparedWrite<'_>, value: u8) {
    for place in write.places() {
        disk.data_storage().write_at(&vec![value; place.len as usize], place.host.0).unwrap();
    }
}

fn plain() -> (Made, Arc<MemoryStorage>, Disk) {
    let made = KINDS[0].make();
    let storage = Arc::new(MemoryStorage::new(made.image.clone()));
    let disk = made.open(storage.clone());
    (made, storage, disk)
}

#[test]
fn steps_can_be_handed_to_another_thread() {
    fn sendable<T: Send + Sync>() {}
    sendable::<PreparedWrite<'_>>();
    sendable::<MappedRange<'_>>();
}

#[test]
fn what_is_dropped_leaves_nothing_and_its_clusters_are_the_next_ones() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        let storage = Arc::new(MemoryStorage::new(made.image.clone()));
        let disk = made.open(storage.clone());
        let before = made.content(&made.image, None);
        let mut places = Vec::new();
        for _ in 0..3 {
            let write = disk.prepare_write(0, disk.size()).unwrap().unwrap();
            places.push(write.places().to_vec());
            for place in write.places().iter().filter(|place| !place.in_place) {
                let noise = vec![0xee; place.len as usize];
                disk.data_storage().write_at(&noise, place.host.0).unwrap();
            }
            drop(write);
            disk.flush().unwrap();
        }
        assert!(places.iter().all(|same| *same == places[0]), "{}: {places:?}", kind.name);
        disk.close().unwrap();
        let image = storage.bytes();
        assert!(made.content(&image, None) == before, "{}", kind.name);
        assert_eq!(leaks(&image, kind.name), 0, "{}", kind.name);
        made.qemu_agrees(&image, false, kind.name);
    }
}

#[test]
fn whoever_needs_clusters_that_are_being_written_is_told_so_and_others_are_not() {
    fixtures::needs_qemu!();
    let (made, storage, disk) = plain();
    let cluster = made.kind.cluster;
    // The kind has nothing here.
    let at = 20 * cluster;
    let first = disk.prepare_write(at, 512).unwrap().unwrap();
    assert!(disk.prepare_write(at + 512, 512).unwrap().is_none(), "the same cluster");
    assert!(disk.prepare_write(at - cluster, 3 * cluster).unwrap().is_none(), "around it");
    let second = disk.prepare_write(at + cluster, 512).unwrap().expect("the next one");
    let mut bytes = [1; 512];
    disk.read_at(&mut bytes, at).unwrap();
    assert_eq!(bytes, [0; 512], "nobody sees what is not committed");
    transfer(&disk, &second, 2);
    transfer(&disk, &first, 1);
    second.commit().unwrap();
    first.commit().unwrap();
    // Now it has a place, and two can write to it at once.
    let third = disk.prepare_write(at + 512, 512).unwrap().unwrap();
    let fourth = disk.prepare_write(at + 512, 1024).unwrap().unwrap();
    assert!(third.places()[0].in_place && fourth.places()[0].in_place);
    transfer(&disk, &third, 3);
    third.commit().unwrap();
    drop(fourth);
    disk.close().unwrap();
    let content = made.content(&storage.bytes(), None);
    for (offset, value) in [(0, 1), (512, 3), (1024, 0), (cluster, 2)] {
        let start = (at + offset) as usize;
        assert_eq!(content[start..start + 512], [value; 512], "{offset}");
    }
    assert_eq!(leaks(&storage.bytes(), "at the end"), 0);
}

#[test]
fn a_place_that_is_mapped_is_not_given_away_however_often_it_is_discarded() {
    fixtures::needs_qemu!();
    let (made, _, disk) = plain();
    let cluster = made.kind.cluster;
    disk.write_at(&vec![7; cluster as usize], 0).unwrap();
    disk.flush().unwrap();
    let place = |mapped: &MappedRange<'_>| match mapped.ranges()[0].kind {
        RangeKind::Data { host } => host,
        kind => panic!("{kind:?}"),
    };
    let mapped = disk.map(0, cluster).unwrap();
    let host = place(&mapped);
    disk.discard(0, cluster).unwrap();
    for number in 10..16 {
        disk.flush().unwrap();
        disk.write_at(&vec![9; cluster as usize], number * cluster).unwrap();
        assert_ne!(place(&disk.map(number * cluster, cluster).unwrap()), host);
    }
    let mut bytes = vec![0; cluster as usize];
    read_padded(disk.data_storage(), &mut bytes, host.0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7), "it is what it was");
    drop(mapped);
    let reused = (16..22).any(|number| {
        disk.flush().unwrap();
        disk.write_at(&vec![9; cluster as usize], number * cluster).unwrap();
        place(&disk.map(number * cluster, cluster).unwrap()) == host
    });
    assert!(reused, "space that nobody uses any more is used again");
}

#[test]
fn a_crash_between_the_steps_leaves_the_old_bytes_and_after_the_commit_old_or_new_ones() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        let storage = Arc::new(SimStorage::new(made.image.clone()));
        let disk = made.open(storage.clone());
        let old = made.content(&made.image, None);
        // The last sector of the disk is in another cluster.
        let at = kind.cluster / 2 / 512 * 512;
        let len = 2 * kind.cluster - at;
        let write = disk.prepare_write(at, len).unwrap().unwrap();
        transfer(&disk, &write, 0xab);
        // Another request's flush.
        disk.write_at(&old[old.len() - 512..], old.len() as u64 - 512).unwrap();
        disk.flush().unwrap();
        write.commit().unwrap();
        disk.flush().unwrap();
        let image = storage.bytes();
        let mut new = old.clone();
        new[at as usize..(at + len) as usize].fill(0xab);
        assert!(made.content(&image, None) == new, "{}: committed and flushed", kind.name);
        for (number, crash) in storage.crashes(3, 6).enumerate() {
            let what = format!("{}: {}", kind.name, crash.moment);
            leaks(&crash.bytes, &what);
            let found = made.content(&crash.bytes, None);
            for (sector, found) in found.chunks(512).enumerate() {
                let range = sector * 512..(sector * 512 + found.len());
                let fits = found == &old[range.clone()] || found == &new[range.clone()];
                assert!(fits, "{what}: sector {sector} has {}", found[0]);
            }
            if number % 40 == 0 {
                made.qemu_agrees(&crash.bytes, true, &what);
            }
        }
    }
}

#[test]
fn a_raw_image_has_steps_too_and_past_the_end_of_a_disk_there_are_none() {
    let storage = Arc::new(MemoryStorage::new(vec![1; 1000]));
    let disk = Disk::from_storage(storage.clone(), Format::Raw, WriteOptions::new()).unwrap();
    let write = disk.prepare_write(500, 524).unwrap().unwrap();
    transfer(&disk, &write, 5);
    write.commit().unwrap();
    assert_eq!(disk.size(), 1024);
    let mut bytes = vec![0; 1024];
    read_in_steps(&disk, &mut bytes);
    assert!(bytes[..500] == [1; 500] && bytes[500..] == [5; 524]);
    assert_eq!(disk.prepare_write(1000, 25).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(disk.map(1024, 1).unwrap_err().kind(), ErrorKind::Usage);
    assert!(disk.prepare_write(0, 0).unwrap().unwrap().places().is_empty());
    assert_eq!(storage.len(), 1024);
}
