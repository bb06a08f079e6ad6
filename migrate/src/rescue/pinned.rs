//! Files that a process has open, taken hold of before anything is asked of them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use qcow::chain::{Format, OpenOptions};
use qcow::io::FileStorage;
use qcow::ops::info::{ImageInfo, InfoOptions, info};
use rustix::fs::{Mode, OFlags};

use super::facts::{Content, Gone};
use super::view::{View, shown};
use crate::fs::fd_path;
use crate::process::{deleted_name, is_temporary, writes};

/// A file that a process has open, held but not yet opened.
pub(super) struct Pinned {
    pub(super) pin: OwnedFd,
    pub(super) object: (u64, u64),
    pub(super) name: PathBuf,
    pub(super) gone: Gone,
    pub(super) written: bool,
}

impl Pinned {
    /// Opens it for reading.
    pub(super) fn open(&self) -> std::io::Result<(File, FileStorage)> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(fd_path(&self.pin), flags, Mode::empty())?);
        let storage = FileStorage::from_file(file.try_clone()?);
        Ok((file, storage.map_err(|error| io_error(error.message()))?))
    }
}

pub(super) fn io_error(message: &str) -> std::io::Error {
    std::io::Error::other(message.to_owned())
}

/// Takes hold of the regular file behind a descriptor. What the descriptor's number means may change
/// meanwhile, so all else is asked of what was taken hold of.
pub(super) fn pin(descriptor: &Path, view: &View) -> Option<Pinned> {
    let pin = rustix::fs::open(descriptor, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let status = rustix::fs::fstat(&pin).ok()?;
    if rustix::fs::FileType::from_raw_mode(status.st_mode) != rustix::fs::FileType::RegularFile {
        return None;
    }
    let link = shown(pin.as_fd()).ok().filter(|link| link.is_absolute())?;
    let object = (status.st_dev, status.st_ino);
    let deleted = deleted_name(&link).filter(|_| {
        // A file may have that for a name.
        view.at(&link).is_none_or(|named| (named.st_dev, named.st_ino) != object)
    });
    let temporary = is_temporary(deleted.as_ref().unwrap_or(&link));
    let (name, gone) = match deleted {
        Some(name) if temporary => (name, Gone::No),
        Some(name) => (name, Gone::Deleted),
        None if is_left_over(&link) => (link, Gone::LeftOver),
        None => (link, Gone::No),
    };
    Some(Pinned { written: writes(descriptor), pin, object, name, gone })
}

/// Whether a file's name is one that the NFS client gives what was deleted while it is open: `.nfs` and the
/// numbers of the file and of a counter, in hexadecimal digits.
fn is_left_over(name: &Path) -> bool {
    let name = name.file_name().map_or(&[][..], std::os::unix::ffi::OsStrExt::as_bytes);
    name.strip_prefix(b".nfs")
        .is_some_and(|rest| rest.len() >= 16 && rest.iter().all(u8::is_ascii_hexdigit))
}

/// What the first bytes and the header say.
pub(super) fn content(storage: &FileStorage, pinned: &Pinned) -> (Content, Option<ImageInfo>) {
    if !matches!(Format::probe(storage), Ok(Format::Qcow2)) {
        return (Content::Raw, None);
    }
    let open = OpenOptions::default().format(Format::Qcow2).force_share(true);
    let options = InfoOptions::default().open(open);
    let path = fd_path(&pinned.pin);
    // A second time if it was just being written.
    let told = info(&path, &options).or_else(|_| info(&path, &options));
    match told.map(|images| images.into_iter().next()) {
        Ok(Some(told)) => (Content::Qcow2 { virtual_size: told.virtual_size }, Some(told)),
        Ok(None) => (Content::Broken { why: "it could not be read".into() }, None),
        Err(error) => (Content::Broken { why: error.message().to_owned() }, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_overs_of_nfs_are_known_by_their_names() {
        assert!(is_left_over(Path::new("/a/.nfs0000000000a1b2c300000007")));
        assert!(!is_left_over(Path::new("/a/.nfs-notes")));
        assert!(!is_left_over(Path::new("/a/nfs0000000000a1b2c300000007")));
    }
}
