//! A directory that is taken for the root of all paths, and what lives below it.
//!
//! Names are resolved by the kernel within the root, so that neither `..` nor a symbolic link leads
//! out, whatever changes in the tree meanwhile. What was found is pinned by its descriptor.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use qcow::io::{FileStorage, OpenedAs, Storage};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::facts::Identity;
use crate::fs::{fd_path, nanoseconds};
use crate::{Error, Result};

/// The kernel gives up where directories are renamed meanwhile; the number of further attempts.
const TRIES: usize = 16;

/// The root of all paths.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
    path: PathBuf,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
            .map_err(|error| failed("could not open the directory", path, error))?;
        Ok(Self { directory, path: path.to_path_buf() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A name for it that stays, whatever becomes of its own.
    pub(super) fn pinned_path(&self) -> PathBuf {
        fd_path(&self.directory)
    }

    /// Whether it is the host's own root.
    pub(super) fn is_whole_host(&self) -> bool {
        self.path == Path::new("/")
    }

    /// Opens something that exists.
    fn at(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut result = Err(Errno::AGAIN);
        for _ in 0..TRIES {
            result = rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), resolve);
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        match result {
            // Kernels before 5.6. There is nothing outside the host's own root.
            Err(Errno::NOSYS) if self.is_whole_host() => {
                rustix::fs::openat(&self.directory, path, flags, Mode::empty())
            }
            result => result,
        }
    }

    /// The directory at `path`, open for listing and syncing.
    pub(super) fn directory(&self, path: &Path) -> Result<OwnedFd> {
        absolute(path)?;
        self.at(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|error| failed("could not open the directory", path, error))
    }

    /// As [`directory`](Self::directory), with the system's own error.
    pub(super) fn open_directory(&self, path: &Path) -> Result<rustix::io::Result<OwnedFd>> {
        absolute(path)?;
        Ok(self.at(path, OFlags::RDONLY | OFlags::DIRECTORY))
    }

    /// The directory that `path` is in, and its name there.
    pub(super) fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        absolute(path)?;
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok((self.directory(parent)?, name)),
            _ => Err(Error::usage(format!("'{}' does not name a file", path.display()))),
        }
    }

    /// The regular file or block device at `path`; `None` if nothing is there. The usual name of a volume
    /// (`/dev/GROUP/VOLUME`) is a link to the device, which is followed: to a device, and only there.
    pub(super) fn pin(&self, path: &Path) -> Result<Option<Pinned>> {
        absolute(path)?;
        if path.starts_with("/dev")
            && let Ok(object) = self.at(path, OFlags::PATH)
            && let Ok(device) = Pinned::new(object, path)
            && device.is_block_device()
        {
            return Ok(Some(device));
        }
        match self.at(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(object) => Pinned::new(object, path).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("could not look", path, error)),
        }
    }

    /// As [`pin`](Self::pin), where something must be.
    pub(super) fn pin_existing(&self, path: &Path) -> Result<Pinned> {
        self.pin(path)?
            .ok_or_else(|| Error::environment(format!("{}: there is no such file", path.display())))
    }
}

/// A regular file or block device, whatever becomes of its name.
#[derive(Debug)]
pub(super) struct Pinned {
    object: OwnedFd,
    status: Stat,
}

impl Pinned {
    fn new(object: OwnedFd, path: &Path) -> Result<Self> {
        let status = rustix::fs::fstat(&object)
            .map_err(|error| failed("could not read the status", path, error))?;
        let what = match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => return Ok(Self { object, status }),
            FileType::Symlink => {
                return Err(Error::environment(format!("{}: a symbolic link", path.display()))
                    .hint("give the path of the file itself"));
            }
            FileType::Directory => "a directory",
            FileType::Fifo => "a fifo",
            FileType::Socket => "a socket",
            FileType::CharacterDevice => "a character device",
            _ => "something unknown",
        };
        let path = path.display();
        Err(Error::environment(format!("{path}: {what}, not a file or a block device")))
    }

    fn is_block_device(&self) -> bool {
        FileType::from_raw_mode(self.status.st_mode) == FileType::BlockDevice
    }

    /// Whether it is a device that the system itself uses: it has a file system that is mounted, or is a part of a volume
    /// group, an array or an encrypted device.
    pub(super) fn is_claimed(&self) -> bool {
        let link = fd_path(&self.object);
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        self.is_block_device()
            && matches!(
                retry_on_intr(|| rustix::fs::open(&link, flags, Mode::empty())),
                Err(Errno::BUSY)
            )
    }

    /// What the system said about it.
    pub(super) fn status(&self) -> &Stat {
        &self.status
    }

    /// Opens it for reading.
    pub(super) fn open(&self, path: &Path) -> Result<File> {
        let link = fd_path(&self.object);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        retry_on_intr(|| rustix::fs::open(&link, flags, Mode::empty()))
            .map(File::from)
            .map_err(|error| failed("could not open it for reading", path, error))
    }

    /// When it came to be, where the file system knows. A number may have been given to another object since.
    pub(super) fn born(&self, path: &Path) -> Result<Option<i64>> {
        born(&self.open(path)?).map_err(|error| failed("could not read the status", path, error))
    }

    /// Opens it as something that images can be read from.
    pub(super) fn storage(&self, path: &Path) -> Result<FileStorage> {
        Ok(FileStorage::from_file(self.open(path)?).map_err(|error| error.file(path))?)
    }
}

/// When an open object came to be, where the file system knows.
pub(super) fn born(object: &impl AsFd) -> rustix::io::Result<Option<i64>> {
    let status = rustix::fs::statx(object, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME)?;
    let known = status.stx_mask & StatxFlags::BTIME.bits() != 0;
    let time = status.stx_btime;
    Ok(known.then(|| nanoseconds(time.tv_sec, time.tv_nsec.into())))
}

/// Which object an open file is. Block devices are told by their number, because two nodes with one
/// number are one device.
///
/// # Errors
/// [`Environment`](crate::ErrorKind::Environment).
pub fn identity_of(file: &FileStorage) -> Result<Identity> {
    let status = file.status()?;
    let object = file.identity();
    Ok(Identity {
        device: Some(object.device()),
        inode: Some(object.inode()),
        links: Some(status.links),
        size: if file.kind() == OpenedAs::File { status.size } else { file.len() },
        mtime_ns: status.mtime_ns,
        ctime_ns: status.ctime_ns,
    })
}

/// Whether the name in the directory is still that of the object with these numbers.
pub(super) fn is_still(directory: &OwnedFd, name: &OsStr, device: u64, inode: u64) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|now| now.st_dev == device && now.st_ino == inode)
}

/// An error of the system about a path.
pub(super) fn failed(what: &str, path: &Path, error: Errno) -> Error {
    let wrong = Error::io(format!("{}: {what}", path.display()), error);
    match error {
        Errno::NOSPC | Errno::DQUOT => wrong.hint("free some space or choose another directory"),
        Errno::ACCESS | Errno::PERM => wrong.hint("run it as the user that owns the images"),
        Errno::NOSYS => wrong.hint("a Linux kernel of at least 5.6 is needed for this"),
        _ => wrong,
    }
}

fn absolute(path: &Path) -> Result<()> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(Error::usage(format!("'{}' is not an absolute path", path.display())))
}
