//! Writes what an overlay has into what it is backed by.

mod found;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use self::found::Found;
use super::digest::crc32_of_start;
use super::edit::{Changed, Opened, change};
use super::resize::{NewSize, ResizeOptions, resize};
use super::users;
use super::work::overwrite::{Holes, Overwrite};
use super::work::snapshots;
use super::work::sparse::Sparse;
use super::work::transfer::{self, Transferred};
use super::work::writes::Settings;
use crate::chain::{Chain, Format, Layer, OpenOptions, local_path};
use crate::check::Repaired;
use crate::disk::{Disk, WriteOptions};
use crate::image::Image;
use crate::io::{Storage, WritableFile, WriteStorage};
use crate::setters::setters;
use crate::{CancelToken, Error, ErrorKind, Escaped, Observer, Remedy, Result, Silent};

/// How to commit.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CommitOptions {
    /// The image of the chain that is written into, by its path or by the name that the image above has for
    /// it; `None` for the immediate backing file.
    pub base: Option<PathBuf>,
    /// Empty the overlay once the base has all; never done if [`base`](Self::base) is set.
    pub empty: bool,
    /// Write into the base although other images next to it have it for their backing file too, and will
    /// read as something else.
    pub shared: bool,
    /// Go on although internal snapshots of the overlay will show the new content of the base where they have
    /// none of their own.
    pub change_snapshots: bool,
    /// Write nothing, and say what would be written.
    pub dry_run: bool,
    /// Compute the CRC-32 of the guest's whole disk before and after, too.
    pub digest: bool,
    /// Do not read back what was written.
    pub no_verify: bool,
    /// What is zeroed says so itself in the base: see
    /// [`WriteOptions::explicit_zeroes`](crate::disk::WriteOptions::explicit_zeroes).
    pub explicit_zeroes: bool,
    /// Have the kernel copy data where it can, without reading it: only with [`no_verify`](Self::no_verify). There is no
    /// digest of what was written then, and zeros in data stay data.
    pub in_kernel: bool,
    /// Worker threads; 0 means one per core, at most 16.
    pub threads: usize,
}

setters!(CommitOptions {
    empty: bool,
    shared: bool,
    change_snapshots: bool,
    dry_run: bool,
    digest: bool,
    no_verify: bool,
    explicit_zeroes: bool,
    in_kernel: bool,
    threads: usize,
} into {
    base: Option<PathBuf>,
});

/// What was committed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CommitOutcome {
    /// The overlay.
    #[serde(serialize_with = "super::path_text")]
    pub filename: PathBuf,
    /// The image that was written into.
    #[serde(serialize_with = "super::path_text")]
    pub base: PathBuf,
    /// Virtual size of the overlay in bytes.
    pub virtual_size: u64,
    /// Virtual size of the base in bytes.
    pub base_virtual_size: u64,
    /// Bytes by which the base grew.
    pub base_grown: u64,
    /// Bytes of the guest's disk that were written as data.
    pub data_bytes: u64,
    /// Bytes of the guest's disk that were made zeros.
    pub zero_bytes: u64,
    /// CRC-32 of what was written, zeros included, in the order of the disk: eight hex digits; empty if the kernel copied it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub crc32: String,
    /// It was read back from the base, and is the same.
    pub verified: bool,
    /// CRC-32 of the guest's whole disk, the same before and after, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_crc32: Option<String>,
    /// Other images that have the base, or an image between it and the overlay, for their backing file.
    #[serde(serialize_with = "super::path_texts", skip_serializing_if = "Vec::is_empty")]
    pub other_overlays: Vec<PathBuf>,
    /// Internal snapshots of the overlay, or of an image between it and the base, that now read as something
    /// else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed_snapshots: Vec<String>,
    /// Names of the overlay's persistent bitmaps, which stay there: the base does not get them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overlay_bitmaps: Vec<String>,
    /// The overlay was emptied.
    pub emptied: bool,
    /// Nothing was written.
    pub dry_run: bool,
    /// What was, or would be, repaired of the base before, because it had not been closed properly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_repaired: Option<Repaired>,
    /// What was repaired of the overlay before it was emptied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay_repaired: Option<Repaired>,
}

/// The image that [`CommitJob::begin`] would write into: by the headers of the chain, and without opening it for writing.
///
/// # Errors
/// As [`CommitJob::begin`].
pub fn base_of(path: &Path, open: &OpenOptions, base: Option<&Path>) -> Result<PathBuf> {
    Found::look(path, open, base).map(|found| found.base)
}

