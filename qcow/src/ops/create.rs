//! Makes an empty image of exactly the right size.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::TargetOptions;
use crate::chain::{Format, OpenOptions};
use crate::{Error, Result};

/// What to create.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Virtual size in bytes, rounded up to 512; taken from the backing file when `None`.
    pub size: Option<u64>,
    /// Format of the new image and its options.
    pub target: TargetOptions,
    /// The image that the new one stands on.
    pub backing: Option<Backing>,
    /// Replace an existing file, atomically.
    pub replace: bool,
}

/// The backing file of a new image.
#[derive(Debug, Clone)]
pub struct Backing {
    /// The name as it will stand in the header; relative to the new image's directory.
    pub name: PathBuf,
    /// Its format, always recorded.
    pub format: Format,
    /// Do not open the backing file at all (`qemu-img create -u`).
    pub unchecked: bool,
    /// How to open it, if it is opened.
    pub open: OpenOptions,
}

/// What was created.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CreateOutcome {
    /// The new image.
    pub filename: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_length: u64,
}

/// Creates an empty image at `path`.
///
/// # Errors
/// `Usage` for options that do not go together, `Io` if the file exists or cannot be written.
pub fn create(path: &Path, options: &CreateOptions) -> Result<CreateOutcome> {
    let _ = (path, options);
    Err(Error::unsupported("not built yet"))
}

/// The options for an empty image of the same virtual size and geometry as the QCOW2 or raw
/// image that `open` describes, without its chain.
///
/// # Errors
/// As [`Chain::open`](crate::chain::Chain::open), but backing and data files are not opened.
pub fn like(path: &Path, open: &OpenOptions) -> Result<CreateOptions> {
    let _ = (path, open);
    Err(Error::unsupported("not built yet"))
}
