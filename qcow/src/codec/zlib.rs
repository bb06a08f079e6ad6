//! "zlib" in QCOW2: raw deflate, without a zlib header (trap 46).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{STRUCTURE, check_level, corrupt};
use crate::{Error, Result};

/// Some decoders keep no more than 4 KiB of history, so writers look no further back (trap 47).
const WRITE_WINDOW_BITS: u8 = 12;
const DEFAULT_LEVEL: i32 = 6;

/// Inflates clusters. Distances up to 32 KiB are accepted.
#[derive(Debug)]
pub(super) struct Decode(Decompress);

impl Decode {
    pub(super) fn new() -> Self {
        Self(Decompress::new(false))
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
#[derive(Debug)]
pub(super) struct Encode(Compress);

impl Encode {
    pub(super) fn new(level: Option<i32>) -> Result<Self> {
        let level = check_level(level.unwrap_or(DEFAULT_LEVEL), 0..=9)?;
        let level = Compression::new(level.unsigned_abs());
        Ok(Self(Compress::new_with_window_bits(level, false, WRITE_WINDOW_BITS)))
    }

    pub(super) fn run(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<bool> {
        self.0.reset();
        // Room for the worst case, though only less than the input is of use (trap 56): a stream
        // that is reset before it could write all it had leaves its encoder in disorder.
        output.clear();
        output.resize(worst_case(input.len()), 0);
        let status = self
            .0
            .compress(input, output, FlushCompress::Finish)
            .map_err(|error| Error::io("could not deflate", error.into()).structure(STRUCTURE))?;
        output.truncate(usize::try_from(self.0.total_out()).unwrap_or(usize::MAX));
        if status != Status::StreamEnd {
            return Err(Error::io("could not deflate", std::io::Error::other("no room"))
                .structure(STRUCTURE));
        }
        Ok(output.len() < input.len())
    }
}

/// More bytes than any `len` bytes deflate to: zlib's own bound for windows of all sizes.
fn worst_case(len: usize) -> usize {
    len.saturating_add(len >> 3).saturating_add(len >> 6).saturating_add(64)
}
