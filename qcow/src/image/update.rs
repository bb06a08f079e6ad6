//! Writing to the metadata of an image in phases, so that a crash at any place leaves one of the
//! states that the author of the update has thought of.
//!
//! An [`Update`] is a value: it is made without writing, and [`applied`](Update::apply) in one
//! place. [`Staged`] is an update whose result can be read, and checked, before that.

mod staged;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::exact::{Exact, to_usize};
use crate::format::{HeaderPatch, SECTOR};
use crate::io::WriteStorage;
use crate::{Error, Result};

use super::write::put;

pub(crate) use staged::Staged;

/// Writes in phases. A disk writes a sector as a whole: after a crash it is the old one or the new one. What one phase writes is durable before the next phase begins.
///
/// | a crash, or a failed write or sync | leaves in the storage |
/// |---|---|
/// | while a phase is written, or before its sync has returned | everything of the phases before it; of its own, each sector old or new, independently of the others and of their order; nothing of later phases |
/// | between its sync and the next phase | everything up to this phase, nothing of later ones |
/// | after the last sync | everything |
///
/// An update is safe if the image is usable, at worst with leaked clusters, with any selection of
/// the sectors of each phase. The rules that give this:
///
/// - What an entry is to lead to is written before the entry: data, tables, and their refcounts go
///   into an earlier phase. Space that nothing refers to may be written in any order.
/// - Refcounts are raised in an earlier phase than the one that adds references, and lowered in a
///   later one than the one that drops them. A copied flag is cleared before the refcount rises
///   above one, and set after it has fallen to one.
/// - What must change as a whole lies in one sector: an entry does, and so does a [`HeaderPatch`].
/// - Bits of the header that vouch for the rest (dirty, corrupt, autoclear) change in a phase of their
///   own: first if they warn, last if they vouch.
///
/// After an error nothing is known about the phase in which it occurred. Nothing else may be written then
/// by what holds the image open, because caches and disk may differ: the image is to be opened anew.
#[derive(Debug, Default)]
pub(crate) struct Update {
    phases: Vec<Vec<Write>>,
}

#[derive(Debug)]
enum Write {
    Bytes { offset: u64, bytes: Vec<u8> },
    Pieces(Placed),
}

/// Bytes that are made when they are read or written, because all of them together may be large:
/// pieces of one length, one behind the other.
pub(crate) trait Pieces: fmt::Debug + Send + Sync {
    /// Offset of the first piece.
    fn start(&self) -> u64;

    /// Length of each piece in bytes.
    fn piece_len(&self) -> u64;

    /// How many there are.
    fn count(&self) -> u64;

    /// The bytes of piece `number`.
    fn piece(&self, number: u64) -> Result<Vec<u8>>;
}

/// Pieces, and the bytes of the file that they fill.
#[derive(Debug, Clone)]
struct Placed {
    pieces: Arc<dyn Pieces>,
    range: Range<u64>,
}

impl Placed {
    fn new(pieces: Arc<dyn Pieces>) -> Result<Self> {
        let end = pieces.start().plus(pieces.count().times(pieces.piece_len())?)?;
        Ok(Self { range: pieces.start()..end, pieces })
    }

    /// Offsets and bytes of the pieces that `range` touches.
    fn within(&self, range: Range<u64>) -> Result<impl Iterator<Item = Result<(u64, Vec<u8>)>>> {
        let Range { start, end } = self.range;
        let len = self.pieces.piece_len().max(1);
        let first = range.start.clamp(start, end).minus(start)?.div_euclid(len);
        let last = range.end.clamp(start, end).minus(start)?.div_ceil(len);
        Ok((first..last).map(move |number| {
            let offset = start.plus(number.times(len)?)?;
            self.pieces.piece(number).map(|bytes| (offset, bytes))
        }))
    }
}

