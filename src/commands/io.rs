//! `qcowtool io`: reads and writes parts of a disk, by a script.

use std::io::BufRead;
use std::path::PathBuf;

use clap::Args;
use qcow::disk::{Disk, RangeKind};
use qcow::{Error, ErrorKind};
use serde::Serialize;

use crate::args::{
    ChainArgs, Common, StatedFormat, TrustArgs, backing_formats, exit_codes, format_parser,
};
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json};
use crate::sandbox::Plan;
use crate::script::{FORMS, Step};
use crate::session::{Session, changing, open_disk};

/// Bytes that are read or written at once.
const PIECE: u64 = 1 << 20;

/// Arguments of `io`.
#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub(crate) struct Io {
    #[command(flatten)]
    pub(crate) common: Common,

    /// Image format [default: detect from the header; a raw disk must be stated]
    #[arg(short, long, value_name = "FMT", value_parser = format_parser())]
    format: Option<qcow::chain::Format>,

    /// Format of the backing file NAME whose overlay records no format; may be repeated
    #[arg(long, value_name = "[NAME=]FMT", value_parser = StatedFormat::parse)]
    backing_format: Vec<StatedFormat>,

    #[command(flatten)]
    chain: ChainArgs,

    #[command(flatten)]
    trust: TrustArgs,

    /// A command; may be repeated [default: one command per line from standard input]
    #[arg(short, long = "command", value_name = "COMMAND")]
    commands: Vec<String>,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

fn after_help() -> String {
    let codes = exit_codes!();
    format!(
        "The image is changed in place, with QEMU's image locks: an image that a guest uses is refused. A crash
leaves what was flushed, or something newer, and a sound image. The image is flushed at the end.

Commands (numbers may have a unit, as 64k, or be hexadecimal; # begins a comment):
{FORMS}

Examples:
  qcowtool io -c 'write 1M 64k 0xff' -c flush vm.qcow2
  printf 'read 0 512\\nmap 0 1G\\n' | qcowtool io vm.qcow2

{codes}"
    )
}

/// What became of one step.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Done {
    command: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    byte: Option<u8>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Range {
    start: u64,
    length: u64,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

impl Io {
    /// Carries out the commands in order; the first that fails ends the script.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let steps = self.steps()?;
        let open = self
            .trust
            .binding(self.chain.open_options())
            .format(self.format)
            .backing_formats(backing_formats(&self.backing_format, false));
        let plan = changing(Plan::new().chain(&self.path, &open), &self.path, &open);
        let session = Session::start(&self.common, plan)?;
        let disk = open_disk(&self.path, &open)?;
        session.all_is_open()?;
        let mut done = Vec::new();
        let failed = steps.into_iter().try_for_each(|(line, step)| {
            done.push(carry_out(&disk, line, step)?);
            Ok::<_, Error>(())
        });
        // What was done before is kept, whatever failed after it.
        let closed = disk.close();
        match self.common.format() {
            OutputFormat::Json => print_json(&done)?,
            OutputFormat::Human if self.common.verbosity.quiet => {}
            OutputFormat::Human => done.iter().try_for_each(|done| print(text(done)))?,
        }
        failed.and(closed).map_err(Failure::from)
    }

    fn steps(&self) -> Result<Vec<(String, Step)>, Failure> {
        let lines: Vec<String> = match self.commands.is_empty() {
            false => self.commands.clone(),
            true => std::io::stdin()
                .lock()
                .lines()
                .collect::<Result<_, _>>()
                .map_err(|error| Error::io("could not read standard input", error))?,
        };
        let mut steps = Vec::new();
        for line in lines {
            if let Some(step) = Step::parse(&line)? {
                steps.push((line, step));
            }
        }
        Ok(steps)
    }
}

fn carry_out(disk: &Disk, line: String, step: Step) -> Result<Done, Error> {
    let mut done = Done { command: line.trim().to_owned(), byte: None, ranges: Vec::new() };
    match step {
        Step::Read { at, len, pattern } => done.byte = read(disk, at, len, pattern)?,
        Step::Write { at, len, pattern } => {
            let bytes = vec![pattern; in_memory(len.min(PIECE))];
            for (at, len) in pieces(at, len, PIECE) {
                disk.write_at(bytes.get(..in_memory(len)).unwrap_or_default(), at)?;
            }
        }
        Step::Compress { at, len, pattern } => {
            let cluster = disk.cluster_size().unwrap_or(PIECE);
            for (at, len) in pieces(at, len, cluster) {
                disk.write_compressed(&vec![pattern; in_memory(len)], at)?;
            }
        }
        Step::Zero { at, len, how } => disk.write_zeroes(at, len, how)?,
        Step::Discard { at, len } => disk.discard(at, len)?,
        Step::Flush => disk.flush()?,
        Step::Map { at, len } => {
            let ranges = disk.ranges(at, len)?;
            done.ranges = ranges
                .iter()
                .map(|range| {
                    let (kind, offset) = match range.kind {
                        RangeKind::Backing => ("backing", None),
                        RangeKind::Zero => ("zero", None),
                        RangeKind::Data { host } => ("data", Some(host.0)),
                        _ => ("compressed", None),
                    };
                    Range { start: range.at, length: range.len, kind, offset }
                })
                .collect();
        }
    }
    Ok(done)
}

/// Reads a range; gives back the byte that all of it is, if it is all one.
fn read(disk: &Disk, at: u64, len: u64, pattern: Option<u8>) -> Result<Option<u8>, Error> {
    let mut bytes = vec![0; in_memory(len.min(PIECE))];
    let mut all: Option<Option<u8>> = None;
    for (at, len) in pieces(at, len, PIECE) {
        let bytes = bytes.get_mut(..in_memory(len)).unwrap_or_default();
        disk.read_at(bytes, at)?;
        for (offset, byte) in (at..).zip(bytes.iter()) {
            if pattern.is_some_and(|pattern| pattern != *byte) {
                let expected = pattern.unwrap_or_default();
                let message = format!("found byte {byte:#04x}, expected {expected:#04x}");
                return Err(Error::new(ErrorKind::Io, message).guest_offset(offset));
            }
            all = match all {
                None => Some(Some(*byte)),
                Some(Some(before)) if before == *byte => all,
                _ => Some(None),
            };
        }
    }
    Ok(all.flatten())
}

/// A range in pieces of at most `most` bytes, each its offset and length.
fn pieces(at: u64, len: u64, most: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = at.saturating_add(len);
    let start = move |number: u64| at.saturating_add(number.saturating_mul(most));
    (0..len.div_ceil(most.max(1))).map(move |number| {
        let start = start(number);
        (start, most.min(end.saturating_sub(start)))
    })
}

fn in_memory(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn text(done: &Done) -> String {
    let mut text = done.command.clone();
    match done.byte {
        Some(byte) => text.push_str(&format!(": all bytes are {byte:#04x}")),
        None if text.starts_with("read") => text.push_str(": different bytes"),
        None => text.push_str(": done"),
    }
    for range in &done.ranges {
        let Range { start, length, kind, offset } = range;
        let place = offset.map_or_else(String::new, |offset| format!(" at {offset:#x}"));
        text.push_str(&format!("\n  {start:#x} {length:#x} {kind}{place}"));
    }
    text.push('\n');
    text
}
