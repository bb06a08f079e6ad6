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
mod open;
mod options;
mod parse;
mod policy;
mod resolve;
mod stated;
mod view;
mod walk;
mod warning;
mod writable;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::image::{TableCache, Tables};
use crate::io::{FileStorage, Identity};

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
pub use name::WorkingDirectory;
#[cfg(feature = "serde")]
pub(crate) use name::{path_text, path_texts};
pub use open::check_backing;
use open::lock_for_reading;
pub(crate) use open::{layer_of, open_active_layer, open_file};
pub use options::OpenOptions;
pub use policy::{FilePolicy, Limits, MAX_DEPTH, Policy};
use resolve::check_only;
#[cfg(feature = "ops")]
pub(crate) use resolve::{data_file_of, data_file_path};
pub use resolve::{depends_on_process, local_path, resolve_name};
pub(crate) use resolve::{full_name, probe_format};
pub use stated::{BackingFormats, FormatSource};
pub use walk::{Broken, Files, LayerFound, Open, Walk, walk};
pub use warning::Warning;
pub(crate) use writable::open_writable;
#[cfg(feature = "ops")]
pub(crate) use writable::open_writable_alone;

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
