//! An update whose result can be read before it is written.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Pieces, Placed, Update, changed_sectors};
use crate::Result;
use crate::exact::{Exact, to_usize};
use crate::format::HeaderPatch;
use crate::io::{Storage, WriteStorage, read_padded};

const PAGE_BITS: u32 = 12;
const PAGE: usize = 1 << PAGE_BITS;

/// An [`Update`] of a storage, and the storage as it will be: later parts of a plan see the earlier ones,
/// and the whole is checked before anything is written. Takes memory for each page of 4 KiB that
/// is changed.
#[derive(Debug)]
pub(crate) struct Staged {
    update: Update,
    view: Arc<View>,
}

impl Staged {
    /// An update of `base` that changes nothing yet.
    pub(crate) fn new(base: Arc<dyn Storage>) -> Self {
        let view = View { base, changes: RwLock::default() };
        Self { update: Update::default(), view: Arc::new(view) }
    }

    /// The storage as it will be; what is added to the update later shows in it too.
    pub(crate) fn result(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.view) as _
    }

    /// As [`Update::write`].
    pub(crate) fn write(&mut self, offset: u64, bytes: Vec<u8>) -> Result<()> {
        self.view.write(&bytes, offset)?;
        self.update.write(offset, bytes)
    }

    /// As [`Update::patch`].
    pub(crate) fn patch(&mut self, patch: HeaderPatch) -> Result<()> {
        self.view.write(&patch.bytes, patch.offset)?;
        self.update.patch(patch)
    }

    /// As [`Update::replace`].
    pub(crate) fn replace(&mut self, offset: u64, old: &[u8], new: &[u8]) -> Result<()> {
        for (offset, sector) in changed_sectors(offset, old, new)? {
            self.view.write(sector, offset)?;
        }
        self.update.replace(offset, old, new)
    }

    /// As [`Update::write_pieces`], where nothing of this update was written before. (Small clusters share pages.)
    pub(crate) fn write_pieces(&mut self, pieces: Arc<dyn Pieces>) -> Result<()> {
        let placed = Placed::new(Arc::clone(&pieces))?;
        let mut changes = self.view.changes_mut();
        changes.end = changes.end.max(placed.range.end);
        let pages = placed.range.start >> PAGE_BITS..placed.range.end.div_ceil(PAGE as u64);
        for (number, page) in changes.pages.range_mut(pages) {
            let start = number << PAGE_BITS;
            for piece in placed.within(start..start.plus(PAGE as u64)?)? {
                let (at, bytes) = piece?;
                lay(page, start, &bytes, at);
            }
        }
        changes.add_pieces(placed)?;
        drop(changes);
        self.update.write_pieces(pieces)
    }

    /// Says that the storage will reach to `end`, with zeros, before the update is applied.
    pub(crate) fn reaches(&mut self, end: u64) {
        let mut changes = self.view.changes_mut();
        changes.end = changes.end.max(end);
    }

    /// As [`Update::barrier`].
    pub(crate) fn barrier(&mut self) {
        self.update.barrier();
    }

    /// As [`Update::writes`].
    pub(crate) fn writes(&self) -> usize {
        self.update.writes()
    }

    /// As [`Update::is_empty`].
    pub(crate) fn is_empty(&self) -> bool {
        self.update.is_empty()
    }

    /// As [`Update::apply`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn apply(&self, target: &dyn WriteStorage) -> Result<()> {
        self.update.apply(target)
    }

    /// As [`Update::apply_counted`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn apply_counted(
        &self,
        target: &dyn WriteStorage,
        written: &mut usize,
    ) -> Result<()> {
        self.update.apply_counted(target, written)
    }
}

/// A storage with changes that are only in memory.
#[derive(Debug)]
struct View {
    base: Arc<dyn Storage>,
    changes: RwLock<Changes>,
}

