//! Reads guest bytes through the chain. One reader per thread: it holds the codec contexts and
//! the last decoded cluster; the chain itself is shared.

use std::ops::Range;

use super::{Damage, Extent, ExtentKind};
use crate::chain::{Chain, Layer};
use crate::codec::Decompressor;
use crate::format::{CompressedSpan, CompressionType, GuestOffset};
use crate::image::{is_damage, tolerate};
use crate::io::read_padded;
use crate::{Error, Result};

/// Compressed clusters that lie near each other are read at once, up to this many bytes.
const AT_ONCE: u64 = 1 << 20;
/// Where data cannot be read at once, it is read in pieces of this many bytes: most drives have sectors
/// of this size, and the page cache reads no less.
const PAGE: u64 = 4096;
/// Two clusters are near if no more than this lies between them: as much as is read in the time that
/// another call takes.
const NEAR: u64 = 32 << 10;

/// Reads what the guest would read.
///
/// ```no_run
/// # use std::path::Path;
/// # use qcow::chain::{Chain, OpenOptions};
/// use qcow::format::GuestOffset;
/// let chain = Chain::open(Path::new("overlay.qcow2"), &OpenOptions::default())?;
/// let mut boot_sector = [0; 512];
/// chain.reader().read_at(&mut boot_sector, GuestOffset(0))?;
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug)]
pub struct Reader<'a> {
    chain: &'a Chain,
    zlib: Option<Decompressor>,
    zstd: Option<Decompressor>,
    /// Compressed bytes, of which layer, and from which offset on.
    input: Vec<u8>,
    input_from: Option<(usize, u64)>,
    /// The last decoded cluster, and which one it is.
    decoded: Vec<u8>,
    decoded_from: Option<(usize, CompressedSpan)>,
    /// What could not be read; `None` makes that an error.
    damage: Option<Vec<Damage>>,
}

impl Chain {
    /// A reader of the guest's disk. Make one per thread.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            chain: self,
            zlib: None,
            zstd: None,
            input: Vec::new(),
            input_from: None,
            decoded: Vec::new(),
            decoded_from: None,
            damage: None,
        }
    }
}

