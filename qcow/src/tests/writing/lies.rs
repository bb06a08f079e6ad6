//! Refcounts that are lower than they should be (W-67): whoever believes them gives a cluster that is used to another
//! range, and destroys what it has.

use std::sync::Arc;

use super::super::editing::model::{edited, opened, task};
use super::damaged::{counted, set_count};
use super::images::KINDS;
use crate::chain::Format;
use crate::disk::{Disk, WriteOptions};
use crate::io::sim::SimStorage;
use crate::ops::snapshot::Task;
use crate::{CancelToken, ErrorKind};

/// At most so many clusters of one image are lied about, spread evenly.
const MOST: usize = 40;

/// Every refcount of every kind of image is one too low in turn: of data, of tables, of what is compressed, of what a
/// snapshot or a bitmap has.
#[test]
fn an_image_with_a_refcount_that_is_too_low_is_not_written_to_by_anything() {
    fixtures::needs_qemu!();
    for kind in KINDS {
        let made = kind.make();
        let counted = counted(&made.image);
        for (cluster, count) in counted.iter().step_by(counted.len().div_ceil(MOST)) {
            let what = format!("{}, cluster {cluster} with {count}", kind.name);
            let mut forged = made.image.clone();
            assert!(set_count(&mut forged, *cluster, count - 1), "{what}");
            let storage = Arc::new(SimStorage::new(forged.clone()));
            let refused = [
                made.try_open(storage.clone()).map(drop),
                task(&opened(&storage), Task::Create { name: "two", date: (1, 2) }),
                edited(&opened(&storage), |edit| edit.empty()).map(drop),
            ];
            for result in refused {
                let error = result.expect_err(&what);
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
                assert!(error.what_next().is_some(), "{what}: {error}");
            }
            assert_eq!(storage.calls(), 0, "{what}: something was written");
        }
    }
}

/// What would happen otherwise, so that the test above is known to see something: the same image, believed.
#[test]
fn a_refcount_that_is_believed_and_too_low_destroys_data() {
    fixtures::needs_qemu!();
    let made = KINDS.iter().find(|kind| kind.name == "version 2").unwrap().make();
    let before = made.content(&made.image, None);
    let destroyed = counted(&made.image).iter().any(|(cluster, count)| {
        let mut forged = made.image.clone();
        set_count(&mut forged, *cluster, count - 1);
        let storage = Arc::new(SimStorage::new(forged));
        let options = WriteOptions::new().trust_refcounts(true);
        let disk = Disk::from_storage(storage.clone(), Format::Qcow2, options).unwrap();
        // The first 8 KiB have nothing yet.
        let written = disk.write_at(&[77; 4096], 0).and_then(|()| disk.close());
        written.is_ok() && made.content(&storage.bytes(), None)[4096..] != before[4096..]
    });
    assert!(destroyed, "no refcount matters");
}

/// Leaked clusters cost space and nothing else: they are no reason to refuse.
#[test]
fn an_image_with_leaks_is_written_to() {
    fixtures::needs_qemu!();
    let made = KINDS[0].make();
    let mut image = made.image.clone();
    let free = counted(&image).len() as u64 + 3;
    assert!(set_count(&mut image, free, 1));
    image.resize((free as usize + 1) * made.kind.cluster as usize, 0);
    let storage = Arc::new(SimStorage::new(image));
    let disk = made.try_open(storage).unwrap();
    assert_eq!(disk.repaired(), None);
    disk.write_at(&[1; 512], 0).unwrap();
    disk.close().unwrap();
}

/// The proof of an image that nobody waits for any more ends, and the image is as it was.
#[test]
fn the_proof_stops_when_it_is_cancelled() {
    fixtures::needs_qemu!();
    let made = KINDS.iter().find(|kind| kind.name == "version 2").unwrap().make();
    let storage = Arc::new(SimStorage::new(made.image.clone()));
    let cancel = CancelToken::new();
    cancel.cancel();
    let options = WriteOptions::new().cancel(cancel);
    let error = Disk::from_storage(storage.clone(), Format::Qcow2, options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    assert_eq!(storage.calls(), 0, "something was written");
}
