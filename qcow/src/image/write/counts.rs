//! The image's refcounts in memory, as they are to be: read block by block when they are needed, changed
//! here, and written sector by sector when a group is committed.
//!
//! Specification: "Host cluster management". Memory: one cluster for each block in use, with 16-bit
//! refcounts and 64 KiB clusters 32 MiB for a file of 1 TiB.

#[cfg(feature = "ops")]
mod before;
#[cfg(feature = "ops")]
mod places;
mod search;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{Range, RangeInclusive};

use super::{Put, SECTOR_ENTRY_BITS, sectors, table_sectors};
use crate::exact::{Exact, to_usize};
use crate::format::{
    Geometry, HeaderPatch, HostOffset, MAX_REFCOUNT_TABLE_BYTES, RefcountTableEntry, RefcountWidth,
    SECTOR, encode_table,
};
use crate::{Error, Result};

/// Why something cannot be answered at once.
#[derive(Debug)]
pub(in crate::image) enum Need {
    /// The refcount block of this index is to be read first.
    Block(u64, HostOffset),
    /// It failed.
    Failed(Error),
}

impl From<Error> for Need {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// An answer, or what it needs first. What asks again after that must find all in order.
pub(in crate::image) type Got<T> = std::result::Result<T, Need>;

#[derive(Debug)]
pub(in crate::image) struct Counts {
    geometry: Geometry,
    width: RefcountWidth,
    table: Vec<u64>,
    place: HostOffset,
    /// Length of the table in clusters, at its place.
    clusters: u64,
    table_dirty: BTreeSet<u64>,
    /// The table has another place than the header on disk says.
    moved: bool,
    blocks: HashMap<u64, Block>,
    dirty_blocks: BTreeSet<u64>,
    /// The blocks that were changed as they were before, if that is kept.
    before: Option<BTreeMap<u64, Vec<u8>>>,
}

#[derive(Debug)]
struct Block {
    host: HostOffset,
    bytes: Vec<u8>,
    dirty: BTreeSet<u64>,
    /// Nothing of it is on disk yet.
    fresh: bool,
}

/// What a commit writes of the refcounts.
#[derive(Debug, Default)]
pub(in crate::image) struct FrozenCounts {
    /// New blocks, and a table at a new place: to be durable before anything names them.
    pub(in crate::image) unnamed: Vec<Put>,
    /// All else.
    pub(in crate::image) changed: Vec<Put>,
}

impl Counts {
    /// The refcounts whose table has these entries and lies at `place`.
    pub(in crate::image) fn new(
        geometry: Geometry,
        width: RefcountWidth,
        table: Vec<u64>,
        place: HostOffset,
    ) -> Result<Self> {
        for (index, entry) in (0u64..).zip(&table) {
            let block = RefcountTableEntry(*entry).block_offset().unwrap_or_default();
            if !geometry.is_aligned(block.0) {
                return Err(Error::corrupt(format!("the refcount block is at {block}, unaligned"))
                    .structure("refcount table")
                    .index(index));
            }
        }
        let clusters = geometry.clusters_for((table.len() as u64).times(8)?);
        Ok(Self {
            geometry,
            width,
            table,
            place,
            clusters,
            table_dirty: BTreeSet::new(),
            moved: false,
            blocks: HashMap::new(),
            dirty_blocks: BTreeSet::new(),
            before: None,
        })
    }

    pub(in crate::image) fn width(&self) -> RefcountWidth {
        self.width
    }

    /// The clusters of the table.
    pub(in crate::image) fn table_clusters(&self) -> Result<Range<u64>> {
        let first = self.place.0 >> self.geometry.cluster_bits();
        Ok(first..first.plus(self.clusters)?)
    }

    /// The clusters of the blocks.
    pub(in crate::image) fn block_clusters(&self) -> impl Iterator<Item = u64> {
        let bits = self.geometry.cluster_bits();
        let hosts = self.table.iter().filter_map(|entry| RefcountTableEntry(*entry).block_offset());
        hosts.map(move |host| host.0 >> bits)
    }

