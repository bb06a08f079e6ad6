//! Outputs that appear under their name only when they are complete.
//!
//! The file is built under a temporary name in the same directory, synced, and then renamed.
//! Dropping it before [`publish`](OutputFile::publish) removes it. Only a kill that cannot be
//! caught leaves the temporary file, never anything under the final name.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FallocateFlags;
use tempfile::NamedTempFile;

use crate::{Error, ErrorKind, Result};

/// A file being built. Mode 0600; who else may read it is for its owner to decide.
#[derive(Debug)]
pub struct OutputFile {
    temporary: NamedTempFile,
    target: PathBuf,
    replace: bool,
    written: AtomicU64,
}

impl OutputFile {
    /// Starts the output that will become `target`.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if `target` exists and `replace` is false, or if it is
    /// something that must not be replaced; [`Io`](crate::ErrorKind::Io) if its directory cannot
    /// be written.
    pub fn create(target: &Path, replace: bool) -> Result<Self> {
        let (directory, name) = split(target)?;
        match target.symlink_metadata() {
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
        Ok(Self { temporary, target: target.to_path_buf(), replace, written: AtomicU64::new(0) })
    }

    /// The file's final name.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The name under which it is built.
    pub fn temporary_path(&self) -> &Path {
        self.temporary.path()
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), naming the target and the offset.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file()
            .write_all_at(bytes, offset)
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
        rustix::fs::fallocate(self.file(), FallocateFlags::empty(), offset, len)
            .map_err(|error| self.failed("could not reserve space", error.into()))
    }

    /// Syncs the file, gives it its name and syncs the directory.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io); [`Usage`](crate::ErrorKind::Usage) if something took the name
    /// meanwhile and `replace` is false. The temporary file is gone in every case.
    pub fn publish(self) -> Result<()> {
        self.file().sync_all().map_err(|error| self.failed("could not sync", error))?;
        let Self { temporary, target, replace, .. } = self;
        let persisted =
            if replace { temporary.persist(&target) } else { temporary.persist_noclobber(&target) };
        persisted.map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => exists(&target),
            _ => Error::io("could not rename the finished file to its name", error.error)
                .file(&target),
        })?;
        let (directory, _) = split(&target)?;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| Error::io("could not sync the directory", error).file(&target))
    }

    /// The open file, for what only the system can do with it.
    pub(crate) fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// What went wrong with the file, and what helps if there is no space.
    pub(crate) fn failed(&self, what: &str, error: std::io::Error) -> Error {
        let full = matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        );
        let error = Error::io(what, error).file(&self.target);
        if full { error.hint("free some space or choose another directory") } else { error }
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

fn exists(target: &Path) -> Error {
    Error::usage("the file exists already")
        .file(target)
        .hint("choose another name, or give --force to replace it")
}
