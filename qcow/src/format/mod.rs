//! The bytes on disk: every structure of QCOW2 versions 2 and 3, read and written.
//!
//! Pure: slices in, values out, and back. No I/O, no allocation beyond what a structure holds.

mod geometry;

pub use geometry::*;
/// Version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 2
    V2,
    /// 3
    V3,
}
/// Compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompressionType {
    /// zlib
    Zlib,
    /// zstd
    Zstd,
}
