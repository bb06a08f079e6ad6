//! What a new image is to look like: shared by `create` and `flatten`.

use std::path::PathBuf;

use serde::Serialize;

use crate::format::{CompressionType, Version};

/// How much of a new image gets its space at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preallocation {
    /// Nothing beyond what the format needs.
    #[default]
    Off,
    /// All L2 tables, pointing at clusters that are holes in the file (qcow2 only).
    Metadata,
    /// Space reserved in the file system, not written.
    Falloc,
    /// Zeros written everywhere.
    Full,
}

/// The format of a new image and its options.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetOptions {
    /// A QCOW2 image.
    Qcow2(Qcow2Options),
    /// A raw image.
    Raw(RawOptions),
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self::Qcow2(Qcow2Options::default())
    }
}

/// Options of a new raw image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawOptions {
    /// [`Preallocation::Metadata`] is refused.
    pub preallocation: Preallocation,
}

/// Options of a new QCOW2 image; the defaults are QEMU's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Options {
    /// Cluster size in bytes: a power of two, 512 to 2 MiB.
    pub cluster_size: u64,
    /// Version 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: Version,
    /// Width of a refcount: 1, 2, 4, 8, 16, 32 or 64 bits.
    pub refcount_bits: u32,
    /// 16-byte L2 entries with 32 subclusters per cluster.
    pub extended_l2: bool,
    /// Sets the lazy-refcounts compatible bit.
    pub lazy_refcounts: bool,
    /// How much gets its space at once.
    pub preallocation: Preallocation,
    /// How compressed clusters are (or would be) compressed.
    pub compression_type: CompressionType,
    /// Name of an external data file, as it will stand in the header.
    pub data_file: Option<PathBuf>,
    /// The data file alone is to be a valid raw image of the disk.
    pub data_file_raw: bool,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self {
            cluster_size: 65536,
            version: Version::V3,
            refcount_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            preallocation: Preallocation::Off,
            compression_type: CompressionType::Zlib,
            data_file: None,
            data_file_raw: false,
        }
    }
}
