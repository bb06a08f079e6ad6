//! Gives an image another backing file, or none, without a change of what the guest reads.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::backing::{BackingFile, check_backing, store_backing};
use super::compare::{CompareOptions, compare};
use super::digest::crc32_of_start;
use super::work::differences::Differences;
use super::work::snapshots;
use super::work::sparse::Sparse;
use super::work::transfer::{self, Transferred};
use super::work::writes::Settings;
use crate::chain::{Chain, Format, OpenOptions, resolve_name};
use crate::check::Repaired;
use crate::disk::{Disk, WriteOptions};
use crate::io::MemoryStorage;
use crate::setters::setters;
use crate::{CancelToken, Error, Observer, Result};

/// The most ranges that are listed to find out which snapshots change.
const MOST_RANGES: usize = 1 << 20;

/// What an image is to be backed by.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NewBacking {
    /// Its name as it will stand in the header: relative to the image's directory.
    pub name: PathBuf,
    /// Its format.
    pub format: Format,
    /// How it is opened; its format is the one above.
    pub open: OpenOptions,
}

impl NewBacking {
    /// A backing file of this name and format.
    pub fn new(name: impl Into<PathBuf>, format: Format) -> Self {
        Self { name: name.into(), format, open: OpenOptions::default() }
    }

    /// How it is opened.
    #[must_use]
    pub fn open(self, open: OpenOptions) -> Self {
        Self { open, ..self }
    }
}

/// How to rebase.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RebaseOptions {
    /// The new backing file; without one the image is complete by itself afterwards.
    pub backing: Option<NewBacking>,
    /// Compress what is copied.
    pub compress: bool,
    /// Go on although internal snapshots will show the new backing file where they have nothing of their own.
    pub change_snapshots: bool,
    /// Write nothing, and say what would be written.
    pub dry_run: bool,
    /// Compute the CRC-32 of the guest's whole disk before and after, too.
    pub digest: bool,
    /// Do not read back what was written.
    pub no_verify: bool,
    /// Worker threads; 0 means one per core, at most 16.
    pub threads: usize,
}

setters!(RebaseOptions {
    compress: bool,
    change_snapshots: bool,
    dry_run: bool,
    digest: bool,
    no_verify: bool,
    threads: usize,
} into {
    backing: Option<NewBacking>,
});

/// What was changed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RebaseOutcome {
    /// The image.
    #[serde(serialize_with = "super::path_text")]
    pub filename: PathBuf,
    /// The name of its new backing file; none if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// The format of the new backing file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_format: Option<Format>,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Bytes of the guest's disk that were copied from the old backing file.
    pub data_bytes: u64,
    /// Bytes of the guest's disk that were made zeros, because the old backing file had zeros there.
    pub zero_bytes: u64,
    /// CRC-32 of what the old backing file had in these places, in the order of the disk: eight hex digits.
    pub crc32: String,
    /// It was read back over the new backing file, and is the same.
    pub verified: bool,
    /// CRC-32 of the guest's whole disk, the same before and after, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_crc32: Option<String>,
    /// Internal snapshots that now read as something else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed_snapshots: Vec<String>,
    /// Nothing was written.
    pub dry_run: bool,
    /// What was, or would be, repaired before, because the image had not been closed properly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

/// A rebase whose files are all open and locked: from here on it opens nothing. A job that is dropped has
/// changed nothing.
#[derive(Debug)]
pub struct RebaseJob {
    options: RebaseOptions,
    path: PathBuf,
    disk: Disk,
    old: Chain,
    new: Chain,
}

impl RebaseJob {
    /// Opens the image at `path` for writing, what it is backed by and what it is to be backed by for reading.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use qcow::chain::{Format, OpenOptions};
    /// use qcow::ops::rebase::{NewBacking, RebaseJob, RebaseOptions};
    /// use qcow::{CancelToken, Silent};
    ///
    /// let options = RebaseOptions::default().backing(NewBacking::new("new.qcow2", Format::Qcow2));
    /// let job = RebaseJob::begin(Path::new("overlay.qcow2"), &OpenOptions::default(), &options)?;
    /// let done = job.run(&Silent, &CancelToken::new())?;
    /// println!("{} bytes were copied", done.data_bytes);
    /// # Ok::<(), qcow::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Disk::open`] for the image and [`Chain::open`] for the backing files;
    /// [`Usage`](crate::ErrorKind::Usage) if the image is raw or would back itself.
    pub fn begin(path: &Path, open: &OpenOptions, options: &RebaseOptions) -> Result<Self> {
        let new = match &options.backing {
            Some(backing) => Some(open_new(path, backing)?),
            None => None,
        };
        let write = WriteOptions::new().plan(options.dry_run);
        let (disk, old) = Disk::open_over(path, open, new.clone(), write)?;
        let nothing = || empty_chain();
        let (old, new) = (old.map_or_else(nothing, Ok)?, new.map_or_else(nothing, Ok)?);
        if new.contains_file(path) {
            return Err(Error::usage("the image would be its own backing file").file(path));
        }
        // Whether the header has room for the name, before anything is copied.
        let backing = backing_file(options);
        check_backing(disk.storage(), backing.as_ref()).map_err(|error| error.file(path))?;
        Ok(Self { options: options.clone(), path: path.to_path_buf(), disk, old, new })
    }

