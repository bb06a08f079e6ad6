//! Targets that exist and are written to where they are: block devices and regular files. Opened for
//! this process alone, of a length that does not change, and not blank unless the caller says so.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;

use super::{Access, FileStorage, Identity, OpenedAs, Storage, Zeroes, zero};
use crate::{Error, Remedy, Result};

/// A block device or a regular file that is overwritten.
#[derive(Debug)]
pub(super) struct Existing {
    pub(super) file: File,
    pub(super) kind: OpenedAs,
    pub(super) identity: Identity,
    pub(super) len: u64,
    /// It holds zeros where nothing has been written.
    pub(super) blank: bool,
    /// Its length can change: a regular file that was emptied.
    pub(super) emptied: bool,
    /// Something has been written: it does not hold any more what it held.
    touched: AtomicBool,
}

impl Existing {
    /// Opens the block device at `path` for writing. The kernel refuses one that is mounted or
    /// otherwise held, QEMU's locks one that a guest uses.
    pub(super) fn device(path: &Path, blank: bool) -> Result<Self> {
        let status = std::fs::metadata(path).map_err(|error| Error::io("could not open", error))?;
        if !status.file_type().is_block_device() {
            return Err(Error::usage("not a block device").hint(Remedy::NotDevice));
        }
        Self::open(path, OFlags::EXCL, blank)
    }

    /// As [`device`](Self::device), or opens a regular file, which QEMU's locks and those of other
    /// programs protect.
    pub(super) fn file_or_device(path: &Path, blank: bool) -> Result<Self> {
        let failed =
            |error| Error::io("could not open the existing file", error).hint(Remedy::NewFile);
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        match () {
            () if kind.is_block_device() => Self::open(path, OFlags::EXCL, blank),
            () if kind.is_file() => Self::open(path, OFlags::empty(), blank),
            () => Err(Error::usage("neither a regular file nor a block device")),
        }
    }

    /// Opens a block device, or makes or empties a regular file.
    pub(super) fn overwrite(path: &Path) -> Result<Self> {
        if std::fs::metadata(path).is_ok_and(|status| status.file_type().is_block_device()) {
            return Self::open(path, OFlags::EXCL, false);
        }
        let mut opened = Self::open_as(path, OFlags::empty(), true, true)?;
        opened.file.set_len(0).map_err(|error| Error::io("could not empty the file", error))?;
        (opened.len, opened.emptied) = (0, true);
        Ok(opened)
    }

    fn open(path: &Path, exclusive: OFlags, blank: bool) -> Result<Self> {
        Self::open_as(path, exclusive, blank, false)
    }

    fn open_as(path: &Path, exclusive: OFlags, blank: bool, create: bool) -> Result<Self> {
        let flags = (exclusive | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let file = File::options()
            .read(true)
            .write(true)
            .create(create)
            .mode(0o644)
            .custom_flags(i32::try_from(flags).unwrap_or_default())
            .open(path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::ResourceBusy => Error::io(
                    "the device is in use: it is mounted, or another process has it open",
                    error,
                )
                .hint("unmount it, or stop the process that uses it, then try again"),
                _ => Error::io("could not open for writing", error),
            })?;
        let twin = file.try_clone().map_err(|error| Error::io("could not open twice", error))?;
        let changes = Access::WRITE | Access::RESIZE;
        // What was opened, not what had the name before.
        let storage = FileStorage::from_file(twin)?;
        storage
            .lock(Access::READ | changes, changes)
            .map_err(|error| error.hint(Remedy::StopUser))?;
        let (kind, identity, len) = (storage.kind(), storage.identity(), storage.len());
        let (emptied, touched) = (false, AtomicBool::new(false));
        Ok(Self { file, kind, identity, len, blank, emptied, touched })
    }

    /// What it is, in a word.
    pub(super) fn noun(&self) -> &'static str {
        match self.kind {
            OpenedAs::BlockDevice => "device",
            _ => "file",
        }
    }

    /// It is about to be written to.
    pub(super) fn touch(&self) {
        self.touched.store(true, Ordering::Relaxed);
    }

    /// Whether something has been written to it.
    pub(super) fn is_touched(&self) -> bool {
        self.touched.load(Ordering::Relaxed)
    }

    /// Makes `len` bytes at `offset` read as zeros: by giving their space back where that promises
    /// zeros, by having the system zero them, or by writing zeros.
    pub(super) fn zero(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.touch();
        zero::zero(&self.file, offset..zero::end_of(offset, len)?, Zeroes::Unmap)
    }
}
