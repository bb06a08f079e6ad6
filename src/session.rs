//! What the commands that read images share: the sandbox around the opening of images, and long operations
//! with progress that a signal stops.

use std::path::{Path, PathBuf};

use qcow::chain::{Chain, Files, OpenOptions, walk};
use qcow::disk::{Disk, Repaired, WriteOptions};
use qcow::{CancelToken, Observer, Result};

use crate::args::{Common, PartArgs, Verbosity, WorkArgs};
use crate::failure::Failure;
use crate::format::shown;
use crate::output::warn_line;
use crate::progress::{Progress, When};
use crate::sandbox::{Plan, Sandbox};
use crate::signals::Watch;

/// A command that has entered its sandbox and opens images.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    verbosity: &'a Verbosity,
    sandbox: Sandbox,
}

impl<'a> Session<'a> {
    /// Gives up what `plan` does not need. Signal handlers ([`Operation`]) are set up before, and what depends on
    /// this machine, such as the number of its cores, is found out before.
    ///
    /// # Errors
    /// As [`Sandbox::enter`].
    pub(crate) fn start(common: &'a Common, plan: Plan) -> Result<Self> {
        Ok(Self { verbosity: &common.verbosity, sandbox: common.sandbox.enter(plan)? })
    }

    /// Opens the chain of the image at `path`, or the upper part of it, and prints the warnings about it.
    ///
    /// # Errors
    /// As [`PartArgs::open`].
    pub(crate) fn open_chain(
        &self,
        path: &Path,
        options: &OpenOptions,
        part: &PartArgs,
    ) -> Result<Chain> {
        let chain = self.open_without_warnings(path, options, part)?;
        self.verbosity.opened(&chain);
        Ok(chain)
    }

    /// As [`open_chain`](Self::open_chain), where standard error is for the outcome alone.
    ///
    /// # Errors
    /// As [`PartArgs::open`].
    pub(crate) fn open_without_warnings(
        &self,
        path: &Path,
        options: &OpenOptions,
        part: &PartArgs,
    ) -> Result<Chain> {
        self.verbosity.opening(path, options.format);
        part.open(path, options)
    }

    /// Gives up opening files. To be called before image data is parsed and before workers start.
    ///
    /// # Errors
    /// As [`Sandbox::all_is_open`].
    pub(crate) fn all_is_open(&self) -> Result<()> {
        self.sandbox.all_is_open()
    }
}

/// Opens a disk to be written to, and warns if its image had not been closed properly.
///
/// # Errors
/// As [`Disk::open`].
pub(crate) fn open_disk(path: &Path, open: &OpenOptions) -> Result<Disk> {
    let disk = Disk::open(path, open, WriteOptions::new())?;
    warn_repaired(path, disk.repaired(), false);
    Ok(disk)
}

/// Warns if the image at `path` had not been closed properly, and so was, or for a plan would be, repaired.
pub(crate) fn warn_repaired(path: &Path, repaired: Option<Repaired>, plan: bool) {
    let Some(Repaired { corruptions, leaks, .. }) = repaired else { return };
    let (path, was) = (shown(path), if plan { "would be" } else { "was" });
    warn_line(format_args!(
        "'{path}' was not closed properly, and its metadata {was} repaired: {corruptions} errors, {leaks} leaked clusters"
    ));
}

/// A long operation: shows progress, and stops at the first signal. Started before the sandbox is entered.
#[derive(Debug)]
pub(crate) struct Operation {
    watch: Watch,
    progress: Progress,
}

impl Operation {
    /// Sets up signal handlers and the progress display that was asked for.
    ///
    /// # Errors
    /// `Io` if the handlers cannot be set up.
    pub(crate) fn start(common: &Common, work: &WorkArgs) -> Result<Self> {
        Self::showing(work.progress(&common.verbosity))
    }

    /// As [`start`](Self::start), for commands with a progress option of their own, or none.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) fn showing(when: When) -> Result<Self> {
        Ok(Self { watch: Watch::start()?, progress: Progress::new(when) })
    }

    /// What a signal sets.
    pub(crate) fn token(&self) -> CancelToken {
        self.watch.token().clone()
    }

    /// Runs `work`, ends the display, and tells an operation that a signal stopped from one that failed.
    ///
    /// # Errors
    /// What `work` returns.
    pub(crate) fn run<T>(
        &self,
        work: impl FnOnce(&dyn Observer, &CancelToken) -> Result<T>,
    ) -> Result<T, Failure> {
        let result = work(&self.progress, self.watch.token());
        self.progress.finish(result.is_ok());
        self.watch.settle(result)
    }

    /// As [`run`](Self::run), for what the `migrate` crate does.
    ///
    /// # Errors
    /// What `work` returns.
    pub(crate) fn run_migration<T>(
        &self,
        work: impl FnOnce(&dyn Observer, &CancelToken) -> migrate::Result<T>,
    ) -> Result<T, Failure> {
        let result = work(&self.progress, self.watch.token());
        self.progress.finish(result.is_ok());
        self.watch.settle_migration(result)
    }

    /// As [`run_migration`](Self::run_migration), for a step that shows no progress.
    ///
    /// # Errors
    /// What `work` returns.
    pub(crate) fn settle_migration<T>(
        &self,
        work: impl FnOnce(&CancelToken) -> migrate::Result<T>,
    ) -> Result<T, Failure> {
        self.watch.settle_migration(work(self.watch.token()))
    }
}

/// The image at `path` is changed in place, with its external data file.
pub(crate) fn changing(plan: Plan, path: &Path, open: &OpenOptions) -> Plan {
    let plan = plan.changing(path);
    match data_file(path, open) {
        // A path, whatever it looks like.
        Some(data) => plan.changing(&Path::new(".").join(data)),
        None => plan,
    }
}

/// The external data file of the image at `path`. Whatever is wrong with the image, opening it tells.
fn data_file(path: &Path, open: &OpenOptions) -> Option<PathBuf> {
    walk(Files::new(open), path, open).next()?.ok()?.data_file()
}
