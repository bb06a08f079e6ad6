//! Opening images for reading, by QEMU's rules: formats that nothing records are probed, and so are those of
//! backing files.

use std::ffi::OsStr;
use std::path::Path;

use qcow::chain::{BackingFormats, Chain, Format, OpenOptions};

use super::getopt::{Key, Parsed};
use super::names::{self, Source};
use super::say::{Stop, warning};
use super::{cache, words};
use crate::sandbox::{Mode, Plan, Sandbox};

/// How the images of one command are opened.
#[derive(Debug, Default)]
pub(super) struct Opening {
    pub(super) image_opts: bool,
    pub(super) force_share: bool,
}

impl Opening {
    /// What the command line says of all its sources.
    ///
    /// # Errors
    /// For `--image-opts` with a format.
    pub(super) fn of(given: &Parsed) -> Result<Self, Stop> {
        let image_opts = given.has(Key::ImageOpts);
        if image_opts && given.has(Key::Format) {
            return Err(Stop::error("--image-opts and --format are mutually exclusive"));
        }
        Ok(Self { image_opts, force_share: given.has(Key::ForceShare) })
    }

    /// The image of this operand.
    ///
    /// # Errors
    /// As [`names::source`].
    pub(super) fn source(&self, operand: &OsStr) -> Result<Source, Stop> {
        names::source(operand, self.image_opts)
    }

    /// The library's options for an image of a format, or one that is probed.
    pub(super) fn options(&self, format: Option<Format>) -> OpenOptions {
        OpenOptions::default()
            .format(format)
            .backing_formats(BackingFormats::new().probed(true))
            .force_share(self.force_share)
    }
}

/// The format that an option names.
///
/// # Errors
/// In the words for an image that cannot be opened as `shown`.
pub(super) fn driver(given: &Parsed, key: Key, shown: &str) -> Result<Option<Format>, Stop> {
    let Some(name) = given.text(key) else { return Ok(None) };
    let unknown = |_| Stop::error(format!("Could not open '{shown}': Unknown driver '{name}'"));
    name.parse().map(Some).map_err(unknown)
}

/// Opens the chain of `source`.
///
/// # Errors
/// In `qemu-img`'s words.
pub(super) fn chain(source: &Source, options: &OpenOptions) -> Result<Chain, Stop> {
    Chain::open(&source.path, options)
        .map_err(|error| words::not_opened(&source.shown, &source.file(), &error))
}

/// Checks a cache mode of a source.
///
/// # Errors
/// For a mode that is not known.
pub(super) fn source_cache(given: &Parsed, key: Key) -> Result<(), Stop> {
    match given.text(key) {
        Some(name) if cache::mode(OsStr::new(&name)).is_none() => {
            Err(Stop::error(format!("Invalid source cache option: {name}")))
        }
        _ => Ok(()),
    }
}

/// Checks the cache mode of what is written.
///
/// # Errors
/// For a mode that is not known.
pub(super) fn target_cache(given: &Parsed) -> Result<(), Stop> {
    match given.text(Key::Cache) {
        Some(name) if cache::mode(OsStr::new(&name)).is_none() => {
            Err(Stop::error(format!("Invalid cache option: {name}")))
        }
        _ => Ok(()),
    }
}

/// Gives up what `plan` does not need, as far as the kernel can.
///
/// # Errors
/// None in this mode; the type is the sandbox's.
pub(super) fn enter(plan: Plan) -> Result<Sandbox, Stop> {
    Sandbox::enter(Mode::Auto, plan).map_err(Stop::error)
}

/// Gives up opening files.
///
/// # Errors
/// As [`enter`].
pub(super) fn all_is_open(sandbox: &Sandbox) -> Result<(), Stop> {
    sandbox.all_is_open().map_err(Stop::error)
}

/// Warns of a raw file that nobody said is one, and that is about to be written to.
pub(super) fn warn_of_probed_raw(file: &Path) {
    let file = file.to_string_lossy();
    super::say::line(format_args!(
        "WARNING: Image format was not specified for '{file}' and probing guessed raw."
    ));
    super::say::line(
        "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.",
    );
    super::say::line("         Specify the 'raw' format explicitly to remove the restrictions.");
}

/// Passes on what the library warns of.
pub(super) fn warn(warnings: &[String]) {
    warnings.iter().for_each(warning);
}
