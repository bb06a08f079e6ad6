//! A file that is being built under a temporary name, and gets its own when it is whole.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qcow::io::{Access, FileStorage, rename_to_free_name, sync_directory};
use rustix::fs::{AtFlags, FallocateFlags, FileType, OFlags, SeekFrom, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::Mode;
use super::content::{PIECE, Piece, Sink, digest, temporary};
use super::holders::soon;
use super::root::{Root, failed, identity_of, is_still};
use crate::facts::Identity;
use crate::{Error, Result};

/// A file that is being built. Dropping it leaves what is there for the next try.
#[derive(Debug)]
pub(crate) struct Partial {
    directory: OwnedFd,
    name: OsString,
    temporary: OsString,
    /// For messages.
    path: PathBuf,
    file: File,
    status: Stat,
    /// Holds the locks by which other processes see that it is being written.
    _locked: FileStorage,
    len: u64,
    resumed: bool,
}

impl Partial {
    /// Starts the file of `len` bytes that will be at `path`, or goes on with what is there of it
    /// under the temporary name that belongs to `key`.
    pub(super) fn begin(root: &Root, path: &Path, key: &str, len: u64) -> Result<Self> {
        let (directory, name) = root.parent(path)?;
        match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed("could not examine what exists", path, error)),
            Ok(_) => return Err(exists(path)),
        }
        let at = temporary(path, key);
        let temporary = at.file_name().unwrap_or_default().to_owned();
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let new = flags | OFlags::CREATE | OFlags::EXCL;
        let private = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let create = || rustix::fs::openat(&directory, &temporary, new, private);
        let (file, resumed) = match retry_on_intr(create) {
            Ok(file) => (file, false),
            Err(Errno::EXIST) => {
                let old = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
                let none = rustix::fs::Mode::empty();
                let open = || rustix::fs::openat(&directory, &temporary, old, none);
                (
                    retry_on_intr(open)
                        .map_err(|error| failed("could not continue it", &at, error))?,
                    true,
                )
            }
            Err(error) => return Err(failed("could not create it", &at, error)),
        };
        let file = File::from(file);
        let status = rustix::fs::fstat(&file)
            .map_err(|error| failed("could not read the status", &at, error))?;
        if !is_ours(&status) {
            return Err(Error::refused(format!(
                "{}: something is in the way that is not an unfinished file of ours",
                at.display()
            ))
            .hint("move it away"));
        }
        let locked = file.try_clone().map_err(|error| io("could not lock it", &at, &error))?;
        let locked = FileStorage::from_file(locked)?;
        let mut refused = None;
        let alone = soon(|| match locked.lock(Access::all(), Access::all()) {
            Ok(()) => Some(()),
            Err(error) => {
                refused = Some(error);
                None
            }
        });
        // Only "in use" means that another process is making it.
        if let (None, Some(error)) = (alone, refused)
            && error.io_source().is_some()
        {
            return Err(error.file(path).into());
        }
        if alone.is_none() || !is_still(&directory, &temporary, status.st_dev, status.st_ino) {
            return Err(Error::refused(format!(
                "{}: another process is writing it",
                path.display()
            ))
            .hint("wait until that is done, then try again"));
        }
        let partial = Self {
            directory,
            name: name.to_owned(),
            temporary,
            path: path.to_path_buf(),
            file,
            status,
            _locked: locked,
            len,
            resumed,
        };
        if let Err(error) = partial.file.set_len(len) {
            partial.discard();
            return Err(io("could not set the length", path, &error));
        }
        Ok(partial)
    }

    /// Takes all of the content at once, where the file system can share it; `false` if it cannot.
    pub(super) fn clone_of(&self, content: &File) -> bool {
        !self.resumed && rustix::fs::ioctl_ficlone(&self.file, content).is_ok()
    }

    /// Gives it its rights and its name, on stable storage.
    pub(crate) fn publish(self, mode: Mode) -> Result<Identity> {
        let mode = match mode {
            Mode::Private => 0o600,
            Mode::ReadOnly => 0o444,
        };
        rustix::fs::fchmod(&self.file, rustix::fs::Mode::from_raw_mode(mode))
            .map_err(|error| failed("could not set its mode", &self.path, error))?;
        self.file.sync_all().map_err(|error| io("could not sync", &self.path, &error))?;
        if let Err(error) = self.give_name() {
            if error != Errno::EXIST {
                return Err(failed("could not give the file its name", &self.path, error));
            }
            let error = exists(&self.path);
            self.discard();
            return Err(error);
        }
        // It is whole: with its temporary name the next try finds it again.
        self.named().inspect_err(|_| {
            let _ = rename_to_free_name(
                (self.directory.as_fd(), &self.name),
                (self.directory.as_fd(), &self.temporary),
            );
        })
    }

    /// What it is, once its name is on stable storage, if the file system can do that.
    fn named(&self) -> Result<Identity> {
        sync_directory(&self.directory)
            .map_err(|error| failed("could not sync the directory", &self.path, error))?;
        let file = self
            .file
            .try_clone()
            .map_err(|error| io("could not look at it", &self.path, &error))?;
        identity_of(&FileStorage::from_file(file)?)
    }

    fn give_name(&self) -> rustix::io::Result<()> {
        let directory = self.directory.as_fd();
        rename_to_free_name((directory, &self.temporary), (directory, &self.name))
    }

    /// Removes it.
    pub(crate) fn discard(self) {
        self.discard_as(&self.temporary);
    }

    fn discard_as(&self, name: &OsStr) {
        let Stat { st_dev, st_ino, .. } = self.status;
        if is_still(&self.directory, name, st_dev, st_ino) {
            let _ = rustix::fs::unlinkat(&self.directory, name, AtFlags::empty());
        }
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        Err(Error::environment(format!(
            "{}: {len} bytes at {offset} do not belong to a file of {} bytes",
            self.path.display(),
            self.len
        )))
    }

    fn holds(&self, piece: &Piece) -> Result<bool> {
        self.check(piece.offset, piece.len.min(PIECE))?;
        let mut bytes = vec![0; usize::try_from(piece.len.min(PIECE)).unwrap_or_default()];
        self.file
            .read_exact_at(&mut bytes, piece.offset)
            .map_err(|error| io("could not read back", &self.path, &error))?;
        Ok(digest(&bytes) == piece.digest)
    }
}

