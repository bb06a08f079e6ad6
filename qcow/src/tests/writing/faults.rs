//! Calls of the system that fail.

use std::sync::Arc;

use super::images::{KINDS, leaks};
use super::operations::Request;
use crate::ErrorKind;
use crate::chain::Format;
use crate::disk::{Disk, WriteOptions};
use crate::io::sim::{Failure, SimStorage};
use fixtures::pattern::Random;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[test]
fn a_failed_write_is_said_and_leaves_the_disk_as_it_was_or_as_it_was_to_be() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        for call in 0..40 {
            let storage = Arc::new(SimStorage::new(made.image.clone()));
            let disk = made.open(storage.clone());
            storage.fail(Failure { call, errno: ENOSPC, written: 100, for_good: false });
            let start = made.content(&made.image, None);
            let mut model = start.clone();
            let mut random = Random::new(call);
            let (mut failed, mut poisoned) = (0, false);
            for number in 0..20u8 {
                let request = Request::random(&made, &mut random, 512, number + 1);
                let result = request.run(&disk);
                poisoned |= disk.flush().is_err() && disk.flush().is_err();
                match result {
                    Ok(()) => {
                        if let Some((range, value)) = request.effect(&made) {
                            model[range].fill(value);
                        }
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NoSpace, "{}: {error}", kind.name);
                        failed += 1;
                        // Each byte is what it was, or what it was to be; from here on, what it is.
                        let (range, value) = request.effect(&made).unwrap_or((0..0, 0));
                        let mut now = vec![0; model.len()];
                        disk.read_at(&mut now, 0).unwrap();
                        for (at, byte) in now.iter().enumerate() {
                            let expected =
                                model[at] == *byte || range.contains(&at) && *byte == value;
                            assert!(expected, "{}, call {call}: byte {at:#x}", kind.name);
                        }
                        model = now;
                    }
                }
                if poisoned {
                    break;
                }
            }
            assert!(failed <= 1, "one call fails, and one request");
            let mut now = vec![0; model.len()];
            disk.read_at(&mut now, 0).unwrap();
            assert!(now == model, "{}, call {call}", kind.name);
            if !poisoned {
                disk.close().unwrap();
                let image = storage.bytes();
                assert!(made.content(&image, None) == model, "{}, call {call}: closed", kind.name);
                assert_eq!(leaks(&image, kind.name), 0, "{}, call {call}", kind.name);
                if kind.bitmap {
                    // What a failed request has written all the same is in it too.
                    let dirty = made.dirty(&image).expect("stored cleanly");
                    let sectors = model.chunks(512).zip(start.chunks(512)).zip(dirty);
                    for (number, ((now, before), dirty)) in sectors.enumerate() {
                        assert!(now == before || dirty, "call {call}: bit of sector {number}");
                    }
                }
            }
        }
    }
}

/// W-81: a write that fails may be in the file all the same, and a backup must copy it.
#[test]
fn what_a_failed_write_has_written_in_place_is_marked_in_the_bitmap() {
    fixtures::needs_qemu!();
    let made = KINDS.into_iter().find(|kind| kind.bitmap).unwrap().make();
    let storage = Arc::new(SimStorage::new(made.image.clone()));
    let disk = made.open(storage.clone());
    disk.write_at(&[7; 512], 16384).unwrap();
    storage.fail(Failure { call: storage.calls(), errno: EIO, written: 512, for_good: false });
    disk.write_at(&[9; 4096], 8192).unwrap_err();
    disk.close().unwrap();
    let image = storage.bytes();
    assert_eq!(made.content(&image, None)[8192..8704], [9; 512], "it was written");
    assert!(made.dirty(&image).expect("stored cleanly")[16], "the bitmap lacks it");
}

