//! `qcowtool convert`: writes one or several disks as a new image, or into an existing one, with the options
//! of `qemu-img convert`.

mod report;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use qcow::chain::{Chain, Format, Joined, OpenOptions, resolve_name};
use qcow::ops::TargetOptions;
use qcow::ops::bitmap::CarryBitmaps;
use qcow::ops::copy::{CopyJob, CopyOptions, CopyOutcome};
use qcow::ops::flatten::{FlattenJob, FlattenOptions, FlattenOutcome};
use qcow::ops::rebase::NewBacking;
use qcow::{CancelToken, Error, Observer};

use super::flatten::how_to_salvage;
use crate::args::{
    CacheArgs, Common, PartArgs, ReplaceArgs, SourceArgs, WorkArgs, exit_codes, format_parser,
};
use crate::commands::create::outputs;
use crate::failure::Failure;
use crate::left_out::warn_left_out;
use crate::options::{ImageOptions, Item, Key, Purpose, Request, help, request};
use crate::output::print;
use crate::sandbox::Plan;
use crate::session::{Operation, Session, changing};

/// Zeros of up to so many bytes can be asked to stay.
const MOST_SPARSE: u64 = 16 << 20;

/// Arguments of `convert`.
#[derive(Debug, Args)]
#[command(
    override_usage = "qcowtool convert [OPTIONS] <SRC>... <DST>",
    after_help = concat!(
    "This is `qcowtool flatten` with the options of `qemu-img convert`; without -O the new image is qcow2 (qemu-img makes \
a raw one). Several sources are put one after another. DST is written under a temporary name in the same directory, \
synced, and renamed when it is complete; with -n it is overwritten in place instead.

With -B, DST keeps a backing file, and has what differs from that: it need not be that of SRC.

Examples:
  qcowtool convert vm.qcow2 copy.qcow2
  qcowtool convert -f raw -O qcow2 -c -o compression_type=zstd disk.img small.qcow2
  qcowtool convert -O raw -l before-upgrade vm.qcow2 old-state.raw
  qcowtool convert -B template.qcow2 -F qcow2 vm.qcow2 overlay.qcow2
  qcowtool convert -f raw part1.img part2.img whole.qcow2
  qcowtool convert --bitmaps vm.qcow2 copy.qcow2
  qcowtool convert -n -O raw vm.qcow2 /dev/vg/vm
  qcowtool convert -n -O qcow2 vm.qcow2 existing.qcow2
  qcowtool convert -n --bitmap since-sunday vm.qcow2 sunday.qcow2
  qcowtool convert --image-opts driver=qcow2,file.filename=vm.qcow2 copy.qcow2
  qcowtool convert -o help

", exit_codes!(), "
  7    with --salvage: DST was written, with zeros for unreadable ranges"))]
pub(crate) struct Convert {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    work: WorkArgs,

    /// Format of the new image; with -n that of the existing one
    #[arg(short = 'O', long, value_name = "FMT", default_value = "qcow2",
          value_parser = format_parser())]
    target_format: Format,

    /// Creation options, key=value,...; 'help' lists them
    #[arg(short, long = "target-options", value_name = "OPTIONS")]
    options: Vec<OsString>,

    /// Compress data clusters (qcow2 only)
    #[arg(short, long)]
    compress: bool,

    /// Backing file of the new image, relative to its directory
    #[arg(short = 'B', long = "backing", value_name = "BACKING")]
    backing: Option<PathBuf>,

    /// Format of the backing file; required with -B
    #[arg(short = 'F', long = "backing-fmt", value_name = "FMT", value_parser = format_parser())]
    backing_fmt: Option<Format>,

    /// Read this internal snapshot instead of the current state: an ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long = "source-snapshot", value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// Leave out zeros only in aligned blocks of SIZE (a power of two, else rounded down to one; at most 2M count), not as
    /// finely as the format can. 0: write all as data, also zeros. Nothing is reflinked then
    #[arg(short = 'S', long = "sparse-size", value_name = "SIZE", value_parser = crate::size::parse)]
    sparse: Option<u64>,

    /// Write at most so many bytes of data a second; 0 is no limit. Nothing is reflinked then
    #[arg(short, long = "rate-limit", value_name = "RATE", value_parser = crate::size::parse)]
    rate: Option<u64>,

    /// Write into the existing DST, which must be large enough and not in use. It keeps what follows the disk. An
    /// interrupted run leaves it partly overwritten
    #[arg(short = 'n', long, conflicts_with_all = ["options", "backing", "force", "force_in_use"])]
    no_create: bool,

    /// The existing DST already reads as zeros: do not write zeros
    #[arg(long, requires = "no_create")]
    target_is_zero: bool,

    /// Number of worker threads, as --threads
    #[arg(short = 'm', long = "parallel", value_name = "N", conflicts_with = "threads",
          value_parser = clap::value_parser!(u64).range(1..=16))]
    parallel: Option<u64>,

    /// Accepted for compatibility with qemu-img: where parts are written first has no effect on the result
    #[arg(short = 'W', long = "oob-writes")]
    _oob_writes: bool,

    /// Accepted for compatibility with qemu-img: reflinks are used wherever they can be, unless --no-reflink is given
    #[arg(short = 'C', long = "copy-range-offloading", conflicts_with_all = ["compress", "sparse", "salvage"])]
    _offload: bool,

    /// Do not reflink (XFS, Btrfs): DST then shares no extents with the source
    #[arg(long)]
    no_reflink: bool,

    /// Continue past damage: unreadable ranges become zeros in DST and are listed; the exit code is then 7
    #[arg(long, conflicts_with_all = ["digest", "backing"])]
    salvage: bool,

    /// Carry the persistent bitmaps of the source over: name, granularity, dirty ranges, and whether they record writes.
    /// DST is qcow2 of version 3; with -n it keeps its own bitmaps
    #[arg(long, conflicts_with = "snapshot")]
    bitmaps: bool,

    /// Copy only what the persistent bitmap NAME of SRC has as dirty: DST is an earlier copy of the same disk, or an overlay on one,
    /// and with that a copy of the disk as it is now. A run that was interrupted can be repeated
    #[arg(long = "bitmap", value_name = "NAME", requires = "no_create",
          conflicts_with_all = ["snapshot", "compress", "target_is_zero", "salvage", "digest"])]
    dirty_in: Option<OsString>,

    /// SRC is a list of driver options, as qemu-img takes it: driver=qcow2,file.filename=vm.qcow2. Commas in values are
    /// doubled
    #[arg(long, conflicts_with = "format")]
    image_opts: bool,

    /// Leave out bitmaps that were not stored cleanly, and say so, instead of refusing them
    #[arg(long, requires = "bitmaps")]
    skip_broken_bitmaps: bool,

    /// Also print the CRC-32 of the guest-visible content
    #[arg(long, conflicts_with = "backing")]
    digest: bool,

    /// How DST is written: none and directsync bypass the page cache, others are accepted and have no effect
    #[arg(short = 't', long = "target-cache", value_name = "CACHE",
          value_parser = ["writeback", "writethrough", "none", "off", "directsync", "unsafe"])]
    cache: Option<String>,

    #[command(flatten)]
    _cache: CacheArgs,
    #[command(flatten)]
    replace: ReplaceArgs,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    part: PartArgs,

    /// The images to read, and the image to write
    #[arg(value_names = ["SRC", "DST"], num_args = 1.., required_unless_present = "options")]
    files: Vec<PathBuf>,
}