impl Sink for Partial {
    fn resumed(&self) -> bool {
        self.resumed
    }

    fn lacks(&mut self, pieces: &[Piece]) -> Result<Vec<bool>> {
        pieces.iter().map(|piece| Ok(!self.holds(piece)?)).collect()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| io("could not write", &self.path, &error))
    }

    fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            at = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.max(at),
                Err(Errno::NXIO) => end,
                Err(_) => at,
            };
            let piece = end.saturating_sub(at).min(PIECE);
            if piece > 0 {
                self.punch(at, piece)?;
            }
            at = at.saturating_add(piece.max(1));
        }
        Ok(())
    }
}

impl Partial {
    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&self.file, flags, offset, len).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; usize::try_from(len).unwrap_or_default()];
        self.file
            .write_all_at(&zeros, offset)
            .map_err(|error| io("could not write", &self.path, &error))
    }
}

/// No other user can have put it there, or can have written to it.
fn is_ours(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::RegularFile
        && status.st_nlink == 1
        && status.st_uid == rustix::process::geteuid().as_raw()
        && status.st_mode & 0o033 == 0
}

fn exists(path: &Path) -> Error {
    Error::refused(format!("{}: a file exists already", path.display()))
        .hint("nothing that exists is written to: move it away, or choose another path")
}

fn io(what: &str, path: &Path, error: &std::io::Error) -> Error {
    let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
    failed(what, path, errno)
}
