//! `convert --bitmaps`: what is said about bitmaps.

use qcow::chain::{Chain, Format};
use qcow::image::{BitmapInfo, Image};
use qcow::ops::bitmap::CarryBitmaps;
use qcow::{Error, ErrorKind};

use crate::qemu_img::getopt::{Key, Parsed};
use crate::qemu_img::new::NewImage;
use crate::qemu_img::say::{Stop, warning};

/// Which bitmaps are to be copied.
pub(super) fn wanted(given: &Parsed) -> CarryBitmaps {
    match (given.has(Key::Bitmaps), given.has(Key::SkipBroken)) {
        (false, _) => CarryBitmaps::None,
        (true, false) => CarryBitmaps::All,
        (true, true) => CarryBitmaps::Sound,
    }
}

/// Refuses bitmaps that cannot be copied, as far as the source and the new image's options tell.
///
/// # Errors
/// The first reason, in QEMU's words.
pub(super) fn check(given: &Parsed, source: &Chain, target: &NewImage) -> Result<(), Stop> {
    if !given.has(Key::Bitmaps) {
        return Ok(());
    }
    let image = image(source).filter(|image| image.header().version == qcow::format::Version::V3);
    let image = image.ok_or_else(|| Stop::error("Source lacks bitmap support"))?;
    if !given.has(Key::SkipBroken)
        && let Some(broken) = broken(image).next()
    {
        return Err(Stop::error(format!("Cannot copy inconsistent bitmap '{}'", name(broken)))
            .hint("Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it"));
    }
    let old = matches!(target.get("compat"), Some("0.10" | "v2"));
    if target.format == Format::Raw || (old && !given.has(Key::NoCreate)) {
        return Err(unsupported(target.format));
    }
    Ok(())
}

/// Why an image that is there did not get them, if that is why it was not copied to.
pub(super) fn refused(error: &Error, source: &Chain, format: Format) -> Option<Stop> {
    let message = error.message();
    let last = image(source)?.bitmaps().iter().rfind(|bitmap| !bitmap.in_use);
    match error.kind() {
        ErrorKind::Unsupported if message.starts_with("the target cannot have bitmaps") => {
            Some(unsupported(format))
        }
        ErrorKind::Exists => {
            let name = message.split_once(" a bitmap named '")?.1.trim_end_matches('\'');
            let text = format!("Failed to create bitmap {name}: Bitmap already exists: {name}");
            Some(Stop::error(text))
        }
        ErrorKind::Usage => {
            let sizes = message.strip_prefix("bitmaps of different sizes, ")?;
            let (destination, rest) = sizes.split_once(" and ")?;
            let (source, _) = rest.split_once(' ')?;
            Some(Stop::error(format!(
                "Failed to populate bitmap {}: Bitmaps are of different sizes (destination size is {destination}, \
                 source size is {source}) and can't be merged",
                last.map(name).unwrap_or_default(),
            )))
        }
        _ => None,
    }
}

/// Warns of those that were left out.
pub(super) fn warn_of_skipped(given: &Parsed, source: &Chain) {
    if given.has(Key::SkipBroken) {
        for bitmap in image(source).iter().flat_map(|image| broken(image)) {
            warning(format_args!("Skipping inconsistent bitmap '{}'", name(bitmap)));
        }
    }
}

fn image(source: &Chain) -> Option<&Image> {
    source.layers().first().and_then(|layer| layer.image())
}

/// The last of them is the first that QEMU finds.
fn broken(image: &Image) -> impl Iterator<Item = &BitmapInfo> {
    image.bitmaps().iter().rev().filter(|bitmap| bitmap.in_use)
}

fn name(bitmap: &BitmapInfo) -> String {
    String::from_utf8_lossy(&bitmap.name).into_owned()
}

fn unsupported(format: Format) -> Stop {
    Stop::error(format!("Format driver '{format}' does not support bitmaps"))
}
