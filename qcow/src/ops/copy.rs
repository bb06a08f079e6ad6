//! Copies a disk to where something is already: into an existing image, whole or only what a bitmap has as dirty, or
//! onto a backing file from which only what differs is stored.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::bitmap::{Carried, CarryBitmaps};
use super::create::write_empty;
use super::edit::{Opened, change};
use super::info::BitmapSummary;
use super::not_carried::{NotCarried, SourceFacts, losses};
use super::rebase::{NewBacking, open_new};
use super::users;
use super::work::differences::Differences;
use super::work::overwrite::{Holes, Overwrite};
use super::work::rate::Rate;
use super::work::sparse::Sparse;
use super::work::transfer::{self, Transferred};
use super::work::writes::Settings;
use super::{Preallocation, Qcow2Options, begin};
use crate::chain::{Chain, Format, OpenOptions};
use crate::check::Repaired;
use crate::codec::Compressor;
use crate::disk::{Disk, WriteOptions};
use crate::extent::Truncation;
use crate::format::Version;
use crate::image::Image;
use crate::image::edit::Edit;
use crate::io::{FileStorage, OutputFile, Replace, WritableFile};
use crate::setters::setters;
use crate::{CancelToken, Error, ErrorKind, Escaped, Observer, Remedy, Result, Silent};

/// The most ranges of a bitmap that are listed.
const MOST_RANGES: usize = 1 << 20;

/// How to copy.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CopyOptions {
    /// Compress what is written.
    pub compress: bool,
    /// The existing image reads as zeros: do not write zeros.
    pub target_is_zero: bool,
    /// The existing image, with what it is backed by, reads nearly as the source: write only where it does not.
    pub differences: bool,
    /// Whether a file that exists is replaced, for [`CopyJob::onto`].
    pub replace: Replace,
    /// Do not read back what was written.
    pub no_verify: bool,
    /// Worker threads; 0 means one per core, at most 16.
    pub threads: usize,
    /// Place clusters in the order of the disk, whatever the number of threads: what is written is written by one of them at
    /// a time. With compression the order is that in which the threads are done.
    pub in_order: bool,
    /// Copy only what the persistent bitmap of this name has as dirty, which the source's active layer has. The existing image is an
    /// earlier copy, and with that becomes a copy of the source as it is now. Only for [`CopyJob::into`].
    pub dirty_in: Option<Vec<u8>>,
    /// Which persistent bitmaps of the source's active layer the image gets. An existing image keeps its own, and is
    /// refused if it has one of the same name, or a disk of another size.
    pub bitmaps: CarryBitmaps,
    /// Zeros in data are left out only in aligned blocks of so many bytes, rounded down to a power of two, at most 2 MiB;
    /// with 0 not at all: everything is written as data. `None` leaves out what the format can. Compression
    /// leaves out whole clusters whatever the size, but not with 0.
    pub sparse: Option<u64>,
    /// At most so many bytes of data are written in a second; 0 and `None` are no limit.
    pub rate: Option<u64>,
    /// Write into the existing image although another next to it has it for its backing file.
    pub shared: bool,
    /// What is zeroed says so itself in the existing image: see
    /// [`WriteOptions::explicit_zeroes`].
    pub explicit_zeroes: bool,
}

setters!(CopyOptions {
    compress: bool,
    target_is_zero: bool,
    differences: bool,
    replace: Replace,
    no_verify: bool,
    threads: usize,
    in_order: bool,
    bitmaps: CarryBitmaps,
    shared: bool,
    explicit_zeroes: bool,
} into {
    dirty_in: Option<Vec<u8>>,
    sparse: Option<u64>,
    rate: Option<u64>,
});

