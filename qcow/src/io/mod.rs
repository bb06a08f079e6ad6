//! Where bytes live: the [`Storage`] trait, files, memory, and atomically replaced outputs.

mod buffer;
mod clone;
mod device;
mod direct;
mod file;
mod in_place;
mod lock;
mod memory;
mod names;
mod output;
mod replaced;

use std::fmt;

use crate::{Error, Remedy, Result};

pub(crate) use buffer::Buffer;
pub(crate) use clone::{FileSystem, clone_range, copy_range};
pub use file::{FileStatus, FileStorage, Identity, OpenedAs};
#[cfg(test)]
pub(crate) use in_place::{Event, Recording};
pub(crate) use in_place::{InPlace, open_in_place};
pub use lock::Access;
pub use memory::MemoryStorage;
pub use names::{rename_to_free_name, sync_directory};
pub use output::OutputFile;
pub(crate) use output::Unnamed;
pub use replaced::Replace;

/// Random access to bytes. All methods take `&self`, so that threads can share one storage.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end, 0 past it.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize>;

    /// The first byte at or after `offset` that may be other than a hole, or `None` if only
    /// holes follow. Storages that do not know say `Some(offset)`.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn next_data(&self, offset: u64) -> std::io::Result<Option<u64>> {
        Ok((offset < self.len()).then_some(offset))
    }

    /// The first hole at or after `offset`; the end counts as one.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn next_hole(&self, offset: u64) -> std::io::Result<u64> {
        Ok(self.len().max(offset))
    }
}

/// Fills `buf` from `offset`; what lies past the end of the storage reads as zeros, as QEMU has
/// it (trap 36). A file that ends earlier than it did when it was opened is an error instead:
/// somebody cut it short meanwhile, and zeros would be a lie.
///
/// # Errors
/// [`Io`](crate::ErrorKind::Io) with the host offset; the caller adds the file and structure.
pub fn read_padded(storage: &dyn Storage, buf: &mut [u8], offset: u64) -> Result<()> {
    let available = storage.len().saturating_sub(offset).min(buf.len() as u64);
    let (mut wanted, beyond) = buf.split_at_mut(usize::try_from(available).unwrap_or(usize::MAX));
    let mut at = offset;
    while !wanted.is_empty() {
        match storage.read_at(wanted, at) {
            Ok(0) => {
                return Err(Error::io(
                    "the file was cut short while it was being read",
                    std::io::ErrorKind::UnexpectedEof.into(),
                )
                .host_offset(at)
                .hint(Remedy::StopChanges));
            }
            Ok(read) => {
                wanted = wanted.split_at_mut(read).1;
                at = at.saturating_add(read as u64);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("could not read", error).host_offset(at)),
        }
    }
    beyond.fill(0);
    Ok(())
}
