//! One L2 entry as it lies in its table: the only place that knows where its bits are.

use byteorder::{BigEndian, ByteOrder};

use super::{EntryRules, HostOffset};

/// Bits 9 to 55, of L1 entries too (trap 28).
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63, of L1 entries too: the refcount is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const RESERVED: u64 = 0x3f00_0000_0000_01fe;
const ZERO: u64 = 1;

/// An L2 entry that nothing has been concluded from: any 64 bits, and the 64 bits of the subcluster
/// bitmap, which are 0 in images without extended L2 entries.
///
/// ```
/// use qcow::format::{HostOffset, RawL2Entry};
/// let entry = RawL2Entry { word: 0x8000_0000_0005_0000, bitmap: 0 };
/// assert_eq!(entry.offset(), HostOffset(0x50000));
/// assert!(entry.is_copied() && !entry.is_compressed());
/// assert_eq!(entry.with_offset(HostOffset(0x90000)).word, 0x8000_0000_0009_0000);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RawL2Entry {
    /// The entry itself.
    pub word: u64,
    /// Subclusters: the low half says allocated, the high half says zero (trap 61).
    pub bitmap: u64,
}

impl RawL2Entry {
    /// The entry in these 8 or 16 bytes, or else an empty one.
    #[inline]
    pub(crate) fn read(bytes: &[u8]) -> Self {
        match bytes.split_at_checked(8) {
            Some((word, bitmap)) => Self {
                word: BigEndian::read_u64(word),
                bitmap: if bitmap.len() == 8 { BigEndian::read_u64(bitmap) } else { 0 },
            },
            None => Self::default(),
        }
    }

    /// Writes the entry to these 8 or 16 bytes.
    #[inline]
    pub(crate) fn write(self, bytes: &mut [u8]) {
        for (field, word) in bytes.chunks_exact_mut(8).zip([self.word, self.bitmap]) {
            BigEndian::write_u64(field, word);
        }
    }

    /// Whether all bits are 0.
    #[inline]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Whether it describes compressed data. Then only the copied flag means what it does elsewhere:
    /// the other bits are those of a [`CompressedSpan`](super::CompressedSpan) (trap 29).
    #[inline]
    pub fn is_compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    /// Whether it says that the cluster's refcount is exactly one.
    #[inline]
    pub fn is_copied(self) -> bool {
        self.word & COPIED != 0
    }

    /// The zero flag; in an image with extended L2 entries the bitmap says what is zero.
    #[inline]
    pub fn has_zero_flag(self) -> bool {
        self.word & ZERO != 0
    }

    /// The host offset of an entry that is not compressed; 0 if it has none.
    #[inline]
    pub fn offset(self) -> HostOffset {
        HostOffset(self.word & OFFSET)
    }

    /// Subclusters that have data, as the low half of the bitmap says.
    #[inline]
    pub fn allocated_subclusters(self) -> u64 {
        self.bitmap & u64::from(u32::MAX)
    }

    /// Subclusters that read as zeros, as the high half of the bitmap says.
    #[inline]
    pub fn zero_subclusters(self) -> u64 {
        self.bitmap >> 32
    }

    /// Whether a subcluster is said to be both allocated and zero (trap 62).
    #[inline]
    pub fn contradicts_itself(self) -> bool {
        self.allocated_subclusters() & self.zero_subclusters() != 0
    }

    /// Bits that should be zero and are not: reserved bits of the word, or the whole bitmap of a
    /// compressed extended entry (trap 66). Reads ignore them; `check` reports them (trap 34).
    #[inline]
    pub fn reserved(self, rules: &EntryRules) -> u64 {
        if !self.is_compressed() {
            self.word & RESERVED
        } else if rules.geometry.extended_l2() {
            self.bitmap
        } else {
            0
        }
    }

    /// The entry with the copied flag set or cleared.
    #[must_use]
    pub fn with_copied(self, copied: bool) -> Self {
        let word = if copied { self.word | COPIED } else { self.word & !COPIED };
        Self { word, ..self }
    }

    /// The entry with another host offset, of which bits 9 to 55 count.
    #[must_use]
    pub fn with_offset(self, offset: HostOffset) -> Self {
        Self { word: self.word & !OFFSET | offset.0 & OFFSET, ..self }
    }

    /// An entry for compressed data with these descriptor bits.
    pub(super) fn compressed(descriptor: u64) -> u64 {
        COMPRESSED | descriptor
    }

    /// An entry of zeros, with the zero flag.
    pub(crate) const ZEROS: Self = Self { word: ZERO, bitmap: 0 };

    /// The entry whose cluster follows this one's after `bytes`, all else being equal.
    #[inline]
    #[must_use]
    pub(crate) fn moved_by(self, bytes: u64) -> Self {
        Self { word: self.word.wrapping_add(bytes), ..self }
    }
}
