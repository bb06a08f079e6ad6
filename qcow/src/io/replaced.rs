//! The file that a new one replaces: locked until then, and the ownership, permissions and attributes
//! that the new one takes over from it.

use std::ffi::{CStr, CString};
use std::fs::{File, Metadata};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::{Errno, retry_on_intr};

use super::{Access, FileStorage, Identity};
use crate::{Error, Remedy, Result};

/// Whether a new file may replace one that exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Replace {
    /// Never.
    #[default]
    Never,
    /// If nothing is known to use it: no process has locked it, no loop device is backed by it, and
    /// no image in its directory has it for a backing or data file.
    Unused,
    /// Also if it is in use. A process that has it open goes on with a file that has no name.
    InUse,
    /// Not replaced but emptied and written to where it is, as `qemu-img` does: it keeps its inode, mode
    /// and links, a symbolic link is followed, and a block device is overwritten. A file that does not exist gets the
    /// mode 0644, as far as the process allows. What stops half-way leaves it partly written. Refused
    /// while a process has locked it.
    Overwrite,
}

/// Access control lists of POSIX.
const ACL: &CStr = c"system.posix_acl_access";
/// The most bytes of a list of attributes, and of an attribute, that the kernel has.
const MOST: usize = 64 << 10;

/// A file that will be replaced.
#[derive(Debug)]
pub(super) struct Replaced {
    /// What it is. Holds QEMU's locks, unless it may be in use.
    pub(super) identity: Identity,
    _locked: FileStorage,
    owner: (u32, u32),
    mode: u32,
    attributes: Vec<(CString, Vec<u8>)>,
    warnings: Vec<String>,
}

impl Replaced {
    /// Opens the regular file at `path`, and locks it as a writer would, unless it may be in use.
    ///
    /// # Errors
    /// [`InUse`](crate::ErrorKind::InUse) if another process uses it,
    /// [`Io`](crate::ErrorKind::Io) if that cannot be found out.
    pub(super) fn open(path: &Path, replace: Replace) -> Result<Self> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::options()
            .read(true)
            .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
            .open(path)
            .map_err(|error| Error::io("could not open the file that is to be replaced", error))?;
        let locked = FileStorage::from_file(file)?;
        if replace != Replace::InUse {
            let changes = Access::WRITE | Access::RESIZE;
            locked
                .lock(Access::READ | changes, changes)
                .map_err(|error| error.hint(Remedy::ReplaceInUse))?;
        }
        let failed = |error| Error::io("could not read the file's status", error);
        let status = locked.file().metadata().map_err(failed)?;
        let mut warnings = Vec::new();
        let attributes = attributes(locked.file(), &mut warnings)?;
        Ok(Self {
            identity: locked.identity(),
            _locked: locked,
            owner: (status.uid(), status.gid()),
            mode: status.mode() & 0o7777,
            attributes,
            warnings,
        })
    }

    /// Gives `new` the owner, the group, the mode, the access control list, the security label
    /// and the user's attributes of the file that it will replace. Its owner may write to it until
    /// [`finish`](Self::finish).
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if owner, group, mode or access control list cannot be given:
    /// the users of the file might not be able to open the new one. Other losses become
    /// warnings.
    pub(super) fn hand_over(&mut self, new: &File) -> Result<()> {
        let status = status(new)?;
        if (status.uid(), status.gid()) != self.owner {
            let (owner, group) = (Uid::from_raw(self.owner.0), Gid::from_raw(self.owner.1));
            retry_on_intr(|| rustix::fs::fchown(new, Some(owner), Some(group)))
                .map_err(|error| lost("owner and group", error))?;
        }
        let has_acl = self.attributes.iter().any(|(name, _)| name.as_c_str() == ACL);
        if !has_acl {
            // One that the directory gave it.
            match retry_on_intr(|| rustix::fs::fremovexattr(new, ACL)) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) if has_none(error) => {}
                Err(error) => return Err(lost("access control list", error)),
            }
        }
        for (name, value) in &self.attributes {
            if read_attribute(new, name).is_ok_and(|now| now.as_ref() == Some(value)) {
                continue;
            }
            let set = || rustix::fs::fsetxattr(new, name.as_c_str(), value, XattrFlags::empty());
            match retry_on_intr(set) {
                Ok(()) => {}
                Err(error) if name.as_c_str() == ACL => {
                    return Err(lost("access control list", error));
                }
                Err(error) => self.warnings.push(format!(
                    "the attribute '{}' of the file that is replaced could not be kept: {}",
                    crate::Escaped(&name.to_string_lossy()),
                    std::io::Error::from(error)
                )),
            }
        }
        self.set_mode(new, self.mode | 0o600).map_err(|error| lost("mode", error))
    }

    /// Sets the final mode, where the owner may not write either. Returns the warnings.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub(super) fn finish(&mut self, new: &File) -> Result<Vec<String>> {
        self.set_mode(new, self.mode).map_err(|error| lost("mode", error))?;
        Ok(std::mem::take(&mut self.warnings))
    }

    fn set_mode(&self, new: &File, mode: u32) -> Result<(), Errno> {
        let now = new.metadata().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        if now?.mode() & 0o7777 == mode {
            return Ok(());
        }
        retry_on_intr(|| rustix::fs::fchmod(new, Mode::from_raw_mode(mode)))
    }
}

