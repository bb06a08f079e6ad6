//! A disk that is read and written, by any number of threads at once: a QCOW2 or raw image and what it is
//! backed by.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("disk.qcow2");
//! use qcow::chain::OpenOptions;
//! use qcow::disk::{Disk, WriteOptions};
//! use qcow::ops::create::{CreateOptions, create};
//!
//! create(&path, &CreateOptions::default().size(1 << 30))?;
//! let disk = Disk::open(&path, &OpenOptions::default(), WriteOptions::new())?;
//! disk.write_at(b"hello", 1_000_000)?;
//! disk.flush()?; // From here on it survives a crash.
//!
//! let mut bytes = [0; 5];
//! disk.read_at(&mut bytes, 1_000_000)?;
//! assert_eq!(&bytes, b"hello");
//! disk.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What a crash leaves
//!
//! After a crash of the process or of the machine the image is sound, without any repair: each sector of
//! 512 bytes holds what was written to it before the last flush that returned, or something that was
//! written later. Clusters may be leaked, which costs space and nothing else; `check` finds them and
//! repairs them. QEMU may open the image as it was left.
//!
//! # What is believed
//!
//! A cluster that is used, and counted as free, would be given to another range and written over. So opening
//! reads all metadata once, and refuses an image in which anything but leaked clusters is wrong: a tenth of a
//! second for 1 TiB of data in clusters of 64 KiB, when its tables are in the page cache.
//! [`WriteOptions::trust_refcounts`] leaves that out. An image that was not closed properly, which QEMU leaves behind after a crash with lazy refcounts, is repaired
//! first; an image marked corrupt is refused. (Without the feature `ops`, which has the check, refcounts are believed,
//! and images that were not closed properly are refused.)
//!
//! The lazy refcounts of an image are not made use of: its refcounts are kept as those of any other, and it is
//! never marked as not closed properly.
//!
//! # What it cannot write to yet
//!
//! Encrypted images are refused.
//!
//! # Which door
//!
//! | who moves the data | with |
//! |---|---|
//! | the disk, within the call | [`Disk::read_at`], [`Disk::write_at`] and their like, from any number of threads |
//! | the disk, later; the caller awaits it or waits | [`queue`], for asynchronous programs |
//! | the caller, with a ring or threads of its own | [`steps`]: where a range lies, where a write goes, its commit |

mod open;
pub mod queue;
pub mod steps;
mod vectored;

use std::path::PathBuf;
use std::sync::Arc;

use crate::chain::{Chain, Format};
use crate::exact::Exact;
use crate::format::{GuestOffset, HostOffset, whole_sectors};
use crate::image::write::{Below, Piece, PieceKind, Writer};
use crate::io::{Storage, WriteStorage, Zeroes, read_padded};
use crate::{Error, Result};

pub use open::{TABLE_CACHE_BYTES, WriteOptions};

#[cfg(feature = "ops")]
pub use crate::check::Repaired;

/// Data and holes of a raw image that are told apart at once.
const RAW_RANGES: usize = 1 << 16;

/// A part of a disk that is of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskRange {
    /// Where it starts on the disk, in bytes.
    pub at: u64,
    /// Its length in bytes, never 0.
    pub len: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// What the image that is written to says about a part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeKind {
    /// The image has nothing: the backing file decides, and without one it reads as zeros.
    Backing,
    /// It reads as zeros.
    Zero,
    /// Bytes at this place of the image, or of its external data file.
    Data {
        /// Where the first byte lies.
        host: HostOffset,
    },
    /// Compressed clusters.
    Compressed,
}

/// A disk open for reading and writing. All methods take `&self`; share it by [`Arc`] or by reference.
///
/// Dropping it loses what was not flushed, as a crash would, and leaves the image sound: call
/// [`close`](Self::close).
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    image: Kind,
    files: Files,
    #[cfg(feature = "ops")]
    repaired: Option<Repaired>,
}

