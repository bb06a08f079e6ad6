//! `qcowtool map`: lists where the parts of a disk come from.

pub(crate) mod lines;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use qcow::chain::Chain;
use qcow::ops::map::{Map, MapOptions, map};

use self::lines::{hexadecimal, write_object};
use crate::args::{Common, PartArgs, SourceArgs, exit_codes, replace};
use crate::failure::Failure;
use crate::left_out::warn_left_out;
use crate::losses::warn_truncated;
use crate::output::{OutputFormat, shown};
use crate::picture::PictureFile;
use crate::progress::When;
use crate::sandbox::Plan;
use crate::session::{Operation, Session};
use crate::size;

/// Arguments of `map`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "The text lists the ranges with data and the file that holds each; the JSON lists all ranges, with the keys and \
values of `qemu-img map --output json`. Compressed data has no host offset in the text.

Examples:
  qcowtool map vm.qcow2
  qcowtool map --output json --start-offset 1G --max-length 1M vm.qcow2
  qcowtool map --snapshot before-upgrade vm.qcow2
  qcowtool map --picture vm.svg vm.qcow2

", exit_codes!()))]
pub(crate) struct MapCommand {
    #[command(flatten)]
    pub(crate) common: Common,

    /// Guest offset at which to start
    #[arg(short, long, value_name = "OFFSET", default_value = "0", value_parser = parse_size)]
    start_offset: u64,

    /// Length of the range to map [default: to the end of the disk]
    #[arg(short = 'l', long, value_name = "LENGTH", value_parser = parse_size)]
    max_length: Option<u64>,

    /// Read this internal snapshot instead of the current state: an ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// Draw the map as FILE.svg or FILE.png instead: the disk, and the ranges that each layer provides
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,

    /// Replace the picture if it exists, atomically
    #[arg(long, requires = "picture")]
    force: bool,

    /// As --force, also if the file is in use or an image depends on it
    #[arg(long, requires = "picture")]
    force_in_use: bool,

    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    part: PartArgs,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

fn parse_size(text: &str) -> qcow::Result<u64> {
    size::parse_disk(text)
}

impl MapCommand {
    /// Lists the entries as they are found.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let open = self.source.open_options(self.snapshot.as_deref());
        let replaces = replace(self.force, self.force_in_use);
        let picture = self.picture.as_deref().map(|path| PictureFile::at(path, replaces));
        let picture = picture.transpose()?;
        let plan = Plan::new().chain(&self.path, &open);
        let plan = match &self.picture {
            Some(picture) => plan.making_late(picture),
            None => plan,
        };
        // What is printed may end anywhere; a picture is there as a whole or not at all.
        let operation = picture.is_some().then(|| Operation::showing(When::Never)).transpose()?;
        let session = Session::start(&self.common, plan)?;
        let chain = session.open_chain(&self.path, &open, &self.part)?;
        session.all_is_open()?;
        warn_left_out(&chain, self.common.format())?;
        let options = MapOptions::default().start(self.start_offset).max_length(self.max_length);
        if let Some((picture, operation)) = picture.zip(operation) {
            return operation.run(|_, cancel| picture.map(&self.path, &chain, &options, cancel));
        }
        let entries = map(&chain, &options);
        match self.common.format() {
            OutputFormat::Json => print_json(entries, &chain, self.start_offset),
            OutputFormat::Human => print_human(entries, &chain),
        }
    }
}

/// Everything, one object a line, as `qemu-img` lays it out.
fn print_json(entries: Map<'_>, chain: &Chain, start: u64) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut before = "[";
    for entry in entries {
        let entry = flushed_on_error(&mut out, entry)?;
        write_object(&mut out, before, &entry).map_err(Failure::from_output)?;
        before = ",\n";
    }
    warn_truncated(&flushed_on_error(&mut out, chain.truncations())?);
    // Nothing to list: one entry of no length, as qemu-img has it.
    if before == "[" {
        write!(
            out,
            "[{{ \"start\": {start}, \"length\": 0, \"depth\": 0, \"present\": false, \
             \"zero\": false, \"data\": false, \"compressed\": false}}"
        )
        .map_err(Failure::from_output)?;
    }
    out.write_all(b"]\n").and_then(|()| out.flush()).map_err(Failure::from_output)
}

/// What holds data, and where; zeros are left out.
fn print_human(entries: Map<'_>, chain: &Chain) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let names: Vec<_> = chain.layers().iter().map(|layer| shown(layer.data_path())).collect();
    writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")
        .map_err(Failure::from_output)?;
    for entry in entries {
        let entry = flushed_on_error(&mut out, entry)?;
        if !entry.data || entry.zero {
            continue;
        }
        let place = entry.offset.map_or_else(|| "compressed".to_owned(), hexadecimal);
        let name = names.get(entry.depth).map_or("", String::as_str);
        let (start, length) = (hexadecimal(entry.start), hexadecimal(entry.length));
        writeln!(out, "{start:<16}{length:<16}{place:<16}{name}").map_err(Failure::from_output)?;
    }
    warn_truncated(&flushed_on_error(&mut out, chain.truncations())?);
    out.flush().map_err(Failure::from_output)
}

/// Lets out what was found before an error.
fn flushed_on_error<T>(out: &mut impl Write, result: qcow::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| match out.flush() {
        Ok(()) => Failure::Error(error),
        Err(failed) => Failure::from_output(failed),
    })
}
