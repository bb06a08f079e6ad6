//! `qemu-img rebase`.

use std::ffi::OsString;

use qcow::chain::{Format, resolve_name};
use qcow::ops::backing::{BackingFile, ChangeBackingOptions, change_backing};
use qcow::ops::rebase::{NewBacking, RebaseJob, RebaseOptions};
use qcow::{CancelToken, Error, ErrorKind};

use crate::qemu_img::getopt::{Key, Opt, Parsed, flag, value};
use crate::qemu_img::names::Source;
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::progress::Progress;
use crate::qemu_img::say::Stop;
use crate::qemu_img::{arguments, objects, words, writing};
use crate::sandbox::{Plan, Sandbox};
use crate::session::changing;

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
    let backing = given.text(Key::Backing).filter(|name| !name.is_empty());
    let open = opening.options(None);
    let plan = changing(Plan::new().image(&source.path), &source.path, &open);
    let mut plan = if unchecked { plan.opened_again() } else { plan.chain(&source.path, &open) };
    if let (Some(name), false) = (&backing, unchecked)
        && let Ok(new) = resolve_name(name.as_ref(), &source.file(), &open.working_directory)
    {
        plan = plan.chain(&new, &open);
    }
    let sandbox = open::enter(plan)?;
    let target = writing::prepare(&source, &opening, format)?;
    let backing_format = given.text(Key::BackingFormat);
    if let Some(name) = &backing_format
        && !KNOWN.contains(&name.as_str())
    {
        return Err(Stop::error(format!("Invalid format name: '{name}'")));
    }
    let shown = backing.clone().unwrap_or_default();
    let refused =
        |why: &str| Stop::error(format!("Could not change the backing file to '{shown}': {why}"));
    if target.format == Format::Raw && given.has(Key::Compress) {
        return Err(Stop::error("Compression not supported for this file format"));
    }
    if target.format == Format::Raw {
        return Err(refused("Operation not supported"));
    }
    if !unchecked {
        return safely(&given, &source, &sandbox, backing, backing_format);
    }
    let backing = match (backing, backing_format) {
        (None, _) => None,
        (Some(_), None) => return Err(refused("backing format must be specified")),
        (Some(name), Some(format)) => Some(BackingFile::new(name, format)),
    };
    let options =
        ChangeBackingOptions::default().unchecked(true).open(opening.options(Some(Format::Qcow2)));
    match change_backing(&source.to_change(), backing.as_ref(), &options) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(writing::not_opened(&source, &error).unwrap_or_else(|| not_changed(&shown, &error)))
        }
    }
}

/// Copies what the new backing file has otherwise, and then names it.
fn safely(
    given: &Parsed,
    source: &Source,
    sandbox: &Sandbox,
    backing: Option<String>,
    format: Option<String>,
) -> Result<(), Stop> {
    let shown = backing.clone().unwrap_or_default();
    let opening = Opening { image_opts: false, force_share: given.has(Key::ForceShare) };
    let new = match (backing, format) {
        (None, _) => None,
        (Some(_), None) => {
            let why = "backing format must be specified";
            return Err(Stop::error(format!(
                "Could not change the backing file to '{shown}': {why}"
            )));
        }
        (Some(name), Some(format)) => {
            let format: Format = format
                .parse()
                .map_err(|_| Stop::error(format!("Invalid format name: '{format}'")))?;
            Some(NewBacking::new(name, format).open(opening.options(None)))
        }
    };
    let options = RebaseOptions::default()
        .backing(new)
        .compress(given.has(Key::Compress))
        .change_snapshots(true)
        .no_verify(true);
    let open = Opening::default().options(Some(Format::Qcow2));
    let progress = Progress::start(given.has(Key::Progress) && !given.has(Key::Quiet), 2);
    let done = RebaseJob::begin(&source.to_change(), &open, &options).and_then(|job| {
        sandbox.all_is_open()?;
        job.run(&progress, &CancelToken::new())
    });
    progress.finish_again(done.is_ok());
    progress.end_line();
    let Err(error) = done else { return Ok(()) };
    let own = error.place().file.as_deref().is_none_or(|file| words::is_same(file, &source.file()));
    if !own && (error.kind() == ErrorKind::InUse || error.message().starts_with("could not open")) {
        let top = error.place().file.clone().unwrap_or_default();
        let why = words::reason(&error, &top);
        return Err(Stop::error(format!("Could not open new backing file '{shown}': {why}")));
    }
    Err(writing::not_opened(source, &error).unwrap_or_else(|| not_changed(&shown, &error)))
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