/// What was copied.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CopyOutcome {
    /// The image that was written to.
    #[serde(serialize_with = "super::path_text")]
    pub filename: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Bytes of the guest's disk that were written as data.
    pub data_bytes: u64,
    /// Bytes of the guest's disk that were made zeros.
    pub zero_bytes: u64,
    /// CRC-32 of what was written, zeros included, in the order of the disk: eight hex digits.
    pub crc32: String,
    /// It was read back, and is the same.
    pub verified: bool,
    /// Files of the source that end before what their images refer to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<Truncation>,
    /// Persistent bitmaps of the source's active layer that the image has, too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bitmaps: Vec<BitmapSummary>,
    /// What the source's active layer has and the image does not get, and could not have again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_carried_over: Vec<NotCarried>,
    /// What could not be kept of a file that was replaced, and what a power cut may undo.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What was repaired of an existing image before, because it had not been closed properly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

/// A copy whose files are all open and locked: from here on it opens nothing.
#[derive(Debug)]
pub struct CopyJob<'a> {
    source: &'a Chain,
    path: PathBuf,
    options: CopyOptions,
    carried: Carried,
    disk: Disk,
    format: Format,
    /// What is copied of the source, if that is not all of it.
    only: Option<Vec<Range<u64>>>,
    /// The new image and what it is backed by.
    new: Option<(OutputFile, Chain)>,
}

impl<'a> CopyJob<'a> {
    /// Opens the existing image at `path`, QCOW2 or a raw disk whose format is stated, which must not be smaller than the disk of
    /// `source` nor be in use. It keeps its size, its snapshots and what it has behind the disk. An interrupted copy leaves it
    /// partly overwritten; one of what is dirty can be repeated.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use qcow::chain::{Chain, OpenOptions};
    /// use qcow::ops::copy::{CopyJob, CopyOptions};
    /// use qcow::{CancelToken, Silent};
    ///
    /// let open = OpenOptions::default();
    /// let source = Chain::open(Path::new("disk.qcow2"), &open)?;
    /// let job = CopyJob::into(&source, Path::new("existing.qcow2"), &open, &CopyOptions::default())?;
    /// job.run(&Silent, &CancelToken::new())?;
    /// # Ok::<(), qcow::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Disk::open`]; [`InUse`](crate::ErrorKind::InUse) if an image next to it is backed by it;
    /// [`Usage`](crate::ErrorKind::Usage) if it is too small, if there is no bitmap of the name given, or if an earlier copy has
    /// another size; as [`Bitmap::dirty_ranges`](crate::image::Bitmap::dirty_ranges).
    pub fn into(
        source: &'a Chain,
        path: &Path,
        open: &OpenOptions,
        options: &CopyOptions,
    ) -> Result<Self> {
        refuse_source(source, path)?;
        if !options.shared
            && let Some(identity) = FileStorage::identity_of(path)
        {
            let file = [(path.to_path_buf(), identity)];
            if let Some(user) = users::overlays_of(&file, &[])?.first() {
                let name = user.to_string_lossy();
                let what = format!("the image '{}' has it for its backing file", Escaped(&name));
                return Err(Error::new(ErrorKind::InUse, what).file(path).hint(Remedy::StopUser));
            }
        }
        let only = options.dirty_in.as_deref().map(|name| dirty(source, name)).transpose()?;
        let write = WriteOptions::new().explicit_zeroes(options.explicit_zeroes);
        let disk = Disk::open(path, open, write)?;
        if disk.data_file().is_some_and(|data_file| source.reads_from(data_file)) {
            let message = "the target's data file is one of the images being read";
            return Err(Error::usage(message).file(path));
        }
        if only.is_some() && disk.size() != source.virtual_size() {
            let (here, there) = (disk.size(), source.virtual_size());
            let message = format!("the earlier copy has {here} bytes, and the disk {there}");
            return Err(Error::usage(message).file(path));
        }
        Overwrite::new(source, disk.size(), Holes::Zero).map_err(|error| error.file(path))?;
        let version = if disk.has_zero_clusters() { Version::V3 } else { Version::V2 };
        let carried = Carried::of(source, options.bitmaps, Some(version))
            .map_err(|error| error.file(path))?;
        let format = if disk.cluster_size().is_some() { Format::Qcow2 } else { Format::Raw };
        let (path, options) = (path.to_path_buf(), options.clone());
        Ok(Self { source, path, options, carried, disk, format, only, new: None })
    }

