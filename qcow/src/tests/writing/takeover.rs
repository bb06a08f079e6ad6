//! Images that were not closed properly, as a crash of QEMU leaves them that keeps refcounts lazily (W-40, W-87): they
//! are repaired when they are opened for writing, and marked clean last of all.

use std::collections::HashSet;
use std::sync::Arc;

use fixtures::pattern::Random;

use super::super::editing::model::{opened, task};
use super::damaged::{counted, is_dirty, mark_dirty, set_count};
use super::images::{KINDS, Kind, Made, leaks};
use crate::io::sim::{Failure, SimStorage};
use crate::io::{MemoryStorage, WriteStorage};
use crate::ops::snapshot::Task;
use crate::{ErrorKind, Result};

const ENOSPC: i32 = 28;
/// Random states for each stretch between two syncs.
const DRAWN: usize = 6;

/// The kinds that have such a mark.
fn kinds() -> impl Iterator<Item = Kind> {
    KINDS.into_iter().filter(|kind| !kind.name.contains("version 2"))
}

/// The image with refcounts as a crash with lazy ones leaves them: of some clusters that are used it is zero yet, and
/// some are counted still that are used no more.
fn not_closed(made: &Made, seed: u64) -> Vec<u8> {
    let mut image = made.image.clone();
    let mut random = Random::new(seed);
    let used = counted(&image);
    for (cluster, _) in &used {
        if random.below(3) == 0 {
            set_count(&mut image, *cluster, 0);
        }
    }
    let end = used.last().map_or(0, |(cluster, _)| cluster + 1);
    image.resize((end + 4) as usize * made.kind.cluster as usize, 0);
    for cluster in end..end + 4 {
        set_count(&mut image, cluster, random.below(2));
    }
    mark_dirty(&mut image, true);
    image
}

/// Opens it for writing, and no more.
fn taken_over(made: &Made, storage: Arc<dyn WriteStorage>) -> Result<bool> {
    Ok(made.try_open(storage)?.repaired().is_some())
}

#[test]
fn an_image_that_was_not_closed_properly_is_repaired_and_written_to() {
    fixtures::needs_qemu!();
    for kind in kinds() {
        let made = kind.make();
        for seed in 0..4 {
            let what = format!("{}, seed {seed}", kind.name);
            let storage = Arc::new(MemoryStorage::new(not_closed(&made, seed)));
            let disk = made.try_open(storage.clone()).unwrap();
            let repaired = disk.repaired().unwrap_or_else(|| panic!("{what}: not repaired"));
            assert!(repaired.corruptions > 0, "{what}");
            assert!(!is_dirty(&storage.bytes()), "{what}");
            assert_eq!(leaks(&storage.bytes(), &what), 0, "{what}");
            let mut model = made.content(&made.image, None);
            for at in [0, 5000, kind.size() / 2, kind.size() - 700] {
                disk.write_at(&[9; 700], at).unwrap();
                model[at as usize..at as usize + 700].fill(9);
            }
            disk.close().unwrap();
            let image = storage.bytes();
            assert!(made.content(&image, None) == model, "{what}");
            assert_eq!(leaks(&image, &what), 0, "{what}");
            assert!(!is_dirty(&image), "{what}: no disk of ours is ever marked");
            for snapshot in made.snapshots() {
                let before = made.content(&made.image, Some(snapshot));
                assert!(made.content(&image, Some(snapshot)) == before, "{what}: snapshot");
            }
            made.qemu_agrees(&image, false, &what);
        }
    }
}

/// Each state is still marked, or right; its content is what it was; and opening it again ends in a sound image.
fn judge(made: &Made, image: &[u8], what: &str) {
    let before = made.content(&made.image, None);
    assert!(made.content(image, None) == before, "{what}: content");
    if !is_dirty(image) {
        assert_eq!(leaks(image, what), 0, "{what}: leaks");
    }
    let again = Arc::new(MemoryStorage::new(image.to_vec()));
    assert_eq!(taken_over(made, again.clone()).unwrap(), is_dirty(image), "{what}: again");
    assert!(!is_dirty(&again.bytes()), "{what}: again");
    assert_eq!(leaks(&again.bytes(), what), 0, "{what}: again");
    assert!(made.content(&again.bytes(), None) == before, "{what}: content, again");
}