/// What a disk is made of.
#[derive(Debug)]
struct Files {
    storage: Arc<dyn WriteStorage>,
    format: Format,
    data_file: Option<Arc<dyn WriteStorage>>,
    backing: Option<Chain>,
}

#[derive(Debug)]
enum Kind {
    Raw(Arc<dyn WriteStorage>),
    Qcow2(Box<Writer>),
}

impl Disk {
    /// Which file its external data file is, if it has one in a file.
    #[cfg(feature = "ops")]
    pub(crate) fn data_file(&self) -> Option<crate::io::Identity> {
        self.files.data_file.as_ref()?.identity()
    }

    /// What the image is stored in.
    pub(crate) fn storage(&self) -> Arc<dyn WriteStorage> {
        self.files.storage.clone()
    }

    /// The chain that the disk is now, as its storage has it: to be flushed before.
    ///
    /// # Errors
    /// As [`ChainBuilder::open`](crate::chain::ChainBuilder::open).
    pub(crate) fn chain(&self) -> Result<Chain> {
        self.chain_over(self.files.backing.as_ref())
    }

    /// As [`chain`](Self::chain), over another backing chain.
    ///
    /// # Errors
    /// As [`chain`](Self::chain).
    pub(crate) fn chain_over(&self, backing: Option<&Chain>) -> Result<Chain> {
        let Files { storage, format, data_file, .. } = &self.files;
        let own = (&*self.path, storage.clone() as Arc<dyn Storage>, *format);
        let data = data_file.as_ref().map(|file| file.clone() as Arc<dyn Storage>);
        Chain::over(own, data, backing)
    }

    /// Size of the disk in bytes, a multiple of 512.
    pub fn size(&self) -> u64 {
        match &self.image {
            Kind::Raw(storage) => whole_sectors(storage.len()),
            Kind::Qcow2(writer) => writer.size(),
        }
    }

    /// What the image is backed by: what a range of kind [`Backing`](RangeKind::Backing) is made of.
    pub fn backing(&self) -> Option<&Chain> {
        self.files.backing.as_ref()
    }

    /// What was repaired when the disk was opened, because the image had not been closed properly; `None` if it had.
    #[cfg(feature = "ops")]
    pub fn repaired(&self) -> Option<Repaired> {
        self.repaired
    }

    /// Cluster size in bytes; `None` for a raw image.
    pub fn cluster_size(&self) -> Option<u64> {
        match &self.image {
            Kind::Raw(_) => None,
            Kind::Qcow2(writer) => Some(writer.geometry().cluster_size()),
        }
    }

    /// The smallest aligned range, in bytes, that can be written without copying anything up from what the
    /// image is backed by: a cluster, a subcluster with extended L2 entries, one byte of a raw image.
    pub fn write_unit(&self) -> u64 {
        match &self.image {
            Kind::Raw(_) => 1,
            Kind::Qcow2(writer) => writer.geometry().subcluster_size(),
        }
    }

    /// Whether an entry of the image can say that a range is zeros over a backing file, which version 2 has no
    /// word for.
    pub fn has_zero_clusters(&self) -> bool {
        match &self.image {
            Kind::Raw(_) => true,
            Kind::Qcow2(writer) => writer.has_zero_clusters(),
        }
    }

    /// Fills `buf` with the bytes from `at` on.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) past the end of the disk, otherwise what reading raises.
    pub fn read_at(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let result = match &self.image {
            Kind::Raw(storage) => self
                .check_range(at, buf.len() as u64)
                .and_then(|()| read_padded(&**storage, buf, at)),
            Kind::Qcow2(writer) => writer.read_at(buf, at),
        };
        self.named(result)
    }