/// A commit whose files are all open and locked: from here on it opens nothing. A job that is dropped has at most
/// made the base longer.
#[derive(Debug)]
pub struct CommitJob {
    options: CommitOptions,
    overlay: PathBuf,
    upper: Chain,
    disk: Disk,
    base: PathBuf,
    other_overlays: Vec<PathBuf>,
    changed_snapshots: Vec<String>,
    base_grown: u64,
    base_repaired: Option<Repaired>,
    /// The overlay, locked for writing, if it is to be emptied.
    emptied: Option<Arc<dyn WriteStorage>>,
}

impl CommitJob {
    /// Opens the overlay at `path` and what is between it and the base for reading, the base for writing.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use qcow::chain::OpenOptions;
    /// use qcow::ops::commit::{CommitJob, CommitOptions};
    /// use qcow::{CancelToken, Silent};
    ///
    /// let open = OpenOptions::default();
    /// let job = CommitJob::begin(Path::new("overlay.qcow2"), &open, &CommitOptions::default())?;
    /// let done = job.run(&Silent, &CancelToken::new())?;
    /// println!("{} bytes of data", done.data_bytes);
    /// # Ok::<(), qcow::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InUse`](crate::ErrorKind::InUse) if a process uses one of the images, or an image next to them is backed
    /// by one of them; [`Usage`](crate::ErrorKind::Usage) if there is no backing file, if the base is none of the
    /// chain, or if a snapshot would change; otherwise as [`resize`] and
    /// [`Disk::open`].
    pub fn begin(path: &Path, open: &OpenOptions, options: &CommitOptions) -> Result<Self> {
        let found = Found::look(path, open, options.base.as_deref())?;
        let other_overlays = users::overlays_of(&found.changed, &found.known)?;
        if let (Some(other), false) = (other_overlays.first(), options.shared) {
            return Err(shared(&found.base, other, other_overlays.len()));
        }
        let mut upper = Chain::open_upper(path, open, found.depth)?;
        let (size, before) = (upper.virtual_size(), found.base_size);
        let changed_snapshots = snapshots_that_change(&upper, before)?;
        if let (Some(name), false) = (changed_snapshots.first(), options.change_snapshots) {
            return Err(snapshots::refused(name, changed_snapshots.len()).file(path));
        }
        let mut emptied = None;
        if options.empty && options.base.is_none() && !options.dry_run {
            refuse_data_file(&upper)?;
            // Its read lock goes with it.
            drop(upper);
            let own = open_overlay(path, &found)?;
            upper = Chain::over((path, own.clone(), Format::Qcow2), None, None)?;
            emptied = Some(own as Arc<dyn WriteStorage>);
        }
        let base_open = open.clone().format(found.format).snapshot(None);
        let base_grown = size.saturating_sub(before);
        let mut base_repaired = None;
        if base_grown > 0 && !options.dry_run {
            base_repaired = grow(&found.base, size, &base_open)?;
        }
        let write =
            WriteOptions::new().plan(options.dry_run).explicit_zeroes(options.explicit_zeroes);
        let disk = Disk::open(&found.base, &base_open, write)?;
        if crate::io::FileStorage::identity_of(&found.base) != Some(found.base_identity) {
            let replaced = std::io::ErrorKind::NotFound.into();
            return Err(Error::io("another file has taken its place", replaced).file(&found.base));
        }
        let base_repaired = base_repaired.or(disk.repaired());
        let (overlay, base, options) = (path.to_path_buf(), found.base, options.clone());
        Ok(Self {
            options,
            overlay,
            upper,
            disk,
            base,
            other_overlays,
            changed_snapshots,
            base_grown,
            base_repaired,
            emptied,
        })
    }

