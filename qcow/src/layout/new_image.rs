//! The end of writing a new image, whichever operation makes it.

use super::{Finished, Placer, Sink};
use crate::Result;
use crate::format::HeaderArea;
use crate::io::OutputFile;

/// A new image all of whose content is placed.
#[derive(Debug)]
pub(crate) struct NewImage<'a> {
    pub(crate) placer: Placer,
    pub(crate) output: &'a OutputFile,
    /// The file ends where its last structure does, and not at a cluster.
    pub(crate) cut: bool,
}

impl NewImage<'_> {
    /// Completes the image, all but its name: writes the metadata that is still open, gives the file its
    /// length (and, if `reserve` is set, its space), and last of all writes the header, which `header`
    /// makes. On a device the header becomes durable after everything else, so that what is there is
    /// an image only once it is a whole one. Returns the length of the file.
    ///
    /// # Errors
    /// As [`Placer::finish`]; [`Io`](crate::ErrorKind::Io).
    pub(crate) fn finish(
        self,
        sink: &mut impl Sink,
        reserve: bool,
        header: impl FnOnce(&Finished) -> Result<HeaderArea>,
    ) -> Result<u64> {
        let finished = self.placer.finish(sink)?;
        let len = if self.cut { finished.used_length } else { finished.file_length };
        self.output.set_len(len)?;
        if reserve {
            self.output.reserve(0, len)?;
        }
        let header = header(&finished)?.to_bytes()?;
        self.output.barrier()?;
        self.output.write_at(&header, 0)?;
        Ok(len)
    }
}
