//! Writing the guest's data: in place where the cluster is allocated and not shared, else to a new one.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;

use super::fill::{Around, Change, Place};
use super::lookup::Kind;
use super::slices::Found;
use super::{Writer, put};
use crate::codec::Compressor;
use crate::exact::{Exact, to_usize};
use crate::format::{CompressedSpan, HostOffset, RawL2Entry};
use crate::io::read_padded;
use crate::{Error, Result};

/// A request allocates at most this many bytes at once, so that others get their turn.
const AT_ONCE: u64 = 4 << 20;
/// Up to this length data and what is filled in around it are written as one.
pub(super) const JOINED: u64 = 256 << 10;

/// Where the data of a cluster that is written to goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Where it is: no entry changes.
    InPlace,
    /// To the cluster that is kept for it, and that nothing else uses.
    Kept(HostOffset),
    /// To a new cluster.
    New,
}

impl Writer {
    /// Writes `buf` at guest offset `at`.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) past the end of the disk; otherwise what reading, allocating and
    /// writing raise. Parts of the range may have been written.
    pub(crate) fn write_at(&self, buf: &[u8], at: u64) -> Result<()> {
        self.check_range(at, buf.len() as u64)?;
        self.in_pieces(at..at.plus(buf.len() as u64)?, |piece| {
            let len = piece.end.minus(piece.start)?;
            let from = to_usize(piece.start.minus(at)?);
            let bytes = buf.get(from..from.plus(to_usize(len))?).unwrap_or_default();
            self.changing(piece.start, len, || self.write(bytes, piece.start))
        })
    }

    /// Runs a request that changes something within a range.
    pub(super) fn changing(
        &self,
        at: u64,
        len: u64,
        request: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.prepare()?;
        self.bitmaps.set(&(at..at.plus(len)?));
        let pass = self.gate.enter();
        let result = request();
        drop(pass);
        self.changes.fetch_add(1, SeqCst);
        if result.is_ok() && self.map().is_full() {
            self.flush()?;
        }
        result
    }

    /// As [`write_at`](Self::write_at), within a request.
    pub(super) fn write(&self, buf: &[u8], at: u64) -> Result<()> {
        let (mut rest, mut at) = (buf, at);
        while !rest.is_empty() {
            let len = rest.len() as u64;
            let piece = self.piece(at, len)?;
            let done = match piece.kind {
                Kind::Data { host, own: true } => {
                    let now = rest.get(..to_usize(piece.len)).unwrap_or_default();
                    let bits = self.geometry().cluster_bits();
                    let end = host.0.plus(piece.len)?.minus(1)? >> bits;
                    self.check_no_metadata(host.0 >> bits..end.plus(1)?)?;
                    put(self.data(), now, host.0)?;
                    piece.len
                }
                _ => self.write_new(rest, at)?,
            };
            (rest, at) = (rest.get(to_usize(done)..).unwrap_or_default(), at.plus(done)?);
        }
        Ok(())
    }

    /// Writes the start of `buf` to clusters that are not allocated yet, or shared. Gives back how many
    /// bytes that were: none if another request has allocated them meanwhile.
    fn write_new(&self, buf: &[u8], at: u64) -> Result<u64> {
        let geometry = self.geometry();
        let bits = geometry.cluster_bits();
        let Range { start: first, end } = self.at_once(at, buf.len() as u64)?;
        let _claim = self.claims.take(first..end);
        self.own_table(first >> geometry.l2_bits())?;
        let stop = at.plus(buf.len() as u64)?.min(end << bits);
        let (old, targets) = self.targets(first..end, at..stop)?;
        match targets.first() {
            None | Some(Target::InPlace) => Ok(0),
            Some(Target::Kept(host)) => {
                let Some(stop) = self.end_of_unallocated(at, stop.min(first.plus(1)? << bits))?
                else {
                    return Ok(0);
                };
                self.check_no_metadata(host.0 >> bits..(host.0 >> bits).plus(1)?)?;
                let old = old.get(..1).unwrap_or_default();
                let place = Place { first, host: *host, new: false, zeros: false };
                self.fill(buf, at..stop, place, old)?;
                stop.minus(at)
            }
            Some(Target::New) => {
                let wanted = targets.iter().take_while(|target| **target == Target::New).count();
                let (hosts, zeros) =
                    self.with_space(|space| space.allocate_zeros(wanted as u64))?;
                let got = hosts.end.minus(hosts.start)?;
                let stop = stop.min(first.plus(got)? << bits);
                let host = HostOffset(hosts.start.times(geometry.cluster_size())?);
                let old = old.get(..to_usize(got)).unwrap_or_default();
                let place = Place { first, host, new: true, zeros };
                let done = self.fill(buf, at..stop, place, old);
                if done.is_err() {
                    self.give_back(hosts)?;
                }
                done?;
                stop.minus(at)
            }
        }
    }

