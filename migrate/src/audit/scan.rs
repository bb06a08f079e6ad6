//! Looks at files: directories, headers, and what headers name. Nothing is written, and no lock is taken.
//!
//! The tree may change meanwhile, and may be made to do harm. What is looked at is pinned by a descriptor
//! first, and opened for reading only after it is known to be a file or a block device, so that fifos
//! and other devices are never opened. Directories are entered once, by identity.

pub(crate) mod directory;
mod file;
mod known;
mod loops;
mod processes;
mod vmdk;

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use qcow::CancelToken;
use rayon::prelude::*;

use self::file::Look;
pub use self::known::Known;
use self::loops::Loop;
use super::value::{Content, Domain, Image, Key, Link, Name, Need, Presence, Survey, Unseen};
use crate::{Error, Result};

/// An image with more names than this is not followed from every one.
const MOST_NAMES: usize = 1000;

/// A scan that goes on: paths, hosts and processes are added, and [`finish`](Self::finish) follows what
/// the images name.
#[derive(Debug)]
pub struct Scan<'a> {
    found: Mutex<Found>,
    cancel: &'a CancelToken,
    all_deleted: bool,
    known: Option<&'a Known>,
}

#[derive(Debug, Default)]
struct Found {
    /// Directories and files that were given.
    places: Vec<PathBuf>,
    images: HashMap<Key, Image>,
    /// An image, and a name from which its relative names have not been followed yet.
    waiting: Vec<(Key, PathBuf)>,
    /// Directories from which an image's names have been followed.
    followed: HashSet<(Key, PathBuf)>,
    entered: HashSet<(u64, u64)>,
    /// Links to directories that were met.
    directory_links: Vec<PathBuf>,
    survey: Survey,
}

impl Found {
    /// A known image has this name too.
    fn name(&mut self, key: &Key, name: Name) {
        let Some(image) = self.images.get_mut(key) else { return };
        if image.names.contains(&name) {
            return;
        }
        if image.names.len() < MOST_NAMES {
            self.waiting.push((key.clone(), name.path.clone()));
            image.names.push(name);
        } else {
            let why =
                format!("it has more than {MOST_NAMES} names, not all of which were followed");
            let unseen = Unseen { host: None, path: image.path().to_path_buf(), why, asked: false };
            if self.survey.unseen.last() != Some(&unseen) {
                self.survey.unseen.push(unseen);
            }
        }
    }
}

impl<'a> Scan<'a> {
    /// An empty scan; `cancel` ends it.
    pub fn new(cancel: &'a CancelToken) -> Self {
        Self { found: Mutex::default(), cancel, all_deleted: false, known: None }
    }

    /// Brings all images that were deleted and are held open, wherever they were; otherwise those that were
    /// in the directories that are looked at, or have the name of an image that is.
    #[must_use]
    pub fn with_all_deleted(mut self) -> Self {
        self.all_deleted = true;
        self
    }

