//! Reading and writing in steps, for callers that move the data themselves: with a ring of their own, and no lock of
//! ours held meanwhile.
//!
//! 1. [`Disk::map`] says where a range lies, [`Disk::prepare_write`] gives a write its places.
//! 2. The caller reads or writes there, in [`Disk::data_storage`], however it likes.
//! 3. [`PreparedWrite::commit`] makes the disk lead to what was written. Dropped instead, a prepared write leaves the disk
//!    as it was.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("disk.qcow2");
//! use std::os::unix::fs::FileExt;
//! use qcow::chain::OpenOptions;
//! use qcow::disk::{Disk, RangeKind, WriteOptions};
//! use qcow::ops::create::{CreateOptions, create};
//!
//! create(&path, &CreateOptions::default().size(1 << 30))?;
//! let disk = Disk::open(&path, &OpenOptions::default(), WriteOptions::new())?;
//! // For the example a second descriptor; in earnest that of `disk.data_storage().as_file()`.
//! let file = std::fs::File::options().read(true).write(true).open(&path)?;
//!
//! let write = disk.prepare_write(8192, 4096)?.ok_or("another request has this cluster")?;
//! for place in write.places() {
//!     file.write_all_at(&vec![7; place.len as usize], place.host.0)?;
//! }
//! write.commit()?;
//! disk.flush()?; // From here on it survives a crash.
//!
//! let mapped = disk.map(8192, 4096)?;
//! let RangeKind::Data { host } = mapped.ranges()[0].kind else { panic!("not data") };
//! let mut bytes = [0; 4096];
//! file.read_exact_at(&mut bytes, host.0)?;
//! assert_eq!(bytes, [7; 4096]);
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//!
//! - As long as a [`MappedRange`] or a [`PreparedWrite`] lives, no place that it names is given to anything else, even if
//!   another thread discards the range: so drop them only when the transfer has ended, also after an error.
//!   Freed space is not used again before they are dropped: do not keep them longer than that.
//! - Whoever keeps a prepared write must not wait for another one's clusters:
//!   [`prepare_write`](Disk::prepare_write) never waits for them and gives `None`, but methods of the disk that write
//!   ([`write_at`](Disk::write_at), [`write_zeroes`](Disk::write_zeroes), [`discard`](Disk::discard)) wait until it is
//!   committed or dropped if they need the same clusters.
//! - Parts that the disk has as data of its own already are written in place, and a reader sees them at once.
//!   [`commit`](PreparedWrite::commit) is needed all the same, before a flush that is to make them durable.

use super::{Disk, DiskRange, Kind, range, raw_ranges};
use crate::exact::Exact;
use crate::format::HostOffset;
use crate::image::write::{Mapped, Part, Prepared};
use crate::io::WriteStorage;
use crate::{Error, Result};

/// Where the parts of a range lie, by [`Disk::map`].
#[derive(Debug)]
pub struct MappedRange<'a> {
    ranges: Vec<DiskRange>,
    _mapped: Option<Mapped<'a>>,
}

impl MappedRange<'_> {
    /// The parts, in ascending order and without gaps. Those of kind [`Data`](super::RangeKind::Data) can be read where they
    /// lie, and what is past the end of the file there is zeros; the others are read with [`Disk::read_at`].
    pub fn ranges(&self) -> &[DiskRange] {
        &self.ranges
    }
}

/// A part of a write, and where its bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WritePlace {
    /// Where it starts on the disk, in bytes.
    pub at: u64,
    /// Its length in bytes, never 0.
    pub len: u64,
    /// Where its first byte goes, in [`Disk::data_storage`].
    pub host: HostOffset,
    /// The disk leads there already: readers see the bytes as soon as they are written, and dropping the write does not
    /// take them back.
    pub in_place: bool,
}

fn place(&Part { at, len, host, in_place }: &Part) -> WritePlace {
    WritePlace { at, len, host, in_place }
}

/// A write that has its places, by [`Disk::prepare_write`], and whose data the caller moves. Dropping it takes it back.
#[derive(Debug)]
#[must_use = "dropping it takes the write back"]
pub struct PreparedWrite<'a> {
    disk: &'a Disk,
    places: Vec<WritePlace>,
    prepared: Option<Prepared<'a>>,
}

impl PreparedWrite<'_> {
    /// The parts, in ascending order and without gaps: nothing but these bytes is to be written.
    pub fn places(&self) -> &[WritePlace] {
        &self.places
    }

    /// Makes the disk read as what was written. All of it must have been written before. It is durable after the next
    /// [`flush`](Disk::flush).
    ///
    /// # Errors
    /// As [`Disk::write_at`]. Parts of the range may then be as before.
    pub fn commit(self) -> Result<()> {
        match self.prepared {
            Some(prepared) => self.disk.named(prepared.commit()),
            None => Ok(()),
        }
    }
}

/// Reading and writing in steps; see [`steps`](self).
impl Disk {
    /// Finds where each part of `len` bytes from `at` on lies; it stays there for as long as the result lives.
    ///
    /// # Errors
    /// As [`ranges`](Self::ranges).
    pub fn map(&self, at: u64, len: u64) -> Result<MappedRange<'_>> {
        let mapped = match &self.image {
            Kind::Raw(storage) => {
                let end = self.check_range(at, len).and_then(|()| at.plus(len));
                let ranges = end.and_then(|end| raw_ranges(&**storage, at, end));
                ranges.map(|ranges| MappedRange { ranges, _mapped: None })
            }
            Kind::Qcow2(writer) => writer.map_range(at, len).map(|mapped| {
                let ranges = mapped.pieces.iter().copied().map(range).collect();
                MappedRange { ranges, _mapped: Some(mapped) }
            }),
        };
        self.named(mapped)
    }

    /// Prepares a write of `len` bytes from `at` on: allocates clusters where there are none, and fills in what they have
    /// besides these bytes. Nobody sees any of it before it is [committed](PreparedWrite::commit). `None` if some of the
    /// clusters are just being allocated, zeroed or discarded by another request: end your own, and try again.
    ///
    /// Whole clusters ([`write_unit`](Self::write_unit)) need nothing filled in; for others that reads what the image is
    /// backed by, within this call.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at). Nothing of the disk has changed then.
    pub fn prepare_write(&self, at: u64, len: u64) -> Result<Option<PreparedWrite<'_>>> {
        let prepared = match &self.image {
            Kind::Raw(storage) => self.check_range(at, len).and_then(|()| {
                let end = at.plus(len)?;
                if len > 0 && end > storage.len() {
                    let failed = |error| Error::io("could not lengthen the image", error);
                    storage.set_len(end).map_err(failed)?;
                }
                let place = WritePlace { at, len, host: HostOffset(at), in_place: true };
                let places = (len > 0).then_some(place).into_iter().collect();
                Ok(Some(PreparedWrite { disk: self, places, prepared: None }))
            }),
            Kind::Qcow2(writer) => writer.prepare_write(at, len).map(|prepared| {
                let prepared = prepared?;
                let places = prepared.parts().iter().map(place).collect();
                Some(PreparedWrite { disk: self, places, prepared: Some(prepared) })
            }),
        };
        self.named(prepared)
    }

    /// What the offsets of data are offsets of: the external data file, or else the image. Its
    /// [`as_file`](crate::io::Storage::as_file) gives the descriptor, if it has one.
    pub fn data_storage(&self) -> &dyn WriteStorage {
        self.files.data_file.as_deref().unwrap_or(&*self.files.storage)
    }
}