    /// The first guest clusters of a range, as many as are allocated at once: of one L2 table.
    pub(super) fn at_once(&self, at: u64, len: u64) -> Result<Range<u64>> {
        let geometry = self.geometry();
        let (bits, l2_bits) = (geometry.cluster_bits(), geometry.l2_bits());
        let first = at >> bits;
        let last = at.plus(len)?.minus(1)? >> bits;
        let end = last.plus(1)?.min((first >> l2_bits).plus(1)? << l2_bits);
        Ok(first..end.min(first.plus((AT_ONCE >> bits).max(1))?))
    }

    /// The entries of guest clusters, and where the bytes of `range` go.
    pub(super) fn targets(
        &self,
        clusters: Range<u64>,
        range: Range<u64>,
    ) -> Result<(Vec<RawL2Entry>, Vec<Target>)> {
        let bits = self.geometry().cluster_bits();
        let (mut old, mut targets) = (Vec::new(), Vec::new());
        for cluster in clusters {
            let entry = self.entry(cluster)?;
            targets.push(self.target(entry, cluster, range.start.max(cluster << bits)..range.end));
            old.push(entry);
        }
        Ok((old, targets))
    }

    /// Where bytes `range` of a guest cluster go, of which only those within it count.
    fn target(&self, entry: RawL2Entry, cluster: u64, range: Range<u64>) -> Target {
        let geometry = self.geometry();
        let guest = cluster << geometry.cluster_bits();
        if entry.is_compressed() {
            return Target::New;
        }
        let kept = entry.is_copied() && entry.offset().0 != 0;
        if !kept && !self.rules.data_file {
            return Target::New;
        }
        let host = if self.rules.data_file { HostOffset(guest) } else { entry.offset() };
        let allocated = match geometry.extended_l2() {
            true => {
                let touched = self.touched(guest, range);
                u64::from(touched) & !entry.allocated_subclusters() == 0
            }
            false => !entry.has_zero_flag(),
        };
        let exists = kept || entry.is_copied();
        if allocated && exists { Target::InPlace } else { Target::Kept(host) }
    }

    /// Where the subclusters from `at` on end, or `stop` if that is less, which are not allocated; `None` if the first
    /// is. Others may be writing to those that are, so that nothing must be filled in there.
    pub(super) fn end_of_unallocated(&self, at: u64, stop: u64) -> Result<Option<u64>> {
        let piece = self.piece(at, stop.minus(at)?)?;
        let end = at.plus(piece.len)?;
        Ok((!matches!(piece.kind, Kind::Data { own: true, .. })).then_some(end))
    }

    /// Writes the start of `buf`, which covers `range`, to host clusters, fills up what of them is not
    /// written, and makes the mapping lead there. `old` are the entries of the guest clusters.
    fn fill(&self, buf: &[u8], range: Range<u64>, place: Place, old: &[RawL2Entry]) -> Result<()> {
        let data = buf.get(..to_usize(range.end.minus(range.start)?)).unwrap_or_default();
        let Around { filled, written } = self.around(&range, place, old)?;
        if written != range && written.end.minus(written.start)? <= JOINED {
            self.put_joined(data, &range, &written, place)?;
        } else {
            self.put_around(&range, &written, place)?;
            put(self.data(), data, self.place_of(place, range.start)?)?;
        }
        self.publish(&self.changes(&filled, place, old)?)
    }

