//! A second descriptor of an open file, past the page cache.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use crate::{Error, Remedy, Result};

/// Addresses, offsets and lengths that are multiples of this suit every disk.
const ALIGNMENT: usize = 4096;

/// Opens `file` once more for direct I/O, to write if `write`, else to read.
///
/// # Errors
/// [`Unsupported`](crate::ErrorKind::Unsupported) if its file system has none.
pub(super) fn reopened(file: &File, write: bool) -> Result<File> {
    File::options()
        .read(!write)
        .write(write)
        .custom_flags(i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default())
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidInput => {
                Error::unsupported("the file system has no direct I/O").hint(Remedy::BufferedIo)
            }
            _ => Error::io("could not open for direct I/O", error),
        })
}

/// How many of `bytes` at `offset`, from their start on, can go past the page cache.
pub(super) fn aligned(bytes: &[u8], offset: u64) -> usize {
    let in_block = ALIGNMENT.wrapping_sub(1);
    let fits = bytes.as_ptr().addr() & in_block == 0 && offset & in_block as u64 == 0;
    if fits { bytes.len() & !in_block } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Buffer;

    #[test]
    fn only_whole_blocks_at_whole_blocks_go_past_the_cache() {
        let mut buffer = Buffer::new(16384).unwrap();
        let bytes = buffer.first(10_000).unwrap();
        assert_eq!(aligned(bytes, 8192), 8192);
        assert_eq!(aligned(bytes, 512), 0);
        assert_eq!(aligned(&bytes[512..], 8192), 0);
        assert_eq!(aligned(&bytes[..4095], 0), 0);
    }
}
