//! Backing chains: names, policy, resolution, loops.
//!
//! A chain is opened once, from the active layer (depth 0) down to the last base, and stays
//! pinned by its open descriptors: renaming or deleting a layer afterwards changes nothing.

mod builder;
mod decoder;
mod foreign;
mod format;
mod layer;
mod name;
mod policy;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::HeaderArea;
use crate::image::{TableCache, Tables};
use crate::io::{Access, FileStorage, Identity, Storage};
use crate::{Error, ErrorKind, LimitName, Printable, Remedy, Result};

pub use builder::ChainBuilder;
pub(crate) use decoder::Decoder;
#[cfg(feature = "ops")]
pub(crate) use foreign::END;
pub use foreign::Foreign;
pub use format::Format;
pub use layer::Layer;
use name::ImageName;
#[cfg(feature = "serde")]
pub(crate) use name::path_text;
pub use policy::{FilePolicy, Limits, MAX_DEPTH, Policy};

/// How to open an image and what it stands on.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Format of the active layer; `None` looks at its first bytes ([`Format::probe`]).
    pub format: Option<Format>,
    /// Format to assume for a backing file whose format is not recorded; `None` refuses it.
    pub backing_format: Option<Format>,
    /// Internal snapshot (id, then name) whose view to read instead of the current state.
    pub snapshot: Option<String>,
    /// Read images that another process may be changing (`qemu-img -U`): what is read may be
    /// neither the old nor the new state.
    pub force_share: bool,
    /// Files to open in place of others: wherever the chain comes to the first path, the second is
    /// opened, whatever `policy` says. For a base that was deleted while a process holds it open: its
    /// name, and `/proc/PID/fd/N`.
    pub instead: Vec<(PathBuf, PathBuf)>,
    /// What may be opened.
    pub policy: Policy,
    /// How much may be demanded.
    pub limits: Limits,
}

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
    /// `None` where another process may be changing the tables.
    tables: Option<TableCache>,
    decoders: decoder::Pool,
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

    /// Opens the image at `path` without what it stands on: to see what it holds itself. What it leaves
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
        let mut walk = Walk::start(path, options)?;
        while layers.len() < most
            && let Some(layer) = walk.next_layer()?
        {
            options.limits.check_use(&layer).map_err(|error| error.file(layer.path()))?;
            layers.push(layer.ready_for_data(&options.policy, options.force_share)?);
        }
        if let (Some(snapshot), false) = (&options.snapshot, layers.is_empty()) {
            let top = layers.remove(0).at_snapshot(snapshot)?;
            layers.insert(0, top);
        }
        Ok(Self::new(layers, options.force_share, TABLE_CACHE_BYTES))
    }

    fn new(layers: Vec<Layer>, force_share: bool, table_cache: usize) -> Self {
        let virtual_size = layers.first().map_or(0, Layer::virtual_size);
        let (id, decoders) = (ChainId::next(), decoder::Pool::default());
        let tables = (!force_share).then(|| TableCache::new(table_cache));
        Self(Arc::new(Inner { id, layers, virtual_size, force_share, tables, decoders }))
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

    /// Whether `path` is, under whatever name, one of the files that the chain is read from.
    pub(crate) fn contains_file(&self, path: &Path) -> bool {
        FileStorage::identity_of(path).is_some_and(|identity| {
            let storages =
                self.0.layers.iter().flat_map(|layer| [layer.storage(), layer.data_storage()]);
            storages.filter_map(|storage| storage.identity()).any(|own| own == identity)
        })
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

/// Opens what the image at `path` is backed by, down to the end of the chain, and forgets it again: an
/// image whose backing file is lost is not sound, whatever its own tables say. Neither those tables
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
    let area = crate::image::read_area(&file).map_err(|error| error.file(path))?;
    let holder = local_path(path)?;
    let mut walk = Walk {
        options,
        next: below(&area, &holder, options).map_err(|error| error.file(path)).transpose(),
        seen: HashSet::from([file.identity()]),
    };
    while walk.next_layer()?.is_some() {}
    Ok(file)
}

/// The file that a name given by a person means: a path, `file:` or `json:`. Looks at no file.
///
/// # Errors
/// As [`resolve_name`].
pub fn local_path(path: &Path) -> Result<PathBuf> {
    Ok(ImageName::from_user(path).map_err(|error| error.file(path))?.path)
}

/// The format of `file`, which was opened by the name `path`.
pub(crate) fn probe_format(
    file: &dyn Storage,
    path: &Path,
    format: Option<Format>,
) -> Result<Format> {
    let driver = ImageName::from_user(path)?.driver;
    match (format, driver) {
        (Some(format), _) => Ok(format),
        (None, Some(driver)) => driver.parse(),
        (None, None) => Format::probe_named(file, path),
    }
    .map_err(|error: Error| error.file(path))
}

/// The file that `name`, as it stands in the header of the image at `holder`, means: a path, `file:` or
/// `json:`, relative ones seen from the holder's directory. Looks at no file.
///
/// ```
/// use std::path::Path;
/// let base = qcow::chain::resolve_name(Path::new("base.qcow2"), Path::new("/images/top.qcow2"))?;
/// assert_eq!(base, Path::new("/images/base.qcow2"));
/// # Ok::<(), qcow::Error>(())
/// ```
///
/// # Errors
/// [`Unsupported`](crate::ErrorKind::Unsupported) or [`Denied`](crate::ErrorKind::Denied) if it is the
/// name of something that is not a local file; [`Corrupt`](crate::ErrorKind::Corrupt) if it is not
/// understood.
pub fn resolve_name(name: &Path, holder: &Path) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let name = ImageName::from_header(name.as_os_str().as_bytes())?;
    Ok(name.relative_to(holder))
}

