//! Gives back the space that a disk image does not need, in place.
//!
//! What reads as zeros is stored no longer, what is free in the file becomes a hole, and the file is cut behind what
//! it has last; with [`compact`](SparsifyOptions::compact) what lies at its end is moved to free places nearer its
//! beginning before, so that it becomes as short as its content. The guest's disk and all internal snapshots read as
//! before, which is proven by a digest before each change is made.
//!
//! Each change of a QCOW2 image is one switch of the header's sector. All that is done without one is to make holes
//! where the file has zeros, or has nothing. So a crash, an error or a signal at any moment leaves a valid image with
//! the same content, as large as before or smaller.

mod compact;
mod raw;
mod scan;
mod space;
mod views;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::edit::{Changed, Opened, change_if, ready};
use crate::chain::{Chain, Format, OpenOptions, open_file, open_writable_alone};
use crate::check::Repaired;
use crate::format::Autoclear;
use crate::image::Image;
use crate::io::{FileStorage, Storage, WriteStorage};
use crate::setters::setters;
use crate::sync::{Mutex, lock};
use crate::{CancelToken, Error, Observer, Result, Silent};

use scan::{Scanned, scan};
use views::{View, Views};

/// How to give back space.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SparsifyOptions {
    /// How the image is opened. Of a raw disk the format is to be stated. What it is backed by is not opened.
    pub open: OpenOptions,
    /// Move what lies at the end of the file to free places nearer its beginning.
    pub compact: bool,
    /// Write nothing, and say what would be done.
    pub dry_run: bool,
    /// Do not read the disk again to compare it with what it was.
    pub no_verify: bool,
    /// Worker threads; 0 means one per core, at most 16.
    pub threads: usize,
}

setters!(SparsifyOptions {
    open: OpenOptions,
    compact: bool,
    dry_run: bool,
    no_verify: bool,
    threads: usize,
} into {});

/// What was, or would be, given back. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct SparsifyOutcome {
    /// The image.
    #[serde(serialize_with = "super::path_text")]
    pub filename: PathBuf,
    /// Its format.
    pub format: Format,
    /// Size of the guest's disk.
    pub virtual_size: u64,
    /// Whether this is only a plan.
    pub dry_run: bool,
    /// Allocated parts of the guest's disk that read as zeros.
    pub zero_bytes: u64,
    /// Bytes of the file that became free because of that.
    pub freed: u64,
    /// Bytes of clusters that were moved towards the beginning of the file.
    pub moved: u64,
    /// Length of the image's file before.
    pub file_size_before: u64,
    /// Length of the image's file afterwards.
    pub file_size: u64,
    /// Space that the image's file, and its data file, took before.
    pub allocated_before: u64,
    /// Space that they take afterwards; nobody knows that of a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated: Option<u64>,
    /// CRC-32 of what the image itself has of the guest's disk, the same before and after: eight hex digits. What it
    /// leaves to a backing file counts as zeros.
    pub crc32: String,
    /// Internal snapshots that were compared, too.
    pub snapshots_verified: u64,
    /// The disk was read again, and is the same.
    pub verified: bool,
    /// What was, or would be, repaired before, because the image had not been closed properly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

