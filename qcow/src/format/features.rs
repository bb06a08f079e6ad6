//! The three feature fields of a version 3 header. Bits that we do not know are kept.

use bitflags::bitflags;

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