/// How QEMU shows a backing file's name in full: names with a protocol as they are, relative ones
/// with the directory of the image at `holder`.
pub(crate) fn full_name(name: &Path, holder: &Path) -> PathBuf {
    ImageName::shown(name).map_or_else(|| name.to_path_buf(), |name| name.relative_to(holder))
}

/// Goes down a chain layer by layer, opening images but no data files.
pub(crate) struct Walk<'a> {
    options: &'a OpenOptions,
    /// An error here waits until somebody really asks for that layer.
    next: Option<Result<Next>>,
    seen: HashSet<Identity>,
}

struct Next {
    path: PathBuf,
    format: Wanted,
}

/// How the format of the next layer is known.
enum Wanted {
    Known(Format),
    Probe,
}

impl<'a> Walk<'a> {
    pub(crate) fn start(path: &Path, options: &'a OpenOptions) -> Result<Self> {
        let name = ImageName::from_user(path).map_err(|error| error.file(path))?;
        let format = match (options.format, &name.driver) {
            (Some(format), _) => Wanted::Known(format),
            (None, Some(driver)) => {
                Wanted::Known(driver.parse().map_err(|error: Error| error.file(path))?)
            }
            (None, None) => Wanted::Probe,
        };
        let stated = matches!(format, Wanted::Known(_));
        options.policy.check_stated(stated).map_err(|error| error.file(path))?;
        let next = Some(Ok(Next { path: name.path, format }));
        Ok(Self { options, next, seen: HashSet::new() })
    }

