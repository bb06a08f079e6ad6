//! Copy offload: reflinks ranges (`FICLONERANGE`) where the file system can (XFS, Btrfs), or uses
//! server-side copy (`copy_file_range`) on network file systems.
//!
//! Which ranges are offloaded depends on the image's tables and the file system alone, never on content or
//! threads: a range for which the kernel refuses the call is read and written to the same place.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use crc32fast::Hasher;
use rustix::io::Errno;
use serde::Serialize;

use super::crc::hash;
use super::item::{ITEM, read_item};
use crate::chain::{Chain, Layer};
use crate::exact::{Exact, to_usize};
use crate::extent::{Extent, ExtentKind, Reader};
use crate::io::{
    Buffer, FileStorage, FileSystem, OpenedAs, OutputFile, Storage, clone_range, copy_range,
};
use crate::{CancelToken, Error, Result};

/// No item is longer than this many bytes, so that progress is seen and a wish to stop is heard.
const LONGEST: u64 = 1 << 30;
/// No item has more extents than this.
const MOST_EXTENTS: usize = 256;
/// No item has more extents than this where they are put in the order of the source: 2 MiB.
const MOST_IN_SOURCE_ORDER: usize = 1 << 15;

/// How many bytes of a new image went which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TransferStats {
    /// Bytes whose space the new image shares with a source.
    pub cloned_bytes: u64,
    /// Bytes that the kernel, or the machine that keeps them, copied.
    pub copied_bytes: u64,
    /// Bytes written by this process: data as it is stored (compressed or not) and metadata.
    pub written_bytes: u64,
}

impl TransferStats {
    /// The bytes that went into `files`, by `offload` and by writes.
    pub(in crate::ops) fn of(offload: Option<&Offload<'_>>, files: &[&OutputFile]) -> Self {
        let (cloned_bytes, copied_bytes) = offload.map_or((0, 0), Offload::transferred);
        let written_bytes = files.iter().map(|file| file.written()).sum();
        Self { cloned_bytes, copied_bytes, written_bytes }
    }
}

/// How the data of a layer gets into the new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyMethod {
    Clone,
    Copy,
    Memory,
}

/// A range of the guest's disk that is offloaded as it is stored: extents of data in ascending order. Gaps between
/// them, which only an offload in source order has, are zeros.
#[derive(Debug)]
pub(in crate::ops) struct OffloadRange {
    pub(in crate::ops) guest: u64,
    pub(in crate::ops) len: u64,
    pub(in crate::ops) extents: Vec<Extent>,
}

impl OffloadRange {
    /// How much of it is not zeros.
    pub(in crate::ops) fn data_bytes(&self) -> Result<u64> {
        self.extents.iter().try_fold(0, |sum: u64, extent| sum.plus(extent.len))
    }

    /// What lies side by side in a source comes one after the other.
    pub(in crate::ops) fn in_source_order(&self) -> Vec<&Extent> {
        let mut runs: Vec<_> = self.extents.iter().collect();
        runs.sort_by_key(|run| source_order(run));
        runs
    }
}

/// Where a part of an [`OffloadRange`] goes: `len` bytes from `guest` on to offset `to` of the new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) struct Place {
    pub(in crate::ops) guest: u64,
    pub(in crate::ops) len: u64,
    pub(in crate::ops) to: u64,
}

/// Knows what can be offloaded from the layers of a chain to one new file, and does it.
#[derive(Debug)]
pub(in crate::ops) struct Offload<'a> {
    chain: &'a Chain,
    target: &'a OutputFile,
    methods: Vec<CopyMethod>,
    /// Offsets in both files must be multiples of this.
    block: u64,
    /// Ranges start and end at multiples of this on the guest's disk.
    granule: u64,
    /// Bytes of one item at most.
    longest: u64,
    /// The target's clusters may lie in any order.
    source_order: bool,
    /// Ranges are read all the same, for a digest.
    read_all: bool,
    cloned: AtomicU64,
    copied: AtomicU64,
}

