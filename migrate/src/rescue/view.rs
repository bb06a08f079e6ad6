//! Names as a process sees them: from its root, through its mounts.
//!
//! The kernel shows the path of an open file as it is in the mount namespace of the process that opened it. To compare that
//! with a name in a header, the name is looked up through the same mounts.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};

use crate::fs::fd_path;

/// As many symbolic links as the kernel follows.
const LINKS: usize = 40;

/// What a process sees.
#[derive(Debug)]
pub(super) struct View {
    root: OwnedFd,
    /// What its root is called here: `/` unless it is in a change root.
    prefix: PathBuf,
}

impl View {
    /// That of the process with this directory in `/proc`.
    pub(super) fn of(process: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(process.join("root"), flags, Mode::empty())?;
        let prefix = shown(root.as_fd())?;
        Ok(Self { root, prefix })
    }

    /// A name of its root that stays, whatever becomes of the process.
    pub(super) fn root(&self) -> PathBuf {
        fd_path(&self.root)
    }

    /// A path that the kernel shows, as the process would write it.
    pub(super) fn inside(&self, shown: &Path) -> PathBuf {
        match shown.strip_prefix(&self.prefix) {
            Ok(rest) => Path::new("/").join(rest),
            Err(_) => shown.to_path_buf(),
        }
    }

    /// Opens a directory by a name that the process would write.
    pub(super) fn directory(&self, name: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve)?)
    }

    /// What the kernel would show for a name that the process writes, if the file were there: symbolic links
    /// are followed, also one that leads nowhere.
    pub(super) fn canonical(&self, name: &Path) -> PathBuf {
        let mut name = name.to_path_buf();
        for _ in 0..LINKS {
            let (Some(parent), Some(file)) = (name.parent(), name.file_name()) else { break };
            let Ok(directory) = self.directory(parent) else { break };
            let Ok(parent) = shown(directory.as_fd()) else { break };
            match rustix::fs::readlinkat(&directory, file, Vec::new()) {
                Ok(target) => {
                    use std::os::unix::ffi::OsStrExt;
                    let target = Path::new(std::ffi::OsStr::from_bytes(target.to_bytes()));
                    name = self.inside(&parent).join(target);
                }
                Err(_) => return parent.join(file),
            }
        }
        match name.strip_prefix("/") {
            Ok(rest) => self.prefix.join(rest),
            Err(_) => name,
        }
    }

    /// What is at a path that the kernel shows; a symbolic link is not followed.
    pub(super) fn at(&self, shown: &Path) -> Option<Stat> {
        let inside = self.inside(shown);
        let (parent, file) = (inside.parent()?, inside.file_name()?);
        let directory = self.directory(parent).ok()?;
        rustix::fs::statat(&directory, file, AtFlags::SYMLINK_NOFOLLOW).ok()
    }
}

/// The path that the kernel shows for something that is open here.
pub(super) fn shown(object: BorrowedFd<'_>) -> io::Result<PathBuf> {
    fs::read_link(fd_path(&object))
}

/// By which mount something was opened.
pub(super) fn mount(object: BorrowedFd<'_>) -> Option<u64> {
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd())).ok()?;
    told.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// Whether this program sees the directory by the same path.
pub(super) fn is_ours(path: &Path, device: u64, inode: u64) -> bool {
    fs::metadata(path).is_ok_and(|own| (own.dev(), own.ino()) == (device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_followed_to_where_the_file_would_be() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        fs::create_dir(real.join("store")).unwrap();
        std::os::unix::fs::symlink("store", real.join("link")).unwrap();
        std::os::unix::fs::symlink("link/../store/gone", real.join("alias")).unwrap();
        let view = View::of(Path::new("/proc/self")).unwrap();
        assert_eq!(view.canonical(&real.join("link/gone")), real.join("store/gone"));
        assert_eq!(view.canonical(&real.join("alias")), real.join("store/gone"));
        assert_eq!(view.canonical(&real.join("no/such")), real.join("no/such"));
    }
}