    /// What each part of `len` bytes from `at` on is, in ascending order and without gaps: as it is now, while
    /// other threads may be changing it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("disk.qcow2");
    /// # use qcow::chain::OpenOptions;
    /// # use qcow::ops::create::{CreateOptions, create};
    /// use qcow::disk::{Disk, RangeKind, WriteOptions};
    /// # create(&path, &CreateOptions::default().size(1 << 20))?;
    /// let disk = Disk::open(&path, &OpenOptions::default(), WriteOptions::new())?;
    /// disk.write_at(&[7; 65536], 65536)?;
    /// let kinds: Vec<_> = disk.ranges(0, 1 << 20)?.iter().map(|range| (range.len, range.kind)).collect();
    /// assert!(matches!(
    ///     kinds[..],
    ///     [(65536, RangeKind::Backing), (65536, RangeKind::Data { .. }), (_, RangeKind::Backing)]
    /// ));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) past the end of the disk, otherwise what reading the tables raises.
    pub fn ranges(&self, at: u64, len: u64) -> Result<Vec<DiskRange>> {
        let result = match &self.image {
            Kind::Raw(storage) => {
                self.check_range(at, len).and_then(|()| raw_ranges(&**storage, at, at.plus(len)?))
            }
            Kind::Qcow2(writer) => {
                writer.pieces(at, len).map(|pieces| pieces.into_iter().map(range).collect())
            }
        };
        self.named(result)
    }

    /// Writes `buf` from `at` on. It is durable after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) past the end of the disk, [`NoSpace`](crate::ErrorKind::NoSpace) if the image cannot
    /// grow, otherwise what reading and writing raise. Parts of the range may then have been written; no
    /// other part of the disk changes.
    pub fn write_at(&self, buf: &[u8], at: u64) -> Result<()> {
        let result = match &self.image {
            Kind::Raw(storage) => self.check_range(at, buf.len() as u64).and_then(|()| {
                storage.write_at(buf, at).map_err(|error| Error::io("could not write", error))
            }),
            Kind::Qcow2(writer) => writer.write_at(buf, at),
        };
        self.named(result)
    }

    /// Makes `len` bytes from `at` on read as zeros; where an entry can say so, no data is written.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn write_zeroes(&self, at: u64, len: u64, how: Zeroes) -> Result<()> {
        let result = match &self.image {
            Kind::Raw(storage) => self.check_range(at, len).and_then(|()| {
                let len = at.plus(len)?.min(storage.len()).max(at).minus(at)?;
                storage
                    .write_zeroes(at, len, how)
                    .map_err(|error| Error::io("could not write zeros", error))
            }),
            Kind::Qcow2(writer) => writer.write_zeroes(at, len, how),
        };
        self.named(result)
    }

    /// Whether [`write_zeroes`](Self::write_zeroes) of this range would write no data, as far as that can be told
    /// beforehand: of a QCOW2 image, if entries can say it; of a raw one, if its space can be given back.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) past the end of the disk, otherwise what reading the tables raises.
    pub fn zeroes_fast(&self, at: u64, len: u64, how: Zeroes) -> Result<bool> {
        let result = match &self.image {
            Kind::Raw(storage) => self
                .check_range(at, len)
                .map(|()| how == Zeroes::Unmap && storage.capabilities().unmap),
            Kind::Qcow2(writer) => writer.zeroes_fast(at, len, how),
        };
        self.named(result)
    }

    /// Says that `len` bytes from `at` on are not needed any more. Of a QCOW2 image whole clusters read as
    /// zeros afterwards, and what is left over is left alone (as is everything in an image of version 2 with
    /// a backing file); of a raw image each byte reads as before, or as zero.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn discard(&self, at: u64, len: u64) -> Result<()> {
        let result = match &self.image {
            Kind::Raw(storage) => self.check_range(at, len).and_then(|()| {
                storage.discard(at, len).map_err(|error| Error::io("could not discard", error))
            }),
            Kind::Qcow2(writer) => writer.discard(at, len),
        };
        self.named(result)
    }

    /// Writes one whole cluster, compressed if that makes it smaller. At the end of the disk it may be
    /// shorter.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if it is not one cluster, or if the image is raw or has an external data file;
    /// otherwise as [`write_at`](Self::write_at).
    pub fn write_compressed(&self, cluster: &[u8], at: u64) -> Result<()> {
        let result = match &self.image {
            Kind::Raw(_) => Err(Error::usage("a raw image has no compressed clusters")),
            Kind::Qcow2(writer) => writer.write_compressed(cluster, at),
        };
        self.named(result)
    }

    /// Makes durable what was written before it was called. Flushes of several threads that wait for each
    /// other become one.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), [`NoSpace`](crate::ErrorKind::NoSpace). If writing metadata failed, a later flush tries
    /// again. If a sync failed, what was written since the last one may be lost whatever a later one says:
    /// the disk can then only be read.
    pub fn flush(&self) -> Result<()> {
        let result = match &self.image {
            Kind::Raw(storage) => {
                storage.sync().map_err(|error| Error::io("could not sync", error))
            }
            Kind::Qcow2(writer) => writer.flush(),
        };
        self.named(result)
    }

    /// Passes on the result of the work that was done on the disk; after an error what was not flushed is given up, and with
    /// it the space that the file grew by for it. Nothing can be written then. No other request may be in flight.
    #[cfg(feature = "ops")]
    pub(crate) fn or_give_up<T>(&self, done: Result<T>) -> Result<T> {
        if let (Err(_), Kind::Qcow2(writer)) = (&done, &self.image) {
            // If it fails, the file stays as long as it is, and what it has at its end is free.
            let _ = writer.give_up();
        }
        done
    }

    /// Flushes, and frees what is not used any more. Locks are released when the disk is dropped.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn close(self) -> Result<()> {
        let result = match &self.image {
            Kind::Raw(_) => return self.flush(),
            Kind::Qcow2(writer) => writer.close(),
        };
        self.named(result)
    }

    /// Syncs so far that flushes needed, for measurements: one if only data was written, two if clusters
    /// were allocated too.
    pub fn syncs(&self) -> u64 {
        match &self.image {
            Kind::Raw(_) => 0,
            Kind::Qcow2(writer) => writer.barriers(),
        }
    }

    fn check_range(&self, at: u64, len: u64) -> Result<()> {
        let size = self.size();
        match at.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::usage(format!("{len} bytes pass the end of a disk of {size} bytes"))
                .guest_offset(GuestOffset(at))),
        }
    }

    fn named<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(error) if !self.path.as_os_str().is_empty() => Err(error.file(&self.path)),
            result => result,
        }
    }
}

