//! What an update writes, in which order, and what can be read of it before.
#![allow(clippy::arithmetic_side_effects, reason = "a test that overflows fails, as it should")]

use super::*;
use crate::ErrorKind;
use crate::io::sim::{Crash, Event, SimStorage};
use crate::io::{MemoryStorage, read_padded};

/// Three pieces of 1000 bytes from 30000 on, each full of its number.
#[derive(Debug)]
struct Numbered;

impl Pieces for Numbered {
    fn start(&self) -> u64 {
        30_000
    }

    fn piece_len(&self) -> u64 {
        1000
    }

    fn count(&self) -> u64 {
        3
    }

    fn piece(&self, number: u64) -> Result<Vec<u8>> {
        Ok(vec![u8::try_from(number + 1).unwrap(); 1000])
    }
}

fn noise() -> Vec<u8> {
    (0..10_000u32).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn a_staged_update_reads_as_it_will_be_written() {
    let mut staged = Staged::new(Arc::new(MemoryStorage::new(noise())));
    for (offset, len) in [(0, 3), (4090, 20), (9_990, 500), (20_000, 1)] {
        staged.write(offset, vec![0xee; len]).unwrap();
    }
    staged.write_pieces(Arc::new(Numbered)).unwrap();
    staged.write(30_990, vec![0xee; 20]).unwrap();
    let target = MemoryStorage::new(noise());
    staged.apply(&target).unwrap();
    let written = target.bytes();
    assert_eq!((written[30_989], written[31_010], written[32_999]), (1, 2, 3));
    let result = staged.result();
    assert_eq!(result.len(), written.len() as u64);
    for (from, len) in [(0, written.len()), (4000, 200), (9_999, 2), (5000, 1), (30_500, 2000)] {
        let mut read = vec![0; len];
        read_padded(&*result, &mut read, from as u64).unwrap();
        assert_eq!(read, written[from..from + len]);
    }
    assert_eq!(result.next_data(25_000).unwrap(), Some(28_672), "the page of the last write");
}

/// As many pieces, whose maker the caller has stopped.
#[derive(Debug)]
struct Stopped;

impl Pieces for Stopped {
    fn start(&self) -> u64 {
        Numbered.start()
    }

    fn piece_len(&self) -> u64 {
        Numbered.piece_len()
    }

    fn count(&self) -> u64 {
        Numbered.count()
    }

    fn piece(&self, _: u64) -> Result<Vec<u8>> {
        Err(Error::interrupted())
    }
}

#[test]
fn that_the_caller_cancelled_is_still_known_when_the_result_is_read() {
    let mut staged = Staged::new(Arc::new(MemoryStorage::new(noise())));
    staged.write_pieces(Arc::new(Stopped)).unwrap();
    let error = read_padded(&*staged.result(), &mut [0; 10], 30_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
}

#[test]
fn each_phase_is_durable_before_the_next_one_begins() {
    let mut update = Update::default();
    update.barrier();
    update.write(0, vec![1; 512]).unwrap();
    update.write(1024, vec![1; 512]).unwrap();
    update.barrier();
    update.barrier();
    update.write(2048, vec![1; 512]).unwrap();
    let storage = SimStorage::new(vec![0; 4096]);
    update.apply(&storage).unwrap();
    let syncs: Vec<_> = storage.events().iter().map(|event| *event == Event::Sync).collect();
    assert_eq!(syncs, [false, false, true, false, true]);
    for Crash { bytes, .. } in storage.crashes(1, 20) {
        if bytes[2048] == 1 {
            assert_eq!((bytes[0], bytes[1024]), (1, 1), "the second phase without the first");
        }
    }
}

#[test]
fn only_sectors_that_differ_are_written_and_never_parts_of_two() {
    let old = vec![0; 2000];
    let mut new = old.clone();
    (new[200], new[300], new[1999]) = (1, 1, 1);
    let sectors = changed_sectors(256, &old, &new).unwrap();
    let places: Vec<_> = sectors.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
    assert_eq!(places, [(256, 256), (512, 512), (2048, 208)]);
    assert!(changed_sectors(0, &old, &new[1..]).is_err());
}

#[test]
fn what_no_file_can_have_is_an_error_of_ours() {
    let mut update = Update::default();
    let error = update.write(u64::MAX - 3, vec![0; 4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(update.is_empty());
}
