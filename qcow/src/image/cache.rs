//! A cache of mapping tables for random reads, shared by all readers of a chain.
//!
//! It keeps 4 KiB pages of the image files in which L1 and L2 entries lie, not whole tables: one page
//! of L2 entries maps 32 MiB of disk at 64 KiB clusters, so that random reads over a large disk do
//! not load (and evict) tables of up to 2 MiB for one entry each.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::Result;
use crate::io::{Storage, read_padded};

/// Bytes of a page.
const PAGE: usize = 4096;
const PAGE_BITS: u32 = PAGE.trailing_zeros();
/// Parts with a lock each, so that threads seldom wait for one another.
const SHARDS: u64 = 16;

/// Pages of the tables of all layers, at most as many bytes as it was made for (and a few percent
/// for the index). Any number of threads may use it; no lock is held while a page is read.
pub(crate) struct TableCache {
    shards: Vec<RwLock<Shard>>,
    pages_per_shard: usize,
}

/// Which layer, and which page of its file.
type Key = (usize, u64);

#[derive(Default)]
struct Shard {
    pages: HashMap<Key, Page>,
    /// The keys of `pages` in the order in which they are looked at for eviction.
    clock: VecDeque<Key>,
}

struct Page {
    bytes: Box<[u8; PAGE]>,
    /// Used since the clock last passed.
    used: AtomicBool,
}

impl TableCache {
    /// A cache of at most `bytes`, but at least one page for each part.
    pub(crate) fn new(bytes: usize) -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect::<Vec<_>>();
        let pages_per_shard = (bytes / PAGE).checked_div(shards.len()).unwrap_or(0).max(1);
        Self { shards, pages_per_shard }
    }

    /// Fills `buf` from `offset` of the tables of `layer`, which lie in `storage`. What lies past the
    /// end of the storage reads as zeros.
    ///
    /// # Errors
    /// As [`read_padded`].
    fn read(&self, layer: usize, storage: &dyn Storage, buf: &mut [u8], offset: u64) -> Result<()> {
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let key = (layer, at >> PAGE_BITS);
            let skip = usize::try_from(at).unwrap_or_default() & PAGE.wrapping_sub(1);
            let len = rest.len().min(PAGE.saturating_sub(skip));
            let (now, later) = rest.split_at_mut(len);
            if !self.copy(key, skip, now) {
                self.load(key, storage, skip, now, at)?;
            }
            (rest, at) = (later, at.saturating_add(len as u64));
        }
        Ok(())
    }

    /// Copies from the page, if it is here.
    fn copy(&self, key: Key, skip: usize, to: &mut [u8]) -> bool {
        let Some(shard) = self.shard(key) else { return false };
        let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
        let Some(page) = shard.pages.get(&key) else { return false };
        // Nearly always set already, and a store would take the line from other threads.
        if !page.used.load(Ordering::Relaxed) {
            page.used.store(true, Ordering::Relaxed);
        }
        copy(&*page.bytes, skip, to)
    }

    /// Reads the page and keeps it. If it cannot be read, what is wanted of it is read by itself, since
    /// an unreadable sector must not hurt readers of other entries.
    fn load(
        &self,
        key: Key,
        storage: &dyn Storage,
        skip: usize,
        to: &mut [u8],
        offset: u64,
    ) -> Result<()> {
        let mut bytes = Box::new([0; PAGE]);
        if read_padded(storage, &mut *bytes, key.1 << PAGE_BITS).is_err()
            || !copy(&*bytes, skip, to)
        {
            return read_padded(storage, to, offset);
        }
        if let Some(shard) = self.shard(key) {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.insert(key, Page { bytes, used: AtomicBool::new(true) }, self.pages_per_shard);
        }
        Ok(())
    }

    fn shard(&self, (layer, page): Key) -> Option<&RwLock<Shard>> {
        // Neighbouring pages, and equal pages of neighbouring layers, go to different shards.
        let number = page.wrapping_add((layer as u64).wrapping_mul(5)) % SHARDS;
        self.shards.get(usize::try_from(number).unwrap_or_default())
    }

    /// Pages in the cache now.
    #[cfg(test)]
    fn pages(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap().pages.len()).sum()
    }
}

impl Shard {
    /// Adds a page, after room was made by the clock algorithm: a page that was used since the clock
    /// last came by gets another round.
    fn insert(&mut self, key: Key, page: Page, most: usize) {
        if self.pages.contains_key(&key) {
            // Another thread loaded it meanwhile.
            return;
        }
        while self.pages.len() >= most
            && let Some(oldest) = self.clock.pop_front()
        {
            match self.pages.get(&oldest) {
                Some(page) if page.used.swap(false, Ordering::Relaxed) => {
                    self.clock.push_back(oldest);
                }
                _ => drop(self.pages.remove(&oldest)),
            }
        }
        self.clock.push_back(key);
        self.pages.insert(key, page);
    }
}

impl fmt::Debug for TableCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableCache").finish_non_exhaustive()
    }
}

fn copy(page: &[u8], skip: usize, to: &mut [u8]) -> bool {
    let from = page.get(skip..).and_then(|bytes| bytes.get(..to.len()));
    from.is_some_and(|from| {
        to.copy_from_slice(from);
        true
    })
}

/// How the tables of an image are read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tables<'a> {
    /// From the storage, as much as a window covers: right for going through a disk in order.
    Direct,
    /// Through the cache, for the layer of this number: right for short ranges anywhere.
    Cached(&'a TableCache, usize),
}

impl Tables<'_> {
    /// Fills `buf` from `offset` of `storage`.
    ///
    /// # Errors
    /// As [`read_padded`].
    pub(crate) fn read(self, storage: &dyn Storage, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            // More than a page is wanted for long ranges, where one read costs little.
            Self::Cached(cache, layer) if buf.len() <= PAGE => {
                cache.read(layer, storage, buf, offset)
            }
            _ => read_padded(storage, buf, offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemoryStorage;

    fn counting(len: usize) -> MemoryStorage {
        MemoryStorage::new((0..251).cycle().take(len).collect())
    }

    #[test]
    fn what_is_read_is_what_is_there_across_pages_and_past_the_end() {
        let (cache, storage) = (TableCache::new(1 << 20), counting(10_000));
        for _ in 0..2 {
            for (at, len) in [(0, 8), (4090, 16), (8_184, 4096), (9_990, 100), (50_000, 8)] {
                let (mut cached, mut direct) = (vec![1; len], vec![2; len]);
                cache.read(0, &storage, &mut cached, at).unwrap();
                read_padded(&storage, &mut direct, at).unwrap();
                assert_eq!(cached, direct, "{at}");
            }
        }
        let mut other = [1; 8];
        cache.read(1, &MemoryStorage::default(), &mut other, 0).unwrap();
        assert_eq!(other, [0; 8], "layers do not share pages");
    }

    #[test]
    fn it_never_grows_beyond_its_bound() {
        let (cache, storage) = (TableCache::new(64 * PAGE), counting(1000 * PAGE));
        let mut entry = [0; 8];
        for page in (0..1000u64).chain(0..1000) {
            cache.read(0, &storage, &mut entry, page * PAGE as u64).unwrap();
            assert!(cache.pages() <= 64);
        }
        assert_eq!(cache.pages(), 64);
        let keys = cache.shards.iter().map(|shard| shard.read().unwrap().clock.len());
        assert_eq!(keys.sum::<usize>(), 64);
    }
}
