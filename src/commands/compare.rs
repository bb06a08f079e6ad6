//! `qcowtool compare`: tells whether two images hold the same.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use qcow::Result;
use qcow::chain::{Chain, Format, OpenOptions};
use qcow::ops::compare::{
    CompareError, CompareOptions, CompareOutcome, Difference, DifferenceKind, SECTOR, compare,
};

use crate::args::{
    CHAIN, CacheArgs, OutputArgs, PartArgs, SandboxArgs, SourceArgs, StatedFormat, Voice, WorkArgs,
    backing_formats, format_parser,
};
use crate::failure::Failure;
use crate::losses::warn_truncated;
use crate::output::{OutputFormat, to_json};
use crate::progress::Progress;
use crate::sandbox::Plan;
use crate::signals::Watch;

/// The images differ.
const DIFFERENT: u8 = 1;
/// An image could not be opened.
const NOT_OPENED: u8 = 2;
/// The tables of an image could not be understood.
const NO_ALLOCATION: u8 = 3;
/// The data of an image could not be read.
const NOT_READ: u8 = 4;

/// Arguments of `compare`.
#[derive(Debug, Args)]
#[command(
    after_help = "A longer image may be identical to a shorter one: the rest must read as zeros. The text names
the first sector that differs, as `qemu-img compare` does; the JSON names the first byte. Ranges
that both images take from one place are not read.

Examples:
  qcowtool compare vm.qcow2 copy.qcow2
  qcowtool compare -f qcow2 -F raw --all vm.qcow2 vm.raw
  qcowtool compare -s --output json one.qcow2 other.qcow2

Exit codes:
  0    identical
  1    different; or wrong usage
  2    an image could not be opened
  3    where the data lies could not be found out
  4    the data could not be read
  130  stopped by SIGINT (Ctrl-C)
  143  stopped by SIGTERM (129 by SIGHUP)"
)]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    voice: Voice,
    #[command(flatten)]
    sandbox: SandboxArgs,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    cache: CacheArgs,

    /// Sizes must be equal, and so must be what is allocated, zero and compressed
    #[arg(short, long)]
    strict: bool,

    /// List every range that differs, in whole sectors, not only the first
    #[arg(long)]
    all: bool,

    /// Format of the second image; left out, its first bytes tell
    #[arg(short = 'F', long, value_name = "FMT", value_parser = format_parser())]
    second_format: Option<Format>,

    /// As --backing-format, for the backing files of the second image
    #[arg(long, value_name = "[NAME=]FMT", value_parser = StatedFormat::parse, help_heading = CHAIN)]
    second_backing_format: Vec<StatedFormat>,

    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    part: PartArgs,

    /// One image
    #[arg(value_name = "FIRST")]
    first: PathBuf,

    /// The other image
    #[arg(value_name = "SECOND")]
    second: PathBuf,
}

impl Compare {
    /// Compares and says what differs.
    pub(crate) fn run(self) -> Result<(), Failure> {
        // 1 would say that they differ.
        let watch = Watch::start().map_err(|error| Failure::Coded { code: NOT_OPENED, error })?;
        let open = self.source.open_options(None);
        let stated = &self.second_backing_format;
        let second = OpenOptions {
            format: self.second_format,
            backing_formats: backing_formats(stated, self.source.raw_despite_magic),
            ..open.clone()
        };
        let options =
            CompareOptions { strict: self.strict, all: self.all, threads: self.work.threads() };
        let progress = Progress::new(self.work.progress(&self.voice));
        let not_opened = |error| Failure::Coded { code: NOT_OPENED, error };
        let plan = Plan::new().chain(&self.first, &open).chain(&self.second, &second);
        let sandbox = self.sandbox.enter(plan).map_err(not_opened)?;
        let one = self.open(&self.first, &open)?;
        let other = self.open(&self.second, &second)?;
        sandbox.all_is_open().map_err(not_opened)?;
        let mut list = List::new(self.output.output, self.voice.quiet);
        let mut found = |start, length| list.add(start, length);
        let result = compare(&one, &other, &options, &mut found, &progress, watch.token());
        progress.finish(result.is_ok());
        let outcome = self.settle(&watch, result)?;
        warn_truncated(&outcome.truncated);
        list.finish(&outcome, self.all).or_else(|error| match Failure::from_output(error) {
            // Nobody reads on; the exit code still tells.
            Failure::OutputClosed => Ok(()),
            Failure::Error(error) => Err(Failure::Coded { code: NOT_READ, error }),
            other => Err(other),
        })?;
        if outcome.identical { Ok(()) } else { Err(Failure::Verdict(DIFFERENT)) }
    }

