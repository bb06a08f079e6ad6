//! The files of this host, or of a directory that stands for a host.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow::chain::{Chain, FilePolicy, Format, Layer, OpenOptions, Policy, WorkingDirectory};
use qcow::format::whole_sectors;
use qcow::image::Image;
use qcow::io::{Access, FileStorage, Storage, rename_to_free_name, sync_directory};
use qcow::ops::digest::{Manifest, tree_hash};
use qcow::{CancelToken, ErrorKind, Observer, Silent};
use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::content::{Content, Sink, temporary};
use super::holders::{holder, soon};
use super::partial::Partial;
use super::root::{Pinned, Root, failed, identity_of, is_still};
use super::{Mode, Part, Store, StoreLayer, Wanted, directory};
use crate::facts::{self, DirectoryRights, Identity, ImageFacts, NamedLayer, ObjectFacts};
use crate::fs::fd_path;
use crate::{Error, Result};

/// The files below a directory, whose paths begin at it. Nothing outside can be reached, by no path
/// and no symbolic link.
#[derive(Debug)]
pub struct LocalStore {
    root: Root,
}

impl LocalStore {
    /// The files below `root`: `/` for this host, another directory for one that stands for a host.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) if it cannot be opened.
    pub fn new(root: &Path) -> Result<Self> {
        Ok(Self { root: Root::open(root)? })
    }

    /// Gives the file that `made` was another name, where nothing may be yet. It is well if that is its name
    /// already; if it cannot be made durable, the file has its old name again.
    ///
    /// # Errors
    /// [`Refused`](crate::ErrorKind::Refused) if it is another object by now or something has the
    /// new name; [`Environment`](crate::ErrorKind::Environment).
    pub fn rename(&self, from: &Path, to: &Path, made: &Identity) -> Result<()> {
        let (old, name) = self.root.parent(from)?;
        let (new, new_name) = self.root.parent(to)?;
        let (device, inode) = numbers(made, from)?;
        if is_still(&old, name, device, inode) {
            rename_to_free_name((old.as_fd(), name), (new.as_fd(), new_name)).map_err(|error| {
                match error {
                    Errno::EXIST => {
                        Error::refused(format!("{}: a file exists already", to.display()))
                    }
                    error => failed("could not rename it", from, error),
                }
            })?;
        } else if !is_still(&new, new_name, device, inode) {
            return Err(replaced(from));
        }
        for directory in [&new, &old] {
            if let Err(error) = sync_directory(directory) {
                let _ = rename_to_free_name((new.as_fd(), new_name), (old.as_fd(), name));
                return Err(failed("could not sync the directory", from, error));
            }
        }
        Ok(())
    }

    /// Starts a file, or goes on with it. `key` is its content's.
    pub(crate) fn begin(&self, path: &Path, key: &str, len: u64) -> Result<Partial> {
        Partial::begin(&self.root, path, key, len)
    }

    /// Opens a file that we made, if it is still that.
    pub(crate) fn open(&self, path: &Path, made: &Identity) -> Result<File> {
        let pinned = self.root.pin_existing(path)?;
        let status = pinned.status();
        if (status.st_dev, status.st_ino) != numbers(made, path)? {
            return Err(replaced(path));
        }
        pinned.open(path)
    }

    /// Takes away what [`put`](Store::put) left for the next try.
    pub(crate) fn abandon(&self, path: &Path, content: &File) {
        let Ok(Some(temporary)) = self.temporary(path, content) else { return };
        let bytes = Content::new(content).and_then(|bytes| Ok((bytes.key(path)?, bytes.len())));
        if let Ok((key, len)) = bytes
            && matches!(self.root.pin(&temporary), Ok(Some(_)))
            && let Ok(partial) = self.begin(path, &key, len)
        {
            partial.discard();
        }
    }

    /// Opens a file that something is to be read from.
    pub(crate) fn content(&self, path: &Path, limit: u64) -> Result<Content> {
        let content = Content::new(&self.root.pin_existing(path)?.open(path)?)?;
        if content.len() > limit {
            return Err(Error::refused(format!(
                "{}: {} bytes are too many, the limit is {limit}",
                path.display(),
                content.len()
            )));
        }
        Ok(content)
    }

