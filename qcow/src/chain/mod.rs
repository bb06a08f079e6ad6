//! Backing chains: names, policy, resolution, loops.
//!
//! A chain is opened once, from the active layer (depth 0) down to the last base, and stays
//! pinned by its open descriptors: renaming or deleting a layer afterwards changes nothing.

mod builder;
mod data_file;
mod decoder;
mod foreign;
mod format;
#[cfg(feature = "ops")]
mod joined;
mod json;
mod layer;
mod name;
mod parse;
mod policy;
mod stated;
mod view;
mod walk;
mod warning;
mod writable;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "ops")]
use crate::format::HeaderArea;
use crate::image::{Purpose, TableCache, Tables};
use crate::io::{Access, FileStorage, Identity, Storage};
use crate::setters::setters;
use crate::{CancelToken, Error, ErrorKind, Remedy, Result};

pub use builder::ChainBuilder;
pub(crate) use decoder::Decoder;
#[cfg(feature = "ops")]
pub(crate) use foreign::END;
pub use foreign::Foreign;
pub use format::Format;
#[cfg(feature = "ops")]
pub use joined::Joined;
pub use json::in_double_quotes;
pub use layer::Layer;
use name::ImageName;
pub use name::WorkingDirectory;
#[cfg(feature = "serde")]
pub(crate) use name::{path_text, path_texts};
pub use policy::{FilePolicy, Limits, MAX_DEPTH, Policy};
pub use stated::{BackingFormats, FormatSource};
pub use walk::{Broken, Files, LayerFound, Open, Walk, walk};
pub use warning::Warning;
pub(crate) use writable::open_writable;
#[cfg(feature = "ops")]
pub(crate) use writable::open_writable_alone;

/// How to open an image and its backing chain.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Format of the active layer; `None` looks at its first bytes ([`Format::probe`]).
    pub format: Option<Format>,
    /// Formats of backing files that no header records; without one such a file is refused.
    pub backing_formats: BackingFormats,
    /// Internal snapshot (id, then name) whose view to read instead of the current state.
    pub snapshot: Option<String>,
    /// Read images that another process may be changing (`qemu-img -U`): what is read may be
    /// neither the old nor the new state.
    pub force_share: bool,
    /// Files to open in place of others: wherever the chain comes to the first path, the second is
    /// opened, whatever `policy` says. For a base that was deleted while a process holds it open: its
    /// name, and `/proc/PID/fd/N`.
    pub overrides: Vec<(PathBuf, PathBuf)>,
    /// Where relative names behind `json:` and `file:` start.
    pub working_directory: WorkingDirectory,
    /// What may be opened.
    pub policy: Policy,
    /// How much may be demanded.
    pub limits: Limits,
    /// Asks the opening of an image for writing to stop: all its metadata is read then, which may take long.
    pub cancel: CancelToken,
}

setters!(OpenOptions {
    backing_formats: BackingFormats,
    force_share: bool,
    overrides: Vec<(PathBuf, PathBuf)>,
    working_directory: WorkingDirectory,
    policy: Policy,
    limits: Limits,
    cancel: CancelToken,
} into {
    format: Option<Format>,
    snapshot: Option<String>,
});

/// Bytes of L1 and L2 tables that a chain caches for random reads, all layers and readers together;
/// about three percent more go to its index. At 64 KiB clusters they map 128 GiB of disk. No memory
/// is taken before it is needed.
pub const TABLE_CACHE_BYTES: usize = 16 << 20;

/// An image and its backing files, opened once and read-only; depth 0 is the active layer.
///
/// A `Chain` is a handle: its clones are one chain, with one set of open files and one cache of tables. It
/// can be sent to and used by any number of threads.
///
/// ```no_run
/// use std::path::Path;
/// use qcow::chain::{Chain, OpenOptions};
///
/// let chain = Chain::open(Path::new("overlay.qcow2"), &OpenOptions::default())?;
/// for (depth, layer) in chain.layers().iter().enumerate() {
///     println!("{depth}: {} ({})", layer.path().display(), layer.format());
/// }
/// # Ok::<(), qcow::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Chain(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: ChainId,
    layers: Vec<Layer>,
    virtual_size: u64,
    force_share: bool,
    walked: Walked,
    /// `None` where another process may be changing the tables.
    tables: Option<TableCache>,
    decoders: decoder::Pool,
}

