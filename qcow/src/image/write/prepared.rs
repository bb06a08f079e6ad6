//! Writes in steps: where the data goes, then the data, which somebody else moves, then the mapping.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;

use super::Writer;
use super::claims::Claim;
use super::fill::{Around, Change, Place};
use super::gate::Pass;
use super::lookup::{Kind, Piece};
use super::store::Target;
use crate::exact::{Exact, to_usize};
use crate::format::HostOffset;
use crate::{Error, Result};

/// What a range is, for as long as this lives: no cluster of it is given to another meanwhile.
#[derive(Debug)]
pub(crate) struct Mapped<'a> {
    pub(crate) pieces: Vec<(u64, Piece)>,
    _pass: Pass<'a>,
}

/// Bytes of the guest's disk, and the place that takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) host: HostOffset,
    /// The mapping leads there already.
    pub(crate) in_place: bool,
}

/// A write whose data somebody else moves. Its clusters are claimed; what was allocated for it and not published is given
/// back when it is dropped.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    writer: &'a Writer,
    parts: Vec<Part>,
    waiting: VecDeque<Waiting>,
    claim: Option<Claim<'a>>,
    pass: Option<Pass<'a>>,
}

/// Changes of entries of one L2 table that are made when the data is there.
#[derive(Debug)]
struct Waiting {
    changes: Vec<Change>,
    /// Host clusters that were allocated for them.
    new: Range<u64>,
}

impl Writer {
    /// What each part of a range is, and stays for as long as the result lives.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub(crate) fn map_range(&self, at: u64, len: u64) -> Result<Mapped<'_>> {
        let pass = self.gate.enter();
        Ok(Mapped { pieces: self.pieces(at, len)?, _pass: pass })
    }

    /// Finds or makes places for `len` bytes from `at` on. `None` if another request is changing the mapping of
    /// some of the clusters.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub(crate) fn prepare_write(&self, at: u64, len: u64) -> Result<Option<Prepared<'_>>> {
        self.check_range(at, len)?;
        self.prepare()?;
        let end = at.plus(len)?;
        self.bitmaps.set(&(at..end));
        let mut prepared = Prepared {
            writer: self,
            parts: Vec::new(),
            waiting: VecDeque::new(),
            claim: None,
            pass: Some(self.gate.enter()),
        };
        if prepared.all_in_place(at, end)? {
            return Ok(Some(prepared));
        }
        let bits = self.geometry().cluster_bits();
        let clusters = at >> bits..(end.minus(1)? >> bits).plus(1)?;
        let Some(claim) = self.claims.try_take(clusters) else { return Ok(None) };
        prepared.claim = Some(claim);
        // Another request may have allocated some of them meanwhile.
        prepared.parts.clear();
        let mut now = at;
        while now < end {
            now = prepared.add(now, end)?;
        }
        prepared.reserve()?;
        Ok(Some(prepared))
    }
}

