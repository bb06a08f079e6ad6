//! `qemu-img convert`.

mod bitmaps;
mod target;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow::chain::{Chain, Format, Joined, OpenOptions};
use qcow::io::Replace;
use qcow::ops::TargetOptions;
use qcow::ops::copy::{CopyJob, CopyOptions};
use qcow::ops::flatten::{FlattenJob, FlattenOptions, FlattenOutcome};
use qcow::ops::rebase::NewBacking;
use qcow::{CancelToken, Error, ErrorKind};

use super::create::overwriting;
use super::snapshot_of;
use crate::commands::outputs;
use crate::qemu_img::cache::{self, Cache};
use crate::qemu_img::getopt::{Key, Opt, Parsed, flag, value};
use crate::qemu_img::list::{self, Item};
use crate::qemu_img::names::{self, Source};
use crate::qemu_img::new::{self, NewImage};
use crate::qemu_img::open::{self, Opening};
use crate::qemu_img::progress::Progress;
use crate::qemu_img::say::{Stop, print, warning};
use crate::qemu_img::{arguments, number, objects, words};
use crate::sandbox::{Plan, Sandbox};
use crate::session::changing;

const OPTIONS: &[Opt] = &[
    value(Key::Format, b'f', "source-format"),
    value(Key::TargetFormat, b'O', "target-format"),
    value(Key::Options, b'o', "target-options"),
    flag(Key::Compress, b'c', "compress"),
    value(Key::Snapshot, b'l', "source-snapshot"),
    value(Key::Backing, b'B', "backing"),
    value(Key::BackingFormat, b'F', "backing-format"),
    value(Key::SparseSize, b'S', "sparse-size"),
    flag(Key::NoCreate, b'n', "no-create"),
    flag(Key::TargetIsZero, 0, "target-is-zero"),
    flag(Key::TargetImageOpts, 0, "target-image-opts"),
    value(Key::Cache, b't', "target-cache"),
    value(Key::SourceCache, b'T', "source-cache"),
    flag(Key::OutOfOrder, b'W', "oob-writes"),
    value(Key::Parallel, b'm', "parallel"),
    value(Key::RateLimit, b'r', "rate-limit"),
    flag(Key::CopyRange, b'C', "copy-range-offloading"),
    flag(Key::Bitmaps, 0, "bitmaps"),
    flag(Key::SkipBroken, 0, "skip-broken-bitmaps"),
    flag(Key::Salvage, 0, "salvage"),
    flag(Key::Progress, b'p', "progress"),
    flag(Key::Quiet, b'q', "quiet"),
    flag(Key::ForceShare, b'U', "force-share"),
    flag(Key::ImageOpts, 0, "image-opts"),
];

/// Copies what images hold into another.
pub(in crate::qemu_img) fn run(words: &[OsString]) -> Result<(), Stop> {
    let given = arguments(OPTIONS, words)?;
    let items = list::items(given.all(Key::Options))?;
    let format = given.text(Key::TargetFormat).unwrap_or_else(|| "raw".to_owned());
    if list::wants_help(&items) {
        let named = given.operands.len() > 1;
        return print(new::help(new::format(&format)?, named));
    }
    let request = Request::of(&given, &format, items)?;
    objects::check(&given)?;
    request.run(&given)
}

/// What the command line asks for.
struct Request {
    sources: Vec<OsString>,
    target: OsString,
    items: Vec<Item>,
    format: String,
    snapshot: Option<String>,
    sparse: Option<u64>,
    rate: Option<u64>,
    cache: Cache,
    threads: usize,
}

impl Request {
    fn of(given: &Parsed, format: &str, items: Vec<Item>) -> Result<Self, Stop> {
        let snapshot = given.last(Key::Snapshot).map(snapshot_of).transpose()?;
        let sparse = given.last(Key::SparseSize).map(sparse_size).transpose()?;
        let threads = parallel(given)?;
        let rate = given.last(Key::RateLimit);
        let rate = rate.map(|text| number::size("rate limit", text)).transpose()?;
        refuse_what_does_not_go_together(given, &items)?;
        let cache = match given.text(Key::Cache) {
            None => Cache { direct: false, unsafely: true },
            Some(name) => cache::mode(OsStr::new(&name))
                .ok_or_else(|| Stop::error(format!("Invalid cache option: {name}")))?,
        };
        open::source_cache(given, Key::SourceCache)?;
        let (target, sources) = match given.operands.split_last() {
            Some((target, sources)) if !sources.is_empty() => (target, sources),
            _ => return Err(Stop::usage("Must specify image file name")),
        };
        let several = sources.len() > 1;
        if several && snapshot.is_some() {
            return Err(Stop::error("No support for concatenating multiple snapshot"));
        }
        if several && given.has(Key::Bitmaps) {
            return Err(Stop::error("Copying bitmaps only possible with single source"));
        }
        let (sources, target, format) = (sources.to_vec(), target.clone(), format.to_owned());
        Ok(Self { sources, target, items, format, snapshot, sparse, rate, cache, threads })
    }

