//! `qemu-img rebase`.

use std::ffi::OsString;

use qcow::chain::Format;
use qcow::ops::backing::{BackingFile, ChangeBackingOptions, change_backing};
use qcow::{Error, ErrorKind};

use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::say::Stop;
use crate::qemu_img::{arguments, objects, words, writing};
use crate::sandbox::Plan;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "format"),
    value(Key::Backing, b'b', "backing"),
    value(Key::BackingFormat, b'F', "backing-format"),
    value(Key::Cache, b't', "cache"),
    value(Key::SourceCache, b'T', "backing-cache"),
    flag(Key::BackingUnsafe, b'u', "backing-unsafe"),
    flag(Key::Compress, b'c', "compress"),
    flag(Key::Progress, b'p', "progress"),
    flag(Key::Quiet, b'q', "quiet"),
    flag(Key::ForceShare, b'U', "force-share"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// Changes the backing file.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let operand = given.only_operand("Expecting one image file name", true)?;
    let unchecked = given.has(Key::BackingUnsafe);
    if !unchecked && !given.has(Key::Backing) {
        return Err(Stop::usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    objects::check(&given)?;
    open::target_cache(&given)?;
    open::source_cache(&given, Key::SourceCache)?;
    // Sharing is for the new backing file alone.
    let opening = Opening { force_share: false, ..Opening::of(&given)? };
    let source = opening.source(operand)?;
    let format = open::driver(&given, Key::Format, &source.shown)?;
    if !unchecked {
        return Err(Stop::error("Only unsafe mode (-u) can be used as yet"));
    }
    open::enter(Plan::new().image(&source.path).changing(&source.path).opened_again())?;
    let target = writing::prepare(&source, &opening, format)?;
    let backing_format = given.text(Key::BackingFormat);
    if let Some(name) = &backing_format
        && !KNOWN.contains(&name.as_str())
    {
        return Err(Stop::error(format!("Invalid format name: '{name}'")));
    }
    let backing = given.text(Key::Backing).filter(|name| !name.is_empty());
    let shown = backing.clone().unwrap_or_default();
    let refused =
        |why: &str| Stop::error(format!("Could not change the backing file to '{shown}': {why}"));
    if target.format == Format::Raw {
        return Err(refused("Operation not supported"));
    }
    let backing = match (backing, backing_format) {
        (None, _) => None,
        (Some(_), None) => return Err(refused("backing format must be specified")),
        (Some(name), Some(format)) => Some(BackingFile::new(name, format)),
    };
    let options =
        ChangeBackingOptions::default().unchecked(true).open(opening.options(Some(Format::Qcow2)));
    match change_backing(&source.file(), backing.as_ref(), &options) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(writing::not_opened(&source, &error).unwrap_or_else(|| not_changed(&shown, &error)))
        }
    }
}

/// Formats that a header may record, whether this program reads them or not.
const KNOWN: [&str; 14] = [
    "qcow2",
    "raw",
    "file",
    "host_device",
    "qcow",
    "qed",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "luks",
    "parallels",
    "dmg",
    "bochs",
];

fn not_changed(name: &str, error: &Error) -> Stop {
    let refused =
        |why: &str| Stop::error(format!("Could not change the backing file to '{name}': {why}"));
    match error.kind() {
        ErrorKind::Limit if name.len() > 1023 => refused("Invalid argument"),
        ErrorKind::Limit => Stop::error(format!(
            "Could not change the backing file to '{name}': No space left in the file header"
        )),
        ErrorKind::Usage => refused("Invalid argument"),
        _ => refused(&words::plain(error)),
    }
}
