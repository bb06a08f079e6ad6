//! Requests that are submitted, that have several buffers, and that are durable.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use fixtures::pattern::Random;

use super::images::{KINDS, leaks};
use crate::ErrorKind;
use crate::disk::queue::{Queue, Request};
use crate::io::sim::SimStorage;
use crate::io::{MemoryStorage, Zeroes};

#[test]
fn what_is_submitted_is_carried_out_whether_somebody_waits_for_it_or_not() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        let storage = Arc::new(MemoryStorage::new(made.image.clone()));
        let queue = Queue::new(Arc::new(made.open(storage.clone())), 3).unwrap();
        let mut model = made.content(&made.image, None);
        let (mut random, mut tickets) = (Random::new(5), Vec::new());
        // Each sector once, so that the order does not matter.
        for (number, sector) in model.chunks_mut(512).enumerate() {
            let (at, value) = (number as u64 * 512, random.below(256) as u8);
            let len = sector.len();
            let request = match random.below(8) {
                0 => {
                    sector.fill(0);
                    Request::Zeroes { at, len: len as u64, how: Zeroes::Keep }
                }
                1 if number % 50 == 0 => Request::Flush,
                2 => Request::Read { at, buf: vec![1; len] },
                what => {
                    sector.fill(value);
                    let buf = vec![value; len];
                    match what {
                        3 if number % 50 == 0 => Request::WriteDurable { at, buf },
                        _ => Request::Write { at, buf },
                    }
                }
            };
            let ticket = queue.submit(request);
            if random.below(4) > 0 {
                tickets.push(ticket);
            }
        }
        let past = queue.submit(Request::Read { at: made.kind.size(), buf: vec![0; 1] });
        assert_eq!(past.wait().unwrap_err().kind(), ErrorKind::Usage);
        for ticket in tickets {
            ticket.wait().unwrap();
        }
        let disk = Arc::clone(queue.disk());
        drop(queue);
        let mut found = vec![0; model.len()];
        disk.read_at(&mut found, 0).unwrap();
        assert!(found == model, "{}", kind.name);
        Arc::into_inner(disk).unwrap().close().unwrap();
        assert!(made.content(&storage.bytes(), None) == model, "{}: closed", kind.name);
        assert_eq!(leaks(&storage.bytes(), kind.name), 0, "{}", kind.name);
    }
}

#[test]
fn several_buffers_are_one_after_the_other_and_past_the_end_nothing_is_written() {
    fixtures::needs_qemu!();
    let made = KINDS[1].make();
    let storage = Arc::new(MemoryStorage::new(made.image.clone()));
    let disk = made.open(storage.clone());
    let mut model = made.content(&made.image, None);
    let mut random = Random::new(11);
    for value in 1..60u8 {
        let at = random.below(model.len() as u64);
        let (mut bufs, mut len) = (Vec::new(), 0);
        for piece in 0..random.below(9) {
            let most = if piece % 3 == 2 { 300 << 10 } else { 5000 };
            let buf =
                vec![value; random.below(most.min(model.len() as u64 - at - len + 1)) as usize];
            len += buf.len() as u64;
            bufs.push(buf);
        }
        let slices: Vec<IoSlice<'_>> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        disk.write_vectored_at(&slices, at).unwrap();
        model[at as usize..(at + len) as usize].fill(value);
        let mut read: Vec<Vec<u8>> = bufs.iter().map(|buf| vec![0; buf.len()]).collect();
        let start = random.below(model.len() as u64 - len + 1);
        let mut slices: Vec<IoSliceMut<'_>> = read.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        disk.read_vectored_at(&mut slices, start).unwrap();
        assert!(read.concat() == model[start as usize..(start + len) as usize]);
    }
    let end = model.len() as u64;
    let bufs = [IoSlice::new(&[1; 512]), IoSlice::new(&[1])];
    let error = disk.write_vectored_at(&bufs, end - 512).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let mut found = vec![0; model.len()];
    disk.read_at(&mut found, 0).unwrap();
    assert!(found == model);
}

#[test]
fn what_was_written_durably_is_there_after_every_crash() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        let at = kind.cluster / 2 / 512 * 512;
        let start = {
            // Written to before.
            let storage = Arc::new(SimStorage::new(made.image.clone()));
            let disk = made.open(storage.clone());
            disk.write_durable_at(&[7; 512], at).unwrap();
            disk.write_durable_at(&[8; 512], at).unwrap();
            storage.bytes()
        };
        let storage = Arc::new(SimStorage::new(start));
        let disk = made.open(storage.clone());
        disk.write_at(&[9; 512], at + 512).unwrap();
        for crash in storage.crashes(1, 4) {
            let found = made.content(&crash.bytes, None);
            let range = at as usize..at as usize + 512;
            assert_eq!(found[range], [8; 512], "{}: {}", kind.name, crash.moment);
            leaks(&crash.bytes, kind.name);
        }
    }
}
