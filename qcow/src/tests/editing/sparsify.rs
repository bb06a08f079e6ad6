//! Space is given back, and clusters move: the disk and its snapshots read the same at every moment.

use std::sync::Arc;

use super::super::writing::images::{KINDS, Kind, Made, leaks};
use super::model::{Seen, crash_within, opened, seen, task};
use crate::io::sim::{Failure, SimStorage};
use crate::io::{MemoryStorage, WriteStorage, Zeroes};
use crate::ops::edit::Opened;
use crate::ops::snapshot::Task;
use crate::ops::sparsify::{Files, SparsifyOptions, SparsifyOutcome, sparsify_on};
use crate::{CancelToken, ErrorKind, Observer, Result, Silent};

/// Syncs of all that can happen: the zeros, some passes with bitmaps, the end.
const SYNCS: usize = 60;

fn options(compact: bool) -> SparsifyOptions {
    SparsifyOptions::default().compact(compact).threads(1)
}

fn run(target: Arc<dyn WriteStorage>, compact: bool) -> Result<SparsifyOutcome> {
    let files = Files::writing(target, None);
    sparsify_on(&files, &options(compact), &Silent, &CancelToken::new())
}

fn work(opened: &Opened, compact: bool) -> Result<()> {
    run(opened.target.clone().unwrap(), compact).map(drop)
}

/// The image with data everywhere, some of it zeros, and free places at the file's beginning.
fn filled(made: &Made, snapshot: bool) -> Vec<u8> {
    let storage = Arc::new(SimStorage::new(made.image.clone()));
    if snapshot {
        task(&opened(&storage), Task::Create { name: "late", date: (1, 2) }).unwrap();
    }
    let storage = Arc::new(MemoryStorage::new(storage.bytes()));
    let disk = made.open(storage.clone());
    let (size, cluster) = (disk.size(), made.kind.cluster);
    let bytes: Vec<u8> = (0..size).map(|at| (at / 512 % 199 + 1) as u8).collect();
    disk.write_at(&bytes, 0).unwrap();
    disk.flush().unwrap();
    // Zeros that are stored, whole clusters and a part of one.
    let middle = size / 2 / cluster * cluster;
    let zeros = (cluster * 5 / 2).min(size - middle);
    disk.write_at(&vec![0; zeros as usize], middle).unwrap();
    let third = size / 3 / cluster * cluster;
    disk.write_zeroes(0, third, Zeroes::Unmap).unwrap();
    disk.close().unwrap();
    storage.bytes()
}

fn kinds() -> impl Iterator<Item = (Kind, bool)> {
    let snapshots = |kind: &Kind| kind.name != "one bit" && kind.cluster < 65536;
    KINDS.into_iter().flat_map(move |kind| {
        [Some((kind, false)), snapshots(&kind).then_some((kind, true))].into_iter().flatten()
    })
}

#[test]
fn a_crash_while_space_is_given_back_leaves_the_disk_and_its_snapshots_as_they_were() {
    fixtures::needs_qemu!();
    for (kind, snapshot) in kinds() {
        let made = kind.make();
        let image = filled(&made, snapshot);
        let before = seen(&made, &image);
        for compact in [false, true] {
            let what = format!("{} {snapshot}: compact {compact}", kind.name);
            let result = crash_within(&made, &image, &what, SYNCS, &|opened| work(opened, compact));
            assert!(seen(&made, &result) == before, "{what}: the disk reads as another one");
            let most = image.len() as u64 + kind.cluster;
            assert!((result.len() as u64) < most, "{what}: the file has become longer");
            if kind.bitmap {
                assert!(made.dirty(&image) == made.dirty(&result), "{what}: the bitmap");
            }
            if compact && !snapshot && kind.cluster == 4096 && !kind.name.contains("version 2 over")
            {
                assert!(result.len() < image.len(), "{what}: {} bytes still", result.len());
            }
            goes_on(&made, result, &what);
        }
    }
}

/// What is written to the image afterwards is read, and the image is sound.
fn goes_on(made: &Made, image: Vec<u8>, what: &str) {
    let storage = Arc::new(MemoryStorage::new(image));
    let disk = made.open(storage.clone());
    disk.write_at(&vec![201; disk.size() as usize], 0).unwrap();
    disk.close().unwrap();
    let image = storage.bytes();
    assert!(made.content(&image, None).iter().all(|byte| *byte == 201), "{what}");
    made.qemu_agrees(&image, false, what);
}

#[test]
fn a_call_that_fails_while_space_is_given_back_leaves_the_disk_as_it_was() {
    fixtures::needs_qemu!();
    let some = ["plain", "compressed", "a snapshot", "a bitmap", "subclusters over a base"];
    for kind in KINDS.into_iter().filter(|kind| some.contains(&kind.name)) {
        let made = kind.make();
        let image = filled(&made, false);
        let before = seen(&made, &image);
        let whole = Arc::new(SimStorage::new(image.clone()));
        run(whole.clone(), true).unwrap();
        let step = usize::try_from(whole.calls() / 60).unwrap().max(1);
        for call in (0..whole.calls()).step_by(step) {
            for (errno, for_good) in [(5, true), (28, true), (5, false)] {
                let storage = Arc::new(SimStorage::new(image.clone()));
                storage.fail(Failure { call, errno, written: 300, for_good });
                let _ = run(storage.clone(), true);
                let what = format!("{}, call {call}, {errno}", kind.name);
                assert_eq!(leaks(&storage.bytes(), &what), 0, "{what}");
                assert!(seen(&made, &storage.bytes()) == before, "{what}");
            }
        }
    }
}

/// Cancels when so much is read.
struct At(u64, CancelToken);

impl Observer for At {
    fn progress(&self, done: u64, _: u64) {
        if done >= self.0 {
            self.1.cancel();
        }
    }
}

#[test]
fn a_cancelled_run_leaves_the_disk_as_it_was() {
    fixtures::needs_qemu!();
    let made = KINDS[0].make();
    let image = filled(&made, false);
    let before: Seen = seen(&made, &image);
    for done in [0, kind_size() / 2, kind_size()] {
        let storage = Arc::new(SimStorage::new(image.clone()));
        let cancel = CancelToken::new();
        let files = Files::writing(storage.clone(), None);
        let at = At(done, cancel.clone());
        let error = sparsify_on(&files, &options(true), &at, &cancel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
        assert!(seen(&made, &storage.bytes()) == before);
    }
}

fn kind_size() -> u64 {
    KINDS[0].size()
}

#[test]
fn a_plan_says_what_is_done_and_writes_nothing() {
    fixtures::needs_qemu!();
    for (kind, snapshot) in kinds() {
        let made = kind.make();
        let image = filled(&made, snapshot);
        for compact in [false, true] {
            let storage = Arc::new(MemoryStorage::new(image.clone()));
            let files = Files {
                image: Opened { storage: storage.clone(), target: None },
                ..Files::writing(storage.clone(), None)
            };
            let options = options(compact).dry_run(true);
            let plan = sparsify_on(&files, &options, &Silent, &CancelToken::new()).unwrap();
            assert!(storage.bytes() == image, "{}: a plan wrote something", kind.name);
            let done = run(storage, compact).unwrap();
            let figures = |outcome: &SparsifyOutcome| {
                (outcome.zero_bytes, outcome.freed, outcome.moved, outcome.file_size)
            };
            let what = format!("{} {snapshot} {compact}", kind.name);
            assert_eq!(figures(&plan), figures(&done), "{what}");
        }
    }
}
