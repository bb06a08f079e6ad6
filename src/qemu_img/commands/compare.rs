//! `qemu-img compare`.

use std::ffi::OsString;

use qcow::chain::Chain;
use qcow::format::SECTOR;
use qcow::ops::compare::{
    CompareError, CompareOptions, CompareOutcome, Difference, DifferenceKind, compare,
};
use qcow::{CancelToken, Error};

use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::progress::Progress;
use crate::qemu_img::say::{Stop, print};
use crate::qemu_img::{arguments, names, objects, words};
use crate::sandbox::Plan;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "a-format"),
    value(Key::SecondFormat, b'F', "b-format"),
    value(Key::SourceCache, b'T', "cache"),
    flag(Key::Progress, b'p', "progress"),
    flag(Key::Quiet, b'q', "quiet"),
    flag(Key::Strict, b's', "strict"),
    flag(Key::ForceShare, b'U', "force-share"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// The images differ.
const DIFFERENT: u8 = 1;
/// An image could not be opened.
const NOT_OPENED: u8 = 2;
/// The tables of an image could not be understood.
const NO_ALLOCATION: u8 = 3;
/// The data of an image could not be read.
const NOT_READ: u8 = 4;

/// Compares what two images hold.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let [first, second] = given.operands.as_slice() else {
        return Err(Stop::usage("Expecting two image file names"));
    };
    let not_opened = |stop: Stop| if stop.exit_code() == 0 { stop } else { stop.code(NOT_OPENED) };
    objects::check(&given).map_err(not_opened)?;
    open::source_cache(&given, Key::SourceCache).map_err(not_opened)?;
    let image_opts = given.has(Key::ImageOpts);
    if image_opts && (given.has(Key::Format) || given.has(Key::SecondFormat)) {
        return Err(
            Stop::error("--image-opts and --format are mutually exclusive").code(NOT_OPENED)
        );
    }
    let opening = Opening { image_opts, force_share: given.has(Key::ForceShare) };
    let mut sources = Vec::new();
    for (operand, key) in [(first, Key::Format), (second, Key::SecondFormat)] {
        let source = names::source(operand, image_opts).map_err(not_opened)?;
        let format = open::driver(&given, key, &source.shown).map_err(not_opened)?;
        sources.push((source, opening.options(format)));
    }
    let quiet = given.has(Key::Quiet);
    let progress = Progress::start(given.has(Key::Progress) && !quiet, 2);
    let plan =
        sources.iter().fold(Plan::new(), |plan, (source, open)| plan.chain(&source.path, open));
    let sandbox = open::enter(plan)?;
    let chains: Result<Vec<Chain>, Stop> =
        sources.iter().map(|(source, options)| open::chain(source, options)).collect();
    let chains = chains.map_err(not_opened)?;
    open::all_is_open(&sandbox)?;
    let ([one, other], [(first, _), _]) = (chains.as_slice(), sources.as_slice()) else {
        return Err(Stop::silent(NOT_OPENED));
    };
    let options = CompareOptions::default().strict(given.has(Key::Strict));
    let compared = compare(one, other, &options, &mut |_, _| {}, &progress, &CancelToken::new());
    progress.finish(compared.is_ok());
    let outcome = compared.map_err(|error| failed(&error, &first.shown))?;
    if !quiet {
        print(verdict(&outcome))?;
    }
    progress.end_line();
    if outcome.identical { Ok(()) } else { Err(Stop::silent(DIFFERENT)) }
}

fn failed(error: &CompareError, first: &str) -> Stop {
    let file = |error: &Error| {
        let file = error.place().file.as_ref().map(|file| file.to_string_lossy().into_owned());
        file.unwrap_or_else(|| first.to_owned())
    };
    match error {
        CompareError::Allocation(error) => {
            Stop::error(format!("Sector allocation test failed for {}", file(error)))
                .code(NO_ALLOCATION)
        }
        CompareError::Reading(error) => {
            let offset = error.place().guest_offset.unwrap_or_default();
            let (file, why) = (file(error), words::plain(error));
            Stop::error(format!("Error while reading offset {offset} of {file}: {why}"))
                .code(NOT_READ)
        }
        _ => Stop::silent(NOT_READ),
    }
}

fn verdict(outcome: &CompareOutcome) -> String {
    let [one, other] = outcome.virtual_sizes;
    let first = outcome.first_difference;
    let within_both = first.is_some_and(|first| first.offset < one.min(other));
    let strictly = first.is_some_and(|first| first.kind != DifferenceKind::Content);
    let warning = if one != other && !within_both && !strictly {
        "Warning: Image size mismatch!\n"
    } else {
        ""
    };
    let found = match first {
        None => "Images are identical.".to_owned(),
        Some(Difference { kind: DifferenceKind::Size, .. }) => {
            "Strict mode: Image size mismatch!".to_owned()
        }
        Some(Difference { kind: DifferenceKind::Status, offset, .. }) => {
            format!("Strict mode: Offset {offset} block status mismatch!")
        }
        Some(Difference { offset, .. }) => {
            format!("Content mismatch at offset {}!", offset & !SECTOR.wrapping_sub(1))
        }
    };
    format!("{warning}{found}\n")
}