/// With a call that fails at each place, before or within the commit that follows.
#[test]
fn giving_up_keeps_what_was_flushed_and_leaves_the_file_no_longer_than_that() {
    fixtures::needs_qemu!();
    let mut shortened = 0;
    for kind in KINDS {
        let made = kind.make();
        for call in 0..16 {
            let storage = Arc::new(SimStorage::new(made.image.clone()));
            let disk = made.open(storage.clone());
            let mut random = Random::new(call + 1000);
            let mut next = |value| Request::random(&made, &mut random, 512, value);
            let mut model = made.content(&made.image, None);
            for value in 1..6 {
                let request = next(value);
                request.run(&disk).unwrap();
                if let Some((range, value)) = request.effect(&made) {
                    model[range].fill(value);
                }
            }
            disk.flush().unwrap();
            // The last cluster may be there in part.
            let len = storage.bytes().len().next_multiple_of(kind.cluster as usize);
            let (errno, call) = (ENOSPC, storage.calls() + call);
            storage.fail(Failure { call, errno, written: 100, for_good: false });
            let later = (6..14).map(next).filter(|request| !matches!(request, Request::Flush));
            let later: Vec<_> = later.collect();
            let failed = later.iter().any(|request| request.run(&disk).is_err());
            let commits = !failed && call % 2 == 0;
            if commits && disk.flush().is_ok() {
                continue;
            }
            let before = storage.bytes().len();
            let interrupted: crate::Result<()> = Err(crate::Error::interrupted());
            disk.or_give_up(interrupted).unwrap_err();
            disk.write_at(&[1; 512], 0).unwrap_err();
            drop(disk);
            let image = storage.bytes();
            let what = format!("{}, call {call}", kind.name);
            // If nothing has failed until then, the call that shortens the file may.
            assert!(!failed || image.len() <= len, "{what}: {} bytes, {len} before", image.len());
            shortened += usize::from(image.len() < before);
            leaks(&image, &what);
            let effects: Vec<_> =
                later.iter().filter_map(|request| request.effect(&made)).collect();
            for (at, byte) in made.content(&image, None).iter().enumerate() {
                let written =
                    effects.iter().any(|(range, value)| range.contains(&at) && value == byte);
                assert!(model[at] == *byte || written, "{what}: byte {at:#x}");
            }
        }
    }
    assert!(shortened > 60, "only {shortened} files became shorter");
}

#[test]
fn after_a_failed_sync_nothing_is_written_any_more_and_all_can_be_read() {
    fixtures::needs_qemu!();
    let made = KINDS[0].make();
    let storage = Arc::new(SimStorage::new(made.image.clone()));
    let disk = made.open(storage.clone());
    disk.write_at(&[1; 4096], 0).unwrap();
    // The data, then a refcount, a new table and their sync.
    storage.fail(Failure { call: 3, errno: EIO, written: 0, for_good: false });
    let error = loop {
        if let Err(error) = disk.flush() {
            break error;
        }
        disk.write_at(&[1; 4096], 0).unwrap();
        let call = storage.calls() + 1;
        storage.fail(Failure { call, errno: EIO, written: 0, for_good: false });
    };
    assert_eq!(error.kind(), ErrorKind::Io);
    for result in [disk.flush(), disk.write_at(&[2; 512], 0), disk.discard(0, 4096)] {
        let error = result.unwrap_err();
        assert!(error.to_string().contains("an earlier flush failed"), "{error}");
    }
    let mut bytes = [0; 4096];
    disk.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [1; 4096]);
    // Opened anew, it goes on.
    drop(disk);
    let disk = made.open(Arc::new(SimStorage::new(storage.bytes())));
    disk.write_at(&[2; 4096], 0).unwrap();
    disk.close().unwrap();
}

/// Trap 79: a forged entry must not become a way to overwrite or free the image's own tables.
#[test]
fn an_entry_that_leads_to_metadata_is_refused_and_nothing_is_written_there() {
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    fixtures::qemu::create(&path, "cluster_size=4k", "1M");
    fixtures::qemu::qemu_io("qcow2", &path, &["write -P 1 0 8k"]);
    for field in [40, 48] {
        let mut image = fixtures::Patch::open(&path);
        // The L1 table, and the refcount table.
        let table = image.u64(field);
        image.set_l2_entry(0, table | 1 << 63);
        let forged = dir.path().join("forged.qcow2");
        image.save_as(&forged);
        let before = std::fs::read(&forged).unwrap();
        let requests = [
            Request::Write { at: 0, len: 512, value: 2 },
            Request::Discard { at: 0, len: 4096 },
            Request::Compressed { at: 0, len: 4096, value: 3 },
        ];
        for request in requests {
            let storage = Arc::new(SimStorage::new(before.clone()));
            // Without that, opening it is refused.
            let options = WriteOptions::new().trust_refcounts(true);
            let disk = Disk::from_storage(storage.clone(), Format::Qcow2, options).unwrap();
            let error = request.run(&disk).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains("cluster of metadata"), "{error}");
            // The rest of the disk can be written to, and the table is as it was.
            disk.write_at(&[4; 4096], 4096).unwrap();
            disk.close().unwrap();
            let at = table as usize;
            assert_eq!(storage.bytes()[at..at + 64], before[at..at + 64]);
        }
    }
}