    fn run(&self, given: &Parsed) -> Result<(), Stop> {
        let image_opts = given.has(Key::ImageOpts);
        if image_opts && given.has(Key::Format) {
            return Err(Stop::error("--image-opts and --format are mutually exclusive"));
        }
        let opening = Opening { image_opts, force_share: given.has(Key::ForceShare) };
        let mut sources = Vec::new();
        for operand in &self.sources {
            let source = opening.source(operand)?;
            let format = open::driver(given, Key::Format, &source.shown)?;
            sources.push((source, opening.options(format).snapshot(self.snapshot.clone())));
        }
        let (path, target_format) = match given.has(Key::TargetImageOpts) {
            true => target::existing(&self.target)?,
            false => self.named_target(given)?,
        };
        let image = self.image(given, target_format)?;
        let flatten = self.flatten_options(given, &image)?;
        let progress = Progress::start(given.has(Key::Progress) && !given.has(Key::Quiet), 1);
        let mut plan = self.outputs(given, (&path, target_format), &flatten.target);
        for (source, options) in &sources {
            plan = plan.chain(&source.path, options);
        }
        let sandbox = open::enter(plan)?;
        let chains: Result<Vec<Chain>, Stop> =
            sources.iter().map(|(source, options)| self.open(source, options)).collect();
        let chain = joined(chains?, &sources)?;
        bitmaps::check(given, &chain, &image)?;
        progress.by_data(&chain).map_err(|error| Stop::error(words::plain(&error)))?;
        let to = To { path: &path, format: target_format, sandbox: &sandbox, progress: &progress };
        let result = match (given.has(Key::NoCreate), image.get("backing_file")) {
            (true, _) if target_format != Format::Raw => self.existing(&chain, given, &to),
            (false, Some(name)) => self.onto(&chain, name, &image, given, &to),
            _ => self.flatten(&chain, &flatten, &to),
        };
        if result.is_ok() {
            bitmaps::warn_of_skipped(given, &chain);
        }
        progress.finish_again(result.is_ok());
        progress.end_line();
        result
    }

    /// The target that is not given as an option list.
    fn named_target(&self, given: &Parsed) -> Result<(PathBuf, Format), Stop> {
        let format = new::format(&self.format)?;
        if given.has(Key::NoCreate)
            && let Some(found) = target::by_tree(&self.target, format)?
        {
            return Ok(found);
        }
        Ok((names::target(&self.target)?, format))
    }

    fn flatten(&self, chain: &Chain, options: &FlattenOptions, to: &To<'_>) -> Result<(), Stop> {
        if chain.virtual_size() == 0 && options.existing {
            return Ok(());
        }
        let job = FlattenJob::begin(chain, to.path, options)
            .map_err(|error| self.not_begun(to.path, to.format, options.existing, &error))?;
        open::all_is_open(to.sandbox)?;
        let done = job.run(to.progress, &CancelToken::new());
        salvaged(&done.map_err(|error| not_copied(to.path, &error))?);
        Ok(())
    }

    /// Writes into a QCOW2 image that is there.
    fn existing(&self, chain: &Chain, given: &Parsed, to: &To<'_>) -> Result<(), Stop> {
        let options = self.copy_options(given);
        let open = Opening::default().options(Some(to.format));
        let job = CopyJob::into(chain, to.path, &open, &options).map_err(|error| {
            bitmaps::refused(&error, chain, to.format)
                .unwrap_or_else(|| self.not_begun(to.path, to.format, true, &error))
        })?;
        self.copy(job, chain, to)
    }

    /// Writes a new QCOW2 image that keeps what its backing file is said to have.
    fn onto(
        &self,
        chain: &Chain,
        backing: &str,
        image: &NewImage,
        given: &Parsed,
        to: &To<'_>,
    ) -> Result<(), Stop> {
        let creating = |stop: Stop| self.while_converting(stop, to.format);
        let TargetOptions::Qcow2(target) = image.target().map_err(creating)? else {
            return Err(Stop::silent(1));
        };
        let format = image.get("backing_fmt").unwrap_or_default();
        let format: Format = format
            .parse()
            .map_err(|_| Stop::error(format!("Unknown backing file format '{format}'")))?;
        let backing = NewBacking::new(backing, format)
            .open(Opening { image_opts: false, force_share: true }.options(None));
        let options = self.copy_options(given).replace(Replace::Overwrite);
        let job = CopyJob::onto(chain, to.path, &target, &backing, &options)
            .map_err(|error| self.not_begun(to.path, to.format, false, &error))?;
        self.copy(job, chain, to)
    }