/// What was found on the way down.
#[derive(Debug, Default)]
struct Walked {
    warnings: Vec<Warning>,
    /// The backing file of the lowest layer is recorded, and was not opened.
    left_out: bool,
}

/// Tells the chains of this process apart; clones have one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChainId(u64);

impl ChainId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Chain {
    /// Opens the image at `path` and its whole backing chain, ready to read the guest's data.
    ///
    /// `path` may also be a `file:` or `json:` name of a local file. Loops end in an error.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), [`Corrupt`](crate::ErrorKind::Corrupt),
    /// [`Unsupported`](crate::ErrorKind::Unsupported), [`Denied`](crate::ErrorKind::Denied),
    /// [`Limit`](crate::ErrorKind::Limit) or [`Usage`](crate::ErrorKind::Usage), each naming the
    /// file and the structure.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        Self::open_layers(path, options, usize::MAX)
    }

    /// Opens the image at `path` without its backing files: to see what it holds itself. What it leaves
    /// to its backing file is [`Unallocated`](crate::extent::ExtentKind::Unallocated), and reads as
    /// zeros.
    ///
    /// # Errors
    /// As [`open`](Self::open), but nothing below the image is looked at.
    pub fn open_alone(path: &Path, options: &OpenOptions) -> Result<Self> {
        Self::open_layers(path, options, 1)
    }

    /// Opens the image at `path` with at most so many `layers`, its own included: to see what is left of a
    /// disk when what stands below them is lost. What they leave to it is
    /// [`Unallocated`](crate::extent::ExtentKind::Unallocated), and reads as zeros.
    ///
    /// # Errors
    /// As [`open`](Self::open), but nothing below these layers is looked at.
    pub fn open_upper(path: &Path, options: &OpenOptions, layers: usize) -> Result<Self> {
        Self::open_layers(path, options, layers.max(1))
    }

    fn open_layers(path: &Path, options: &OpenOptions, most: usize) -> Result<Self> {
        let mut layers = Vec::new();
        let mut walked = Walked::default();
        let mut walk = walk(Files::new(options), path, options);
        while layers.len() < most
            && let Some(found) = walk.next()
        {
            let found = found.map_err(|broken| broken.error)?;
            walked.add(&found);
            let layer = layer_of(found, options)?;
            options.limits.check_use(&layer).map_err(|error| error.file(layer.path()))?;
            layers.push(layer.ready_for_data(&options.policy, options.force_share)?);
        }
        if layers.len() < most {
            walk.check_used().map_err(|error| error.file(path))?;
        }
        walked.end(&layers, most);
        if let (Some(snapshot), false) = (&options.snapshot, layers.is_empty()) {
            let top = layers.remove(0).at_snapshot(snapshot)?;
            layers.insert(0, top);
        }
        Ok(Self::walked(layers, options.force_share, TABLE_CACHE_BYTES, walked))
    }

    fn new(layers: Vec<Layer>, force_share: bool, table_cache: usize) -> Self {
        let mut walked = Walked::default();
        walked.end(&layers, layers.len());
        Self::walked(layers, force_share, table_cache, walked)
    }

    fn walked(layers: Vec<Layer>, force_share: bool, table_cache: usize, walked: Walked) -> Self {
        let virtual_size = layers.first().map_or(0, Layer::virtual_size);
        let (id, decoders) = (ChainId::next(), decoder::Pool::default());
        let tables = (!force_share).then(|| TableCache::new(table_cache));
        Self(Arc::new(Inner { id, layers, virtual_size, force_share, walked, tables, decoders }))
    }

    /// What the caller should know about the chain: it was read, but may not be what it seems.
    pub fn warnings(&self) -> &[Warning] {
        &self.0.walked.warnings
    }

    /// Whether the lowest layer has a backing file that was not opened, because the caller or a `json:`
    /// name said so. What the layers leave to it is
    /// [`Unallocated`](crate::extent::ExtentKind::Unallocated), reads as zeros, and need not be zeros.
    pub fn backing_left_out(&self) -> bool {
        self.0.walked.left_out
    }

    pub(crate) fn id(&self) -> ChainId {
        self.0.id
    }

    /// How the tables of the layer at `depth` are read for short ranges.
    pub(crate) fn tables(&self, depth: usize) -> Tables<'_> {
        self.0.tables.as_ref().map_or(Tables::Direct, |cache| Tables::Cached(cache, depth))
    }

    pub(crate) fn decoders(&self) -> &decoder::Pool {
        &self.0.decoders
    }

    /// The layers; the active one first, never empty.
    pub fn layers(&self) -> &[Layer] {
        &self.0.layers
    }

    /// Size of the guest's disk in bytes, a multiple of 512.
    pub fn virtual_size(&self) -> u64 {
        self.0.virtual_size
    }

    /// Checks that no layer has changed since it was opened, as far as sizes and times tell.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the file that has.
    pub fn check_unchanged(&self) -> Result<()> {
        if self.0.force_share {
            return Ok(());
        }
        self.0.layers.iter().try_for_each(|layer| {
            let storages = [layer.storage(), layer.data_storage()];
            storages
                .iter()
                .try_for_each(|storage| storage.check_unchanged())
                .map_err(|error| error.file(layer.path()))
        })
    }

    /// From now on reads past the page cache what is aligned, where the file systems can.
    pub(crate) fn read_direct(&self) {
        for layer in &self.0.layers {
            [layer.file(), layer.data_file()]
                .into_iter()
                .flatten()
                .for_each(FileStorage::read_direct);
        }
    }

    /// Whether `path` is, under whatever name, one of the files that the chain is read from. It does not look into
    /// chains that a [`Joined`] layer is made of.
    pub fn contains_file(&self, path: &Path) -> bool {
        let json = path.as_os_str().as_encoded_bytes().starts_with(b"json:");
        let named = if json { local_path(path).ok() } else { None };
        let identity = FileStorage::identity_of(named.as_deref().unwrap_or(path));
        identity.is_some_and(|identity| self.reads_from(identity))
    }

    /// Whether this is one of the files that the chain is read from.
    pub(crate) fn reads_from(&self, identity: Identity) -> bool {
        let storages =
            self.0.layers.iter().flat_map(|layer| [layer.storage(), layer.data_storage()]);
        storages.filter_map(|storage| storage.identity()).any(|own| own == identity)
    }
}

