//! zstd clusters: frames, one after the other, until the cluster is full.

use std::io;
use std::ops::RangeInclusive;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{compress_bound, find_frame_compressed_size, get_error_name};

use super::{STRUCTURE, check_level, corrupt};
use crate::{Error, Result};

/// The decoder's default limit.
const LARGEST_WINDOW: u64 = (1 << 27) + 1;

/// Decompresses clusters.
///
/// Frame by frame into the place where the data belongs, so that no frame can ask for a window
/// of its own in memory, whatever its header says.
pub(super) struct Decode(Decompressor<'static>);

impl Decode {
    pub(super) fn new() -> Result<Self> {
        Decompressor::new().map(Self).map_err(|error| failed("could not set up zstd", error))
    }

    pub(super) fn run(&mut self, mut input: &[u8], mut output: &mut [u8]) -> Result<()> {
        // There may be several frames, some of them empty or skippable (trap 50). The one that
        // fills the cluster must end with it (trap 51).
        while !output.is_empty() {
            if input.is_empty() {
                return Err(corrupt(format!(
                    "the zstd frames end {} bytes before the cluster does",
                    output.len()
                )));
            }
            let len = find_frame_compressed_size(input).map_err(|code| {
                corrupt(format!("found no whole zstd frame: {}", get_error_name(code)))
            })?;
            check_window(input)?;
            let (frame, rest) = input.split_at_checked(len).unwrap_or((input, &[]));
            let filled = self.0.decompress_to_buffer(frame, output).map_err(|error| {
                corrupt(format!("the zstd frame is damaged or too long: {error}"))
            })?;
            input = rest;
            output = output.get_mut(filled..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Refuses frames that claim to need more history than QEMU's decoder will hold.
///
/// Format: RFC 8878, 3.1.1.1: after the magic a descriptor, and unless its bit 5 says that the
/// frame is one segment, a byte whose upper five bits are the window's exponent less ten.
fn check_window(frame: &[u8]) -> Result<()> {
    let &[0x28, 0xb5, 0x2f, 0xfd, descriptor, window, ..] = frame else { return Ok(()) };
    let exponent = u32::from(window >> 3).saturating_add(10);
    let mantissa = u64::from(window & 7);
    let base = 1u64.checked_shl(exponent).unwrap_or(u64::MAX);
    let size = base.saturating_add((base >> 3).saturating_mul(mantissa));
    if descriptor & 0x20 == 0 && size > LARGEST_WINDOW {
        return Err(corrupt(format!(
            "the zstd frame asks for a window of {size} bytes, expected at most {LARGEST_WINDOW}"
        )));
    }
    Ok(())
}

/// libzstd's levels; those below zero are faster than 1.
pub(super) fn levels() -> RangeInclusive<i32> {
    zstd::compression_level_range()
}

/// Compresses clusters, each into one frame.
pub(super) struct Encode(Compressor<'static>);

impl Encode {
    pub(super) fn new(level: Option<i32>) -> Result<Self> {
        let level = check_level(level.unwrap_or(zstd::DEFAULT_COMPRESSION_LEVEL), levels())?;
        Compressor::new(level).map(Self).map_err(|error| failed("could not set up zstd", error))
    }

    pub(super) fn run(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<bool> {
        output.clear();
        output.resize(compress_bound(input.len()), 0);
        let len = self
            .0
            .compress_to_buffer(input, output.as_mut_slice())
            .map_err(|error| failed("could not compress with zstd", error))?;
        output.truncate(len);
        Ok(len < input.len())
    }
}

fn failed(what: &str, error: io::Error) -> Error {
    Error::io(what, error).structure(STRUCTURE)
}

impl std::fmt::Debug for Decode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decode(zstd)")
    }
}

impl std::fmt::Debug for Encode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encode(zstd)")
    }
}
