//! Reads guest bytes through the chain.

use std::ops::Range;

use super::{Damage, Extent, ExtentKind, resolve};
use crate::chain::{Chain, Decoder, Layer};
use crate::format::{CompressedSpan, GuestOffset};
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

/// Reads what the guest would read, for one thread: it keeps codec contexts and the cluster that it
/// decoded last. It owns its chain, which is shared with all clones of it.
///
/// ```no_run
/// # use std::path::Path;
/// # use qcow::chain::{Chain, OpenOptions};
/// use qcow::format::GuestOffset;
/// let chain = Chain::open(Path::new("overlay.qcow2"), &OpenOptions::default())?;
/// let mut reader = chain.reader();
/// let thread = std::thread::spawn(move || {
///     let mut boot_sector = [0; 512];
///     reader.read_at(&mut boot_sector, GuestOffset(0)).map(|()| boot_sector)
/// });
/// # let _ = thread;
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug)]
pub struct Reader {
    chain: Chain,
    decoder: Decoder,
    /// What could not be read; `None` makes that an error.
    damage: Option<Vec<Damage>>,
}

impl Chain {
    /// A reader of the guest's disk. Make one per thread.
    pub fn reader(&self) -> Reader {
        Reader { chain: self.clone(), decoder: Decoder::default(), damage: None }
    }

    /// Fills `buf` with the guest's bytes from `offset` on. Any number of threads may do so at once.
    ///
    /// L1 and L2 entries come from a cache that all clones of the chain share
    /// ([`TABLE_CACHE_BYTES`](crate::chain::TABLE_CACHE_BYTES)), so that a read of allocated data costs
    /// one system call once its tables are known. Where the chain was opened with
    /// [`force_share`](crate::chain::OpenOptions::force_share) nothing is cached, since another process
    /// may be changing the tables.
    ///
    /// A thread that reads compressed clusters piece by piece is better off with a [`Reader`] of its
    /// own, which keeps the cluster that it decoded last.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("disk.qcow2");
    /// # use qcow::chain::{Chain, OpenOptions};
    /// # use qcow::ops::create::{CreateOptions, create};
    /// use qcow::format::GuestOffset;
    /// create(&path, &CreateOptions::default().size(1 << 30))?;
    /// let chain = Chain::open(&path, &OpenOptions::default())?;
    /// let mut buf = [1; 4096];
    /// chain.read_at(&mut buf, GuestOffset(512 << 20))?;
    /// assert_eq!(buf, [0; 4096]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if the range passes the end of the disk, otherwise what
    /// mapping and reading raise.
    pub fn read_at(&self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        read(self, None, buf, offset)
    }
}

impl Reader {
    /// The chain that is read.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Fills `buf` with the guest's bytes from `offset` on; tables are cached as for
    /// [`Chain::read_at`].
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if the range passes the end of the disk, otherwise what
    /// mapping and reading raise.
    pub fn read_at(&mut self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        read(&self.chain, Some(&mut self.decoder), buf, offset)
    }

    /// Fills `buf`, which must be as long as `extent`, with the extent's bytes. For a part of an extent
    /// see [`Extent::slice`].
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if `buf` is longer or shorter than the extent, or if the extent
    /// is not one of this chain or its clones; otherwise as [`read_at`](Self::read_at).
    pub fn read_extent(&mut self, extent: &Extent, buf: &mut [u8]) -> Result<()> {
        if extent.chain != self.chain.id() {
            return Err(Error::usage("the extent is one of another chain")
                .guest_offset(extent.guest)
                .hint("read it with a reader of the chain that gave the extent"));
        }
        read_extent(&self.chain, Some(&mut self.decoder), extent, buf)
    }

    /// Fills `buf`, whose first byte is that of `guest`, with the bytes of `extents`, all of which lie
    /// within it. Compressed clusters are taken in the order in which they lie in their files, so
    /// that many come with one read.
    ///
    /// # Errors
    /// As [`read_extent`](Self::read_extent).
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
            if let (2.., Some(layer)) = (now.len(), self.chain.layers().get(first.depth)) {
                self.decoder.read_ahead(layer, first.depth, host);
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
                if let Err(error) = read_padded(&**layer.data_storage(), piece, from) {
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
}

/// Fills `buf` from `offset`, with `decoder` or else with one of the chain's.
fn read(
    chain: &Chain,
    mut decoder: Option<&mut Decoder>,
    buf: &mut [u8],
    offset: GuestOffset,
) -> Result<()> {
    let (size, len) = (chain.virtual_size(), buf.len() as u64);
    let Some(end) = offset.0.checked_add(len).filter(|end| *end <= size) else {
        return Err(Error::usage(format!(
            "{len} bytes at {offset} pass the end of the disk of {size} bytes"
        )));
    };
    let (mut rest, mut at) = (buf, offset.0);
    while at < end {
        let window = at.saturating_add(resolve::window_len(chain)).min(end);
        for extent in resolve::resolve(chain, at, window, resolve::Purpose::Bytes)? {
            let len = usize::try_from(extent.len).unwrap_or(usize::MAX);
            let (now, later) = rest
                .split_at_mut_checked(len)
                .ok_or_else(|| Error::internal("extents reach past their range"))?;
            read_extent(chain, decoder.as_deref_mut(), &extent, now)?;
            rest = later;
        }
        at = window;
    }
    Ok(())
}

fn read_extent(
    chain: &Chain,
    decoder: Option<&mut Decoder>,
    extent: &Extent,
    buf: &mut [u8],
) -> Result<()> {
    if buf.len() as u64 != extent.len {
        return Err(Error::usage(format!(
            "the buffer has {} bytes, and the extent {}",
            buf.len(),
            extent.len
        ))
        .guest_offset(extent.guest)
        .hint("give a buffer of the extent's length, or read a slice of the extent"));
    }
    let Some(layer) = chain.layers().get(extent.depth) else {
        return Err(Error::usage(format!("the chain has no layer {}", extent.depth)));
    };
    match extent.kind {
        ExtentKind::Zero { .. } | ExtentKind::Unallocated => {
            buf.fill(0);
            Ok(())
        }
        ExtentKind::Data { host } => read_padded(&**layer.data_storage(), buf, host.0),
        ExtentKind::Compressed { span } => match decoder {
            Some(decoder) => decoder.read(layer, (extent.depth, span), extent.guest.0, buf),
            None => read_compressed(chain, layer, extent, span, buf),
        },
    }
    .map_err(|error| error.guest_offset(extent.guest).file(layer.path()))
}

fn read_compressed(
    chain: &Chain,
    layer: &Layer,
    extent: &Extent,
    span: CompressedSpan,
    buf: &mut [u8],
) -> Result<()> {
    let place = (extent.depth, span);
    let mut decoder = chain.decoders().take(place);
    let done = decoder.read(layer, place, extent.guest.0, buf);
    chain.decoders().give(decoder);
    done
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
    buf.get_mut(from..to).ok_or_else(|| Error::internal("an extent reaches out of its work item"))
}
