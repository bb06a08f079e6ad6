//! Changes which backing file an image names. Nothing but the header is read and written: what the guest
//! sees stays the same just if the new file has the same content as the old one.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::edit::Opened;
use crate::chain::{Chain, Files, Format, OpenOptions, local_path, resolve_name, walk};
use crate::format::{Autoclear, Extension, HeaderArea, MAX_BACKING_NAME};
use crate::image::first_cluster::{FirstCluster, editable};
use crate::image::update::Staged;
use crate::io::{FileStorage, Storage, WriteStorage};
use crate::setters::setters;
use crate::{Error, Result};

/// The longest name of a format that a header has room for.
const MAX_FORMAT: usize = 15;

/// A backing file, as the header is to name it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackingFile {
    /// Its name; relative ones start in the image's directory. At most 1,023 bytes.
    pub name: PathBuf,
    /// QEMU's name for its format, such as `qcow2` or `raw`.
    pub format: String,
}

impl BackingFile {
    /// The file of this name, in this format.
    ///
    /// ```
    /// let backing = qcow::ops::backing::BackingFile::new("base.qcow2", "qcow2");
    /// assert_eq!(backing.format, "qcow2");
    /// ```
    pub fn new(name: impl Into<PathBuf>, format: impl Into<String>) -> Self {
        Self { name: name.into(), format: format.into() }
    }
}

/// How to change the name of the backing file.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ChangeBackingOptions {
    /// Do not require that the new backing file and what it is backed by can be opened. That the
    /// image would become its own backing file is refused all the same, as far as that can be seen.
    pub unchecked: bool,
    /// Only look whether it can be done.
    pub dry_run: bool,
    /// How to open the new backing chain; the format in here is not used.
    pub open: OpenOptions,
}

setters!(ChangeBackingOptions {
    unchecked: bool,
    dry_run: bool,
    open: OpenOptions,
} into {});

/// What the header named, and what it names now.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ChangeBackingOutcome {
    /// The image.
    #[serde(serialize_with = "super::path_text")]
    pub filename: PathBuf,
    /// Name of the backing file before, as the header had it.
    pub old_backing: Option<String>,
    /// Its name now, or as it would be.
    pub new_backing: Option<String>,
    /// Whether nothing was written.
    pub dry_run: bool,
}

/// Makes the image at `path` name another backing file, or none, without looking at any content: for a
/// file that was renamed or moved, or whose format was not recorded. A crash leaves the old name or the
/// new one, each with its format. Other extensions of the header, also unknown ones, are kept.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (base, overlay) = (dir.path().join("base.qcow2"), dir.path().join("overlay.qcow2"));
/// use qcow::chain::Format;
/// use qcow::ops::backing::{BackingFile, ChangeBackingOptions, change_backing};
/// use qcow::ops::create::{Backing, CreateOptions, create};
///
/// create(&base, &CreateOptions::default().size(1 << 30))?;
/// create(&overlay, &CreateOptions::default().backing(Backing::new("base.qcow2", Format::Qcow2)))?;
/// std::fs::rename(&base, dir.path().join("template.qcow2"))?;
///
/// let renamed = BackingFile::new("template.qcow2", "qcow2");
/// change_backing(&overlay, Some(&renamed), &ChangeBackingOptions::default())?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) for an image that would be its own backing file, a format that is
/// missing, or an image whose raw data file is the whole disk; [`Limit`](crate::ErrorKind::Limit) for a name
/// that does not fit the first cluster; [`InUse`](crate::ErrorKind::InUse) if another process uses the image;
/// [`Corrupt`](crate::ErrorKind::Corrupt) if it is marked so; and, unless `unchecked`, what opening the new
/// backing chain raises.
pub fn change_backing(
    path: &Path,
    backing: Option<&BackingFile>,
    options: &ChangeBackingOptions,
) -> Result<ChangeBackingOutcome> {
    change(path, backing, options).map_err(|error| error.file(path))
}

fn change(
    path: &Path,
    backing: Option<&BackingFile>,
    options: &ChangeBackingOptions,
) -> Result<ChangeBackingOutcome> {
    let opened = Opened::file(path, options.dry_run)?;
    opened.check_qcow2(path, options.open.format, "backing file")?;
    let planned = planned(&opened.storage, backing)?;
    if let Some(backing) = backing {
        check_new_chain(&local_path(path)?, backing, options)?;
    }
    if let Some(target) = opened.target {
        planned.update.apply(&*target)?;
    }
    let text = |name: Option<&[u8]>| name.map(|name| String::from_utf8_lossy(name).into_owned());
    Ok(ChangeBackingOutcome {
        filename: path.into(),
        old_backing: text(planned.old.as_deref()),
        new_backing: text(backing.map(|backing| backing.name.as_os_str().as_bytes())),
        dry_run: options.dry_run,
    })
}

