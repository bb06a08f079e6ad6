//! `qemu-img bench`.

use std::ffi::OsString;

use qcow::ops::bench::{BenchJob, BenchOptions};
use qcow::{CancelToken, ErrorKind};

use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::say::{Stop, print};
use crate::qemu_img::{arguments, number, objects, words, writing};
use crate::sandbox::Plan;
use crate::session::changing;

const OPTIONS: &[Opt] = &[
    value(Key::Count, b'c', "count"),
    value(Key::Depth, b'd', "depth"),
    value(Key::Format, b'f', "format"),
    value(Key::FlushInterval, 0, "flush-interval"),
    value(Key::Aio, b'i', "aio"),
    flag(Key::Native, b'n', "native"),
    flag(Key::NoDrain, 0, "no-drain"),
    value(Key::Offset, b'o', "offset"),
    value(Key::Pattern, 0, "pattern"),
    flag(Key::Quiet, b'q', "quiet"),
    value(Key::Size, b's', "buffer-size"),
    value(Key::StepSize, b'S', "step-size"),
    value(Key::Cache, b't', "cache"),
    flag(Key::Write, b'w', "write"),
    flag(Key::ForceShare, b'U', "force-share"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// Sends requests and says how long they took.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let count = |key, usual: u64, what: &str| match given.text(key) {
        None => Ok(usual),
        Some(text) => match text.parse::<u32>() {
            Ok(number) if i32::try_from(number).is_ok() => Ok(number.into()),
            _ => Err(Stop::error(format!("Invalid {what} specified"))),
        },
    };
    let size = |key, usual: u64, what: &str, most: u64| match given.last(key) {
        None => Ok(usual),
        Some(text) => number::within(what, text, 0, most),
    };
    let int = u64::from(i32::MAX.unsigned_abs());
    let requests = count(Key::Count, 75_000, "request count")?;
    let depth = count(Key::Depth, 64, "queue depth")?;
    let flush = count(Key::FlushInterval, 0, "flush interval")?;
    let pattern = count(Key::Pattern, 0, "pattern byte")?;
    let length = size(Key::Size, 4096, "buffer size", int)?;
    let step = size(Key::StepSize, 0, "step_size", int)?;
    let offset = size(Key::Offset, 0, "offset", i64::MAX.unsigned_abs())?;
    if let Some(aio) = given.text(Key::Aio)
        && !matches!(aio.as_str(), "threads" | "native" | "io_uring")
    {
        return Err(Stop::error(format!("Invalid aio option: {aio}")));
    }
    open::target_cache(&given)?;
    let operand = given.only_operand("Expecting one image file name", true)?;
    objects::check(&given)?;
    let write = given.has(Key::Write);
    if flush > 0 && !write {
        return Err(Stop::error("--flush-interval is only available in write tests"));
    }
    if flush > 0 && flush < depth {
        return Err(Stop::error("Flush interval can't be smaller than depth"));
    }
    let opening = Opening::of(&given)?;
    let source = opening.source(operand)?;
    let format = open::driver(&given, Key::Format, &source.shown)?;
    let options = opening.options(format);
    let plan = Plan::new().chain(&source.path, &options);
    let plan = if write { changing(plan, &source.path, &options) } else { plan };
    let sandbox = open::enter(plan)?;
    if write {
        writing::prepare(&source, &opening, format)?;
    }
    let byte = u8::try_from(pattern & 0xff).unwrap_or_default();
    let bench = BenchOptions::default()
        .count(requests)
        .depth(usize::try_from(depth).unwrap_or(1))
        .size(length)
        .step(step)
        .offset(offset)
        .write(write.then_some(byte))
        .flush_interval(flush);
    let job =
        BenchJob::begin(&source.path, &options, &bench).map_err(|error| match error.kind() {
            ErrorKind::Usage if error.place().structure != Some("data file") => {
                Stop::error(words::plain(&error))
            }
            _ => writing::not_opened(&source, &error)
                .unwrap_or_else(|| words::not_opened(&source.shown, &source.file(), &error)),
        })?;
    open::all_is_open(&sandbox)?;
    let kind = if write { "write" } else { "read" };
    let stride = if step == 0 { length } else { step };
    print(format_args!(
        "Sending {requests} {kind} requests, {length} bytes each, {depth} in parallel \
         (starting at offset {offset}, step size {stride})\n"
    ))?;
    if flush > 0 {
        print(format_args!("Sending flush every {flush} requests\n"))?;
    }
    let done = job
        .run(&CancelToken::new())
        .map_err(|error| Stop::error(format!("Failed request: {}", request_failed(&error))))?;
    print(format_args!("Run completed in {:.3} seconds.\n", done.seconds))
}

fn request_failed(error: &qcow::Error) -> String {
    match error.io_source() {
        Some(_) => words::plain(error),
        None => "Input/output error".to_owned(),
    }
}
