//! What a repair is going to write, in phases, and what an image would be with it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Serialize, Serializer};

use super::refcounts::NewBlocks;
use crate::format::HeaderPatch;
use crate::io::{Storage, WriteStorage};
use crate::ops::check::Structure;
use crate::{Error, ErrorKind, Result};

/// Writes are sectors: a crash leaves the old one or the new one.
const SECTOR: usize = 512;
const PAGE_BITS: u32 = 12;
const PAGE: usize = 1 << PAGE_BITS;

/// What is done about one thing that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Action {
    /// The persistent bitmaps, which cannot be trusted, are no longer vouched for: QEMU takes them
    /// for lost.
    DropBitmaps,
    /// Guest data that lies in a cluster of metadata is copied to one of its own.
    MoveData,
    /// The snapshot table is written anew at the end of the file, with its entries completed.
    WriteSnapshots,
    /// The header is made to name the new snapshot table.
    SwitchSnapshots,
    /// An entry that leads nowhere becomes one that says the same without leading there.
    DropEntry,
    /// A copied flag that lies is cleared.
    ClearCopied,
    /// A refcount that is too low is raised.
    RaiseRefcount,
    /// Refcount table and blocks are written anew at the end of the file.
    WriteRefcounts,
    /// The header is made to name the new refcount table.
    SwitchRefcounts,
    /// A refcount that is too high is lowered.
    LowerRefcount,
    /// A copied flag is set where the refcount is one.
    SetCopied,
    /// The dirty and corrupt bits are cleared.
    ClearBits,
}

impl Action {
    /// What the step does, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DropBitmaps => "drop the persistent bitmaps, which cannot be trusted",
            Self::MoveData => "move data out of a cluster of metadata",
            Self::WriteSnapshots => "write a completed snapshot table at the end of the file",
            Self::SwitchSnapshots => "switch to the new snapshot table",
            Self::DropEntry => "drop an entry that leads nowhere",
            Self::ClearCopied => "clear the copied flag",
            Self::RaiseRefcount => "raise the refcount",
            Self::WriteRefcounts => "write new refcounts at the end of the file",
            Self::SwitchRefcounts => "switch to the new refcounts",
            Self::LowerRefcount => "lower the refcount",
            Self::SetCopied => "set the copied flag",
            Self::ClearBits => "clear the dirty and corrupt bits",
        }
    }
}

/// One step of a repair. Offsets are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// To which structure.
    #[serde(serialize_with = "name")]
    pub structure: Structure,
    /// Index of the entry, or number of the cluster.
    pub index: u64,
    /// Where in the file it lies.
    pub host_offset: u64,
    /// The raw value before.
    pub from: u64,
    /// The raw value after.
    pub to: u64,
}

fn name<S: Serializer>(structure: &Structure, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(structure.as_str())
}

/// All steps in order, and the writes that they come down to. What one phase writes is durable
/// before the next one begins.
#[derive(Debug)]
pub(super) struct Plan {
    phases: Vec<Vec<Write>>,
    pub(super) steps: Vec<Step>,
    pub(super) steps_left_out: u64,
    most: usize,
    overlay: Arc<Overlay>,
}

#[derive(Debug)]
enum Write {
    Bytes(u64, Vec<u8>),
    Blocks(Arc<NewBlocks>),
}

impl Plan {
    /// Nothing to do yet to `base`; lists at most `most` steps.
    pub(super) fn new(base: Arc<dyn Storage>, most: usize) -> Self {
        let overlay = Arc::new(Overlay { base, changes: RwLock::default() });
        Self { phases: vec![Vec::new()], steps: Vec::new(), steps_left_out: 0, most, overlay }
    }

