//! `qemu-img resize`.

use std::ffi::OsString;

use qcow::chain::Format;
use qcow::ops::Preallocation;
use qcow::ops::resize::{NewSize, ResizeOptions, resize};
use qcow::{CancelToken, Error, ErrorKind, Silent};

use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::say::{Stop, print};
use crate::qemu_img::{arguments, number, objects, words, writing};
use crate::sandbox::Plan;
use crate::session::changing;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "format"),
    value(Key::Preallocation, 0, "preallocation"),
    flag(Key::Shrink, 0, "shrink"),
    flag(Key::Quiet, b'q', "quiet"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// Changes the size of a disk.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    // The last argument is the size, whatever it looks like: -1M needs no `--`.
    let (size, words) = match words.split_last() {
        Some((last, words)) if looks_like_size(last) => (Some(last), words),
        _ => (None, words),
    };
    let given = arguments(OPTIONS, words)?;
    let (operand, size) = match (given.operands.as_slice(), size) {
        ([operand], Some(size)) => (operand, size),
        ([operand, size], None) => (operand, size),
        (_, None) if given.operands.len() < 2 => return Err(Stop::usage("Not enough arguments")),
        _ => return Err(Stop::usage("Expecting image file name and size")),
    };
    let text = size.to_string_lossy();
    let (sign, digits) = match text.strip_prefix('+') {
        Some(digits) => (Some('+'), digits),
        None => match text.strip_prefix('-') {
            Some(digits) => (Some('-'), digits),
            None => (None, &*text),
        },
    };
    let bytes = number::parameter("size", digits)?;
    let preallocation = match given.text(Key::Preallocation).as_deref() {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(word) => return Err(Stop::error(format!("Invalid preallocation mode '{word}'"))),
    };
    objects::check(&given)?;
    let opening = Opening::of(&given)?;
    let source = opening.source(operand)?;
    let format = open::driver(&given, Key::Format, &source.shown)?;
    let open = opening.options(format);
    let plan = changing(Plan::new().chain(&source.path, &open), &source.path, &open);
    open::enter(plan.opened_again())?;
    let target = writing::prepare(&source, &opening, format)?;
    let old = target.info.virtual_size;
    let new = match sign {
        Some('+') => old.checked_add(bytes),
        Some(_) => Some(old.saturating_sub(bytes)),
        None => Some(bytes),
    };
    let Some(new) = new.filter(|new| *new > 0) else {
        return Err(Stop::error("New image size must be positive"));
    };
    if target.format == Format::Qcow2 && !new.is_multiple_of(512) {
        return Err(Stop::error("The new size must be a multiple of 512"));
    }
    if new <= old && preallocation != Preallocation::Off {
        return Err(Stop::error("Preallocation can only be used for growing images"));
    }
    if target.format == Format::Raw && preallocation == Preallocation::Metadata {
        return Err(Stop::error("Unsupported preallocation mode: metadata"));
    }
    if new < old && !given.has(Key::Shrink) {
        return Err(Stop::error("Use the --shrink option to perform a shrink operation.").and(
            "warning: What lies behind the new end is lost then: shrink what uses the disk first.",
        ));
    }
    let options = ResizeOptions::default()
        .open(opening.options(Some(target.format)))
        .shrink(true)
        .preallocation(preallocation);
    let done =
        resize(&source.to_change(), NewSize::Exactly(new), &options, &Silent, &CancelToken::new());
    match done {
        Ok(_) if given.has(Key::Quiet) => Ok(()),
        Ok(_) => print("Image resized.\n"),
        Err(error) => Err(writing::not_opened(&source, &error).unwrap_or_else(|| refused(&error))),
    }
}

fn looks_like_size(word: &OsString) -> bool {
    let text = word.to_string_lossy();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(&text);
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
}

fn refused(error: &Error) -> Stop {
    match error.kind() {
        ErrorKind::Limit => Stop::error("Failed to grow the L1 table: File too large"),
        ErrorKind::Unsupported if error.message().contains("snapshots") => {
            Stop::error("Can't resize a v2 image which has snapshots")
        }
        _ => Stop::error(words::plain(error)),
    }
}
