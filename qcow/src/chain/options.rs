//! How an image and its chain are opened.

use std::path::PathBuf;

use super::{BackingFormats, Format, Limits, Policy, WorkingDirectory};
use crate::CancelToken;
use crate::setters::setters;

/// How to open an image and its backing chain.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Format of the active layer; `None` looks at its first bytes ([`Format::probe`]).
    pub format: Option<Format>,
    /// Formats of backing files that no header records; without one such a file is refused.
    pub backing_formats: BackingFormats,
    /// Internal snapshot (id, then name) whose view to read instead of the current state.
    pub snapshot: Option<String>,
    /// Read images that another process may be changing (`qemu-img -U`): what is read may be
    /// neither the old nor the new state.
    pub force_share: bool,
    /// Files to open in place of others: wherever the chain comes to the first path, the second is
    /// opened, whatever `policy` says. For a base that was deleted while a process holds it open: its
    /// name, and `/proc/PID/fd/N`.
    pub overrides: Vec<(PathBuf, PathBuf)>,
    /// Where relative names behind `json:` and `file:` start.
    pub working_directory: WorkingDirectory,
    /// What may be opened.
    pub policy: Policy,
    /// How much may be demanded.
    pub limits: Limits,
    /// Asks the opening of an image for writing to stop: all its metadata is read then, which may take long.
    pub cancel: CancelToken,
}

setters!(OpenOptions {
    backing_formats: BackingFormats,
    force_share: bool,
    overrides: Vec<(PathBuf, PathBuf)>,
    working_directory: WorkingDirectory,
    policy: Policy,
    limits: Limits,
    cancel: CancelToken,
} into {
    format: Option<Format>,
    snapshot: Option<String>,
});
