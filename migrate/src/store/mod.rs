//! The files of a host, however it is reached: as a directory here, through libvirt's storage API, or
//! through the same binary at the far end.
//!
//! All paths are absolute paths of that host. Nothing that exists is ever written to: what is made is
//! made under a name that was free, and only what was made can be removed.

mod connection;
pub(crate) mod content;
pub(crate) mod directory;
pub(crate) mod holders;
#[cfg(feature = "libvirt")]
pub mod libvirt;
mod local;
mod part;
pub(crate) mod partial;
mod remote;
mod root;

use std::fs::File;
use std::path::{Path, PathBuf};

use qcow::chain::Format;
use qcow::{CancelToken, Observer};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::facts::{DirectoryRights, Identity, NamedLayer, ObjectFacts};

pub use local::LocalStore;
pub use part::Part;
pub use remote::RemoteStore;
pub use root::identity_of;

/// The files of one host.
pub trait Store: Send + Sync {
    /// How it is reached, in words for messages.
    fn describe(&self) -> String;

    /// What is at `path`; `None` if nothing is. A symbolic link at the end is not followed: it is
    /// reported as an error, because what it will point to later is not known.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment), as all methods here.
    fn look(&self, path: &Path) -> Result<Option<ObjectFacts>>;

    /// Free bytes in a directory, for the user that makes files there.
    ///
    /// # Errors
    /// See [`look`](Self::look); also if it is no directory or cannot be written to.
    fn available(&self, directory: &Path) -> Result<u64>;

    /// A word for the file system that a directory is on: directories with the same word have to be taken to
    /// share their free bytes. Where only sizes are known, two of the same size have the same word.
    ///
    /// # Errors
    /// See [`look`](Self::look).
    fn filesystem(&self, directory: &Path) -> Result<String>;

    /// Names of the files in a directory. At most `limit`.
    ///
    /// # Errors
    /// See [`look`](Self::look).
    fn list(&self, directory: &Path, limit: usize) -> Result<Vec<PathBuf>>;