    /// Copies what differs, flushes it, reads it back, and changes the header.
    ///
    /// # Errors
    /// What reading and writing raise; [`Interrupted`](crate::ErrorKind::Interrupted);
    /// [`Usage`](crate::ErrorKind::Usage) if a snapshot would change. After an error the image has its old backing
    /// file and reads as before, and the rebase can be repeated.
    pub fn run(self, observer: &dyn Observer, cancel: &CancelToken) -> Result<RebaseOutcome> {
        let Self { options, path, disk, old, new } = self;
        let named = |error: Error| error.file(&path);
        let repaired = disk.repaired();
        let changed_snapshots =
            self::snapshots_that_change(&disk, [&old, &new], &options, cancel).map_err(named)?;
        let (size, threads) = (disk.size(), options.threads);
        let whole = |chain: Chain| {
            options.digest.then(|| crc32_of_start(&chain, size, threads, cancel)).transpose()
        };
        let before = whole(disk.chain_over(Some(&old))?)?;
        let steps = Differences::new(&old, &new, &disk, options.compress)?;
        let settings = Settings {
            threads,
            dry_run: options.dry_run,
            verify: !options.no_verify,
            compress: options.compress,
            sparse: Sparse::Finest,
            in_order: false,
            rate: None,
            zeros_by_entry: disk.has_zero_clusters(),
            observer,
            cancel,
        };
        let copied = transfer::run(&steps, &disk, settings).and_then(|copied| {
            old.check_unchanged()?;
            new.check_unchanged()?;
            if !options.dry_run {
                cancel.check()?;
                disk.flush()?;
            }
            Ok(copied)
        });
        let Transferred { data_bytes, zero_bytes, crc32 } = disk.or_give_up(copied)?;
        let mut disk_crc32 = None;
        if !options.dry_run {
            disk_crc32 = whole(disk.chain()?)?;
            if disk_crc32 != before {
                let lost = std::io::Error::other("the digests differ");
                return Err(Error::io("the disk does not read as before", lost).file(&path));
            }
            cancel.check()?;
            change_header(&path, disk, &options)?;
        }
        let backing = options.backing.as_ref();
        Ok(RebaseOutcome {
            filename: path,
            backing_filename: backing.map(|new| new.name.to_string_lossy().into_owned()),
            backing_format: backing.map(|new| new.format),
            virtual_size: size,
            data_bytes,
            zero_bytes,
            crc32,
            verified: settings.verify && !options.dry_run,
            disk_crc32,
            changed_snapshots,
            dry_run: options.dry_run,
            repaired,
        })
    }
}

/// The one step that cannot be half done.
fn change_header(path: &Path, disk: Disk, options: &RebaseOptions) -> Result<()> {
    let storage = disk.storage();
    disk.close()?;
    store_backing(storage, backing_file(options).as_ref()).map_err(|error| error.file(path))
}

fn backing_file(options: &RebaseOptions) -> Option<BackingFile> {
    let backing = options.backing.as_ref()?;
    Some(BackingFile::new(&backing.name, backing.format.as_str()))
}

/// Opens what the image at `path` is to be backed by.
pub(super) fn open_new(path: &Path, backing: &NewBacking) -> Result<Chain> {
    if backing.name.as_os_str().is_empty() {
        return Err(Error::usage("the name of the backing file is empty"));
    }
    let name = resolve_name(&backing.name, path, &backing.open.working_directory)?;
    Chain::open(&name, &backing.open.clone().format(backing.format))
}

/// What stands for no backing file.
fn empty_chain() -> Result<Chain> {
    Chain::builder().layer("", Arc::new(MemoryStorage::new(Vec::new())), Format::Raw).open()
}

/// The snapshots that show a range in which the backing files differ. They are refused unless that is wanted.
fn snapshots_that_change(
    disk: &Disk,
    [old, new]: [&Chain; 2],
    options: &RebaseOptions,
    cancel: &CancelToken,
) -> Result<Vec<String>> {
    let own = disk.chain()?;
    let Some((layer, image)) = own.layers().first().and_then(|layer| Some((layer, layer.image()?)))
    else {
        return Ok(Vec::new());
    };
    if image.snapshots().is_empty() {
        return Ok(Vec::new());
    }
    let mut changed: Vec<Range<u64>> = Vec::new();
    let mut note = |start: u64, len: u64| {
        let end = start.saturating_add(len);
        let full = changed.len() >= MOST_RANGES;
        match changed.last_mut() {
            Some(last) if full || last.end == start => last.end = end,
            _ => changed.push(start..end),
        }
    };
    let all = CompareOptions::default().all(true).threads(options.threads);
    compare(old, new, &all, &mut note, &crate::Silent, cancel)?;
    let names = snapshots::that_would_change(image, layer.storage(), &changed)?;
    match names.first() {
        Some(name) if !options.change_snapshots => Err(snapshots::refused(name, names.len())),
        _ => Ok(names),
    }
}