impl Prepared<'_> {
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Adds places of the range if all of them are the clusters' own already.
    fn all_in_place(&mut self, at: u64, end: u64) -> Result<bool> {
        let mut now = at;
        while now < end {
            let piece = self.writer.piece(now, end.minus(now)?)?;
            let Kind::Data { host, own: true } = piece.kind else { return Ok(false) };
            self.in_place(Part { at: now, len: piece.len, host, in_place: true })?;
            now = now.plus(piece.len)?;
        }
        Ok(true)
    }

    fn in_place(&mut self, part: Part) -> Result<()> {
        let bits = self.writer.geometry().cluster_bits();
        let last = part.host.0.plus(part.len)?.minus(1)? >> bits;
        self.writer.check_no_metadata(part.host.0 >> bits..last.plus(1)?)?;
        self.add_part(part)
    }

    /// Adds a place, to the last one if it goes on from there.
    fn add_part(&mut self, part: Part) -> Result<()> {
        if let Some(last) = self.parts.last_mut()
            && last.in_place == part.in_place
            && last.host.0.plus(last.len)? == part.host.0
        {
            last.len = last.len.plus(part.len)?;
            return Ok(());
        }
        self.parts.push(part);
        Ok(())
    }

    /// Adds places for the first bytes of a range whose clusters are claimed, and gives the end of what has them.
    fn add(&mut self, at: u64, end: u64) -> Result<u64> {
        let writer = self.writer;
        let geometry = writer.geometry();
        let bits = geometry.cluster_bits();
        let clusters = writer.at_once(at, end.minus(at)?)?;
        let (first, stop) = (clusters.start, end.min(clusters.end << bits));
        let table = first >> geometry.l2_bits();
        if !writer.map().table(table).is_empty() {
            // No flag of a shared one says anything. A new one is not needed before the commit.
            writer.own_table(table)?;
        }
        let (mut old, targets) = writer.targets(clusters, at..stop)?;
        let Some(target) = targets.first() else {
            return Err(Error::internal("a write without clusters"));
        };
        let alike = targets.iter().take_while(|next| *next == target).count() as u64;
        let unallocated = match *target {
            Target::New => Some(stop),
            _ => writer.end_of_unallocated(at, stop.min(first.plus(1)? << bits))?,
        };
        let Some(stop) = unallocated else {
            let piece = writer.piece(at, stop.minus(at)?)?;
            let Kind::Data { host, .. } = piece.kind else {
                return Err(Error::internal("a cluster of data without any"));
            };
            let stop = stop.min(first.plus(1)? << bits).min(at.plus(piece.len)?);
            self.in_place(Part { at, len: stop.minus(at)?, host, in_place: true })?;
            return Ok(stop);
        };
        let (place, new) = match *target {
            Target::InPlace => return Err(Error::internal("a cluster without data that has some")),
            Target::Kept(host) => {
                let cluster = host.0 >> bits;
                writer.check_no_metadata(cluster..cluster.plus(1)?)?;
                (Place { first, host, new: false, zeros: false }, 0..0)
            }
            Target::New => {
                let (hosts, zeros) = writer.with_space(|space| space.allocate_zeros(alike))?;
                let host = HostOffset(hosts.start.times(geometry.cluster_size())?);
                (Place { first, host, new: true, zeros }, hosts)
            }
        };
        // What was prepared of this cluster before is part of what it will be.
        if let Some(before) = self.waiting.back().and_then(|waiting| waiting.changes.last())
            && before.cluster == first
            && let Some(entry) = old.first_mut()
        {
            *entry = before.to;
        }
        let got = new.end.minus(new.start)?.max(1);
        // From here on they are given back if anything fails.
        self.waiting.push_back(Waiting { changes: Vec::new(), new });
        let stop = stop.min(first.plus(got)? << bits);
        let old = old.get(..to_usize(got)).unwrap_or_default();
        let changes = self.fill_around(&(at..stop), place, old)?;
        if let Some(waiting) = self.waiting.back_mut() {
            waiting.changes = changes;
        }
        let host = HostOffset(writer.place_of(place, at)?);
        self.add_part(Part { at, len: stop.minus(at)?, host, in_place: false })?;
        Ok(stop)
    }

    fn fill_around(
        &self,
        range: &Range<u64>,
        place: Place,
        old: &[crate::format::RawL2Entry],
    ) -> Result<Vec<Change>> {
        let writer = self.writer;
        let Around { filled, written } = writer.around(range, place, old)?;
        writer.put_around(range, &written, place)?;
        writer.changes(&filled, place, old)
    }

    /// Makes the file long enough, so that the storage knows how far it reaches whoever writes to it.
    fn reserve(&self) -> Result<()> {
        let data = self.writer.data();
        let ends = self.parts.iter().map(|part| part.host.0.plus(part.len));
        let end = ends.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default();
        if end > data.len() {
            data.set_len(end).map_err(|error| Error::io("could not lengthen the image", error))?;
        }
        Ok(())
    }

    /// Makes the mapping lead to the data.
    ///
    /// # Errors
    /// As [`write_at`](Writer::write_at).
    pub(crate) fn commit(mut self) -> Result<()> {
        let writer = self.writer;
        let bits = writer.geometry().l2_bits();
        while let Some(Waiting { changes, .. }) = self.waiting.front() {
            if let Some(change) = changes.first() {
                writer.own_table(change.cluster >> bits)?;
                writer.publish(changes)?;
            }
            self.waiting.pop_front();
        }
        drop(self);
        if writer.map().is_full() {
            writer.flush()?;
        }
        Ok(())
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        for Waiting { new, .. } in std::mem::take(&mut self.waiting) {
            // Their refcounts are in memory. If that fails all the same, they are leaked.
            let _ = self.writer.give_back(new);
        }
        self.claim = None;
        self.pass = None;
        // Data may have been written where it was before.
        self.writer.changes.fetch_add(1, SeqCst);
    }
}