impl<'a> Offload<'a> {
    /// Finds out, layer by layer, what can be offloaded to `target`, which is empty. `cluster` is
    /// the unit in which the target places data, `None` if every byte goes to its guest offset.
    /// `None` if nothing can be offloaded.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if `target` is not as it was any more.
    pub(in crate::ops) fn find(
        chain: &'a Chain,
        target: &'a OutputFile,
        cluster: Option<u64>,
        read_all: bool,
    ) -> Result<Option<Self>> {
        let Some(system) = FileSystem::of(target.file()) else { return Ok(None) };
        let granule = cluster.unwrap_or(system.block).max(512);
        if granule & system.block.wrapping_sub(1) != 0 {
            return Ok(None);
        }
        let way = |layer| method_of(layer, target, system);
        let methods = chain.layers().iter().map(way).collect::<Result<Vec<_>>>()?;
        Ok(methods.iter().any(|way| *way != CopyMethod::Memory).then(|| Self {
            chain,
            target,
            methods,
            block: system.block,
            granule,
            longest: if read_all { ITEM } else { LONGEST },
            source_order: false,
            read_all,
            cloned: AtomicU64::new(0),
            copied: AtomicU64::new(0),
        }))
    }

    /// Allows that what is cloned lies in the new file in the order that it has in the source, zeros left out:
    /// then what lies side by side in the source is cloned by one call, and lies side by side again.
    pub(in crate::ops) fn in_source_order(mut self) -> Self {
        let local = self.methods.iter().all(|way| *way != CopyMethod::Copy);
        self.source_order = local && !self.read_all;
        self
    }

    /// Whether an item may have gaps, and its extents any order in the new file.
    pub(in crate::ops) fn is_in_source_order(&self) -> bool {
        self.source_order
    }

    /// How many extents an item may have.
    pub(in crate::ops) fn most_extents(&self) -> usize {
        if self.source_order { MOST_IN_SOURCE_ORDER } else { MOST_EXTENTS }
    }

    /// Up to where zeros from `at` on, which end at `end`, can be passed over.
    pub(in crate::ops) fn passable(&self, end: u64) -> Option<u64> {
        self.source_order.then_some(end & !self.granule.wrapping_sub(1))
    }

    /// Start and end of what can be offloaded of `extent`, on the guest's disk.
    pub(in crate::ops) fn offloadable(&self, extent: &Extent) -> Option<(u64, u64)> {
        let ExtentKind::Data { host } = extent.kind else { return None };
        let way = self.methods.get(extent.depth).copied().unwrap_or(CopyMethod::Memory);
        let in_block = self.block.wrapping_sub(1);
        if way == CopyMethod::Memory || (host.0 ^ extent.guest.0) & in_block != 0 {
            return None;
        }
        // What the file does not have reads as zeros, and an unfinished block cannot be shared.
        let file_end = self.chain.layers().get(extent.depth)?.data_storage().len() & !in_block;
        let there = file_end.checked_sub(host.0)?.min(extent.len);
        let start = extent.guest.0.checked_next_multiple_of(self.granule)?;
        let end = extent.guest.0.checked_add(there)? & !self.granule.wrapping_sub(1);
        (start < end).then_some((start, end))
    }

    /// How far an item that starts at `guest` may reach.
    pub(in crate::ops) fn reach(&self, guest: u64) -> Result<u64> {
        if self.source_order { Ok(u64::MAX) } else { guest.plus(self.longest) }
    }

    /// The digest of a range, if one is wanted.
    pub(in crate::ops) fn digest(
        &self,
        reader: &mut Reader,
        buffer: &mut Buffer,
        range: &OffloadRange,
    ) -> Result<Option<Hasher>> {
        if !self.read_all {
            return Ok(None);
        }
        let bytes = read_item(reader, buffer, range.guest, range.len, &range.extents)?;
        Ok(Some(hash(bytes)))
    }

