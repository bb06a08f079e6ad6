//! `qcowtool flatten`: writes a whole chain as one image.

mod live;
mod stream;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use qcow::chain::Format;
use qcow::extent::{Damage, LeftOut};
use qcow::ops::DamageReport;
use qcow::ops::flatten::{FlattenJob, FlattenOptions, FlattenOutcome, TransferStats};
use qcow::{Error, ErrorKind, Escaped, Remedy};

use self::stream::is_stream;
use crate::args::{
    Common, PartArgs, ReplaceArgs, SourceArgs, WorkArgs, exit_codes, format_parser, required,
};
use crate::commands::create::outputs;
use crate::failure::Failure;
use crate::left_out::{Lacking, warn_left_out};
use crate::losses::{report_not_carried, warn_truncated};
use crate::options::{ImageOptions, Purpose, Request, help, request};
use crate::output::{OutputFormat, eprint_json, eprint_line, print, print_json, shown, warn};
use crate::sandbox::Plan;
use crate::session::{Operation, Session};
use crate::size::human;

/// The new image is there, with zeros for what could not be read.
const SALVAGED: u8 = 7;

/// Arguments of `flatten`.
#[derive(Debug, Args)]
#[command(
    override_usage = "qcowtool flatten [OPTIONS] <SRC> <DST>\n       \
                      qcowtool flatten --live [OPTIONS] <DOMAIN> <DISK>",
    after_help = concat!(
    "DST is written under a temporary name in the same directory, synced, and renamed when it is complete. \
A device (--device) or an existing file (-n) is overwritten in place instead. \
The output is the same byte for byte for any number of threads. With '-' as DST it is written sequentially to \
standard output, and all messages go to standard error; for qcow2 the source is then read twice.

Examples:
  qcowtool flatten vm.qcow2 standalone.qcow2
  qcowtool flatten -c -o compression_type=zstd --digest vm.qcow2 small.qcow2
  qcowtool flatten -c --compression-level 9 vm.qcow2 smaller.qcow2
  qcowtool flatten -O raw --snapshot before-upgrade vm.qcow2 old-state.raw
  qcowtool flatten --backing-format template.qcow2=qcow2 --allow-dir /var/lib/templates vm.qcow2 out.qcow2
  qcowtool flatten --alone overlay.qcow2 what-is-left.qcow2
  qcowtool flatten -v --no-reflink vm.qcow2 no-shared-space.qcow2
  qcowtool flatten -O raw --device --direct --threads 8 vm.qcow2 /dev/vg/vm
  qcowtool flatten -n -O raw vm.qcow2 mounted-volume.img
  qcowtool flatten -O raw vm.qcow2 - | ssh host 'dd of=/dev/vg/vm bs=2M'
  zcat vm.raw.gz | qcowtool flatten --size 20G - vm.qcow2
  qcowtool flatten --salvage damaged.qcow2 what-is-left.qcow2
  qcowtool flatten -o help
  qcowtool flatten --live web-1 vda --dry-run
  qcowtool flatten --live web-1 vda --method copy --target /data/web-1.qcow2

With --live, the exit codes are those of the commands that move guests (qcowtool migrate --help).

", exit_codes!(), "
  7    with --salvage: DST was written, with zeros for unreadable ranges"))]
pub(crate) struct Flatten {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// Format of the new image
    #[arg(short = 'O', long, value_name = "FMT", default_value = "qcow2",
          value_parser = format_parser())]
    target_format: Format,

    /// Compress data clusters (qcow2 only)
    #[arg(short, long)]
    compress: bool,

    /// Compression level: 1 (fast) to 9 (small) for zlib, up to 22 for zstd [default: 6 for zlib, 3 for zstd]
    #[arg(long, value_name = "N", requires = "compress", allow_negative_numbers = true)]
    compression_level: Option<i32>,

    /// Creation options, key=value,...; 'help' lists them
    #[arg(short, long = "target-options", value_name = "OPTIONS")]
    options: Vec<OsString>,

    /// Also print the CRC-32 of the guest-visible content
    #[arg(long)]
    digest: bool,

    #[command(flatten)]
    replace: ReplaceArgs,

    /// Write into the existing DST: a regular file or a block device at least as large as the virtual size,
    /// with -O raw only. It keeps its length and what follows the disk, and must not be in use. An
    /// interrupted run leaves it partly overwritten
    #[arg(short = 'n', long, conflicts_with_all = ["force", "device"])]
    no_create: bool,

    /// Do not reflink (XFS, Btrfs): DST then shares no extents with the source
    #[arg(long)]
    no_reflink: bool,

    /// Continue past damage: unreadable ranges become zeros in DST and are listed; the exit code is then 7
    #[arg(long, conflicts_with = "digest")]
    salvage: bool,

    /// Overwrite the block device DST, which must be large enough and not in use
    #[arg(long, conflicts_with_all = ["force", "force_in_use"])]
    device: bool,

    /// The existing destination (--device, -n) already reads as zeros: do not write zeros
    #[arg(long)]
    target_is_zero: bool,

    /// Bypass the page cache (O_DIRECT); --threads sets the number of concurrent requests
    #[arg(long)]
    direct: bool,

    /// Read this internal snapshot instead of the current state: an ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    part: PartArgs,
    #[command(flatten)]
    live: live::LiveArgs,

    /// Expected length of the disk on standard input; any other length is an error
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,

    /// Active layer of the chain; '-' reads a raw image from standard input
    #[arg(value_name = "SRC", required_unless_present = "options")]
    src: Option<PathBuf>,

    /// The image to write; '-' is standard output
    #[arg(value_name = "DST", required_unless_present = "options")]
    dst: Option<PathBuf>,
}

