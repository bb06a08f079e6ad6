//! Makes an empty image of exactly the right size.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::not_carried::{SourceFacts, not_carried};
use super::{
    NotCarried, Preallocation, Qcow2Options, RawOptions, TargetOptions, begin, new_disk_size,
    target,
};
use crate::chain::{Chain, Format, Layer, OpenOptions, open_active_layer, resolve_name};
use crate::exact::Exact;
use crate::format::{Compatible, HostOffset};
use crate::io::{OutputFile, Replace, zeros};
use crate::layout::{NewImage, Placer, Sink};
use crate::setters::setters;
use crate::{CancelToken, Error, Remedy, Result};

/// See [`RawOptions::first_block`].
const FIRST_BLOCK: u64 = 4096;

/// What to create.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CreateOptions {
    /// Virtual size in bytes, rounded up to 512; taken from the backing file when `None`.
    pub size: Option<u64>,
    /// Format of the new image and its options.
    pub target: TargetOptions,
    /// The backing file of the new image.
    pub backing: Option<Backing>,
    /// Whether an existing file is replaced, atomically. Owner, group, mode, access control list,
    /// SELinux label and `user.*` attributes stay as they are.
    pub replace: Replace,
}

setters!(CreateOptions {
    replace: Replace,
} into {
    size: Option<u64>,
    target: TargetOptions,
    backing: Option<Backing>,
});

/// The backing file of a new image.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Backing {
    /// The name as it will stand in the header; relative to the new image's directory.
    pub name: PathBuf,
    /// Its format, always recorded.
    pub format: Format,
    /// Do not open the backing file at all (`qemu-img create -u`).
    pub unchecked: bool,
    /// How to open it, if it is opened; the format in here is not used.
    pub open: OpenOptions,
}

impl Backing {
    /// A backing file of this name and format, which is opened as any other chain is.
    pub fn new(name: impl Into<PathBuf>, format: Format) -> Self {
        Self { name: name.into(), format, unchecked: false, open: OpenOptions::default() }
    }
}

setters!(Backing {
    format: Format,
    unchecked: bool,
    open: OpenOptions,
} into {
    name: PathBuf,
});

/// What was created.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CreateOutcome {
    /// The new image.
    #[serde(serialize_with = "super::path_text")]
    pub filename: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_length: u64,
    /// For an image made after another one ([`like`]): what that one has and this does not. Filled in by
    /// the caller, who has it from [`like`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_carried_over: Vec<NotCarried>,
    /// What could not be kept of a file that was replaced, and what a power cut may undo.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Creates an empty image at `path`. It appears there complete or not at all.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("disk.qcow2");
/// use qcow::ops::create::{CreateOptions, create};
/// let outcome = create(&path, &CreateOptions::default().size(10 << 30))?;
/// assert_eq!(outcome.virtual_size, 10 << 30);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) for options that do not go together or if the file exists,
/// [`Limit`](crate::ErrorKind::Limit) for a size that the format cannot hold,
/// [`Io`](crate::ErrorKind::Io), and what opening the backing file raises.
pub fn create(path: &Path, options: &CreateOptions) -> Result<CreateOutcome> {
    create_until(path, options, &CancelToken::new())
}

/// [`create`] that can be stopped: reserving space for a whole disk, or writing zeros to it, takes its time.
///
/// # Errors
/// As [`create`], and [`Interrupted`](crate::ErrorKind::Interrupted); nothing is left then.
pub fn create_until(
    path: &Path,
    options: &CreateOptions,
    cancel: &CancelToken,
) -> Result<CreateOutcome> {
    let size = virtual_size(path, options)?;
    match &options.target {
        TargetOptions::Raw(raw) => create_raw(path, raw, size, options, cancel),
        TargetOptions::Qcow2(qcow2) => create_qcow2(path, qcow2, size, options, cancel),
    }
    .map_err(|error| error.file(path))
}

/// How to make an empty image after another one, and what it will lack.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Like {
    /// The options for [`create`].
    pub create: CreateOptions,
    /// What the other image has and the new one will not.
    pub not_carried_over: Vec<NotCarried>,
}

