//! The target for giving back what an image does not need.

use std::fs;

use qcow::chain::{Format, OpenOptions};
use qcow::ops::sparsify::{SparsifyOptions, SparsifyOutcome};
use qcow::{CancelToken, Silent};

use crate::forge;
use crate::images::{assert_same_content, check_at};
use crate::place::Place;

/// Gives back what an image does not need: afterwards it has no errors, and leaks only what it had leaked before; and
/// whether it succeeded or not, all of it reads the same, in snapshots as well. A plan writes nothing, and says how it ends.
pub fn sparsify(data: &[u8]) {
    let (compact, data) = match data.split_first() {
        Some((first, rest)) if !data.starts_with(b"QFI\xfb") => (first & 1 == 1, rest),
        _ => (true, data),
    };
    let image = forge::image(data);
    let place = Place::with(&image.bytes);
    let run = |dry_run| -> qcow::Result<SparsifyOutcome> {
        let open = OpenOptions::default().format(Format::Qcow2);
        let options = SparsifyOptions::default().open(open).compact(compact).threads(1);
        let options = options.dry_run(dry_run);
        qcow::ops::sparsify::sparsify(&place.top(), &options, &Silent, &CancelToken::new())
    };
    let now = || fs::read(place.top()).expect("the image");
    let leaks = check_at(&place.top(), 1).map_or(0, |before| before.leaks);
    let planned = run(true);
    assert!(now() == image.bytes, "a plan wrote");
    let done = run(false);
    let after = now();
    let Ok(outcome) = done else {
        assert!(image.damaged || planned.is_err(), "{planned:?}, but {done:?}");
        assert_same_content(&image.bytes, &after);
        return;
    };
    assert!(outcome.verified && outcome.file_size == after.len() as u64, "{outcome:?}");
    let grown = after.len().saturating_sub(image.bytes.len());
    assert!(grown <= MOST_GROWN, "{grown} bytes longer");
    assert_same_content(&image.bytes, &after);
    let clean = check_at(&place.top(), 1).expect("a sound image");
    assert_eq!((clean.corruptions, clean.check_errors), (0, 0), "{clean:?}");
    assert!(clean.leaks <= leaks, "{leaks} leaks before: {clean:?}");
}

/// What new tables may take beside the old ones, at most.
const MOST_GROWN: usize = 8 << 20;