/// Attributes that an administrator or a program has set: not those that the system sets by itself.
fn is_kept(name: &CStr) -> bool {
    let name = name.to_bytes();
    [&b"system.posix_acl_access"[..], b"system.nfs4_acl", b"security.selinux"].contains(&name)
        || name.starts_with(b"user.")
}

fn attributes(file: &File, warnings: &mut Vec<String>) -> Result<Vec<(CString, Vec<u8>)>> {
    let mut names = vec![0; MOST];
    let len = match retry_on_intr(|| rustix::fs::flistxattr(file, names.as_mut_slice())) {
        Ok(len) => len,
        Err(error) if has_none(error) => return Ok(Vec::new()),
        Err(error) => {
            return Err(Error::io("could not read the file's attributes", error.into()));
        }
    };
    names.truncate(len);
    let mut kept = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !is_kept(name) {
            continue;
        }
        match read_attribute(file, name) {
            Ok(Some(value)) => kept.push((name.to_owned(), value)),
            Ok(None) => {}
            Err(error) if name == ACL => return Err(lost("access control list", error)),
            Err(error) => warnings.push(format!(
                "the attribute '{}' of the file that is replaced could not be read: {}",
                crate::Escaped(&name.to_string_lossy()),
                std::io::Error::from(error)
            )),
        }
    }
    Ok(kept)
}

/// `None` if there is no such attribute.
fn read_attribute(file: &File, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0; MOST];
    match retry_on_intr(|| rustix::fs::fgetxattr(file, name, value.as_mut_slice())) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(error) if has_none(error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file system has no such attributes.
fn has_none(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS)
}

fn status(file: &File) -> Result<Metadata> {
    file.metadata().map_err(|error| Error::io("could not read the new file's status", error))
}

fn lost(what: &str, error: Errno) -> Error {
    let message = format!("could not give the new file the {what} of the one that it replaces");
    Error::io(message, error.into()).hint(
        "run it as root or as the file's owner, or move the file away if its owner and permissions do not matter",
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn mode_and_attributes_go_to_the_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("old");
        fs::write(&old, "old").unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o464)).unwrap();
        let file = File::open(&old).unwrap();
        let set = rustix::fs::fsetxattr(&file, c"user.note", b"kept", XattrFlags::empty());
        let new = tempfile::tempfile_in(dir.path()).unwrap();
        let mut replaced = Replaced::open(&old, Replace::Unused).unwrap();
        replaced.hand_over(&new).unwrap();
        assert_eq!(new.metadata().unwrap().mode() & 0o7777, 0o664);
        assert!(replaced.finish(&new).unwrap().is_empty());
        assert_eq!(new.metadata().unwrap().mode() & 0o7777, 0o464);
        if set.is_ok() {
            let kept = read_attribute(&new, c"user.note").unwrap();
            assert_eq!(kept.as_deref(), Some(&b"kept"[..]));
        }
    }

    #[test]
    fn only_attributes_that_are_set_on_purpose_are_kept() {
        for name in [ACL, c"security.selinux", c"user.anything"] {
            assert!(is_kept(name), "{name:?}");
        }
        for name in [c"security.capability", c"trusted.overlay.opaque", c"system.posix_acl_default"]
        {
            assert!(!is_kept(name), "{name:?}");
        }
    }
}
