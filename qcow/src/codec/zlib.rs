//! "zlib" in QCOW2: raw deflate, without a zlib header (trap 46).

use flate2::{Decompress, FlushDecompress};

use super::deflate::Deflate;
use super::{check_level, corrupt};
use crate::{Error, Result};

const DEFAULT_LEVEL: i32 = 6;
/// More memory than a decoder takes.
const NEEDED: usize = 128 << 10;

/// Inflates clusters. Distances up to 32 KiB are accepted.
#[derive(Debug)]
pub(super) struct Decode(Decompress);

impl Decode {
    pub(super) fn new() -> Result<Self> {
        // The library panics where it gets no memory, and there is no other way to ask it.
        Vec::<u8>::new().try_reserve_exact(NEEDED).map_err(|_| {
            Error::io("could not set up zlib", std::io::ErrorKind::OutOfMemory.into())
        })?;
        Ok(Self(Decompress::new(false)))
    }

    pub(super) fn run(&mut self, input: &[u8], output: &mut [u8]) -> Result<()> {
        self.0.reset(false);
        // One call does it all, because it has all the input and room for all the output. It
        // reports a full buffer before the stream's end as `BufError` or `Ok`, and both are
        // success (trap 49).
        self.0
            .decompress(input, output, FlushDecompress::Finish)
            .map_err(|error| corrupt(format!("the deflate stream is damaged: {error}")))?;
        let expected = u64::try_from(output.len()).unwrap_or(u64::MAX);
        if self.0.total_out() < expected {
            return Err(corrupt(format!(
                "the deflate stream ends after {} bytes, expected {expected}",
                self.0.total_out()
            )));
        }
        Ok(())
    }
}

/// Deflates clusters.
///
/// Some decoders keep no more than 4 KiB of history, so the encoder looks no further back (trap 47).
#[derive(Debug)]
pub(super) struct Encode(Box<Deflate>);

impl Encode {
    pub(super) fn new(level: Option<i32>) -> Result<Self> {
        let level = check_level(level.unwrap_or(DEFAULT_LEVEL), super::ZLIB_LEVELS)?;
        Ok(Self(Box::new(Deflate::new(level.unsigned_abs()))))
    }

    pub(super) fn run(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        self.0.run(input, output)
    }
}
