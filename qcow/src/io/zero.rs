//! Makes a range of an open file or block device read as zeros.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, retry_on_intr};

use super::Zeroes;
use crate::exact::to_usize;

/// Most zeros that are written or hashed at once.
const PIECE: usize = 2 << 20;
/// Pages that are only read take no memory: the system shows one page of zeros for all.
static ZEROS: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; PIECE]);
/// The system zeroes whole blocks of this many bytes; any device's sectors fit in.
const BLOCK: u64 = 4096;

/// As many of `len` zeros as are handled at once: all, or 2 MiB.
pub(crate) fn zeros(len: u64) -> &'static [u8] {
    ZEROS.get(..to_usize(len)).unwrap_or(&ZEROS)
}

/// Where `len` bytes at `offset` end.
///
/// # Errors
/// [`InvalidInput`](std::io::ErrorKind::InvalidInput) if no file can have them.
pub(super) fn end_of(offset: u64, len: u64) -> std::io::Result<u64> {
    offset.checked_add(len).ok_or_else(|| std::io::ErrorKind::InvalidInput.into())
}

/// Makes the bytes of `range`, all of which exist, read as zeros: by telling the system, or by
/// writing zeros where it cannot. A range that ends before it starts is empty.
///
/// # Errors
/// Whatever the operating system says.
pub(super) fn zero(file: &File, range: Range<u64>, how: Zeroes) -> std::io::Result<()> {
    let Range { start, end } = range;
    let first = start.checked_next_multiple_of(BLOCK).unwrap_or(end).min(end);
    let last = (end & !BLOCK.wrapping_sub(1)).max(first);
    let ways: &[FallocateFlags] = match how {
        Zeroes::Keep | Zeroes::Allocate => &[FallocateFlags::ZERO_RANGE],
        Zeroes::Unmap => &[FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE],
    };
    if !any_of(ways, file, first..last)? {
        return write_zeros(file, start..end);
    }
    write_zeros(file, start..first)?;
    write_zeros(file, last..end)
}

/// Gives back the space of the bytes of `range` where the system can; they then read as zeros.
///
/// # Errors
/// Whatever the operating system says; that it cannot is no error.
pub(super) fn discard(file: &File, range: Range<u64>) -> std::io::Result<()> {
    let last = range.end & !BLOCK.wrapping_sub(1);
    let first = range.start.checked_next_multiple_of(BLOCK).unwrap_or(last);
    any_of(&[FallocateFlags::PUNCH_HOLE], file, first..last).map(drop)
}

/// Does it the first way that exists here; `false` if none does.
fn any_of(ways: &[FallocateFlags], file: &File, range: Range<u64>) -> std::io::Result<bool> {
    let len = range.end.checked_sub(range.start).filter(|len| *len > 0);
    let Some(len) = len else { return Ok(true) };
    for way in ways {
        let flags = *way | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| rustix::fs::fallocate(file, flags, range.start, len)) {
            Ok(()) => return Ok(true),
            // What a file system or a device says that does not know the way.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn write_zeros(file: &File, range: Range<u64>) -> std::io::Result<()> {
    let mut at = range.start;
    while let Some(len) = range.end.checked_sub(at).filter(|len| *len > 0) {
        let piece = zeros(len);
        file.write_all_at(piece, at)?;
        at = end_of(at, piece.len() as u64)?;
    }
    Ok(())
}
