//! Strict comparison: not only what is read, but what is kept.

use std::iter::Peekable;

use crate::Result;
use crate::chain::Chain;
use crate::ops::map::{Map, MapEntry, MapOptions, map};

/// The first guest offset where one image has something allocated, known to be zero, compressed
/// or in a place of its own, and the other has not; `None` if there is none. The sizes are equal.
///
/// QEMU compares the same, and also whether a run of equal status reaches the end of the disk,
/// so that it may name an offset before the real difference (trap 134).
pub(super) fn first_difference(one: &Chain, other: &Chain) -> Result<Option<u64>> {
    let mut sides = [Side::new(one), Side::new(other)];
    let mut at = 0;
    loop {
        let [one, other] = &mut sides;
        let (Some(a), Some(b)) = (one.at(at)?, other.at(at)?) else { return Ok(None) };
        if a.1 != b.1 {
            return Ok(Some(at));
        }
        at = a.0.min(b.0);
    }
}

/// Allocated, zero, data, compressed, has a place.
type Status = (bool, bool, bool, bool, bool);

struct Side<'a> {
    entries: Peekable<Map<'a>>,
    deepest: usize,
}

impl<'a> Side<'a> {
    fn new(chain: &'a Chain) -> Self {
        let deepest = chain.layers().len().saturating_sub(1);
        Self { entries: map(chain, &MapOptions::default()).peekable(), deepest }
    }

    /// End and status of the entry that holds `at`; `None` past the last.
    fn at(&mut self, at: u64) -> Result<Option<(u64, Status)>> {
        while let Some(next) = self.entries.peek() {
            match next {
                Ok(entry) if entry.end() > at => {
                    return Ok(Some((entry.end(), status(entry, self.deepest))));
                }
                _ => self.entries.next().transpose().map(drop)?,
            }
        }
        Ok(None)
    }
}

fn status(entry: &MapEntry, deepest: usize) -> Status {
    // Zeros past the end of a backing file that is too short count as allocated, as in QEMU.
    let allocated = entry.present || entry.depth < deepest;
    (allocated, entry.zero, entry.data, entry.compressed, entry.offset.is_some())
}