/// Opens the one image that `path` names, without looking further than its format.
pub(crate) fn open_file(
    path: &Path,
    format: Option<Format>,
    policy: &Policy,
) -> Result<(FileStorage, Format)> {
    let name = ImageName::from_user(path).map_err(|error| error.file(path))?;
    let stated = format.is_some() || name.driver.is_some();
    policy.check_stated(stated).map_err(|error| error.file(path))?;
    let file = policy.open_active(&name.path)?;
    let format = probe_format(&file, path, format)?;
    policy.check_format(&file, format).map_err(|error| error.file(path))?;
    Ok((file, format))
}

/// Opens what the image at `path` needs, its data file and what it is backed by, down to the end of the
/// chain, and forgets it again: an image whose backing file or data file is lost is not sound, whatever its own tables say. Neither those tables
/// nor any data is read. Gives back the image's own file, so that whoever opens it again can tell
/// afterwards whether it is still the one that was looked at.
///
/// # Errors
/// What keeps the backing chain from being opened: as [`Chain::open`]. A name, a format or a file that
/// is not for this crate to open ([`Unsupported`](crate::ErrorKind::Unsupported),
/// [`Denied`](crate::ErrorKind::Denied)) says nothing about whether it is there.
pub fn check_backing(path: &Path, options: &OpenOptions) -> Result<FileStorage> {
    let (file, format) = open_file(path, options.format, &options.policy)?;
    if format != Format::Qcow2 {
        return Ok(file);
    }
    let area =
        crate::image::read_header_area(&file, Purpose::Check).map_err(|error| error.file(path))?;
    let name = ImageName::from_user(path).map_err(|error| error.file(path))?;
    let mut active = LayerFound::active(&name, file, area);
    check_data_file(&active, options)?;
    let mut walk = Walk::below_layer(Files::new(options), &mut active, &name.below, options);
    for lower in walk.by_ref() {
        check_data_file(&lower.map_err(|broken| broken.error)?, options)?;
    }
    walk.check_used().map_err(|error| error.file(path))?;
    Ok(active.file)
}