impl Flatten {
    /// Writes the image, or lists the options that it can have.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        if self.live.wanted() {
            let [domain, disk] =
                [required(self.src.take(), "DOMAIN")?, required(self.dst.take(), "DISK")?];
            let progress = self.work.progress(&self.common.verbosity);
            return self.live.run(
                &domain,
                &disk,
                self.common.format(),
                &self.common.verbosity,
                progress,
            );
        }
        let items = match request(&self.options)? {
            Request::Help => return print(help(self.target_format, Purpose::Flatten)),
            Request::Options(items) => items,
        };
        let options = FlattenOptions::default()
            .target(ImageOptions::parse(self.target_format, Purpose::Flatten, &items)?.target()?)
            .compress(self.compress)
            .compression_level(self.compression_level)
            .threads(self.work.threads())
            .digest(self.digest)
            .replace(self.replace.replace())
            .no_reflink(self.no_reflink)
            .device(self.device)
            .existing(self.no_create)
            .target_is_zero(self.target_is_zero)
            .direct(self.direct)
            .salvage(self.salvage);
        let src = required(self.src.take(), "SRC")?;
        let dst = required(self.dst.take(), "DST")?;
        if self.size.is_some() && !is_stream(&src) {
            return Err(Error::usage("--size applies only to a stream, and SRC is a file").into());
        }
        if self.salvage && (is_stream(&src) || is_stream(&dst)) {
            return Err(Error::usage("--salvage cannot be used with a stream")
                .hint("name a file instead of '-'")
                .into());
        }
        let (outcome, left_out) = if is_stream(&src) {
            (self.receive(&dst, &options)?, None)
        } else if is_stream(&dst) {
            self.send(&src, &options)?
        } else {
            self.write(&src, &dst, &options)?
        };
        // Standard error has the outcome where standard output is the image.
        if !(is_stream(&dst) && self.common.format() == OutputFormat::Json) {
            warn_truncated(&outcome.truncated);
            report_not_carried(&self.common.verbosity, &src, &outcome.not_carried_over);
        }
        self.print(&src, &dst, &Lacking { outcome: &outcome, left_out: left_out.as_ref() })?;
        salvaged(&src, &outcome)
    }

    fn write(
        &self,
        src: &Path,
        dst: &Path,
        options: &FlattenOptions,
    ) -> Result<(FlattenOutcome, Option<LeftOut>), Failure> {
        let operation = Operation::start(&self.common, &self.work)?;
        let open = self.source.open_options(self.snapshot.as_deref());
        let plan = self.outputs(dst, options).chain(src, &open);
        let session = Session::start(&self.common, plan)?;
        let chain = session.open_chain(src, &open, &self.part)?;
        let outcome = operation.run(|observer, cancel| {
            let job = FlattenJob::begin(&chain, dst, options)?;
            session.all_is_open()?;
            job.run(observer, cancel).map_err(how_to_salvage)
        })?;
        Ok((outcome, warn_left_out(&chain, self.common.format())?))
    }

    /// What is written.
    fn outputs(&self, dst: &Path, options: &FlattenOptions) -> Plan {
        if self.device || self.no_create {
            Plan::new().overwriting(dst)
        } else {
            outputs(dst, &options.target)
        }
    }

    fn print(
        &self,
        src: &Path,
        dst: &Path,
        lacking: &Lacking<'_, FlattenOutcome>,
    ) -> Result<(), Failure> {
        let outcome = lacking.outcome;
        warn(&outcome.warnings);
        if self.common.verbosity.verbose {
            eprint_line(ways(&outcome.transfer));
        }
        if is_stream(dst) {
            // Standard output is the image.
            return self.print_aside(src, lacking);
        }
        if self.common.format() == OutputFormat::Json {
            return print_json(lacking);
        }
        let mut text = String::new();
        if !self.common.verbosity.quiet {
            text = summary("flattened", src, dst, outcome);
            text.extend(outcome.damage.iter().map(damage_text));
        }
        if let Some(crc32) = &outcome.crc32 {
            text.push_str(&format!("crc32: {crc32}\n"));
        }
        print(text)
    }

    /// Prints on standard error.
    fn print_aside(
        &self,
        src: &Path,
        lacking: &Lacking<'_, FlattenOutcome>,
    ) -> Result<(), Failure> {
        if self.common.format() == OutputFormat::Json {
            return eprint_json(lacking);
        }
        let outcome = lacking.outcome;
        if !self.common.verbosity.quiet {
            eprint_line(summary("flattened", src, Path::new("-"), outcome).trim_end());
        }
        if let Some(crc32) = &outcome.crc32 {
            eprint_line(format_args!("crc32: {crc32}"));
        }
        Ok(())
    }
}

