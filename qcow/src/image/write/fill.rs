//! What goes along with data that is written to a cluster: the rest of its subclusters, and what its entry becomes.

use std::ops::Range;

use super::lookup::Kind;
use super::{Writer, put};
use crate::exact::{Exact, to_usize};
use crate::format::{HostOffset, L2Entry, RawL2Entry};
use crate::io::read_padded;
use crate::{Error, Result};

/// Host clusters that take the data of guest clusters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The first guest cluster.
    pub(super) first: u64,
    /// Where the first host cluster lies.
    pub(super) host: HostOffset,
    /// The guest clusters' old places are left.
    pub(super) new: bool,
    /// The host clusters read as zeros.
    pub(super) zeros: bool,
}

/// What is filled in around data that is written, so that only whole subclusters are.
#[derive(Debug)]
pub(super) struct Around {
    /// The data with what is filled in.
    pub(super) filled: Range<u64>,
    /// What of it has to be written, the data with it: where the place reads as zeros, and so does the guest's disk, it is
    /// filled in already.
    pub(super) written: Range<u64>,
}

/// An entry to be changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) cluster: u64,
    pub(super) from: RawL2Entry,
    pub(super) to: RawL2Entry,
    /// The host clusters of `from` are not used by `to`.
    pub(super) drops: bool,
}

impl Writer {
    /// The subclusters of the cluster at `guest` that have bytes of `range`.
    pub(super) fn touched(&self, guest: u64, range: Range<u64>) -> u32 {
        let geometry = self.geometry();
        let bits = geometry.subcluster_size().trailing_zeros();
        let last_byte = guest | geometry.cluster_size().wrapping_sub(1);
        let start = range.start.max(guest);
        let Some(last) = range.end.checked_sub(1).map(|last| last.min(last_byte)) else { return 0 };
        if start > last {
            return 0;
        }
        // Within the cluster, so that nothing is carried.
        let (first, last) = ((start ^ guest) >> bits, (last ^ guest) >> bits);
        let shift = |by: u64| u32::try_from(by & 31).unwrap_or(0);
        u32::MAX << shift(first) & u32::MAX >> shift(31 ^ last)
    }

    /// Where guest offset `offset` lies, within `place`.
    pub(super) fn place_of(&self, place: Place, offset: u64) -> Result<u64> {
        place.host.0.plus(offset.minus(place.first << self.geometry().cluster_bits())?)
    }

    /// What is to be filled in around `range`.
    pub(super) fn around(
        &self,
        range: &Range<u64>,
        place: Place,
        old: &[RawL2Entry],
    ) -> Result<Around> {
        let geometry = self.geometry();
        // Whole subclusters are written; of a compressed cluster, which has none, all of it.
        let unit =
            |entry: Option<&RawL2Entry>| match entry.is_some_and(|entry| entry.is_compressed()) {
                true => geometry.cluster_size(),
                false => geometry.subcluster_size(),
            };
        let start = range.start & !unit(old.first()).wrapping_sub(1);
        let end = range.end.next_multiple_of(unit(old.last()));
        let there = |range: Range<u64>| Ok::<_, Error>(place.zeros && self.is_zero(range)?);
        let written_start = if there(start..range.start)? { range.start } else { start };
        let written_end = if there(range.end..end)? { range.end } else { end };
        Ok(Around { filled: start..end, written: written_start..written_end })
    }

    /// Writes the guest's bytes that are in `written`, and around `range`, to `place`.
    pub(super) fn put_around(
        &self,
        range: &Range<u64>,
        written: &Range<u64>,
        place: Place,
    ) -> Result<()> {
        for part in [written.start..range.start, range.end..written.end] {
            if !part.is_empty() {
                let mut scratch = self.scratch.take();
                let bytes = scratch.first(part.end.minus(part.start)?)?;
                self.old_bytes(bytes, part.start)?;
                put(self.data(), bytes, self.place_of(place, part.start)?)?;
            }
        }
        Ok(())
    }