    /// Carries out what has been placed.
    pub(in crate::ops) fn carry(
        &self,
        reader: &mut Reader,
        buffer: &mut Buffer,
        range: &OffloadRange,
        places: &[Place],
        cancel: &CancelToken,
    ) -> Result<()> {
        let mut runs = runs_of(range, places)?;
        if self.source_order {
            runs.sort_unstable_by_key(|(run, _)| source_order(run));
        }
        for row in runs.chunk_by(|(run, to), next| joins(run, *to, next)) {
            cancel.check()?;
            if row.len() > 1 && self.clone_row(row, cancel)? {
                continue;
            }
            for (run, to) in row {
                cancel.check()?;
                self.carry_run(reader, buffer, run, *to)?;
            }
        }
        Ok(())
    }

    /// Bytes cloned and copied so far.
    pub(in crate::ops) fn transferred(&self) -> (u64, u64) {
        (self.cloned.load(Ordering::Relaxed), self.copied.load(Ordering::Relaxed))
    }

    fn carry_run(
        &self,
        reader: &mut Reader,
        buffer: &mut Buffer,
        run: &Extent,
        to: u64,
    ) -> Result<()> {
        let done = match self.methods.get(run.depth) {
            Some(CopyMethod::Clone) => self.clone_run(run, to)?,
            Some(CopyMethod::Copy) => self.copy_run(run, to)?,
            _ => 0,
        };
        if done == run.len {
            return Ok(());
        }
        let rest = run.slice(run.guest.0.plus(done)?, run.end());
        self.rewrite(reader, buffer, &rest, to.plus(done)?)
    }

    /// Clones runs that lie side by side in both files; `false` if that cannot be done with all of them.
    fn clone_row(&self, row: &[(Extent, u64)], cancel: &CancelToken) -> Result<bool> {
        let Some((first, to)) = row.first() else { return Ok(true) };
        if self.methods.get(first.depth) != Some(&CopyMethod::Clone) {
            return Ok(false);
        }
        let len = row.iter().try_fold(0, |len: u64, (run, _)| len.plus(run.len))?;
        let mut done: u64 = 0;
        while done < len {
            cancel.check()?;
            let here = LONGEST.min(len.minus(done)?);
            if !self.clone_part(first, done, here, *to)? {
                return Ok(false);
            }
            done = done.plus(here)?;
        }
        self.cloned.fetch_add(len, Ordering::Relaxed);
        Ok(true)
    }

    /// Bytes cloned: all or none.
    fn clone_run(&self, run: &Extent, to: u64) -> Result<u64> {
        let cloned = self.clone_part(run, 0, run.len, to)?;
        let len = if cloned { run.len } else { 0 };
        self.cloned.fetch_add(len, Ordering::Relaxed);
        Ok(len)
    }

    /// Clones `len` bytes that lie `skip` bytes behind the start of `run`, whose place is `to`.
    fn clone_part(&self, run: &Extent, skip: u64, len: u64, to: u64) -> Result<bool> {
        let Some((source, host)) = self.source(run) else { return Ok(false) };
        let from = (source.file(), host.plus(skip)?);
        match clone_range(from, (self.target.file(), to.plus(skip)?), len) {
            Ok(()) => Ok(true),
            Err(error) if is_final(error) => {
                Err(self.target.failed("could not clone", error.into()))
            }
            Err(_) => Ok(false),
        }
    }