/// As [`change_backing`], for an image in a storage of yours, and without looking for the new backing file:
/// for who has it open already.
///
/// ```no_run
/// use std::path::Path;
/// use std::sync::Arc;
/// use qcow::io::WritableFile;
/// use qcow::ops::backing::{BackingFile, store_backing};
/// let image = Arc::new(WritableFile::open(Path::new("overlay.qcow2"))?);
/// store_backing(image, Some(&BackingFile::new("base.raw", "raw")))?;
/// # Ok::<(), qcow::Error>(())
/// ```
///
/// # Errors
/// As [`change_backing`] for the image itself.
pub fn store_backing(storage: Arc<dyn WriteStorage>, backing: Option<&BackingFile>) -> Result<()> {
    let read: Arc<dyn Storage> = Arc::clone(&storage) as _;
    planned(&read, backing)?.update.apply(&*storage)
}

/// Checks that [`store_backing`] can do it, and writes nothing.
///
/// # Errors
/// As [`store_backing`].
pub(super) fn check_backing(
    storage: Arc<dyn WriteStorage>,
    backing: Option<&BackingFile>,
) -> Result<()> {
    planned(&(storage as Arc<dyn Storage>), backing).map(drop)
}

struct Planned {
    update: Staged,
    /// The name that the header had.
    old: Option<Vec<u8>>,
}

fn planned(storage: &Arc<dyn Storage>, backing: Option<&BackingFile>) -> Result<Planned> {
    let mut area = editable(&**storage)?;
    let old = area.backing_name.clone();
    set_backing(&mut area, backing)?;
    let mut update = Staged::new(Arc::clone(storage));
    FirstCluster::stage(&mut update, &area)?;
    Ok(Planned { update, old })
}

/// Makes `area` name this backing file.
fn set_backing(area: &mut HeaderArea, backing: Option<&BackingFile>) -> Result<()> {
    let is_format = |extension: &Extension| matches!(extension, Extension::BackingFormat(_));
    area.extensions.0.retain(|extension| !is_format(extension));
    let Some(BackingFile { name, format }) = backing else {
        area.backing_name = None;
        return Ok(());
    };
    let name = name.as_os_str().as_bytes();
    if name.is_empty() || name.contains(&0) {
        return Err(Error::usage("the backing file needs a name"));
    }
    if name.len() as u64 > u64::from(MAX_BACKING_NAME) {
        let message = format!(
            "the backing file's name has {} bytes, expected at most {MAX_BACKING_NAME}",
            name.len()
        );
        return Err(Error::limit(message).structure("header"));
    }
    if format.is_empty() || format.len() > MAX_FORMAT || format.contains('\0') {
        let message = "the format of the backing file must be stated, in 1 to 15 bytes";
        return Err(Error::usage(message));
    }
    if area.header.autoclear.contains(Autoclear::DATA_FILE_RAW) {
        let message =
            "the raw data file is the whole disk, so the image cannot have a backing file";
        return Err(Error::usage(message));
    }
    area.extensions.0.insert(0, Extension::BackingFormat(format.as_bytes().to_vec()));
    area.backing_name = Some(name.to_vec());
    Ok(())
}

/// Checks that the new backing chain can be opened, and that the image is not part of it.
fn check_new_chain(
    image: &Path,
    backing: &BackingFile,
    options: &ChangeBackingOptions,
) -> Result<()> {
    let itself = || Err(Error::usage("the image would become a backing file of its own"));
    let name = match resolve_name(&backing.name, image, &options.open.working_directory) {
        Ok(name) => name,
        Err(_) if options.unchecked => return Ok(()),
        Err(error) => return Err(error),
    };
    let own = FileStorage::identity_of(image);
    if own.is_some() && FileStorage::identity_of(&name) == own {
        return itself();
    }
    let format = match backing.format.parse::<Format>() {
        Ok(format) => Some(format),
        Err(_) if options.unchecked => return Ok(()),
        Err(error) => return Err(error),
    };
    let open = OpenOptions { format, force_share: true, snapshot: None, ..options.open.clone() };
    if options.unchecked {
        // As far as it can be followed.
        let mut layers = walk(Files::new(&open), &name, &open).map_while(std::result::Result::ok);
        return match layers.any(|layer| Some(layer.file.identity()) == own) {
            true => itself(),
            false => Ok(()),
        };
    }
    let chain = Chain::open(&name, &open)?;
    if chain.contains_file(image) { itself() } else { Ok(()) }
}