    /// The image as it will be.
    pub(super) fn result(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.overlay) as _
    }

    /// Adds a step to the list; its write comes by itself.
    pub(super) fn step(&mut self, step: Step) {
        if self.steps.len() < self.most {
            self.steps.push(step);
        } else {
            self.steps_left_out = self.steps_left_out.saturating_add(1);
        }
    }

    /// Replaces `old`, which lies at `offset`, by `new`: the sectors that differ are written.
    pub(super) fn replace(&mut self, offset: u64, old: &[u8], new: &[u8]) -> Result<()> {
        let mut at = offset;
        for (old, new) in old.chunks(SECTOR).zip(new.chunks(SECTOR)) {
            if old != new {
                self.write(at, new.to_vec())?;
            }
            at = at.saturating_add(new.len() as u64);
        }
        Ok(())
    }

    /// Writes to space that nobody uses yet, or a few bytes within one sector.
    pub(super) fn write(&mut self, offset: u64, bytes: Vec<u8>) -> Result<()> {
        self.overlay.write(&bytes, offset)?;
        self.push(Write::Bytes(offset, bytes));
        Ok(())
    }

    /// Changes the header.
    pub(super) fn patch(&mut self, patch: HeaderPatch) -> Result<()> {
        self.write(patch.offset, patch.bytes)
    }

    /// Writes new refcount blocks to space that nobody uses yet. A plan can have this once.
    pub(super) fn write_blocks(&mut self, blocks: NewBlocks) {
        let blocks = Arc::new(blocks);
        self.overlay.changes_mut().blocks = Some(Arc::clone(&blocks));
        self.push(Write::Blocks(blocks));
    }

    fn push(&mut self, write: Write) {
        if let Some(phase) = self.phases.last_mut() {
            phase.push(write);
        }
    }

    /// What follows waits until what came before is durable.
    pub(super) fn barrier(&mut self) {
        if self.phases.last().is_some_and(|phase| !phase.is_empty()) {
            self.phases.push(Vec::new());
        }
    }

    /// How many writes there are so far.
    pub(super) fn writes(&self) -> usize {
        self.phases.iter().map(Vec::len).sum()
    }

    /// Whether nothing is to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.writes() == 0
    }

    /// Writes everything to `target`.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io); what was written so far is in order.
    pub(super) fn apply(&self, target: &dyn WriteStorage) -> Result<()> {
        let put = |bytes: &[u8], offset| {
            let written = target.write_at(bytes, offset);
            written.map_err(|error| {
                let error = Error::io("could not write", error).host_offset(offset);
                match error.kind() {
                    ErrorKind::NoSpace => error.hint("free some space, then try again"),
                    _ => error,
                }
            })
        };
        for phase in self.phases.iter().filter(|phase| !phase.is_empty()) {
            for write in phase {
                match write {
                    Write::Bytes(offset, bytes) => put(bytes, *offset)?,
                    Write::Blocks(blocks) => {
                        blocks.within(blocks.place()).try_for_each(|block| {
                            let (offset, bytes) = block?;
                            put(&bytes, offset)
                        })?
                    }
                }
            }
            target.sync().map_err(|error| Error::io("could not sync", error))?;
        }
        Ok(())
    }
}

/// A storage with changes that are only in memory.
#[derive(Debug)]
struct Overlay {
    base: Arc<dyn Storage>,
    changes: RwLock<Changes>,
}

#[derive(Debug, Default)]
struct Changes {
    /// New refcount blocks; pages lie over them.
    blocks: Option<Arc<NewBlocks>>,
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Where the last page's change ends.
    end: u64,
}

