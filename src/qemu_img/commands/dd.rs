//! `qemu-img dd`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use qcow::CancelToken;
use qcow::Silent;
use qcow::chain::{Chain, Format, Joined};
use qcow::io::Replace;
use qcow::ops::flatten::{FlattenJob, FlattenOptions};

use super::create::{not_made, overwriting};
use crate::commands::outputs;
use crate::qemu_img::getopt::{Key, Opt, flag, value};
use crate::qemu_img::new::{self, NewImage};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::say::{self, Stop};
use crate::qemu_img::{arguments, names, number, objects, words};

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "format"),
    value(Key::TargetFormat, b'O', "output-format"),
    flag(Key::ForceShare, b'U', "force-share"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// What the operands say.
#[derive(Debug)]
struct Operands {
    from: OsString,
    to: OsString,
    block: u64,
    count: Option<u64>,
    skip: u64,
}

/// Copies a part of a disk into a new image.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let operands = parse(&given.operands)?;
    objects::check(&given)?;
    let opening = Opening::of(&given)?;
    let source = opening.source(&operands.from)?;
    let format = open::driver(&given, Key::Format, &source.shown)?;
    let target_format = given.text(Key::TargetFormat).unwrap_or_else(|| "raw".to_owned());
    let target_format = new::format(&target_format)?;
    let target = NewImage::parse(target_format, &[])?.target()?;
    let path = names::target(&operands.to)?;
    let options = opening.options(format);
    let plan = overwriting(outputs(&path, &target), &path).chain(&source.path, &options);
    let sandbox = open::enter(plan)?;
    let chain = open::chain(&source, &options)?;
    let end = operands.count.map_or(u64::MAX, |count| count.saturating_mul(operands.block));
    let end = end.min(chain.virtual_size());
    let start = operands.skip.saturating_mul(operands.block);
    if start > end {
        say::error(format_args!("{}: cannot skip to specified offset", source.shown));
    }
    let shown = operands.to.to_string_lossy();
    let creating =
        |stop: Stop| stop.prepend(format_args!("{shown}: error while creating output image: "));
    if names_one_file(&source.file(), &path) {
        return Err(creating(Stop::error(r#"Failed to get "write" lock"#)));
    }
    let part = Arc::new(Joined::range_of(&chain, start, end.saturating_sub(start)));
    let part = Chain::builder().layer(source.file(), part, Format::Raw).open();
    let part = part.map_err(|error| Stop::error(words::plain(&error)))?;
    let options = FlattenOptions::default().target(target).replace(Replace::Overwrite);
    let job = FlattenJob::begin(&part, &path, &options)
        .map_err(|error| creating(not_made(&path, target_format, &error)))?;
    open::all_is_open(&sandbox)?;
    let done = job.run(&Silent, &CancelToken::new());
    done.map(drop).map_err(|error| {
        Stop::error(format!("error while reading from input image file: {}", words::plain(&error)))
    })
}

fn names_one_file(one: &std::path::Path, other: &std::path::Path) -> bool {
    let found = std::fs::canonicalize(one).ok();
    found.is_some() && found == std::fs::canonicalize(other).ok()
}

fn parse(operands: &[OsString]) -> Result<Operands, Stop> {
    let (mut from, mut to, mut block, mut count, mut skip) = (None, None, 512, None, 0);
    for operand in operands {
        let bytes = operand.as_bytes();
        let value = |prefix: &[u8]| bytes.strip_prefix(prefix).map(OsStr::from_bytes);
        let most = i64::MAX.unsigned_abs();
        if let Some(name) = value(b"if=") {
            from = Some(name.to_owned());
        } else if let Some(name) = value(b"of=") {
            to = Some(name.to_owned());
        } else if let Some(text) = value(b"bs=") {
            block = number::within("bs", text, 1, i32::MAX.unsigned_abs().into())?;
        } else if let Some(text) = value(b"count=") {
            count = Some(number::within("count", text, 0, most)?);
        } else if let Some(text) = value(b"skip=") {
            skip = number::within("skip", text, 0, most)?;
        } else {
            let shown = operand.to_string_lossy();
            let name = shown.split('=').next().unwrap_or_default();
            return Err(Stop::error(format!("unrecognized operand {name}")));
        }
    }
    match (from, to) {
        (Some(from), Some(to)) => Ok(Operands { from, to, block, count, skip }),
        _ => Err(Stop::error("Must specify both input and output files")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_read_and_others_refused() {
        let parse =
            |words: &[&str]| super::parse(&words.iter().map(OsString::from).collect::<Vec<_>>());
        let read = parse(&["if=a=b", "of=c", "bs=1M", "count=2", "skip=1"]).unwrap();
        assert_eq!((read.block, read.count, read.skip), (1 << 20, Some(2), 1));
        assert_eq!(read.from, "a=b");
        assert_eq!(
            parse(&["if=a"]).unwrap_err().lines(),
            ["Must specify both input and output files"]
        );
        assert_eq!(parse(&["seek=1"]).unwrap_err().lines(), ["unrecognized operand seek"]);
        parse(&["if=a", "of=b", "bs=0"]).unwrap_err();
    }
}