    /// Makes the changes visible, all at once, together with the references that they drop.
    pub(super) fn publish(&self, changes: &[Change]) -> Result<()> {
        for change in changes.iter().filter(|change| change.drops) {
            self.check_no_metadata(self.references(change.from)?)?;
        }
        loop {
            let mut map = self.map_mut();
            let missing = |change: &&Change| !matches!(map.get(change.cluster), Found::Entry(_));
            if let Some(missing) = changes.iter().find(missing) {
                let cluster = missing.cluster;
                drop(map);
                self.load(cluster..cluster.plus(1)?)?;
                continue;
            }
            for change in changes {
                if !map.set(change.cluster, change.to)? {
                    return Err(Error::internal("a slice of an L2 table went away"));
                }
                if change.drops {
                    self.references(change.from)?.for_each(|cluster| map.drop_reference(cluster));
                }
            }
            return Ok(());
        }
    }

    /// The host clusters that an entry refers to.
    fn references(&self, entry: RawL2Entry) -> Result<Range<u64>> {
        let bits = self.geometry().cluster_bits();
        if entry.is_compressed() {
            let span = CompressedSpan::decode(entry.word, bits);
            let last = span.host.0.plus(span.len)?.minus(1)?;
            return Ok(span.host.0 >> bits..(last >> bits).plus(1)?);
        }
        let first = entry.offset().0 >> bits;
        let count = u64::from(!self.rules.data_file && entry.offset().0 != 0);
        Ok(first..first.plus(count)?)
    }

    /// Gives the guest clusters of an L1 entry an L2 table that nothing else uses.
    pub(super) fn own_table(&self, index: u64) -> Result<()> {
        let owned = |entry: crate::format::L1Entry| entry.copied() && !entry.is_empty();
        if owned(self.map().table(index)) {
            return Ok(());
        }
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.map().table(index);
        if owned(old) {
            return Ok(());
        }
        let mut bytes = vec![0; to_usize(self.geometry().cluster_size())];
        if !old.is_empty() {
            // A shared table is never changed, so that what is on disk is what it says.
            read_padded(&*self.storage, &mut bytes, old.offset().0)
                .map_err(|error| error.structure("L2 table"))?;
        }
        let cluster = self.with_space(|space| space.allocate(1))?.start;
        let host = HostOffset(cluster.times(self.geometry().cluster_size())?);
        self.map_mut().set_table(index, host, &bytes)
    }

    /// Takes back clusters that were allocated in vain.
    pub(super) fn give_back(&self, clusters: Range<u64>) -> Result<()> {
        for cluster in clusters {
            self.with_space(|space| space.give_back(cluster))?;
        }
        Ok(())
    }

    /// Compresses and writes one cluster, which starts at `at`; at the end of the disk it may be shorter.
    /// What does not become smaller is written as it is.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if it is no cluster, or the image has a data file; otherwise as
    /// [`write_at`](Self::write_at).
    pub(crate) fn write_compressed(&self, cluster: &[u8], at: u64) -> Result<()> {
        let geometry = self.geometry();
        let whole = geometry.cluster_size().min(self.size.max(at).minus(at)?);
        if !geometry.is_aligned(at) || cluster.len() as u64 != whole || self.rules.data_file {
            let message = match self.rules.data_file {
                true => "an image with an external data file has no compressed clusters",
                false => "compressed data is written in whole clusters",
            };
            return Err(Error::usage(message).guest_offset(at));
        }
        let mut padded = cluster.to_vec();
        padded.resize(to_usize(geometry.cluster_size()), 0);
        let mut output = Vec::new();
        if !Compressor::new(self.compression, None)?.compress(&padded, &mut output)? {
            return self.write_at(cluster, at);
        }
        self.changing(at, whole, || self.store_compressed(&output, at))
    }

    fn store_compressed(&self, bytes: &[u8], at: u64) -> Result<()> {
        let geometry = self.geometry();
        let bits = geometry.cluster_bits();
        let cluster = at >> bits;
        let _claim = self.claims.take(cluster..cluster.plus(1)?);
        self.own_table(cluster >> geometry.l2_bits())?;
        let from = self.entry(cluster)?;
        let len = bytes.len() as u64;
        let host = self.with_space(|space| space.allocate_bytes(len))?;
        // Its place is named by fewer bits than others are.
        let written = CompressedSpan::encode(host, len, bits).and_then(|word| {
            put(&*self.storage, bytes, host.0)?;
            let to = RawL2Entry { word, bitmap: 0 };
            self.publish(&[Change { cluster, from, to, drops: true }])
        });
        if written.is_err() {
            self.with_space(|space| space.give_back(host.0 >> bits))?;
        }
        written
    }
}
