//! Where the external data file of an image is: where its name says, or else its header.

use std::path::{Path, PathBuf};

use super::name::ImageName;
use crate::format::HeaderArea;
use crate::{Error, Result};

/// Where the data file of the image at `image` is, `stated` being what the name says by which that was opened; `None` if
/// the guest's data is in the image itself.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if the name says where it is, and the image has none;
/// [`Corrupt`](crate::ErrorKind::Corrupt) if nothing says where it is.
pub(super) fn place(
    area: &HeaderArea,
    image: &Path,
    stated: Option<&Path>,
) -> Result<Option<PathBuf>> {
    let Some(stated) = stated else {
        // Never a protocol, whatever it looks like (trap 113).
        let beside = |name| ImageName::data_file(name).beside(image);
        return Ok(area.data_file()?.map(beside));
    };
    if !area.has_data_file()? {
        let message = "the image has no external data file, and its name says where one is";
        return Err(Error::usage(message).structure("data file"));
    }
    Ok(Some(stated.to_path_buf()))
}

/// An error about a data file.
pub(super) fn named(error: Error) -> Error {
    error.structure("data file")
}
