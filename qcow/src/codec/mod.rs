//! Compressed clusters: zlib and zstd, with contexts that are reused, and zero detection.
//!
//! Each worker keeps its own [`Decompressor`] and [`Compressor`]. Input is hostile: output is
//! bounded by one cluster, and so is the work.

mod deflate;
mod zero;
mod zlib;
#[cfg_attr(not(feature = "zstd"), path = "no_zstd.rs")]
mod zstd;

use std::ops::RangeInclusive;

pub use zero::is_zero;

/// The codec of compressed clusters, by the name the header has for it.
pub use crate::format::CompressionType as Codec;
use crate::{Error, Result};

const STRUCTURE: &str = "compressed cluster";

/// Decompresses clusters, one after the other.
///
/// ```
/// use qcow::codec::{Codec, Compressor, Decompressor};
/// let cluster = vec![7; 65536];
/// let mut compressed = Vec::new();
/// assert!(Compressor::new(Codec::Zstd, None)?.compress(&cluster, &mut compressed)?);
/// let mut output = vec![0; 65536];
/// Decompressor::new(Codec::Zstd)?.decompress(&compressed, &mut output)?;
/// assert_eq!(output, cluster);
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug)]
pub struct Decompressor(Decode);

#[derive(Debug)]
enum Decode {
    Zlib(zlib::Decode),
    Zstd(zstd::Decode),
}

impl Decompressor {
    /// A decompressor for images with this compression type.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if the codec gets no memory, [`Unsupported`](crate::ErrorKind::Unsupported)
    /// for zstd in a build without the feature `zstd`.
    pub fn new(codec: Codec) -> Result<Self> {
        Ok(Self(match codec {
            Codec::Zlib => Decode::Zlib(zlib::Decode::new()?),
            Codec::Zstd => Decode::Zstd(zstd::Decode::new()?),
        }))
    }

    /// Decompresses one cluster from the start of `input` and fills `output` with it, which must
    /// be exactly one cluster long. What follows in `input` is ignored (trap 48).
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the data is damaged or does not decompress to
    /// exactly one cluster; the contents of `output` are then unspecified.
    pub fn decompress(&mut self, input: &[u8], output: &mut [u8]) -> Result<()> {
        match &mut self.0 {
            Decode::Zlib(decode) => decode.run(input, output),
            Decode::Zstd(decode) => decode.run(input, output),
        }
    }
}

/// Compresses clusters, one after the other.
#[derive(Debug)]
pub struct Compressor(Encode);

#[derive(Debug)]
enum Encode {
    Zlib(zlib::Encode),
    Zstd(zstd::Encode),
}

impl Compressor {
    /// A compressor for images with this compression type. `level` is one of [`levels`]; left out, it
    /// is 6 for zlib, which takes about as many bytes as zlib's own level 6, and 3 for zstd.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if the codec has no such level,
    /// [`Io`](crate::ErrorKind::Io) if it gets no memory, [`Unsupported`](crate::ErrorKind::Unsupported)
    /// for zstd in a build without the feature `zstd`.
    pub fn new(codec: Codec, level: Option<i32>) -> Result<Self> {
        Ok(Self(match codec {
            Codec::Zlib => Encode::Zlib(zlib::Encode::new(level)?),
            Codec::Zstd => Encode::Zstd(zstd::Encode::new(level)?),
        }))
    }

    /// Compresses `input`, one cluster, into `output`, whose old contents are dropped.
    ///
    /// Returns whether this saved at least one byte. If not, `output` means nothing, and the
    /// cluster is to be stored as it is (trap 56).
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if the codec fails.
    pub fn compress(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<bool> {
        match &mut self.0 {
            Encode::Zlib(encode) => Ok(encode.run(input, output)),
            Encode::Zstd(encode) => encode.run(input, output),
        }
    }
}

/// The levels that this codec has, from the fastest to the smallest output. None for zstd in a build without
/// the feature `zstd`.
///
/// ```
/// use qcow::codec::{Codec, levels};
/// assert_eq!(levels(Codec::Zlib), 1..=9);
/// ```
pub fn levels(codec: Codec) -> RangeInclusive<i32> {
    match codec {
        Codec::Zlib => ZLIB_LEVELS,
        Codec::Zstd => zstd::levels(),
    }
}

const ZLIB_LEVELS: RangeInclusive<i32> = 1..=9;

fn corrupt(message: impl Into<String>) -> Error {
    Error::corrupt(message).structure(STRUCTURE)
}

fn check_level(level: i32, levels: RangeInclusive<i32>) -> Result<i32> {
    if !levels.contains(&level) {
        return Err(Error::usage(format!(
            "compression level is {level}, expected {} to {}",
            levels.start(),
            levels.end()
        )));
    }
    Ok(level)
}

#[cfg(test)]
mod tests;
