//! Places guest clusters in ascending order and builds the L1 and L2 tables on the way.

use super::refcounts::Refcounts;
use crate::exact::{Exact, to_usize};
use crate::format::{
    CompressedSpan, EntryRules, HostOffset, L1Entry, L2Entry, RawL2Entry, RefcountWidth,
};
use crate::{Error, Result};

/// The L1 table is written in pieces of this many entries.
const L1_PIECE: usize = 8192;
/// A half-filled cluster is given up when it lies this many bytes behind the end: what comes after
/// it cannot be written to a stream before it is full.
const PACKING_REACH: u64 = 4 << 20;

/// Takes what the placer decides.
pub(crate) trait Sink {
    /// A finished piece of metadata, to be written at `offset`.
    fn metadata(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()>;

    /// `clusters` guest clusters from `first` on lie in a row from `host` on.
    fn data(&mut self, first: u64, clusters: u64, host: HostOffset) -> Result<()>;
}

/// Builds the mapping of a new image; see the [module](super) for the order of things.
#[derive(Debug)]
pub(crate) struct Placer {
    rules: EntryRules,
    refcounts: Refcounts,
    /// `None` as long as the table's length, and so its place, is not known.
    l1_offset: Option<HostOffset>,
    l1: Vec<u64>,
    /// The L2 table being filled.
    l2: Option<OpenTable>,
    /// L2 tables lie in front of the first cluster that they map, as in images that QEMU makes, not behind the last.
    tables_first: bool,
    /// Where the next compressed cluster may start, inside a cluster that is partly filled.
    packing: Option<u64>,
}

/// An L2 table that is being filled.
#[derive(Debug)]
struct OpenTable {
    number: u64,
    bytes: Vec<u8>,
    /// Where it has a place already.
    place: Option<u64>,
}

/// What the header must say about a finished image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) l1_offset: HostOffset,
    pub(crate) l1_entries: u32,
    pub(crate) refcount_table_offset: HostOffset,
    pub(crate) refcount_table_clusters: u32,
    /// Length of the file in bytes.
    pub(crate) file_length: u64,
    /// Where the last cluster is the L1 table's, and only a part of it is used, the end of that part.
    pub(crate) used_length: u64,
}

impl Placer {
    /// Starts an image of `virtual_size` bytes: places the header and the L1 table.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if the L1 table would be longer than QEMU reads.
    pub(crate) fn new(rules: EntryRules, width: RefcountWidth, virtual_size: u64) -> Result<Self> {
        Self::start(rules, width, virtual_size, None)
    }

