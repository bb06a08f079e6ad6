//! Room in directories of the destination, those included that would have to be made.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Disks;
use crate::Error;
use crate::facts::{DirectoryRights, MissingDirectory};
use crate::store::Store;
use crate::store::directory::LABEL;

/// Longer labels are none.
const LONGEST_LABEL: usize = 4096;

/// The directory itself, or the nearest one above it that exists; and those that are missing, the lowest first.
pub(crate) fn nearest(
    store: &dyn Store,
    directory: &Path,
) -> crate::Result<(PathBuf, Vec<PathBuf>)> {
    let mut missing = Vec::new();
    for at in directory.ancestors() {
        if store.is_directory(at)? {
            return Ok((at.to_path_buf(), missing));
        }
        missing.push(at.to_path_buf());
    }
    Err(Error::environment("the destination has no directory at all"))
}

impl Disks<'_> {
    /// Free bytes in a directory of the destination, or why nothing can be made there. Where it is missing and could be
    /// made, that is noted, with the rights that `own`, the source's in its place, has.
    pub(super) fn room(&self, directory: &Path, own: &Path) -> Result<u64, String> {
        let store = self.hosts.store;
        let why = match store.available(directory) {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error.message().to_owned(),
        };
        let Ok((above, missing)) = nearest(store, directory) else { return Err(why) };
        if missing.is_empty() {
            return Err(why);
        }
        let available = store.available(&above).map_err(|error| error.message().to_owned())?;
        // What has no counterpart at the source is like the uppermost that has.
        let root = Path::new("/");
        let likes = own.ancestors().chain(std::iter::repeat(root));
        let mut found = Vec::new();
        for (path, like) in missing.into_iter().zip(likes) {
            let rights = self.rights(like);
            let rights = rights
                .map_err(|why| format!("there is no directory '{}', and {why}", path.display()))?;
            found.push(MissingDirectory { path, rights });
        }
        let mut known = self.missing.borrow_mut();
        for directory in found.into_iter().rev() {
            if known.iter().all(|other| other.path != directory.path) {
                known.push(directory);
            }
        }
        Ok(available)
    }

    fn rights(&self, directory: &Path) -> Result<DirectoryRights, String> {
        let real = self.files.real(directory);
        let name = directory.display();
        let status = fs::metadata(&real).map_err(|error| format!("{name}: {error}"))?;
        let label =
            label(&real).map_err(|error| format!("the SELinux label of {name}: {error}"))?;
        if label.is_some() && !self.hosts.store.labels_directories() {
            return Err(format!("{name} has an SELinux label, which libvirt alone cannot set"));
        }
        Ok(DirectoryRights {
            mode: status.mode() & 0o7777,
            owner: status.uid(),
            group: status.gid(),
            label,
        })
    }
}

/// The SELinux label of a file; `None` if it has none.
fn label(path: &Path) -> Result<Option<String>, String> {
    let mut bytes = vec![0; LONGEST_LABEL];
    let length = match rustix::fs::getxattr(path, LABEL, bytes.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    bytes.truncate(length);
    let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
    Ok(Some(text.trim_end_matches('\0').to_owned()))
}
