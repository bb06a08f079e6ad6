//! Random requests against a model that is an array of bytes.

use std::sync::Arc;

use fixtures::pattern::Random;

use super::images::{KINDS, Made, leaks};
use super::steps::read_in_steps;
use crate::Error;
use crate::disk::Disk;
use crate::disk::steps::{PreparedWrite, WritePlace};
use crate::io::{MemoryStorage, Zeroes};

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Write {
        at: u64,
        len: u64,
        value: u8,
    },
    /// Prepared, written by the caller, and committed.
    Steps {
        at: u64,
        len: u64,
        value: u8,
    },
    /// Prepared and written, as far as that is not seen, and dropped.
    Dropped {
        at: u64,
        len: u64,
        value: u8,
    },
    Compressed {
        at: u64,
        len: u64,
        value: u8,
    },
    Zero {
        at: u64,
        len: u64,
        how: Zeroes,
    },
    Discard {
        at: u64,
        len: u64,
    },
    Flush,
}

impl Request {
    /// One for a disk like `made`, in units of `unit` bytes.
    pub(super) fn random(made: &Made, random: &mut Random, unit: u64, value: u8) -> Self {
        let (size, cluster) = (made.kind.size(), made.kind.cluster);
        let units = size / unit;
        let at = random.below(units) * unit;
        let most = (size - at).min(3 * cluster) / unit;
        let len = (random.below(most) + 1) * unit;
        let first = at / cluster * cluster;
        let whole = (size - first).min((random.below(3) + 1) * cluster);
        match random.below(16) {
            0..=2 => Self::Write { at, len, value },
            3..=4 => Self::Steps { at, len, value },
            // Bits are set for what was to be written.
            5 if made.kind.bitmap => Self::Steps { at, len, value },
            5 => Self::Dropped { at, len, value },
            6 => Self::Write { at: first, len: whole, value },
            7 | 8 if made.compresses() => {
                Self::Compressed { at: first, len: (size - first).min(cluster), value }
            }
            9 => Self::Zero { at, len, how: Zeroes::Keep },
            10 => Self::Zero { at, len, how: Zeroes::Unmap },
            11 => Self::Zero { at: first, len: whole, how: Zeroes::Keep },
            12 => Self::Discard { at: first, len: whole },
            13 => Self::Discard { at, len },
            14 => Self::Flush,
            _ => Self::Write { at, len: len.min(unit), value },
        }
    }

    pub(super) fn run(self, disk: &Disk) -> crate::Result<()> {
        match self {
            Self::Write { at, len, value } => disk.write_at(&vec![value; len as usize], at),
            Self::Steps { at, len, value } => {
                let prepared = prepared(disk, at, len)?;
                for WritePlace { len, host, .. } in prepared.places() {
                    write(disk, &vec![value; *len as usize], host.0)?;
                }
                prepared.commit()
            }
            Self::Dropped { at, len, value } => {
                let prepared = prepared(disk, at, len)?;
                let unseen = |place: &&WritePlace| !place.in_place;
                for WritePlace { len, host, .. } in prepared.places().iter().filter(unseen) {
                    write(disk, &vec![value; *len as usize], host.0)?;
                }
                Ok(())
            }
            Self::Compressed { at, len, value } => {
                disk.write_compressed(&vec![value; len as usize], at)
            }
            Self::Zero { at, len, how } => disk.write_zeroes(at, len, how),
            Self::Discard { at, len } => disk.discard(at, len),
            Self::Flush => disk.flush(),
        }
    }

    /// Where it changes something, and to what.
    pub(super) fn effect(self, made: &Made) -> Option<(std::ops::Range<usize>, u8)> {
        let range = |at: u64, len: u64| at as usize..(at + len) as usize;
        match self {
            Self::Write { at, len, value }
            | Self::Steps { at, len, value }
            | Self::Compressed { at, len, value } => Some((range(at, len), value)),
            Self::Zero { at, len, .. } => Some((range(at, len), 0)),
            Self::Discard { at, len } => {
                let (cluster, size) = (made.kind.cluster, made.kind.size());
                let end = if at + len == size { size } else { (at + len) / cluster * cluster };
                let start = at.next_multiple_of(cluster);
                (made.discards() && start < end).then(|| (range(start, end - start), 0))
            }
            Self::Dropped { .. } | Self::Flush => None,
        }
    }
}

/// Waits for other requests that have these clusters.
fn prepared(disk: &Disk, at: u64, len: u64) -> crate::Result<PreparedWrite<'_>> {
    loop {
        if let Some(prepared) = disk.prepare_write(at, len)? {
            let places = prepared.places();
            let end = places
                .iter()
                .try_fold(at, |next, place| (place.at == next).then_some(next + place.len));
            assert_eq!(end, Some(at + len), "places without gaps: {places:?}");
            return Ok(prepared);
        }
        std::thread::yield_now();
    }
}

fn write(disk: &Disk, bytes: &[u8], at: u64) -> crate::Result<()> {
    disk.data_storage().write_at(bytes, at).map_err(|error| Error::io("could not write", error))
}

#[test]
fn what_is_read_is_what_was_written_in_every_kind_of_image_and_qemu_agrees() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        for seed in 0..6 {
            one_run(&made, seed);
        }
    }
}

fn one_run(made: &Made, seed: u64) {
    let what = format!("{}, seed {seed}", made.kind.name);
    let storage = Arc::new(MemoryStorage::new(made.image.clone()));
    let disk = made.open(storage.clone());
    let mut model = made.content(&made.image, None);
    let mut random = Random::new(seed);
    // Odd bytes in some runs, sectors in the others.
    let unit = if seed.is_multiple_of(2) { 1 } else { 512 };
    let mut touched = vec![false; model.len() / 512];
    for number in 0..150u32 {
        let request = Request::random(made, &mut random, unit, (number % 250 + 1) as u8);
        request.run(&disk).unwrap_or_else(|error| panic!("{what}: {request:?}: {error}"));
        if let Some((range, value)) = request.effect(made) {
            touched[range.start / 512..range.end.div_ceil(512)].fill(true);
            model[range].fill(value);
        }
        if number % 10 == 9 {
            let mut bytes = vec![0; model.len()];
            if number % 20 == 9 {
                disk.read_at(&mut bytes, 0).unwrap();
            } else {
                read_in_steps(&disk, &mut bytes);
            }
            if let Some(at) = (0..bytes.len()).find(|at| bytes[*at] != model[*at]) {
                panic!(
                    "{what}, after {request:?}: byte {at:#x} is {}, not {}",
                    bytes[at], model[at]
                );
            }
        }
    }
    disk.close().unwrap();
    let image = storage.bytes();
    assert!(made.content(&image, None) == model, "{what}: after closing");
    assert_eq!(leaks(&image, &what), 0, "{what}: leaks after closing");
    if made.kind.bitmap {
        let dirty = made.dirty(&image).expect("stored cleanly");
        // Four sectors to a bit.
        for (number, (dirty, touched)) in dirty.chunks(4).zip(touched.chunks(4)).enumerate() {
            assert_eq!(dirty[0], touched.contains(&true), "{what}: bit {number}");
        }
    }
    for snapshot in made.snapshots() {
        let before = made.content(&made.image, Some(snapshot));
        assert!(made.content(&image, Some(snapshot)) == before, "{what}: snapshot");
    }
    made.qemu_agrees(&image, false, &what);
}