impl Overlay {
    fn changes(&self) -> RwLockReadGuard<'_, Changes> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes_mut(&self) -> RwLockWriteGuard<'_, Changes> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut changes = self.changes_mut();
        let (mut rest, mut at) = (bytes, offset);
        while !rest.is_empty() {
            let number = at >> PAGE_BITS;
            if !changes.pages.contains_key(&number) {
                let mut page = vec![0; PAGE];
                self.read_below(&changes, &mut page, number << PAGE_BITS)?;
                changes.pages.insert(number, page.into());
            }
            let skip = in_page(at);
            let (now, later) = rest.split_at(rest.len().min(PAGE.saturating_sub(skip)));
            if let Some(page) = changes.pages.get_mut(&number) {
                copy(page.get_mut(skip..), Some(now));
            }
            (rest, at) = (later, at.saturating_add(now.len() as u64));
        }
        changes.end = changes.end.max(at);
        Ok(())
    }

    /// Reads what lies below the pages.
    fn read_below(&self, changes: &Changes, buf: &mut [u8], offset: u64) -> Result<()> {
        crate::io::read_padded(&*self.base, buf, offset)?;
        let Some(blocks) = &changes.blocks else { return Ok(()) };
        for block in blocks.within(offset..offset.saturating_add(buf.len() as u64)) {
            let (start, block) = block?;
            lay(buf, offset, &block, start);
        }
        Ok(())
    }
}

/// Copies what `from`, which lies at `start` of the file, has of `buf`, which lies at `offset`.
fn lay(buf: &mut [u8], offset: u64, from: &[u8], start: u64) {
    let to = usize::try_from(start.saturating_sub(offset)).unwrap_or(usize::MAX);
    let skip = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
    copy(buf.get_mut(to..), from.get(skip..));
}

/// Copies as much as there is room for.
fn copy(to: Option<&mut [u8]>, from: Option<&[u8]>) {
    let (to, from) = (to.unwrap_or_default(), from.unwrap_or_default());
    let len = to.len().min(from.len());
    let (to, _) = to.split_at_mut(len);
    let (from, _) = from.split_at(len);
    to.copy_from_slice(from);
}

impl Storage for Overlay {
    fn len(&self) -> u64 {
        let changes = self.changes();
        let blocks = changes.blocks.as_ref().map_or(0, |blocks| blocks.place().end);
        self.base.len().max(changes.end).max(blocks)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let left = self.len().saturating_sub(offset).min(buf.len() as u64);
        let buf = buf.get_mut(..usize::try_from(left).unwrap_or_default()).unwrap_or_default();
        let changes = self.changes();
        self.read_below(&changes, buf, offset)
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        let end = offset.saturating_add(left);
        for (number, page) in changes.pages.range(offset >> PAGE_BITS..end.div_ceil(PAGE as u64)) {
            lay(buf, offset, page, number << PAGE_BITS);
        }
        Ok(buf.len())
    }

    fn next_data(&self, offset: u64) -> std::io::Result<Option<u64>> {
        let base = if offset < self.base.len() { self.base.next_data(offset)? } else { None };
        let changes = self.changes();
        let blocks = changes.blocks.as_ref().map(|blocks| blocks.place());
        let blocks = blocks.filter(|place| offset < place.end).map(|place| place.start);
        let page = changes.pages.range(offset >> PAGE_BITS..).next();
        let page = page.map(|(number, _)| number << PAGE_BITS);
        let changed = [blocks, page].into_iter().flatten().map(|start| start.max(offset));
        Ok(base.into_iter().chain(changed).min())
    }
}

fn in_page(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or_default() & PAGE.wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{MemoryStorage, read_padded};

    #[test]
    fn an_overlay_reads_as_if_it_had_been_written() {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        let mut plan = Plan::new(Arc::new(MemoryStorage::new(bytes.clone())), 10);
        let mut expected = bytes;
        for (offset, len) in [(0, 3), (4090, 20), (9_990, 500), (20_000, 1)] {
            let end = offset + len;
            expected.resize(expected.len().max(end), 0);
            expected[offset..end].fill(0xee);
            plan.write(offset as u64, vec![0xee; len]).unwrap();
        }
        let result = plan.result();
        assert_eq!(result.len(), expected.len() as u64);
        for (from, len) in [(0, expected.len()), (4000, 200), (9_999, 2), (5000, 1)] {
            let mut read = vec![0; len];
            read_padded(&*result, &mut read, from as u64).unwrap();
            assert_eq!(read, expected[from..from + len]);
        }
    }
}
