//! Zeroing and discarding, by entries where that is possible.

use std::ops::Range;

use super::store::Change;
use super::{Below, PieceKind, Writer};
use crate::codec::is_zero;
use crate::exact::{Exact, to_usize};
use crate::format::{RawL2Entry, Version};
use crate::io::Zeroes;
use crate::{Error, Result};

/// Zeros are written, where they must be, in pieces of this many bytes.
const ZEROS: u64 = 64 << 10;
/// Entries that are changed at once.
const AT_ONCE: u64 = 256;

impl Writer {
    /// Makes `len` bytes from `at` on read as zeros.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub(crate) fn write_zeroes(&self, at: u64, len: u64, how: Zeroes) -> Result<()> {
        self.check_range(at, len)?;
        self.changing(at, len, || self.zero(at, at.plus(len)?, how, self.explicit_zeroes))
    }

    /// Says that the guest does not need `len` bytes from `at` on any more: whole clusters of them read as
    /// zeros afterwards, the others as before. In an image of version 2 that has a backing file nothing
    /// happens, because no entry can say so.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub(crate) fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.check_range(at, len)?;
        if self.rules.version == Version::V2 && self.below.len() > 0 {
            return Ok(());
        }
        let size = self.geometry().cluster_size();
        let end = at.plus(len)?;
        // The last cluster of the disk may be a part of one.
        let end = if end == self.size { end } else { end & !size.wrapping_sub(1) };
        let start = at.next_multiple_of(size);
        if start >= end {
            return Ok(());
        }
        self.changing(start, end.minus(start)?, || self.zero(start, end, Zeroes::Unmap, false))
    }

    /// Whether [`write_zeroes`](Self::write_zeroes) of this range would write no data.
    ///
    /// # Errors
    /// As for reading.
    pub(crate) fn zeroes_fast(&self, at: u64, len: u64, how: Zeroes) -> Result<bool> {
        self.check_range(at, len)?;
        let end = at.plus(len)?;
        let all = |from: u64, to: u64, fast: fn(&PieceKind) -> bool| {
            let pieces = self.pieces(from, to.minus(from)?)?;
            Ok::<_, Error>(pieces.iter().all(|(at, piece)| {
                fast(&piece.kind) || piece.kind == PieceKind::Below && *at >= self.below.len()
            }))
        };
        if self.rules.data_file {
            return all(at, end, |kind| matches!(kind, PieceKind::Data { .. } | PieceKind::Zero));
        }
        let (first, last) = self.by_entries(at, end);
        let zero = |kind: &PieceKind| *kind == PieceKind::Zero;
        if !self.zeroes_by_entry(how) || !all(at, first, zero)? || !all(last, end, zero)? {
            return Ok(false);
        }
        // A compressed cluster has no parts.
        let cluster = self.geometry().cluster_size();
        let whole = |kind: &PieceKind| !matches!(kind, PieceKind::Compressed(_));
        let (head, tail) = (first.next_multiple_of(cluster), last & !cluster.wrapping_sub(1));
        let tail = if end == self.size { end } else { tail };
        Ok(all(first, head.min(last), whole)? && all(tail.max(first), last, whole)?)
    }

    /// Whether entries can say that a cluster is zero: those of version 2 cannot, over a backing file.
    fn zeroes_by_entry(&self, how: Zeroes) -> bool {
        match self.rules.version {
            Version::V2 => self.below.len() == 0 && how == Zeroes::Unmap,
            Version::V3 => true,
        }
    }

    /// The part of a range that consists of whole subclusters.
    fn by_entries(&self, at: u64, end: u64) -> (u64, u64) {
        let unit = self.geometry().subcluster_size();
        let first = at.next_multiple_of(unit).min(end);
        let last = if end == self.size { end } else { (end & !unit.wrapping_sub(1)).max(first) };
        (first, last)
    }

    /// With `explicit`, what reads as zeros already gets an entry of its own too.
    fn zero(&self, at: u64, end: u64, how: Zeroes, explicit: bool) -> Result<()> {
        if self.rules.data_file {
            return self.zero_data_file(at, end, how);
        }
        let (first, last) = self.by_entries(at, end);
        if !self.zeroes_by_entry(how) {
            return self.write_zeros(at, end);
        }
        // Of a range within one unit `first` and `last` are its end.
        self.zero_edge(at, first, how, explicit)?;
        let bits = self.geometry().cluster_bits();
        let mut now = first;
        while now < last {
            let cluster = now >> bits;
            let stop = cluster
                .plus(AT_ONCE)?
                .min((cluster >> self.geometry().l2_bits()).plus(1)? << self.geometry().l2_bits());
            let stop = last.min(stop << bits);
            self.zero_entries(now..stop, how, explicit)?;
            now = stop;
        }
        self.zero_edge(last, end, how, explicit)
    }

    /// Zeroes a part of one unit. Where `explicit` zeros meet a unit that has no data and else reads as zeros, all
    /// of it becomes zero by its entry.
    fn zero_edge(&self, at: u64, end: u64, how: Zeroes, explicit: bool) -> Result<()> {
        if explicit && at < end && self.zeroes_by_entry(how) {
            let unit = self.geometry().subcluster_size();
            let start = at & !unit.wrapping_sub(1);
            let stop = start.plus(unit)?.min(self.size);
            let cluster = start >> self.geometry().cluster_bits();
            // So that nobody writes into the unit between the look at it and its new entry.
            let _claim = self.claims.take(cluster..cluster.plus(1)?);
            let piece = self.piece(start, stop.minus(start)?)?;
            if matches!(piece.kind, PieceKind::Below | PieceKind::Zero)
                && self.reads_as_zeros(start, at)?
                && self.reads_as_zeros(end, stop)?
            {
                return self.zero_claimed(start..stop, how, explicit).map(drop);
            }
        }
        self.write_zeros(at, end)
    }

    fn reads_as_zeros(&self, at: u64, end: u64) -> Result<bool> {
        let (mut at, mut bytes) = (at, Vec::new());
        while at < end {
            let next = (at | ZEROS.wrapping_sub(1)).plus(1)?.min(end);
            bytes.resize(to_usize(next.minus(at)?), 0);
            self.read(&mut bytes, at)?;
            if !is_zero(&bytes) {
                return Ok(false);
            }
            at = next;
        }
        Ok(true)
    }

    /// Makes whole subclusters of one L2 table zero by their entries; a range that ends with the disk ends
    /// with a whole one too.
    fn zero_entries(&self, range: Range<u64>, how: Zeroes, explicit: bool) -> Result<()> {
        let bits = self.geometry().cluster_bits();
        let clusters = range.start >> bits..(range.end.minus(1)? >> bits).plus(1)?;
        let claim = self.claims.take(clusters);
        let by_data = self.zero_claimed(range, how, explicit)?;
        drop(claim);
        by_data.into_iter().try_for_each(|range| self.write_zeros(range.start, range.end))
    }

    /// As [`zero_entries`](Self::zero_entries), with a claim of the clusters; gives back what no entry can say.
    fn zero_claimed(
        &self,
        range: Range<u64>,
        how: Zeroes,
        explicit: bool,
    ) -> Result<Vec<Range<u64>>> {
        let geometry = self.geometry();
        let bits = geometry.cluster_bits();
        let clusters = range.start >> bits..(range.end.minus(1)? >> bits).plus(1)?;
        let mut changes = Vec::new();
        let mut by_data = Vec::new();
        for cluster in clusters.clone() {
            let guest = cluster << bits;
            let within =
                range.start.max(guest)..range.end.min(guest.plus(geometry.cluster_size())?);
            let touched = self.touched(guest, within.clone());
            let whole =
                !geometry.extended_l2() || touched == u32::MAX || self.ends_disk(guest, touched);
            let from = self.entry(cluster)?;
            if !explicit && from.is_empty() && guest >= self.below.len() {
                continue;
            }
            match self.zeroed(from, touched, whole, how) {
                Some((to, drops)) if to != from => {
                    changes.push(Change { cluster, from, to, drops })
                }
                Some(_) => {}
                // A part of a compressed cluster.
                None => by_data.push(within),
            }
        }
        if !changes.is_empty() {
            self.own_table(clusters.start >> geometry.l2_bits())?;
            self.publish(&changes)?;
        }
        Ok(by_data)
    }

    /// Whether the touched subclusters are all that the disk has of the cluster at `guest`.
    fn ends_disk(&self, guest: u64, touched: u32) -> bool {
        let last_byte = guest | self.geometry().cluster_size().wrapping_sub(1);
        last_byte >= self.size && touched == self.touched(guest, guest..self.size)
    }

    /// The entry with the `touched` subclusters zero, and whether its cluster is left; `None` if no entry
    /// says that.
    fn zeroed(
        &self,
        from: RawL2Entry,
        touched: u32,
        whole: bool,
        how: Zeroes,
    ) -> Option<(RawL2Entry, bool)> {
        let extended = self.geometry().extended_l2();
        let kept = from.is_copied() && !from.is_compressed() && from.offset().0 != 0;
        let keep = kept && how == Zeroes::Keep;
        let all = u64::from(u32::MAX) << 32;
        match (whole, extended) {
            (true, _) if self.rules.version == Version::V2 => Some((RawL2Entry::default(), true)),
            (true, false) if keep => {
                Some((RawL2Entry { word: from.word | RawL2Entry::ZEROS.word, bitmap: 0 }, false))
            }
            (true, false) => Some((RawL2Entry::ZEROS, true)),
            (true, true) if keep => Some((RawL2Entry { word: from.word, bitmap: all }, false)),
            (true, true) => Some((RawL2Entry { word: 0, bitmap: all }, true)),
            (false, _) if from.is_compressed() => None,
            (false, _) => {
                let zero = from.zero_subclusters() | u64::from(touched);
                let allocated = from.allocated_subclusters() & !u64::from(touched);
                Some((RawL2Entry { word: from.word, bitmap: zero << 32 | allocated }, false))
            }
        }
    }

    /// In a data file every cluster has its place; zeros are written there, whatever else is asked for,
    /// because a raw one is also read by itself.
    fn zero_data_file(&self, at: u64, end: u64, how: Zeroes) -> Result<()> {
        let mut at = at;
        while at < end {
            let piece = self.piece(at, end.minus(at)?)?;
            match piece.kind {
                super::lookup::Kind::Data { host, .. } => {
                    self.data()
                        .write_zeroes(host.0, piece.len, how)
                        .map_err(|error| Error::io("could not write zeros", error))?;
                }
                super::lookup::Kind::Zero => {}
                _ => self.write_zeros(at, at.plus(piece.len)?)?,
            }
            at = at.plus(piece.len)?;
        }
        Ok(())
    }

    /// Writes zeros as data, except where it reads as zeros already; explicit ones also where only what is below
    /// does.
    fn write_zeros(&self, at: u64, end: u64) -> Result<()> {
        let mut at = at;
        let mut bytes = Vec::new();
        while at < end {
            let next = (at | ZEROS.wrapping_sub(1)).plus(1)?.min(end);
            bytes.resize(to_usize(next.minus(at)?), 0);
            self.read(&mut bytes, at)?;
            if !is_zero(&bytes) || self.is_left_below(at, next)? {
                bytes.fill(0);
                self.write(&bytes, at)?;
            }
            at = next;
        }
        Ok(())
    }
}

impl Writer {
    /// Whether zeros are to be explicit, and a part of this range is decided by a backing file.
    fn is_left_below(&self, at: u64, end: u64) -> Result<bool> {
        if !self.explicit_zeroes || self.below.len() == 0 {
            return Ok(false);
        }
        let mut at = at;
        while at < end {
            let piece = self.piece(at, end.minus(at)?)?;
            if piece.kind == PieceKind::Below {
                return Ok(true);
            }
            at = at.plus(piece.len)?;
        }
        Ok(false)
    }
}

/// Nothing.
#[derive(Debug)]
pub(crate) struct NoBacking;

impl Below for NoBacking {
    fn read(&self, buf: &mut [u8], _: u64) -> Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn len(&self) -> u64 {
        0
    }
}
