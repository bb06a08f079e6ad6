//! Every state that a crash can leave.

use std::collections::HashSet;
use std::sync::Arc;

use fixtures::pattern::Random;

use super::images::{KINDS, Made, leaks};
use super::operations::Request;
use crate::image::{Image, Refcounts};
use crate::io::sim::{Crash, Event, SimStorage};
use crate::io::{MemoryStorage, Storage};

const SECTOR: usize = 512;
/// Random states for each stretch between two syncs.
const DRAWN: usize = 6;
/// Every so many crashes qemu-img judges too, and life goes on.
const SAMPLE: usize = 150;

/// A request that ran, and how many syncs had ended before and after it.
struct Ran {
    request: Request,
    before: usize,
    after: usize,
}

/// What happened to an image.
struct History<'a> {
    made: &'a Made,
    start: Vec<u8>,
    snapshots: Vec<Vec<u8>>,
    ran: Vec<Ran>,
    what: String,
}

fn syncs(storage: &SimStorage) -> usize {
    storage.events().iter().filter(|event| **event == Event::Sync).count()
}

#[test]
fn a_crash_leaves_what_was_flushed_or_something_newer_in_every_kind_of_image() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        for seed in 0..3 {
            one_run(&made, seed, 25);
        }
    }
}

/// With clusters of 512 bytes and refcounts of 64 bits a block covers 32 KiB of the file.
#[test]
fn a_crash_while_refcounts_get_new_blocks_leaves_what_was_flushed() {
    fixtures::needs_qemu!();
    for kind in KINDS.into_iter().filter(|kind| kind.name.contains("wide refcounts")) {
        let made = kind.make();
        let blocks = |image: &[u8]| {
            let image = Image::open(Arc::new(MemoryStorage::new(image.to_vec()))).unwrap();
            let refcounts = Refcounts::read(&image).unwrap();
            refcounts.table().iter().filter(|entry| **entry != 0).count()
        };
        let image = run(
            &made,
            0,
            (0..24).map(|number: u64| match number % 4 {
                3 => Request::Flush,
                _ => {
                    let at = number * 6144 % (kind.size() - 6144);
                    Request::Write { at, len: 6144, value: number as u8 + 1 }
                }
            }),
        );
        assert!(blocks(&image) > blocks(&made.image), "{}: no new blocks", kind.name);
    }
}

/// What is written in place needs no commit, so that only the mark's own sync makes the mark durable before.
#[test]
fn a_crash_after_the_first_write_in_place_never_leaves_a_bitmap_that_lacks_it() {
    fixtures::needs_qemu!();
    let made = KINDS.into_iter().find(|kind| kind.bitmap).unwrap().make();
    let requests = [
        Request::Write { at: 8192, len: 4096, value: 1 },
        Request::Flush,
        Request::Write { at: 16384, len: 512, value: 2 },
    ];
    run(&made, 0, requests.into_iter());
}

fn one_run(made: &Made, seed: u64, requests: u32) {
    let mut random = Random::new(seed ^ 0xc0ffee);
    let requests = (0..requests).map(|number| {
        let request = Request::random(made, &mut random, 512, (number % 250 + 1) as u8);
        if random.below(5) == 0 { Request::Flush } else { request }
    });
    run(made, seed, requests);
}

/// Runs the requests, and judges all crashes on the way. Gives the image afterwards.
fn run(made: &Made, seed: u64, requests: impl Iterator<Item = Request>) -> Vec<u8> {
    let storage = Arc::new(SimStorage::new(made.image.clone()));
    let disk = made.open(storage.clone());
    let mut history = History {
        made,
        start: made.content(&made.image, None),
        snapshots: made.snapshots().iter().map(|id| made.content(&made.image, Some(id))).collect(),
        ran: Vec::new(),
        what: format!("{}, seed {seed}", made.kind.name),
    };
    for request in requests {
        let before = syncs(&storage);
        request.run(&disk).unwrap();
        history.ran.push(Ran { request, before, after: syncs(&storage) });
    }
    let before = syncs(&storage);
    disk.close().unwrap();
    history.ran.push(Ran { request: Request::Flush, before, after: syncs(&storage) });
    let mut seen = HashSet::new();
    for (number, crash) in storage.crashes(seed, DRAWN).enumerate() {
        if seen.insert(crash.bytes.clone()) {
            history.judge(&crash, number % SAMPLE == 0);
        }
    }
    storage.bytes()
}

