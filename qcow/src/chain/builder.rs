//! Chains of storages that the caller opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Chain, Format, Layer, Limits, MAX_DEPTH, TABLE_CACHE_BYTES, lock_for_reading};
use crate::io::Storage;
use crate::{Error, Result};

/// Puts a chain together from storages, the active layer first: from descriptors that another process
/// passed, from memory, from storages of your own. Nothing is opened by name: what the images call their
/// backing and data files does not matter, but that they have some does.
///
/// ```
/// use std::sync::Arc;
/// use qcow::chain::{Chain, Format};
/// use qcow::format::GuestOffset;
/// use qcow::io::{FileStorage, MemoryStorage, Storage};
///
/// // A descriptor, however it came here.
/// let file = tempfile::tempfile()?;
/// file.set_len(1 << 20)?;
/// let disk: Arc<dyn Storage> = Arc::new(FileStorage::from_file(file)?);
/// let chain = Chain::builder().layer("fd 3", disk, Format::Raw).open()?;
/// assert_eq!(chain.virtual_size(), 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ChainBuilder {
    layers: Vec<Source>,
    /// A data file without a layer that it could belong to.
    stray: bool,
    snapshot: Option<String>,
    #[cfg(feature = "ops")]
    snapshot_index: Option<usize>,
    limits: Limits,
    force_share: bool,
    partial: bool,
    any_backing: bool,
    table_cache: usize,
}

#[derive(Debug)]
struct Source {
    name: PathBuf,
    storage: Arc<dyn Storage>,
    format: Format,
    data: Option<(PathBuf, Arc<dyn Storage>)>,
}

impl Default for ChainBuilder {
    fn default() -> Self {
        Self {
            layers: Vec::new(),
            stray: false,
            snapshot: None,
            #[cfg(feature = "ops")]
            snapshot_index: None,
            limits: Limits::default(),
            force_share: false,
            partial: false,
            any_backing: false,
            table_cache: TABLE_CACHE_BYTES,
        }
    }
}

impl Chain {
    /// Starts a chain of storages.
    pub fn builder() -> ChainBuilder {
        ChainBuilder::default()
    }
}

impl Chain {
    /// The chain of an image, its data file and the layers of `backing`. Nothing is locked, because all of it is
    /// open and locked already; changes are not noticed.
    ///
    /// # Errors
    /// As [`ChainBuilder::open`].
    pub(crate) fn over(
        (path, storage, format): (&Path, Arc<dyn Storage>, Format),
        data_file: Option<Arc<dyn Storage>>,
        backing: Option<&Self>,
    ) -> Result<Self> {
        let mut builder = Self::builder().force_share(true).layer(path, storage, format);
        if let Some(data_file) = data_file {
            builder = builder.data_file(path, data_file);
        }
        builder.layers_of(backing).any_backing().open()
    }

    /// The layers of this chain above those of `lower`. As with [`over`](Self::over), nothing is locked.
    ///
    /// # Errors
    /// As [`ChainBuilder::open`].
    pub(crate) fn above(&self, lower: &Self) -> Result<Self> {
        let builder = Self::builder().force_share(true).layers_of(Some(self));
        builder.layers_of(Some(lower)).any_backing().open()
    }
}

impl ChainBuilder {
    /// Adds the layers of a chain that is open.
    fn layers_of(mut self, chain: Option<&Chain>) -> Self {
        for layer in chain.map(Chain::layers).unwrap_or_default() {
            self = self.layer(layer.path(), layer.storage().clone(), layer.format());
            if layer.image().is_some_and(crate::image::Image::has_data_file) {
                self = self.data_file(layer.data_path(), layer.data_storage().clone());
            }
        }
        self
    }

    /// Takes the layers as they are given, whatever the images say of their backing files.
    fn any_backing(mut self) -> Self {
        self.any_backing = true;
        self
    }

    /// Adds the next layer below those added so far, the active one being the first. `name` is for
    /// messages. The format is what you say it is, whatever the image above has recorded.
    #[must_use]
    pub fn layer(
        mut self,
        name: impl Into<PathBuf>,
        storage: Arc<dyn Storage>,
        format: Format,
    ) -> Self {
        self.layers.push(Source { name: name.into(), storage, format, data: None });
        self
    }

    /// Gives the last layer added its external data file.
    #[must_use]
    pub fn data_file(mut self, name: impl Into<PathBuf>, storage: Arc<dyn Storage>) -> Self {
        match self.layers.last_mut() {
            Some(layer) => layer.data = Some((name.into(), storage)),
            None => self.stray = true,
        }
        self
    }