    /// Opens the next layer; `None` below the last.
    pub(crate) fn next_layer(&mut self) -> Result<Option<Layer>> {
        let Some(next) = self.next.take() else { return Ok(None) };
        let Next { path, format } = next?;
        let depth = self.seen.len();
        let most = self.options.limits.max_depth.clamp(1, MAX_DEPTH);
        if depth >= most {
            let remedy = match most {
                MAX_DEPTH => Remedy::FlattenLower,
                _ => Remedy::RaiseLimit(LimitName::Depth),
            };
            return Err(Error::limit(format!("the backing chain is deeper than {most} images"))
                .file(path)
                .hint(remedy));
        }
        let instead = self.options.instead.iter().find(|(name, _)| *name == path);
        let policy = &self.options.policy;
        let backing = &policy.backing;
        let rooted = matches!(backing, FilePolicy::InRoot(_));
        let file = match instead {
            Some((_, file)) if !rooted => FileStorage::open(file),
            Some((_, file)) => backing.open(file),
            None if depth == 0 => policy.open_active(&path),
            None => backing.open(&path),
        };
        let file = file.map_err(|error| missing_base(error, depth))?;
        if !self.seen.insert(file.identity()) {
            return Err(Error::corrupt("the backing chain comes back to this file").file(path));
        }
        let format = match format {
            Wanted::Known(format) => format,
            Wanted::Probe => {
                Format::probe_named(&file, &path).map_err(|error| error.file(&path))?
            }
        };
        if !self.options.force_share {
            lock_for_reading(&file, format).map_err(|error| error.file(&path))?;
        }
        let active = depth == 0;
        if active {
            policy.check_format(&file, format).map_err(|error| error.file(&path))?;
        }
        let layer = Layer::new(path, Arc::new(file), format)?;
        self.check(&layer, active).map_err(|error| error.file(layer.path()))?;
        let area = layer.image().map(crate::image::Image::area);
        let next = area.map_or(Ok(None), |area| below(area, layer.path(), self.options));
        self.next = next.map_err(|error| error.file(layer.path())).transpose();
        Ok(Some(layer))
    }

    fn check(&self, layer: &Layer, active: bool) -> Result<()> {
        let OpenOptions { policy, limits, .. } = self.options;
        if active {
            limits.check_size(layer.virtual_size())?;
            layer.image().map_or(Ok(()), |image| policy.check_names(image))?;
        }
        limits.check(layer)
    }
}

/// The backing file that the image at `holder` names in its header.
fn below(area: &HeaderArea, holder: &Path, options: &OpenOptions) -> Result<Option<Next>> {
    let Some(name) = area.backing_name.as_deref() else { return Ok(None) };
    let name =
        ImageName::from_header(name).map_err(|error| error.structure("backing file name"))?;
    let recorded = area
        .backing_format()
        .map(|format| String::from_utf8_lossy(format).into_owned())
        .or_else(|| name.driver.clone());
    let format = match (recorded, options.backing_format) {
        (Some(format), _) => {
            format.parse().map_err(|error: Error| error.structure("backing format"))?
        }
        (None, Some(format)) => format,
        (None, None) => return Err(unrecorded(&name)),
    };
    let path = name.relative_to(holder);
    Ok(Some(Next { path, format: Wanted::Known(format) }))
}

/// Guessing would let a guest choose what the host opens (trap 101).
fn unrecorded(name: &ImageName) -> Error {
    Error::denied(format!(
        "the format of the backing file '{}' is not recorded, and it is never guessed",
        Printable(&name.path.to_string_lossy())
    ))
    .structure("backing format")
    .hint(Remedy::StateBackingFormat)
}

/// A reader of a QCOW2 image relies on its tables. Other processes may write to raw bytes meanwhile, as in
/// QEMU, unless they keep them to themselves by an exclusive lock.
fn lock_for_reading(file: &FileStorage, format: Format) -> Result<()> {
    let forbids = match format {
        Format::Qcow2 => Access::WRITE | Access::RESIZE,
        Format::Raw => Access::empty(),
    };
    file.lock(Access::READ, forbids).map_err(|error| error.hint(Remedy::ShareRead))
}

fn missing_base(error: Error, depth: usize) -> Error {
    if error.kind() == ErrorKind::NotFound && depth > 0 {
        error.structure("backing file").hint(Remedy::RestoreBacking)
    } else {
        error
    }
}
