//! Block devices as targets: opened for nobody else to use, of a length that cannot change, and not
//! blank unless somebody says so.

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use super::{Access, FileStorage};
use crate::{Error, Remedy, Result};

/// Zeros are written in pieces of this many bytes.
const PIECE: usize = 2 << 20;
/// The kernel zeroes whole blocks of this many bytes; any device's sectors fit in.
const BLOCK: u64 = 4096;

/// A block device that is written to.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) file: File,
    pub(super) len: u64,
    /// It holds zeros where nothing has been written.
    pub(super) blank: bool,
}

impl Device {
    /// Opens the block device at `path` for writing. The kernel refuses one that is mounted or
    /// otherwise held, QEMU's locks one that a guest uses.
    pub(super) fn open(path: &Path, blank: bool) -> Result<Self> {
        let status = std::fs::metadata(path).map_err(|error| Error::io("could not open", error))?;
        if !status.file_type().is_block_device() {
            return Err(Error::usage("not a block device").hint(Remedy::NotDevice));
        }
        let flags = (OFlags::EXCL | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(i32::try_from(flags).unwrap_or_default())
            .open(path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::ResourceBusy => {
                    Error::io("the device is mounted, or another process has it open", error)
                        .hint("unmount it, or stop the process that uses it, then try again")
                }
                _ => Error::io("could not open for writing", error),
            })?;
        let twin = file.try_clone().map_err(|error| Error::io("could not open twice", error))?;
        let changes = Access::WRITE | Access::RESIZE;
        // What was opened, not what had the name before.
        let storage = FileStorage::from_file(twin)?;
        storage.lock(Access::READ | changes, changes)?;
        let len = rustix::fs::seek(&file, SeekFrom::End(0))
            .map_err(|error| Error::io("could not find the device's size", error.into()))?;
        Ok(Self { file, len, blank })
    }

    /// Makes `len` bytes at `offset` read as zeros: by giving their space back where the device
    /// promises zeros then, by telling it to zero them, or by writing zeros.
    pub(super) fn zero(&self, offset: u64, len: u64) -> std::io::Result<()> {
        let end = offset.saturating_add(len);
        let first = offset.next_multiple_of(BLOCK).min(end);
        let last = (end & !BLOCK.wrapping_sub(1)).max(first);
        if first < last && !self.zero_blocks(first, last.saturating_sub(first)) {
            return self.write_zeros(offset, end);
        }
        self.write_zeros(offset, first)?;
        self.write_zeros(last, end)
    }

    fn zero_blocks(&self, offset: u64, len: u64) -> bool {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        [punch, zero].iter().any(|how| rustix::fs::fallocate(&self.file, *how, offset, len).is_ok())
    }

    fn write_zeros(&self, offset: u64, end: u64) -> std::io::Result<()> {
        let mut at = offset;
        let longest = end.saturating_sub(offset).min(PIECE as u64);
        let zeros = vec![0; usize::try_from(longest).unwrap_or(PIECE)];
        while at < end {
            let len = end.saturating_sub(at).min(longest);
            let piece = zeros.get(..usize::try_from(len).unwrap_or(0)).unwrap_or(&zeros);
            self.file.write_all_at(piece, at)?;
            at = at.saturating_add(len);
        }
        Ok(())
    }
}