impl History<'_> {
    fn judge(&self, crash: &Crash, in_full: bool) {
        let what = format!("{}: {}", self.what, crash.moment);
        leaks(&crash.bytes, &what);
        self.judge_content(crash, &what);
        for (id, before) in self.made.snapshots().iter().zip(&self.snapshots) {
            assert!(self.made.content(&crash.bytes, Some(id)) == *before, "{what}: snapshot {id}");
        }
        if self.made.kind.bitmap
            && let Some(dirty) = self.made.dirty(&crash.bytes)
        {
            let found = self.made.content(&crash.bytes, None);
            for (number, dirty) in dirty.iter().enumerate() {
                let sector = number * SECTOR..(number + 1) * SECTOR;
                let same = found[sector.clone()] == self.start[sector];
                assert!(*dirty || same, "{what}: the bitmap lacks sector {number}");
            }
        }
        if in_full {
            self.made.qemu_agrees(&crash.bytes, true, &what);
            self.life_goes_on(crash, &what);
        }
    }

    fn judge_content(&self, crash: &Crash, what: &str) {
        let epoch: usize =
            crash.moment["epoch ".len()..].split(',').next().unwrap().parse().unwrap();
        let ended = |ran: &Ran| ran.request == Request::Flush && ran.after <= epoch;
        let durable = self.ran.iter().rposition(ended).map_or(0, |index| index + 1);
        let found = self.made.content(&crash.bytes, None);
        // What each sector may be: the value when the last flush began, or any later one.
        let mut allowed: Vec<Vec<Option<u8>>> = vec![vec![None]; found.len() / SECTOR];
        for (index, ran) in self.ran.iter().enumerate() {
            if ran.before > epoch {
                break;
            }
            let Some((range, value)) = ran.request.effect(self.made) else { continue };
            for values in &mut allowed[range.start / SECTOR..range.end.div_ceil(SECTOR)] {
                if index < durable {
                    values.clear();
                }
                values.push(Some(value));
            }
        }
        for (sector, values) in allowed.iter().enumerate() {
            let place = sector * SECTOR..(sector + 1) * SECTOR;
            let (bytes, start) = (&found[place.clone()], &self.start[place]);
            let fits = |value: &Option<u8>| match value {
                Some(value) => bytes.iter().all(|byte| byte == value),
                None => bytes == start,
            };
            assert!(
                values.iter().any(fits),
                "{what}: sector {sector} has {}, allowed are {values:?}",
                bytes[0]
            );
        }
    }

    /// The image as it was left is written to again.
    fn life_goes_on(&self, crash: &Crash, what: &str) {
        let storage = Arc::new(MemoryStorage::new(crash.bytes.clone()));
        // Clusters past the end of the file can be counted too, which is seen when the file grows.
        let mut longer = crash.bytes.clone();
        longer.resize(longer.len() + (1 << 20), 0);
        let before = leaks(&longer, what);
        let disk = self.made.open(storage.clone());
        let mut model = self.made.content(&crash.bytes, None);
        let mut random = Random::new(storage.len());
        for _ in 0..20 {
            let request = Request::random(self.made, &mut random, 512, 251);
            request.run(&disk).unwrap();
            if let Some((range, value)) = request.effect(self.made) {
                model[range].fill(value);
            }
        }
        disk.close().unwrap();
        let image = storage.bytes();
        assert!(self.made.content(&image, None) == model, "{what}: written to afterwards");
        let after = leaks(&image, what);
        assert!(after <= before, "{what}: {after} leaks, before {before}");
    }
}