    /// Index of the cluster's block, and of its refcount there.
    fn locate(&self, cluster: u64) -> (u64, u64) {
        let bits = self.width.entries_per_block(self.geometry).trailing_zeros();
        let block = cluster >> bits;
        (block, cluster ^ block << bits)
    }

    fn block_host(&self, index: u64) -> Option<HostOffset> {
        RefcountTableEntry(*self.table.get(to_usize(index))?).block_offset()
    }

    /// Whether there is a block for the cluster's refcount.
    pub(in crate::image) fn covers(&self, cluster: u64) -> bool {
        self.block_host(self.locate(cluster).0).is_some()
    }

    /// Whether the table has an entry for the cluster's block.
    pub(in crate::image) fn reaches(&self, cluster: u64) -> bool {
        self.locate(cluster).0 < self.table.len() as u64
    }

    /// The cluster's refcount; zero where there is no block (trap 69).
    pub(in crate::image) fn get(&self, cluster: u64) -> Got<u64> {
        let (index, at) = self.locate(cluster);
        let Some(host) = self.block_host(index) else { return Ok(0) };
        let block = self.blocks.get(&index).ok_or(Need::Block(index, host))?;
        Ok(self.width.get(&block.bytes, at)?)
    }

    /// Whether the cluster's refcount is zero, and was before any change if that is kept.
    pub(in crate::image) fn is_free(&self, cluster: u64) -> Got<bool> {
        let (index, at) = self.locate(cluster);
        if self.get(cluster)? != 0 {
            return Ok(false);
        }
        let before = self.before.as_ref().and_then(|before| before.get(&index));
        Ok(before.map_or(Ok(0), |before| self.width.get(before, at))? == 0)
    }

    /// Sets the cluster's refcount, whose block there must be.
    pub(in crate::image) fn set(&mut self, cluster: u64, count: u64) -> Got<()> {
        let (index, at) = self.locate(cluster);
        let host = self.block_host(index).ok_or_else(|| no_block(cluster))?;
        let block = self.blocks.get_mut(&index).ok_or(Need::Block(index, host))?;
        keep(&mut self.before, index, block);
        self.width.set(&mut block.bytes, at, count)?;
        block.dirty.extend(sectors_of(self.width, at, 1)?);
        self.dirty_blocks.insert(index);
        Ok(())
    }

    /// Takes a block that was read.
    pub(in crate::image) fn loaded(&mut self, index: u64, host: HostOffset, bytes: Vec<u8>) {
        if self.block_host(index) == Some(host) {
            let block = Block { host, bytes, dirty: BTreeSet::new(), fresh: false };
            self.blocks.entry(index).or_insert(block);
        }
    }

    /// Makes `cluster`, which no block covers and the table reaches, the block that covers it.
    pub(in crate::image) fn add_block(&mut self, cluster: u64) -> Got<()> {
        self.add_block_at(cluster, cluster)
    }

    /// As [`add_block`](Self::add_block), where the block lies in the cluster `place`, which it or another
    /// block covers.
    pub(in crate::image) fn add_block_at(&mut self, cluster: u64, place: u64) -> Got<()> {
        let (index, _) = self.locate(cluster);
        let host = HostOffset(place.times(self.geometry.cluster_size())?);
        let entry = self.table.get_mut(to_usize(index)).ok_or_else(|| {
            Error::internal(format!("the refcount table does not reach cluster {cluster}"))
        })?;
        *entry = host.0;
        self.table_dirty.insert(index >> SECTOR_ENTRY_BITS);
        let bytes = vec![0; to_usize(self.geometry.cluster_size())];
        self.blocks.insert(index, Block { host, bytes, dirty: BTreeSet::new(), fresh: true });
        self.set(place, 1)
    }