    /// Does not read files again that an earlier scan has read and that are as they were.
    #[must_use]
    pub fn knowing(mut self, known: &'a Known) -> Self {
        self.known = Some(known);
        self
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something could not be looked at.
    pub fn unseen(&self, unseen: Unseen) {
        self.found().survey.unseen.push(unseen);
    }

    /// Adds a file or a directory with everything below it. What cannot be looked at is kept as
    /// [`Unseen`].
    ///
    /// # Errors
    /// [`Interrupted`](crate::ErrorKind::Interrupted).
    pub fn path(&self, path: &Path) -> Result<()> {
        self.place(path, true)
    }

    /// As [`path`](Self::path), for one that was `asked` for, or that a pool is at.
    pub(super) fn place(&self, path: &Path, asked: bool) -> Result<()> {
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) => {
                let why = in_words(&error);
                self.unseen(Unseen { host: None, path: path.to_path_buf(), why, asked });
                return Ok(());
            }
        };
        self.found().places.push(real.clone());
        if real.is_dir() {
            rayon::scope(|scope| directory::enter(self, scope, real, asked));
            return self.cancel.check().map_err(Error::from);
        }
        let name = canonical(path);
        if self.image(&name).is_none_or(|key| matches!(key, Key::Name { .. })) {
            let why = "it is neither a file, nor a block device, nor a directory".into();
            self.unseen(Unseen { host: None, path: path.to_path_buf(), why, asked });
        }
        Ok(())
    }

    /// Adds the image of this name, which another image or a domain names, wherever it is; also if it does not exist. `None` if
    /// the name is empty.
    pub fn image(&self, name: &Path) -> Option<Key> {
        if name.as_os_str().is_empty() {
            return None;
        }
        let name = canonical(name);
        // Where it leads is a name as well, and the better one.
        if let Some(real) = name.canonicalize().ok().filter(|real| *real != name) {
            let _ = self.add(&real, false, Look::Wanted);
        }
        Some(self.add(&name, name.is_symlink(), Look::Wanted).unwrap_or_else(|| {
            let key = Key::Name { host: None, path: name.clone() };
            let own = Name { symlink: false, path: name };
            self.keep(Image::new(key.clone(), own, Presence::Missing));
            key
        }))
    }

    /// Looks at one name. `None` if there is nothing, or, unless it is needed, no image.
    fn add(&self, name: &Path, symlink: bool, look: Look) -> Option<Key> {
        let own = || Name { symlink, path: name.to_path_buf() };
        let pinned = match file::pin(name) {
            Ok(pinned) => pinned,
            Err(error) if is_gone(&error) => return None,
            Err(error) => {
                let why = in_words(&error);
                let sure = is_circle(&error);
                return self.unusable(own(), why, sure, look);
            }
        };
        let Some(key) = pinned.key() else {
            let why = "it is neither a file nor a block device".into();
            return self.unusable(own(), why, true, look);
        };
        if self.known(&key, &own()) {
            return Some(key);
        }
        match file::read(&pinned, key.clone(), own(), look, self.known) {
            Ok(Some(image)) => {
                self.keep(image);
                Some(key)
            }
            Ok(None) => {
                let mut found = self.found();
                found.survey.other_files = found.survey.other_files.saturating_add(1);
                None
            }
            Err(error) => self.unusable(own(), in_words(&error), false, look),
        }
    }

    /// Keeps what is there and cannot be an image: if it is needed, as an image, and otherwise only
    /// that it was not seen.
    fn unusable(&self, own: Name, why: String, sure: bool, look: Look) -> Option<Key> {
        if look == Look::Passing {
            self.unseen(Unseen { host: None, path: own.path, why, asked: false });
            return None;
        }
        let key = Key::Name { host: None, path: own.path.clone() };
        self.keep(Image::new(key.clone(), own, Presence::Unusable { why, sure }));
        Some(key)
    }

    /// Whether the image was looked at before; if so, it has this name too.
    fn known(&self, key: &Key, name: &Name) -> bool {
        let mut found = self.found();
        found.images.contains_key(key) && {
            found.name(key, name.clone());
            true
        }
    }

    /// Adds an image, or its names to what is known of it.
    pub(super) fn keep(&self, image: Image) {
        let mut found = self.found();
        let found = &mut *found;
        let names = image.names.clone();
        let key = image.key.clone();
        match found.images.get_mut(&key) {
            Some(known) => {
                known.links.extend(image.links);
                // Of another host, its name may have been met before what is known of it.
                if known.header.is_none() && known.content == Content::Unknown {
                    known.content = image.content;
                    known.header = image.header;
                    known.status = image.status;
                }
            }
            None => {
                found.waiting.extend(names.iter().map(|name| (key.clone(), name.path.clone())));
                found.images.insert(key.clone(), image);
            }
        }
        names.into_iter().for_each(|name| found.name(&key, name));
    }

    /// The images of another host that its libvirt has told of.
    pub(super) fn on_host(&self, host: &str) -> HashSet<Key> {
        self.found().images.keys().filter(|key| key.host() == Some(host)).cloned().collect()
    }

    /// Adds a domain.
    pub(super) fn domain(&self, domain: Domain) {
        self.found().survey.domains.push(domain);
    }

    /// This machine's libvirt told of its domains.
    pub(super) fn domains_are_known(&self) {
        self.found().survey.domains_known = true;
    }

    /// Follows what images name until nothing is new, and looks who has them open.
    ///
    /// # Errors
    /// [`Interrupted`](crate::ErrorKind::Interrupted).
    pub fn finish(self) -> Result<Survey> {
        let open = processes::Open::now(Path::new("/proc"));
        let mut deleted = open.deleted_images();
        let mut loops = loops::attached();
        loop {
            let waiting = std::mem::take(&mut self.found().waiting);
            self.cancel.check()?;
            waiting.into_par_iter().for_each(|(key, name)| self.follow(&key, &name));
            self.keep_deleted(&mut deleted);
            loops.retain(|device| !self.keep_loop(device));
            if self.found().waiting.is_empty() {
                break;
            }
        }
        self.cancel.check()?;
        let found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut survey = found.survey;
        (survey.holders, survey.unseen) = {
            let mut unseen = survey.unseen;
            unseen.extend(open.unseen());
            unseen.extend(directory::left_out(found.directory_links, &found.entered));
            (open.holders(|key| found.images.contains_key(key)), unseen)
        };
        survey.places = found.places;
        survey.images = found.images.into_values().collect();
        for image in &mut survey.images {
            image.names.sort();
            image.links.sort_by(|a, b| (a.need, &a.through).cmp(&(b.need, &b.through)));
            // That of the name that the image is shown by goes first.
            let first =
                image.names.first().and_then(|name| name.path.parent()).map(Path::to_path_buf);
            image.links.sort_by_key(|link| (link.need, Some(&link.through) != first.as_ref()));
        }
        survey.images.sort_by(|a, b| (a.path(), &a.key).cmp(&(b.path(), &b.key)));
        survey.domains.sort_by(|a, b| (&a.host, &a.name).cmp(&(&b.host, &b.name)));
        survey.unseen.sort();
        survey.unseen.dedup();
        Ok(survey)
    }

    /// Takes what belongs here out of the images that were deleted.
    fn keep_deleted(&self, deleted: &mut Vec<Image>) {
        if deleted.is_empty() {
            return;
        }
        let belongs: Vec<bool> = {
            let found = self.found();
            let names: HashSet<&Path> = found
                .images
                .values()
                .flat_map(|image| &image.names)
                .map(|name| name.path.as_path())
                .collect();
            let here = |path: &Path| {
                self.all_deleted
                    || names.contains(path)
                    || found.places.iter().any(|place| path.starts_with(place))
            };
            deleted.iter().map(|image| here(image.path())).collect()
        };
        let mut belongs = belongs.into_iter();
        for image in deleted.extract_if(.., |_| belongs.next().unwrap_or_default()) {
            // It may have other names still.
            let known = self.found().images.contains_key(&image.key);
            if !known {
                self.keep(image);
            }
        }
    }

    /// Adds a loop device, its file or both if one of them belongs here, and that the device shows the
    /// file. `false` if neither does.
    fn keep_loop(&self, device: &Loop) -> bool {
        let (known, mut file) = {
            let found = self.found();
            let known = device.keys().any(|key| found.images.contains_key(&key));
            let file = device.file.clone().filter(|key| found.images.contains_key(key));
            // A file that was deleted has only the name that it had.
            let of_name = || {
                let has = |image: &&Image| image.names.iter().any(|name| name.path == device.name);
                found.images.values().find(has).map(|image| image.key.clone())
            };
            (known, file.or_else(|| of_name().filter(|_| device.file.is_none())))
        };
        if known && file.is_none() {
            file = self.image(&device.name);
        }
        let Some(to) = file else { return false };
        let mut keys = device.keys();
        if let Some(whole) = keys.next().filter(|_| !known) {
            // Where there is no such node, nothing could be read, but the kernel has the device.
            if self.image(&device.path).as_ref() != Some(&whole) {
                let name = Name { symlink: false, path: device.path.clone() };
                self.keep(Image::new(whole, name, Presence::Here));
            }
        }
        let mut found = self.found();
        for key in device.keys() {
            if let Some(image) = found.images.get_mut(&key) {
                let (through, name) = (PathBuf::from("/dev"), device.name.clone());
                image.links.push(Link { need: Need::LoopDevice, through, name, to: to.clone() });
            }
        }
        true
    }

    /// Looks at what the image names when it is opened by `name`.
    fn follow(&self, key: &Key, name: &Path) {
        if self.cancel.check().is_err() {
            return;
        }
        let directory = name.parent().unwrap_or(Path::new("/")).to_path_buf();
        let header = {
            let mut found = self.found();
            if !found.followed.insert((key.clone(), directory.clone())) {
                return;
            }
            found.images.get(key).and_then(|image| image.header.clone())
        };
        let Some(header) = header else { return };
        let backing =
            header.backing.iter().map(|below| (Need::Backing, below, resolve(below, name)));
        // The name of a data file is a path and nothing else.
        let data = header.data_file.iter().map(|data| (Need::Data, data, Ok(directory.join(data))));
        let extents = header.extents.iter().map(|part| (Need::Extent, part, resolve(part, name)));
        for (need, written, target) in backing.chain(data).chain(extents) {
            let link = target.and_then(|target| {
                let to = self.image(&target).ok_or("the name is empty")?;
                Ok(Link { need, through: directory.clone(), name: canonical(&target), to })
            });
            let mut found = self.found();
            let Some(image) = found.images.get_mut(key) else { continue };
            match link {
                Ok(link) => image.links.push(link),
                Err(why) => {
                    let left = (written.clone(), why);
                    if !image.not_followed.contains(&left) {
                        image.not_followed.push(left);
                    }
                }
            }
        }
    }
}

