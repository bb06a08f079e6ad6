//! Runs a change on a storage that remembers, and judges every state that a crash can leave.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::writing::images::{Made, leaks};
use crate::image::Image;
use crate::image::edit::Edit;
use crate::io::MemoryStorage;
use crate::io::sim::{Event, SimStorage};
use crate::ops::edit::{Changed, Opened, change};
use crate::ops::snapshot::{SnapshotOptions, Task, run_on};
use crate::{CancelToken, Result, Silent};

/// Random states for each stretch between two syncs.
const DRAWN: usize = 10;
/// Every so many different states qemu-img judges too.
const SAMPLE: usize = 100;
/// States of one change that are judged unless the long run is asked for.
const MOST: usize = 50;

/// Something that changes an image.
pub(super) type Work<'a> = &'a dyn Fn(&Opened) -> Result<()>;

/// What users see of an image: its size, its content, and its snapshots' ids, names and contents.
#[derive(PartialEq, Eq)]
pub(super) struct Seen {
    size: u64,
    content: Vec<u8>,
    pub(super) snapshots: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)>,
}

pub(super) fn seen(made: &Made, image: &[u8]) -> Seen {
    let opened = Image::open(Arc::new(MemoryStorage::new(image.to_vec()))).unwrap();
    let snapshot = |snapshot: &crate::format::Snapshot| {
        let id = format!("snapshot.id={}", String::from_utf8_lossy(&snapshot.id));
        let mut content = made.content(image, Some(&id));
        // What is past its own size is none of its.
        content.truncate(snapshot.disk_size.unwrap_or(u64::MAX).min(1 << 40) as usize);
        (snapshot.id.clone(), snapshot.name.clone(), content)
    };
    Seen {
        size: opened.virtual_size(),
        content: made.content(image, None),
        snapshots: opened.snapshots().iter().map(snapshot).collect(),
    }
}

pub(in crate::tests) fn opened(storage: &Arc<SimStorage>) -> Opened {
    Opened::storage(Arc::clone(storage) as _)
}

pub(in crate::tests) fn task(opened: &Opened, task: Task<'_>) -> Result<()> {
    let options = SnapshotOptions::default().threads(1);
    run_on(opened, task, &options, &Silent, &CancelToken::new()).map(|_| ())
}

pub(in crate::tests) fn edited(
    opened: &Opened,
    work: impl FnOnce(&mut Edit) -> Result<()> + Send,
) -> Result<Changed> {
    change(opened, 1, &Silent, &CancelToken::new(), work).map(|((), changed)| changed)
}

/// Carries `work` out on the image, and judges all crashes on the way. Gives the image afterwards.
pub(super) fn crash(made: &Made, image: &[u8], what: &str, work: Work<'_>) -> Vec<u8> {
    // Removing bitmaps, whose extension lies in another sector, takes one more.
    let syncs = if what.ends_with("bitmaps") { 3 } else { 2 };
    crash_within(made, image, what, syncs, work)
}

/// As [`crash`], of what may sync so often.
pub(super) fn crash_within(
    made: &Made,
    image: &[u8],
    what: &str,
    most: usize,
    work: Work<'_>,
) -> Vec<u8> {
    let what = format!("{}: {what}", made.kind.name);
    let storage = Arc::new(SimStorage::new(image.to_vec()));
    let leaked = leaks(image, &what);
    work(&opened(&storage)).unwrap_or_else(|error| panic!("{what}: {error}"));
    let syncs = storage.events().iter().filter(|event| **event == Event::Sync).count();
    assert!(syncs <= most, "{what}: {syncs} syncs");
    let (old, new) = (seen(made, image), seen(made, &storage.bytes()));
    let mut states = HashSet::new();
    let all: Vec<_> = storage.crashes(7, DRAWN).collect();
    let long = std::env::var_os("QCOWTOOL_LONG").is_some();
    let step = if long { 1 } else { all.len().div_ceil(MOST) };
    for crash in all.iter().rev().step_by(step) {
        if !states.insert(crash.bytes.clone()) {
            continue;
        }
        let what = format!("{what}: {}", crash.moment);
        assert_eq!(leaks(&crash.bytes, &what), leaked, "{what}: leaks");
        let found = seen(made, &crash.bytes);
        assert!(found == old || found == new, "{what}: neither the old image nor the new one");
        if states.len() % SAMPLE == 0 {
            made.qemu_agrees(&crash.bytes, leaked > 0, &what);
        }
    }
    let image = storage.bytes();
    assert_eq!(leaks(&image, &what), leaked, "{what}: leaks afterwards");
    made.qemu_agrees(&image, leaked > 0, &what);
    image
}