    /// How many clusters a table needs that reaches `cluster`, and some more.
    pub(in crate::image) fn larger_table(&self, cluster: u64) -> Result<u64> {
        let entries = self.locate(cluster).0.plus(1)?;
        let now = self.clusters;
        let needed = self.geometry.clusters_for(entries.times(8)?);
        let most = MAX_REFCOUNT_TABLE_BYTES >> self.geometry.cluster_bits();
        if needed > most {
            return Err(Error::limit("the refcount table cannot become any larger")
                .structure("refcount table")
                .hint(crate::Remedy::LargerClusters));
        }
        Ok(needed.max(now.plus(now >> 1)?.plus(1)?).min(most))
    }

    /// Lengthens the table in memory, so that blocks can be added for what it did not reach.
    pub(in crate::image) fn lengthen(&mut self, clusters: u64) -> Result<()> {
        let entries = clusters.times(self.geometry.cluster_size())? >> 3;
        if to_usize(entries) > self.table.len() {
            self.table.resize(to_usize(entries), 0);
        }
        Ok(())
    }

    /// Gives the lengthened table a place of as many clusters.
    pub(in crate::image) fn move_table(&mut self, place: Range<u64>) -> Result<()> {
        self.place = HostOffset(place.start.times(self.geometry.cluster_size())?);
        self.clusters = place.end.minus(place.start)?;
        self.moved = true;
        Ok(())
    }

    /// Takes out what is to be written.
    pub(in crate::image) fn freeze(&mut self) -> Result<FrozenCounts> {
        let mut frozen = FrozenCounts::default();
        for index in std::mem::take(&mut self.dirty_blocks) {
            let Some(block) = self.blocks.get_mut(&index) else { continue };
            let dirty = std::mem::take(&mut block.dirty);
            if std::mem::take(&mut block.fresh) {
                frozen.unnamed.push(Put { offset: block.host.0, bytes: block.bytes.clone() });
            } else {
                sectors(&block.bytes, block.host.0, &dirty, &mut frozen.changed)?;
            }
        }
        let mut dirty = std::mem::take(&mut self.table_dirty);
        if std::mem::take(&mut self.moved) {
            let clusters = u32::try_from(self.clusters)
                .map_err(|_| Error::internal("the refcount table passes 32 bits"))?;
            let bytes = encode_table(&self.table);
            frozen.unnamed.push(Put { offset: self.place.0, bytes });
            let HeaderPatch { offset, bytes } = HeaderPatch::refcount_table(self.place, clusters);
            frozen.changed.push(Put { offset, bytes });
        } else {
            // Behind the table's place lies something else, for as long as it has no longer one.
            let place = self.clusters.times(self.geometry.cluster_size())?;
            self.table_dirty = dirty.split_off(&(place >> SECTOR.trailing_zeros()));
            table_sectors(&self.table, self.place.0, &dirty, &mut frozen.changed)?;
        }
        Ok(frozen)
    }

    /// Whether nothing is to be written.
    pub(in crate::image) fn is_clean(&self) -> bool {
        self.dirty_blocks.is_empty() && self.table_dirty.is_empty() && !self.moved
    }
}

/// Keeps what the block was before its first change, if that is asked for.
fn keep(before: &mut Option<BTreeMap<u64, Vec<u8>>>, index: u64, block: &Block) {
    // Of a new block all refcounts were zero.
    if let Some(before) = before.as_mut().filter(|_| !block.fresh) {
        before.entry(index).or_insert_with(|| block.bytes.clone());
    }
}

/// The sectors of a block that have these refcounts, of which there is one at least.
fn sectors_of(width: RefcountWidth, first: u64, count: u64) -> Result<RangeInclusive<u64>> {
    let sector =
        |at: u64| Ok::<_, Error>(at.times(width.bits().into())? >> 3 >> SECTOR.trailing_zeros());
    Ok(sector(first)?..=sector(first.plus(count)?.minus(1)?)?)
}

fn no_block(cluster: u64) -> Error {
    Error::internal(format!("no refcount block for cluster {cluster}"))
}

pub(in crate::image) fn free_already(cluster: u64) -> Error {
    Error::corrupt(format!("cluster {cluster} is used, and has a refcount of zero"))
        .structure("refcount block")
        .hint(crate::Remedy::Repair)
}