/// The options for an empty image of the same virtual size and geometry as the image at `path`,
/// without its chain: the target that an orphaned overlay needs.
///
/// Only the header and what it lists are read, without QEMU's image locks, as `qemu-img create` reads
/// a backing file: a guest may be running on the image.
///
/// # Errors
/// As [`Chain::open`], but backing and data files are not opened.
pub fn like(path: &Path, open: &OpenOptions) -> Result<Like> {
    let open = OpenOptions { force_share: true, ..open.clone() };
    let layer = open_active_layer(path, &open)?;
    let (size, target) = (Some(layer.virtual_size()), target_like(&layer));
    let not_carried_over = not_carried(&SourceFacts::of(layer.image()), &target);
    let create = CreateOptions { size, target, ..Default::default() };
    Ok(Like { create, not_carried_over })
}

fn target_like(layer: &Layer) -> TargetOptions {
    let Some(image) = layer.image() else { return TargetOptions::Raw(RawOptions::default()) };
    let header = image.header();
    TargetOptions::Qcow2(Qcow2Options {
        cluster_size: image.geometry().cluster_size(),
        version: header.version,
        refcount_bits: header.refcounts().bits(),
        extended_l2: image.geometry().extended_l2(),
        lazy_refcounts: header.compatible.contains(Compatible::LAZY_REFCOUNTS),
        compression_type: header.compression_type,
        ..Default::default()
    })
}

/// The size asked for or the backing file's, in whole sectors.
fn virtual_size(path: &Path, options: &CreateOptions) -> Result<u64> {
    let backing_size = match &options.backing {
        Some(backing) if !backing.unchecked => Some(open_backing(path, backing)?.virtual_size()),
        _ => None,
    };
    let size = options
        .size
        .or(backing_size)
        .ok_or_else(|| Error::usage("a new image needs a size").hint(Remedy::GiveSize))?;
    new_disk_size(size)
}

/// Opens the whole chain below the new image, so that it is known to be usable. Its data is
/// not read, so no lock is asked for: as with `qemu-img create`, a guest may be running on it.
fn open_backing(path: &Path, backing: &Backing) -> Result<Chain> {
    let name = resolve_name(&backing.name, path, &backing.open.working_directory)?;
    let format = Some(backing.format);
    let open = OpenOptions { format, force_share: true, ..backing.open.clone() };
    let chain = Chain::open(&name, &open)?;
    if chain.contains_file(path) {
        return Err(
            Error::usage("the new image would replace a file of its own backing chain").file(path)
        );
    }
    Ok(chain)
}

fn create_raw(
    path: &Path,
    raw: &RawOptions,
    size: u64,
    options: &CreateOptions,
    cancel: &CancelToken,
) -> Result<CreateOutcome> {
    if options.backing.is_some() {
        return Err(Error::usage("raw images cannot have a backing file")
            .hint(Remedy::DestinationFormat("qcow2")));
    }
    let output = begin(path, options.replace)?;
    preallocate_raw(&output, size, raw.preallocation, cancel)?;
    if raw.first_block {
        write_zeros(&output, 0, size.min(FIRST_BLOCK), cancel)?;
    }
    cancel.check()?;
    let warnings = output.publish()?;
    Ok(CreateOutcome { warnings, ..outcome(path, Format::Raw, size, size) })
}

/// Gives a raw image its length and, if wanted, its space.
pub(super) fn preallocate_raw(
    output: &OutputFile,
    size: u64,
    how: Preallocation,
    cancel: &CancelToken,
) -> Result<()> {
    if how == Preallocation::Metadata {
        return Err(Error::usage("raw images have no metadata to preallocate")
            .hint("use preallocation=off, falloc or full"));
    }
    output.set_len(size)?;
    match how {
        Preallocation::Falloc => output.reserve(0, size),
        Preallocation::Full => write_zeros(output, 0, size, cancel),
        Preallocation::Off | Preallocation::Metadata => Ok(()),
    }
}

fn create_qcow2(
    path: &Path,
    qcow2: &Qcow2Options,
    size: u64,
    options: &CreateOptions,
    cancel: &CancelToken,
) -> Result<CreateOutcome> {
    let qcow2 = qcow2.checked(options.backing.is_some())?;
    let preallocated = match qcow2.preallocation {
        Preallocation::Off => 0,
        _ => qcow2.geometry()?.clusters_for(size),
    };
    let (rules, width) = (qcow2.rules()?, qcow2.refcount_width()?);
    let mut placer = Placer::with_refcounts_in_front(rules, width, size, preallocated)?;
    let output = begin(path, options.replace)?;
    let data_file = qcow2
        .data_file
        .as_ref()
        .map(|name| {
            let data = DataFile { name, size, preallocation: qcow2.preallocation };
            data.create(path, options.replace, cancel)
        })
        .transpose()?;
    let full = qcow2.preallocation == Preallocation::Full && data_file.is_none();
    let mut sink = ReserveSink { output: &output, cluster_size: qcow2.cluster_size, full, cancel };
    if preallocated > 0 {
        placer.reserve_run(0, preallocated, &mut sink)?;
    }
    let backing = options.backing.as_ref();
    let backing =
        backing.map(|backing| (backing.name.as_os_str().as_bytes(), backing.format.as_str()));
    let reserve = qcow2.preallocation == Preallocation::Falloc;
    let file_length =
        NewImage { placer, output: &output, cut: true }
            .finish(&mut sink, reserve, |finished| qcow2.header_area(size, finished, backing))?;
    cancel.check()?;
    let warnings = target::publish(output, data_file)?;
    Ok(CreateOutcome { warnings, ..outcome(path, Format::Qcow2, size, file_length) })
}

