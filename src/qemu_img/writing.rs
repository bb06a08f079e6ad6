//! Images that are changed where they are: what is done before, whichever command changes them.

use qcow::chain::Format;
use qcow::ops::check::{CheckOptions, RepairOptions, Scope, repair};
use qcow::ops::info::{FormatSpecific, ImageInfo, InfoOptions, info};
use qcow::{CancelToken, Silent};

use super::commands::check::lines;
use super::names::Source;
use super::open::{self, Opening};
use super::say::{self, Stop};
use super::words;

/// An image that is about to be changed.
#[derive(Debug)]
pub(super) struct Target {
    /// Its format, stated or probed.
    pub(super) format: Format,
    /// What it says of itself.
    pub(super) info: ImageInfo,
}

impl Target {
    /// Whether it has persistent bitmaps.
    pub(super) fn has_bitmaps(&self) -> bool {
        matches!(&self.info.format_specific, Some(FormatSpecific::Qcow2(qcow2)) if !qcow2.bitmaps.is_empty())
    }
}

/// Looks at the image, warns of a raw one that nobody said is raw, refuses a corrupt one, and repairs one that
/// was not closed. The sandbox has been entered.
///
/// # Errors
/// In `qemu-img`'s words.
pub(super) fn prepare(
    source: &Source,
    opening: &Opening,
    format: Option<Format>,
) -> Result<Target, Stop> {
    let refuse = |why: &str| Err(Stop::error(format!("Could not open '{}': {why}", source.shown)));
    if opening.force_share {
        return refuse("force-share=on can only be used with read-only images");
    }
    // It is locked when it is opened for writing.
    let options = InfoOptions::default().open(opening.options(format).force_share(true));
    let look = || {
        info(&source.path, &options)
            .map_err(|error| words::not_opened(&source.shown, &source.file(), &error))
    };
    let mut image = look()?.into_iter().next().ok_or_else(|| Stop::silent(1))?;
    let found = image.format.parse().unwrap_or(Format::Raw);
    if found == Format::Raw && format.is_none() && !source.is_tree() {
        open::warn_of_probed_raw(&source.file());
    }
    if let Some(FormatSpecific::Qcow2(qcow2)) = &image.format_specific {
        let stated = source.states_data_file();
        match (qcow2.data_file_raw, &qcow2.data_file) {
            (None, _) if stated => {
                return refuse("'data-file' can only be set for images with an external data file");
            }
            (Some(_), None) if !stated => return refuse("'data-file' is required for this image"),
            _ => {}
        }
    }
    if let Some(FormatSpecific::Qcow2(qcow2)) = &image.format_specific
        && qcow2.corrupt == Some(true)
    {
        return refuse("qcow2: Image is corrupt; cannot be opened read/write");
    }
    if image.dirty_flag {
        let check = CheckOptions::default().format(Some(found));
        let options = RepairOptions::new(Scope::All).check(check);
        let repaired = repair(&source.path, &options, &Silent, &CancelToken::new())
            .map_err(|error| words::not_opened(&source.shown, &source.file(), &error))?;
        lines::repairs(&repaired).iter().for_each(say::line);
        image = look()?.into_iter().next().unwrap_or(image);
    }
    Ok(Target { format: found, info: image })
}

/// Why an image that is to be changed cannot be opened, if that is what `error` says.
pub(super) fn not_opened(source: &Source, error: &qcow::Error) -> Option<Stop> {
    use qcow::ErrorKind;
    match error.kind() {
        ErrorKind::InUse => Some(words::not_writable(&source.shown, &source.file(), error)),
        ErrorKind::Encrypted => Some(words::not_opened(&source.shown, &source.file(), error)),
        ErrorKind::Io | ErrorKind::NotFound if error.message().starts_with("could not open") => {
            Some(words::not_opened(&source.shown, &source.file(), error))
        }
        _ => None,
    }
}
