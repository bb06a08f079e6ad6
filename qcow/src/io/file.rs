//! Regular files and block devices, opened read-only and pinned by their descriptor.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags, ResolveFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

use super::{Access, Storage, direct, lock};
use crate::{Error, Remedy, Result};

/// What kind of thing a [`FileStorage`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenedAs {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// Which object a file is, whatever its name: device and inode, or the block device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// The device that holds it; `u64::MAX` for block devices.
    pub fn device(self) -> u64 {
        self.device
    }

    /// Its number there; a block device's own number.
    pub fn inode(self) -> u64 {
        self.inode
    }
}

/// What the system knows about an open file now. Times are in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileStatus {
    /// The device that holds it.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// How many names it has.
    pub links: u64,
    /// Its length in bytes; 0 for block devices.
    pub size: u64,
    /// When its content was last changed.
    pub mtime_ns: i64,
    /// When it was last changed at all.
    pub ctime_ns: i64,
    /// Its permission bits.
    pub mode: u32,
    /// The number of the user that owns it.
    pub owner: u32,
}

impl Identity {
    /// `None` for what is neither a regular file nor a block device.
    fn of(status: &Metadata) -> Option<Self> {
        if status.is_file() {
            return Some(Self { device: status.dev(), inode: status.ino() });
        }
        // Two device nodes with one number are one device, wherever the nodes live.
        let device = status.file_type().is_block_device();
        device.then(|| Self { device: u64::MAX, inode: status.rdev() })
    }
}

impl FileStatus {
    fn of(status: &Metadata) -> Self {
        let time = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            device: status.dev(),
            inode: status.ino(),
            links: status.nlink(),
            size: status.len(),
            mtime_ns: time(status.mtime(), status.mtime_nsec()),
            ctime_ns: time(status.ctime(), status.ctime_nsec()),
            mode: status.mode(),
            owner: status.uid(),
        }
    }

    /// Whether its group or everybody may write it.
    pub fn others_may_write(&self) -> bool {
        self.mode & 0o022 != 0
    }
}

/// A regular file or block device that is read. Its length is what it was when it was opened: a file that
/// another process cuts short ends in an error, not in zeros.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    kind: OpenedAs,
    identity: Identity,
    len: AtomicU64,
    allocated: u64,
    opened: FileStatus,
    /// Bytes known to be without a hole, from start to end: some file systems look at every page
    /// to find the next hole, which may be far away.
    known_data: Mutex<Range<u64>>,
    /// Reads past the page cache.
    direct: OnceLock<File>,
}