/// Writes an empty image of these checked options into `output`.
pub(super) fn write_empty(
    output: &OutputFile,
    qcow2: &Qcow2Options,
    size: u64,
    backing: &Path,
    format: Format,
) -> Result<()> {
    let placer = Placer::new(qcow2.rules()?, qcow2.refcount_width()?, size)?;
    let backing = Some((backing.as_os_str().as_bytes(), format.as_str()));
    let cancel = &CancelToken::new();
    let cluster_size = qcow2.cluster_size;
    let mut sink = ReserveSink { output, cluster_size, full: false, cancel };
    NewImage { placer, output, cut: false }
        .finish(&mut sink, false, |finished| qcow2.header_area(size, finished, backing))
        .map(drop)
}

/// The data file of a new image.
pub(super) struct DataFile<'a> {
    /// Relative to the image's directory.
    pub(super) name: &'a Path,
    pub(super) size: u64,
    pub(super) preallocation: Preallocation,
}

impl DataFile<'_> {
    /// Starts the file for the image that will be at `image`, and preallocates it.
    pub(super) fn create(
        &self,
        image: &Path,
        replace: Replace,
        cancel: &CancelToken,
    ) -> Result<OutputFile> {
        let output = self.begin(image, replace)?;
        self.preallocate(&output, cancel)?;
        Ok(output)
    }

    /// Starts the file for the image that will be at `image`.
    pub(super) fn begin(&self, image: &Path, replace: Replace) -> Result<OutputFile> {
        let name = self.name;
        let path = image.parent().map_or_else(|| name.to_path_buf(), |parent| parent.join(name));
        if path == image {
            return Err(Error::usage("an image cannot be its own data file").file(image));
        }
        begin(&path, replace)
    }

    /// Gives the file its length, and space or zeros if the image is to have them.
    pub(super) fn preallocate(&self, output: &OutputFile, cancel: &CancelToken) -> Result<()> {
        let how = match self.preallocation {
            Preallocation::Metadata => Preallocation::Off,
            other => other,
        };
        preallocate_raw(output, self.size, how, cancel)
    }
}

/// Writes metadata as it is placed, and zeros for reserved clusters if wanted.
pub(super) struct ReserveSink<'a> {
    pub(super) output: &'a OutputFile,
    pub(super) cluster_size: u64,
    pub(super) full: bool,
    pub(super) cancel: &'a CancelToken,
}

impl Sink for ReserveSink<'_> {
    fn metadata(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
        self.cancel.check()?;
        target::write_table(self.output, offset, bytes)
    }

    fn data(&mut self, _first: u64, clusters: u64, host: HostOffset) -> Result<()> {
        if self.full {
            let len = clusters.times(self.cluster_size)?;
            write_zeros(self.output, host.0, len, self.cancel)?;
        }
        Ok(())
    }
}

/// Writes `len` zeros at `offset`.
pub(super) fn write_zeros(
    output: &OutputFile,
    offset: u64,
    len: u64,
    cancel: &CancelToken,
) -> Result<()> {
    let (mut at, end) = (offset, offset.plus(len)?);
    while at < end {
        cancel.check()?;
        let piece = zeros(end.minus(at)?);
        output.write_at(piece, at)?;
        at = at.plus(piece.len() as u64)?;
    }
    Ok(())
}

fn outcome(path: &Path, format: Format, virtual_size: u64, file_length: u64) -> CreateOutcome {
    let (filename, warnings) = (path.to_path_buf(), Vec::new());
    let not_carried_over = Vec::new();
    CreateOutcome { filename, format, virtual_size, file_length, not_carried_over, warnings }
}
