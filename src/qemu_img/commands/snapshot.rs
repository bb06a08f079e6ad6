//! `qemu-img snapshot`.

use std::ffi::OsString;

use qcow::chain::Format;
use qcow::ops::info::{InfoOptions, SnapshotInfo, info};
use qcow::ops::snapshot::{self, SnapshotOptions};
use qcow::{CancelToken, Error, ErrorKind, Silent};

use crate::commands::info_text;
use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::names::Source;
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::say::{Stop, print};
use crate::qemu_img::{arguments, objects, words, writing};
use crate::sandbox::Plan;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "format"),
    flag(Key::Quiet, b'q', "quiet"),
    flag(Key::ForceShare, b'U', "force-share"),
    flag(Key::ImageOpts, 0, "image-opts"),
    flag(Key::List, b'l', "list"),
    value(Key::Apply, b'a', "apply"),
    value(Key::Create, b'c', "create"),
    value(Key::Delete, b'd', "delete"),
];

/// Lists, takes, applies and deletes internal snapshots.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let is_action = |key: &Key| matches!(key, Key::List | Key::Apply | Key::Create | Key::Delete);
    let mut actions = given.in_order().filter(|(key, _)| is_action(key));
    let action = actions.next();
    if actions.next().is_some() {
        return Err(Stop::usage("Cannot mix '-l', '-a', '-c', '-d'"));
    }
    let operand = given.only_operand("Expecting one image file name", true)?;
    objects::check(&given)?;
    let opening = Opening::of(&given)?;
    let source = opening.source(operand)?;
    let format = open::driver(&given, Key::Format, &source.shown)?;
    match action {
        None | Some((Key::List, _)) => list(&source, &opening, format),
        Some((action, name)) => change(&source, &opening, format, action, &name.to_string_lossy()),
    }
}

fn list(source: &Source, opening: &Opening, format: Option<Format>) -> Result<(), Stop> {
    let options = InfoOptions::default().open(opening.options(format));
    open::enter(Plan::new().image(&source.path).local_time())?;
    let images = info(&source.path, &options)
        .map_err(|error| words::not_opened(&source.shown, &source.file(), &error))?;
    let snapshots = images.first().map(|image| image.snapshots.as_slice()).unwrap_or_default();
    print(info_text::snapshot_list(snapshots))
}

fn change(
    source: &Source,
    opening: &Opening,
    format: Option<Format>,
    action: Key,
    name: &str,
) -> Result<(), Stop> {
    open::enter(Plan::new().image(&source.path).changing(&source.path).opened_again())?;
    let target = writing::prepare(source, opening, format)?;
    let failed = |why: &str| {
        let verb = match action {
            Key::Apply => "apply",
            Key::Create => "create",
            _ => "delete",
        };
        Stop::error(format!("Could not {verb} snapshot '{name}': {why}"))
    };
    if target.format == Format::Raw {
        return Err(match action {
            Key::Apply => failed("Block driver does not support snapshots"),
            Key::Create => failed("Operation not supported"),
            _ => failed("snapshot not found"),
        });
    }
    if action == Key::Apply && target.has_bitmaps() {
        return Err(failed("Device has active dirty bitmaps"));
    }
    let snapshots = target.info.snapshots.as_slice();
    let options = SnapshotOptions::default().format(target.format).duplicate(true).vm_state(true);
    let file = source.file();
    let cancel = CancelToken::new();
    let done = match action {
        Key::Create => snapshot::create(&file, cut(name), &options, &Silent, &cancel),
        Key::Apply => {
            let Some(found) = by_id(snapshots, name).or_else(|| by_name(snapshots, name)) else {
                return Err(failed("Failed to load snapshot: No such file or directory"));
            };
            snapshot::apply(&file, &found, &options, &Silent, &cancel)
        }
        _ => {
            let Some(found) = by_name(snapshots, name) else {
                return Err(failed("snapshot not found"));
            };
            snapshot::delete(&file, &found, &options, &Silent, &cancel)
        }
    };
    match done {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(writing::not_opened(source, &error).unwrap_or_else(|| failed(&why(action, &error))))
        }
    }
}

/// The first 255 bytes, as far as they are whole characters.
fn cut(name: &str) -> &str {
    let end = (0..=name.len().min(255)).rev().find(|end| name.is_char_boundary(*end));
    name.get(..end.unwrap_or(0)).unwrap_or(name)
}

fn by_id(snapshots: &[SnapshotInfo], id: &str) -> Option<String> {
    let found = snapshots.iter().find(|snapshot| snapshot.id == id)?;
    Some(format!("snapshot.id={}", found.id))
}

/// The first that has the name.
fn by_name(snapshots: &[SnapshotInfo], name: &str) -> Option<String> {
    let found = snapshots.iter().find(|snapshot| snapshot.name == name)?;
    Some(format!("snapshot.id={}", found.id))
}

/// What QEMU says of an error.
fn why(action: Key, error: &Error) -> String {
    if error.io_source().is_some() {
        return words::plain(error);
    }
    match (error.kind(), action) {
        (ErrorKind::Unsupported, _) => "Operation not supported".to_owned(),
        (ErrorKind::Limit, _) if error.message().contains("no more fit") => {
            "File too large".to_owned()
        }
        (ErrorKind::Limit | ErrorKind::Corrupt, Key::Apply) => {
            "Failed to load snapshot: Invalid argument".to_owned()
        }
        (ErrorKind::Limit | ErrorKind::Corrupt, _) => "Invalid argument".to_owned(),
        _ => error.message().to_owned(),
    }
}
