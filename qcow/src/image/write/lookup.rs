//! What the mapping says about a range, and reading by it.

use std::ops::Range;
use std::sync::PoisonError;

use super::slices::Found;
use super::{Decoded, Writer};
use crate::codec::Decompressor;
use crate::exact::{Exact, to_usize};
use crate::format::{CompressedSpan, HostOffset, L2Entry, RawL2Entry};
use crate::image::check_identity;
use crate::io::read_padded;
use crate::{Error, Result};

/// Codec contexts that are kept, each with a cluster.
const DECODERS: usize = 16;

/// The first part of a range, all of which is of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) kind: Kind,
    pub(crate) len: u64,
}

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What is below decides.
    Below,
    Zero,
    /// Bytes at this place; `own` if they may be written to there.
    Data {
        host: HostOffset,
        own: bool,
    },
    Compressed(CompressedSpan),
}

impl Kind {
    /// Whether `next`, `distance` bytes further on, goes on with this.
    fn goes_on(self, next: Self, distance: u64) -> bool {
        match (self, next) {
            (Self::Below, Self::Below) | (Self::Zero, Self::Zero) => true,
            (Self::Data { host, own }, Self::Data { host: next, own: next_own }) => {
                own == next_own && host.0.checked_add(distance) == Some(next.0)
            }
            _ => false,
        }
    }
}

impl Writer {
    /// Fills `buf` with the guest's bytes from `at` on.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) past the end of the disk, otherwise what reading raises.
    pub(crate) fn read_at(&self, buf: &mut [u8], at: u64) -> Result<()> {
        self.check_range(at, buf.len() as u64)?;
        let _pass = self.gate.enter();
        self.read(buf, at)
    }