    /// As [`new`](Self::new), for an image of which all is known that will be placed: `data_clusters` of the guest's.
    /// The refcount table and its first block lie behind the header, as in images that QEMU makes.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn with_refcounts_in_front(
        rules: EntryRules,
        width: RefcountWidth,
        virtual_size: u64,
        data_clusters: u64,
    ) -> Result<Self> {
        Self::start(rules, width, virtual_size, Some(data_clusters))
    }

    fn start(
        rules: EntryRules,
        width: RefcountWidth,
        virtual_size: u64,
        in_front: Option<u64>,
    ) -> Result<Self> {
        let geometry = rules.geometry;
        // Even a disk without a byte gets an entry, so that the table has a place of its own.
        let l1_entries = geometry.new_l1_entries(virtual_size)?.max(1);
        let l1_bytes = l1_entries.times(8)?;
        let mut refcounts = Refcounts::new(geometry, width);
        refcounts.allocate(1)?;
        let l1_clusters = geometry.clusters_for(l1_bytes);
        if let Some(data) = in_front {
            let tables = if data == 0 { 0 } else { l1_entries };
            let own = if rules.data_file { 0 } else { data };
            let others = 1u64.plus(l1_clusters)?.plus(tables)?.plus(own)?;
            let (_, table) = width.clusters_to_count(others, geometry)?;
            refcounts.place_in_front(table)?;
        }
        let first = refcounts.allocate(l1_clusters)?;
        let l1_offset = refcounts.offset_of(first)?;
        let l1 = vec![0; to_usize(l1_entries)];
        let (tables_first, l1_offset) = (in_front.is_some(), Some(l1_offset));
        Ok(Self { rules, refcounts, l1_offset, l1, l2: None, tables_first, packing: None })
    }

    /// Starts an image of a size that is not known yet: its L1 table comes last.
    pub(crate) fn growing(rules: EntryRules, width: RefcountWidth) -> Result<Self> {
        let mut refcounts = Refcounts::new(rules.geometry, width);
        refcounts.allocate(1)?;
        let l1 = vec![0];
        Ok(Self {
            rules,
            refcounts,
            l1_offset: None,
            l1,
            l2: None,
            tables_first: false,
            packing: None,
        })
    }

    /// Makes sure, where the size is not known, that the first `clusters` clusters can be placed.
    pub(crate) fn reach(&mut self, clusters: u64) -> Result<()> {
        if self.l1_offset.is_some() {
            return Ok(());
        }
        self.grow(clusters.times(self.rules.geometry.cluster_size())?)
    }

    /// Makes sure that a disk of `virtual_size` bytes has all its L1 entries.
    pub(crate) fn grow(&mut self, virtual_size: u64) -> Result<()> {
        let entries = to_usize(self.rules.geometry.new_l1_entries(virtual_size)?);
        self.l1.resize(entries.max(self.l1.len()), 0);
        Ok(())
    }

    /// Everything below this offset of the file is allocated: nothing will be placed there any more.
    pub(crate) fn low_water_mark(&self) -> u64 {
        let end = self.refcounts.clusters() << self.rules.geometry.cluster_bits();
        self.packing.unwrap_or(end)
    }

    /// Places `count` guest clusters from `first` on as data.
    pub(crate) fn place_run(&mut self, first: u64, count: u64, sink: &mut impl Sink) -> Result<()> {
        self.place(first, count, u32::MAX, sink)
    }

    /// Allocates host clusters for `runs` (first guest cluster, count) in the order given. All runs must be
    /// above every guest cluster mapped so far, and must not overlap.
    pub(crate) fn place_in_source_order(
        &mut self,
        runs: impl Iterator<Item = (u64, u64)>,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let most = self.rules.geometry.l2_entries();
        let mut pieces = Vec::new();
        for (first, count) in runs {
            let (mut at, past) = (first, first.plus(count)?);
            while at < past {
                let here = most.min(past.minus(at)?);
                pieces.push((at, here, self.allocate_data(at, here)?));
                self.write_complete_blocks(sink)?;
                at = at.plus(here)?;
            }
        }
        pieces.sort_unstable_by_key(|&(first, ..)| first);
        for (first, count, host) in pieces {
            self.map_piece(first, count, host, sink)?;
        }
        Ok(())
    }

    /// Notes that `count` guest clusters from `first` on, no more than a table has, lie at `host`.
    fn map_piece(
        &mut self,
        first: u64,
        count: u64,
        host: HostOffset,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let geometry = self.rules.geometry;
        let (mut at, past) = (first, first.plus(count)?);
        let mut host = host;
        while at < past {
            let in_table = geometry.l2_index_of_cluster(at);
            let here = geometry.l2_entries().minus(in_table)?.min(past.minus(at)?);
            self.open_l2(at, sink)?;
            self.map_run(in_table, here, host, u32::MAX)?;
            sink.data(at, here, host)?;
            host = host.plus(here.times(geometry.cluster_size())?)?;
            at = at.plus(here)?;
        }
        Ok(())
    }

    /// Places `count` guest clusters from `first` on without giving them content: in an image
    /// with subclusters none is marked as allocated, so that they read from the backing file.
    pub(crate) fn reserve_run(
        &mut self,
        first: u64,
        count: u64,
        sink: &mut impl Sink,
    ) -> Result<()> {
        self.place(first, count, 0, sink)
    }

    fn place(
        &mut self,
        first: u64,
        count: u64,
        allocated: u32,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let geometry = self.rules.geometry;
        let (mut at, past) = (first, first.plus(count)?);
        while at < past {
            let in_table = geometry.l2_index_of_cluster(at);
            let here = geometry.l2_entries().minus(in_table)?.min(past.minus(at)?);
            self.open_l2(at, sink)?;
            let host = self.allocate_data(at, here)?;
            self.map_run(in_table, here, host, allocated)?;
            sink.data(at, here, host)?;
            self.write_complete_blocks(sink)?;
            at = at.plus(here)?;
        }
        Ok(())
    }

    /// Places one guest cluster of which only the subclusters in `allocated` hold data.
    pub(crate) fn place_partial(
        &mut self,
        cluster: u64,
        allocated: u32,
        sink: &mut impl Sink,
    ) -> Result<HostOffset> {
        self.open_l2(cluster, sink)?;
        let host = self.allocate_data(cluster, 1)?;
        let entry = L2Entry::Subclusters { host: Some(host), allocated, zero: 0, copied: true };
        self.map(cluster, &entry)?;
        self.write_complete_blocks(sink)?;
        Ok(host)
    }

    /// Places one compressed guest cluster of `len` bytes, packed behind the last one if it fits.
    pub(crate) fn place_compressed(
        &mut self,
        cluster: u64,
        len: u64,
        sink: &mut impl Sink,
    ) -> Result<HostOffset> {
        self.open_l2(cluster, sink)?;
        let host = self.pack(len)?;
        self.map(cluster, &L2Entry::Compressed(CompressedSpan { host, len }))?;
        self.write_complete_blocks(sink)?;
        Ok(host)
    }

    /// Places a structure of its own, which nothing in the tables leads to: a bitmap's, for one.
    pub(crate) fn place_structure(
        &mut self,
        bytes: &[u8],
        sink: &mut impl Sink,
    ) -> Result<HostOffset> {
        self.packing = None;
        let clusters = self.rules.geometry.clusters_for(bytes.len() as u64);
        let place = self.refcounts.allocate(clusters)?;
        let offset = self.refcounts.offset_of(place)?;
        sink.metadata(offset, bytes)?;
        self.write_complete_blocks(sink)?;
        Ok(offset)
    }

    /// Writes out everything that is still open.
    pub(crate) fn finish(mut self, sink: &mut impl Sink) -> Result<Finished> {
        self.flush_l2(sink)?;
        self.packing = None;
        self.write_complete_blocks(sink)?;
        let l1_offset = match self.l1_offset {
            Some(offset) => offset,
            None => {
                let bytes = (self.l1.len() as u64).times(8)?;
                let place = self.refcounts.allocate(self.rules.geometry.clusters_for(bytes))?;
                self.refcounts.offset_of(place)?
            }
        };
        let mut offset = l1_offset;
        for piece in self.l1.chunks(L1_PIECE) {
            let bytes: Vec<u8> = piece.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            sink.metadata(offset, &bytes)?;
            offset = offset.plus(bytes.len() as u64)?;
        }
        let too_long = |_| Error::limit("a table of the new image has too many entries");
        let l1_entries = u32::try_from(self.l1.len()).map_err(too_long)?;
        let cluster_size = self.rules.geometry.cluster_size();
        let l1_end = l1_offset.plus((self.l1.len() as u64).times(8)?)?.0;
        let (table, table_clusters, clusters) =
            self.refcounts.finish(|offset, bytes| sink.metadata(offset, bytes))?;
        Ok(Finished {
            l1_offset,
            l1_entries,
            refcount_table_offset: table,
            refcount_table_clusters: u32::try_from(table_clusters).map_err(too_long)?,
            file_length: clusters.times(cluster_size)?,
            used_length: match l1_end.checked_next_multiple_of(cluster_size) {
                Some(end) if end == clusters.times(cluster_size)? => l1_end,
                _ => clusters.times(cluster_size)?,
            },
        })
    }

    /// Data clusters go to the end of the file, or to their own offset in a data file.
    fn allocate_data(&mut self, first: u64, count: u64) -> Result<HostOffset> {
        if self.rules.data_file {
            return Ok(HostOffset(first.times(self.rules.geometry.cluster_size())?));
        }
        let index = self.refcounts.allocate(count)?;
        // A half-filled cluster far behind would keep refcount blocks and streams open: give it up.
        let bits = self.rules.geometry.cluster_bits();
        let reach = self.refcounts.clusters_per_block().times(2)?;
        let reach = reach.min(PACKING_REACH >> bits);
        if let Some(at) = self.packing
            && (at >> bits).plus(reach)? <= self.refcounts.clusters()
        {
            self.packing = None;
        }
        self.refcounts.offset_of(index)
    }

    /// Finds `len` bytes for a compressed cluster and counts the references to their clusters.
    fn pack(&mut self, len: u64) -> Result<HostOffset> {
        let geometry = self.rules.geometry;
        let mut start = None;
        if let Some(at) = self.packing {
            let cluster = at >> geometry.cluster_bits();
            let room = geometry.cluster_size().minus(geometry.offset_in_cluster(at))?;
            let last = cluster.plus(1)? == self.refcounts.clusters();
            if (len <= room || last) && self.refcounts.add_reference(cluster)? {
                if len > room {
                    self.refcounts.allocate(geometry.clusters_for(len.minus(room)?))?;
                }
                start = Some(at);
            }
        }
        let start = match start {
            Some(start) => start,
            None => {
                let index = self.refcounts.allocate(geometry.clusters_for(len))?;
                self.refcounts.offset_of(index)?.0
            }
        };
        let end = start.plus(len)?;
        // A cursor at the very end of a cluster is in no cluster at all (trap 60).
        self.packing = (!geometry.is_aligned(end)).then_some(end);
        Ok(HostOffset(start))
    }

    fn open_l2(&mut self, cluster: u64, sink: &mut impl Sink) -> Result<()> {
        let index = cluster >> self.rules.geometry.l2_bits();
        if self.l2.as_ref().is_some_and(|open| open.number == index) {
            return Ok(());
        }
        self.flush_l2(sink)?;
        let size = to_usize(self.rules.geometry.cluster_size());
        let place = self.tables_first.then(|| self.refcounts.allocate(1)).transpose()?;
        self.l2 = Some(OpenTable { number: index, bytes: vec![0; size], place });
        Ok(())
    }

    fn flush_l2(&mut self, sink: &mut impl Sink) -> Result<()> {
        let Some(OpenTable { number: index, bytes, place }) = self.l2.take() else { return Ok(()) };
        let place = place.map_or_else(|| self.refcounts.allocate(1), Ok)?;
        let offset = self.refcounts.offset_of(place)?;
        sink.metadata(offset, &bytes)?;
        let slot = self.l1.get_mut(to_usize(index));
        *slot.ok_or_else(past_the_disk)? = L1Entry::new(offset, true).0;
        self.write_complete_blocks(sink)
    }

    /// Maps `count` clusters from entry `in_table` on to `host` and what follows it.
    fn map_run(
        &mut self,
        in_table: u64,
        count: u64,
        host: HostOffset,
        allocated: u32,
    ) -> Result<()> {
        let step = self.rules.geometry.cluster_size();
        let mapped = |host| {
            if self.rules.geometry.extended_l2() {
                L2Entry::Subclusters { host: Some(host), allocated, zero: 0, copied: true }
            } else {
                L2Entry::Data { host, copied: true }
            }
        };
        let last = host.plus(count.minus(1)?.times(step)?)?;
        // What lies between two places that can be written can be written too, and differs in the
        // place alone.
        let (word, bitmap) = mapped(host).encode(&self.rules)?;
        let mut entry = RawL2Entry { word, bitmap };
        mapped(last).encode(&self.rules)?;
        let width = to_usize(self.rules.geometry.l2_entry_size());
        let table = self.entries_mut(in_table, count)?;
        for bytes in table.chunks_exact_mut(width) {
            entry.write(bytes);
            entry = entry.moved_by(step);
        }
        Ok(())
    }

    fn map(&mut self, cluster: u64, entry: &L2Entry) -> Result<()> {
        self.put(self.rules.geometry.l2_index_of_cluster(cluster), entry)
    }

    fn put(&mut self, index: u64, entry: &L2Entry) -> Result<()> {
        let (word, bitmap) = entry.encode(&self.rules)?;
        RawL2Entry { word, bitmap }.write(self.entries_mut(index, 1)?);
        Ok(())
    }

    /// The bytes of `count` entries of the open table.
    fn entries_mut(&mut self, index: u64, count: u64) -> Result<&mut [u8]> {
        let width = self.rules.geometry.l2_entry_size();
        let from = to_usize(index.times(width)?);
        let to = to_usize(index.plus(count)?.times(width)?);
        let table = &mut self.l2.as_mut().ok_or_else(past_the_disk)?.bytes;
        table.get_mut(from..to).ok_or_else(past_the_disk)
    }

    /// Writes the refcount blocks that nothing can change any more.
    fn write_complete_blocks(&mut self, sink: &mut impl Sink) -> Result<()> {
        let bits = self.rules.geometry.cluster_bits();
        let low_water_mark = self.packing.map_or(self.refcounts.clusters(), |at| at >> bits);
        self.refcounts.finish_blocks(low_water_mark, |offset, bytes| sink.metadata(offset, bytes))
    }
}

