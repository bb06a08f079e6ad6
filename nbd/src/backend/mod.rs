//! What is behind an export: the disk that is read, and perhaps written.

mod chain;
mod disk;

use std::fmt;

pub use chain::ChainBackend;
pub use disk::DiskBackend;

use crate::context::{Context, Extents};
use crate::wire::Errno;

/// A request that failed: the number that the client gets, and why.
#[derive(Debug)]
pub struct Failed {
    /// The number.
    pub errno: Errno,
    /// For people; the client gets it too.
    pub message: String,
}

impl Failed {
    /// An error with this number.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { errno, message: message.into() }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}

impl From<qcow::Error> for Failed {
    fn from(error: qcow::Error) -> Self {
        use qcow::ErrorKind;
        const ENOMEM: i32 = 12;
        let memory = error.io_source().and_then(std::io::Error::raw_os_error) == Some(ENOMEM);
        let errno = match error.kind() {
            _ if memory => Errno::Memory,
            ErrorKind::NoSpace => Errno::NoSpace,
            ErrorKind::Usage => Errno::Invalid,
            ErrorKind::Denied => Errno::Permission,
            _ => Errno::Io,
        };
        Self::new(errno, error.to_string())
    }
}

/// The result of a request.
pub(crate) type Result<T, E = Failed> = std::result::Result<T, E>;

/// How a range is to become zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zero {
    /// Its space may be given back.
    pub unmap: bool,
    /// Fail with [`Errno::Unsupported`], and change nothing, if zeros would have to be written.
    pub fast: bool,
}

/// A disk behind an export. Any number of threads call it at once; ranges are checked before and lie on the
/// disk. Those that only read have nothing but [`size`](Self::size), [`read_at`](Self::read_at) and
/// [`extents`](Self::extents).
///
/// ```
/// use nbd::{Backend, Context, Extents, Failed};
///
/// /// A disk of zeros.
/// #[derive(Debug)]
/// struct Zeros(u64);
///
/// impl Backend for Zeros {
///     fn size(&self) -> u64 {
///         self.0
///     }
///
///     fn read_at(&self, buf: &mut [u8], _: u64) -> Result<(), Failed> {
///         buf.fill(0);
///         Ok(())
///     }
///
///     fn extents(&self, _: &Context, _: u64, len: u64, found: &mut Extents) -> Result<(), Failed> {
///         found.push(len, nbd::STATE_HOLE | nbd::STATE_ZERO);
///         Ok(())
///     }
/// }
/// let export = nbd::Export::new("zeros", Box::new(Zeros(1 << 30)));
/// assert!(export.is_read_only());
/// ```
pub trait Backend: Send + Sync + fmt::Debug {
    /// Size of the disk in bytes. It is asked for once, when the export is made, and is not to change.
    fn size(&self) -> u64;

    /// Whether it can be written to.
    fn can_write(&self) -> bool {
        false
    }

    /// The size of requests that it likes best, in bytes: a power of two from 512 to 64 KiB.
    fn preferred(&self) -> u32 {
        4096
    }

    /// Fills `buf` with the bytes from `at` on.
    ///
    /// # Errors
    /// What the client is to be told.
    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<(), Failed>;

    /// What `context` says of `len` bytes from `at` on, in order, until `found` wants no more. It may end early, but
    /// not before it has said something.
    ///
    /// # Errors
    /// What the client is to be told.
    fn extents(
        &self,
        context: &Context,
        at: u64,
        len: u64,
        found: &mut Extents,
    ) -> Result<(), Failed>;

    /// Writes `buf` from `at` on.
    ///
    /// # Errors
    /// What the client is to be told.
    fn write_at(&self, buf: &[u8], at: u64) -> Result<(), Failed> {
        let _ = (buf, at);
        Err(read_only())
    }

    /// Makes `len` bytes from `at` on read as zeros.
    ///
    /// # Errors
    /// What the client is to be told.
    fn write_zeroes(&self, at: u64, len: u64, how: Zero) -> Result<(), Failed> {
        let _ = (at, len, how);
        Err(read_only())
    }

    /// Says that `len` bytes from `at` on are not needed any more.
    ///
    /// # Errors
    /// What the client is to be told.
    fn discard(&self, at: u64, len: u64) -> Result<(), Failed> {
        let _ = (at, len);
        Err(read_only())
    }

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// What the client is to be told.
    fn flush(&self) -> Result<(), Failed> {
        Ok(())
    }

    /// Times so far that the disk was made durable, for measurements: a flush may need one or more, or share one with
    /// another.
    fn syncs(&self) -> u64 {
        0
    }

    /// Makes everything durable, and gives up the files.
    ///
    /// # Errors
    /// What could not be made durable.
    fn close(self: Box<Self>) -> qcow::Result<()> {
        Ok(())
    }
}

fn read_only() -> Failed {
    Failed::new(Errno::Permission, "the export is read-only")
}