impl Update {
    /// Adds a write to the current phase: to space that nothing refers to yet, or within one sector.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if no file can have these bytes.
    pub(crate) fn write(&mut self, offset: u64, bytes: Vec<u8>) -> Result<()> {
        offset.plus(bytes.len() as u64)?;
        self.push(Write::Bytes { offset, bytes });
        Ok(())
    }

    /// Adds a change of the header to the current phase.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(crate) fn patch(&mut self, patch: HeaderPatch) -> Result<()> {
        self.write(patch.offset, patch.bytes)
    }

    /// Replaces `old`, which is at `offset`, by `new` of the same length: adds writes of the sectors
    /// that differ.
    ///
    /// # Errors
    /// As [`write`](Self::write), and if the lengths differ.
    pub(crate) fn replace(&mut self, offset: u64, old: &[u8], new: &[u8]) -> Result<()> {
        for (offset, sector) in changed_sectors(offset, old, new)? {
            self.write(offset, sector.to_vec())?;
        }
        Ok(())
    }

    /// Adds pieces to the current phase, which go to space that nothing refers to yet.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(crate) fn write_pieces(&mut self, pieces: Arc<dyn Pieces>) -> Result<()> {
        self.push(Write::Pieces(Placed::new(pieces)?));
        Ok(())
    }

    fn push(&mut self, write: Write) {
        match self.phases.last_mut() {
            Some(phase) => phase.push(write),
            None => self.phases.push(vec![write]),
        }
    }

    /// Ends the phase: what follows waits until everything before is durable.
    pub(crate) fn barrier(&mut self) {
        if self.phases.last().is_some_and(|phase| !phase.is_empty()) {
            self.phases.push(Vec::new());
        }
    }

    /// How many writes there are so far.
    pub(crate) fn writes(&self) -> usize {
        self.phases.iter().map(Vec::len).sum()
    }

    /// Whether nothing is to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.writes() == 0
    }

    /// Carries the update out: writes and syncs phase after phase.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) and its kin, with the host offset; the table above says what the storage
    /// holds then.
    pub(crate) fn apply(&self, target: &dyn WriteStorage) -> Result<()> {
        self.apply_counted(target, &mut 0)
    }

    /// As [`apply`](Self::apply), and counts in `written` the phases that are written, whether they are durable or not.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn apply_counted(
        &self,
        target: &dyn WriteStorage,
        written: &mut usize,
    ) -> Result<()> {
        for phase in self.phases.iter().filter(|phase| !phase.is_empty()) {
            phase.iter().try_for_each(|write| write.carry_out(target))?;
            *written = written.plus(1)?;
            target.sync().map_err(|error| Error::io("could not sync", error))?;
        }
        Ok(())
    }
}

impl Write {
    fn carry_out(&self, target: &dyn WriteStorage) -> Result<()> {
        match self {
            Write::Bytes { offset, bytes } => put(target, bytes, *offset),
            Write::Pieces(placed) => placed.within(placed.range.clone())?.try_for_each(|piece| {
                let (offset, bytes) = piece?;
                put(target, &bytes, offset)
            }),
        }
    }
}

/// The parts of `new`, which goes where `old` is, that differ, cut at the borders of sectors.
fn changed_sectors<'a>(
    mut offset: u64,
    mut old: &[u8],
    mut new: &'a [u8],
) -> Result<Vec<(u64, &'a [u8])>> {
    if old.len() != new.len() {
        return Err(Error::internal("bytes would be replaced by others of another length"));
    }
    let mut changed = Vec::new();
    while !new.is_empty() {
        let left = to_usize(SECTOR.minus(offset & SECTOR.minus(1)?)?).min(new.len());
        let (old_sector, old_rest) = old.split_at(left);
        let (new_sector, new_rest) = new.split_at(left);
        if old_sector != new_sector {
            changed.push((offset, new_sector));
        }
        offset = offset.plus(left as u64)?;
        (old, new) = (old_rest, new_rest);
    }
    Ok(changed)
}

#[cfg(test)]
mod tests;
