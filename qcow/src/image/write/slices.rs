//! The mapping in memory: the L1 table whole, and slices of L2 tables; what of it has changed, and what is
//! to be written.
//!
//! Specification: "Cluster mapping". Nothing here does I/O: a slice that is missing is read by the caller,
//! without a lock, and handed over.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{Put, SECTOR_ENTRY_BITS, sectors, table_sectors};
use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HostOffset, L1Entry, RawL2Entry, SECTOR};
use crate::{Error, Result};

/// Bytes of a slice, or the cluster size if that is less.
const SLICE: u64 = 4096;

/// Bytes of clusters that were dropped, for which a commit is made although nobody asks for it.
const QUARANTINE: u64 = 64 << 20;

/// Which slice: index of the L1 entry, and number of the slice in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    table: u64,
    slice: u64,
}

/// A part of an L2 table, as it is to be.
#[derive(Debug)]
struct Slice {
    bytes: Vec<u8>,
    dirty: BTreeSet<u64>,
    /// The last group that changed it.
    group: u64,
    used: AtomicBool,
}

/// What the mapping says about a guest cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// This.
    Entry(RawL2Entry),
    /// There is no L2 table.
    NoTable,
    /// The slice is to be read first.
    Missing(Missing),
}

/// A slice to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    key: Key,
    table: HostOffset,
    /// How many slices had been dropped at that time.
    dropped: u64,
    /// Where it lies in the image.
    pub(super) host: u64,
    /// Its length in bytes.
    pub(super) len: usize,
}

#[derive(Debug)]
pub(super) struct Map {
    geometry: Geometry,
    place: HostOffset,
    l1: Vec<u64>,
    l1_dirty: BTreeSet<u64>,
    slices: HashMap<Key, Slice>,
    clock: VecDeque<Key>,
    most: usize,
    dropped: u64,
    dirty: BTreeSet<Key>,
    new_tables: BTreeSet<u64>,
    drops: Vec<u64>,
    /// So many references are dropped in a group at most: their places cannot be used again before it is committed.
    most_drops: usize,
    group: u64,
    committed: u64,
}

/// What a commit writes of the mapping.
#[derive(Debug, Default)]
pub(super) struct FrozenMap {
    /// Tables that nothing on disk names yet.
    pub(super) tables: Vec<Put>,
    /// Entries of tables on disk.
    pub(super) entries: Vec<Put>,
    /// References that are gone once these are durable, as clusters.
    pub(super) drops: Vec<u64>,
    /// Which group it is.
    pub(super) group: u64,
}

impl Map {
    /// The mapping by the L1 table at `place`; keeps at most `bytes` of slices, and those that are not
    /// committed yet.
    pub(super) fn new(geometry: Geometry, place: HostOffset, l1: Vec<u64>, bytes: u64) -> Self {
        let most = to_usize(bytes.checked_div(SLICE.min(geometry.cluster_size())).unwrap_or(1));
        Self {
            geometry,
            place,
            l1,
            l1_dirty: BTreeSet::new(),
            slices: HashMap::new(),
            clock: VecDeque::new(),
            most: most.max(16),
            dropped: 0,
            dirty: BTreeSet::new(),
            new_tables: BTreeSet::new(),
            drops: Vec::new(),
            most_drops: to_usize(QUARANTINE >> geometry.cluster_bits()),
            group: 1,
            committed: 0,
        }
    }

    fn slice_len(&self) -> u64 {
        SLICE.min(self.geometry.cluster_size())
    }

    /// The slice of guest cluster number `cluster`, and the entry's place in it.
    fn locate(&self, cluster: u64) -> (Key, usize) {
        let width = self.geometry.l2_entry_size().trailing_zeros();
        let at = self.geometry.l2_index_of_cluster(cluster) << width;
        let bits = self.slice_len().trailing_zeros();
        let (table, slice) = (cluster >> self.geometry.l2_bits(), at >> bits);
        (Key { table, slice }, to_usize(at ^ slice << bits))
    }

    /// The L1 entry of a table.
    pub(super) fn table(&self, index: u64) -> L1Entry {
        L1Entry(self.l1.get(to_usize(index)).copied().unwrap_or_default())
    }

    /// Where an L2 table lies, if there is one.
    fn table_host(&self, index: u64) -> Option<HostOffset> {
        Some(self.table(index).offset()).filter(|host| host.0 != 0)
    }

    /// What the mapping says about guest cluster number `cluster`.
    pub(super) fn get(&self, cluster: u64) -> Found {
        let (key, at) = self.locate(cluster);
        if let Some(slice) = self.slices.get(&key) {
            if !slice.used.load(Relaxed) {
                slice.used.store(true, Relaxed);
            }
            let len = to_usize(self.geometry.l2_entry_size());
            let bytes =
                slice.bytes.get(at..).and_then(|bytes| bytes.get(..len)).unwrap_or_default();
            return Found::Entry(RawL2Entry::read(bytes));
        }
        match self.table_host(key.table) {
            None => Found::NoTable,
            Some(table) => {
                // A table begins with a cluster, so that nothing is carried.
                let host = table.0 | key.slice << self.slice_len().trailing_zeros();
                let len = to_usize(self.slice_len());
                Found::Missing(Missing { key, table, dropped: self.dropped, host, len })
            }
        }
    }