#[derive(Debug, Default)]
struct Changes {
    /// Pages lie over these. By their starts, and then in the order in which they were added.
    pieces: BTreeMap<(u64, usize), Placed>,
    /// Length of the longest of them.
    longest: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Where the last change ends.
    end: u64,
}

impl Changes {
    fn add_pieces(&mut self, placed: Placed) -> Result<()> {
        self.longest = self.longest.max(placed.range.end.minus(placed.range.start)?);
        self.pieces.insert((placed.range.start, self.pieces.len()), placed);
        Ok(())
    }

    /// Those that have a part of the range, in the order in which they were added.
    fn pieces_in(&self, start: u64, end: u64) -> Vec<&Placed> {
        let first = start.max(self.longest).wrapping_sub(self.longest);
        let near = self.pieces.range((first, 0)..(end, 0));
        let mut found: Vec<_> = near
            .filter(|(_, placed)| placed.range.end > start)
            .map(|(key, p)| (key.1, p))
            .collect();
        found.sort_unstable_by_key(|(number, _)| *number);
        found.into_iter().map(|(_, placed)| placed).collect()
    }

    /// The start of the first that ends behind `offset`.
    fn next_pieces(&self, offset: u64) -> Option<u64> {
        let first = offset.max(self.longest).wrapping_sub(self.longest);
        let mut near = self.pieces.range((first, 0)..);
        near.find(|(_, placed)| offset < placed.range.end).map(|(key, _)| key.0)
    }
}

impl View {
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
            let skip = to_usize(at) & PAGE.minus(1)?;
            let (now, later) = rest.split_at(rest.len().min(PAGE.minus(skip)?));
            if let Some(page) = changes.pages.get_mut(&number) {
                copy(page.get_mut(skip..), Some(now));
            }
            (rest, at) = (later, at.plus(now.len() as u64)?);
        }
        changes.end = changes.end.max(at);
        Ok(())
    }

    /// Reads what lies below the pages.
    fn read_below(&self, changes: &Changes, buf: &mut [u8], offset: u64) -> Result<()> {
        read_padded(&*self.base, buf, offset)?;
        let end = offset.plus(buf.len() as u64)?;
        for placed in changes.pieces_in(offset, end) {
            for piece in placed.within(offset..end)? {
                let (start, bytes) = piece?;
                lay(buf, offset, &bytes, start);
            }
        }
        Ok(())
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let changes = self.changes();
        self.read_below(&changes, buf, offset)?;
        let end = offset.plus(buf.len() as u64)?;
        for (number, page) in changes.pages.range(offset >> PAGE_BITS..end.div_ceil(PAGE as u64)) {
            lay(buf, offset, page, number << PAGE_BITS);
        }
        Ok(())
    }
}

/// Copies what `from`, which lies at `start` of the file, has of `buf`, which lies at `offset`.
fn lay(buf: &mut [u8], offset: u64, from: &[u8], start: u64) {
    let to = start.checked_sub(offset).map_or(0, to_usize);
    let skip = offset.checked_sub(start).map_or(0, to_usize);
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

impl Storage for View {
    fn len(&self) -> u64 {
        self.base.len().max(self.changes().end)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let left = self.len().checked_sub(offset).map_or(0, to_usize).min(buf.len());
        let buf = buf.get_mut(..left).unwrap_or_default();
        self.read(buf, offset).map_err(std::io::Error::from)?;
        Ok(buf.len())
    }

    fn next_data(&self, offset: u64) -> std::io::Result<Option<u64>> {
        let base = if offset < self.base.len() { self.base.next_data(offset)? } else { None };
        let changes = self.changes();
        let placed = changes.next_pieces(offset);
        let page = changes.pages.range(offset >> PAGE_BITS..).next();
        let page = page.map(|(number, _)| number << PAGE_BITS);
        let changed = placed.into_iter().chain(page).map(|start| start.max(offset));
        Ok(base.into_iter().chain(changed).min())
    }
}