    /// Writes `data`, which is at `range`, and the guest's bytes that are in `written` and around it, to `place` as one.
    pub(super) fn put_joined(
        &self,
        data: &[u8],
        range: &Range<u64>,
        written: &Range<u64>,
        place: Place,
    ) -> Result<()> {
        let mut scratch = self.scratch.take();
        let bytes = scratch.first(written.end.minus(written.start)?)?;
        let (head, rest) = bytes.split_at_mut(to_usize(range.start.minus(written.start)?));
        let (middle, tail) = rest.split_at_mut(data.len());
        self.old_bytes(head, written.start)?;
        middle.copy_from_slice(data);
        self.old_bytes(tail, range.end)?;
        put(self.data(), bytes, self.place_of(place, written.start)?)
    }

    /// What the entries of guest clusters become, whose bytes `filled` are at `place` now or will be. Copies what else
    /// a cluster with subclusters has.
    pub(super) fn changes(
        &self,
        filled: &Range<u64>,
        place: Place,
        old: &[RawL2Entry],
    ) -> Result<Vec<Change>> {
        let geometry = self.geometry();
        let mut changes = Vec::new();
        for (index, entry) in (0u64..).zip(old) {
            let cluster = place.first.plus(index)?;
            let own = HostOffset(place.host.0.plus(index << geometry.cluster_bits())?);
            let touched = self.touched(cluster << geometry.cluster_bits(), filled.clone());
            if place.new && geometry.extended_l2() && !entry.is_compressed() {
                self.copy_subclusters(*entry, touched, own)?;
            }
            let to = self.data_entry(*entry, touched, own)?;
            changes.push(Change { cluster, from: *entry, to, drops: place.new });
        }
        Ok(changes)
    }

    /// Whether the mapping alone says that a range reads as zeros.
    fn is_zero(&self, range: Range<u64>) -> Result<bool> {
        let mut at = range.start;
        let end = range.end.min(self.size);
        while at < end {
            let piece = self.piece(at, end.minus(at)?)?;
            match piece.kind {
                Kind::Zero => {}
                Kind::Below if at >= self.below.len() => {}
                _ => return Ok(false),
            }
            at = at.plus(piece.len)?;
        }
        Ok(true)
    }

    /// Fills `bytes` with the guest's from `at` on, as they were, and with zeros past the end of the disk.
    fn old_bytes(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        let end = at.plus(bytes.len() as u64)?;
        let there = self.size.clamp(at, end).minus(at)?;
        let (there, past) = bytes.split_at_mut(to_usize(there));
        past.fill(0);
        self.read(there, at)
    }

    /// Copies the allocated subclusters of a shared cluster that are not written to.
    fn copy_subclusters(&self, entry: RawL2Entry, written: u32, host: HostOffset) -> Result<()> {
        let size = self.geometry().subcluster_size();
        let rest = entry.allocated_subclusters() & !u64::from(written);
        let mut scratch = self.scratch.take();
        let bytes = scratch.first(size)?;
        for index in (0..32u64).filter(|index| rest >> index & 1 == 1) {
            read_padded(self.data(), bytes, entry.offset().0.plus(index.times(size)?)?)?;
            put(self.data(), bytes, host.0.plus(index.times(size)?)?)?;
        }
        Ok(())
    }

    /// The entry of a cluster whose data is at `host` and has `written` subclusters more than before.
    fn data_entry(&self, old: RawL2Entry, written: u32, host: HostOffset) -> Result<RawL2Entry> {
        let (word, _) = L2Entry::Data { host, copied: true }.encode(&self.rules)?;
        let written = u64::from(written);
        let bitmap = match (self.geometry().extended_l2(), old.is_compressed()) {
            (false, _) => 0,
            (true, true) => u32::MAX.into(),
            (true, false) => {
                let zero = old.zero_subclusters() & !written;
                zero << 32 | old.allocated_subclusters() | written
            }
        };
        Ok(RawL2Entry { word, bitmap })
    }
}