fn past_the_disk() -> Error {
    Error::internal("a cluster past the end of the disk cannot be placed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Geometry, Version};

    /// Notes every place that is given out.
    #[derive(Default)]
    struct Notes {
        metadata: Vec<(u64, u64)>,
        data: Vec<(u64, u64, u64)>,
    }

    impl Sink for Notes {
        fn metadata(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
            self.metadata.push((offset.0, bytes.len() as u64));
            Ok(())
        }

        fn data(&mut self, first: u64, clusters: u64, host: HostOffset) -> Result<()> {
            self.data.push((first, clusters, host.0));
            Ok(())
        }
    }

    #[test]
    fn runs_in_source_order_get_clusters_of_their_own_in_the_order_given() {
        const CLUSTER: u64 = 512;
        // 64 entries in an L2 table, 64 counts in a refcount block: the runs cross both.
        let geometry = Geometry::new(CLUSTER.trailing_zeros(), false).unwrap();
        let rules = EntryRules { geometry, version: Version::V3, data_file: false };
        let width = RefcountWidth::new(6).unwrap();
        let mut placer = Placer::new(rules, width, 1 << 20).unwrap();
        let runs = [(300, 100), (10, 150), (200, 1), (160, 40)];
        let mut notes = Notes::default();
        placer.place_in_source_order(runs.into_iter(), &mut notes).unwrap();
        let finished = placer.finish(&mut notes).unwrap();

        let guests = notes.data.iter().flat_map(|&(first, count, _)| first..first + count);
        assert!(guests.eq((10..201).chain(300..400)), "{:?}", notes.data);
        let host_of = |guest: u64| {
            let run = notes.data.iter().find(|run| (run.0..run.0 + run.1).contains(&guest));
            run.map(|(first, _, host)| host + (guest - first) * CLUSTER).unwrap()
        };
        let order = runs.into_iter().flat_map(|(first, count)| first..first + count);
        assert!(order.map(host_of).is_sorted(), "{:?}", notes.data);

        let data = notes.data.iter().map(|&(_, count, host)| (host, count * CLUSTER));
        let mut places: Vec<_> = data.chain(notes.metadata.iter().copied()).collect();
        places.sort_unstable();
        let apart = places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
        assert!(apart, "{places:?}");
        assert!(places.last().is_some_and(|last| last.0 + last.1 <= finished.file_length));
    }
}
