//! Counts references to host clusters in a few bits each.
//!
//! Memory is taken in pages when a cluster of the page is first counted: 4 bits for each cluster,
//! and 32 more only in pages where some count passes 15.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Binary logarithm of the clusters in a page.
const PAGE_BITS: u32 = 16;
const PAGE: u64 = 1 << PAGE_BITS;
/// Small counts are kept in fields of four bits, sixteen to a word.
const SMALL_MAX: u64 = 15;
const SMALL_PER_WORD_BITS: u32 = 4;
/// A word of sixteen counts of one.
const EACH_ONE: u64 = 0x1111_1111_1111_1111;

/// A count for each of a number of clusters. Threads may add at the same time; counts stop at
/// about 2^32.
#[derive(Debug)]
pub(super) struct Counters(Box<[OnceLock<Page>]>);

#[derive(Debug)]
struct Page {
    small: Box<[AtomicU64]>,
    /// What the counts are beyond [`SMALL_MAX`].
    rest: OnceLock<Box<[AtomicU32]>>,
}

impl Counters {
    /// Zeros for clusters below `clusters`.
    pub(super) fn new(clusters: u64) -> Self {
        Self(lazy_pages(clusters))
    }

    /// Adds `times` to the count of `cluster`, which must be below the number given.
    pub(super) fn add(&self, cluster: u64, times: u64) {
        let Some(page) = self.0.get(index(cluster >> PAGE_BITS)) else { return };
        let page = page.get_or_init(Page::new);
        let (word, shift) = small_place(cluster);
        let Some(word) = page.small.get(word) else { return };
        let mut old = word.load(Relaxed);
        loop {
            let count = (old >> shift) & SMALL_MAX;
            let now = times.min(SMALL_MAX.saturating_sub(count));
            match word.compare_exchange_weak(old, old.wrapping_add(now << shift), Relaxed, Relaxed)
            {
                Ok(_) => return page.add_rest(cluster, times.saturating_sub(now)),
                Err(current) => old = current,
            }
        }
    }

    /// Adds `times` to the counts of many clusters, sixteen at a time where nothing was counted yet.
    pub(super) fn add_range(&self, clusters: Range<u64>, times: u64) {
        let mut at = clusters.start;
        while at < clusters.end {
            let next = at.saturating_add(16);
            let fresh = at & 15 == 0 && next <= clusters.end && times < SMALL_MAX;
            if fresh && self.fill_word(at, times) {
                at = next;
            } else {
                self.add(at, times);
                at = at.saturating_add(1);
            }
        }
    }

    /// Sets the sixteen counts from `cluster` on, if all are zero.
    fn fill_word(&self, cluster: u64, times: u64) -> bool {
        let page = self.0.get(index(cluster >> PAGE_BITS));
        let page = page.map(|page| page.get_or_init(Page::new));
        let word = page.and_then(|page| page.small.get(small_place(cluster).0));
        let filled = EACH_ONE.wrapping_mul(times);
        word.is_some_and(|word| word.compare_exchange(0, filled, Relaxed, Relaxed).is_ok())
    }

    /// Whether each of the sixty-four clusters from `cluster`, a multiple of 64, on was counted once.
    pub(super) fn are_one(&self, cluster: u64) -> bool {
        let page = self.0.get(index(cluster >> PAGE_BITS)).and_then(OnceLock::get);
        let first = small_place(cluster).0;
        let words = page.and_then(|page| page.small.get(first..first.saturating_add(4)));
        words.is_some_and(|words| words.iter().all(|word| word.load(Relaxed) == EACH_ONE))
    }

    /// The count of `cluster`.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let page = self.0.get(index(cluster >> PAGE_BITS)).and_then(OnceLock::get);
        let Some(page) = page else { return 0 };
        let (word, shift) = small_place(cluster);
        let small = page.small.get(word).map_or(0, |word| word.load(Relaxed) >> shift) & SMALL_MAX;
        if small < SMALL_MAX { small } else { small.saturating_add(page.rest(cluster)) }
    }

    /// The first cluster at or after `from` that may have been counted, skipping whole pages.
    pub(super) fn next_counted(&self, from: u64) -> u64 {
        let mut at = from;
        while let Some(page) = self.0.get(index(at >> PAGE_BITS)) {
            if page.get().is_some() {
                return at;
            }
            at = (at | PAGE.wrapping_sub(1)).saturating_add(1);
        }
        u64::MAX
    }
}

impl Page {
    fn new() -> Self {
        let words = index(PAGE >> SMALL_PER_WORD_BITS);
        Self { small: (0..words).map(|_| AtomicU64::new(0)).collect(), rest: OnceLock::new() }
    }

    #[inline]
    fn add_rest(&self, cluster: u64, times: u64) {
        if times == 0 {
            return;
        }
        let all = self.rest.get_or_init(|| (0..PAGE).map(|_| AtomicU32::new(0)).collect());
        if let Some(rest) = all.get(in_page(cluster)) {
            let times = u32::try_from(times).unwrap_or(u32::MAX);
            // The closure always gives a value, so this cannot fail.
            let _ = rest.fetch_update(Relaxed, Relaxed, |old| Some(old.saturating_add(times)));
        }
    }

    fn rest(&self, cluster: u64) -> u64 {
        let all = self.rest.get();
        all.and_then(|all| all.get(in_page(cluster))).map_or(0, |rest| rest.load(Relaxed).into())
    }
}

/// A set of clusters, one bit each.
#[derive(Debug)]
pub(super) struct ClusterSet(Box<[OnceLock<Box<[AtomicU64]>>]>);

impl ClusterSet {
    /// An empty set of clusters below `clusters`.
    pub(super) fn new(clusters: u64) -> Self {
        Self(lazy_pages(clusters))
    }

