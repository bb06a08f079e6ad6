//! Whole operations one after the other in any order, with guest writes between them, and crashes in the middle of some:
//! each leaves the image as it was or as it is to be, and life goes on from there.

use std::sync::Arc;

use fixtures::pattern::Random;

use super::super::writing::images::{KINDS, Made, leaks};
use super::model::{opened, seen, task};
use crate::io::sim::SimStorage;
use crate::io::{WriteStorage, Zeroes};
use crate::ops::amend::{AmendOptions, amend_in};
use crate::ops::bitmap::{BitmapAction, BitmapOptions, change_bitmap_in};
use crate::ops::resize::{NewSize, ResizeOptions, resize_on};
use crate::ops::snapshot::{BitmapRule, SnapshotOptions, Task, run_on};
use crate::{CancelToken, Result, Silent};

const SECTOR: usize = 512;

/// One operation on the whole image.
#[derive(Debug, Clone, PartialEq)]
enum Whole {
    Create(String),
    Apply(String, BitmapRule),
    Delete(String),
    Resize(u64),
    RefcountBits(u32),
    Lazy(bool),
    AddBitmap(String),
    ClearBitmap(String),
    RemoveBitmap(String),
}

impl Whole {
    fn random(made: &Made, random: &mut Random) -> Self {
        let name = format!("{}", random.below(3));
        match random.below(10) {
            0 | 1 => Self::Create(name),
            2 => Self::Apply(name, BitmapRule::Mark),
            3 => Self::Apply(name, BitmapRule::Drop),
            4 => Self::Delete(name),
            5 => Self::Resize(made.kind.size() + random.below(40) * 512 * 7),
            6 => Self::RefcountBits([16, 32, 64][random.below(3) as usize]),
            7 => Self::Lazy(random.below(2) == 0),
            8 => Self::AddBitmap(name),
            _ if random.below(2) == 0 => Self::ClearBitmap(name),
            _ => Self::RemoveBitmap(name),
        }
    }

    fn run(&self, made: &Made, storage: &Arc<SimStorage>) -> Result<()> {
        let (opened, cancel) = (opened(storage), CancelToken::new());
        let target: Arc<dyn WriteStorage> = storage.clone();
        let bitmap = |name: &str, action| {
            let (actions, options) = ([action], BitmapOptions::default().threads(1));
            let target = Arc::clone(&target);
            change_bitmap_in(target, name.as_bytes(), &actions, &options, &Silent, &cancel)
                .map(drop)
        };
        match self {
            Self::Create(name) => task(&opened, Task::Create { name, date: (1, 2) }),
            Self::Apply(name, rule) => {
                let options = SnapshotOptions::default().threads(1).bitmaps(*rule);
                run_on(&opened, Task::Apply(name), &options, &Silent, &cancel).map(drop)
            }
            Self::Delete(name) => task(&opened, Task::Delete(name)),
            Self::Resize(size) => {
                let (size, base) = (NewSize::Exactly(*size), made.base());
                let options = ResizeOptions::default().shrink(true).threads(1);
                resize_on(&opened, target, base, size, &options, &Silent, &cancel).map(drop)
            }
            Self::RefcountBits(bits) => {
                let options = AmendOptions::default().refcount_bits(*bits).threads(1);
                amend_in(target, &options, &Silent, &cancel).map(drop)
            }
            Self::Lazy(lazy) => {
                let options = AmendOptions::default().lazy_refcounts(*lazy).threads(1);
                amend_in(target, &options, &Silent, &cancel).map(drop)
            }
            Self::AddBitmap(name) => bitmap(name, BitmapAction::Add { granularity: Some(2048) }),
            Self::ClearBitmap(name) => bitmap(name, BitmapAction::Clear),
            Self::RemoveBitmap(name) => bitmap(name, BitmapAction::Remove),
        }
    }
}

/// One of the states that a crash can leave.
fn crashed(storage: &SimStorage, random: &mut Random) -> Vec<u8> {
    let all: Vec<_> = storage.crashes(random.below(1000), 2).collect();
    all[random.below(all.len() as u64) as usize].bytes.clone()
}

