//! Outputs that appear under their name only when they are complete.
//!
//! The file is built under a temporary name in the same directory, synced, and then renamed.
//! Dropping it before [`publish`](OutputFile::publish) removes it. Only a kill that cannot be
//! caught leaves the temporary file, never anything under the final name.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::retry_on_intr;
use tempfile::NamedTempFile;

use super::device::Device;
use super::direct;
use crate::{Error, ErrorKind, Remedy, Result};

/// A file being built (mode 0600; who else may read it is for its owner to decide), or a block device
/// being overwritten.
#[derive(Debug)]
pub struct OutputFile {
    place: Place,
    target: PathBuf,
    /// For what can go past the page cache.
    direct: Option<File>,
    written: AtomicU64,
}

#[derive(Debug)]
enum Place {
    /// The directory is open from the start, so that nothing needs opening at the end.
    Temporary {
        file: NamedTempFile,
        directory: File,
        replace: bool,
    },
    Device(Device),
}

impl OutputFile {
    /// Starts the output that will become `target`.
    ///
    /// # Errors
    /// [`Exists`](crate::ErrorKind::Exists) if `target` exists and `replace` is false,
    /// [`Usage`](crate::ErrorKind::Usage) if it is something that must not be replaced; [`Io`](crate::ErrorKind::Io) if its directory cannot
    /// be written.
    pub fn create(target: &Path, replace: bool) -> Result<Self> {
        let (directory, name) = split(target)?;
        match target.symlink_metadata() {
            Ok(status) if status.file_type().is_block_device() => {
                return Err(Error::usage("a block device, which cannot be replaced")
                    .file(target)
                    .hint(Remedy::OverwriteDevice));
            }
            Ok(_) if !replace => return Err(exists(target)),
            Ok(status) if !status.is_file() => {
                return Err(Error::usage("not a regular file, so it cannot be replaced")
                    .file(target)
                    .hint("give the name of a file to create"));
            }
            _ => {}
        }
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
            .map_err(|error| Error::io("could not create it", error.kind().into()).file(target))?;
        let directory = File::open(directory)
            .map_err(|error| Error::io("could not open its directory", error).file(target))?;
        Ok(Self::new(Place::Temporary { file: temporary, directory, replace }, target))
    }

    /// Opens the block device at `target`, to be overwritten from its start. `blank` says that it
    /// holds nothing but zeros. A device has no other name to be built under: until
    /// [`publish`](Self::publish) it holds neither what it held nor the new image.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if it is no block device, [`Denied`](crate::ErrorKind::Denied)
    /// if it is in use, [`Io`](crate::ErrorKind::Io).
    pub(crate) fn device(target: &Path, blank: bool) -> Result<Self> {
        let device = Device::open(target, blank).map_err(|error| error.file(target))?;
        Ok(Self::new(Place::Device(device), target))
    }

    fn new(place: Place, target: &Path) -> Self {
        let (target, written) = (target.to_path_buf(), AtomicU64::new(0));
        Self { place, target, direct: None, written }
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
            Place::Device(device) => device.blank,
        }
    }

    /// The length of the device, if it is one.
    pub(crate) fn device_len(&self) -> Option<u64> {
        match &self.place {
            Place::Temporary { .. } => None,
            Place::Device(device) => Some(device.len),
        }
    }

    /// Makes sure that `len` bytes at `offset`, which have not been written, read as zeros.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the target and the offset.
    pub(crate) fn blank(&self, offset: u64, len: u64) -> Result<()> {
        match &self.place {
            Place::Device(device) if !device.blank => device
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
            // Nobody sees the file before it has its name.
            Place::Temporary { .. } => Ok(()),
            Place::Device(device) => {
                device.file.sync_data().map_err(|error| self.failed("could not sync", error))
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
            Place::Device(_) => &self.target,
        }
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the target and the offset.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let past_cache = self.direct.as_ref().map_or(0, |_| direct::aligned(bytes, offset));
        let (head, tail) = bytes.split_at(past_cache);
        self.direct
            .as_ref()
            .map_or(Ok(()), |direct| direct.write_all_at(head, offset))
            .and_then(|()| self.file().write_all_at(tail, offset.saturating_add(head.len() as u64)))
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
        if let Some(there) = self.device_len() {
            return if len <= there {
                Ok(())
            } else {
                Err(too_small(len, there).file(&self.target))
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

    /// Syncs the file, gives it its name and syncs the directory.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io); [`Usage`](crate::ErrorKind::Usage) if something took the name
    /// meanwhile and `replace` is false. The temporary file is gone in every case, and nothing new
    /// has the name; but if the directory cannot be synced after another file was replaced, the new
    /// one stays.
    pub fn publish(self) -> Result<()> {
        self.file().sync_all().map_err(|error| self.failed("could not sync", error))?;
        let Self { place, target, .. } = self;
        let Place::Temporary { file: temporary, directory, replace } = place else { return Ok(()) };
        let persisted =
            if replace { temporary.persist(&target) } else { temporary.persist_noclobber(&target) };
        let file = persisted.map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => exists(&target),
            _ => Error::io("could not rename the finished file to its name", error.error)
                .file(&target),
        })?;
        directory.sync_all().map_err(|error| {
            let failed = Error::io("could not sync the directory", error).file(&target);
            if replace {
                return failed.hint("the file is whole, but may be the old one after a power cut");
            }
            let id = |status: &Metadata| (status.dev(), status.ino());
            if let (Ok(now), Ok(own)) = (target.symlink_metadata(), file.metadata())
                && id(&now) == id(&own)
            {
                // Best effort: the error that matters is the one being reported.
                let _ = std::fs::remove_file(&target);
            }
            failed
        })
    }

    /// The open file, for what only the system can do with it.
    pub(crate) fn file(&self) -> &File {
        match &self.place {
            Place::Temporary { file, .. } => file.as_file(),
            Place::Device(device) => &device.file,
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

fn too_small(needed: u64, there: u64) -> Error {
    Error::usage(format!("the image needs {needed} bytes, and the device has {there}"))
        .hint("choose a larger device")
}

fn exists(target: &Path) -> Error {
    Error::new(ErrorKind::Exists, "the file exists already").file(target).hint(Remedy::Replace)
}
