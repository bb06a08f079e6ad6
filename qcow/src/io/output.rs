//! Outputs that appear under their name only when they are complete, and targets that exist and are
//! overwritten.
//!
//! A new file is built under a temporary name in the same directory, synced, and then renamed.
//! Dropping it before it is synced removes it. Only a kill that cannot be caught leaves the temporary
//! file, never anything under the final name. Once it is whole and synced it is never removed: where it
//! cannot have its name, the error says what its name is.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FallocateFlags};
use rustix::io::{Errno, retry_on_intr};
use tempfile::NamedTempFile;

use super::device::Existing;
use super::names::{is_mount_point, rename_to_free_name, sync_directory};
use super::replaced::{Replace, Replaced};
use super::{Identity, OpenedAs, direct};
use crate::exact::Exact;
use crate::{Error, ErrorKind, Remedy, Result};

/// A file being built (mode 0600 unless it replaces another one, whose rights it takes over), or a
/// block device or file being overwritten.
#[derive(Debug)]
pub struct OutputFile {
    place: Place,
    target: PathBuf,
    /// For what can go past the page cache.
    direct: Option<File>,
    written: AtomicU64,
    /// Nobody waits for the disk: what was written may be lost with the machine's power.
    unsynced: bool,
}

#[derive(Debug)]
enum Place {
    /// The directory is open from the start, so that nothing needs opening at the end.
    Temporary {
        file: NamedTempFile,
        directory: File,
        replace: Replace,
        replaced: Option<Box<Replaced>>,
    },
    Existing(Existing),
}

