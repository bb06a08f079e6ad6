//! Names of files: given only where nothing is, and made durable.
//!
//! Not every file system can do either in one step, or at all. What each error means is in
//! `docs/errno.md`.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, RenameFlags, StatxAttributes, StatxFlags};
use rustix::io::{Errno, retry_on_intr};

/// Renames a file, each name in its open directory, where nothing may have the new name.
///
/// By a rename that replaces nothing; where the file system has none (NFS, FUSE), by a second
/// name; where it has none of those either (exFAT, SMB, shared folders of hypervisors), by a look
/// and a plain rename. Only the last can replace a file: one that another process puts there
/// between these two calls.
///
/// # Errors
/// [`EXIST`](Errno::EXIST) if something has the name; whatever else the system says. The file has
/// its old name then.
pub fn rename_to_free_name(
    (old, from): (BorrowedFd<'_>, &OsStr),
    (new, to): (BorrowedFd<'_>, &OsStr),
) -> Result<(), Errno> {
    let rename = || rustix::fs::renameat_with(old, from, new, to, RenameFlags::NOREPLACE);
    match retry_on_intr(rename) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        result => return result,
    }
    match retry_on_intr(|| rustix::fs::linkat(old, from, new, to, AtFlags::empty())) {
        Ok(()) => {
            let unlinked = retry_on_intr(|| rustix::fs::unlinkat(old, from, AtFlags::empty()));
            return unlinked.inspect_err(|_| {
                // Best effort: with both names it would be neither here nor there.
                let _ = rustix::fs::unlinkat(new, to, AtFlags::empty());
            });
        }
        // EMLINK: no file can have more than one name.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::MLINK) => {}
        Err(error) => return Err(error),
    }
    match retry_on_intr(|| rustix::fs::statat(new, to, AtFlags::SYMLINK_NOFOLLOW)) {
        Err(Errno::NOENT) => retry_on_intr(|| rustix::fs::renameat(old, from, new, to)),
        Err(error) => Err(error),
        Ok(_) => Err(Errno::EXIST),
    }
}

/// Makes the names in an open directory durable. `false` if its file system cannot do that with
/// any directory: a power cut may then undo what was renamed last.
///
/// # Errors
/// Whatever else the system says. The names are not durable then, as far as is known.
pub fn sync_directory(directory: impl AsFd) -> Result<bool, Errno> {
    match retry_on_intr(|| rustix::fs::fsync(&directory)) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether something is mounted at `path`, which the kernel then does not rename over. `false`
/// where the system does not say.
pub(super) fn is_mount_point(path: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    retry_on_intr(|| rustix::fs::statx(CWD, path, flags, StatxFlags::empty())).is_ok_and(|status| {
        let root = StatxAttributes::MOUNT_ROOT;
        status.stx_attributes_mask.contains(root) && status.stx_attributes.contains(root)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_name_is_given_only_where_nothing_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), "a").unwrap();
        fs::write(at("b"), "b").unwrap();
        let open = File::open(dir.path()).unwrap();
        let rename = |from: &str, to: &str| {
            rename_to_free_name((open.as_fd(), from.as_ref()), (open.as_fd(), to.as_ref()))
        };
        assert_eq!(rename("a", "b"), Err(Errno::EXIST));
        assert_eq!(fs::read(at("b")).unwrap(), b"b");
        rename("a", "c").unwrap();
        assert_eq!(fs::read(at("c")).unwrap(), b"a");
        assert!(!at("a").exists());
        assert_eq!(sync_directory(&open), Ok(true));
    }

    #[test]
    fn only_what_something_is_mounted_at_is_a_mount_point() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(&file) && !is_mount_point(&dir.path().join("nothing")));
    }
}
