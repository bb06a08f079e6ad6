//! Reads guest bytes through the chain. One reader per thread: it holds the codec contexts and
//! the last decoded cluster; the chain itself is shared.

use super::{Extent, ExtentKind};
use crate::chain::{Chain, Layer};
use crate::codec::Decompressor;
use crate::format::{CompressedSpan, CompressionType, GuestOffset};
use crate::io::read_padded;
use crate::{Error, Result};

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
    /// Compressed bytes of the cluster being decoded.
    input: Vec<u8>,
    /// The last decoded cluster, and which one it is.
    decoded: Vec<u8>,
    decoded_from: Option<(usize, CompressedSpan)>,
}

impl Chain {
    /// A reader of the guest's disk. Make one per thread.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            chain: self,
            zlib: None,
            zstd: None,
            input: Vec::new(),
            decoded: Vec::new(),
            decoded_from: None,
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
            self.decoded_from = None;
            self.decoded.resize(in_memory(geometry.cluster_size())?, 0);
            self.input.resize(in_memory(span.len)?, 0);
            // The span is an upper bound that may run past the end of the file (traps 44, 45).
            read_padded(layer.file(), &mut self.input, span.host.0)?;
            let kind = image.header().compression_type;
            let slot = match kind {
                CompressionType::Zlib => &mut self.zlib,
                CompressionType::Zstd => &mut self.zstd,
            };
            let decompressor = match slot {
                Some(decompressor) => decompressor,
                None => slot.insert(Decompressor::new(kind)?),
            };
            decompressor
                .decompress(&self.input, &mut self.decoded)
                .map_err(|error| error.structure("compressed cluster").host_offset(span.host))?;
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

fn in_memory(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::limit(format!("{bytes} bytes do not fit in memory")))
}
