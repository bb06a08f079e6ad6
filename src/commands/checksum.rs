//! `qcowtool checksum`: prints the CRC-32 of what a guest would read.

use std::path::PathBuf;

use clap::Args;
use qcow::chain::Chain;
use qcow::ops::checksum::{ChecksumOptions, checksum};
use serde::Serialize;

use crate::args::{OutputArgs, SourceArgs, Voice, WorkArgs};
use crate::cli::exit_codes;
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json, shown};
use crate::progress::Progress;
use crate::signals::Watch;

/// Arguments of `checksum`.
#[derive(Debug, Args)]
#[command(after_help = concat!(
    "The digest is zlib's crc32 over the raw disk: the same as of
`qemu-img convert -O raw PATH OUT`, whatever the format, the chain or the holes.

Examples:
  qcowtool checksum vm.qcow2
  qcowtool checksum --output json --snapshot before-upgrade vm.qcow2
  qcowtool checksum -f raw /dev/vg0/vm

", exit_codes!()))]
pub(crate) struct Checksum {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    voice: Voice,
    #[command(flatten)]
    work: WorkArgs,

    /// Read this internal snapshot (id, else name) instead of the current state
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    #[command(flatten)]
    source: SourceArgs,

    /// The image
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Outcome<'a> {
    filename: &'a str,
    virtual_size: u64,
    crc32: &'a str,
}

impl Checksum {
    /// Reads the disk and prints its digest.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let watch = Watch::start()?;
        let open = self.source.open_options(self.snapshot.as_deref());
        self.voice.opening(&self.path, open.format);
        let chain = Chain::open(&self.path, &open)?;
        self.voice.opened(&chain);
        let options = ChecksumOptions { threads: self.work.threads() };
        let progress = Progress::new(self.work.progress(&self.voice));
        let result = checksum(&chain, &options, &progress, watch.token());
        progress.finish(result.is_ok());
        let outcome = watch.settle(result)?;
        match self.output.output {
            OutputFormat::Json => print_json(&Outcome {
                filename: &self.path.to_string_lossy(),
                virtual_size: outcome.virtual_size,
                crc32: &outcome.crc32,
            }),
            OutputFormat::Human => {
                print(format_args!("{}  {}\n", outcome.crc32, shown(&self.path)))
            }
        }
    }
}
