//! What stands in for zstd in a build without the feature `zstd`: neither codec can be had.

use std::ops::RangeInclusive;

use super::STRUCTURE;
use crate::{Error, Result};

/// There is none.
#[derive(Debug)]
pub(super) enum Decode {}

impl Decode {
    pub(super) fn new() -> Result<Self> {
        Err(missing())
    }

    pub(super) fn run(&mut self, _: &[u8], _: &mut [u8]) -> Result<()> {
        match *self {}
    }
}

/// No level.
#[expect(clippy::reversed_empty_ranges, reason = "there is none")]
pub(super) fn levels() -> RangeInclusive<i32> {
    1..=0
}

/// There is none.
#[derive(Debug)]
pub(super) enum Encode {}

impl Encode {
    pub(super) fn new(_: Option<i32>) -> Result<Self> {
        Err(missing())
    }

    pub(super) fn run(&mut self, _: &[u8], _: &mut Vec<u8>) -> Result<bool> {
        match *self {}
    }
}

fn missing() -> Error {
    Error::unsupported("clusters are compressed with zstd, which this program was built without")
        .structure(STRUCTURE)
        .hint("build it with the feature `zstd`")
}