    /// The tree hash of the disk that the image at `path` shows.
    pub(crate) fn digest(
        &self,
        path: &Path,
        format: Format,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<facts::Content> {
        let pinned = self.root.pin_existing(path)?;
        let hash = self.open_chain(path, Some(format), false, &pinned).and_then(|chain| {
            for layer in chain.layers() {
                if let Some(in_use) = layer.file().and_then(writer) {
                    return Err(qcow::Error::denied(in_use).file(layer.path()));
                }
            }
            if let Some(digest) = self.known_digest(path, &chain) {
                return Ok(digest);
            }
            tree_hash(&chain, 0, observer, cancel).map(|hash| hash.root.to_string())
        });
        match hash {
            Ok(digest) => Ok(facts::Content::Equal { digest }),
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(Error::interrupted()),
            Err(error) => Ok(facts::Content::Unknown { why: error.to_string() }),
        }
    }

    /// What a manifest beside the image says, if it is to be believed.
    fn known_digest(&self, path: &Path, chain: &Chain) -> Option<String> {
        let mut name = path.as_os_str().to_owned();
        name.push(".manifest");
        let pinned = self.root.pin(Path::new(&name)).ok()??;
        let file = pinned.open(Path::new(&name)).ok()?;
        let manifest = Manifest::read_trusted(&fd_path(&file), chain, None).ok()?;
        Some(manifest.tree.root.to_string())
    }

    fn open_chain(
        &self,
        path: &Path,
        format: Option<Format>,
        force_share: bool,
        pinned: &Pinned,
    ) -> qcow::Result<Chain> {
        let backing = if self.root.is_whole_host() {
            FilePolicy::AnyLocal
        } else {
            FilePolicy::InRoot(self.root.pinned_path())
        };
        let policy = Policy::default().backing(backing).data_file(FilePolicy::Deny);
        // Relative names in `json:` mean the directory of QEMU's process, which does not run yet: not ours.
        let options = OpenOptions::default()
            .format(format)
            .force_share(force_share)
            .policy(policy)
            .working_directory(WorkingDirectory::Unknown);
        let chain = Chain::open(path, &options)?;
        let opened = chain.layers().first().and_then(|layer| layer.storage().identity());
        let same = pinned.storage(path).is_ok_and(|file| Some(file.identity()) == opened);
        if !same {
            return Err(qcow::Error::denied("it was replaced while it was being opened").file(path));
        }
        Ok(chain)
    }
}

impl Store for LocalStore {
    fn describe(&self) -> String {
        if self.root.is_whole_host() {
            "this host".to_owned()
        } else {
            format!("the directory '{}'", self.root.path().display())
        }
    }

    fn look(&self, path: &Path) -> Result<Option<ObjectFacts>> {
        let Some(pinned) = self.root.pin(path)? else { return Ok(None) };
        let file = pinned.storage(path)?;
        Ok(Some(ObjectFacts {
            identity: identity_of(&file)?,
            block_device: file.kind() == qcow::io::OpenedAs::BlockDevice,
            in_use: writer(&file).or_else(|| pinned.is_claimed().then(|| CLAIMED.to_owned())),
            image: image_facts(file),
        }))
    }

    fn available(&self, directory: &Path) -> Result<u64> {
        let open = self.root.directory(directory)?;
        let wanted = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        rustix::fs::accessat(&open, ".", wanted, AtFlags::EACCESS)
            .map_err(|error| failed("cannot make files there", directory, error))?;
        let system = rustix::fs::fstatvfs(&open)
            .map_err(|error| failed("could not read the free space", directory, error))?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }

    fn filesystem(&self, directory: &Path) -> Result<String> {
        let status = rustix::fs::fstat(self.root.directory(directory)?)
            .map_err(|error| failed("could not look at the directory", directory, error))?;
        Ok(format!("device {}", status.st_dev))
    }

    fn list(&self, directory: &Path, limit: usize) -> Result<Vec<PathBuf>> {
        let open = self.root.directory(directory)?;
        let wrong = |error| failed("could not read the directory", directory, error);
        let mut names = Vec::new();
        for entry in Dir::read_from(&open).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let kind = match entry.file_type() {
                FileType::Unknown => rustix::fs::statat(&open, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(FileType::Unknown, |status| FileType::from_raw_mode(status.st_mode)),
                kind => kind,
            };
            if matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
                if names.len() >= limit {
                    break;
                }
                names.push(directory.join(name));
            }
        }
        names.sort();
        Ok(names)
    }

