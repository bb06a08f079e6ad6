//! Calls of the system that fail.

use std::sync::Arc;

use super::super::writing::images::{KINDS, leaks};
use super::model::{opened, seen, task};
use crate::io::sim::{Failure, SimStorage};
use crate::ops::snapshot::Task;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[test]
fn a_call_that_fails_leaves_the_old_image_or_the_new_one() {
    fixtures::needs_qemu!();
    for kind in KINDS.into_iter().filter(|kind| kind.name.contains("snapshot")) {
        let made = kind.make();
        for work in
            [Task::Create { name: "two", date: (1, 2) }, Task::Apply("one"), Task::Delete("one")]
        {
            let whole = Arc::new(SimStorage::new(made.image.clone()));
            task(&opened(&whole), work).unwrap();
            let (old, new) = (seen(&made, &made.image), seen(&made, &whole.bytes()));
            for call in 0..whole.calls() {
                for (errno, for_good) in [(EIO, true), (ENOSPC, true), (EIO, false)] {
                    let storage = Arc::new(SimStorage::new(made.image.clone()));
                    storage.fail(Failure { call, errno, written: 300, for_good });
                    let result = task(&opened(&storage), work);
                    let what = format!("{work:?}, call {call}");
                    assert_eq!(leaks(&storage.bytes(), &what), 0, "{what}");
                    let found = seen(&made, &storage.bytes());
                    match result {
                        // What fails after the switch gives back less space.
                        Ok(()) => assert!(found == new, "{what}"),
                        Err(_) => assert!(found == old || found == new, "{what}"),
                    }
                }
            }
        }
    }
}
