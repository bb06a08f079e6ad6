//! zstd clusters: frames, one after the other, until the cluster is full.

use std::io;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{compress_bound, find_frame_compressed_size, get_error_name};

use super::{STRUCTURE, check_level, corrupt};
use crate::{Error, Result};

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

/// Compresses clusters, each into one frame.
pub(super) struct Encode(Compressor<'static>);

impl Encode {
    pub(super) fn new(level: Option<i32>) -> Result<Self> {
        let level = check_level(
            level.unwrap_or(zstd::DEFAULT_COMPRESSION_LEVEL),
            zstd::compression_level_range(),
        )?;
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
