//! Where bytes live: the [`Storage`] trait, files, memory, and atomically replaced outputs.

#[cfg(feature = "ops")]
mod buffer;
#[cfg(feature = "ops")]
mod clone;
#[cfg(feature = "ops")]
mod device;
mod direct;
mod file;
mod in_place;
mod lock;
mod loops;
mod memory;
mod names;
#[cfg(feature = "ops")]
mod output;
#[cfg(feature = "ops")]
mod replaced;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod zero;

use std::fmt;

use crate::{Error, Remedy, Result};

#[cfg(feature = "ops")]
pub(crate) use buffer::Buffer;
#[cfg(feature = "ops")]
pub(crate) use clone::{FileSystem, clone_range, copy_range};
pub use file::{FileStatus, FileStorage, Identity, OpenedAs};
pub use in_place::WritableFile;
pub use lock::Access;
pub use loops::LoopDevice;
pub use memory::MemoryStorage;
pub use names::{rename_to_free_name, sync_directory};
#[cfg(feature = "ops")]
pub use output::OutputFile;
#[cfg(feature = "ops")]
pub(crate) use output::Unnamed;
#[cfg(feature = "ops")]
pub use replaced::Replace;
#[cfg(feature = "ops")]
pub(crate) use zero::zeros;

/// Random access to bytes, for reading: what has this type cannot write. All methods take `&self`, so that
/// threads can share one storage.
///
/// A storage of your own can be a layer of a chain: see [`Chain::builder`](crate::chain::Chain::builder).
///
/// ```
/// use std::sync::Arc;
/// use qcow::chain::{Chain, Format};
/// use qcow::format::GuestOffset;
///
/// /// A disk whose bytes are computed.
/// #[derive(Debug)]
/// struct Squares;
///
/// impl qcow::io::Storage for Squares {
///     fn len(&self) -> u64 {
///         1 << 40
///     }
///
///     fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
///         let len = usize::try_from(self.len().saturating_sub(offset)).unwrap().min(buf.len());
///         for (at, byte) in (offset..).zip(&mut buf[..len]) {
///             *byte = (at * at) as u8;
///         }
///         Ok(len)
///     }
/// }
///
/// let chain = Chain::builder().layer("squares", Arc::new(Squares), Format::Raw).open()?;
/// let mut buf = [0; 4];
/// chain.read_at(&mut buf, GuestOffset(1 << 20))?;
/// assert_eq!(buf, [0, 1, 4, 9]);
/// # Ok::<(), qcow::Error>(())
/// ```
pub trait Storage: Send + Sync + fmt::Debug {
    /// Length in bytes: as it is now, if it is written to through this storage.
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

    /// The regular file or block device that holds the bytes at these very offsets, if one does: ranges
    /// may then be cloned or copied by the system, and [`AsFd`](std::os::fd::AsFd) gives its descriptor.
    fn as_file(&self) -> Option<&FileStorage> {
        None
    }

    /// Which object it is, if that can be told: two storages with one identity are one.
    fn identity(&self) -> Option<Identity> {
        self.as_file().map(FileStorage::identity)
    }

    /// Bytes that are kept for it; its length if that is not known.
    fn allocated(&self) -> u64 {
        self.len()
    }

    /// Checks that no other process has changed the bytes since the storage was opened, as far as that
    /// can be told.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if one has.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// A [`Storage`] that can be written to. `Arc<dyn WriteStorage>` becomes `Arc<dyn Storage>` by itself
/// wherever one is wanted, so that readers are given what cannot write.
///
/// Nothing is durable before [`sync`](Self::sync) returns: after a crash each sector that was written
/// since then may hold the old or the new bytes, independently of the others.
pub trait WriteStorage: Storage {
    /// What it can do beyond writing.
    fn capabilities(&self) -> Capabilities;

    /// Writes all of `bytes` at `offset`; the storage grows if they pass its end and it can.
    ///
    /// # Errors
    /// Whatever the operating system says; some of the bytes may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()>;

    /// Makes `len` bytes at `offset` read as zeros; the storage grows as for
    /// [`write_at`](Self::write_at).
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn write_zeroes(&self, offset: u64, len: u64, how: Zeroes) -> std::io::Result<()>;

    /// Says that `len` bytes at `offset` are not needed any more. Afterwards each of them reads as it was,
    /// or as zero. The length stays.
    ///
    /// # Errors
    /// Whatever the operating system says; that the storage cannot discard is none.
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()>;

    /// Makes the storage `len` bytes long; new bytes are zeros. One whose length is fixed does nothing if
    /// it is long enough.
    ///
    /// # Errors
    /// Whatever the operating system says; [`StorageFull`](std::io::ErrorKind::StorageFull) if a fixed
    /// length is too short.
    fn set_len(&self, len: u64) -> std::io::Result<()>;

    /// Makes what was written durable, in full and with the length. After it has failed nothing is known
    /// about what was written since the last time, and trying again does not tell.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn sync(&self) -> std::io::Result<()>;
}

/// What a [`WriteStorage`] can do beyond writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Capabilities {
    /// Its length can change.
    pub resize: bool,
    /// Space may be given back by [`discard`](WriteStorage::discard), and by
    /// [`write_zeroes`](WriteStorage::write_zeroes) with [`Zeroes::Unmap`].
    pub unmap: bool,
}

impl Capabilities {
    /// Says whether the length can change.
    #[must_use]
    pub fn resize(self, resize: bool) -> Self {
        Self { resize, ..self }
    }

    /// Says whether space may be given back.
    #[must_use]
    pub fn unmap(self, unmap: bool) -> Self {
        Self { unmap, ..self }
    }
}

/// What becomes of the space of a range that is zeroed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Zeroes {
    /// What is allocated stays allocated. A QCOW2 image allocates nothing new: what had no space still has none.
    Keep,
    /// All of it is allocated afterwards, so that later writes to it need no space.
    Allocate,
    /// It may be given back.
    Unmap,
}

/// Fills `buf` from `offset`; what lies past the end of the storage reads as zeros, as QEMU has
/// it (trap 36). A file that ends earlier than it did when it was opened is an error instead:
/// another process truncated it meanwhile, and zeros would be a lie.
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
                    "the file was truncated while it was being read",
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
