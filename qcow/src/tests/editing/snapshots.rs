//! Snapshots are taken, applied and deleted.

use std::sync::Arc;

use super::super::writing::images::{KINDS, Kind, Made};
use super::model::{crash, edited, opened, seen, task};
use crate::ErrorKind;
use crate::image::Image;
use crate::io::MemoryStorage;
use crate::io::sim::SimStorage;
use crate::ops::snapshot::{BitmapRule, SnapshotOptions, Task, run_on};
use crate::{CancelToken, Silent};

const DATE: (u32, u32) = (1_700_000_000, 5);

fn create(name: &str) -> Task<'_> {
    Task::Create { name, date: DATE }
}

/// The image after guest writes.
fn written(made: &Made, image: Vec<u8>, value: u8) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new(image));
    let disk = made.open(storage.clone());
    let size = disk.size();
    for at in [0, 5000, 17_000, size / 2, size - 700] {
        disk.write_at(&[value; 700], at.min(size - 700)).unwrap();
    }
    disk.discard(8192.min(size), 4096.min(size - 8192.min(size))).unwrap();
    disk.close().unwrap();
    storage.bytes()
}

fn bytes_of_snapshot(made: &Made, image: &[u8], name: &str) -> Vec<u8> {
    made.content(image, Some(name))
}

/// Kinds whose refcounts allow a snapshot.
fn kinds() -> impl Iterator<Item = Kind> {
    KINDS.into_iter().filter(|kind| kind.name != "one bit")
}

#[test]
fn a_crash_while_a_snapshot_is_taken_applied_or_deleted_leaves_the_old_image_or_the_new_one() {
    fixtures::needs_qemu!();
    for kind in kinds() {
        let made = kind.make();
        let first = made.content(&made.image, None);
        let image = crash(&made, &made.image, "create", &|o| task(o, create("a")));
        assert!(made.content(&image, None) == first, "{}", kind.name);
        assert!(bytes_of_snapshot(&made, &image, "a") == first, "{}", kind.name);
        let image = written(&made, image, 101);
        let second = made.content(&image, None);
        assert!(bytes_of_snapshot(&made, &image, "a") == first, "{}: after writes", kind.name);
        let image = crash(&made, &image, "create again", &|o| task(o, create("b")));
        let image = crash(&made, &image, "create without writes", &|o| task(o, create("c")));
        let image = written(&made, image, 102);
        let third = made.content(&image, None);
        let image = if kind.bitmap {
            let storage = Arc::new(SimStorage::new(image.clone()));
            let error = task(&opened(&storage), Task::Apply("a")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
            assert_eq!(storage.calls(), 0);
            let marked = crash(&made, &image, "apply and mark bitmaps", &|o| {
                let options = SnapshotOptions::default().threads(1).bitmaps(BitmapRule::Mark);
                run_on(o, Task::Apply("a"), &options, &Silent, &CancelToken::new()).map(|_| ())
            });
            let dirty = made.dirty(&marked).expect("it can be believed");
            let sectors = first.chunks(512).zip(third.chunks(512)).zip(dirty);
            for (sector, ((now, before), dirty)) in sectors.enumerate() {
                assert!(now == before || dirty, "sector {sector} is not dirty");
            }
            crash(&made, &image, "drop bitmaps", &|o| {
                edited(o, |edit| edit.drop_bitmaps().map(|_| ())).map(|_| ())
            })
        } else {
            image
        };
        let image = crash(&made, &image, "apply", &|o| task(o, Task::Apply("a")));
        assert!(made.content(&image, None) == first, "{}", kind.name);
        assert!(bytes_of_snapshot(&made, &image, "b") == second, "{}", kind.name);
        let image = written(&made, image, 103);
        let fourth = made.content(&image, None);
        let image = crash(&made, &image, "delete", &|o| task(o, Task::Delete("b")));
        assert!(bytes_of_snapshot(&made, &image, "c") == second, "{}", kind.name);
        let image = crash(&made, &image, "delete the first", &|o| task(o, Task::Delete("a")));
        assert!(made.content(&image, None) == fourth, "{}", kind.name);
        let image = crash(&made, &image, "delete c", &|o| task(o, Task::Delete("c")));
        assert!(made.content(&image, None) == fourth, "{}", kind.name);
        let image = written(&made, image, 104);
        assert!(made.content(&image, None) != third);
        let snapshots = seen(&made, &image);
        let emptied = crash(&made, &image, "empty", &|o| edited(o, |e| e.empty()).map(|_| ()));
        assert!(seen(&made, &emptied) != snapshots);
        let written = Image::open(Arc::new(MemoryStorage::new(emptied.clone()))).unwrap();
        assert_eq!(written.virtual_size(), kind.size());
        assert!(emptied.len() <= image.len(), "{}: the file was not cut", kind.name);
    }
}

#[test]
fn a_refcount_that_would_overflow_is_said_before_anything_is_written() {
    fixtures::needs_qemu!();
    let made = KINDS.into_iter().find(|kind| kind.name == "one bit").unwrap().make();
    let storage = Arc::new(SimStorage::new(made.image.clone()));
    let error = task(&opened(&storage), create("a")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    assert!(error.to_string().contains("refcounts of 1 bits"), "{error}");
    assert_eq!(storage.calls(), 0);
}