/// The image after the operation, or after a crash of it.
fn whole(made: &Made, image: Vec<u8>, random: &mut Random, what: &mut String) -> Vec<u8> {
    let whole = Whole::random(made, random);
    what.push_str(&format!(", {whole:?}"));
    let storage = Arc::new(SimStorage::new(image.clone()));
    if let Err(error) = whole.run(made, &storage) {
        assert_eq!(storage.calls(), 0, "{what}: {error}");
        what.push_str(" (refused)");
        return image;
    }
    let (old, new) = (seen(made, &image), seen(made, &storage.bytes()));
    let before = leaks(&image, what);
    if random.below(2) == 0 {
        assert_eq!(leaks(&storage.bytes(), what), before, "{what}: leaks");
        return storage.bytes();
    }
    what.push_str(" (crash)");
    let left = crashed(&storage, random);
    assert_eq!(leaks(&left, what), before, "{what}: leaks");
    let found = seen(made, &left);
    assert!(found == old || found == new, "{what}: neither the old image nor the new one");
    left
}

/// The image after guest writes, or after a crash of them.
fn session(made: &Made, image: &[u8], random: &mut Random, what: &mut String) -> Vec<u8> {
    let start = made.content(image, None);
    let storage = Arc::new(SimStorage::new(image.to_vec()));
    let disk = made.open(storage.clone());
    let mut model = start.clone();
    // For each sector what it was in the meantime.
    let mut values: Vec<Vec<u8>> = start.chunks(SECTOR).map(|sector| vec![sector[0]]).collect();
    let uniform = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]);
    for _ in 0..random.below(6) + 1 {
        let sectors = made.kind.size() / SECTOR as u64;
        let at = random.below(sectors);
        let len = random.below((sectors - at).min(20)) + 1;
        let value = random.below(250) as u8 + 1;
        let (at, len) = (at * SECTOR as u64, len * SECTOR as u64);
        let value = match random.below(5) {
            0 => disk.write_zeroes(at, len, Zeroes::Unmap).map(|()| 0),
            1 => disk.write_zeroes(at, len, Zeroes::Allocate).map(|()| 0),
            2 => disk
                .flush()
                .and_then(|()| disk.write_at(&vec![value; len as usize], at))
                .map(|()| value),
            _ => disk.write_at(&vec![value; len as usize], at).map(|()| value),
        }
        .unwrap();
        model[at as usize..(at + len) as usize].fill(value);
        let written = &mut values[at as usize / SECTOR..(at + len) as usize / SECTOR];
        written.iter_mut().for_each(|values| values.push(value));
    }
    disk.close().unwrap();
    let crash = random.below(2) == 0;
    what.push_str(if crash { ", writes (crash)" } else { ", writes" });
    let left = if crash { crashed(&storage, random) } else { storage.bytes() };
    leaks(&left, what);
    let found = made.content(&left, None);
    if !crash {
        assert!(found == model, "{what}: content");
    }
    let sectors = found.chunks(SECTOR).zip(start.chunks(SECTOR)).zip(values);
    for (number, ((found, before), values)) in sectors.enumerate() {
        let fits = found == before || uniform(found) && values[1..].contains(&found[0]);
        assert!(fits, "{what}: sector {number} has {}", found[0]);
    }
    let (old, new) = (seen(made, image).snapshots, seen(made, &left).snapshots);
    assert!(old == new, "{what}: snapshots");
    left
}

#[test]
fn operations_and_writes_in_any_order_with_crashes_leave_what_was_there_or_what_was_to_be() {
    fixtures::needs_qemu!();
    let seeds = if std::env::var_os("QCOWTOOL_LONG").is_some() { 60 } else { 2 };
    for kind in KINDS {
        let made = kind.make();
        for seed in 0..seeds {
            let mut random = Random::new(seed);
            let mut what = format!("{}, seed {seed}", kind.name);
            let mut image = made.image.clone();
            for _ in 0..10 {
                image = match random.below(3) {
                    0 => session(&made, &image, &mut random, &mut what),
                    _ => whole(&made, image, &mut random, &mut what),
                };
            }
            made.qemu_agrees(&image, true, &what);
        }
    }
}