    /// Makes a file of this content. It must not exist. It appears under `path` only when all of it is there
    /// and on stable storage; where the way of access cannot do that, it is made under its name from
    /// the start, and removed if it cannot be finished. Holes stay holes. What an interrupted call left under
    /// a temporary name is taken up again if it came from the same content.
    ///
    /// # Errors
    /// See [`look`](Self::look); [`Refused`](crate::ErrorKind::Refused) if it exists;
    /// [`Interrupted`](crate::ErrorKind::Interrupted).
    fn put(
        &self,
        path: &Path,
        content: &File,
        mode: Mode,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Identity>;

    /// The name under which [`put`](Self::put) makes this content before it gets its own; `None` if it
    /// uses no other. Whoever keeps a journal writes it down first.
    ///
    /// # Errors
    /// See [`look`](Self::look).
    fn temporary(&self, _path: &Path, _content: &File) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    /// What tells a file that [`put`](Self::put) makes of this content from any other by what is in it, also once
    /// it has been filled; `None` where its identity does that. Whoever keeps a journal writes it down first, and
    /// hands it back to [`trust`](Self::trust) or [`discard`](Self::discard) in a later process.
    ///
    /// # Errors
    /// See [`look`](Self::look).
    fn proof(&self, _content: &File) -> Result<Option<String>> {
        Ok(None)
    }

    /// Has [`remove`](Self::remove) accept what is at `path` if it is as a [`proof`](Self::proof) says, although its
    /// times have changed.
    fn trust(&self, _path: &Path, _proof: &str) {}

    /// Removes what an interrupted [`put`](Self::put) left under its final name, where it is made under that name,
    /// if it is as a [`proof`](Self::proof) says. `Ok(false)` if it is not, or nothing is there.
    ///
    /// # Errors
    /// See [`look`](Self::look); [`Refused`](crate::ErrorKind::Refused) if a guest uses it.
    fn discard(&self, _path: &Path, _proof: &str) -> Result<bool> {
        Ok(false)
    }

    /// The file's bytes, copied to a temporary file here: for reading back what was made. Refused beyond
    /// `limit` bytes.
    ///
    /// # Errors
    /// See [`look`](Self::look).
    fn fetch(&self, path: &Path, limit: u64) -> Result<File>;

    /// Itself and everything below it, with the formats that are recorded, and the sizes of their
    /// disks; the uppermost first.
    ///
    /// # Errors
    /// See [`look`](Self::look).
    fn chain(&self, path: &Path, format: Option<Format>) -> Result<Vec<StoreLayer>>;

    /// Whether the disk that the image at `path` shows is that of `wanted`.
    ///
    /// # Errors
    /// See [`look`](Self::look); [`Interrupted`](crate::ErrorKind::Interrupted).
    fn same_content(
        &self,
        path: &Path,
        format: Format,
        wanted: &Wanted<'_>,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<crate::facts::Content>;

    /// Digest of a disk, or of a part of it, even while a process has the image open: for a guest that is paused, and
    /// whose images do not change although its process has them open. `None` where disks cannot be hashed
    /// this way.
    ///
    /// # Errors
    /// See [`look`](Self::look); [`Interrupted`](crate::ErrorKind::Interrupted).
    fn still_digest(
        &self,
        _path: &Path,
        _format: Format,
        _part: &Part,
        _observer: &dyn Observer,
        _cancel: &CancelToken,
    ) -> Result<Option<String>> {
        Ok(None)
    }

    /// Removes a file if it is still the object that we made. `Ok(false)` if nothing is there.
    ///
    /// # Errors
    /// See [`look`](Self::look); [`Refused`](crate::ErrorKind::Refused) if it is another object by
    /// now, or a process has it open.
    fn remove(&self, path: &Path, made: &Identity) -> Result<bool>;

    /// Whether there is a directory at `path`.
    ///
    /// # Errors
    /// See [`look`](Self::look); also if something else is there.
    fn is_directory(&self, path: &Path) -> Result<bool>;

    /// Whether the directories that it makes have their SELinux label.
    fn labels_directories(&self) -> bool {
        true
    }

    /// The name under which the directory `path` is made before [`name_directory`](Self::name_directory); `None` if
    /// it is made under its own.
    ///
    /// # Errors
    /// See [`look`](Self::look).
    fn temporary_directory(&self, _path: &Path) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    /// Makes a directory with these rights, in one that exists, on stable storage.
    ///
    /// # Errors
    /// See [`look`](Self::look); [`Refused`](crate::ErrorKind::Refused) if something is there.
    fn make_directory(&self, path: &Path, rights: &DirectoryRights) -> Result<Identity>;

    /// Gives a directory that was made another name beside it. `Ok(false)` if something has that name.
    ///
    /// # Errors
    /// See [`look`](Self::look); [`Refused`](crate::ErrorKind::Refused) if it is another directory by now.
    fn name_directory(&self, from: &Path, to: &Path, made: &Identity) -> Result<bool>;

    /// Removes a directory that we made, if it is empty. `Ok(false)` if nothing is there.
    ///
    /// # Errors
    /// See [`look`](Self::look); [`Refused`](crate::ErrorKind::Refused) if it is not empty, or another one by now.
    fn remove_directory(&self, path: &Path, made: &Identity) -> Result<bool>;
}

/// Who may do what with a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A guest's own disk: 0600.
    Private,
    /// A backing file that must not change: 0444.
    ReadOnly,
}

/// The content that something at the destination is compared with.
#[derive(Debug)]
#[non_exhaustive]
pub struct Wanted<'a> {
    /// The tree hash of the disk, with its size.
    pub digest: &'a str,
    /// If the content is that of one file: the file, for a comparison byte by byte where the other end
    /// cannot hash disks.
    pub file: Option<&'a File>,
}

impl<'a> Wanted<'a> {
    /// A disk of this tree hash.
    pub fn new(digest: &'a str) -> Self {
        Self { digest, file: None }
    }
}

/// One layer of a chain at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StoreLayer {
    /// Its name and format.
    pub layer: NamedLayer,
    /// Which object it is.
    pub identity: Identity,
    /// Size of its disk.
    pub virtual_size: u64,
    /// Which process has it open for writing, in words.
    pub in_use: Option<String>,
}
