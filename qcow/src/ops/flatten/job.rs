//! A flatten in two steps: the files are opened, then the work is done.

use std::fmt;
use std::fs::File;
use std::path::Path;

use super::options::{FlattenOptions, carried};
use super::outcome::{FlattenOutcome, outcome, with_losses};
use super::{qcow2, raw, stream};
use crate::chain::{Chain, Format};
use crate::ops::TargetOptions;
use crate::ops::bitmap::Carried;
use crate::{CancelToken, Error, Observer, Result};

type Work<'a> = dyn FnOnce(&dyn Observer, &CancelToken) -> Result<FlattenOutcome> + 'a;

/// A flatten whose files are all open: from here on it opens nothing, starts its workers, and parses image
/// data. Between the two steps a caller can drop privileges. A job that is dropped leaves no file.
///
/// ```no_run
/// use std::path::Path;
/// use qcow::chain::{Chain, OpenOptions};
/// use qcow::ops::flatten::{FlattenJob, FlattenOptions};
/// use qcow::{CancelToken, Silent};
///
/// let chain = Chain::open(Path::new("overlay.qcow2"), &OpenOptions::default())?;
/// let options = FlattenOptions::default();
/// let job = FlattenJob::begin(&chain, Path::new("standalone.qcow2"), &options)?;
/// // Drop privileges here.
/// let done = job.run(&Silent, &CancelToken::new())?;
/// # Ok::<(), qcow::Error>(())
/// ```
pub struct FlattenJob<'a>(Box<Work<'a>>);

impl<'a> FlattenJob<'a> {
    /// Checks the options and opens the files of the new image at `path`, under temporary names if they are
    /// new. See [`flatten`](super::flatten), which does both steps.
    ///
    /// # Errors
    /// Whatever opening the destination raises; [`Usage`](crate::ErrorKind::Usage) for options that exclude each
    /// other.
    pub fn begin(chain: &'a Chain, path: &'a Path, options: &'a FlattenOptions) -> Result<Self> {
        if chain.contains_file(path) {
            return Err(Error::usage("the target is one of the images being read").file(path));
        }
        if options.salvage && options.digest {
            return Err(Error::usage(
                "a digest of an image with damage would be of another content",
            )
            .hint("take it of the new image"));
        }
        let carried = carried(chain, options).map_err(|error| error.file(path))?;
        // Where a sector cannot be read, the page cache loses what it would read together with it.
        if options.direct || options.salvage {
            chain.read_direct();
        }
        let finish = move |format, carried: &Carried, done| {
            let outcome = outcome(path, format, chain.virtual_size(), done);
            with_losses(chain, &options.target, carried, outcome)
        };
        Ok(match &options.target {
            TargetOptions::Raw(target) => {
                let output = raw::begin(path, options)?;
                Self::new(move |observer, cancel| {
                    let done = raw::flatten(chain, output, target, options, observer, cancel)?;
                    finish(Format::Raw, &carried, done)
                })
            }
            TargetOptions::Qcow2(target) => {
                let begun = qcow2::begin(chain, path, target, &carried, options)?;
                Self::new(move |observer, cancel| {
                    let source = (chain, &carried);
                    let done = qcow2::flatten(source, begun, options, observer, cancel)?;
                    finish(Format::Qcow2, &carried, done)
                })
            }
        })
    }

    /// As [`begin`](Self::begin), to `output`, which need not be able to seek: a raw image with its zeros, or a
    /// QCOW2 image that is the same byte for byte as the file that [`flatten`](super::flatten) would write
    /// (without cloning). For QCOW2 the source is read twice. What was written before an error is of no
    /// use.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) for what a stream cannot hold: a data file, preallocation.
    pub fn begin_to_stream(
        chain: &'a Chain,
        output: File,
        options: &'a FlattenOptions,
    ) -> Result<Self> {
        stream::check_sending(options)?;
        Ok(Self::new(move |observer, cancel| {
            stream::send(chain, output, options, observer, cancel)
        }))
    }

    /// As [`begin`](Self::begin), from the disk that `input` brings, from its first byte to its last. If the
    /// disk's size is known, the stream must be as long; else the end of the stream is the end of the disk.
    /// Zeros are left out.
    ///
    /// [`run`](Self::run) refuses a stream that begins or ends as an image of some format does, or as compressed data
    /// or an archive, unless [`raw_stated`](FlattenOptions::raw_stated) is set; its end is known only when all of
    /// it was read. That is [`WrongFormat`](crate::ErrorKind::WrongFormat), and a stream that is not as long as
    /// `size` says is [`Usage`](crate::ErrorKind::Usage).
    ///
    /// # Errors
    /// As [`begin`](Self::begin); [`Usage`](crate::ErrorKind::Usage) for options that need the size before: a
    /// data file, preallocation.
    pub fn begin_from_stream(
        input: File,
        size: Option<u64>,
        path: &'a Path,
        options: &'a FlattenOptions,
    ) -> Result<Self> {
        let receiver = stream::begin_receiving(path, options)?;
        Ok(Self::new(move |observer, cancel| {
            stream::receive((input, size), (path, receiver), options, observer, cancel)
        }))
    }

    fn new(work: impl FnOnce(&dyn Observer, &CancelToken) -> Result<FlattenOutcome> + 'a) -> Self {
        Self(Box::new(work))
    }

    /// Reads the source and writes the new image, which appears under its name when it is whole.
    ///
    /// # Errors
    /// As [`flatten`](super::flatten). In every error case nothing is left that was not there before.
    pub fn run(self, observer: &dyn Observer, cancel: &CancelToken) -> Result<FlattenOutcome> {
        (self.0)(observer, cancel)
    }
}

impl fmt::Debug for FlattenJob<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlattenJob").finish_non_exhaustive()
    }
}
