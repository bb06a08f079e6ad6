//! The contents of persistent bitmaps, as ranges of the guest's disk.
//!
//! Specification: QEMU's `docs/interop/qcow2.txt`, "Bitmaps extension", "Bitmap table" and "Bitmap
//! data".

use std::iter::FusedIterator;
use std::ops::Range;

use byteorder::{BigEndian, ByteOrder};

use super::{BitmapInfo, Image};
use crate::format::{BitmapTableEntry, GuestOffset, HostOffset};
use crate::io::read_padded;
use crate::{Error, Escaped, Result};

/// Entries of a bitmap's table, and its bits, are read in pieces of at most this many bytes.
const PIECE: u64 = 64 << 10;
/// Bits are stored in bytes of eight.
const BITS: u64 = 8;

/// One persistent bitmap of an image; see [`Image::bitmap`].
#[derive(Debug, Clone, Copy)]
pub struct Bitmap<'a> {
    image: &'a Image,
    info: &'a BitmapInfo,
}

impl Image {
    /// The persistent bitmap of this name.
    ///
    /// ```no_run
    /// # use std::path::Path;
    /// # use qcow::chain::{Chain, OpenOptions};
    /// let chain = Chain::open(Path::new("vm.qcow2"), &OpenOptions::default())?;
    /// if let Some(image) = chain.layers().first().and_then(|layer| layer.image()) {
    ///     for range in image.bitmap(b"backup-0")?.dirty_ranges()? {
    ///         let range = range?;
    ///         println!("copy {} bytes at {}", range.end.0 - range.start.0, range.start);
    ///     }
    /// }
    /// # Ok::<(), qcow::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if there is none.
    pub fn bitmap(&self, name: &[u8]) -> Result<Bitmap<'_>> {
        let info = self.bitmaps().iter().find(|info| info.name == name).ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            Error::usage(format!("the image has no bitmap named '{}'", Escaped(&name)))
        })?;
        Ok(Bitmap { image: self, info })
    }
}

impl<'a> Bitmap<'a> {
    /// What the bitmap directory says about it.
    pub fn info(&self) -> &'a BitmapInfo {
        self.info
    }

    /// The ranges of the guest's disk that the bitmap has as dirty, in ascending order, as long as they
    /// can be, cut at the end of the disk. Memory is at most 128 KiB for a bitmap of any size; at most
    /// 512 MiB are read, which is the format's limit for the bits of one bitmap.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the bitmap was not stored cleanly (it is marked as in
    /// use): what changed since is then not known, and a backup must copy everything.
    pub fn dirty_ranges(&self) -> Result<DirtyRanges<'a>> {
        if self.info.in_use {
            return Err(Error::corrupt(format!(
                "the bitmap '{}' was not stored cleanly, so its dirty ranges are not valid",
                Escaped(&String::from_utf8_lossy(&self.info.name))
            ))
            .structure("bitmap directory")
            .hint("make a full backup, and remove the bitmap"));
        }
        let size = self.image.virtual_size();
        Ok(DirtyRanges {
            bitmap: *self,
            bits: size.div_ceil(self.info.granularity.max(1)),
            at: 0,
            table: Loaded::default(),
            stretch: Stretch { bits: 0..0, content: Content::Same(false) },
            failed: false,
        })
    }
}

/// The dirty ranges of a bitmap; see [`Bitmap::dirty_ranges`]. Damage ends it with one error.
#[derive(Debug)]
pub struct DirtyRanges<'a> {
    bitmap: Bitmap<'a>,
    /// How many bits there are.
    bits: u64,
    /// The next bit to look at.
    at: u64,
    /// A piece of the bitmap's table.
    table: Loaded,
    /// The bits around `at`.
    stretch: Stretch,
    failed: bool,
}

/// Bytes, and the number of the first of them.
#[derive(Debug, Default)]
struct Loaded {
    first: u64,
    bytes: Vec<u8>,
}

/// Bits in a row.
#[derive(Debug)]
struct Stretch {
    bits: Range<u64>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// All of them are this.
    Same(bool),
    Bytes(Vec<u8>),
}

impl Iterator for DirtyRanges<'_> {
    type Item = Result<Range<GuestOffset>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let range = self.range();
        self.failed = range.is_err();
        range.transpose()
    }
}

impl FusedIterator for DirtyRanges<'_> {}

