//! `qemu-img info`.

use std::ffi::OsString;
use std::path::Path;

use qcow::ops::info::{ImageInfo, InfoOptions, info};

use crate::commands::info_text;
use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::names::{Source, unambiguous};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::say::{Stop, print, print_json};
use crate::qemu_img::{arguments, json_wanted, objects, words};
use crate::sandbox::Plan;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "format"),
    value(Key::Output, 0, "output"),
    flag(Key::BackingChain, b'b', "backing-chain"),
    flag(Key::ForceShare, b'U', "force-share"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// Shows what images say of themselves.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let operand = given.only_operand("Expecting one image file name", true)?;
    let json = json_wanted(&given)?;
    objects::check(&given)?;
    let opening = Opening::of(&given)?;
    let source = opening.source(operand)?;
    let format = open::driver(&given, Key::Format, &source.shown)?;
    let chain = given.has(Key::BackingChain);
    let options = InfoOptions::default().open(opening.options(format)).backing_chain(chain);
    let plan = if chain {
        Plan::new().chain(&source.path, &options.open)
    } else {
        Plan::new().image(&source.path)
    };
    open::enter(if json { plan } else { plan.local_time() })?;
    let mut images = info(&source.path, &options).map_err(|error| failed(&source, &error))?;
    if let Some(first) = images.first_mut() {
        first.filename = source.canonical();
    }
    images.iter_mut().for_each(named_as_qemu_does);
    match images.as_slice() {
        [image] if json && !chain => print_json(image),
        images if json => print_json(&images),
        images => {
            let texts: Vec<_> = images.iter().map(info_text::text).collect();
            print(texts.join("\n"))
        }
    }
}

fn failed(source: &Source, error: &qcow::Error) -> Stop {
    let file = error.place().file.clone().unwrap_or_else(|| source.file());
    if error.message() == "the backing chain comes back to this file" {
        let file = file.to_string_lossy();
        return Stop::error(format!("Backing file '{file}' creates an infinite loop."));
    }
    if file != source.file() {
        // A lower layer is opened by itself.
        return words::not_opened(&file.to_string_lossy(), &file, error);
    }
    words::not_opened(&source.shown, &file, error)
}

/// A name with a colon is shown so that it cannot be taken for a protocol.
fn named_as_qemu_does(image: &mut ImageInfo) {
    let named = unambiguous(&image.filename);
    if named != image.filename
        && let Some(full) = image.full_backing_filename.take()
    {
        // It lies beside the image, whose directory has got a name now.
        let beside = full.is_relative() && Some(&full) == image.backing_filename.as_ref();
        image.full_backing_filename = Some(if beside { Path::new(".").join(full) } else { full });
    }
    image.filename = named;
    for child in &mut image.children {
        child.info.filename = unambiguous(&child.info.filename);
    }
}