    fn copy_options(&self, given: &Parsed) -> CopyOptions {
        CopyOptions::default()
            .compress(given.has(Key::Compress))
            .target_is_zero(given.has(Key::TargetIsZero))
            .no_verify(true)
            .differences(given.has(Key::Backing))
            .threads(self.threads)
            .in_order(!given.has(Key::OutOfOrder))
            .bitmaps(bitmaps::wanted(given))
            .sparse(self.sparse)
            .rate(self.rate)
            .shared(true)
            .explicit_zeroes(true)
    }

    fn copy(&self, job: CopyJob<'_>, chain: &Chain, to: &To<'_>) -> Result<(), Stop> {
        open::all_is_open(to.sandbox)?;
        let done = job.run(to.progress, &CancelToken::new());
        let done = done.map_err(|error| {
            bitmaps::refused(&error, chain, to.format)
                .unwrap_or_else(|| not_copied(to.path, &error))
        })?;
        done.warnings.iter().for_each(warning);
        Ok(())
    }

    /// The options of the new image, wherever they were given.
    fn image(&self, given: &Parsed, format: Format) -> Result<NewImage, Stop> {
        let mut image = NewImage::parse(format, &self.items)?;
        let backing = given.text(Key::Backing);
        if let Some(backing) = &backing
            && !image.set("backing_file", backing)
        {
            return Err(Stop::error(format!(
                "Backing file not supported for file format '{format}'"
            )));
        }
        if let Some(backing_format) = given.text(Key::BackingFormat)
            && !image.set("backing_fmt", backing_format)
        {
            return Err(Stop::error(format!(
                "Backing file format not supported for file format '{format}'"
            )));
        }
        if image.get("backing_file").is_some() {
            if self.sources.len() > 1 {
                return Err(Stop::error(
                    "Having a backing file for the target makes no sense when concatenating multiple input images",
                ));
            }
            if image.get("backing_fmt").is_none() && !given.has(Key::NoCreate) {
                return Err(Stop::error("Use of backing file requires explicit backing format"));
            }
        }
        if given.has(Key::Compress) {
            if format == Format::Raw {
                return Err(Stop::error("Compression not supported for this file format"));
            }
            if image.get("preallocation").is_some_and(|mode| mode != "off") {
                return Err(Stop::error(
                    "Compression and preallocation not supported at the same time",
                ));
            }
        }
        image.unset("size");
        Ok(image)
    }

    fn flatten_options(&self, given: &Parsed, image: &NewImage) -> Result<FlattenOptions, Stop> {
        let existing = given.has(Key::NoCreate);
        let creating = |stop: Stop| self.while_converting(stop, image.format);
        Ok(FlattenOptions::default()
            .target(image.target().map_err(creating)?)
            .compress(given.has(Key::Compress))
            .threads(self.threads)
            .replace(Replace::Overwrite)
            .existing(existing)
            .target_is_zero(given.has(Key::TargetIsZero))
            .direct(self.cache.direct)
            .unsynced(self.cache.unsafely)
            .no_reflink(!given.has(Key::CopyRange))
            .salvage(given.has(Key::Salvage))
            .bitmaps(bitmaps::wanted(given))
            .sparse(self.sparse)
            .rate(self.rate))
    }

    fn while_converting(&self, stop: Stop, format: Format) -> Stop {
        let target = self.target.to_string_lossy();
        stop.prepend(format_args!("{target}: error while converting {format}: "))
    }

    fn outputs(
        &self,
        given: &Parsed,
        (path, format): (&Path, Format),
        target: &TargetOptions,
    ) -> Plan {
        if given.has(Key::NoCreate) {
            let plan = Plan::new().reading(path).overwriting(path);
            return changing(plan, path, &Opening::default().options(Some(format)));
        }
        overwriting(outputs(path, target), path)
    }

    fn open(&self, source: &Source, options: &OpenOptions) -> Result<Chain, Stop> {
        Chain::open(&source.path, options).map_err(|error| {
            if self.snapshot.is_some()
                && error.kind() == ErrorKind::NotFound
                && error.io_source().is_none()
            {
                return Stop::error("Failed to load snapshot: Can't find snapshot");
            }
            words::not_opened(&source.shown, &source.file(), &error)
        })
    }

