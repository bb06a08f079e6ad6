//! Ranges of guest clusters whose mapping a request is going to change: one such request per cluster.
//!
//! Reads, and writes to clusters that are allocated already, take no claim.

use std::ops::Range;

use crate::sync::{Condvar, Mutex, lock};

/// The ranges that are claimed now.
#[derive(Debug, Default)]
pub(super) struct Claims {
    ranges: Mutex<Vec<Range<u64>>>,
    released: Condvar,
}

/// A claimed range of guest clusters. A thread that waits for one has no other, so that none can wait for
/// another in a circle; whoever keeps several has [tried](Claims::try_take) for them.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    range: Range<u64>,
}

impl Claims {
    /// Claims these clusters as soon as no other request has claimed any of them. What the mapping said
    /// before may have changed meanwhile: look again.
    pub(super) fn take(&self, range: Range<u64>) -> Claim<'_> {
        let mut ranges = lock(&self.ranges);
        while ranges.iter().any(|other| other.start < range.end && range.start < other.end) {
            ranges = self.released.wait(ranges).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        ranges.push(range.clone());
        Claim { claims: self, range }
    }

    /// Claims these clusters, if no other request has claimed any of them.
    pub(super) fn try_take(&self, range: Range<u64>) -> Option<Claim<'_>> {
        let mut ranges = lock(&self.ranges);
        if ranges.iter().any(|other| other.start < range.end && range.start < other.end) {
            return None;
        }
        ranges.push(range.clone());
        Some(Claim { claims: self, range })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut ranges = lock(&self.claims.ranges);
        if let Some(index) = ranges.iter().position(|range| *range == self.range) {
            ranges.swap_remove(index);
        }
        drop(ranges);
        self.claims.released.notify_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::*;

    #[test]
    fn overlapping_claims_exclude_each_other_and_others_do_not() {
        let claims = Claims::default();
        let inside = AtomicU64::new(0);
        let apart = claims.take(100..101);
        std::thread::scope(|scope| {
            for n in 0..4 {
                let (claims, inside) = (&claims, &inside);
                scope.spawn(move || {
                    for _ in 0..500 {
                        // All of these have cluster 5.
                        let claim = claims.take(5 - n..6 + n);
                        assert_eq!(inside.fetch_add(1, SeqCst), 0);
                        inside.fetch_sub(1, SeqCst);
                        drop(claim);
                    }
                });
            }
        });
        drop(apart);
        assert!(lock(&claims.ranges).is_empty());
    }
}
