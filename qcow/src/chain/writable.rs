//! Opens an image for writing, and what is below it for reading.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::name::ImageName;
use super::walk::{Files, LayerFound, Walk};
use super::{
    Chain, Format, OpenOptions, Policy, TABLE_CACHE_BYTES, Walked, data_file, layer_of, open_file,
};
use crate::format::HeaderArea;
use crate::image::read_header_area;
use crate::io::{Storage, WritableFile, WriteStorage};
use crate::{Error, Remedy, Result};

/// An image open for writing.
#[derive(Debug)]
pub(crate) struct Writable {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) file: WritableFile,
    /// Its external data file.
    pub(crate) data: Option<Arc<dyn WriteStorage>>,
    /// Its backing chain.
    pub(crate) backing: Option<Chain>,
}

/// Opens the image at `path`: itself and its data file for writing, locked as QEMU locks them, its backing
/// chain for reading.
///
/// # Errors
/// As [`Chain::open`]; [`InUse`](crate::ErrorKind::InUse) if another process uses the image;
/// [`Usage`](crate::ErrorKind::Usage) if its format would have to be guessed as raw, or if it is to be
/// written to without all that it is backed by.
pub(crate) fn open_writable(path: &Path, options: &OpenOptions) -> Result<Writable> {
    open(path, options, true).map_err(|error| error.file(path))
}

/// As [`open_writable`], without what it is backed by: for what does not depend on that.
///
/// # Errors
/// As [`open_writable`].
#[cfg(feature = "ops")]
pub(crate) fn open_writable_alone(path: &Path, options: &OpenOptions) -> Result<Writable> {
    open(path, options, false).map_err(|error| error.file(path))
}

fn open(path: &Path, options: &OpenOptions, with_backing: bool) -> Result<Writable> {
    if options.snapshot.is_some() || options.force_share {
        return Err(Error::usage(
            "a snapshot, or an image that another process uses, is only read",
        ));
    }
    let name = ImageName::from_user(path)?;
    let (looked, format) = open_file(path, options.format, &options.policy)?;
    let guessed = options.format.is_none() && name.driver.is_none() && !name.plain_file;
    if guessed && format == Format::Raw {
        // A guest can write a header to a raw disk, which would then be another one's.
        return Err(Error::usage(
            "the format of a raw disk must be stated before it is written to",
        )
        .hint(Remedy::StateFormat));
    }
    let file = WritableFile::open(&name.path)?;
    if file.identity() != looked.identity().into() {
        let replaced = std::io::ErrorKind::NotFound.into();
        return Err(Error::io("another file has taken its place", replaced));
    }
    let path = name.path.clone();
    let mut opened = Writable { path, format, file, data: None, backing: None };
    if format == Format::Raw {
        return Ok(opened);
    }
    let area = read_header_area(&opened.file, crate::image::Purpose::Read)?;
    options.limits.check_size(area.header.virtual_size())?;
    opened.data = open_data_file(&name, &area, &options.policy)?;
    if !with_backing {
        return Ok(opened);
    }
    let mut active = LayerFound::active(&name, looked, area);
    let mut walk = Walk::below_layer(Files::new(options), &mut active, &name.below, options);
    let mut layers = Vec::new();
    for found in walk.by_ref() {
        let found = found.map_err(|broken| broken.error)?;
        let layer = layer_of(found, options)?;
        options.limits.check_use(&layer).map_err(|error| error.file(layer.path()))?;
        layers.push(layer.ready_for_data(&options.policy, false)?);
    }
    walk.check_used()?;
    let left_out = active.backing_left_out
        || layers
            .last()
            .and_then(|lowest| lowest.image())
            .is_some_and(|image| image.area().backing_name.is_some());
    if left_out {
        return Err(Error::usage(
            "a backing file is left out: what is written would be mixed with zeros in its place",
        ));
    }
    if !layers.is_empty() {
        let chain = Chain::walked(layers, false, TABLE_CACHE_BYTES, Walked::default());
        opened.backing = Some(chain);
    }
    Ok(opened)
}

fn open_data_file(
    image: &ImageName,
    area: &HeaderArea,
    policy: &Policy,
) -> Result<Option<Arc<dyn WriteStorage>>> {
    let place = data_file::place(area, &image.path, image.data_file.as_deref())?;
    let Some(path) = place else { return Ok(None) };
    let allowed = policy.data_file.open(&path).map_err(data_file::named)?;
    let file = WritableFile::open(&path).map_err(|error| data_file::named(error.file(&path)))?;
    if file.identity() != Some(allowed.identity()) {
        let replaced = std::io::ErrorKind::NotFound.into();
        return Err(Error::io("another file has taken its place", replaced).file(&path));
    }
    Ok(Some(Arc::new(file)))
}
