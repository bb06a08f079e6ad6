//! Changes of metadata in place, against the model of a crash ([`sim`](crate::io::sim)), the check and
//! QEMU.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

mod amend;
mod backing;
mod bitmaps;

use std::collections::HashSet;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use fixtures::qemu;

use crate::io::sim::{Failure, SimStorage};
use crate::io::{MemoryStorage, Storage, WriteStorage};
use crate::ops::check::{CheckOptions, check_storage};
use crate::{CancelToken, Silent};

const ENOSPC: i32 = 28;

/// An image that qemu-img makes in `dir`.
fn made(dir: &Path, options: &str, size: &str, commands: &[&str]) -> Vec<u8> {
    let path = dir.join("image.qcow2");
    let _ = std::fs::remove_file(&path);
    qemu::create(&path, options, size);
    qemu::qemu_io("qcow2", &path, commands);
    std::fs::read(&path).unwrap()
}

/// What qemu-img says about `image`, without backing and data file: `check` and `info`.
fn by_qemu(image: &[u8], dir: &Path, what: &str) -> serde_json::Value {
    let path = dir.join("judged.qcow2");
    std::fs::write(&path, image).unwrap();
    if let Err(error) = qemu::try_qemu_img(&fixtures::args!["check", "-q", qemu::alone(&path)]) {
        // 3 means leaks and nothing else.
        assert!(error.contains("exit status: 3"), "{what}: {error}");
    }
    qemu::info(&path)
}

/// Our own check finds no corruption; how many clusters are leaked.
fn leaks(image: &[u8], what: &str) -> u64 {
    let storage = Arc::new(MemoryStorage::new(image.to_vec()));
    let options = CheckOptions { threads: 1, ..CheckOptions::default() };
    let outcome = check_storage(storage, &options, &Silent, &CancelToken::new()).unwrap();
    let found = (outcome.corruptions, outcome.check_errors);
    assert_eq!(found, (0, 0), "{what}: {:?}", outcome.findings);
    outcome.leaks
}

/// Runs `change` on the image `start`. Whatever crash there is on the way, and whichever call fails, what
/// `seen` tells of the image is what it told before or what it tells afterwards; there is no corruption;
/// qemu-img agrees on a sample. Returns the image as it is afterwards, which leaks nothing.
fn old_or_new<T: PartialEq + Debug>(
    what: &str,
    start: &[u8],
    dir: &Path,
    change: impl Fn(Arc<dyn WriteStorage>) -> crate::Result<()>,
    seen: impl Fn(Arc<dyn Storage>) -> T,
) -> Vec<u8> {
    let see = |image: &[u8]| seen(Arc::new(MemoryStorage::new(image.to_vec())));
    let storage = Arc::new(SimStorage::new(start.to_vec()));
    change(storage.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let end = storage.bytes();
    let (old, new) = (see(start), see(&end));
    assert_eq!(leaks(&end, what), leaks(start, what), "{what}: leaks");
    let is_one = |image: &[u8], what: &str| {
        leaks(image, what);
        let found = see(image);
        assert!(found == old || found == new, "{what}: {found:?}\nold {old:?}\nnew {new:?}");
    };
    let mut known = HashSet::new();
    // Where there are many calls, not after each of them.
    let calls = storage.calls();
    let step = usize::try_from(calls / 6).unwrap() + 1;
    for (number, crash) in storage.crashes(9, 6).enumerate() {
        let drawn = crash.moment.contains("draw");
        if (drawn || number % step == 0) && known.insert(crash.bytes.clone()) {
            let what = format!("{what}: {}", crash.moment);
            is_one(&crash.bytes, &what);
            if known.len() % 25 == 1 {
                by_qemu(&crash.bytes, dir, &what);
            }
        }
    }
    for call in (0..calls).filter(|call| *call < 2 || calls - call < 4 || *call % step as u64 == 0)
    {
        let what = format!("{what}: call {call} fails");
        let storage = Arc::new(SimStorage::new(start.to_vec()));
        storage.fail(Failure { call, errno: ENOSPC, written: 512, for_good: true });
        match change(storage.clone()) {
            Err(error) => assert_eq!(error.kind(), crate::ErrorKind::NoSpace, "{what}: {error}"),
            // Space was not given back.
            Ok(()) => assert!(see(&storage.bytes()) == new, "{what}"),
        }
        is_one(&storage.bytes(), &what);
        // Once there is space it can be done after all.
        let storage = Arc::new(SimStorage::new(storage.bytes()));
        if see(&storage.bytes()) == old {
            change(storage.clone()).unwrap_or_else(|error| panic!("{what}: again: {error}"));
            assert!(see(&storage.bytes()) == new, "{what}: again");
        }
    }
    by_qemu(&end, dir, what);
    end
}

/// Does it again for as long as the image is in use: a process that another test starts may have the locks for the
/// moment until it becomes another program.
fn when_free<T>(work: impl Fn() -> crate::Result<T>) -> crate::Result<T> {
    for _ in 0..500 {
        match work() {
            Err(error) if error.kind() == crate::ErrorKind::InUse => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            result => return result,
        }
    }
    work()
}