    /// Bytes copied: perhaps not all.
    fn copy_run(&self, run: &Extent, to: u64) -> Result<u64> {
        let Some((source, host)) = self.source(run) else { return Ok(0) };
        let mut done: u64 = 0;
        while done < run.len {
            let from = (source.file(), host.plus(done)?);
            let to = (self.target.file(), to.plus(done)?);
            match copy_range(from, to, run.len.minus(done)?) {
                Ok(copied) if copied > 0 => done = done.plus(copied)?,
                Err(Errno::INTR) => {}
                Err(error) if is_final(error) => {
                    return Err(self.target.failed("could not copy", error.into()));
                }
                Ok(_) | Err(_) => break,
            }
        }
        self.copied.fetch_add(done, Ordering::Relaxed);
        Ok(done)
    }

    fn source(&self, run: &Extent) -> Option<(&FileStorage, u64)> {
        let ExtentKind::Data { host } = run.kind else { return None };
        self.chain.layers().get(run.depth)?.data_file().map(|file| (file, host.0))
    }

    /// Reads the run and writes it, where it cannot be offloaded after all.
    fn rewrite(
        &self,
        reader: &mut Reader,
        buffer: &mut Buffer,
        run: &Extent,
        to: u64,
    ) -> Result<()> {
        let mut at = run.guest.0;
        while at < run.end() {
            let end = at.plus(ITEM)?.min(run.end());
            let bytes = buffer.first(to_usize(end.minus(at)?))?;
            reader.read_extent(&run.slice(at, end), bytes)?;
            self.target.write_at(bytes, to.plus(at.minus(run.guest.0)?)?)?;
            at = end;
        }
        Ok(())
    }
}

/// The parts of the extents with their places in the new file, in the order of the disk.
fn runs_of(range: &OffloadRange, places: &[Place]) -> Result<Vec<(Extent, u64)>> {
    let mut runs = Vec::with_capacity(range.extents.len());
    let mut extents = range.extents.iter().peekable();
    for place in places {
        let place_end = place.guest.plus(place.len)?;
        while let Some(extent) = extents.peek() {
            let start = extent.guest.0.max(place.guest);
            let end = extent.end().min(place_end);
            if start < end {
                let to = place.to.plus(start.minus(place.guest)?)?;
                runs.push((extent.slice(start, end), to));
            }
            if extent.end() > place_end {
                break;
            }
            extents.next();
        }
    }
    Ok(runs)
}

/// What lies side by side in a source comes one after the other.
fn source_order(run: &Extent) -> (usize, u64) {
    let ExtentKind::Data { host } = run.kind else { return (run.depth, u64::MAX) };
    (run.depth, host.0)
}

/// Whether the run at `to` ends, in both files, where the next one starts.
fn joins(run: &Extent, to: u64, (next, next_to): &(Extent, u64)) -> bool {
    let (depth, host) = source_order(run);
    let (next_depth, next_host) = source_order(next);
    depth == next_depth
        && host.checked_add(run.len) == Some(next_host)
        && to.checked_add(run.len) == Some(*next_to)
}

/// Tries it out: one block is cloned into the new file and cut off again.
fn method_of(layer: &Layer, target: &OutputFile, system: FileSystem) -> Result<CopyMethod> {
    let Some(source) = layer.data_file() else { return Ok(CopyMethod::Memory) };
    let Ok(status) = target.file().metadata() else { return Ok(CopyMethod::Memory) };
    let same = status.is_file() && status.dev() == source.identity().device();
    if !same || source.kind() != OpenedAs::File || source.len() < system.block {
        return Ok(CopyMethod::Memory);
    }
    if clone_range((source.file(), 0), (target.file(), 0), system.block).is_ok() {
        // A target of another length would be another image.
        target.set_len(0)?;
        target.set_len(status.len())?;
        return Ok(CopyMethod::Clone);
    }
    Ok(if system.remote { CopyMethod::Copy } else { CopyMethod::Memory })
}

/// Trying another way would not help.
pub(super) fn is_final(error: Errno) -> bool {
    let error = std::io::Error::from(error);
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        || error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// The error of a job that has no offload and is asked for one.
pub(in crate::ops) fn none_here() -> Error {
    Error::internal("nothing can be offloaded to this target")
}
