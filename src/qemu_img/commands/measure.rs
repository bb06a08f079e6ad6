//! `qemu-img measure`.

use std::ffi::OsString;

use qcow::ops::measure::{MeasureOptions, MeasureOutcome, measure, measure_size};

use super::snapshot_of;
use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::new::{self, NewImage};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::say::{Stop, print, print_json};
use crate::qemu_img::{arguments, json_wanted, list, number, objects, words};
use crate::sandbox::Plan;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "format"),
    value(Key::TargetFormat, b'O', "target-format"),
    value(Key::Options, b'o', "options"),
    value(Key::Snapshot, b'l', "snapshot"),
    value(Key::Output, 0, "output"),
    value(Key::Size, b's', "size"),
    flag(Key::ForceShare, b'U', "force-share"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// Calculates how long the file of a new image will be.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let items = list::items(given.all(Key::Options))?;
    let snapshot = given.last(Key::Snapshot).map(snapshot_of).transpose()?;
    let size = given.last(Key::Size).map(|text| number::size("image size", text)).transpose()?;
    let json = json_wanted(&given)?;
    objects::check(&given)?;
    let operand = match given.operands.as_slice() {
        [] => None,
        [operand] => Some(operand),
        _ => return Err(Stop::error("At most one filename argument is allowed.")),
    };
    let of_source = [Key::ImageOpts, Key::Format, Key::Snapshot].iter().any(|key| given.has(*key));
    if operand.is_none() && of_source {
        return Err(Stop::error("--image-opts, -f, and -l require a filename argument."));
    }
    match (operand, size) {
        (None, None) => {
            return Err(Stop::error("Either --size N or one filename must be specified."));
        }
        (Some(_), Some(_)) => {
            return Err(Stop::error("--size N cannot be used together with a filename."));
        }
        _ => {}
    }
    let chain = match operand {
        Some(operand) => {
            let opening = Opening::of(&given)?;
            let source = opening.source(operand)?;
            let format = open::driver(&given, Key::Format, &source.shown)?;
            let options = opening.options(format).snapshot(snapshot);
            let sandbox = open::enter(Plan::new().chain(&source.path, &options))?;
            let chain = open::chain(&source, &options)?;
            open::all_is_open(&sandbox)?;
            Some(chain)
        }
        None => None,
    };
    let format = given.text(Key::TargetFormat).unwrap_or_else(|| "raw".to_owned());
    let format = new::format(&format)?;
    let invalid = |stop: Stop| stop.and(format!("Invalid options for file format '{format}'"));
    let wanted = NewImage::parse(format, &items).map_err(invalid)?;
    let target = wanted.target()?;
    let backed = wanted.get("backing_file").is_some();
    let options = MeasureOptions::default().target(target).has_backing(backed);
    let outcome = match (&chain, size.or_else(|| wanted.size("size"))) {
        (Some(chain), _) => measure(chain, &options),
        (None, Some(size)) => measure_size(size, &options),
        (None, None) => return Err(Stop::silent(1)),
    };
    let outcome = outcome.map_err(|error| match error.kind() {
        qcow::ErrorKind::Limit => {
            Stop::error("The image size is too large (try using a larger cluster size)")
        }
        _ => Stop::error(words::plain(&error)),
    })?;
    if json { print_json(&outcome) } else { print(text(&outcome)) }
}

fn text(outcome: &MeasureOutcome) -> String {
    let mut text = format!("required size: {}\n", outcome.required);
    text.push_str(&format!("fully allocated size: {}\n", outcome.fully_allocated));
    if let Some(bitmaps) = outcome.bitmaps {
        text.push_str(&format!("bitmaps size: {bitmaps}\n"));
    }
    text
}
