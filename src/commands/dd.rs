//! `qcowtool dd`: copies a range of a disk to a new image, with the operands of `dd`.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use qcow::Error;
use qcow::chain::{Chain, Format, Joined};
use qcow::ops::flatten::{FlattenJob, FlattenOptions};

use super::convert::refuse_source;
use super::flatten::summary;
use crate::args::{Common, PartArgs, ReplaceArgs, SourceArgs, WorkArgs, exit_codes, format_parser};
use crate::commands::create::outputs;
use crate::failure::Failure;
use crate::losses::warn_truncated;
use crate::options::{ImageOptions, Purpose};
use crate::output::{OutputFormat, print, print_json, warn};
use crate::session::{Operation, Session};
use crate::size;

/// Arguments of `dd`.
#[derive(Debug, Args)]
#[command(
    override_usage = "qcowtool dd [OPTIONS] if=<SRC> of=<DST> [bs=SIZE] [count=N] [skip=N]",
    after_help = concat!(
    "bs is the size of a block [default: 512]; count is how many blocks of SRC there are to be, counted from its start as \
qemu-img does, and skip how many of them are left out. The new disk is rounded up to 512 bytes. DST is written under \
a temporary name and renamed when it is complete; zeros are left out.

Examples:
  qcowtool dd if=vm.qcow2 of=first-megabyte.qcow2 bs=1M count=1
  qcowtool dd -O raw if=vm.qcow2 of=boot.img bs=512 count=1
  qcowtool dd -f raw -O raw if=disk.img of=partition.img bs=1M skip=1 count=101

", exit_codes!()))]
pub(crate) struct Dd {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// Format of the new image
    #[arg(short = 'O', long, value_name = "FMT", default_value = "qcow2",
          value_parser = format_parser())]
    target_format: Format,

    #[command(flatten)]
    replace: ReplaceArgs,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    part: PartArgs,

    /// if=SRC, of=DST, bs=SIZE, count=N, skip=N
    #[arg(value_name = "OPERAND", required = true)]
    operands: Vec<std::ffi::OsString>,
}

/// What the operands say.
#[derive(Debug, PartialEq, Eq)]
struct Operands {
    src: PathBuf,
    dst: PathBuf,
    /// Bytes of a block.
    block: u64,
    /// Blocks.
    count: Option<u64>,
    skip: u64,
}

impl Operands {
    fn parse(operands: &[std::ffi::OsString]) -> qcow::Result<Self> {
        let (mut src, mut dst) = (None, None);
        let (mut block, mut count, mut skip) = (512, None, 0);
        for operand in operands {
            let bytes = operand.as_encoded_bytes();
            let path = |prefix: &str| {
                use std::os::unix::ffi::OsStrExt;
                bytes
                    .strip_prefix(prefix.as_bytes())
                    .map(|name| PathBuf::from(OsStr::from_bytes(name)))
            };
            if let Some(path) = path("if=") {
                src = Some(path);
                continue;
            }
            if let Some(path) = path("of=") {
                dst = Some(path);
                continue;
            }
            let text = operand.to_string_lossy();
            match text.split_once('=') {
                Some(("bs", number)) => block = size::parse(number)?,
                Some(("count", number)) => count = Some(size::parse(number)?),
                Some(("skip", number)) => skip = size::parse(number)?,
                _ => {
                    let message = format!("'{text}' is no operand of dd");
                    return Err(Error::usage(message).hint("see --help"));
                }
            }
        }
        let (Some(src), Some(dst)) = (src, dst) else {
            return Err(Error::usage("if=SRC or of=DST is missing").hint("see --help"));
        };
        if block == 0 || i32::try_from(block).is_err() {
            return Err(Error::usage("bs is 1 to 2147483647"));
        }
        Ok(Self { src, dst, block, count, skip })
    }

    /// The first byte of the disk that is copied, and how many are.
    fn range(&self, disk: u64) -> qcow::Result<(u64, u64)> {
        let end = self.count.map_or(u64::MAX, |count| count.saturating_mul(self.block)).min(disk);
        let start = self.skip.saturating_mul(self.block);
        match end.checked_sub(start) {
            Some(len) => Ok((start, len)),
            None => Err(Error::usage(format!(
                "skip leaves out {start} bytes, and there are {end} to be copied"
            ))),
        }
    }
}

impl Dd {
    /// Writes the image.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let operands = Operands::parse(&self.operands)?;
        let target = ImageOptions::parse(self.target_format, Purpose::Flatten, &[])?.target()?;
        let options = FlattenOptions::default()
            .target(target)
            .threads(self.work.threads())
            .replace(self.replace.replace());
        let operation = Operation::start(&self.common, &self.work)?;
        let open = self.source.open_options(None);
        let plan = outputs(&operands.dst, &options.target).chain(&operands.src, &open);
        let session = Session::start(&self.common, plan)?;
        let chain = session.open_chain(&operands.src, &open, &self.part)?;
        // The part is a disk of its own to the engine, which does not see what it is read from.
        refuse_source(&chain, &operands.dst)?;
        let (start, len) = operands.range(chain.virtual_size())?;
        let part = Arc::new(Joined::range_of(&chain, start, len));
        let part = Chain::builder().layer(&operands.src, part, Format::Raw).open()?;
        let outcome = operation.run(|observer, cancel| {
            let job = FlattenJob::begin(&part, &operands.dst, &options)?;
            session.all_is_open()?;
            job.run(observer, cancel)
        })?;
        warn_truncated(&chain.truncations()?);
        warn(&outcome.warnings);
        match self.common.format() {
            OutputFormat::Json => print_json(&outcome),
            OutputFormat::Human if self.common.verbosity.quiet => Ok(()),
            OutputFormat::Human => {
                print(summary("copied a part of", &operands.src, &operands.dst, &outcome))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operands(text: &[&str]) -> qcow::Result<Operands> {
        Operands::parse(&text.iter().map(std::ffi::OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn count_is_counted_from_the_start_of_the_source_and_skip_within_it() {
        let range = |more: &[&str], disk| {
            operands(&[&["if=a", "of=b"], more].concat()).unwrap().range(disk).ok()
        };
        assert_eq!(range(&[], 4096), Some((0, 4096)));
        assert_eq!(range(&["bs=1k", "count=2", "skip=1"], 4096), Some((1024, 1024)));
        assert_eq!(range(&["bs=1k", "count=9", "skip=1"], 4096), Some((1024, 3072)));
        assert_eq!(range(&["count=1", "skip=2"], 4096), None);
        assert_eq!(range(&["skip=8"], 4096), Some((4096, 0)));
        assert_eq!(range(&["skip=9"], 4096), None);
    }

    #[test]
    fn what_is_no_operand_is_refused() {
        for wrong in [
            &["if=a"][..],
            &["if=a", "of=b", "seek=1"],
            &["if=a", "of=b", "bs=0"],
            &["if=a", "of=b", "bs=2G"],
            &["if=a", "of=b", "count=x"],
        ] {
            operands(wrong).unwrap_err();
        }
    }
}