/// Opens the layer's external data file, if it has one, and forgets it again.
fn check_data_file(layer: &LayerFound<FileStorage>, options: &OpenOptions) -> Result<()> {
    let Some(area) = &layer.header else { return Ok(()) };
    let place = data_file::place(area, &layer.path, layer.data_file.as_deref());
    let Some(path) = place.map_err(|error| error.file(&layer.path))? else { return Ok(()) };
    match options.policy.data_file.open(&path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(error.file(&path).structure("data file").hint(Remedy::RestoreBacking))
        }
        Err(error) => Err(error.file(&path)),
    }
}

/// The file that a name given by a person means: a path, `file:` or `json:`. Looks at no file.
///
/// # Errors
/// As [`resolve_name`].
pub fn local_path(path: &Path) -> Result<PathBuf> {
    Ok(ImageName::from_user(path).map_err(|error| error.file(path))?.path)
}

/// The format of `file`, which was opened whole by the name `path`.
///
/// # Errors
/// As those of [`Format::probe`]; [`Unsupported`](crate::ErrorKind::Unsupported) if the name means a range
/// of the file: what is said of the whole file would be wrong.
pub(crate) fn probe_format(
    file: &dyn Storage,
    path: &Path,
    format: Option<Format>,
) -> Result<Format> {
    let name = ImageName::from_user(path)?;
    let only = name.only;
    if !name.windows.is_empty() {
        return Err(Error::unsupported("the json: name means a range of a file, not a whole one")
            .file(path)
            .hint("copy that range into a file of its own"));
    }
    match (format, name.driver) {
        (Some(format), _) => Ok(format),
        (None, Some(driver)) => driver.parse(),
        (None, None) if name.plain_file => Ok(Format::Raw),
        (None, None) => Format::probe_named(file, path),
    }
    .and_then(|format| check_only(only, format))
    .map_err(|error: Error| error.file(path))
}

/// Checks that a name has no options that another format driver alone knows.
fn check_only(only: Option<Format>, format: Format) -> Result<Format> {
    match only.filter(|only| *only != format) {
        None => Ok(format),
        Some(only) => Err(Error::usage(format!(
            "the json: name has options of the {only} driver, and this is a {format} image"
        ))),
    }
}

/// The file that `name`, as it stands in the header of the image at `holder`, means: a path, `file:` or
/// `json:`. Plain relative names start in the holder's directory; relative ones behind `file:` and `json:`
/// in `working_directory`, that of the process that opens the image. Looks at no file.
///
/// ```
/// use std::path::Path;
/// use qcow::chain::{WorkingDirectory, resolve_name};
/// let (holder, cwd) = (Path::new("/images/top.qcow2"), WorkingDirectory::At("/work".into()));
/// assert_eq!(resolve_name(Path::new("base.raw"), holder, &cwd)?, Path::new("/images/base.raw"));
/// assert_eq!(resolve_name(Path::new("file:base.raw"), holder, &cwd)?, Path::new("/work/base.raw"));
/// # Ok::<(), qcow::Error>(())
/// ```
///
/// # Errors
/// [`Unsupported`](crate::ErrorKind::Unsupported) or [`Denied`](crate::ErrorKind::Denied) if it is the
/// name of something that is not a local file; [`Corrupt`](crate::ErrorKind::Corrupt) if it is not
/// understood.
pub fn resolve_name(
    name: &Path,
    holder: &Path,
    working_directory: &WorkingDirectory,
) -> Result<PathBuf> {
    let name = header_name(name)?;
    if name.data_file.is_some() {
        return Err(Error::unsupported(
            "the name means more than a file: it says where a data file is",
        ));
    }
    name.resolve(holder, working_directory)
}