/// What was written, by whichever way.
enum Outcome {
    Whole(Box<FlattenOutcome>),
    Into(CopyOutcome),
}

impl Convert {
    /// Writes the image, or lists the options that it can have.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let items = match request(&self.options)? {
            Request::Help => return print(help(self.target_format, Purpose::Create)),
            Request::Options(items) => items,
        };
        let dst = self.files.pop().filter(|_| !self.files.is_empty());
        let dst = dst.ok_or_else(|| Error::usage("SRC or DST is missing").hint("see --help"))?;
        if self.image_opts {
            for source in &mut self.files {
                *source = crate::qemu_img::image_opts(source.as_os_str())?;
            }
        }
        self.check()?;
        let given = self.given(items)?;
        let target = given.target()?;
        let backing = self.backing(&given)?;
        let open = self.source.open_options(self.snapshot.as_deref());
        let operation = Operation::start(&self.common, &self.work)?;
        let session =
            Session::start(&self.common, self.plan(&dst, &target, backing.as_ref(), &open))?;
        let chain = self.open(&session, &open, &dst)?;
        let (outcome, left_out) = operation
            .run(|observer, cancel| {
                self.write(&chain, &dst, target, backing.as_ref(), &session, observer, cancel)
            })
            .and_then(|outcome| Ok((outcome, warn_left_out(&chain, self.common.format())?)))?;
        self.report(&dst, outcome, left_out.as_ref())
    }

    /// Refuses what does not go together.
    fn check(&self) -> Result<(), Failure> {
        let several = self.files.len() > 1;
        let refuse = |wrong: bool, what: &str| match wrong {
            true => Err(Failure::from(Error::usage(what))),
            false => Ok(()),
        };
        refuse(several && self.snapshot.is_some(), "a snapshot of several sources")?;
        refuse(
            several && self.backing.is_some(),
            "several sources do not go onto one backing file",
        )?;
        refuse(
            several && self.bitmaps,
            "bitmaps are carried over from one source, not from several",
        )?;
        refuse(
            self.dirty_in.is_some() && (several || self.part.is_part()),
            "a bitmap is of one whole disk: not of several sources, nor of a part of one",
        )?;
        refuse(
            self.bitmaps && self.part.is_part(),
            "bitmaps are of the whole disk, and not carried over with a part of it",
        )?;
        let sparse = self.sparse.unwrap_or_default();
        refuse(
            !sparse.is_multiple_of(512) || sparse > MOST_SPARSE,
            "the size given with -S is a multiple of 512, at most 16M",
        )
    }

    /// The creation options, of which the size is that of the source whatever is asked for.
    fn given(&self, items: Vec<Item>) -> Result<ImageOptions, Failure> {
        let items: Vec<_> = items.into_iter().filter(|item| item.key != "size").collect();
        Ok(ImageOptions::parse(self.target_format, Purpose::Create, &items)?)
    }

    fn backing(&self, given: &ImageOptions) -> Result<Option<NewBacking>, Failure> {
        let own = self.backing.as_ref().map(|name| name.as_os_str());
        let name = own.or_else(|| given.text(Key::BackingFile));
        let format = match (self.backing_fmt, given.text(Key::BackingFormat)) {
            (Some(format), _) => Some(format),
            (None, Some(text)) => Some(text.to_string_lossy().parse::<Format>()?),
            (None, None) => None,
        };
        match (name, format) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Error::usage("a backing format is given, but no backing file")
                .hint("name it with -b")
                .into()),
            (Some(_), None) => Err(Error::usage("a backing file is given, but not its format")
                .hint("state it with -F qcow2 or -F raw")
                .into()),
            (Some(_), Some(_)) if self.target_format == Format::Raw => {
                Err(Error::usage("raw images cannot have a backing file").into())
            }
            (Some(name), Some(format)) => {
                let open = self.source.open_options(None).format(format);
                Ok(Some(NewBacking::new(name, format).open(open)))
            }
        }
    }

    fn plan(
        &self,
        dst: &Path,
        target: &TargetOptions,
        backing: Option<&NewBacking>,
        open: &OpenOptions,
    ) -> Plan {
        let mut plan = match self.no_create {
            true => Plan::new().overwriting(dst),
            false => outputs(dst, target),
        };
        for source in &self.files {
            plan = plan.chain(source, open);
        }
        if self.no_create && (self.target_format == Format::Qcow2 || self.dirty_in.is_some()) {
            let open = open.clone().format(self.target_format);
            plan = changing(plan.chain(dst, &open), dst, &open);
        }
        if let Some(backing) = backing
            && let Ok(name) = resolve_name(&backing.name, dst, &open.working_directory)
        {
            plan = plan.chain(&name, open);
        }
        plan
    }

    /// The source; several are one raw disk.
    fn open(
        &self,
        session: &Session<'_>,
        open: &OpenOptions,
        dst: &Path,
    ) -> Result<Chain, Failure> {
        let chains: Vec<_> = self
            .files
            .iter()
            .map(|source| session.open_chain(source, open, &self.part))
            .collect::<qcow::Result<_>>()?;
        match <[Chain; 1]>::try_from(chains) {
            Ok([only]) => Ok(only),
            Err(several) => {
                several.iter().try_for_each(|chain| refuse_source(chain, dst))?;
                let joined = Arc::new(Joined::new(&several)?);
                let name = "the sources, one after another";
                Ok(Chain::builder().layer(name, joined, Format::Raw).open()?)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is used once")]
    fn write(
        &self,
        chain: &Chain,
        dst: &Path,
        target: TargetOptions,
        backing: Option<&NewBacking>,
        session: &Session<'_>,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> qcow::Result<Outcome> {
        let copy = CopyOptions::default()
            .compress(self.compress)
            .target_is_zero(self.target_is_zero)
            .replace(self.replace.replace())
            .threads(self.threads())
            .bitmaps(self.bitmaps())
            .dirty_in(self.dirty_in.as_ref().map(|name| name.as_bytes().to_vec()))
            .sparse(self.sparse)
            .rate(self.rate);
        let job = match (backing, &target) {
            (Some(backing), TargetOptions::Qcow2(target)) => {
                CopyJob::onto(chain, dst, target, backing, &copy)?
            }
            (None, TargetOptions::Qcow2(_)) if self.no_create => {
                CopyJob::into(chain, dst, &self.existing(cancel), &copy)?
            }
            (None, _) if self.dirty_in.is_some() => {
                CopyJob::into(chain, dst, &self.existing(cancel), &copy)?
            }
            _ => {
                let options = self.flatten(target);
                let job = FlattenJob::begin(chain, dst, &options)?;
                session.all_is_open()?;
                let outcome = job.run(observer, cancel).map_err(how_to_salvage)?;
                return Ok(Outcome::Whole(Box::new(outcome)));
            }
        };
        session.all_is_open()?;
        job.run(observer, cancel).map(Outcome::Into)
    }

    /// How an existing image is opened.
    fn existing(&self, cancel: &CancelToken) -> OpenOptions {
        let open = self.source.trust.binding(self.source.chain.open_options());
        open.format(self.target_format).cancel(cancel.clone())
    }

    fn flatten(&self, target: TargetOptions) -> FlattenOptions {
        let direct = matches!(self.cache.as_deref(), Some("none" | "off" | "directsync"));
        FlattenOptions::default()
            .target(target)
            .compress(self.compress)
            .threads(self.threads())
            .digest(self.digest)
            .replace(self.replace.replace())
            .no_reflink(self.no_reflink)
            .existing(self.no_create)
            .target_is_zero(self.target_is_zero)
            .direct(direct)
            .salvage(self.salvage)
            .bitmaps(self.bitmaps())
            .sparse(self.sparse)
            .rate(self.rate)
    }

    fn bitmaps(&self) -> CarryBitmaps {
        match (self.bitmaps, self.skip_broken_bitmaps) {
            (false, _) => CarryBitmaps::None,
            (true, false) => CarryBitmaps::All,
            (true, true) => CarryBitmaps::Sound,
        }
    }

    fn threads(&self) -> usize {
        let parallel = self.parallel.and_then(|threads| usize::try_from(threads).ok());
        parallel.unwrap_or_else(|| self.work.threads())
    }
}

/// Refuses to write over what is read.
pub(super) fn refuse_source(chain: &Chain, dst: &Path) -> qcow::Result<()> {
    match chain.contains_file(dst) {
        true => Err(Error::usage("the target is one of the images being read").file(dst)),
        false => Ok(()),
    }
}