impl Reader<'_> {
    /// Fills `buf` with the guest's bytes from `offset` on.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if the range passes the end of the disk, otherwise what
    /// mapping and reading raise.
    pub fn read_at(&mut self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        let size = self.chain.virtual_size();
        let len = buf.len() as u64;
        if offset.0.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::usage(format!(
                "{len} bytes at {offset} pass the end of the disk of {size} bytes"
            )));
        }
        let mut rest = buf;
        for extent in self.chain.extents_in(offset, len) {
            let extent = extent?;
            let (now, later) = rest.split_at_mut(usize::try_from(extent.len).unwrap_or(0));
            self.read_extent(&extent, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Fills `buf`, which is as long as `extent`, with the extent's bytes.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn read_extent(&mut self, extent: &Extent, buf: &mut [u8]) -> Result<()> {
        let Some(layer) = self.chain.layers().get(extent.depth) else {
            return Err(Error::usage(format!("the chain has no layer {}", extent.depth)));
        };
        match extent.kind {
            ExtentKind::Zero { .. } | ExtentKind::Unallocated => {
                buf.fill(0);
                Ok(())
            }
            ExtentKind::Data { host } => read_padded(layer.data(), buf, host.0),
            ExtentKind::Compressed { span } => self.read_compressed(layer, extent, span, buf),
        }
        .map_err(|error| error.guest_offset(extent.guest).file(layer.path()))
    }

    /// Fills `buf`, whose first byte is that of `guest`, with the bytes of `extents`, all of which lie
    /// within it. Compressed clusters are taken in the order in which they lie in their files, so
    /// that many come with one read.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub(crate) fn read_extents(
        &mut self,
        guest: u64,
        extents: &[Extent],
        buf: &mut [u8],
    ) -> Result<()> {
        let mut compressed = Vec::new();
        for extent in extents {
            match extent.kind {
                ExtentKind::Compressed { span } => compressed.push((span, extent)),
                _ => self.read_or_blank(extent, part(extent, guest, buf)?)?,
            }
        }
        compressed.sort_unstable_by_key(|(span, extent)| (extent.depth, span.host, extent.guest));
        let mut rest = compressed.as_slice();
        while let Some(((span, first), others)) = rest.split_first() {
            let host = joined(*span, others.iter().take_while(|(_, e)| e.depth == first.depth));
            let inside = |(span, extent): &&(CompressedSpan, &Extent)| {
                extent.depth == first.depth && span.host.0.saturating_add(span.len) <= host.end
            };
            let count = others.iter().take_while(inside).count().saturating_add(1);
            let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            if now.len() > 1 {
                self.read_ahead(first.depth, host);
            }
            for (_, extent) in now {
                self.read_or_blank(extent, part(extent, guest, buf)?)?;
            }
            rest = later;
        }
        Ok(())
    }

    /// From now on [`read_extents`](Self::read_extents) goes on past damage: what cannot be read is
    /// zeros, and is listed.
    pub(crate) fn tolerate(&mut self) {
        self.damage.get_or_insert_default();
    }

    /// What was passed over since this was last asked, in ascending order.
    pub(crate) fn take_damage(&mut self) -> Vec<Damage> {
        let mut damage = self.damage.as_mut().map(std::mem::take).unwrap_or_default();
        damage.sort_by_key(|damage| damage.guest_offset);
        damage
    }

    /// As [`read_extent`](Self::read_extent); damage is passed over if that is wanted.
    fn read_or_blank(&mut self, extent: &Extent, buf: &mut [u8]) -> Result<()> {
        match self.read_extent(extent, buf) {
            Err(error) if self.damage.is_some() && is_damage(&error) => {
                self.blank_damage(extent, buf, error)
            }
            result => result,
        }
    }

    /// Reads what can be read of an extent, and leaves the rest zeros. A compressed cluster is whole or
    /// nothing; of data, each page is tried.
    fn blank_damage(&mut self, extent: &Extent, buf: &mut [u8], error: Error) -> Result<()> {
        buf.fill(0);
        let Some(layer) = self.chain.layers().get(extent.depth) else { return Err(error) };
        let mut list = Vec::new();
        let mut faults = Some(&mut list);
        if let ExtentKind::Data { host } = extent.kind {
            let mut rest = buf;
            let mut at: u64 = 0;
            while !rest.is_empty() {
                let from = host.0.saturating_add(at);
                let to_border = PAGE.saturating_sub(from & PAGE.wrapping_sub(1));
                let len = to_border.min(rest.len() as u64);
                let (piece, later) = rest.split_at_mut(usize::try_from(len).unwrap_or_default());
                if let Err(error) = read_padded(layer.data(), piece, from) {
                    piece.fill(0);
                    let guest = extent.guest.0.saturating_add(at);
                    let error = error.structure("data cluster").file(layer.path());
                    tolerate(&mut faults, guest..guest.saturating_add(len), error)?;
                }
                at = at.saturating_add(len);
                rest = later;
            }
        } else {
            tolerate(&mut faults, extent.guest.0..extent.end(), error)?;
        }
        if let Some(damage) = &mut self.damage {
            damage.extend(list.into_iter().map(|fault| Damage::new(fault, extent.depth, layer)));
        }
        Ok(())
    }

    /// Reads the layer's bytes `host`, of which clusters are then decoded. A failure is left to those
    /// clusters, which are then read one by one: the message will name the right one.
    fn read_ahead(&mut self, depth: usize, host: Range<u64>) {
        let Some(layer) = self.chain.layers().get(depth) else { return };
        self.input_from = None;
        let Ok(len) = in_memory(host.end.saturating_sub(host.start)) else { return };
        self.input.resize(len, 0);
        if read_padded(layer.file(), &mut self.input, host.start).is_ok() {
            self.input_from = Some((depth, host.start));
        }
    }

    /// Where in `input` the span is, if it is there.
    fn place_in_input(&self, depth: usize, span: CompressedSpan) -> Option<Range<usize>> {
        let (_, start) = self.input_from.filter(|(of, _)| *of == depth)?;
        let from = usize::try_from(span.host.0.checked_sub(start)?).ok()?;
        let to = from.checked_add(usize::try_from(span.len).ok()?)?;
        (to <= self.input.len()).then_some(from..to)
    }

    fn read_compressed(
        &mut self,
        layer: &Layer,
        extent: &Extent,
        span: CompressedSpan,
        buf: &mut [u8],
    ) -> Result<()> {
        let Some(image) = layer.image() else {
            return Err(Error::usage("raw layers have no compressed clusters"));
        };
        let geometry = image.geometry();
        if self.decoded_from != Some((extent.depth, span)) {
            let place = match self.place_in_input(extent.depth, span) {
                Some(place) => place,
                None => {
                    self.input_from = None;
                    self.input.resize(in_memory(span.len)?, 0);
                    // The span is an upper bound that may run past the end of the file (traps 44,
                    // 45).
                    read_padded(layer.file(), &mut self.input, span.host.0)?;
                    0..self.input.len()
                }
            };
            let kind = image.header().compression_type;
            let slot = match kind {
                CompressionType::Zlib => &mut self.zlib,
                CompressionType::Zstd => &mut self.zstd,
            };
            let decompressor = match slot {
                Some(decompressor) => decompressor,
                None => slot.insert(Decompressor::new(kind)?),
            };
            // A cluster that is wanted whole is decoded to where it is wanted.
            let whole = buf.len() as u64 == geometry.cluster_size();
            let output = if whole {
                &mut *buf
            } else {
                self.decoded_from = None;
                self.decoded.resize(in_memory(geometry.cluster_size())?, 0);
                &mut self.decoded
            };
            let input = self.input.get(place).unwrap_or_default();
            decompressor
                .decompress(input, output)
                .map_err(|error| error.structure("compressed cluster").host_offset(span.host))?;
            if whole {
                return Ok(());
            }
            self.decoded_from = Some((extent.depth, span));
        }
        let from = in_memory(geometry.offset_in_cluster(extent.guest.0))?;
        let part = self
            .decoded
            .get(from..from.saturating_add(buf.len()))
            .ok_or_else(|| Error::usage("an extent reaches past its compressed cluster"))?;
        buf.copy_from_slice(part);
        Ok(())
    }
}

/// The bytes to read at once for `first` and those of `others`, which lie behind it in this order,
/// that are near.
fn joined<'a>(
    first: CompressedSpan,
    others: impl Iterator<Item = &'a (CompressedSpan, &'a Extent)>,
) -> Range<u64> {
    let start = first.host.0;
    let mut end = start.saturating_add(first.len);
    for (span, _) in others {
        let next = end.max(span.host.0.saturating_add(span.len));
        if span.host.0 > end.saturating_add(NEAR) || next.saturating_sub(start) > AT_ONCE {
            break;
        }
        end = next;
    }
    start..end
}

/// The place of an extent's bytes in `buf`, which starts at `guest`.
fn part<'b>(extent: &Extent, guest: u64, buf: &'b mut [u8]) -> Result<&'b mut [u8]> {
    let from = usize::try_from(extent.guest.0.saturating_sub(guest)).unwrap_or(usize::MAX);
    let to = from.saturating_add(usize::try_from(extent.len).unwrap_or(usize::MAX));
    buf.get_mut(from..to).ok_or_else(|| Error::usage("an extent reaches out of its work item"))
}

fn in_memory(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::limit(format!("{bytes} bytes do not fit in memory")))
}