    /// Starts a new image at `path` with this backing file. It appears there when it is complete.
    ///
    /// # Errors
    /// As [`create`](super::create::create), and what opening the backing file raises.
    pub fn onto(
        source: &'a Chain,
        path: &Path,
        target: &Qcow2Options,
        backing: &NewBacking,
        options: &CopyOptions,
    ) -> Result<Self> {
        refuse_source(source, path)?;
        if options.dirty_in.is_some() {
            let message =
                "what a bitmap has as dirty is copied onto an earlier copy, not into a new image";
            return Err(Error::usage(message).file(path));
        }
        let target = target.checked(true).map_err(|error| error.file(path))?;
        if target.data_file.is_some() || target.preallocation != Preallocation::Off {
            let message =
                "an image that is copied onto a backing file has no data file and no preallocation";
            return Err(Error::usage(message).file(path));
        }
        if options.compress {
            Compressor::new(target.compression_type, None)?;
        }
        let carried = Carried::of(source, options.bitmaps, Some(target.version))
            .and_then(|carried| carried.check(target.geometry()?).map(|()| carried))
            .map_err(|error| error.file(path))?;
        let below = open_new(path, backing)?;
        if below.contains_file(path) {
            return Err(Error::usage("the image would be its own backing file").file(path));
        }
        let output = begin(path, options.replace)?;
        let size = source.virtual_size();
        write_empty(&output, &target, size, &backing.name, backing.format)
            .map_err(|error| error.file(path))?;
        let file = output.file().try_clone();
        let file =
            file.map_err(|error| Error::io("could not use the new file", error).file(path))?;
        let storage = Arc::new(WritableFile::from_file(file)?);
        let write = WriteOptions::new().backing(below.clone());
        let disk =
            Disk::from_storage(storage, Format::Qcow2, write).map_err(|error| error.file(path))?;
        let (path, options) = (path.to_path_buf(), options.clone());
        let (format, only, new) = (Format::Qcow2, None, Some((output, below)));
        Ok(Self { source, path, options, carried, disk, format, only, new })
    }

    /// Copies, flushes, reads back what was written, and gives a new image its name.
    ///
    /// # Errors
    /// What reading and writing raise; [`Interrupted`](crate::ErrorKind::Interrupted). Of a new image nothing is left
    /// then.
    pub fn run(self, observer: &dyn Observer, cancel: &CancelToken) -> Result<CopyOutcome> {
        let Self { source, path, options, carried, disk, format, only, new } = self;
        let repaired = disk.repaired();
        let rate = Rate::of(options.rate);
        let settings = Settings {
            threads: options.threads,
            dry_run: false,
            verify: !options.no_verify,
            compress: options.compress,
            sparse: Sparse::of(options.sparse),
            in_order: options.in_order,
            rate: rate.as_ref(),
            zeros_by_entry: new.is_none() || disk.has_zero_clusters(),
            observer,
            cancel,
        };
        if new.is_none() {
            // What cannot be added is known before anything is overwritten.
            let storage = Arc::clone(&disk.storage()) as _;
            let plan = Opened { storage, target: None };
            add_bitmaps(&carried, &plan, &settings).map_err(|error| error.file(&path))?;
        }
        let done = match &new {
            Some((_, below)) => {
                let steps = Differences::new(source, below, &disk, options.compress)?;
                transfer::run(&steps, &disk, settings)
            }
            None if options.differences => {
                let now = disk.chain()?;
                let steps = Differences::over(source, &now, &disk, options.compress)?;
                transfer::run(&steps.only(only), &disk, settings)
            }
            None => {
                let holes = if options.target_is_zero && options.sparse != Some(0) {
                    Holes::Skip
                } else {
                    Holes::Zero
                };
                let steps = Overwrite::new(source, disk.size(), holes)?;
                match only {
                    Some(ranges) => transfer::run(&steps.only(ranges), &disk, settings),
                    None => transfer::run(&steps, &disk, settings),
                }
            }
        };
        let Transferred { data_bytes, zero_bytes, crc32 } =
            disk.or_give_up(done).map_err(|error| partly(error, &path, new.is_none()))?;
        source.check_unchanged()?;
        let virtual_size = disk.size();
        let storage = disk.storage();
        disk.close().map_err(|error| at_target(error, &path, new.is_none()))?;
        add_bitmaps(&carried, &Opened::storage(storage), &settings)
            .and_then(|()| source.check_unchanged())
            .map_err(|error| without_bitmaps(error, &path, new.is_none()))?;
        let warnings = match new {
            Some((output, below)) => {
                below.check_unchanged()?;
                output.publish()?
            }
            None => Vec::new(),
        };
        let active = source.layers().first().and_then(|layer| layer.image());
        Ok(CopyOutcome {
            filename: path,
            format,
            virtual_size,
            data_bytes,
            zero_bytes,
            crc32,
            verified: settings.verify,
            truncated: source.truncations()?,
            bitmaps: carried.summaries(),
            not_carried_over: losses(&not_carried(active, &carried, options.dirty_in.as_deref())),
            warnings,
            repaired,
        })
    }
}