    /// As [`read_at`](Self::read_at), within a request.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let (mut rest, mut at) = (buf, at);
        while !rest.is_empty() {
            let piece = self.piece(at, rest.len() as u64)?;
            let (now, later) = rest.split_at_mut(to_usize(piece.len));
            match piece.kind {
                Kind::Below => self.below.read(now, at)?,
                Kind::Zero => now.fill(0),
                Kind::Data { host, .. } => read_padded(self.data(), now, host.0)?,
                Kind::Compressed(span) => self.decode(span, at, now)?,
            }
            (rest, at) = (later, at.plus(piece.len)?);
        }
        Ok(())
    }

    /// What each part of a range is.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub(crate) fn pieces(&self, at: u64, len: u64) -> Result<Vec<(u64, Piece)>> {
        self.check_range(at, len)?;
        let _pass = self.gate.enter();
        let (mut pieces, mut now, end) = (Vec::<(u64, Piece)>::new(), at, at.plus(len)?);
        while now < end {
            let piece = self.piece(now, end.minus(now)?)?;
            match pieces.last_mut() {
                Some((_, last)) if last.kind.goes_on(piece.kind, last.len) => {
                    last.len = last.len.plus(piece.len)?;
                }
                _ => pieces.push((now, piece)),
            }
            now = now.plus(piece.len)?;
        }
        Ok(pieces)
    }

    /// The entry of a guest cluster; reads its slice if that is not in memory.
    pub(super) fn entry(&self, cluster: u64) -> Result<RawL2Entry> {
        loop {
            let found = self.map().get(cluster);
            match found {
                Found::Entry(entry) => return Ok(entry),
                Found::NoTable => return Ok(RawL2Entry::default()),
                Found::Missing(_) => self.load(cluster..cluster.plus(1)?)?,
            }
        }
    }

    /// Reads the slices of these guest clusters that are not in memory.
    pub(super) fn load(&self, clusters: Range<u64>) -> Result<()> {
        for cluster in clusters {
            let Found::Missing(missing) = self.map().get(cluster) else { continue };
            let mut bytes = vec![0; missing.len];
            read_padded(&*self.storage, &mut bytes, missing.host)
                .map_err(|error| error.structure("L2 table"))?;
            self.map_mut().loaded(missing, bytes);
        }
        Ok(())
    }

    /// The first piece of `len` bytes from `at` on.
    pub(super) fn piece(&self, at: u64, len: u64) -> Result<Piece> {
        let geometry = self.geometry();
        let first = at >> geometry.cluster_bits();
        let mut piece = self.piece_of(self.entry(first)?, first, geometry.offset_in_cluster(at))?;
        let mut cluster = first.plus(1)?;
        while piece.len < len && geometry.is_aligned(at.plus(piece.len)?) {
            let found = self.map().get(cluster);
            let entry = match found {
                Found::Entry(entry) => entry,
                Found::NoTable => RawL2Entry::default(),
                Found::Missing(_) => break,
            };
            let next = self.piece_of(entry, cluster, 0)?;
            if !piece.kind.goes_on(next.kind, piece.len) {
                break;
            }
            piece.len = piece.len.plus(next.len)?;
            cluster = cluster.plus(1)?;
        }
        piece.len = piece.len.min(len);
        // In a table that a snapshot shares, no flag says anything about the clusters.
        if let Kind::Data { own, .. } = &mut piece.kind {
            let table = first >> geometry.l2_bits();
            *own = *own && (self.rules.data_file || self.map().table(table).copied());
        }
        Ok(piece)
    }

    /// The first piece of a cluster from byte `from` of it on.
    fn piece_of(&self, entry: RawL2Entry, cluster: u64, from: u64) -> Result<Piece> {
        let geometry = self.geometry();
        let guest = cluster.times(geometry.cluster_size())?;
        let decoded = L2Entry::decode(entry.word, entry.bitmap, &self.rules)
            .map_err(|error| error.guest_offset(guest))?;
        if self.rules.data_file {
            check_identity(&decoded, guest)?;
        }
        let own = entry.is_copied() || self.rules.data_file;
        let data = |host: HostOffset| Ok::<_, Error>(Kind::Data { host: host.plus(from)?, own });
        let rest = geometry.cluster_size().minus(from)?;
        let (kind, len) = match decoded {
            L2Entry::Unallocated => (Kind::Below, rest),
            L2Entry::Zero { .. } => (Kind::Zero, rest),
            L2Entry::Data { host, .. } => (data(host)?, rest),
            L2Entry::Compressed(span) => (Kind::Compressed(span), rest),
            L2Entry::Subclusters { host, allocated, zero, .. } => {
                let size = geometry.subcluster_size();
                let state = |at: u64| {
                    let bit = 1u32.checked_shl(u32::try_from(at).unwrap_or(31)).unwrap_or(0);
                    (allocated & bit != 0, zero & bit != 0)
                };
                let first = from >> size.trailing_zeros();
                let mut end = first.plus(1)?;
                while end < 32 && state(end) == state(first) {
                    end = end.plus(1)?;
                }
                let kind = match (state(first), host) {
                    ((true, _), Some(host)) => data(host)?,
                    ((_, true), _) => Kind::Zero,
                    _ => Kind::Below,
                };
                (kind, end.times(size)?.minus(from)?)
            }
        };
        Ok(Piece { kind, len })
    }

    /// Fills `buf` with bytes of a compressed cluster from guest offset `at` on.
    fn decode(&self, span: CompressedSpan, at: u64, buf: &mut [u8]) -> Result<()> {
        let geometry = self.geometry();
        let mut decoded = self.take_decoder(span)?;
        if decoded.span != Some(span) {
            decoded.span = None;
            let mut scratch = self.scratch.take();
            let input = scratch.first(span.len)?;
            read_padded(&*self.storage, input, span.host.0)?;
            decoded.bytes.resize(to_usize(geometry.cluster_size()), 0);
            decoded
                .decompressor
                .decompress(input, &mut decoded.bytes)
                .map_err(|error| error.host_offset(span.host).guest_offset(at))?;
            decoded.span = Some(span);
        }
        let from = to_usize(geometry.offset_in_cluster(at));
        let part = decoded.bytes.get(from..from.plus(buf.len())?);
        buf.copy_from_slice(part.ok_or_else(|| Error::internal("a piece passes its cluster"))?);
        let mut decoders = self.decoders.lock().unwrap_or_else(PoisonError::into_inner);
        decoders.push(decoded);
        Ok(())
    }

    /// A decoder: the one that has this cluster, if there is one.
    fn take_decoder(&self, span: CompressedSpan) -> Result<Decoded> {
        let mut decoders = self.decoders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = decoders.iter().position(|decoded| decoded.span == Some(span)) {
            return Ok(decoders.swap_remove(index));
        }
        if decoders.len() >= DECODERS {
            return Ok(decoders.remove(0));
        }
        drop(decoders);
        let decompressor = Decompressor::new(self.compression)?;
        Ok(Decoded { decompressor, span: None, bytes: Vec::new() })
    }

    /// Forgets decoded clusters that lie in this host cluster: other data may lie there from now on.
    pub(super) fn forget_decoded(&self, cluster: u64) {
        let bits = self.geometry().cluster_bits();
        let mut decoders = self.decoders.lock().unwrap_or_else(PoisonError::into_inner);
        for decoded in decoders.iter_mut() {
            let within = |span: &CompressedSpan| {
                // The length is at least one; what passes 64 bits was never decoded.
                let end = span.host.0.checked_add(span.len);
                let last = end.and_then(|end| end.checked_sub(1));
                last.is_none_or(|last| (span.host.0 >> bits..=last >> bits).contains(&cluster))
            };
            decoded.span = decoded.span.filter(|span| !within(span));
        }
    }
}