/// The file that `name`, as the header of the image at `image` has it for its data file, means.
///
/// # Errors
/// As [`local_path`].
#[cfg(feature = "ops")]
pub(crate) fn data_file_path(name: &[u8], image: &Path) -> Result<PathBuf> {
    Ok(ImageName::data_file(name).beside(&local_path(image)?))
}

/// The data file of the image that a person calls `image`, which has this header; `None` if it has none.
///
/// # Errors
/// As [`data_file::place`].
#[cfg(feature = "ops")]
pub(crate) fn data_file_of(area: &HeaderArea, image: &Path) -> Result<Option<PathBuf>> {
    let name = ImageName::from_user(image)?;
    data_file::place(area, &name.path, name.data_file.as_deref())
}

/// Whether `name`, as it stands in a header, means another file in every working directory of the process
/// that opens the image: a relative name behind `file:` or `json:`.
pub fn depends_on_process(name: &Path) -> bool {
    header_name(name).is_ok_and(|name| name.depends_on_process())
}

fn header_name(name: &Path) -> Result<ImageName> {
    use std::os::unix::ffi::OsStrExt;
    ImageName::from_header(name.as_os_str().as_bytes())
}

/// How QEMU shows a backing file's name in full: names with a protocol as they are, relative ones
/// with the directory of the image at `holder`.
pub(crate) fn full_name(name: &Path, holder: &Path) -> PathBuf {
    ImageName::shown(name).map_or_else(|| name.to_path_buf(), |name| name.beside(holder))
}

/// Takes QEMU's locks of a reader. A reader of a QCOW2 image relies on its tables, so that no other process may write
/// to it; other processes may write to raw bytes meanwhile, as in QEMU, unless they keep them to themselves
/// by an exclusive lock.
fn lock_for_reading(file: &FileStorage, format: Format) -> Result<()> {
    let forbids = match format {
        Format::Qcow2 => Access::WRITE | Access::RESIZE,
        Format::Raw => Access::empty(),
    };
    file.lock(Access::READ, forbids).map_err(|error| error.hint(Remedy::ShareRead))
}

/// Opens the active layer, without data files and without what is below it.
pub(crate) fn open_active_layer(path: &Path, options: &OpenOptions) -> Result<Layer> {
    let found = walk(Files::new(options), path, options).next();
    let found = found.ok_or_else(|| Error::usage("no image given"))?;
    layer_of(found.map_err(|broken| broken.error)?, options)
}

/// The layer that was found, within the limits of `options`.
pub(crate) fn layer_of(found: LayerFound<FileStorage>, options: &OpenOptions) -> Result<Layer> {
    let OpenOptions { policy, limits, .. } = options;
    let active = found.depth == 0;
    let layer = found.into_layer()?;
    let check = || {
        if active {
            limits.check_size(layer.virtual_size())?;
            layer.image().map_or(Ok(()), |image| policy.check_names(image))?;
        }
        limits.check(&layer)
    };
    check().map_err(|error| error.file(layer.path()))?;
    Ok(layer)
}

impl Walked {
    fn add(&mut self, found: &LayerFound<FileStorage>) {
        self.warnings.extend(found.warning());
        self.left_out = found.backing_left_out;
    }

    /// After the last of at most `most` layers.
    fn end(&mut self, layers: &[Layer], most: usize) {
        let Some(lowest) = layers.last() else { return };
        let name = lowest.image().and_then(|image| image.area().backing_name.as_deref());
        self.left_out |= layers.len() >= most && name.is_some();
        if let (true, Some(name)) = (self.left_out, name) {
            let backing = String::from_utf8_lossy(name).into_owned();
            self.warnings.push(Warning::BackingLeftOut { layer: lowest.path().into(), backing });
        }
    }
}