pub(super) fn summary(what: &str, src: &Path, dst: &Path, outcome: &FlattenOutcome) -> String {
    format!(
        "{what} '{}' to '{}': {}, {} virtual, {} data, {} zeros\n",
        shown(src),
        shown(dst),
        outcome.format,
        human(outcome.virtual_size),
        human(outcome.data_bytes),
        human(outcome.zero_bytes),
    )
}

/// The ranges that could not be read, one a line.
pub(super) fn damage_text(report: &DamageReport) -> String {
    let mut text = String::new();
    for range in &report.ranges {
        let Damage { guest_offset, length, filename, reason, .. } = range;
        let structure = range.structure.map(|name| format!("{name}: ")).unwrap_or_default();
        let (file, reason) = (shown(Path::new(filename)), Escaped(reason));
        text.push_str(&format!(
            "unreadable: {length} bytes at guest offset {guest_offset:#x}: {file}: {structure}{reason}\n"
        ));
    }
    if report.ranges_left_out > 0 {
        text.push_str(&format!("unreadable: {} more ranges\n", report.ranges_left_out));
    }
    text
}

/// Damage at one place of the disk need not be the end of the rest.
pub(super) fn how_to_salvage(error: Error) -> Error {
    const EIO: i32 = 5;
    let unreadable = error.io_source().and_then(std::io::Error::raw_os_error) == Some(EIO);
    let damage = error.kind() == ErrorKind::Corrupt || unreadable;
    if damage && error.place().guest_offset.is_some() {
        return error.hint(Remedy::Salvage);
    }
    error
}

/// How the program ends after a salvage: with success only if nothing was lost.
pub(super) fn salvaged(src: &Path, outcome: &FlattenOutcome) -> Result<(), Failure> {
    let lost = outcome.damage.as_ref().map_or(0, |report| report.bytes);
    if lost == 0 {
        return Ok(());
    }
    let error =
        Error::corrupt(format!("{lost} bytes could not be read, and are zeros in the new image"));
    Err(Failure::Coded { code: SALVAGED, error: error.file(src) })
}

/// How many bytes went which way.
pub(super) fn ways(transfer: &TransferStats) -> String {
    format!(
        "{} cloned, {} copied by the kernel, {} written",
        human(transfer.cloned_bytes),
        human(transfer.copied_bytes),
        human(transfer.written_bytes),
    )
}
