//! The header's choices: version, encryption, compression.

use crate::{Error, Result};

/// Version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Version {
    /// Version 2, which QEMU calls `compat=0.10`.
    V2,
    /// Version 3, which QEMU calls `compat=1.1`.
    V3,
}

impl Version {
    pub(super) fn parse(number: u32) -> Result<Self> {
        match number {
            2 => Ok(Self::V2),
            3 => Ok(Self::V3),
            other => Err(Error::unsupported(format!("version is {other}, expected 2 or 3"))),
        }
    }

    /// The number in the header: 2 or 3.
    pub fn number(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

/// How guest data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CryptMethod {
    /// Not encrypted.
    None,
    /// The old AES-CBC scheme.
    Aes,
    /// LUKS, with its header in clusters that an extension names.
    Luks,
}

impl CryptMethod {
    pub(super) fn parse(number: u32) -> Result<Self> {
        match number {
            0 => Ok(Self::None),
            1 => Ok(Self::Aes),
            2 => Ok(Self::Luks),
            other => Err(Error::unsupported(format!(
                "encryption method is {other}, expected 0 (none), 1 (AES) or 2 (LUKS)"
            ))),
        }
    }

    pub(super) fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Aes => 1,
            Self::Luks => 2,
        }
    }
}

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CompressionType {
    /// Raw deflate, without a zlib header (trap 46).
    Zlib,
    /// Zstandard frames.
    Zstd,
}

impl CompressionType {
    /// `"zlib"` or `"zstd"`, as in `qemu-img info`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    pub(super) fn parse(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Zlib),
            1 => Ok(Self::Zstd),
            other => Err(Error::unsupported(format!(
                "compression type is {other}, expected 0 (zlib) or 1 (zstd)"
            ))),
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::Zlib => 0,
            Self::Zstd => 1,
        }
    }
}
