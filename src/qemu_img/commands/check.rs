//! `qemu-img check`.

pub(in crate::qemu_img) mod lines;

use std::ffi::OsString;

use qcow::chain::{Format, check_backing};
use qcow::ops::check::{
    CheckOptions, CheckOutcome, RepairOptions, RepairOutcome, Scope, check, repair,
};
use qcow::{CancelToken, Error, ErrorKind, Silent};

use crate::commands::check_summary;
use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::names::Source;
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::say::{self, Stop, print, print_json};
use crate::qemu_img::{arguments, json_wanted, objects, words};
use crate::sandbox::Plan;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "format"),
    value(Key::Output, 0, "output"),
    value(Key::Repair, b'r', "repair"),
    value(Key::SourceCache, b'T', "cache"),
    flag(Key::Quiet, b'q', "quiet"),
    flag(Key::ForceShare, b'U', "force-share"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// The check could not be done, or not all of it.
const NOT_CHECKED: u8 = 1;
/// The image is corrupt.
const CORRUPT: u8 = 2;
/// The image has leaks and nothing worse.
const LEAKS: u8 = 3;
/// There is nothing to check in this format.
const NOT_SUPPORTED: u8 = 63;

/// The most findings that are listed.
const LISTED: usize = 100_000;

/// Checks an image's metadata, and repairs it if asked.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let scope = match given.text(Key::Repair).as_deref() {
        None => None,
        Some("leaks") => Some(Scope::Leaks),
        Some("all") => Some(Scope::All),
        Some(other) => {
            return Err(Stop::usage(format!(
                "Unknown option value for -r (expecting 'leaks' or 'all'): {other}"
            )));
        }
    };
    let operand = given.only_operand("Expecting one image file name", true)?;
    let json = json_wanted(&given)?;
    objects::check(&given)?;
    open::source_cache(&given, Key::SourceCache)?;
    let opening = Opening::of(&given)?;
    let source = opening.source(operand)?;
    let format = open::driver(&given, Key::Format, &source.shown)?;
    if scope.is_some() && opening.force_share {
        return Err(Stop::error(format!(
            "Could not open '{}': force-share=on can only be used with read-only images",
            source.shown
        )));
    }
    let options = CheckOptions::default()
        .format(format)
        .force_share(opening.force_share)
        .max_findings(LISTED);
    enter(&source, &opening, format, scope.is_some())?;
    let silent = given.has(Key::Quiet);
    let Some(scope) = scope else {
        let outcome = check(&source.path, &options, &Silent, &CancelToken::new())
            .map_err(|error| failed(&source, &error))?;
        lines::findings(&outcome).iter().for_each(say::line);
        return report(&source, &outcome, None, json, silent);
    };
    let options = RepairOptions::new(scope).check(options);
    let outcome = repair(&source.path, &options, &Silent, &CancelToken::new())
        .map_err(|error| failed(&source, &error))?;
    lines::repairs(&outcome).iter().for_each(say::line);
    report(&source, &outcome.check, Some(&outcome), json, silent)
}

/// Makes sure that the backing chain is there, then gives up all but the image itself.
fn enter(
    source: &Source,
    opening: &Opening,
    format: Option<Format>,
    changed: bool,
) -> Result<(), Stop> {
    let plan = Plan::new().opened_again();
    let plan = if changed { plan.changing(&source.path) } else { plan };
    let open = opening.options(format);
    let sandbox = open::enter(plan.chain(&source.path, &open))?;
    match check_backing(&source.path, &open) {
        Ok(_) => {}
        // The check tells of the image itself.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Unsupported
                    | ErrorKind::WrongFormat
                    | ErrorKind::Denied
                    | ErrorKind::InUse
            ) => {}
        Err(error) => return Err(words::not_opened(&source.shown, &source.file(), &error)),
    }
    open::all_is_open(&sandbox)
}

/// Why there is no outcome.
fn failed(source: &Source, error: &Error) -> Stop {
    let unsupported = matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::WrongFormat);
    if unsupported && error.message().contains("nothing to ") {
        return Stop::error("This image format does not support checks").code(NOT_SUPPORTED);
    }
    if error.place().structure == Some("refcount table") && unsupported {
        return Stop::error("Check failed: Input/output error");
    }
    words::not_opened(&source.shown, &source.file(), error)
}

fn report(
    source: &Source,
    outcome: &CheckOutcome,
    repaired: Option<&RepairOutcome>,
    json: bool,
    silent: bool,
) -> Result<(), Stop> {
    if json {
        print_json(&lines::Object::of(source, outcome, repaired))?;
    } else if !silent {
        print(lines::repaired(repaired) + &check_summary(outcome))?;
    }
    match (outcome.check_errors, outcome.corruptions, outcome.leaks) {
        (0, 0, 0) => Ok(()),
        (0, 0, _) => Err(Stop::silent(LEAKS)),
        (0, ..) => Err(Stop::silent(CORRUPT)),
        _ => Err(Stop::silent(NOT_CHECKED)),
    }
}
