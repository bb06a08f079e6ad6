//! `qcowtool compare`: tells whether two images hold the same.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use qcow::chain::{Format, OpenOptions};
use qcow::format::SECTOR;
use qcow::ops::compare::{
    CompareError, CompareOptions, CompareOutcome, Difference, DifferenceKind, compare,
};

use crate::args::{
    CHAIN, CacheArgs, Common, PartArgs, SourceArgs, StatedFormat, WorkArgs, backing_formats,
    exit_codes, format_parser,
};
use crate::failure::Failure;
use crate::losses::warn_truncated;
use crate::output::{OutputFormat, to_json};
use crate::sandbox::Plan;
use crate::session::{Operation, Session};

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
    after_help = concat!(
    "A longer image may be identical to a shorter one: the rest must read as zeros. The text names \
the first sector that differs, as `qemu-img compare` does; the JSON names the first byte. Ranges \
that both images share (the same offset of the same file) are not read.

Examples:
  qcowtool compare vm.qcow2 copy.qcow2
  qcowtool compare -f qcow2 -F raw --all vm.qcow2 vm.raw
  qcowtool compare -s --output json one.qcow2 other.qcow2

", exit_codes!(
"  0    identical
  1    different; or wrong usage
  2    an image could not be opened
  3    the allocation status could not be read
  4    the data could not be read")))]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    cache: CacheArgs,

    /// Also require equal sizes and the same allocation, zero and compression status
    #[arg(short, long)]
    strict: bool,

    /// List every differing range, in whole sectors, not only the first
    #[arg(long)]
    all: bool,

    /// Format of the second image [default: detect from the header]
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
        let coded = |code| move |error| Failure::Coded { code, error };
        let operation = Operation::start(&self.common, &self.work).map_err(coded(NOT_OPENED))?;
        let open = self.source.open_options(None);
        let stated = &self.second_backing_format;
        let second = open
            .clone()
            .format(self.second_format)
            .backing_formats(backing_formats(stated, self.source.raw_despite_magic));
        let options = CompareOptions::default()
            .strict(self.strict)
            .all(self.all)
            .threads(self.work.threads());
        let plan = Plan::new().chain(&self.first, &open).chain(&self.second, &second);
        let session = Session::start(&self.common, plan).map_err(coded(NOT_OPENED))?;
        let open_chain = |path, options: &OpenOptions| {
            session.open_chain(path, options, &self.part).map_err(coded(NOT_OPENED))
        };
        let one = open_chain(&self.first, &open)?;
        let other = open_chain(&self.second, &second)?;
        session.all_is_open().map_err(coded(NOT_OPENED))?;
        let mut list = List::new(self.common.format(), self.common.verbosity.quiet);
        let mut found = |start, length| list.add(start, length);
        let mut code = NOT_READ;
        let compared = operation.run(|observer, cancel| {
            compare(&one, &other, &options, &mut found, observer, cancel).map_err(|error| {
                if matches!(error, CompareError::Allocation(_)) {
                    code = NO_ALLOCATION;
                }
                error.into_error()
            })
        });
        let outcome = compared.map_err(|failure| match failure {
            Failure::Error(error) => coded(code)(error),
            other => other,
        })?;
        warn_truncated(&outcome.truncated);
        list.finish(&outcome, self.all).or_else(|error| match Failure::from_output(error) {
            // The reader has closed standard output; the exit code still tells.
            Failure::OutputClosed => Ok(()),
            Failure::Error(error) => Err(coded(NOT_READ)(error)),
            other => Err(other),
        })?;
        if outcome.identical { Ok(()) } else { Err(Failure::Verdict(DIFFERENT)) }
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
            Some(Difference { kind: DifferenceKind::Status, offset, .. }) => {
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