#[test]
fn a_crash_while_it_is_repaired_leaves_it_marked_or_right() {
    fixtures::needs_qemu!();
    for kind in kinds() {
        let made = kind.make();
        for seed in 10..12 {
            let start = not_closed(&made, seed);
            let storage = Arc::new(SimStorage::new(start.clone()));
            taken_over(&made, storage.clone()).unwrap();
            let (mut seen, mut marked) = (HashSet::new(), 0);
            for (number, crash) in storage.crashes(seed, DRAWN).enumerate() {
                if seen.insert(crash.bytes.clone()) {
                    let what = format!("{}, seed {seed}: {}", kind.name, crash.moment);
                    judge(&made, &crash.bytes, &what);
                    marked += usize::from(is_dirty(&crash.bytes));
                    if number % 40 == 0 && !is_dirty(&crash.bytes) {
                        made.qemu_agrees(&crash.bytes, false, &what);
                    }
                }
            }
            assert!(marked > 1, "{}: it is marked until the end", kind.name);
            for call in 0..storage.calls() {
                let what = format!("{}, seed {seed}: call {call} fails", kind.name);
                let storage = Arc::new(SimStorage::new(start.clone()));
                storage.fail(Failure { call, errno: ENOSPC, written: 100, for_good: true });
                let error = taken_over(&made, storage.clone()).expect_err(&what);
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{what}: {error}");
                judge(&made, &storage.bytes(), &what);
            }
        }
    }
}

/// Operations in place take it over as well; a plan alone changes nothing.
#[test]
fn a_snapshot_of_an_image_that_was_not_closed_properly_has_its_content() {
    fixtures::needs_qemu!();
    for kind in kinds().filter(|kind| kind.name != "one bit") {
        let made = kind.make();
        let start = not_closed(&made, 20);
        let content = made.content(&made.image, None);
        let storage = Arc::new(SimStorage::new(start.clone()));
        let plan = crate::ops::edit::Opened { target: None, ..opened(&storage) };
        task(&plan, Task::Create { name: "two", date: (1, 2) }).unwrap();
        assert_eq!(storage.calls(), 0, "{}: a plan", kind.name);
        task(&opened(&storage), Task::Create { name: "two", date: (1, 2) }).unwrap();
        let image = storage.bytes();
        assert_eq!(leaks(&image, kind.name), 0, "{}", kind.name);
        assert!(made.content(&image, None) == content, "{}", kind.name);
        assert!(made.content(&image, Some("two")) == content, "{}: snapshot", kind.name);
        made.qemu_agrees(&image, false, kind.name);
        let all: Vec<_> = storage.crashes(5, DRAWN).collect();
        for crash in all.iter().step_by(all.len().div_ceil(60)) {
            let what = format!("{}: {}", kind.name, crash.moment);
            assert!(made.content(&crash.bytes, None) == content, "{what}");
            if !is_dirty(&crash.bytes) {
                assert_eq!(leaks(&crash.bytes, &what), 0, "{what}");
            }
        }
    }
}

#[test]
fn an_image_that_is_marked_corrupt_is_refused_whatever_else_it_is_marked() {
    fixtures::needs_qemu!();
    let made = KINDS[0].make();
    for bits in [2u64, 3] {
        let mut image = not_closed(&made, 1);
        image[72..80].copy_from_slice(&bits.to_be_bytes());
        let storage = Arc::new(SimStorage::new(image));
        let refused = [
            made.try_open(storage.clone()).map(drop),
            task(&opened(&storage), Task::Create { name: "two", date: (1, 2) }),
        ];
        for result in refused {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains("marked corrupt"), "{error}");
        }
        assert_eq!(storage.calls(), 0);
    }
}

/// What no repair understands is left alone, and still marked.
#[test]
fn what_cannot_be_repaired_is_left_as_it_is() {
    fixtures::needs_qemu!();
    let made = KINDS[0].make();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let storage = Arc::new(MemoryStorage::new(made.image.clone()));
    let disk = made.open(storage.clone());
    disk.write_at(&[1; 4096], 0).unwrap();
    disk.close().unwrap();
    std::fs::write(&path, storage.bytes()).unwrap();
    let mut patch = fixtures::Patch::open(&path);
    let entry = patch.l2_entry(0);
    // Reserved bits.
    patch.set_l2_entry(0, entry | 0x3e).save();
    let mut image = std::fs::read(&path).unwrap();
    mark_dirty(&mut image, true);
    let storage = Arc::new(SimStorage::new(image.clone()));
    let error = made.try_open(storage.clone()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(storage.calls(), 0);
}
