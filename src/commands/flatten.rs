//! `qcowtool flatten`: writes a whole chain as one image.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use qcow::chain::{Chain, Format};
use qcow::ops::flatten::{FlattenOptions, FlattenOutcome, flatten};

use crate::args::{OutputArgs, SourceArgs, Voice, WorkArgs, format_parser, required};
use crate::cli::exit_codes;
use crate::failure::Failure;
use crate::options::{ImageOptions, Purpose, Request, help, request};
use crate::output::{OutputFormat, print, print_json, shown};
use crate::progress::Progress;
use crate::signals::Watch;
use crate::size::human;

/// Arguments of `flatten`.
#[derive(Debug, Args)]
#[command(
    override_usage = "qcowtool flatten [OPTIONS] <SRC> <DST>",
    after_help = concat!(
    "DST is built under a temporary name beside it, synced, and renamed when it is whole.
It is the same byte for byte whatever the number of threads.

Examples:
  qcowtool flatten vm.qcow2 standalone.qcow2
  qcowtool flatten -c -o compression_type=zstd --digest vm.qcow2 small.qcow2
  qcowtool flatten -c --compression-level 9 vm.qcow2 smaller.qcow2
  qcowtool flatten -O raw --snapshot before-upgrade vm.qcow2 old-state.raw
  qcowtool flatten --backing-format qcow2 --allow-dir /var/lib/templates vm.qcow2 out.qcow2
  qcowtool flatten -o help

", exit_codes!()))]
pub(crate) struct Flatten {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    voice: Voice,
    #[command(flatten)]
    work: WorkArgs,

    /// Format of the new image
    #[arg(short = 'O', long, value_name = "FMT", default_value = "qcow2",
          value_parser = format_parser())]
    target_format: Format,

    /// Compress the data (qcow2 only)
    #[arg(short, long)]
    compress: bool,

    /// How hard to compress: 1 (fast) to 9 (small) for zlib, up to 22 for zstd [default: 6, 3]
    #[arg(long, value_name = "N", requires = "compress", allow_negative_numbers = true)]
    compression_level: Option<i32>,

    /// Options of the new image, key=value,...; 'help' lists them
    #[arg(short, long = "target-options", value_name = "OPTIONS")]
    options: Vec<OsString>,

    /// Print the CRC-32 of the content too, computed on the way
    #[arg(long)]
    digest: bool,

    /// Replace DST if it exists, atomically
    #[arg(long)]
    force: bool,

    /// Read this internal snapshot (id, else name) instead of the current state
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    #[command(flatten)]
    source: SourceArgs,

    /// The active layer of the chain
    #[arg(value_name = "SRC", required_unless_present = "options")]
    src: Option<PathBuf>,

    /// The image to write
    #[arg(value_name = "DST", required_unless_present = "options")]
    dst: Option<PathBuf>,
}

impl Flatten {
    /// Writes the image, or lists the options that it can have.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let items = match request(&self.options)? {
            Request::Help => return print(help(self.target_format, Purpose::Flatten)),
            Request::Options(items) => items,
        };
        let options = FlattenOptions {
            target: ImageOptions::parse(self.target_format, Purpose::Flatten, &items)?.target()?,
            compress: self.compress,
            compression_level: self.compression_level,
            threads: self.work.threads(),
            digest: self.digest,
            replace: self.force,
        };
        let src = required(self.src.take(), "SRC")?;
        let dst = required(self.dst.take(), "DST")?;
        let outcome = self.write(&src, &dst, &options)?;
        self.print(&src, &dst, &outcome)
    }

    fn write(
        &self,
        src: &Path,
        dst: &Path,
        options: &FlattenOptions,
    ) -> Result<FlattenOutcome, Failure> {
        let watch = Watch::start()?;
        let open = self.source.open_options(self.snapshot.as_deref());
        self.voice.opening(src, open.format);
        let chain = Chain::open(src, &open)?;
        self.voice.opened(&chain);
        let progress = Progress::new(self.work.progress(&self.voice));
        let result = flatten(&chain, dst, options, &progress, watch.token());
        progress.finish(result.is_ok());
        watch.settle(result)
    }

    fn print(&self, src: &Path, dst: &Path, outcome: &FlattenOutcome) -> Result<(), Failure> {
        if self.output.output == OutputFormat::Json {
            return print_json(outcome);
        }
        let mut text = String::new();
        if !self.voice.quiet {
            text = summary(src, dst, outcome);
        }
        if let Some(crc32) = &outcome.crc32 {
            text.push_str(&format!("crc32: {crc32}\n"));
        }
        print(text)
    }
}

fn summary(src: &Path, dst: &Path, outcome: &FlattenOutcome) -> String {
    format!(
        "flattened '{}' to '{}': {}, {} virtual, {} data, {} zeros\n",
        shown(src),
        shown(dst),
        outcome.format,
        human(outcome.virtual_size),
        human(outcome.data_bytes),
        human(outcome.zero_bytes),
    )
}