impl FileStorage {
    /// Opens `path` for reading. Fifos, sockets, directories and character devices are refused
    /// without waiting for anybody.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if it cannot be opened, [`Denied`](crate::ErrorKind::Denied)
    /// if it is neither a regular file nor a block device.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, OFlags::empty())
    }

    /// As [`open`](Self::open), but refuses a symbolic link.
    pub(crate) fn open_no_link(path: &Path) -> Result<Self> {
        Self::open_with(path, OFlags::NOFOLLOW).map_err(|error| {
            let link = path.symlink_metadata().is_ok_and(|status| status.is_symlink());
            if link {
                return Error::denied("it is a symbolic link")
                    .file(path)
                    .hint("give the name of the link's target");
            }
            error
        })
    }

    fn open_with(path: &Path, more: OFlags) -> Result<Self> {
        // O_NONBLOCK: opening a fifo must not hang. It has no effect on files and block devices.
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY | more).bits();
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(flags).unwrap_or_default())
            .open(path)
            .map_err(|error| Error::io("could not open", error).file(path))?;
        Self::from_file(file).map_err(|error| error.file(path))
    }

    /// As [`open`](Self::open), with the directory `root` for the root of all names; symbolic
    /// links do not lead out of it.
    pub(crate) fn open_in_root(root: &Path, path: &Path) -> Result<Self> {
        Self::open_below(root, path, ResolveFlags::IN_ROOT)
    }

    /// As [`open`](Self::open), for a relative `path` without symbolic links below `root`.
    pub(crate) fn open_beneath(root: &Path, path: &Path) -> Result<Self> {
        // The root itself may be an image, or a device.
        if path.as_os_str().is_empty() {
            return Self::open_no_link(root);
        }
        Self::open_below(root, path, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
    }

    fn open_below(root: &Path, path: &Path, resolve: ResolveFlags) -> Result<Self> {
        let failed = |error: Errno| Error::io("could not open", error.into()).file(path);
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = || rustix::fs::open(root, directory, Mode::empty());
        let root = retry_on_intr(root).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
        let open = || rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve);
        let file = retry_on_intr(open).map_err(failed)?;
        Self::from_file(file.into()).map_err(|error| error.file(path))
    }

    /// What has the name `path`, which is not opened.
    pub(crate) fn identity_of(path: &Path) -> Option<Identity> {
        path.metadata().ok().and_then(|status| Identity::of(&status))
    }

    /// Takes an open descriptor, for example one that was passed by another process.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_file(file: File) -> Result<Self> {
        let status = file.metadata().map_err(status_error)?;
        let identity = Identity::of(&status)
            .ok_or_else(|| Error::denied("neither a regular file nor a block device"))?;
        let (kind, len) = if status.is_file() {
            (OpenedAs::File, status.len())
        } else {
            let len = rustix::fs::seek(&file, SeekFrom::End(0))
                .map_err(|error| Error::io("could not find the device's size", error.into()))?;
            (OpenedAs::BlockDevice, len)
        };
        let allocated = status.blocks().saturating_mul(512);
        Ok(Self {
            file,
            kind,
            identity,
            len: AtomicU64::new(len),
            allocated,
            opened: FileStatus::of(&status),
            known_data: Mutex::new(0..0),
            direct: OnceLock::new(),
        })
    }

    /// Announces to QEMU and to others like us what is done with the file and what no other process
    /// may do, by QEMU's image locks. It holds until the file is closed.
    ///
    /// # Errors
    /// [`InUse`](crate::ErrorKind::InUse) if another process does or forbids just that.
    pub fn lock(&self, does: Access, forbids: Access) -> Result<()> {
        lock::announce(&self.file, does, forbids)
    }

    /// What others do with the file, as far as QEMU's image locks tell. Nothing is announced, so
    /// no other process is disturbed.
    pub fn used_for(&self) -> Access {
        lock::done_by_others(&self.file)
    }

    /// Checks that no other process has changed the file since it was opened, as far as its size and times
    /// tell.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if one has.
    pub fn check_unchanged(&self) -> Result<()> {
        if self.kind == OpenedAs::File && self.status()? != self.opened {
            return Err(Error::io(
                "the file changed while it was being read",
                std::io::Error::other("what was read may be neither the old nor the new state"),
            )
            .hint(Remedy::StopChanges));
        }
        Ok(())
    }

    /// From now on reads past the page cache what is aligned, if the file system can.
    pub(crate) fn read_direct(&self) {
        if let Ok(file) = direct::reopened(&self.file, false) {
            // Another thread did it: as well.
            let _ = self.direct.set(file);
        }
    }

    /// What was written reaches to `end`.
    pub(super) fn reaches(&self, end: u64) {
        self.len.fetch_max(end, Ordering::AcqRel);
    }

    /// The length was set to `len`.
    pub(super) fn ends_at(&self, len: u64) {
        self.len.store(len, Ordering::Release);
        self.has_new_holes();
    }

    /// Holes may be where none was.
    pub(super) fn has_new_holes(&self) {
        *self.known_data.lock().unwrap_or_else(PoisonError::into_inner) = 0..0;
    }

    /// The open file, for what only the system can do with it.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Regular file or block device.
    pub fn kind(&self) -> OpenedAs {
        self.kind
    }

    /// Which object it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Bytes that the file system had allocated for it when it was opened.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Bytes that the file system has allocated for it now.
    #[cfg(feature = "ops")]
    pub(crate) fn allocated_now(&self) -> u64 {
        self.file.metadata().map_or(self.allocated, |status| status.blocks().saturating_mul(512))
    }

    /// What the system knows about the file now; its length may differ from the pinned one.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub fn status(&self) -> Result<FileStatus> {
        self.file.metadata().map(|status| FileStatus::of(&status)).map_err(status_error)
    }

    /// The open descriptor's own idea of where it lives, free of symbolic links and races.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if `/proc` is not there.
    pub fn resolved_path(&self) -> Result<PathBuf> {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", self.file.as_fd().as_raw_fd()))
            .map_err(|error| Error::io("could not resolve the opened file's path", error))
    }
}

/// The open descriptor, for I/O of the caller's own at host offsets.
impl AsFd for FileStorage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Storage for FileStorage {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn as_file(&self) -> Option<&FileStorage> {
        Some(self)
    }

    fn allocated(&self) -> u64 {
        self.allocated
    }

    fn check_unchanged(&self) -> Result<()> {
        Self::check_unchanged(self)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        if let Some(direct) = self.direct.get()
            && let len @ 1.. = direct::aligned(buf, offset)
        {
            return direct.read_at(buf.get_mut(..len).unwrap_or_default(), offset);
        }
        self.file.read_at(buf, offset)
    }

    fn next_data(&self, offset: u64) -> std::io::Result<Option<u64>> {
        // Moving the shared file position is harmless: all reads are positioned.
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            // Devices and some file systems do not know holes: everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((offset < self.len()).then_some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    fn next_hole(&self, offset: u64) -> std::io::Result<u64> {
        let mut known_data = self.known_data.lock().unwrap_or_else(PoisonError::into_inner);
        if known_data.contains(&offset) {
            return Ok(known_data.end);
        }
        let found = match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
            Ok(found) => found,
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => self.len().max(offset),
            Err(error) => return Err(error.into()),
        };
        *known_data = offset..found;
        Ok(found)
    }
}

fn status_error(error: std::io::Error) -> Error {
    Error::io("could not read the file's status", error)
}
