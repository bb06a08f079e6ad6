//! Writing to an image that is in use: mapping and refcounts in memory, and their way to the disk.
//!
//! Guest data goes to the file at once; metadata is collected into a *group*. A flush commits the group in
//! phases, each durable before the next begins:
//!
//! 1. only if refcounts outgrow their blocks: new refcount blocks and a longer refcount table, which
//!    nothing names yet;
//! 2. refcounts (raised for what the group added, lowered for what earlier groups dropped), entries of the
//!    refcount table, new L2 tables, which nothing names yet; with them all guest data becomes durable;
//! 3. entries of L2 tables and of the L1 table, sector by sector.
//!
//! So at any moment of a crash every refcount on disk is at least the number of references, and whatever an
//! entry names is durable. What is lost is at most what was not flushed; what is left over is at most
//! leaked clusters. Refcounts of dropped clusters are lowered one group later: see [`space`].
//!
//! Threads: a request holds a pass of the [`gate`] from its first look at the mapping on; what changes the
//! mapping of guest clusters holds a claim of them too ([`claims`]). Locks are taken in the order pass,
//! claim, `growing`, `map`, `space`; no file is read or written under `map` or `space`. Reads, and writes
//! to clusters that are allocated and not shared, take no claim and only a shared lock of `map`.

mod bitmaps;
mod claims;
mod commit;
pub(in crate::image) mod counts;
mod fill;
mod gate;
#[cfg(feature = "ops")]
mod give_up;
mod lookup;
mod open;
mod prepared;
mod scratch;
mod slices;
pub(in crate::image) mod space;
mod store;
mod zero;

pub(crate) use lookup::{Kind as PieceKind, Piece};
pub(crate) use open::WriterOptions;
pub(crate) use prepared::{Mapped, Part, Prepared};
pub(crate) use zero::NoBacking;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use crate::codec::Decompressor;
use crate::exact::{Exact, to_usize};
use crate::format::{CompressionType, EntryRules, Geometry, SECTOR, Version};
use crate::io::{WriteStorage, read_padded};
use crate::{Error, ErrorKind, Remedy, Result};

use claims::Claims;
use counts::{Got, Need};
use gate::Gate;
use slices::Map;
use space::Space;

/// Binary logarithm of the number of table entries in a sector.
const SECTOR_ENTRY_BITS: u32 = (SECTOR >> 3).trailing_zeros();

/// What is below the image: its backing chain.
pub(crate) trait Below: Send + Sync + fmt::Debug {
    /// Fills `buf` with the guest's bytes from `at` on; past the end of the backing disk they are zeros.
    ///
    /// # Errors
    /// What reading raises.
    fn read(&self, buf: &mut [u8], at: u64) -> Result<()>;

    /// Where the backing disk ends: 0 without one.
    fn len(&self) -> u64;
}

/// An image that is written to.
#[derive(Debug)]
pub(crate) struct Writer {
    storage: Arc<dyn WriteStorage>,
    /// The external data file.
    data: Option<Arc<dyn WriteStorage>>,
    below: Box<dyn Below>,
    rules: EntryRules,
    size: u64,
    compression: CompressionType,
    /// Length of the file, in bytes, when it was opened.
    #[cfg(feature = "ops")]
    len_at_open: u64,
    /// Give the space of freed clusters back to the file system.
    punch: bool,
    /// What is zeroed says so itself, also where it reads as zeros already.
    explicit_zeroes: bool,
    gate: Gate,
    claims: Claims,
    /// One L2 table is made at a time.
    growing: Mutex<()>,
    map: RwLock<Map>,
    space: Mutex<Space>,
    /// Clusters of metadata, as they were when the image was opened: no entry for data may lead there.
    metadata: RwLock<HashSet<u64>>,
    bitmaps: bitmaps::Bitmaps,
    commits: Mutex<commit::Commits>,
    /// Requests that changed something and have ended.
    changes: AtomicU64,
    /// What must be durable before the first change: header bits, marks of bitmaps.
    first_change: Mutex<Vec<Put>>,
    unprepared: AtomicBool,
    /// The first failed barrier: after it nothing can be made durable any more.
    poison: OnceLock<(ErrorKind, String)>,
    decoders: Mutex<Vec<Decoded>>,
    /// For a cluster, for what is written as one, or for the longest compressed cluster.
    scratch: scratch::Pool,
}

/// A codec context, and the cluster that it decoded last.
#[derive(Debug)]
struct Decoded {
    decompressor: Decompressor,
    span: Option<crate::format::CompressedSpan>,
    bytes: Vec<u8>,
}

/// Bytes to be written, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Put {
    pub(in crate::image) offset: u64,
    pub(in crate::image) bytes: Vec<u8>,
}

impl Writer {
    /// Size of the guest's disk in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Cluster size and entry width.
    pub(crate) fn geometry(&self) -> Geometry {
        self.rules.geometry
    }

    /// Whether entries can say that a cluster is zero whatever is below.
    pub(crate) fn has_zero_clusters(&self) -> bool {
        self.rules.version == Version::V3
    }

    fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks `space` something, and reads the refcount blocks that it needs for the answer.
    fn with_space<T>(&self, mut ask: impl FnMut(&mut Space) -> Got<T>) -> Result<T> {
        loop {
            let (index, host) = match ask(&mut self.space()) {
                Ok(answer) => return Ok(answer),
                Err(Need::Failed(error)) => return Err(error),
                Err(Need::Block(index, host)) => (index, host),
            };
            let mut bytes = vec![0; to_usize(self.geometry().cluster_size())];
            read_padded(&*self.storage, &mut bytes, host.0)
                .map_err(|error| error.structure("refcount block"))?;
            self.space().counts.loaded(index, host, bytes);
        }
    }

    /// Where the guest's data lies.
    fn data(&self) -> &dyn WriteStorage {
        self.data.as_deref().unwrap_or(&*self.storage)
    }

    /// Checks that the disk can still be written to.
    ///
    /// # Errors
    /// The first error of a barrier.
    fn healthy(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some((kind, message)) => Err(Error::new(
                *kind,
                format!("an earlier flush failed, and what was written since the one before may be lost: {message}"),
            )
            .hint("close the disk, look after the storage, and open it again")),
        }
    }

    /// Writes what of the header has to be changed before anything else is.
    fn prepare(&self) -> Result<()> {
        self.healthy()?;
        if !self.unprepared.load(SeqCst) {
            return Ok(());
        }
        let mut puts = self.first_change.lock().unwrap_or_else(PoisonError::into_inner);
        if !puts.is_empty() {
            puts.iter()
                .try_for_each(|Put { offset, bytes }| put(&*self.storage, bytes, *offset))?;
            self.barrier(&*self.storage)?;
            puts.clear();
        }
        self.unprepared.store(false, SeqCst);
        Ok(())
    }

    /// Makes what was written to `storage` durable.
    fn barrier(&self, storage: &dyn WriteStorage) -> Result<()> {
        storage.sync().map_err(|error| {
            let error = Error::io("could not sync", error);
            // The system may have dropped the pages, and would say next time that all is well.
            let _ = self.poison.set((error.kind(), error.to_string()));
            error
        })
    }

    /// Checks that these host clusters, which an entry has for data, have no metadata: writing to them, or
    /// giving them to another, would destroy the image (trap 79).
    fn check_no_metadata(&self, clusters: Range<u64>) -> Result<()> {
        if self.rules.data_file {
            return Ok(());
        }
        let metadata = self.metadata.read().unwrap_or_else(PoisonError::into_inner);
        match clusters.into_iter().find(|cluster| metadata.contains(cluster)) {
            None => Ok(()),
            Some(cluster) => {
                let host = cluster.times(self.geometry().cluster_size())?;
                let message = "an entry for data leads to a cluster of metadata";
                Err(Error::corrupt(message)
                    .structure("L2 table")
                    .host_offset(host)
                    .hint(Remedy::Repair))
            }
        }
    }

    /// Checks that a range lies on the disk.
    fn check_range(&self, at: u64, len: u64) -> Result<()> {
        if at.checked_add(len).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        Err(Error::usage(format!("{len} bytes pass the end of a disk of {} bytes", self.size))
            .guest_offset(at))
    }
}

/// Writes all of `bytes`.
///
/// # Errors
/// [`Io`](crate::ErrorKind::Io) and its kin, with the host offset.
pub(in crate::image) fn put(storage: &dyn WriteStorage, bytes: &[u8], offset: u64) -> Result<()> {
    storage
        .write_at(bytes, offset)
        .map_err(|error| no_space(Error::io("could not write", error).host_offset(offset)))
}

/// Says what to do where there is no space.
pub(in crate::image) fn no_space(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NoSpace => error.hint("free some space, then try again"),
        _ => error,
    }
}

/// Adds the `dirty` sectors of `bytes`, which lie at `offset`, to `puts`, neighbours as one.
fn sectors(bytes: &[u8], offset: u64, dirty: &BTreeSet<u64>, puts: &mut Vec<Put>) -> Result<()> {
    for_runs(dirty, |first, end| {
        let (start, end) = (first.times(SECTOR)?, end.times(SECTOR)?.min(bytes.len() as u64));
        let part = bytes.get(to_usize(start)..to_usize(end));
        let part = part.ok_or_else(|| Error::internal("a changed sector past its table"))?;
        puts.push(Put { offset: offset.plus(start)?, bytes: part.to_vec() });
        Ok(())
    })
}

/// As [`sectors`], for a table of 64-bit entries.
fn table_sectors(
    table: &[u64],
    offset: u64,
    dirty: &BTreeSet<u64>,
    puts: &mut Vec<Put>,
) -> Result<()> {
    let entries = SECTOR >> 3;
    for_runs(dirty, |first, end| {
        let start = first.times(entries)?;
        let end = end.times(entries)?.min(table.len() as u64);
        let part = table.get(to_usize(start)..to_usize(end));
        let part = part.ok_or_else(|| Error::internal("a changed sector past its table"))?;
        let bytes = crate::format::encode_table(part);
        puts.push(Put { offset: offset.plus(start.times(8)?)?, bytes });
        Ok(())
    })
}

/// Calls `each` with the first number and the end of every run of numbers.
fn for_runs(numbers: &BTreeSet<u64>, mut each: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let mut run: Option<(u64, u64)> = None;
    for number in numbers {
        run = match run {
            Some((first, end)) if end == *number => Some((first, end.plus(1)?)),
            before => {
                if let Some((first, end)) = before {
                    each(first, end)?;
                }
                Some((*number, number.plus(1)?))
            }
        };
    }
    run.map_or(Ok(()), |(first, end)| each(first, end))
}
