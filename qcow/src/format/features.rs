//! The three feature fields of a version 3 header, and the names of their bits. Bits that we do
//! not know are kept.

use bitflags::bitflags;

use super::bytes::until_nul;
use crate::{Error, Result};

/// Type, bit and name of one feature.
const FEATURE_BYTES: usize = 48;
/// Longest feature name.
const FEATURE_NAME_BYTES: usize = 46;

bitflags! {
    /// Who does not know one of these bits must not open the image.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Incompatible: u64 {
        /// Refcounts may be stale: rebuild them before writing. Reading is fine (trap 21).
        const DIRTY = 1;
        /// Metadata is corrupt: repair before writing. Reading is fine (trap 22).
        const CORRUPT = 1 << 1;
        /// Guest data lies in an external data file.
        const DATA_FILE = 1 << 2;
        /// The header's compression type is not zlib.
        const COMPRESSION_TYPE = 1 << 3;
        /// L2 entries are 16 bytes wide and clusters have subclusters.
        const EXTENDED_L2 = 1 << 4;
    }
}

bitflags! {
    /// Who does not know one of these bits may ignore it, and keeps it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Compatible: u64 {
        /// Refcount updates may be postponed while the dirty bit is set.
        const LAZY_REFCOUNTS = 1;
    }
}

bitflags! {
    /// Who does not know one of these bits clears it before changing the image.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Autoclear: u64 {
        /// The bitmaps extension is consistent with the guest data.
        const BITMAPS = 1;
        /// The external data file alone is the guest's disk, as a raw image.
        const DATA_FILE_RAW = 1 << 1;
    }
}

macro_rules! unknown {
    ($($name:ident),*) => {$(
        impl $name {
            /// The bits that this crate gives no meaning to.
            pub fn unknown(self) -> u64 {
                self.difference(Self::all()).bits()
            }
        }
    )*};
}

unknown!(Incompatible, Compatible, Autoclear);

/// Which of the three feature fields a [`FeatureName`] belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureKind {
    /// An incompatible feature.
    Incompatible,
    /// A compatible feature.
    Compatible,
    /// An autoclear feature.
    Autoclear,
    /// A kind that this crate does not know.
    Unknown(u8),
}

/// The name of one feature bit. It is whatever the image says: escape it before showing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureName {
    /// The field.
    pub kind: FeatureKind,
    /// The bit, counted from the least significant.
    pub bit: u8,
    /// The name, at most 46 bytes, without NULs at its end.
    pub name: Vec<u8>,
}

impl FeatureName {
    /// The names of all features that this crate knows.
    pub(super) fn standard() -> Vec<Self> {
        use FeatureKind::{Autoclear, Compatible, Incompatible};
        let names: [(FeatureKind, u8, &str); 8] = [
            (Incompatible, 0, "dirty bit"),
            (Incompatible, 1, "corrupt bit"),
            (Incompatible, 2, "external data file"),
            (Incompatible, 3, "compression type"),
            (Incompatible, 4, "extended L2 entries"),
            (Compatible, 0, "lazy refcounts"),
            (Autoclear, 0, "bitmaps"),
            (Autoclear, 1, "raw external data"),
        ];
        names.into_iter().map(|(kind, bit, name)| Self { kind, bit, name: name.into() }).collect()
    }

    /// A trailing part that is shorter than an entry is ignored.
    pub(super) fn parse_table(data: &[u8]) -> Vec<Self> {
        data.chunks_exact(FEATURE_BYTES)
            .filter_map(|entry| match entry {
                [kind, bit, name @ ..] => Some(Self {
                    kind: FeatureKind::parse(*kind),
                    bit: *bit,
                    name: until_nul(name).to_vec(),
                }),
                _ => None,
            })
            .collect()
    }

    /// As [`parse_table`](Self::parse_table), but the last entry may end with the table, as QEMU has it.
    pub(super) fn parse_loosely(data: &[u8]) -> Vec<Self> {
        let mut padded = data.to_vec();
        padded.resize(data.len().next_multiple_of(FEATURE_BYTES), 0);
        Self::parse_table(&padded)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<()> {
        if self.name.len() > FEATURE_NAME_BYTES {
            return Err(Error::usage(format!(
                "a feature name has {} bytes, expected at most {FEATURE_NAME_BYTES}",
                self.name.len()
            ))
            .structure("feature name table"));
        }
        out.extend_from_slice(&[self.kind.number(), self.bit]);
        out.extend_from_slice(&self.name);
        let padding = FEATURE_NAME_BYTES.saturating_sub(self.name.len());
        out.extend(std::iter::repeat_n(0, padding));
        Ok(())
    }
}

impl FeatureKind {
    fn parse(number: u8) -> Self {
        match number {
            0 => Self::Incompatible,
            1 => Self::Compatible,
            2 => Self::Autoclear,
            other => Self::Unknown(other),
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Incompatible => 0,
            Self::Compatible => 1,
            Self::Autoclear => 2,
            Self::Unknown(other) => other,
        }
    }
}