    fn not_begun(&self, path: &Path, format: Format, existing: bool, error: &Error) -> Stop {
        let locked = error.kind() == ErrorKind::InUse
            || error.message().starts_with("the target is one of the images");
        if existing {
            let shown = self.target.to_string_lossy();
            if error.message().contains("needs") || error.message().contains("does not fit into") {
                return Stop::error("output file is smaller than input file");
            }
            return words::not_opened(&shown, path, error);
        }
        let stop = if locked {
            let file = path.to_string_lossy();
            Stop::error(r#"Failed to get "write" lock"#)
                .hint(format!("Is another process using the image [{file}]?"))
        } else {
            super::create::not_made(path, format, error)
        };
        self.while_converting(stop, format)
    }
}

/// Where a copy goes, and what watches it.
struct To<'a> {
    path: &'a Path,
    format: Format,
    sandbox: &'a Sandbox,
    progress: &'a Progress,
}

/// One disk, or several one after another.
fn joined(mut chains: Vec<Chain>, sources: &[(Source, OpenOptions)]) -> Result<Chain, Stop> {
    if chains.len() < 2 {
        return chains.pop().ok_or_else(|| Stop::silent(1));
    }
    let name = sources.first().map(|(source, _)| source.file()).unwrap_or_default();
    let all = Joined::new(&chains)
        .and_then(|all| Chain::builder().layer(name, Arc::new(all), Format::Raw).open());
    all.map_err(|error| Stop::error(words::plain(&error)))
}

fn sparse_size(text: &OsStr) -> Result<u64, Stop> {
    let size = number::size("buffer size for sparse output", text)?;
    if !size.is_multiple_of(512) || size > 16 << 20 {
        return Err(Stop::error(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to 16777216. \
             Select 0 to disable sparse detection (fully allocates output).",
        ));
    }
    Ok(size)
}

fn parallel(given: &Parsed) -> Result<usize, Stop> {
    let Some(text) = given.text(Key::Parallel) else { return Ok(0) };
    match text.parse::<usize>() {
        Ok(count @ 1..=16) => Ok(count),
        _ => Err(Stop::error(
            "Invalid number of coroutines. Allowed number of coroutines is between 1 and 16",
        )),
    }
}

fn refuse_what_does_not_go_together(given: &Parsed, items: &[Item]) -> Result<(), Stop> {
    let refuse = |text: &str| Err(Stop::error(text));
    let has = |key| given.has(key);
    let no_create = has(Key::NoCreate);
    if !no_create && has(Key::TargetImageOpts) {
        return refuse("--target-image-opts requires use of -n flag");
    }
    if has(Key::SkipBroken) && !has(Key::Bitmaps) {
        return refuse("Use of --skip-broken-bitmaps requires --bitmaps");
    }
    if has(Key::CopyRange) && has(Key::SparseSize) {
        return refuse("Cannot enable copy offloading when -S is used");
    }
    if has(Key::CopyRange) && has(Key::Compress) {
        return refuse("Cannot enable copy offloading when -c is used");
    }
    if has(Key::CopyRange) && has(Key::Salvage) {
        return refuse("Cannot use copy offloading in salvaging mode");
    }
    if has(Key::TargetIsZero) && !no_create {
        return refuse("--target-is-zero requires use of -n flag");
    }
    if has(Key::TargetIsZero) && has(Key::Backing) {
        return refuse("Cannot use --target-is-zero when the destination image has a backing file");
    }
    if no_create && !items.is_empty() {
        return refuse("-o has no effect when skipping image creation");
    }
    if has(Key::TargetImageOpts) && has(Key::TargetFormat) {
        return refuse("--target-image-opts and -O are mutually exclusive");
    }
    Ok(())
}

/// Why the copy ended early.
fn not_copied(path: &Path, error: &Error) -> Stop {
    let why = words::plain(error);
    let written = error.place().file.as_deref() == Some(path);
    match (written, error.place().guest_offset.or(error.place().host_offset)) {
        (true, offset) => Stop::error(format!(
            "error while writing at byte {}: {why}",
            offset.unwrap_or_default()
        )),
        (false, offset) => Stop::error(format!(
            "error while reading at byte {}: {why}",
            offset.unwrap_or_default()
        )),
    }
}

/// Warns of what could not be read, where that was to be passed over.
fn salvaged(outcome: &FlattenOutcome) {
    outcome.warnings.iter().for_each(warning);
    for damage in outcome.damage.iter().flat_map(|report| &report.ranges) {
        let (offset, reason) = (damage.guest_offset, &damage.reason);
        warning(format_args!("error while reading offset {offset}: {reason}"));
    }
}