fn resolve(name: &Path, holder: &Path) -> std::result::Result<PathBuf, String> {
    // Any process may open the image: what a name means only to one of them is not followed.
    let directory = qcow::chain::WorkingDirectory::Unknown;
    qcow::chain::resolve_name(name, holder, &directory).map_err(|error| error.message().to_owned())
}

/// `name` as an absolute path with its directory free of symbolic links, so that two names of one place
/// are equal. The file need not exist; a symbolic link that leads nowhere is followed to its end.
pub(crate) fn canonical(name: &Path) -> PathBuf {
    /// As many links as the kernel follows.
    const LINKS: usize = 40;
    let mut name = name.to_path_buf();
    for _ in 0..LINKS {
        name = in_directory(&name);
        match std::fs::read_link(&name) {
            // Where it leads to something, the link is a name of that.
            Ok(target) if !name.exists() => {
                name = name.parent().unwrap_or(Path::new("/")).join(target);
            }
            _ => break,
        }
    }
    name
}

fn in_directory(name: &Path) -> PathBuf {
    let name = std::path::absolute(name).unwrap_or_else(|_| name.to_path_buf());
    match (name.parent(), name.file_name()) {
        (Some(parent), Some(file)) => match parent.canonicalize() {
            Ok(real) => real.join(file),
            Err(_) => name,
        },
        // `/` and what ends in `..`
        _ => name.canonicalize().unwrap_or(name),
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn is_circle(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// What the system said, without its number.
fn in_words(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no such file".into(),
        ErrorKind::PermissionDenied => "it may not be read by this user".into(),
        _ if is_circle(error) => "its symbolic links form a loop".into(),
        _ => error.to_string(),
    }
}

/// The bytes of a path.
fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