/// Data and holes of a raw image. More than [`RAW_RANGES`] of them are taken as data from there on.
fn raw_ranges(storage: &dyn WriteStorage, at: u64, end: u64) -> Result<Vec<DiskRange>> {
    let failed = |error| Error::io("could not look for holes", error).guest_offset(at);
    let mut ranges = Vec::new();
    let mut now = at;
    while now < end {
        let data = storage.next_data(now).map_err(failed)?.unwrap_or(end).clamp(now, end);
        let (next, kind) = if data > now {
            (data, RangeKind::Zero)
        } else {
            let hole = match ranges.len() {
                0..RAW_RANGES => storage.next_hole(now).map_err(failed)?,
                _ => end,
            };
            // At least one byte further, whatever the file system says.
            (hole.clamp(now.plus(1)?, end), RangeKind::Data { host: HostOffset(now) })
        };
        ranges.push(DiskRange { at: now, len: next.minus(now)?, kind });
        now = next;
    }
    Ok(ranges)
}

fn range((at, piece): (u64, Piece)) -> DiskRange {
    let kind = match piece.kind {
        PieceKind::Below => RangeKind::Backing,
        PieceKind::Zero => RangeKind::Zero,
        PieceKind::Data { host, .. } => RangeKind::Data { host },
        PieceKind::Compressed(_) => RangeKind::Compressed,
    };
    DiskRange { at, len: piece.len, kind }
}

impl Below for Chain {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let there = self.virtual_size().max(at).minus(at)?.min(buf.len() as u64);
        let (there, beyond) = buf.split_at_mut(crate::exact::to_usize(there));
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { self.read_at(there, GuestOffset(at)) }
    }

    fn len(&self) -> u64 {
        self.virtual_size()
    }
}
