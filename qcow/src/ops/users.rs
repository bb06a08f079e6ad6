//! Who uses a file that is about to be replaced or overwritten, besides processes that have locked
//! it: loop devices, and images in its directory.

use std::ffi::OsStr;
use std::fs::ReadDir;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chain::{Format, WorkingDirectory, resolve_name};
use crate::image::Image;
use crate::io::{FileStorage, Identity, LoopDevice, OutputFile, Replace};
use crate::{Error, Escaped, Remedy, Result};

/// The most files of a directory that are looked at.
const MOST_FILES: usize = 10_000;

/// Starts the output that will become `target`, as [`OutputFile::create`] does. A file that is
/// replaced must not be in use, unless `replace` says that it may be: by a loop device, or as the
/// backing or data file of an image in its directory, either. Of that directory at most 10,000 files
/// are looked at, and only their headers; images elsewhere are not found.
///
/// # Errors
/// As [`OutputFile::create`]; [`InUse`](crate::ErrorKind::InUse), naming what uses the file.
pub fn begin(target: &Path, replace: Replace) -> Result<OutputFile> {
    let output = OutputFile::create(target, replace)?;
    check(&output, replace)?;
    Ok(output)
}

/// Checks that nothing uses the file that `output` replaces or overwrites.
pub(super) fn check(output: &OutputFile, replace: Replace) -> Result<()> {
    let unasked = matches!(replace, Replace::InUse | Replace::Overwrite);
    let Some(identity) = output.overwrites().filter(|_| !unasked) else {
        return Ok(());
    };
    let target = output.target();
    match user_of(target, identity).map_err(|error| error.file(target))? {
        None => Ok(()),
        Some(user) => {
            let message = format!("the file is in use: {user}");
            let error = Error::new(crate::ErrorKind::InUse, message).file(target);
            Err(error.hint(Remedy::ReplaceInUse))
        }
    }
}

/// Images in the directories of these files that have one of the files for their backing file, and are none of
/// them: they read as something else once such a file is changed. At most 10,000 files of a directory are looked
/// at; overlays elsewhere are not found.
///
/// # Errors
/// [`Io`](crate::ErrorKind::Io) if a directory cannot be listed.
pub(super) fn overlays_of(
    files: &[(PathBuf, Identity)],
    known: &[Identity],
) -> Result<Vec<PathBuf>> {
    let mut directories: Vec<&Path> = Vec::new();
    for (path, _) in files {
        let directory = directory_of(path);
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    let mut found = Vec::new();
    for directory in directories {
        let failed =
            |error| Error::io("could not list the images beside it", error).file(directory);
        for entry in entries(directory).map_err(failed)?.take(MOST_FILES) {
            let path = entry.map_err(failed)?.path();
            let own = FileStorage::identity_of(&path).filter(|own| !known.contains(own));
            let uses = |(_, identity): &(PathBuf, Identity)| {
                own.is_some_and(|own| own != *identity) && need_of(&path, *identity).is_some()
            };
            if files.iter().any(uses) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The directory that holds `path`.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// What uses the file, in words.
fn user_of(target: &Path, identity: Identity) -> Result<Option<String>> {
    Ok(match loop_device(identity)? {
        Some(device) => Some(format!("the loop device {} is backed by it", shown(&device))),
        None => dependent(target, identity)?,
    })
}

/// The entries of a directory.
fn entries(directory: &Path) -> std::io::Result<ReadDir> {
    loop {
        match std::fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn shown(path: &Path) -> String {
    Escaped(&path.to_string_lossy()).to_string()
}

fn unknown(what: &str, error: std::io::Error) -> Error {
    Error::io(format!("could not find out whether the file is in use: {what}"), error)
        .hint(Remedy::ReplaceInUse)
}

/// The loop device that is backed by the file.
fn loop_device(identity: Identity) -> Result<Option<PathBuf>> {
    let failed = |error| unknown("the list of loop devices", error);
    for device in LoopDevice::attached().map_err(failed)? {
        let device = device.map_err(failed)?;
        if FileStorage::identity_of(&device.backing_file) == Some(identity) {
            return Ok(Some(device.path));
        }
    }
    Ok(None)
}

/// What an image in the file's directory needs the file for, in words.
fn dependent(target: &Path, identity: Identity) -> Result<Option<String>> {
    let failed = |error| unknown("the list of images in its directory", error);
    let directory = directory_of(target);
    for entry in entries(directory).map_err(failed)?.take(MOST_FILES) {
        let entry = entry.map_err(failed)?;
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        if let Some(need) = need_of(&entry.path(), identity) {
            let name = shown(Path::new(&entry.file_name()));
            return Ok(Some(format!("the image '{name}' in its directory has it for {need}")));
        }
    }
    Ok(None)
}

/// What the image at `path` needs the file for. Nothing, as far as can be seen, if it cannot be read.
fn need_of(path: &Path, identity: Identity) -> Option<&'static str> {
    let storage = FileStorage::open_no_link(path).ok()?;
    if storage.identity() == identity || Format::probe(&storage).ok()? != Format::Qcow2 {
        return None;
    }
    let image = Image::open(Arc::new(storage)).ok()?;
    let area = image.area();
    let is_it = |name: &[u8]| {
        let name = Path::new(OsStr::from_bytes(name));
        let found = resolve_name(name, path, &WorkingDirectory::Own);
        found.is_ok_and(|found| FileStorage::identity_of(&found) == Some(identity))
    };
    match () {
        () if area.backing_name.as_deref().is_some_and(is_it) => Some("its backing file"),
        () if area.data_file_name().is_some_and(is_it) => Some("its data file"),
        () => None,
    }
}
