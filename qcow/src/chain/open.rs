//! Opens single files of a chain: one image without what is below it, or each file only to see that it is there.

use std::path::Path;

use super::name::ImageName;
use super::walk::{Files, LayerFound, Walk, walk};
use super::{Format, Layer, OpenOptions, Policy, data_file, probe_format};
use crate::image::{Purpose, read_header_area};
use crate::io::{Access, FileStorage};
use crate::{Error, ErrorKind, Remedy, Result};

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
/// What keeps the backing chain from being opened: as [`Chain::open`](super::Chain::open). A name, a format or a file that
/// is not for this crate to open ([`Unsupported`](crate::ErrorKind::Unsupported),
/// [`Denied`](crate::ErrorKind::Denied)) says nothing about whether it is there.
pub fn check_backing(path: &Path, options: &OpenOptions) -> Result<FileStorage> {
    let (file, format) = open_file(path, options.format, &options.policy)?;
    if format != Format::Qcow2 {
        return Ok(file);
    }
    let area = read_header_area(&file, Purpose::Check).map_err(|error| error.file(path))?;
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

/// Takes QEMU's locks of a reader. A reader of a QCOW2 image relies on its tables, so that no other process may write
/// to it; other processes may write to raw bytes meanwhile, as in QEMU, unless they keep them to themselves
/// by an exclusive lock.
pub(super) fn lock_for_reading(file: &FileStorage, format: Format) -> Result<()> {
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
