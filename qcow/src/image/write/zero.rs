//! Zeroing and discarding, by entries where that is possible.

mod data;

use std::ops::Range;

use super::fill::Change;
use super::{Below, PieceKind, Writer};
use crate::exact::{Exact, to_usize};
use crate::format::{HostOffset, L2Entry, RawL2Entry, Version};
use crate::io::Zeroes;
use crate::{Error, Result};

/// Entries that are changed at once.
const AT_ONCE: u64 = 256;
/// Clusters of a long request that are done at once: half a MiB of entries.
const PIECE: u64 = 1 << 16;

impl Writer {
    /// Makes `len` bytes from `at` on read as zeros.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub(crate) fn write_zeroes(&self, at: u64, len: u64, how: Zeroes) -> Result<()> {
        self.check_range(at, len)?;
        self.in_pieces(at..at.plus(len)?, |piece| {
            self.changing(piece.start, piece.end.minus(piece.start)?, || {
                self.zero(piece.start, piece.end, how, self.explicit_zeroes)
            })
        })
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
        self.in_pieces(start..end, |piece| {
            self.changing(piece.start, piece.end.minus(piece.start)?, || {
                self.zero(piece.start, piece.end, Zeroes::Unmap, false)
            })
        })
    }

    /// Calls `each` with parts of a range, one after the other, each of which is a request of its own: what a request
    /// keeps in memory until it has ended is bounded, and others get their turn (W-16).
    pub(super) fn in_pieces(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let most = PIECE << self.geometry().cluster_bits();
        let mut at = range.start;
        // A request for nothing is one too.
        loop {
            let end = (at & !most.wrapping_sub(1)).checked_add(most);
            let end = end.map_or(range.end, |end| end.min(range.end));
            each(at..end)?;
            if end == range.end {
                return Ok(());
            }
            at = end;
        }
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
        if how == Zeroes::Allocate {
            // Of what reads as zeros it is not known here whether it has a place.
            let (first, last) = self.by_entries(at, end);
            let own = |kind: &PieceKind| matches!(kind, PieceKind::Data { own: true, .. });
            return Ok(self.zeroes_by_entry(how)
                && (first, last) == (at, end)
                && all(at, end, own)?);
        }
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
            return self.write_zeros(at, end, how);
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

    /// Makes whole subclusters of one L2 table zero by their entries; a range that ends with the disk ends
    /// with a whole one too.
    fn zero_entries(&self, range: Range<u64>, how: Zeroes, explicit: bool) -> Result<()> {
        let bits = self.geometry().cluster_bits();
        let clusters = range.start >> bits..(range.end.minus(1)? >> bits).plus(1)?;
        let claim = self.claims.take(clusters);
        let by_data = self.zero_claimed(range, how, explicit)?;
        drop(claim);
        by_data.into_iter().try_for_each(|range| self.write_zeros(range.start, range.end, how))
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
        let mut without_place = Vec::new();
        let mut by_data = Vec::new();
        for cluster in clusters.clone() {
            let guest = cluster << bits;
            let within =
                range.start.max(guest)..range.end.min(guest.plus(geometry.cluster_size())?);
            let touched = self.touched(guest, within.clone());
            let whole =
                !geometry.extended_l2() || touched == u32::MAX || self.ends_disk(guest, touched);
            let from = self.entry(cluster)?;
            if how == Zeroes::Allocate && !has_place(from) {
                // Of what it shares with others, parts would have to be copied.
                match whole || from.allocated_subclusters() == 0 && !from.is_compressed() {
                    true => without_place.push((cluster, from, touched)),
                    false => by_data.push(within),
                }
                continue;
            }
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
        if !changes.is_empty() || !without_place.is_empty() {
            self.own_table(clusters.start >> geometry.l2_bits())?;
        }
        if !changes.is_empty() {
            self.publish(&changes)?;
        }
        self.give_places(&without_place)?;
        Ok(by_data)
    }

    /// Gives clusters that are claimed places that are kept for them, and has their `touched` subclusters zero.
    fn give_places(&self, clusters: &[(u64, RawL2Entry, u32)]) -> Result<()> {
        let size = self.geometry().cluster_size();
        let mut rest = clusters;
        while !rest.is_empty() {
            let hosts = self.with_space(|space| space.allocate(rest.len() as u64))?;
            let len = hosts.end.minus(hosts.start)?;
            let (now, later) = rest.split_at_checked(to_usize(len)).unwrap_or((rest, &[]));
            let place = hosts.start.times(size)?;
            let reserved = self.storage.write_zeroes(place, len.times(size)?, Zeroes::Allocate);
            let reserved = reserved.map_err(|error| Error::io("could not reserve space", error));
            let given = reserved.and_then(|()| {
                let places = hosts.clone().zip(now);
                let changes = places.map(|(host, (cluster, from, touched))| {
                    let host = HostOffset(host.times(size)?);
                    let (word, _) = L2Entry::Data { host, copied: true }.encode(&self.rules)?;
                    let to = match self.geometry().extended_l2() {
                        false => RawL2Entry { word: word | RawL2Entry::ZEROS.word, bitmap: 0 },
                        true => {
                            let zero = from.zero_subclusters() | u64::from(*touched);
                            RawL2Entry { word, bitmap: zero << 32 }
                        }
                    };
                    Ok(Change { cluster: *cluster, from: *from, to, drops: true })
                });
                self.publish(&changes.collect::<Result<Vec<_>>>()?)
            });
            if given.is_err() {
                self.give_back(hosts)?;
            }
            given?;
            rest = later;
        }
        Ok(())
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
        let keep = has_place(from) && how != Zeroes::Unmap;
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
}

/// Whether the entry has a place that nothing else uses.
fn has_place(entry: RawL2Entry) -> bool {
    entry.is_copied() && !entry.is_compressed() && entry.offset().0 != 0
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