/// What the source has and the image does not get. Whoever asks for what a bitmap has as dirty knows of that bitmap.
fn not_carried(active: Option<&Image>, carried: &Carried, dirty_in: Option<&[u8]>) -> SourceFacts {
    let facts = SourceFacts::of(active).without(carried);
    match dirty_in {
        Some(name) => facts.without_bitmap(name),
        None => facts,
    }
}

/// What the source's bitmap of this name has as dirty, in ascending order. Of very many ranges the last is a long one, with what
/// lies between them: to copy that, too, does no harm.
fn dirty(source: &Chain, name: &[u8]) -> Result<Vec<Range<u64>>> {
    let active = source.layers().first();
    let Some(image) = active.and_then(|layer| layer.image()) else {
        return Err(Error::usage("only qcow2 images have bitmaps"));
    };
    let at_file = |error: Error| match active {
        Some(layer) => error.file(layer.path()),
        None => error,
    };
    let mut ranges = Vec::<Range<u64>>::new();
    for range in image.bitmap(name).and_then(|bitmap| bitmap.dirty_ranges()).map_err(at_file)? {
        let Range { start, end } = range.map_err(at_file)?;
        let full = ranges.len() >= MOST_RANGES;
        match ranges.last_mut() {
            Some(last) if full => last.end = end.0,
            _ => ranges.push(start.0..end.0),
        }
    }
    Ok(ranges)
}

fn refuse_source(source: &Chain, path: &Path) -> Result<()> {
    if source.contains_file(path) {
        return Err(Error::usage("the target is one of the images being read").file(path));
    }
    Ok(())
}

/// Adds the bitmaps to the image that was copied to, or only finds out whether they can be.
fn add_bitmaps(carried: &Carried, opened: &Opened, settings: &Settings<'_>) -> Result<()> {
    if carried.is_empty() {
        return Ok(());
    }
    let add = |edit: &mut Edit| carried.add_to(edit, settings.cancel);
    change(opened, settings.threads, &Silent, settings.cancel, add).map(drop)
}

/// Says of an existing image that it has the disk, and not the bitmaps.
fn without_bitmaps(error: Error, path: &Path, existing: bool) -> Error {
    let error = at_target(error, path, existing);
    if !existing {
        return error;
    }
    let name = path.to_string_lossy();
    error.remark(&format!(" (the image '{}' has the disk, but not the bitmaps)", Escaped(&name)))
}

/// Names the image, and what helps if a new one does not fit.
fn at_target(error: Error, path: &Path, existing: bool) -> Error {
    let error = error.file(path);
    match error.kind() {
        ErrorKind::NoSpace if !existing => error.hint(Remedy::FreeSpace),
        _ => error,
    }
}

/// Says of an existing image that it is neither what it was nor a copy.
fn partly(error: Error, path: &Path, existing: bool) -> Error {
    let error = at_target(error, path, existing);
    if !existing {
        return error;
    }
    let name = path.to_string_lossy();
    error.remark(&format!(" (the image '{}' is partly overwritten)", Escaped(&name)))
}

#[cfg(test)]
mod tests;