    /// Reads the view of this internal snapshot (id, or else name) of the active layer.
    #[must_use]
    pub fn snapshot(mut self, id_or_name: impl Into<String>) -> Self {
        self.snapshot = Some(id_or_name.into());
        self
    }

    /// As [`snapshot`](Self::snapshot), the one with this place in the table.
    #[cfg(feature = "ops")]
    #[must_use]
    pub(crate) fn snapshot_index(mut self, index: usize) -> Self {
        self.snapshot_index = Some(index);
        self
    }

    /// How much the images may demand.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Reads images that another process may be changing: takes no image locks, caches no tables, and does
    /// not notice changes.
    #[must_use]
    pub fn force_share(mut self, force_share: bool) -> Self {
        self.force_share = force_share;
        self
    }

    /// Allows the last layer to name a backing file that is not given: what it leaves to it is
    /// [`Unallocated`](crate::extent::ExtentKind::Unallocated), and reads as zeros.
    #[must_use]
    pub fn partial(mut self, partial: bool) -> Self {
        self.partial = partial;
        self
    }

    /// Bytes of L1 and L2 tables to cache for random reads, in place of [`TABLE_CACHE_BYTES`].
    #[must_use]
    pub fn table_cache(mut self, bytes: usize) -> Self {
        self.table_cache = bytes;
        self
    }

    /// Opens the images, and locks those in files as [`Chain::open`] does: QCOW2 images against writers.
    ///
    /// # Errors
    /// As [`Chain::open`]; [`Usage`](crate::ErrorKind::Usage) if there is no layer, if an image that has no
    /// backing file has a layer below it, if one that has is the last, or if a data file is missing or
    /// not needed.
    pub fn open(self) -> Result<Chain> {
        if self.layers.is_empty() || self.stray {
            return Err(Error::usage("a chain needs a layer, and a data file belongs to one"));
        }
        let most = self.limits.max_depth.clamp(1, MAX_DEPTH);
        if self.layers.len() > most {
            return Err(Error::limit(format!("the backing chain is deeper than {most} images")));
        }
        let last = self.layers.len().saturating_sub(1);
        let mut layers = Vec::new();
        for (depth, source) in self.layers.into_iter().enumerate() {
            let name = source.name.clone();
            let layer = open_layer(source, self.force_share, &self.limits, depth == 0)
                .and_then(|layer| {
                    if !self.any_backing {
                        check_place(&layer, depth == last, self.partial)?;
                    }
                    Ok(layer)
                })
                .map_err(|error| error.file(name))?;
            let layer = match &self.snapshot {
                Some(snapshot) if depth == 0 => layer.at_snapshot(snapshot)?,
                _ => layer,
            };
            #[cfg(feature = "ops")]
            let layer = match self.snapshot_index {
                Some(index) if depth == 0 => layer.at_snapshot_index(index)?,
                _ => layer,
            };
            layers.push(layer);
        }
        Ok(Chain::new(layers, self.force_share, self.table_cache))
    }
}

fn open_layer(source: Source, force_share: bool, limits: &Limits, active: bool) -> Result<Layer> {
    let Source { name, storage, format, data } = source;
    let data_storage = data.as_ref().map(|(_, storage)| (storage, Format::Raw));
    for (storage, format) in std::iter::once((&storage, format)).chain(data_storage) {
        if let (false, Some(file)) = (force_share, storage.as_file()) {
            lock_for_reading(file, format)?;
        }
    }
    let layer = Layer::new(name, storage, format)?;
    if active {
        limits.check_size(layer.virtual_size())?;
    }
    limits.check(&layer)?;
    limits.check_use(&layer)?;
    layer.ready_with(data)
}

/// Checks that there is a layer below just if this one asks for it: bytes of a backing file that is not
/// there would be taken for zeros.
fn check_place(layer: &Layer, last: bool, partial: bool) -> Result<()> {
    let named = layer.image().and_then(|image| image.area().backing_name.as_deref());
    match (named, last) {
        (Some(name), true) if !partial => {
            let name = String::from_utf8_lossy(name);
            Err(Error::usage(format!(
                "the image has the backing file '{}', and no layer is given below it",
                crate::Escaped(&name)
            ))
            .hint("add its layer, or ask for a partial chain"))
        }
        (None, false) => {
            Err(Error::usage("the image has no backing file, and a layer is given below it"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
