//! Changes header, extensions and backing file's name in place, so that a crash leaves the old ones or the
//! new ones, whole.
//!
//! They fill more than one sector, and a disk writes only a sector as a whole. So what lies behind the first
//! sector is written where the old state has nothing that counts, and becomes durable; then the first sector
//! is written, which makes the new state of it. Where the new extensions need the place of the old ones,
//! they go further back for that moment, and an extension of a type that nobody knows spans what lies
//! between.

use std::ops::Range;

use super::update::Staged;
use super::{Purpose, read_first_cluster, read_header_area};
use crate::exact::{Exact, to_usize};
use crate::format::{
    Autoclear, Extension, HeaderArea, Incompatible, SECTOR, SPANNING_EXTENSION, no_space,
};
use crate::io::Storage;
use crate::{Error, Remedy, Result};

/// A change of the first cluster, as steps: each makes a valid state of the one before.
#[derive(Debug)]
pub(crate) struct FirstCluster {
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    /// What no state before this step reads: offsets and bytes.
    unread: Vec<(u64, Vec<u8>)>,
    /// The first sector, which makes the new state.
    sector: Vec<u8>,
}

/// What the first cluster of the image in `storage` says, to be changed and written back: without what the
/// next writer has to take out of it anyway.
///
/// # Errors
/// As [`HeaderArea::parse`]; [`Corrupt`](crate::ErrorKind::Corrupt) if the image is marked so.
pub(crate) fn editable(storage: &dyn Storage) -> Result<HeaderArea> {
    let mut area = read_header_area(storage, Purpose::Read)?;
    if area.header.incompatible.contains(Incompatible::CORRUPT) {
        return Err(Error::corrupt("the image is marked corrupt").hint(Remedy::Repair));
    }
    // Unknown bits say something that is not kept true.
    area.header.autoclear &= Autoclear::all();
    area.extensions.0.retain(|extension| {
        !matches!(extension, Extension::Unknown { magic, .. } if *magic == SPANNING_EXTENSION)
    });
    Ok(area)
}

impl FirstCluster {
    /// The change of the first cluster in `storage` to `new`, with the same cluster size.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if it does not fit, and what [`HeaderArea::to_bytes`] refuses.
    pub(crate) fn new(storage: &dyn Storage, new: &HeaderArea) -> Result<Self> {
        let old = read_first_cluster(storage)?;
        let size = new.header.geometry().cluster_size();
        if size != old.len() as u64 {
            return Err(Error::internal("the cluster size of an image does not change"));
        }
        let compact = new.to_bytes()?;
        let used = HeaderArea::used(&old)?;
        let end = used.iter().map(|range| range.end).max().unwrap_or_default();
        for name_from in [0, end] {
            // The second may not fit where the first does.
            let Ok(bytes) = new.to_bytes_with_name_from(name_from) else { continue };
            if let Some(step) = Step::new(&old, &used, &laid(&old, 0, &bytes)?)? {
                return Ok(Self { steps: step.into_iter().collect() });
            }
        }
        let aside = Self::set_aside(new, &old, end.max(compact.len()))?;
        let first = Step::new(&old, &used, &aside)?;
        let used = HeaderArea::used(&aside)?;
        let second = Step::new(&aside, &used, &laid(&aside, 0, &compact)?)?;
        match (first, second) {
            (Some(first), Some(second)) => {
                Ok(Self { steps: first.into_iter().chain(second).collect() })
            }
            _ => Err(Error::internal("the new header would overwrite the old one")),
        }
    }

    /// The cluster with all but the header behind `end`.
    fn set_aside(new: &HeaderArea, old: &[u8], end: usize) -> Result<Vec<u8>> {
        let header = u64::from(new.header.header_length);
        let (start, room) = (to_usize(header).plus(8)?, old.len());
        let len = end.max(start).minus(start)?.next_multiple_of(8);
        let too_long = || no_space(room as u64);
        if header.plus(8)? > SECTOR {
            return Err(too_long());
        }
        let mut spanning = new.clone();
        let data = old.get(start..start.plus(len)?).ok_or_else(too_long)?.to_vec();
        spanning.extensions.0.insert(0, Extension::Unknown { magic: SPANNING_EXTENSION, data });
        laid(old, 0, &spanning.to_bytes()?)
    }

    /// Adds to the current phase what nothing reads before [`switch`](Self::switch).
    pub(crate) fn prepare(&self, staged: &mut Staged) -> Result<()> {
        match self.steps.first() {
            Some(step) => step.prepare(staged),
            None => Ok(()),
        }
    }

    /// Adds the change itself, in a phase of its own.
    pub(crate) fn switch(&self, staged: &mut Staged) -> Result<()> {
        for (number, step) in self.steps.iter().enumerate() {
            if number > 0 {
                step.prepare(staged)?;
            }
            staged.barrier();
            staged.write(0, step.sector.clone())?;
            staged.barrier();
        }
        Ok(())
    }

    /// Plans the change of the image in `staged` to `new`, with nothing else.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn stage(staged: &mut Staged, new: &HeaderArea) -> Result<()> {
        let change = Self::new(&*staged.result(), new)?;
        change.prepare(staged)?;
        change.switch(staged)?;
        change.prove(staged, new)
    }

    /// Checks that the image reads as planned.
    pub(crate) fn prove(&self, staged: &Staged, new: &HeaderArea) -> Result<()> {
        let found = read_header_area(&*staged.result(), Purpose::Read)?;
        let mut expected = new.clone();
        // These are what writing makes of the name.
        expected.header.backing_name_offset = found.header.backing_name_offset;
        expected.header.backing_name_len = found.header.backing_name_len;
        if found == expected {
            return Ok(());
        }
        Err(Error::internal("the changed header would not read as it was meant"))
    }
}

impl Step {
    /// The step from the cluster `old`, of which the ranges `used` count, to `new`. `None` if it would need two
    /// writes at once, `Some(None)` if there is nothing to do.
    #[expect(clippy::option_option, reason = "not possible, not necessary, or this")]
    fn new(old: &[u8], used: &[Range<usize>], new: &[u8]) -> Result<Option<Option<Self>>> {
        let sector = to_usize(SECTOR);
        if old == new {
            return Ok(Some(None));
        }
        for range in used {
            let range = range.start.max(sector)..range.end.max(sector);
            if old.get(range.clone()) != new.get(range) {
                return Ok(None);
            }
        }
        let mut unread = Vec::new();
        for (number, (old, new)) in (0u64..).zip(old.chunks(sector).zip(new.chunks(sector))) {
            if number > 0 && old != new {
                unread.push((number.times(SECTOR)?, new.to_vec()));
            }
        }
        let sector = new.get(..sector).unwrap_or(new).to_vec();
        Ok(Some(Some(Self { unread, sector })))
    }

    fn prepare(&self, staged: &mut Staged) -> Result<()> {
        let mut unread = self.unread.iter().cloned();
        unread.try_for_each(|(offset, bytes)| staged.write(offset, bytes))
    }
}

/// The cluster with `bytes` at `at`.
fn laid(cluster: &[u8], at: usize, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut cluster = cluster.to_vec();
    let place = cluster.get_mut(at..at.plus(bytes.len())?);
    let place = place.ok_or_else(|| Error::internal("the header area passes its cluster"))?;
    place.copy_from_slice(bytes);
    Ok(cluster)
}

#[cfg(test)]
mod tests;