impl OutputFile {
    /// Starts the output that will become `target`. A file that is replaced is locked from here on,
    /// and its owner, group, mode, access control list, SELinux label and `user.*` attributes go to
    /// the new one.
    ///
    /// # Errors
    /// [`Exists`](crate::ErrorKind::Exists) if `target` exists and must not be replaced,
    /// [`Usage`](crate::ErrorKind::Usage) if it is something that cannot be, such as a mount point;
    /// [`InUse`](crate::ErrorKind::InUse) if a process uses it; [`Io`](crate::ErrorKind::Io) if its directory cannot be written, or if what
    /// is there cannot be looked at.
    pub fn create(target: &Path, replace: Replace) -> Result<Self> {
        if replace == Replace::Overwrite {
            let existing = Existing::overwrite(target).map_err(|error| error.file(target))?;
            return Ok(Self::new(Place::Existing(existing), target));
        }
        let (directory, name) = split(target)?;
        let mut replaced = replaced(target, replace).map_err(|error| error.file(target))?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        // Long names: the temporary one must fit the file system's limit as well.
        if prefix.len() > 200 {
            prefix = ".qcowtool.".into();
        }
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".tmp")
            .tempfile_in(directory)
            // `tempfile` puts the temporary path into its errors, which would only confuse people.
            .map_err(|error| {
                let existing =
                    replaced.is_some() && error.kind() != std::io::ErrorKind::StorageFull;
                let error = Error::io("could not create it", error.kind().into()).file(target);
                if existing { error.hint(Remedy::WriteInto) } else { error }
            })?;
        if let Some(replaced) = &mut replaced {
            replaced.hand_over(temporary.as_file()).map_err(|error| error.file(target))?;
        }
        let directory = File::open(directory)
            .map_err(|error| Error::io("could not open its directory", error).file(target))?;
        let replaced = replaced.map(Box::new);
        Ok(Self::new(Place::Temporary { file: temporary, directory, replace, replaced }, target))
    }

    /// Opens the block device at `target`, to be overwritten from its start. `blank` says that it
    /// holds nothing but zeros. A device has no other name to be built under: until
    /// [`publish`](Self::publish) it holds neither what it held nor the new image.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if it is no block device, [`InUse`](crate::ErrorKind::InUse)
    /// if it is in use, [`Io`](crate::ErrorKind::Io).
    pub(crate) fn device(target: &Path, blank: bool) -> Result<Self> {
        let device = Existing::device(target, blank).map_err(|error| error.file(target))?;
        Ok(Self::new(Place::Existing(device), target))
    }

    /// As [`device`](Self::device), for a device or a regular file that exists.
    ///
    /// # Errors
    /// As [`device`](Self::device).
    pub(crate) fn existing(target: &Path, blank: bool) -> Result<Self> {
        let file = Existing::file_or_device(target, blank).map_err(|error| error.file(target))?;
        Ok(Self::new(Place::Existing(file), target))
    }

    /// The regular file that is replaced or overwritten, if there is one.
    pub(crate) fn overwrites(&self) -> Option<Identity> {
        match &self.place {
            Place::Temporary { replaced, .. } => {
                replaced.as_ref().map(|replaced| replaced.identity)
            }
            Place::Existing(file) => (file.kind == OpenedAs::File).then_some(file.identity),
        }
    }

    fn new(place: Place, target: &Path) -> Self {
        let (target, written) = (target.to_path_buf(), AtomicU64::new(0));
        Self { place, target, direct: None, written, unsynced: false }
    }

    /// Writes past the page cache from now on what starts and ends at blocks.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the file system cannot.
    pub(crate) fn write_direct(&mut self) -> Result<()> {
        let direct =
            direct::reopened(self.file(), true).map_err(|error| error.file(&self.target))?;
        self.direct = Some(direct);
        Ok(())
    }

    /// Whether what has not been written reads as zeros.
    pub(crate) fn is_blank(&self) -> bool {
        match &self.place {
            Place::Temporary { .. } => true,
            Place::Existing(existing) => existing.blank,
        }
    }

    /// The length, if it is that of a device or file that is overwritten and cannot be changed.
    pub(crate) fn fixed_len(&self) -> Option<u64> {
        match &self.place {
            Place::Temporary { .. } => None,
            Place::Existing(existing) => (!existing.emptied).then_some(existing.len),
        }
    }

    /// Leaves it to the system when what is written gets to the disk.
    pub(crate) fn without_sync(&mut self) {
        self.unsynced = true;
    }

    /// Makes sure that `len` bytes at `offset`, which have not been written, read as zeros.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the target and the offset.
    pub(crate) fn blank(&self, offset: u64, len: u64) -> Result<()> {
        match &self.place {
            Place::Existing(existing) if !existing.blank => existing
                .zero(offset, len)
                .map_err(|error| self.failed("could not zero", error).host_offset(offset)),
            _ => Ok(()),
        }
    }

    /// Makes sure that what was written reaches the disk before what is written from now on.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the target.
    pub(crate) fn barrier(&self) -> Result<()> {
        match &self.place {
            // No other process sees the file before it has its name.
            Place::Temporary { .. } => Ok(()),
            Place::Existing(_) if self.unsynced => Ok(()),
            Place::Existing(existing) => {
                existing.file.sync_data().map_err(|error| self.failed("could not sync", error))
            }
        }
    }

    /// The file's final name.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The name under which it is built.
    pub fn temporary_path(&self) -> &Path {
        match &self.place {
            Place::Temporary { file, .. } => file.path(),
            Place::Existing(_) => &self.target,
        }
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the target and the offset.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        if let Place::Existing(existing) = &self.place {
            existing.touch();
        }
        let past_cache = self.direct.as_ref().map_or(0, |_| direct::aligned(bytes, offset));
        let (head, tail) = bytes.split_at(past_cache);
        let rest = offset.plus(head.len() as u64)?;
        self.direct
            .as_ref()
            .map_or(Ok(()), |direct| direct.write_all_at(head, offset))
            .and_then(|()| self.file().write_all_at(tail, rest))
            .map_err(|error| self.failed("could not write", error).host_offset(offset))?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Makes the file `len` bytes long; new bytes are a hole.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the target.
    pub fn set_len(&self, len: u64) -> Result<()> {
        if let Place::Existing(existing) = &self.place
            && !existing.emptied
        {
            return if len <= existing.len {
                Ok(())
            } else {
                Err(too_small(len, existing).file(&self.target))
            };
        }
        self.file().set_len(len).map_err(|error| self.failed("could not set the length", error))
    }

    /// Reserves space for `len` bytes at `offset` without changing what they read as.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the target.
    pub fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        retry_on_intr(|| rustix::fs::fallocate(self.file(), FallocateFlags::empty(), offset, len))
            .map_err(|error| self.failed("could not reserve space", error.into()))
    }

    /// Syncs the file, gives it its name and syncs the directory. Returns warnings: what could not
    /// be kept of a file that was replaced, and what is not durable.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io); [`Usage`](crate::ErrorKind::Usage) if something took the name
    /// meanwhile and must not be replaced. If the file itself cannot be synced, it is removed. If it
    /// cannot have its name it stays under its temporary one, which the error names. If only the
    /// directory cannot be synced it has its name, which may be lost in a power cut.
    pub fn publish(self) -> Result<Vec<String>> {
        self.sync()?;
        self.give_name().map_err(Unnamed::into_error)
    }

    /// Makes sure that all that was written stays, whatever happens to the machine.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the target.
    pub(crate) fn sync(&self) -> Result<()> {
        if self.unsynced {
            return Ok(());
        }
        let failed = |error| self.abandoned(self.failed("could not sync", error));
        self.file().sync_all().map_err(failed)
    }

    /// Gives the file, which has been synced, its name, and syncs the directory.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub(crate) fn give_name(self) -> Result<Vec<String>, Unnamed> {
        let Self { place, target, .. } = self;
        let Place::Temporary { file, directory, replace, mut replaced } = place else {
            return Ok(Vec::new());
        };
        let finished = replaced.as_mut().map(|replaced| replaced.finish(file.as_file()));
        let named = finished.unwrap_or_else(|| Ok(Vec::new())).and_then(|warnings| {
            rename(&file, &directory, &target, (replace, replaced.as_ref().map(|old| old.identity)))
                .map(|()| warnings)
        });
        let mut warnings = match named {
            Ok(warnings) => warnings,
            Err(error) => return Err(Unnamed { error: error.file(target), kept: kept(file) }),
        };
        // It has another name now, so that there is nothing to remove.
        let _ = kept(file);
        match sync_directory(&directory) {
            Ok(true) => {}
            Ok(false) => warnings.push(format!(
                "{}: the file system cannot sync directories: a power cut soon after this may undo \
                 the file's name",
                crate::Escaped(&target.to_string_lossy())
            )),
            Err(error) => {
                let error = Error::io("could not sync the directory", error.into())
                    .file(&target)
                    .hint("the new file is whole and has its name, but a power cut may undo that");
                return Err(Unnamed { error, kept: None });
            }
        }
        Ok(warnings)
    }

    /// Keeps the file, which has been synced, under its temporary name. Returns that name.
    pub(crate) fn keep(self) -> Option<PathBuf> {
        match self.place {
            Place::Temporary { file, .. } => kept(file),
            Place::Existing(_) => None,
        }
    }

    /// Adds to an error that ends the work on a target that exists that it is neither what it was nor
    /// whole, if that is so.
    pub(crate) fn abandoned(&self, error: Error) -> Error {
        match &self.place {
            Place::Existing(existing) if existing.is_touched() => error.remark(&format!(
                " (the {} '{}' is partly overwritten)",
                existing.noun(),
                crate::Escaped(&self.target.to_string_lossy())
            )),
            _ => error,
        }
    }

    /// The open file, for what only the system can do with it.
    pub(crate) fn file(&self) -> &File {
        match &self.place {
            Place::Temporary { file, .. } => file.as_file(),
            Place::Existing(existing) => &existing.file,
        }
    }

    /// What went wrong with the file, and what helps if there is no space.
    pub(crate) fn failed(&self, what: &str, error: std::io::Error) -> Error {
        let too_large = error.kind() == std::io::ErrorKind::FileTooLarge;
        let error = Error::io(what, error).file(&self.target);
        match error.kind() {
            ErrorKind::NoSpace => error.hint(Remedy::FreeSpace),
            _ if too_large => error.hint(
                "the file system, or this process's limit for the size of files, allows less",
            ),
            _ => error,
        }
    }
}