    /// Takes a slice that was read, unless the table or another slice has changed meanwhile.
    pub(super) fn loaded(&mut self, missing: Missing, bytes: Vec<u8>) {
        let same = self.table_host(missing.key.table) == Some(missing.table);
        // A slice that was read, changed, written and dropped meanwhile would come back as it was.
        if same && self.dropped == missing.dropped && !self.slices.contains_key(&missing.key) {
            self.insert(missing.key, bytes, 0);
        }
    }

    fn insert(&mut self, key: Key, bytes: Vec<u8>, group: u64) {
        self.make_room();
        let slice = Slice { bytes, dirty: BTreeSet::new(), group, used: AtomicBool::new(true) };
        if self.slices.insert(key, slice).is_none() {
            self.clock.push_back(key);
        }
    }

    /// Drops slices by the clock algorithm; what is not on disk as it is here stays.
    fn make_room(&mut self) {
        for _ in 0..(self.clock.len() << 1).min(64) {
            if self.slices.len() < self.most {
                return;
            }
            let Some(key) = self.clock.pop_front() else { return };
            match self.slices.get(&key) {
                Some(slice) if slice.group > self.committed || slice.used.swap(false, Relaxed) => {
                    self.clock.push_back(key);
                }
                _ => {
                    self.slices.remove(&key);
                    self.dropped = self.dropped.wrapping_add(1);
                }
            }
        }
    }

    /// Whether so much has changed that it should be committed before more does.
    pub(super) fn is_full(&self) -> bool {
        self.dirty.len() > self.most >> 2 || self.drops.len() > self.most_drops
    }

    /// Makes entry of guest cluster `cluster` say `entry`. False if its slice is missing.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if its table is shared, or there is none.
    pub(super) fn set(&mut self, cluster: u64, entry: RawL2Entry) -> Result<bool> {
        let (key, at) = self.locate(cluster);
        let table = self.table(key.table);
        if !table.copied() || table.is_empty() {
            return Err(Error::internal("an entry of a shared L2 table was to be changed"));
        }
        let len = to_usize(self.geometry.l2_entry_size());
        let Some(slice) = self.slices.get_mut(&key) else { return Ok(false) };
        let bytes = slice.bytes.get_mut(at..at.plus(len)?);
        entry.write(bytes.ok_or_else(|| Error::internal("an entry outside its slice"))?);
        slice.dirty.insert((at as u64) >> SECTOR.trailing_zeros());
        slice.group = self.group;
        self.dirty.insert(key);
        Ok(true)
    }

    /// Gives the guest clusters of an L1 entry a table of their own at `host`, with these bytes.
    pub(super) fn set_table(&mut self, index: u64, host: HostOffset, bytes: &[u8]) -> Result<()> {
        let old = self.table_host(index);
        let entry = self.l1.get_mut(to_usize(index));
        *entry.ok_or_else(|| Error::internal("an L2 table past the end of the L1 table"))? =
            L1Entry::new(host, true).0;
        self.l1_dirty.insert(index >> SECTOR_ENTRY_BITS);
        if let Some(old) = old {
            self.drops.push(old.0 >> self.geometry.cluster_bits());
        }
        self.new_tables.insert(index);
        for (slice, bytes) in (0..).zip(bytes.chunks(to_usize(self.slice_len()))) {
            let key = Key { table: index, slice };
            self.insert(key, bytes.to_vec(), self.group);
            self.dirty.insert(key);
        }
        Ok(())
    }

    /// Notes that the group drops a reference to a host cluster.
    pub(super) fn drop_reference(&mut self, cluster: u64) {
        self.drops.push(cluster);
    }

    /// Whether nothing is to be written.
    pub(super) fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.l1_dirty.is_empty() && self.drops.is_empty()
    }

    /// Ends the group, and takes out what is to be written of it.
    pub(super) fn freeze(&mut self) -> Result<FrozenMap> {
        let mut frozen = FrozenMap { group: self.group, ..FrozenMap::default() };
        self.group = self.group.plus(1)?;
        frozen.drops = std::mem::take(&mut self.drops);
        let new_tables = std::mem::take(&mut self.new_tables);
        let mut whole: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let slice_len = self.slice_len();
        for key in std::mem::take(&mut self.dirty) {
            let Some(slice) = self.slices.get_mut(&key) else { continue };
            let dirty = std::mem::take(&mut slice.dirty);
            if new_tables.contains(&key.table) {
                // In the order of the slices, none of which can be missing.
                whole.entry(key.table).or_default().extend_from_slice(&slice.bytes);
                continue;
            }
            let table = L1Entry(self.l1.get(to_usize(key.table)).copied().unwrap_or_default());
            let offset = table.offset().0.plus(key.slice.times(slice_len)?)?;
            sectors(&slice.bytes, offset, &dirty, &mut frozen.entries)?;
        }
        for (index, bytes) in whole {
            if bytes.len() as u64 != self.geometry.cluster_size() {
                return Err(Error::internal("a part of a new L2 table is missing"));
            }
            let host = self.table(index).offset();
            frozen.tables.push(Put { offset: host.0, bytes });
        }
        let dirty = std::mem::take(&mut self.l1_dirty);
        if !dirty.is_empty() {
            table_sectors(&self.l1, self.place.0, &dirty, &mut frozen.entries)?;
        }
        Ok(frozen)
    }

    /// What that group changed is on disk.
    pub(super) fn committed(&mut self, group: u64) {
        self.committed = self.committed.max(group);
    }
}
