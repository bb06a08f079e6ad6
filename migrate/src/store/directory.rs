//! Directories below a root: made with the rights that they shall have, named, and removed while they are empty.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use qcow::io::{rename_to_free_name, sync_directory};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawMode, Uid, XattrFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::rand::GetRandomFlags;

use super::root::{Root, born, failed, is_still};
use crate::facts::{DirectoryRights, Identity};
use crate::fs::nanoseconds;
use crate::{Error, Result};

/// Where SELinux keeps the label of a file.
pub(crate) const LABEL: &str = "security.selinux";

/// Whether there is a directory at `path`.
pub(super) fn exists(root: &Root, path: &Path) -> Result<bool> {
    match root.open_directory(path)? {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(failed("could not open the directory", path, error)),
    }
}

/// Makes the directory `path`, which must not exist, with these rights. Nothing of it is left if that fails.
pub(super) fn make(root: &Root, path: &Path, rights: &DirectoryRights) -> Result<Identity> {
    let (above, name) = root.parent(path)?;
    let private = Mode::RWXU;
    match retry_on_intr(|| rustix::fs::mkdirat(&above, name, private)) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            return Err(Error::refused(format!("{}: it exists already", path.display())));
        }
        Err(error) => return Err(failed("could not make the directory", path, error)),
    }
    let made = rustix::fs::openat(&above, name, FLAGS, Mode::empty())
        .map_err(|error| failed("could not open the directory", path, error))
        .and_then(|made| {
            give(&made, path, rights)?;
            sync(&made, path)?;
            sync(&above, path)?;
            identity(&made, path)
        });
    if made.is_err() {
        let _ = rustix::fs::unlinkat(&above, name, AtFlags::REMOVEDIR);
    }
    made
}

/// Gives the directory `from` that was made the name `to` beside it; `false` if something has that name.
pub(super) fn name(root: &Root, from: &Path, to: &Path, made: &Identity) -> Result<bool> {
    let (above, old) = root.parent(from)?;
    let (same, new) = root.parent(to)?;
    if !is_made(&above, old, made) {
        return Err(Error::refused(format!("{}: another process replaced it", from.display())));
    }
    match rename_to_free_name((above.as_fd(), old), (same.as_fd(), new)) {
        Ok(()) => sync(&above, to).map(|()| true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(failed("could not give the directory its name", to, error)),
    }
}

/// The name of a directory that does not have its own yet: hidden, beside that, and unlike any other.
pub(super) fn unnamed(path: &Path) -> Result<Option<PathBuf>> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, GetRandomFlags::empty())
        .map_err(|error| Error::io("no random numbers", error))?;
    Ok(Some(path.with_file_name(format!("{UNNAMED}{:016x}", u64::from_be_bytes(random)))))
}

fn is_unnamed(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(UNNAMED.as_bytes())
}

/// Removes the directory at `path` if it is what was made, and empty; one without its own name also if it is not known
/// what was made. `Ok(false)` if nothing is there.
pub(super) fn remove(root: &Root, path: &Path, made: &Identity) -> Result<bool> {
    let above = path.parent().unwrap_or(Path::new("/"));
    if !exists(root, above)? {
        return Ok(false);
    }
    let (above, name) = root.parent(path)?;
    match rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(failed("could not look at the directory", path, error)),
        Ok(_) if is_made(&above, name, made) || made.inode.is_none() && is_unnamed(name) => {}
        Ok(_) => {
            let path = path.display();
            return Err(Error::refused(format!("{path}: it is not the directory that was made")));
        }
    }
    match rustix::fs::unlinkat(&above, name, AtFlags::REMOVEDIR) {
        Ok(()) => sync(&above, path).map(|()| true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            Err(Error::refused(format!("{}: the directory is not empty", path.display())))
        }
        Err(error) => Err(failed("could not remove the directory", path, error)),
    }
}

/// How the names of directories begin that do not have their own yet.
const UNNAMED: &str = ".qcowtool-";

const FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The owner first, because changing it clears bits of the mode.
fn give(made: &OwnedFd, path: &Path, rights: &DirectoryRights) -> Result<()> {
    let status = rustix::fs::fstat(made)
        .map_err(|error| failed("could not look at the directory", path, error))?;
    if (status.st_uid, status.st_gid) != (rights.owner, rights.group) {
        let (owner, group) = (Uid::from_raw(rights.owner), Gid::from_raw(rights.group));
        rustix::fs::fchown(made, Some(owner), Some(group))
            .map_err(|error| failed("could not set the directory's owner", path, error))?;
    }
    rustix::fs::fchmod(made, Mode::from_raw_mode(rights.mode as RawMode))
        .map_err(|error| failed("could not set the directory's mode", path, error))?;
    let Some(label) = &rights.label else { return Ok(()) };
    match rustix::fs::fsetxattr(made, LABEL, label.as_bytes(), XattrFlags::empty()) {
        // A file system without labels has them from its mount.
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(failed("could not set the directory's SELinux label", path, error)),
    }
}

fn sync(directory: &OwnedFd, path: &Path) -> Result<()> {
    sync_directory(directory)
        .map(drop)
        .map_err(|error| failed("could not sync the directory", path, error))
}

fn identity(made: &OwnedFd, path: &Path) -> Result<Identity> {
    let status = rustix::fs::fstat(made)
        .map_err(|error| failed("could not look at the directory", path, error))?;
    Ok(Identity {
        device: Some(status.st_dev),
        inode: Some(status.st_ino),
        ctime_ns: nanoseconds(status.st_ctime, status.st_ctime_nsec as i64),
        ..Identity::default()
    })
}

/// Whether the name is that of the directory that was made. Its number may have been given to another one since,
/// which came to be later.
fn is_made(above: &OwnedFd, name: &OsStr, made: &Identity) -> bool {
    let (Some(device), Some(inode)) = (made.device, made.inode) else { return false };
    let Ok(directory) = rustix::fs::openat(above, name, FLAGS, Mode::empty()) else { return false };
    let Ok(status) = rustix::fs::fstat(&directory) else { return false };
    let born = born(&directory).ok().flatten();
    FileType::from_raw_mode(status.st_mode) == FileType::Directory
        && is_still(above, name, device, inode)
        && (status.st_dev, status.st_ino) == (device, inode)
        && born.is_none_or(|born| born <= made.ctime_ns)
}
