//! `qcowtool measure`: tells how long the file of a new image will be.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use qcow::Error;
use qcow::chain::{Chain, Format};
use qcow::extent::LeftOut;
use qcow::ops::flatten::FlattenOptions;
use qcow::ops::measure::{MeasureOptions, MeasureOutcome, exact, measure, measure_size};

use crate::args::{Common, PartArgs, SourceArgs, WorkArgs, exit_codes, format_parser};
use crate::failure::Failure;
use crate::left_out::{Lacking, warn_left_out};
use crate::losses::warn_truncated;
use crate::options::{ImageOptions, Item, Key, Purpose, Request, help, request};
use crate::output::{OutputFormat, print, print_json};
use crate::sandbox::Plan;
use crate::session::{Operation, Session};
use crate::size;

/// Arguments of `measure`.
#[derive(Debug, Args)]
#[command(
    override_usage = "qcowtool measure [OPTIONS] <PATH>\n       \
                      qcowtool measure [OPTIONS] --size <SIZE>",
    after_help = concat!(
    "The figures are those of `qemu-img measure`: an upper bound, taken from the tables alone. Without -O they \
are for a qcow2 image (qemu-img: raw). \
--exact reads the data and prints the length of the file that `qcowtool flatten` would write with the \
same options, to the byte; with an external data file, the total of both files, and that of the data file. On a \
file system with reflinks, flatten keeps zeros that a source stores as data, unless --no-reflink is given.

Examples:
  qcowtool measure vm.qcow2
  qcowtool measure -o cluster_size=2M --size 1T
  qcowtool measure -c --exact --output json vm.qcow2

", exit_codes!()))]
pub(crate) struct Measure {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// Format of the new image
    #[arg(short = 'O', long, value_name = "FMT", default_value = "qcow2",
          value_parser = format_parser())]
    target_format: Format,

    /// Creation options, key=value,...; 'help' lists them
    #[arg(short, long = "target-options", value_name = "OPTIONS")]
    options: Vec<OsString>,

    /// Measure an empty disk of this virtual size
    #[arg(long, value_name = "SIZE", conflicts_with = "path")]
    size: Option<String>,

    /// Read the data, and print the exact size that flatten would write
    #[arg(long, conflicts_with = "size")]
    exact: bool,

    /// Compress the data (qcow2 only) to find the compressed size
    #[arg(short, long, requires = "exact")]
    compress: bool,

    /// Compression level, as for flatten
    #[arg(long, value_name = "N", requires = "compress", allow_negative_numbers = true)]
    compression_level: Option<i32>,

    /// Measure this internal snapshot instead of the current state: an ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    part: PartArgs,

    /// The image whose content the new image will have
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
}

impl Measure {
    /// Measures and prints.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let items = match request(&self.options)? {
            Request::Help => return print(help(self.target_format, Purpose::Create)),
            Request::Options(items) => items,
        };
        match (&self.size, &self.path) {
            (Some(size), _) => {
                let size = size::parse_disk(size)?;
                self.print(&measure_size(size, &self.measure_options(&items)?)?, None)
            }
            (None, Some(path)) if self.exact => self.run_exact(path, &items),
            (None, Some(path)) => {
                let chain = self.open(path)?;
                let outcome = measure(&chain, &self.measure_options(&items)?)?;
                let left_out = warn_left_out(&chain, self.common.format())?;
                self.print(&outcome, left_out.as_ref())
            }
            (None, None) => {
                let error = Error::usage("either PATH or --size is needed");
                Err(error.hint("see --help").into())
            }
        }
    }

    fn measure_options(&self, items: &[Item]) -> qcow::Result<MeasureOptions> {
        let given = ImageOptions::parse(self.target_format, Purpose::Create, items)?;
        let has_backing = given.text(Key::BackingFile).is_some();
        Ok(MeasureOptions::default().target(given.target()?).has_backing(has_backing))
    }

    fn run_exact(&self, path: &Path, items: &[Item]) -> Result<(), Failure> {
        let operation = Operation::start(&self.common, &self.work)?;
        let given = ImageOptions::parse(self.target_format, Purpose::Flatten, items)?;
        let options = FlattenOptions::default()
            .target(given.target()?)
            .compress(self.compress)
            .compression_level(self.compression_level)
            .threads(self.work.threads());
        let chain = self.open(path)?;
        let outcome =
            operation.run(|observer, cancel| exact(&chain, &options, observer, cancel))?;
        let left_out = warn_left_out(&chain, self.common.format())?;
        warn_truncated(&outcome.truncated);
        if self.common.format() == OutputFormat::Json {
            return print_json(&Lacking { outcome: &outcome, left_out: left_out.as_ref() });
        }
        let mut text = format!("required size: {}\n", outcome.required);
        if let Some(data_file) = outcome.data_file {
            text.push_str(&format!("data file size: {data_file}\n"));
        }
        print(text)
    }

    fn open(&self, path: &Path) -> qcow::Result<Chain> {
        let open = self.source.open_options(self.snapshot.as_deref());
        let session = Session::start(&self.common, Plan::new().chain(path, &open))?;
        let chain = session.open_chain(path, &open, &self.part)?;
        session.all_is_open()?;
        Ok(chain)
    }

    fn print(&self, outcome: &MeasureOutcome, left_out: Option<&LeftOut>) -> Result<(), Failure> {
        warn_truncated(&outcome.truncated);
        if self.common.format() == OutputFormat::Json {
            return print_json(&Lacking { outcome, left_out });
        }
        let mut text = format!("required size: {}\n", outcome.required);
        text.push_str(&format!("fully allocated size: {}\n", outcome.fully_allocated));
        if let Some(bitmaps) = outcome.bitmaps {
            text.push_str(&format!("bitmaps size: {bitmaps}\n"));
        }
        print(text)
    }
}