    fn open(&self, path: &Path, options: &OpenOptions) -> Result<Chain, Failure> {
        self.voice.opening(path, options.format);
        let chain = self
            .part
            .open(path, options)
            .map_err(|error| Failure::Coded { code: NOT_OPENED, error })?;
        self.voice.opened(&chain);
        Ok(chain)
    }

    /// Gives each step that can fail its own exit code.
    fn settle(
        &self,
        watch: &Watch,
        result: Result<CompareOutcome, CompareError>,
    ) -> Result<CompareOutcome, Failure> {
        let code = match &result {
            Err(CompareError::Allocation(_)) => NO_ALLOCATION,
            _ => NOT_READ,
        };
        watch.settle(result.map_err(CompareError::into_error)).map_err(|failure| match failure {
            Failure::Error(error) => Failure::Coded { code, error },
            other => other,
        })
    }
}

/// Prints differing ranges as they are found, so that memory does not grow with their number.
struct List {
    format: OutputFormat,
    quiet: bool,
    out: BufWriter<io::Stdout>,
    count: u64,
    failed: Option<io::Error>,
}

impl List {
    fn new(format: OutputFormat, quiet: bool) -> Self {
        Self { format, quiet, out: BufWriter::new(io::stdout()), count: 0, failed: None }
    }

    fn add(&mut self, start: u64, length: u64) {
        if self.failed.is_none() {
            self.failed = self.write(start, length).err();
        }
        self.count = self.count.saturating_add(1);
    }

    fn write(&mut self, start: u64, length: u64) -> io::Result<()> {
        match self.format {
            OutputFormat::Json => {
                let before = if self.count == 0 { "{\n    \"differences\": [" } else { "," };
                write!(
                    self.out,
                    "{before}\n        {{\n            \"start\": {start},\n            \
                     \"length\": {length}\n        }}"
                )
            }
            OutputFormat::Human if self.quiet => Ok(()),
            OutputFormat::Human => {
                writeln!(self.out, "Content mismatch at offset {start}, {length} bytes!")
            }
        }
    }

    fn finish(mut self, outcome: &CompareOutcome, all: bool) -> io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        match self.format {
            OutputFormat::Json => self.finish_json(outcome, all)?,
            OutputFormat::Human if self.quiet => {}
            OutputFormat::Human => self.finish_human(outcome, all)?,
        }
        self.out.flush()
    }

    fn finish_json(&mut self, outcome: &CompareOutcome, all: bool) -> io::Result<()> {
        let text = to_json(outcome)?;
        if !all {
            return self.out.write_all(text.as_bytes());
        }
        let list = if self.count == 0 { "{\n    \"differences\": [" } else { "" };
        write!(self.out, "{list}\n    ],{}", text.strip_prefix('{').unwrap_or(&text))
    }

    fn finish_human(&mut self, outcome: &CompareOutcome, all: bool) -> io::Result<()> {
        let [one, other] = outcome.virtual_sizes;
        let shorter = one.min(other);
        let first = outcome.first_difference;
        let sizes_only = first.is_none_or(|first| first.offset >= shorter);
        if one != other && sizes_only && first.is_none_or(|d| d.kind != DifferenceKind::Size) {
            writeln!(self.out, "Warning: Image size mismatch!")?;
        }
        match first {
            None => writeln!(self.out, "Images are identical."),
            Some(Difference { kind: DifferenceKind::Size, .. }) => {
                writeln!(self.out, "Strict mode: Image size mismatch!")
            }
            Some(Difference { kind: DifferenceKind::Status, offset }) => {
                writeln!(self.out, "Strict mode: Offset {offset} block status mismatch!")
            }
            Some(_) if all => {
                let (bytes, ranges) = (outcome.different_bytes, self.count);
                writeln!(self.out, "Images differ in {bytes} bytes, in {ranges} ranges.")
            }
            Some(Difference { offset, .. }) => {
                let sector = offset & !SECTOR.wrapping_sub(1);
                writeln!(self.out, "Content mismatch at offset {sector}!")
            }
        }
    }
}