    /// Adds `cluster`; says whether it was there already.
    pub(super) fn insert(&self, cluster: u64) -> bool {
        let Some(page) = self.0.get(index(cluster >> PAGE_BITS)) else { return false };
        let page = page.get_or_init(|| (0..PAGE >> 6).map(|_| AtomicU64::new(0)).collect());
        let bit = 1u64 << (cluster & 63);
        page.get(in_page(cluster) >> 6).is_some_and(|word| word.fetch_or(bit, Relaxed) & bit != 0)
    }

    /// Adds those of the sixty-four clusters from `cluster`, a multiple of 64, on whose bits are set.
    pub(super) fn insert_word(&self, cluster: u64, bits: u64) {
        let page = self.0.get(index(cluster >> PAGE_BITS));
        if let Some(page) = page.filter(|_| bits != 0) {
            let page = page.get_or_init(|| (0..PAGE >> 6).map(|_| AtomicU64::new(0)).collect());
            if let Some(word) = page.get(in_page(cluster) >> 6) {
                word.fetch_or(bits, Relaxed);
            }
        }
    }

    /// The sixty-four clusters around `cluster`, one bit each.
    #[inline]
    pub(super) fn word(&self, cluster: u64) -> u64 {
        let page = self.0.get(index(cluster >> PAGE_BITS)).and_then(OnceLock::get);
        let word = page.and_then(|page| page.get(in_page(cluster) >> 6));
        word.map_or(0, |word| word.load(Relaxed))
    }

    /// Whether the set has all of these clusters (`Some(true)`), none (`Some(false)`), or some.
    pub(super) fn uniform(&self, clusters: Range<u64>) -> Option<bool> {
        let first = self.contains(clusters.start);
        let mut at = clusters.start;
        while at < clusters.end {
            let next = (at | 63).saturating_add(1).min(clusters.end);
            let bits = u32::try_from(next.saturating_sub(at)).unwrap_or_default();
            let mask = u64::MAX.checked_shr(64_u32.saturating_sub(bits)).unwrap_or_default();
            let expected = if first { mask } else { 0 };
            if (self.word(at) >> (at & 63)) & mask != expected {
                return None;
            }
            at = next;
        }
        Some(first)
    }

    /// Whether `cluster` is in the set.
    #[inline]
    pub(super) fn contains(&self, cluster: u64) -> bool {
        self.word(cluster) >> (cluster & 63) & 1 == 1
    }
}

fn lazy_pages<T>(clusters: u64) -> Box<[OnceLock<T>]> {
    (0..clusters.div_ceil(PAGE)).map(|_| OnceLock::new()).collect()
}

/// Word of the page and shift in the word.
#[inline]
fn small_place(cluster: u64) -> (usize, u32) {
    let shift = u32::try_from(cluster & 15).unwrap_or_default() << 2;
    (in_page(cluster) >> SMALL_PER_WORD_BITS, shift)
}

#[inline]
fn in_page(cluster: u64) -> usize {
    index(cluster & PAGE.wrapping_sub(1))
}

#[inline]
fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact_below_and_above_the_small_fields() {
        let counters = Counters::new(3 * PAGE);
        for (cluster, adds) in [(0, vec![1]), (1, vec![14, 1]), (2, vec![15, 1]), (3, vec![7, 9])] {
            adds.iter().for_each(|&times| counters.add(cluster, times));
            assert_eq!(counters.get(cluster), adds.iter().sum::<u64>(), "cluster {cluster}");
        }
        counters.add(2 * PAGE + 7, 1000);
        assert_eq!(counters.get(2 * PAGE + 7), 1000);
        assert_eq!(counters.get(2 * PAGE + 6), 0);
        assert_eq!(counters.next_counted(4), 4);
        assert_eq!(counters.next_counted(PAGE), 2 * PAGE);
        assert_eq!(counters.next_counted(3 * PAGE), u64::MAX);
    }

    #[test]
    fn ranges_count_like_their_clusters() {
        let (ranges, ones) = (Counters::new(PAGE), Counters::new(PAGE));
        for (range, times) in [(3..100, 1), (0..64, 2), (50..51, 20), (128..192, 1)] {
            ranges.add_range(range.clone(), times);
            range.for_each(|cluster| ones.add(cluster, times));
        }
        assert!((0..200).all(|cluster| ranges.get(cluster) == ones.get(cluster)));
        assert!(ranges.are_one(128) && !ranges.are_one(64) && !ranges.are_one(192));
    }

    #[test]
    fn a_range_of_a_set_is_full_or_empty_or_neither() {
        let set = ClusterSet::new(PAGE);
        set.insert_word(64, u64::MAX);
        set.insert(128);
        assert_eq!(set.uniform(64..129), Some(true));
        assert_eq!(set.uniform(70..128), Some(true));
        assert_eq!(set.uniform(64..130), None);
        assert_eq!(set.uniform(0..64), Some(false));
        assert_eq!(set.uniform(63..65), None);
        assert_eq!(set.uniform(129..400), Some(false));
    }

    #[test]
    fn threads_lose_no_count() {
        let counters = Counters::new(PAGE);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|i| counters.add(i % 3, 1)));
            }
        });
        assert_eq!((0..3).map(|i| counters.get(i)).sum::<u64>(), 4000);
    }

    #[test]
    fn a_set_knows_what_was_inserted() {
        let set = ClusterSet::new(2 * PAGE);
        assert!(!set.insert(PAGE + 3));
        assert!(set.insert(PAGE + 3));
        assert!(set.contains(PAGE + 3));
        assert!(!set.contains(3));
    }
}