impl DirtyRanges<'_> {
    /// Leaves out what lies before `start`: a range that reaches across it begins at the bit that `start` is in.
    /// To be called before the first range is taken.
    #[must_use]
    pub fn starting_at(mut self, start: GuestOffset) -> Self {
        let bit = start.0.checked_div(self.bitmap.info.granularity).unwrap_or_default();
        self.at = bit.min(self.bits);
        self
    }

    fn range(&mut self) -> Result<Option<Range<GuestOffset>>> {
        let start = self.find(true)?;
        if start >= self.bits {
            return Ok(None);
        }
        let end = self.find(false)?;
        let size = self.bitmap.image.virtual_size();
        let guest = |bit: u64| {
            let offset = bit.saturating_mul(self.bitmap.info.granularity).min(size);
            GuestOffset(offset)
        };
        Ok(Some(guest(start)..guest(end)))
    }

    /// Goes to the next bit that is `wanted`, or to the end.
    fn find(&mut self, wanted: bool) -> Result<u64> {
        while self.at < self.bits {
            if !self.stretch.bits.contains(&self.at) {
                self.stretch = self.load(self.at)?;
            }
            let end = self.stretch.bits.end.min(self.bits);
            self.at = match &self.stretch.content {
                Content::Same(bit) if *bit == wanted => return Ok(self.at),
                Content::Same(_) => end,
                Content::Bytes(bytes) => {
                    let skip = self.at.saturating_sub(self.stretch.bits.start);
                    let found = position(bytes, skip, wanted);
                    self.stretch.bits.start.saturating_add(found).min(end)
                }
            };
            if self.at < end {
                break;
            }
        }
        Ok(self.at)
    }

    /// The stretch of bits that `bit` is in.
    fn load(&mut self, bit: u64) -> Result<Stretch> {
        let geometry = self.bitmap.image.geometry();
        let per_cluster = geometry.cluster_size().saturating_mul(BITS);
        let index = bit.checked_div(per_cluster).unwrap_or_default();
        let first = index.saturating_mul(per_cluster);
        let cluster = first..first.saturating_add(per_cluster);
        let entry = BitmapTableEntry::decode(self.entry(index)?, geometry)
            .map_err(|error| error.index(index))?;
        let host = match entry {
            BitmapTableEntry::AllZeros => {
                return Ok(Stretch { bits: cluster, content: Content::Same(false) });
            }
            BitmapTableEntry::AllOnes => {
                return Ok(Stretch { bits: cluster, content: Content::Same(true) });
            }
            BitmapTableEntry::Stored(host) => host,
        };
        // A piece of the cluster, up to the last bit that means anything.
        let per_piece = PIECE.saturating_mul(BITS);
        let skip = bit.saturating_sub(first).checked_div(per_piece).unwrap_or_default();
        let start = first.saturating_add(skip.saturating_mul(per_piece));
        let end = start.saturating_add(per_piece).min(cluster.end).min(self.bits);
        let offset = host.checked_add(skip.saturating_mul(PIECE))?;
        let len = end.saturating_sub(start).div_ceil(BITS);
        let bytes = self.read("bitmap data", offset, len)?;
        Ok(Stretch { bits: start..end, content: Content::Bytes(bytes) })
    }

    /// The entry of the bitmap's table.
    fn entry(&mut self, index: u64) -> Result<u64> {
        const WIDTH: u64 = 8;
        if index >= u64::from(self.bitmap.info.table_entries) {
            let entries = self.bitmap.info.table_entries;
            let message = format!("the table has {entries} entries, entry {index} is needed");
            return Err(Error::corrupt(message).structure("bitmap table"));
        }
        let word = |loaded: &Loaded| {
            let skip = index.checked_sub(loaded.first)?.checked_mul(WIDTH)?;
            let bytes = loaded.bytes.get(usize::try_from(skip).ok()?..)?;
            bytes.get(..8).map(BigEndian::read_u64)
        };
        if let Some(word) = word(&self.table) {
            return Ok(word);
        }
        let left = u64::from(self.bitmap.info.table_entries).saturating_sub(index);
        let len = left.saturating_mul(WIDTH).min(PIECE);
        let offset = self.bitmap.info.table_offset.checked_add(index.saturating_mul(WIDTH))?;
        self.table = Loaded { first: index, bytes: self.read("bitmap table", offset, len)? };
        word(&self.table)
            .ok_or_else(|| Error::corrupt("an entry was not read").structure("bitmap table"))
    }

    /// What the file does not have would read as zeros, that is, as clean.
    fn read(&self, structure: &'static str, offset: HostOffset, len: u64) -> Result<Vec<u8>> {
        let storage = &**self.bitmap.image.storage();
        if offset.checked_add(len)?.0 > storage.len() {
            let message = format!("{len} bytes are needed, and the file ends before");
            return Err(Error::corrupt(message).structure(structure).host_offset(offset));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        read_padded(storage, &mut bytes, offset.0).map_err(|error| error.structure(structure))?;
        Ok(bytes)
    }
}

/// The first bit that is `wanted` at or after `skip`, the least significant bit of a byte being its
/// first; the number of bits if there is none.
fn position(bytes: &[u8], skip: u64, wanted: bool) -> u64 {
    let all = (bytes.len() as u64).saturating_mul(BITS);
    let first = usize::try_from(skip / BITS).unwrap_or(usize::MAX);
    let below = u8::MAX.checked_shl(u32::try_from(skip % BITS).unwrap_or(0)).unwrap_or(0);
    let mut mask = below;
    for (index, byte) in (0u64..).zip(bytes).skip(first) {
        let candidates = if wanted { *byte } else { !byte } & mask;
        if candidates != 0 {
            let bit = u64::from(candidates.trailing_zeros());
            return index.saturating_mul(BITS).saturating_add(bit);
        }
        mask = u8::MAX;
    }
    all
}

#[cfg(test)]
mod tests;