/// Gives back what the image at `path` does not need. The image must not be in use.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("vm.qcow2");
/// use qcow::chain::OpenOptions;
/// use qcow::disk::{Disk, WriteOptions};
/// use qcow::ops::create::{CreateOptions, create};
/// use qcow::ops::sparsify::{SparsifyOptions, sparsify};
/// use qcow::{CancelToken, Silent};
///
/// create(&path, &CreateOptions::default().size(1 << 30))?;
/// let disk = Disk::open(&path, &OpenOptions::default(), WriteOptions::new())?;
/// disk.write_at(&vec![0; 1 << 20], 0)?; // A guest wipes what it has deleted.
/// disk.close()?;
///
/// let (options, cancel) = (SparsifyOptions::default().compact(true), CancelToken::new());
/// let outcome = sparsify(&path, &options, &Silent, &cancel)?;
/// assert_eq!(outcome.zero_bytes, 1 << 20);
/// assert!(outcome.file_size + (1 << 20) <= outcome.file_size_before);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`InUse`](crate::ErrorKind::InUse) if another process uses the image; [`Encrypted`](crate::ErrorKind::Encrypted) if it
/// is encrypted; [`Corrupt`](crate::ErrorKind::Corrupt) if it is to be repaired first;
/// [`Unsupported`](crate::ErrorKind::Unsupported) for block devices as raw disks, and for
/// [`compact`](SparsifyOptions::compact) with an external data file;
/// [`Interrupted`](crate::ErrorKind::Interrupted); otherwise what reading and writing raise. The disk and its snapshots
/// read as before then, too.
pub fn sparsify(
    path: &Path,
    options: &SparsifyOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<SparsifyOutcome> {
    SparsifyJob::begin(path, options)?.run(observer, cancel)
}

/// An image whose files are all open and locked: from here on nothing is opened. A job that is dropped has changed
/// nothing.
#[derive(Debug)]
pub struct SparsifyJob {
    path: PathBuf,
    format: Format,
    files: Files,
    options: SparsifyOptions,
}

impl SparsifyJob {
    /// Opens the image at `path`, and its external data file.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use qcow::ops::sparsify::{SparsifyJob, SparsifyOptions};
    /// use qcow::{CancelToken, Silent};
    ///
    /// let job = SparsifyJob::begin(Path::new("vm.qcow2"), &SparsifyOptions::default())?;
    /// // Here a program may give up its right to open files.
    /// println!("{} bytes now", job.run(&Silent, &CancelToken::new())?.file_size);
    /// # Ok::<(), qcow::Error>(())
    /// ```
    ///
    /// # Errors
    /// What [`sparsify`] says about opening.
    pub fn begin(path: &Path, options: &SparsifyOptions) -> Result<Self> {
        let (_, format) = open_file(path, options.open.format, &options.open.policy)?;
        if format == Format::Raw && options.compact {
            let message = "a raw disk has no clusters that could be moved";
            return Err(Error::usage(message).file(path));
        }
        let files = if options.dry_run {
            let chain = Chain::open_alone(path, &options.open)?;
            Files::reading(&chain)?
        } else {
            let opened = open_writable_alone(path, &options.open)?;
            Files::writing(Arc::new(opened.file), opened.data)
        };
        Ok(Self { path: path.to_path_buf(), format, files, options: options.clone() })
    }

    /// Does it.
    ///
    /// # Errors
    /// As [`sparsify`].
    pub fn run(self, observer: &dyn Observer, cancel: &CancelToken) -> Result<SparsifyOutcome> {
        let Self { path, format, files, options } = self;
        let outcome = match format {
            Format::Raw => raw::sparsify(&files, &options, observer, cancel),
            _ => sparsify_on(&files, &options, observer, cancel),
        };
        let outcome = outcome.map_err(|error| error.file(&path))?;
        Ok(SparsifyOutcome { filename: path, ..outcome })
    }
}

/// The files of an image, to be changed or only looked at.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) image: Opened,
    /// The external data file.
    pub(crate) data: Option<Arc<dyn Storage>>,
    pub(crate) data_target: Option<Arc<dyn WriteStorage>>,
}

impl Files {
    fn reading(chain: &Chain) -> Result<Self> {
        let layer = chain.layers().first();
        let layer = layer.ok_or_else(|| Error::internal("a chain without layers"))?;
        let outside = layer.image().is_some_and(Image::has_data_file);
        Ok(Self {
            image: Opened { storage: Arc::clone(layer.storage()), target: None },
            data: outside.then(|| Arc::clone(layer.data_storage())),
            data_target: None,
        })
    }