/// Directory and file name of `target`.
fn split(target: &Path) -> Result<(&Path, &std::ffi::OsStr)> {
    let name = target
        .file_name()
        .ok_or_else(|| Error::new(ErrorKind::Usage, "a file name is needed").file(target))?;
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((directory, name))
}

fn too_small(needed: u64, existing: &Existing) -> Error {
    let (noun, there) = (existing.noun(), existing.len);
    Error::usage(format!("the image needs {needed} bytes, and the {noun} has {there}"))
        .hint(format!("choose a larger {noun}"))
}

/// What is at `target` and will be replaced, if anything is there.
fn replaced(target: &Path, replace: Replace) -> Result<Option<Replaced>> {
    let status = match target.symlink_metadata() {
        Ok(status) => status,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("could not look at what is there", error)),
    };
    if status.file_type().is_block_device() {
        return Err(
            Error::usage("a block device, which cannot be replaced").hint(Remedy::OverwriteDevice)
        );
    }
    if status.is_file() && is_mount_point(target) {
        return Err(
            Error::usage("a mount point, which no file can be renamed to").hint(Remedy::WriteInto)
        );
    }
    // For a directory, leave to replace it would not help.
    if replace == Replace::Never && !status.is_dir() {
        return Err(exists(target));
    }
    if !status.is_file() {
        return Err(Error::usage("not a regular file, so it cannot be replaced")
            .hint("give the name of a file to create"));
    }
    Replaced::open(target, replace).map(Some)
}