    /// Writes into the base, flushes it, reads back what was written, and only then empties the overlay if that is
    /// wanted. What the guest reads through the
    /// overlay is the same at every moment: what the overlay gives up, the base has.
    ///
    /// # Errors
    /// What reading and writing raise; [`Interrupted`](crate::ErrorKind::Interrupted). After an error the base may
    /// have some of the overlay's data; the overlay reads as before, and the commit can be repeated.
    pub fn run(self, observer: &dyn Observer, cancel: &CancelToken) -> Result<CommitOutcome> {
        let Self { options, overlay, upper, disk, base, .. } = self;
        let threads = options.threads;
        let size = upper.virtual_size();
        let whole = |chain: &Chain| {
            options.digest.then(|| crc32_of_start(chain, size, threads, cancel)).transpose()
        };
        let before = whole(&upper.above(&disk.chain()?)?)?;
        let in_kernel = options.in_kernel && options.no_verify && !options.dry_run;
        let steps =
            Overwrite::new(&upper, disk.size().max(size), Holes::Leave)?.in_kernel(in_kernel);
        let settings = Settings {
            threads,
            dry_run: options.dry_run,
            verify: !options.no_verify,
            compress: false,
            sparse: Sparse::Finest,
            in_order: false,
            rate: None,
            zeros_by_entry: true,
            observer,
            cancel,
        };
        let copied = transfer::run(&steps, &disk, settings).and_then(|copied| {
            upper.check_unchanged()?;
            if !options.dry_run {
                disk.flush()?;
            }
            Ok(copied)
        });
        let Transferred { data_bytes, zero_bytes, crc32 } = disk.or_give_up(copied)?;
        let mut disk_crc32 = None;
        if !options.dry_run {
            disk_crc32 = whole(&disk.chain()?)?;
            if disk_crc32 != before {
                return Err(another_content(&base));
            }
        }
        let active = upper.layers().first().and_then(|layer| layer.image());
        let bitmaps = active.map(Image::bitmaps).unwrap_or_default().iter();
        let names = bitmaps.map(|bitmap| String::from_utf8_lossy(&bitmap.name).into_owned());
        let overlay_bitmaps = names.collect();
        let base_virtual_size = disk.size().max(size);
        let emptied = self.emptied.is_some();
        if !options.dry_run {
            disk.close()?;
        }
        let mut overlay_repaired = None;
        if let Some(storage) = self.emptied {
            let done = empty(storage, threads, cancel).map_err(|error| error.file(&overlay))?;
            overlay_repaired = done.repaired;
        }
        Ok(CommitOutcome {
            filename: overlay,
            base,
            virtual_size: size,
            base_virtual_size,
            base_grown: self.base_grown,
            data_bytes,
            zero_bytes,
            crc32: if in_kernel { String::new() } else { crc32 },
            verified: settings.verify && !options.dry_run,
            disk_crc32,
            other_overlays: self.other_overlays,
            changed_snapshots: self.changed_snapshots,
            overlay_bitmaps,
            emptied,
            dry_run: options.dry_run,
            base_repaired: self.base_repaired,
            overlay_repaired,
        })
    }
}

/// The snapshots of the images above the base that have nothing of their own where the base changes.
fn snapshots_that_change(upper: &Chain, base_size: u64) -> Result<Vec<String>> {
    let images = || upper.layers().iter().filter_map(|layer| Some((layer, layer.image()?)));
    if images().all(|(_, image)| image.snapshots().is_empty()) {
        return Ok(Vec::new());
    }
    let size = upper.virtual_size().max(base_size);
    let changed = Overwrite::new(upper, size, Holes::Leave)?.ranges()?;
    let mut names = Vec::new();
    for (layer, image) in images() {
        let found = snapshots::that_would_change(image, layer.storage(), &changed);
        names.extend(found.map_err(|error| error.file(layer.path()))?);
    }
    Ok(names)
}

fn shared(base: &Path, other: &Path, count: usize) -> Error {
    let name = other.to_string_lossy();
    let more =
        if count > 1 { format!(" and {} more", count.saturating_sub(1)) } else { String::new() };
    Error::new(
        ErrorKind::InUse,
        format!(
            "the image '{}'{more} has it, or an image above it, for its backing file",
            Escaped(&name)
        ),
    )
    .file(base)
    .hint(Remedy::ChangeShared)
}

/// Opens the overlay for writing, so that no other process uses it until it is empty.
fn open_overlay(path: &Path, found: &Found) -> Result<Arc<WritableFile>> {
    let file = WritableFile::open(&local_path(path)?).map_err(|error| error.file(path))?;
    if file.identity() != Some(found.overlay_identity) {
        let replaced = std::io::ErrorKind::NotFound.into();
        return Err(Error::io("another file has taken its place", replaced).file(path));
    }
    Ok(Arc::new(file))
}

/// What lies in a data file cannot be given up by a switch of the header.
fn refuse_data_file(upper: &Chain) -> Result<()> {
    let data_file = |layer: &Layer| layer.image().is_some_and(Image::has_data_file);
    match upper.layers().iter().find(|layer| data_file(layer)) {
        None => Ok(()),
        Some(layer) => {
            Err(Error::unsupported("an overlay with an external data file cannot be emptied")
                .file(layer.path())
                .hint(Remedy::KeepOverlay))
        }
    }
}

/// Gives up all that the overlay has, by one switch of its header.
fn empty(storage: Arc<dyn WriteStorage>, threads: usize, cancel: &CancelToken) -> Result<Changed> {
    let opened = Opened::storage(storage);
    change(&opened, threads, &Silent, cancel, |edit| edit.empty()).map(|((), changed)| changed)
}

/// Makes the base as long as the overlay, past which it has nothing that the guest sees.
fn grow(base: &Path, size: u64, open: &OpenOptions) -> Result<Option<Repaired>> {
    let options = ResizeOptions::default().open(open.clone());
    let outcome = resize(base, NewSize::Exactly(size), &options, &Silent, &open.cancel)?;
    Ok(outcome.repaired)
}

fn another_content(path: &Path) -> Error {
    let lost = std::io::Error::other("the digests differ");
    Error::io("the disk does not read as before", lost).file(path)
}
