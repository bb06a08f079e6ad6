//! A change that is made, and is to be carried out.

use std::ops::Range;
use std::sync::Arc;

use super::flags::bytes_of;
use crate::exact::Exact;
use crate::format::{Geometry, HostOffset};
use crate::image::update::Staged;
use crate::image::write::no_space;
use crate::io::{Storage, WriteStorage, Zeroes};
use crate::{Error, Result};

/// A new state of an image, not written yet.
#[derive(Debug)]
pub(crate) struct Change {
    staged: Staged,
    /// New space that is to read as zeros.
    zeroed: Vec<(HostOffset, u64, Zeroes)>,
    /// Offsets and lengths of what only the old state uses.
    freed: Vec<(u64, u64)>,
    /// Length of the file before, and where the last cluster in use ends after it.
    old_end: u64,
    new_end: u64,
}

impl Change {
    pub(super) fn new(
        staged: Staged,
        zeroed: Vec<(HostOffset, u64, Zeroes)>,
        geometry: Geometry,
        freed: &[Range<u64>],
        old_end: u64,
        new_end: u64,
    ) -> Result<Self> {
        let freed = freed.iter().map(|run| bytes_of(run, geometry)).collect::<Result<_>>()?;
        Ok(Self { staged, zeroed, freed, old_end, new_end })
    }

    /// Whether nothing changes.
    pub(crate) fn is_empty(&self) -> bool {
        self.staged.is_empty()
    }

    /// The image as it will be: to be checked before it is written.
    pub(crate) fn result(&self) -> Arc<dyn Storage> {
        self.staged.result()
    }

    /// Bytes that become free.
    pub(crate) fn freed(&self) -> Result<u64> {
        self.freed.iter().try_fold(0u64, |sum, (_, len)| sum.plus(*len))
    }

    /// Length of the file afterwards.
    pub(crate) fn file_len(&self) -> u64 {
        if self.new_end < self.old_end {
            self.new_end
        } else {
            self.result().len().max(self.zeroed_end())
        }
    }

    /// Carries the change out: writes the new state, switches the header, gives back what is free.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) and its kin. If the header was not written yet, the image is the old one, and if
    /// writing failed as long as before; if writing or syncing it failed, it is the old or the new one.
    pub(crate) fn apply(&self, target: &dyn WriteStorage) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let (before, mut written) = (target.len(), 0);
        let applied =
            self.zero(target).and_then(|()| self.staged.apply_counted(target, &mut written));
        if written == 0 && applied.is_err() && target.capabilities().resize {
            // What the first phase writes nothing refers to yet; where it is the header itself, the file has not grown. After a
            // sync that failed nothing is written any more, and the length stays.
            let _ = if target.len() > before { target.set_len(before) } else { Ok(()) };
        }
        applied?;
        // The image is what it is to be; that space is not given back hurts nothing.
        let end = self.file_len();
        for (offset, len) in self.freed.iter().filter(|(offset, _)| *offset < end) {
            if target.discard(*offset, *len).is_err() {
                break;
            }
        }
        if target.capabilities().resize && end < target.len() {
            let _ = target.set_len(end);
        }
        Ok(())
    }

    fn zeroed_end(&self) -> u64 {
        // The ends were added up when the space was allocated.
        let ends = self.zeroed.iter().filter_map(|(host, len, _)| host.0.checked_add(*len));
        ends.max().unwrap_or_default()
    }

    fn zero(&self, target: &dyn WriteStorage) -> Result<()> {
        let failed = |error| no_space(Error::io("could not reserve space", error));
        let end = self.zeroed_end();
        if target.capabilities().resize && end > target.len() {
            target.set_len(end).map_err(failed)?;
        }
        for (host, len, how) in &self.zeroed {
            let there = self.old_end.clamp(host.0, host.0.plus(*len)?);
            match how {
                // Behind the old end all is zeros, and nothing is allocated.
                Zeroes::Unmap => target.write_zeroes(host.0, there.minus(host.0)?, *how),
                Zeroes::Keep | Zeroes::Allocate => target.write_zeroes(host.0, *len, *how),
            }
            .map_err(|error| failed(error).host_offset(host.0))?;
        }
        Ok(())
    }
}