    pub(crate) fn writing(
        image: Arc<dyn WriteStorage>,
        data: Option<Arc<dyn WriteStorage>>,
    ) -> Self {
        let reading = data.clone().map(|data| data as Arc<dyn Storage>);
        Self { image: Opened::storage(image), data: reading, data_target: data }
    }

    fn allocated(&self) -> u64 {
        let now = |storage: &Arc<dyn Storage>| {
            storage.as_file().map_or_else(|| storage.allocated(), FileStorage::allocated_now)
        };
        now(&self.image.storage).wrapping_add(self.data.as_ref().map_or(0, now))
    }
}

/// As [`sparsify`], for a QCOW2 image wherever its bytes live.
pub(crate) fn sparsify_on(
    files: &Files,
    options: &SparsifyOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<SparsifyOutcome> {
    let threads = options.threads;
    // Before anything is made of what its tables say.
    let (opened, repaired) = &ready(&files.image, threads, cancel)?;
    let image = Image::open(Arc::clone(&opened.storage))?;
    if options.compact && image.has_data_file() {
        return Err(Error::unsupported(
            "the data of the image lies in an external data file, where it cannot move",
        )
        .hint("give space back without moving clusters"));
    }
    let backed = image.area().backing_name.is_some();
    let views = Views { data: files.data.clone(), backed, threads };
    let chain = views.active(&opened.storage)?;
    let (file_size_before, allocated_before) = (opened.storage.len(), files.allocated());
    let Scanned { zeros, places, zero_bytes, crc32 } = scan(&chain, threads, observer, cancel)?;
    if let Some(target) = files.data_target.as_ref().or(opened.target.as_ref()) {
        space::punch_zeros(&**target, &places, cancel)?;
    }
    let before = views.of_active(&opened.storage, &crc32, cancel)?;
    let (changed, current) = release(opened, zeros, &views, &before, options, cancel)?;
    let mut made = compact::Made { file_size: changed.file_len, ..compact::Made::default() };
    // The tables that have changed may lie behind what was the end.
    let least = file_size_before;
    if options.compact || made.file_size > least {
        let start = Arc::clone(&current);
        made = compact::compact(opened, start, changed.file_len, least, &views, options, cancel)?;
    }
    made.file_size = match opened.target {
        Some(_) => space::give_back(opened, cancel)?,
        None => space::end(made.last.as_ref().unwrap_or(&current), cancel)?,
    };
    Ok(SparsifyOutcome {
        filename: PathBuf::new(),
        format: Format::Qcow2,
        virtual_size: image.virtual_size(),
        dry_run: options.dry_run,
        zero_bytes,
        freed: changed.freed,
        moved: made.moved,
        file_size_before,
        file_size: made.file_size,
        allocated_before,
        allocated: (!options.dry_run).then(|| files.allocated()),
        crc32,
        snapshots_verified: made.snapshots,
        verified: !options.no_verify && !options.dry_run,
        repaired: *repaired,
    })
}

/// Gives up what reads as zeros and is stored, by its entries. Gives the image too, as it is then or would be.
fn release(
    opened: &Opened,
    zeros: Vec<Range<u64>>,
    views: &Views,
    before: &View,
    options: &SparsifyOptions,
    cancel: &CancelToken,
) -> Result<(Changed, Arc<dyn Storage>)> {
    let current = Mutex::new(Arc::clone(&opened.storage));
    let ((), changed) = change_if(
        opened,
        options.threads,
        &Silent,
        cancel,
        |edit| match edit.image().header().autoclear.contains(Autoclear::DATA_FILE_RAW) {
            true => Ok(()),
            false => edit.release(zeros.into(), views.backed, cancel),
        },
        |change, ()| {
            if change.is_empty() {
                return Ok(false);
            }
            let result = change.result();
            if !options.no_verify && !options.dry_run {
                views.check_active(&result, before, cancel)?;
            }
            if opened.target.is_none() {
                *lock(&current) = result;
            }
            Ok(true)
        },
    )?;
    let current = Arc::clone(&*lock(&current));
    Ok((changed, current))
}
