//! The guest's disk as a file that is read from front to back, for code that takes `Read + Seek`.

use std::io::{Read, Result, Seek, SeekFrom};

use super::Reader;
use crate::chain::Chain;
use crate::format::GuestOffset;

/// A [`Reader`] with a position: [`Read`] and [`Seek`] over the guest's disk.
///
/// Errors are [`qcow::Error`](crate::Error)s in an [`std::io::Error`]; `get_ref` and `downcast_ref` give
/// them back.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("disk.qcow2");
/// # use qcow::chain::{Chain, OpenOptions};
/// # use qcow::ops::create::{CreateOptions, create};
/// use std::io::{Read, Seek, SeekFrom};
/// create(&path, &CreateOptions::default().size(1 << 20))?;
/// let mut disk = Chain::open(&path, &OpenOptions::default())?.cursor();
/// disk.seek(SeekFrom::End(-512))?;
/// let mut last_sector = Vec::new();
/// disk.read_to_end(&mut last_sector)?;
/// assert_eq!(last_sector, [0; 512]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Cursor {
    reader: Reader,
    at: u64,
}

impl Chain {
    /// The guest's disk as a stream that starts at its first byte.
    pub fn cursor(&self) -> Cursor {
        Cursor { reader: self.reader(), at: 0 }
    }
}

impl Cursor {
    /// The size of the guest's disk in bytes.
    pub fn size(&self) -> u64 {
        self.reader.chain().virtual_size()
    }
}

impl Read for Cursor {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let left = self.size().saturating_sub(self.at);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let (buf, _) = buf.split_at_mut(len);
        if len > 0 {
            self.reader.read_at(buf, GuestOffset(self.at))?;
            self.at = self.at.saturating_add(len as u64);
        }
        Ok(len)
    }
}

impl Seek for Cursor {
    /// As for files, a position past the end of the disk is allowed: nothing can be read there.
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "a position before the disk's start",
            )
        })?;
        Ok(self.at)
    }
}