    fn put(
        &self,
        path: &Path,
        content: &File,
        mode: Mode,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Identity> {
        let bytes = Content::new(content)?;
        let mut partial = self.begin(path, &bytes.key(path)?, bytes.len())?;
        if partial.clone_of(content) {
            observer.progress(bytes.len(), bytes.len());
        } else if let Err(error) = bytes.send(&mut partial, observer, cancel) {
            if error.kind() == crate::ErrorKind::Interrupted {
                partial.discard();
            }
            return Err(error);
        }
        partial.publish(mode)
    }

    fn temporary(&self, path: &Path, content: &File) -> Result<Option<PathBuf>> {
        Ok(Some(temporary(path, &Content::new(content)?.key(path)?)))
    }

    fn fetch(&self, path: &Path, limit: u64) -> Result<File> {
        let content = self.content(path, limit)?;
        let mut copy = Copy::new(content.len())?;
        content.send(&mut copy, &Silent, &CancelToken::new())?;
        Ok(copy.0)
    }

    fn chain(&self, path: &Path, format: Option<Format>) -> Result<Vec<StoreLayer>> {
        let pinned = self.root.pin_existing(path)?;
        let chain = self.open_chain(path, format, true, &pinned)?;
        chain.layers().iter().map(store_layer).collect()
    }

    fn same_content(
        &self,
        path: &Path,
        format: Format,
        wanted: &Wanted<'_>,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<facts::Content> {
        let found = self.digest(path, format, observer, cancel)?;
        Ok(compared(found, wanted.digest))
    }

    fn still_digest(
        &self,
        path: &Path,
        format: Format,
        part: &Part,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Option<String>> {
        let pinned = self.root.pin_existing(path)?;
        let chain = self.open_chain(path, Some(format), true, &pinned)?;
        part.digest(&chain, observer, cancel).map(Some)
    }

    fn is_directory(&self, path: &Path) -> Result<bool> {
        directory::exists(&self.root, path)
    }

    fn temporary_directory(&self, path: &Path) -> Result<Option<PathBuf>> {
        directory::unnamed(path)
    }

    fn make_directory(&self, path: &Path, rights: &DirectoryRights) -> Result<Identity> {
        directory::make(&self.root, path, rights)
    }

    fn name_directory(&self, from: &Path, to: &Path, made: &Identity) -> Result<bool> {
        directory::name(&self.root, from, to, made)
    }

    fn remove_directory(&self, path: &Path, made: &Identity) -> Result<bool> {
        directory::remove(&self.root, path, made)
    }

    fn remove(&self, path: &Path, made: &Identity) -> Result<bool> {
        let Some(pinned) = self.root.pin(path)? else { return Ok(false) };
        let (directory, name) = self.root.parent(path)?;
        let (device, inode) = numbers(made, path)?;
        let status = pinned.status();
        if (status.st_dev, status.st_ino) != (device, inode)
            || FileType::from_raw_mode(status.st_mode) != FileType::RegularFile
            || pinned.born(path)?.is_some_and(|born| born > made.ctime_ns)
        {
            return Err(replaced(path));
        }
        let file = pinned.storage(path)?;
        let mut user = None;
        let unused = soon(|| {
            let locked = || (!file.used_for().is_empty()).then(|| "another process".to_owned());
            user = holder(device, inode).or_else(locked);
            user.is_none().then_some(())
        });
        if unused.is_none() {
            let user = user.unwrap_or_default();
            return Err(Error::refused(format!("{}: {user} has it open", path.display()))
                .hint("make sure that no guest uses it, then try again"));
        }
        // Between this look and the removal there is nothing but one call to the system.
        if !is_still(&directory, name, device, inode) {
            return Err(replaced(path));
        }
        rustix::fs::unlinkat(&directory, name, AtFlags::empty())
            .map_err(|error| failed("could not remove it", path, error))?;
        sync_directory(&directory)
            .map_err(|error| failed("could not sync the directory", path, error))?;
        Ok(true)
    }
}

/// The temporary file that [`fetch`](Store::fetch) fills.
#[derive(Debug)]
pub(super) struct Copy(pub(super) File);

impl Copy {
    pub(super) fn new(len: u64) -> Result<Self> {
        tempfile::tempfile()
            .and_then(|file| file.set_len(len).map(|()| Self(file)))
            .map_err(|error| Error::io("could not make a temporary file", error))
    }
}

impl Sink for Copy {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0
            .write_all_at(bytes, offset)
            .map_err(|error| Error::io("could not write to a temporary file", error))
    }
}

/// What a digest that was found says about the one that is wanted.
pub(super) fn compared(found: facts::Content, wanted: &str) -> facts::Content {
    match found {
        facts::Content::Equal { digest } if digest != wanted => facts::Content::Different,
        found => found,
    }
}

/// Its format by its first bytes, which is for information only: nothing is opened by it.
fn image_facts(file: FileStorage) -> Option<ImageFacts> {
    let format = Format::probe(&file).ok()?;
    let virtual_size = match format {
        Format::Raw => whole_sectors(file.len()),
        Format::Qcow2 => Image::open(Arc::new(file)).ok()?.virtual_size(),
        _ => return None,
    };
    Some(ImageFacts { format, virtual_size })
}

fn store_layer(layer: &Layer) -> Result<StoreLayer> {
    let file = layer.file().ok_or_else(|| {
        Error::refused(format!("{}: the layer is not in a file", layer.path().display()))
    })?;
    Ok(StoreLayer {
        layer: NamedLayer {
            path: layer.path().to_path_buf(),
            format: Some(layer.format().to_string()),
        },
        identity: identity_of(file)?,
        virtual_size: layer.virtual_size(),
        in_use: writer(file),
    })
}

/// Of a device that is no process's.
const CLAIMED: &str = "it is mounted, or part of a volume group, an array or an encrypted device";

fn writer(file: &FileStorage) -> Option<String> {
    file.used_for()
        .intersects(Access::WRITE | Access::RESIZE)
        .then(|| "another process has it open for writing (a running guest?)".to_owned())
}

/// Device and inode of what we made.
fn numbers(made: &Identity, path: &Path) -> Result<(u64, u64)> {
    made.device.zip(made.inode).ok_or_else(|| {
        Error::refused(format!("{}: nothing proves that we made it", path.display()))
    })
}

fn replaced(path: &Path) -> Error {
    Error::refused(format!("{}: it is not the file that we made", path.display()))
        .hint("another process replaced it; examine it, and remove it manually if it is not needed")
}
