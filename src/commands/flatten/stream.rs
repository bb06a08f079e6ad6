//! `flatten SRC -` and `flatten - DST`: images that come and go through pipes.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::Path;

use qcow::chain::{Chain, Format};
use qcow::extent::LeftOut;
use qcow::io::FileStorage;
use qcow::ops::flatten::{FlattenJob, FlattenOptions, FlattenOutcome};
use qcow::{Error, Result};

use super::Flatten;
use crate::failure::Failure;
use crate::left_out::warn_left_out;
use crate::output::{OutputFormat, warn_line};
use crate::sandbox::Plan;
use crate::session::{Operation, Session};
use crate::size;

/// Whether the name means standard input or output.
pub(super) fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-"
}

impl Flatten {
    /// Writes the image to standard output.
    pub(super) fn send(
        &self,
        src: &Path,
        options: &FlattenOptions,
    ) -> Result<(FlattenOutcome, Option<LeftOut>), Failure> {
        if self.device || self.no_create || self.direct {
            return Err(
                Error::usage("--device, -n and --direct need a destination with a name").into()
            );
        }
        let stdout = io::stdout();
        if stdout.is_terminal() {
            return Err(Error::usage("refusing to write an image to a terminal")
                .hint("name a file, or redirect standard output to a file or a program")
                .into());
        }
        let output = own(stdout)?;
        let operation = Operation::start(&self.common, &self.work)?;
        let open = self.source.open_options(self.snapshot.as_deref());
        let session = Session::start(&self.common, Plan::new().chain(src, &open))?;
        let chain = match self.common.format() {
            OutputFormat::Human => session.open_chain(src, &open, &self.part)?,
            // Standard error is for the outcome.
            OutputFormat::Json => session.open_without_warnings(src, &open, &self.part)?,
        };
        refuse_source(&chain, &output)?;
        let outcome = operation.run(|observer, cancel| {
            let job = FlattenJob::begin_to_stream(&chain, output, options)?;
            session.all_is_open()?;
            job.run(observer, cancel)
        })?;
        // Standard error has the outcome, as JSON with all of this.
        let left_out = match self.common.format() {
            OutputFormat::Human => warn_left_out(&chain, OutputFormat::Human)?,
            OutputFormat::Json => chain.left_out()?,
        };
        Ok((outcome, left_out))
    }

    /// Reads a raw image from standard input and writes it to `dst`.
    pub(super) fn receive(
        &self,
        dst: &Path,
        options: &FlattenOptions,
    ) -> Result<FlattenOutcome, Failure> {
        if is_stream(dst) {
            return Err(Error::usage("source and destination cannot both be streams").into());
        }
        if self.source.format.is_some_and(|format| format != Format::Raw) {
            return Err(Error::usage("only a raw image can be read from a stream")
                .hint("a qcow2 image cannot be read sequentially: its tables may come after its data. Name a file")
                .into());
        }
        if self.snapshot.is_some() {
            return Err(Error::usage("a raw image has no internal snapshots").into());
        }
        let stated = self.source.format.is_some();
        self.source.open_options(None).policy.check_stated(stated)?;
        let raw_stated = stated && !self.source.trust.untrusted;
        let options = &options.clone().raw_stated(raw_stated);
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Err(Error::usage("refusing to read an image from a terminal").into());
        }
        let size = self.size.as_deref().map(size::parse_disk).transpose()?;
        let operation = Operation::start(&self.common, &self.work)?;
        let input = own(stdin)?;
        let session = Session::start(&self.common, self.outputs(dst, options))?;
        let outcome = operation.run(|observer, cancel| {
            let job = FlattenJob::begin_from_stream(input, size, dst, options)?;
            session.all_is_open()?;
            job.run(observer, cancel)
        })?;
        if let Some(looks) = outcome.looks_like {
            warn_line(format_args!(
                "standard input is read as raw, as stated, although it looks like {looks}"
            ));
        }
        Ok(outcome)
    }
}

/// A descriptor of our own, which nothing else reads or writes through.
fn own(stream: impl AsFd) -> Result<File> {
    let owned = stream.as_fd().try_clone_to_owned();
    owned.map(File::from).map_err(|error| Error::io("could not use the standard stream", error))
}

/// The shell's `>>` may have opened what is read.
fn refuse_source(chain: &Chain, output: &File) -> Result<()> {
    let file = output.try_clone().map_err(|error| Error::io("could not use the stream", error))?;
    // Only files and devices can be layers.
    let Ok(target) = FileStorage::from_file(file) else { return Ok(()) };
    let identity = target.identity();
    if chain.layers().iter().any(|layer| layer.storage().identity() == Some(identity)) {
        return Err(Error::usage("standard output is one of the images being read"));
    }
    Ok(())
}
