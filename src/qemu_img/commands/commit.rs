//! `qemu-img commit`.

use std::ffi::OsString;
use std::path::PathBuf;

use qcow::ops::commit::{CommitJob, CommitOptions, base_of};
use qcow::{CancelToken, Error, ErrorKind};

use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::names::Source;
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::progress::Progress;
use crate::qemu_img::say::{Stop, print};
use crate::qemu_img::{arguments, number, objects, words, writing};
use crate::sandbox::Plan;
use crate::session::changing;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "format"),
    value(Key::Cache, b't', "cache"),
    value(Key::Backing, b'b', "base"),
    value(Key::RateLimit, b'r', "rate-limit"),
    flag(Key::Drop, b'd', "drop"),
    flag(Key::Progress, b'p', "progress"),
    flag(Key::Quiet, b'q', "quiet"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// Writes what an overlay has into what it is backed by.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    if let Some(text) = given.last(Key::RateLimit) {
        number::size("rate limit", text)?;
    }
    let operand = given.only_operand("Expecting one image file name", true)?;
    objects::check(&given)?;
    open::target_cache(&given)?;
    let opening = Opening::of(&given)?;
    let source = opening.source(operand)?;
    let format = open::driver(&given, Key::Format, &source.shown)?;
    let wanted = given.text(Key::Backing);
    let quiet = given.has(Key::Quiet);
    let options = CommitOptions::default()
        .base(wanted.as_ref().map(PathBuf::from))
        .empty(!given.has(Key::Drop))
        .shared(true)
        .change_snapshots(true)
        .explicit_zeroes(true)
        .in_kernel(true)
        .no_verify(true);
    let file = source.to_change();
    let open = opening.options(format);
    let plan = Plan::new().chain(&source.path, &open).changing(&source.path);
    let plan = match base_of(&file, &open.clone().force_share(true), options.base.as_deref()) {
        Ok(base) => changing(plan, &base, &Opening::default().options(None)),
        Err(_) => plan,
    };
    let sandbox = open::enter(plan)?;
    let target = writing::prepare(&source, &opening, format)?;
    if target.info.backing_filename.is_none() {
        return Err(Stop::error("Image does not have a backing file"));
    }
    let progress = Progress::start(given.has(Key::Progress) && !quiet, 1);
    let open = open.format(target.format);
    let done = CommitJob::begin(&file, &open, &options).and_then(|job| {
        sandbox.all_is_open()?;
        job.run(&progress, &CancelToken::new())
    });
    progress.finish_again(done.is_ok());
    progress.end_line();
    match done {
        Err(error) => Err(refused(&source, wanted.as_deref(), &error)),
        Ok(_) if quiet => Ok(()),
        Ok(_) => print("Image committed.\n"),
    }
}

fn refused(source: &Source, wanted: Option<&str>, error: &Error) -> Stop {
    let chain = error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::Usage;
    match wanted {
        Some(base) if chain && error.io_source().is_none() => {
            Stop::error(format!("Did not find '{base}' in the backing chain of '{}'", source.shown))
        }
        _ => writing::not_opened(source, error)
            .unwrap_or_else(|| Stop::error(format!("Block job failed: {}", words::plain(error)))),
    }
}
