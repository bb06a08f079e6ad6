//! Decodes compressed clusters: codec contexts, buffers, and the cluster that was decoded last.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::Layer;
use crate::codec::Decompressor;
use crate::format::{CompressedSpan, CompressionType};
use crate::io::read_padded;
use crate::{Error, Result};

/// Decoders that a [`Pool`] keeps. Each holds at most one cluster (2 MiB), the compressed bytes of one,
/// and two codec contexts.
const KEPT: usize = 4;

/// Which compressed cluster: the depth of its layer, and where it lies there.
pub(crate) type Place = (usize, CompressedSpan);

/// What one thread needs to read compressed clusters. Takes no memory before it is used.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    zlib: Option<Decompressor>,
    zstd: Option<Decompressor>,
    /// Compressed bytes, of which layer, and from which offset on.
    input: Vec<u8>,
    input_from: Option<(usize, u64)>,
    /// The last decoded cluster, and which one it is.
    decoded: Vec<u8>,
    decoded_from: Option<Place>,
}

impl Decoder {
    /// Reads the bytes `host` of the layer's file ahead: clusters in it are then decoded from memory. A
    /// failure is left to those clusters, which are then read one by one: the message will name the
    /// right one.
    pub(crate) fn read_ahead(&mut self, layer: &Layer, depth: usize, host: Range<u64>) {
        self.input_from = None;
        let Ok(len) = in_memory(host.end.saturating_sub(host.start)) else { return };
        self.input.resize(len, 0);
        if read_padded(&**layer.storage(), &mut self.input, host.start).is_ok() {
            self.input_from = Some((depth, host.start));
        }
    }

    /// Where in `input` the cluster is, if it is there.
    fn place_in_input(&self, (depth, span): Place) -> Option<Range<usize>> {
        let (_, start) = self.input_from.filter(|(of, _)| *of == depth)?;
        let from = usize::try_from(span.host.0.checked_sub(start)?).ok()?;
        let to = from.checked_add(usize::try_from(span.len).ok()?)?;
        (to <= self.input.len()).then_some(from..to)
    }

    /// Fills `buf` with the bytes of the cluster at `place`, which is one of `layer`'s, from guest offset
    /// `guest` on.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the cluster is damaged, [`Io`](crate::ErrorKind::Io),
    /// [`Usage`](crate::ErrorKind::Usage) if `buf` passes the cluster's end.
    pub(crate) fn read(
        &mut self,
        layer: &Layer,
        place: Place,
        guest: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let Some(image) = layer.image() else {
            return Err(Error::internal("raw layers have no compressed clusters"));
        };
        let geometry = image.geometry();
        if self.decoded_from != Some(place) {
            let kind = image.header().compression_type;
            // A cluster that is wanted whole is decoded to where it is wanted.
            if buf.len() as u64 == geometry.cluster_size() {
                return self.decode(layer, kind, place, buf);
            }
            self.decoded_from = None;
            let mut decoded = std::mem::take(&mut self.decoded);
            decoded.resize(in_memory(geometry.cluster_size())?, 0);
            let done = self.decode(layer, kind, place, &mut decoded);
            self.decoded = decoded;
            done?;
            self.decoded_from = Some(place);
        }
        let from = in_memory(geometry.offset_in_cluster(guest))?;
        let part = self
            .decoded
            .get(from..from.saturating_add(buf.len()))
            .ok_or_else(|| Error::internal("an extent reaches past its compressed cluster"))?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn decode(
        &mut self,
        layer: &Layer,
        kind: CompressionType,
        place: Place,
        output: &mut [u8],
    ) -> Result<()> {
        let (_, span) = place;
        let input = match self.place_in_input(place) {
            Some(input) => input,
            None => {
                self.input_from = None;
                self.input.resize(in_memory(span.len)?, 0);
                // The span is an upper bound that may run past the end of the file (traps 44, 45).
                read_padded(&**layer.storage(), &mut self.input, span.host.0)?;
                0..self.input.len()
            }
        };
        let slot = match kind {
            CompressionType::Zlib => &mut self.zlib,
            CompressionType::Zstd => &mut self.zstd,
        };
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new(kind)?),
        };
        let input = self.input.get(input).unwrap_or_default();
        decompressor
            .decompress(input, output)
            .map_err(|error| error.structure("compressed cluster").host_offset(span.host))
    }
}

/// Decoders for threads that have none of their own.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Decoder>>);

impl Pool {
    /// Takes a decoder: the one that decoded the cluster at `place` last, if there is one.
    pub(crate) fn take(&self, place: Place) -> Decoder {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.iter().position(|decoder| decoder.decoded_from == Some(place)) {
            Some(index) => kept.swap_remove(index),
            None if kept.len() < KEPT => Decoder::default(),
            // The others' clusters may be wanted again sooner.
            None => kept.remove(0),
        }
    }

    /// Gives a decoder back.
    pub(crate) fn give(&self, decoder: Decoder) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(decoder);
        }
    }
}

fn in_memory(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::limit(format!("{bytes} bytes do not fit in memory")))
}
