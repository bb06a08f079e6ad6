//! What the names of images mean: those that people give, and those that headers have.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::name::{ImageName, WorkingDirectory};
use super::{Format, data_file};
#[cfg(feature = "ops")]
use crate::format::HeaderArea;
use crate::io::Storage;
use crate::{Error, Result};

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
pub(super) fn check_only(only: Option<Format>, format: Format) -> Result<Format> {
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
    ImageName::from_header(name.as_os_str().as_bytes())
}

/// How QEMU shows a backing file's name in full: names with a protocol as they are, relative ones
/// with the directory of the image at `holder`.
pub(crate) fn full_name(name: &Path, holder: &Path) -> PathBuf {
    ImageName::shown(name).map_or_else(|| name.to_path_buf(), |name| name.beside(holder))
}