/// Gives the temporary file its name. What was not there when the work began is not replaced.
fn rename(
    file: &NamedTempFile,
    directory: &File,
    target: &Path,
    (replace, replaced): (Replace, Option<Identity>),
) -> Result<()> {
    let (old, new) = (split(file.path())?.1, split(target)?.1);
    let directory = directory.as_fd();
    let failed = |error: Errno| match error {
        Errno::EXIST => exists(target),
        error => Error::io("could not rename the finished file to its name", error.into()),
    };
    let status = || rustix::fs::statat(directory, new, AtFlags::SYMLINK_NOFOLLOW);
    match (replace, replaced) {
        (Replace::Never, _) | (Replace::Unused, None) => {
            rename_to_free_name((directory, old), (directory, new)).map_err(failed)
        }
        (Replace::Unused, Some(known))
            if retry_on_intr(status)
                .is_ok_and(|now| (now.st_dev, now.st_ino) != (known.device(), known.inode())) =>
        {
            Err(Error::usage("another file has taken the name meanwhile"))
        }
        _ => retry_on_intr(|| rustix::fs::renameat(directory, old, directory, new)).map_err(failed),
    }
}

/// Its name from now on. Nothing can be done about a file that cannot be kept.
fn kept(file: NamedTempFile) -> Option<PathBuf> {
    file.keep().ok().map(|(_, path)| path)
}

/// A file that is whole and on the disk, and has not its name for certain.
#[derive(Debug)]
pub(crate) struct Unnamed {
    pub(crate) error: Error,
    /// The name that it has instead.
    pub(crate) kept: Option<PathBuf>,
}

impl Unnamed {
    /// One error that names what is kept.
    pub(crate) fn into_error(self) -> Error {
        let Self { error, kept } = self;
        match kept {
            Some(path) => error.remark(&format!(
                " (the finished file is kept as '{}')",
                crate::Escaped(&path.to_string_lossy())
            )),
            None => error,
        }
    }
}

fn exists(target: &Path) -> Error {
    Error::new(ErrorKind::Exists, "the file exists already").file(target).hint(Remedy::Replace)
}
