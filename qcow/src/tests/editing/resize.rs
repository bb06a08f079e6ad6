//! Disks get another size.

use std::sync::Arc;

use super::super::writing::images::{KINDS, Made};
use super::model::{crash, crash_within, edited, opened, seen, task};
use crate::image::Image;
use crate::io::MemoryStorage;
use crate::io::sim::{Failure, SimStorage};
use crate::ops::Preallocation;
use crate::ops::edit::Opened;
use crate::ops::resize::{NewSize, ResizeOptions, resize_on};
use crate::ops::snapshot::Task;
use crate::{CancelToken, ErrorKind, Result, Silent};

fn resize(made: &Made, opened: &Opened, size: NewSize, preallocation: Preallocation) -> Result<()> {
    let target = opened.target.clone().unwrap();
    let options = ResizeOptions::default().shrink(true).threads(1).preallocation(preallocation);
    resize_on(opened, target, made.base(), size, &options, &Silent, &CancelToken::new()).map(drop)
}

fn size_of(image: &[u8]) -> u64 {
    Image::open(Arc::new(MemoryStorage::new(image.to_vec()))).unwrap().virtual_size()
}

/// The content with another length: zeros, or cut.
fn of_len(mut content: Vec<u8>, len: u64) -> Vec<u8> {
    content.resize(len as usize, 0);
    content
}

#[test]
fn a_crash_while_a_disk_gets_another_size_leaves_the_old_disk_or_the_new_one() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        let size = kind.size();
        let content = |image: &[u8]| made.content(image, None);
        let mut image = made.image.clone();
        let version_2 = kind.name.contains("version 2");
        // Within a cluster and across many; up again over what was cut off.
        let sizes =
            [size - 1536, size - 512, size + 1024, size / 3 / 512 * 512, size * 2, size * 9, 512];
        for new in sizes {
            let new = if kind.cluster == 512 { new } else { new / 512 * 512 };
            let expected = of_len(content(&image), new);
            let before = image.clone();
            let result = {
                let storage = Arc::new(SimStorage::new(before.clone()));
                resize(&made, &opened(&storage), NewSize::Exactly(new), Preallocation::Off)
            };
            if let Err(error) = result {
                assert!(version_2 && made.base().is_some(), "{}: {error}", kind.name);
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                continue;
            }
            // The tables move once more, so that the file becomes shorter.
            let syncs = if new < size_of(&before) { 4 } else { 2 };
            image = crash_within(&made, &before, &format!("resize to {new}"), syncs, &|o| {
                resize(&made, o, NewSize::Exactly(new), Preallocation::Off)
            });
            assert!(content(&image) == expected, "{}: {new} bytes", kind.name);
        }
        let how = [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];
        for (number, how) in (1u64..).zip(how) {
            let new = 512 + number * 7 * kind.cluster / 2 / 512 * 512;
            let expected = of_len(content(&image), new);
            image = crash(&made, &image, &format!("{how:?}"), &|o| {
                resize(&made, o, NewSize::Exactly(new), how)
            });
            assert!(content(&image) == expected, "{}: {how:?}", kind.name);
        }
        // The disk is written to as before.
        let storage = Arc::new(MemoryStorage::new(image));
        let disk = made.open(storage.clone());
        disk.write_at(&vec![9; disk.size() as usize], 0).unwrap();
        disk.close().unwrap();
        let image = storage.bytes();
        assert!(content(&image).iter().all(|byte| *byte == 9), "{}", kind.name);
        made.qemu_agrees(&image, false, kind.name);
    }
}

#[test]
fn snapshots_keep_their_size_and_give_it_back() {
    fixtures::needs_qemu!();
    for kind in KINDS.into_iter().filter(|kind| kind.name.contains("snapshot")) {
        let made = kind.make();
        let (first, now) = (made.content(&made.image, Some("one")), seen(&made, &made.image));
        let image = crash(&made, &made.image, "two", &|o| {
            task(o, Task::Create { name: "two", date: (3, 4) })
        });
        for size in [kind.size() / 2 / 512 * 512, kind.size() * 3] {
            let resized = crash_within(&made, &image, "resize", 4, &|o| {
                resize(&made, o, NewSize::Exactly(size), Preallocation::Off)
            });
            let back = crash(&made, &resized, "apply", &|o| task(o, Task::Apply("two")));
            assert!(made.content(&back, Some("one")) == first);
            assert!(made.content(&back, None) == made.content(&made.image, None));
            let back = crash(&made, &back, "delete", &|o| task(o, Task::Delete("two")));
            assert!(seen(&made, &back) == now);
        }
    }
}

#[test]
fn a_call_that_fails_leaves_the_old_disk_or_the_new_one() {
    fixtures::needs_qemu!();
    let kinds = KINDS
        .into_iter()
        .filter(|kind| kind.name.contains("over a short base") || kind.name == "small clusters");
    for kind in kinds {
        let made = kind.make();
        for (size, how) in [
            (kind.size() * 2, Preallocation::Falloc),
            (kind.size() * 2, Preallocation::Off),
            (kind.size() / 2 / 512 * 512, Preallocation::Off),
        ] {
            let run = |storage: &Arc<SimStorage>| {
                resize(&made, &opened(storage), NewSize::Exactly(size), how)
            };
            let whole = Arc::new(SimStorage::new(made.image.clone()));
            run(&whole).unwrap();
            let (old, new) = (seen(&made, &made.image), seen(&made, &whole.bytes()));
            for call in 0..whole.calls() {
                let storage = Arc::new(SimStorage::new(made.image.clone()));
                storage.fail(Failure { call, errno: 28, written: 300, for_good: call % 2 == 0 });
                let result = run(&storage);
                let found = seen(&made, &storage.bytes());
                let what = format!("{}, {size}, call {call}", kind.name);
                assert!(found == new || result.is_err() && found == old, "{what}");
            }
        }
    }
}

#[test]
fn an_emptied_image_that_grows_over_a_longer_base_hides_it() {
    fixtures::needs_qemu!();
    let made = KINDS.into_iter().find(|kind| kind.name == "over a short base").unwrap().make();
    let image = crash_within(&made, &made.image, "shrink", 4, &|o| {
        resize(&made, o, NewSize::Exactly(3 * 4096 + 512), Preallocation::Off)
    });
    let image = crash(&made, &image, "empty", &|o| edited(o, |edit| edit.empty()).map(drop));
    let base = made.content(&image, None);
    assert!(base.iter().all(|byte| *byte >= 100), "the base is seen");
    for size in [3 * 4096 + 1024, 9 * 4096, 100 * 4096] {
        let grown = crash(&made, &image, "grow", &|o| {
            resize(&made, o, NewSize::Exactly(size), Preallocation::Off)
        });
        assert!(made.content(&grown, None) == of_len(base.clone(), size), "{size}");
    }
}
