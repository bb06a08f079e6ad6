//! Carries out the part of a plan that comes before the guest moves: base copies and new images are made
//! and proven.
//!
//! Everything goes into the journal before it is made and once it is there, so that what is left of a run
//! that was cut off can be told from what others made.

pub(crate) mod image;
mod pace;

use std::fs::File;
use std::path::{Path, PathBuf};

use qcow::chain::Format;
use qcow::ops::digest::tree_hash;
use qcow::ops::flatten::{FlattenOptions, flatten};
use qcow::{CancelToken, Observer};

use crate::driver::Hypervisor;
use crate::facts::{Content, Facts, LayerFacts, MissingDirectory, NamedLayer};
use crate::fs::{fd_path, same_bytes};
use crate::journal::{Journal, Record, Side};
use crate::plan::{Action, BaseCopyMethod, BasePlan, DiskPlan, Mode as CopyAs, NewImage, Plan};
use crate::probe::PinnedFiles;
use crate::store::{Mode, Store, Wanted};
use crate::{Error, ErrorKind, Result};

use image::io;

/// Longest image file that is read back to be proven: that of an empty disk of many TiB.
const LONGEST_EMPTY: u64 = 1 << 30;

/// Makes what a plan says must be at the destination before the guest moves.
pub(crate) struct Preparation<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) facts: &'a Facts,
    pub(crate) pinned: &'a PinnedFiles,
    pub(crate) destination: &'a dyn Hypervisor,
    pub(crate) store: &'a dyn Store,
    pub(crate) journal: &'a mut Journal,
    pub(crate) observer: &'a dyn Observer,
    pub(crate) cancel: &'a CancelToken,
}

impl Preparation<'_> {
    /// Makes all of it, and proves it.
    ///
    /// # Errors
    /// [`Changed`](ErrorKind::Changed) if a place is taken by now, [`Unverified`](ErrorKind::Unverified)
    /// if what arrived is not what was sent; what was made stays for the journal's owner to undo.
    pub(crate) fn run(&mut self) -> Result<()> {
        let plan = self.plan;
        for directory in &plan.directories {
            self.cancel.check()?;
            self.directory(directory)?;
        }
        let mut seeded = Vec::new();
        for disk in &plan.disks {
            self.cancel.check()?;
            match &disk.action {
                Action::Skip | Action::Eject => {}
                Action::Adopt { path, format } => self.can_adopt(disk, path, *format)?,
                Action::CopyMedium { from, to } => self.copy_medium(disk, from, to)?,
                Action::Create { image, base } => {
                    let below = match base {
                        None => None,
                        Some(base) => Some(self.base(disk, base, &mut seeded)?),
                    };
                    match plan.mode {
                        CopyAs::Live => self.top(image, below.as_ref())?,
                        CopyAs::Offline => self.filled(disk, image, below.as_ref())?,
                    }
                }
            }
        }
        for file in plan.files.iter().filter(|file| file.made().is_some()) {
            self.cancel.check()?;
            self.copy_file(&file.path)?;
        }
        self.refresh()
    }

    /// A directory that is missing. Another run may have made it since, for its own guest.
    fn directory(&mut self, missing: &MissingDirectory) -> Result<()> {
        let MissingDirectory { path, rights } = missing;
        if self.store.is_directory(path)? {
            return Ok(());
        }
        let (host, temporary) = (Side::Destination, self.store.temporary_directory(path)?);
        self.journal.write(Record::Intended {
            host,
            path: path.clone(),
            temporary: temporary.clone(),
            proof: None,
            directory: true,
        })?;
        let first = temporary.as_deref().unwrap_or(path);
        let identity = self.store.make_directory(first, rights)?;
        self.journal.write(Record::Made { host, path: path.clone(), identity })?;
        let Some(temporary) = temporary else { return Ok(()) };
        if self.store.name_directory(&temporary, path, &identity)? {
            return Ok(());
        }
        self.store.remove_directory(&temporary, &identity)?;
        self.journal.write(Record::Removed { host, path: path.clone() })?;
        match self.store.is_directory(path)? {
            true => Ok(()),
            false => Err(Error::changed(format!("{} exists by now", path.display()))),
        }
    }

    /// A file of the guest that is no disk, copied byte for byte to the same path.
    fn copy_file(&mut self, path: &Path) -> Result<()> {
        let facts = self.facts.files.iter().find(|file| file.path == path);
        let Some((role, layer)) = facts.and_then(|file| Some((file.role, file.file.as_ref()?)))
        else {
            return Err(Error::usage(format!("the guest has no file {}", path.display())));
        };
        let mode = if role.is_state() { Mode::Private } else { Mode::ReadOnly };
        let file = open(&layer.read_from)?;
        let chain = self.pinned.open(std::slice::from_ref(layer))?;
        let digest = tree_hash(&chain, 0, self.observer, self.cancel)?.root.to_string();
        self.put(path, &file, mode)?;
        // A digest is that of whole sectors.
        let failed = io("could not look at the file");
        let sent = file.metadata().map_err(failed)?.len();
        let arrived = self.store.look(path)?.map(|object| object.identity.size);
        if arrived != Some(sent) {
            let message = format!("the copy {} does not hold what was sent", path.display());
            let error = Error::new(ErrorKind::Unverified, message);
            return Err(error.on(&self.facts.destination.hostname));
        }
        self.arrived(path, layer.format, &digest, &file)
    }

    /// Has libvirt look at the directories where something was made.
    pub(crate) fn refresh(&self) -> Result<()> {
        self.destination.refresh_pools(&self.plan.made_directories())
    }

    fn put(&mut self, path: &Path, content: &File, mode: Mode) -> Result<()> {
        if self.store.look(path)?.is_some() {
            return Err(Error::changed(format!("{} exists by now", path.display()))
                .on(&self.facts.destination.hostname)
                .hint("plan again"));
        }
        let (host, path_buf) = (Side::Destination, path.to_path_buf());
        let temporary = self.store.temporary(path, content)?;
        let proof = self.store.proof(content)?;
        self.journal.write(Record::Intended {
            host,
            path: path_buf.clone(),
            temporary,
            proof,
            directory: false,
        })?;
        let rate = self.plan.policy.bandwidth;
        let paced = pace::Pace::new(self.observer, self.cancel, rate);
        let identity = self.store.put(path, content, mode, &paced, self.cancel)?;
        self.journal.write(Record::Made { host, path: path_buf, identity })
    }

    /// A new active layer: made here, sent, read back and proven.
    fn top(&mut self, image: &NewImage, base: Option<&NamedLayer>) -> Result<()> {
        let file = image::make(image, base)?;
        self.put(&image.path, &file, Mode::Private)?;
        let copy = self.store.fetch(&image.path, LONGEST_EMPTY)?;
        image::prove(&fd_path(&copy), image, base)
            .map_err(|error| error.on(&self.facts.destination.hostname))
    }

    /// An image that exists already has exactly the disk's size (`SizesEqual`), and no backing file, so that its
    /// header and the XML name the same chain (`ChainsAgree`).
    fn can_adopt(&self, disk: &DiskPlan, path: &Path, format: Format) -> Result<()> {
        let chain = self.store.chain(path, Some(format))?;
        let facts = self.facts.disks.iter().find(|facts| facts.target == disk.target);
        let own = facts.and_then(|facts| facts.chain.as_ref()?.layers.first());
        let size = facts.and_then(|facts| facts.live_capacity).or(own.map(|top| top.virtual_size));
        let fits = match chain.as_slice() {
            // A raw device may be larger: the XML says how much of it is the disk.
            [only] => {
                Some(only.virtual_size) == size
                    || format == Format::Raw && Some(only.virtual_size) > size
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let name = path.display();
        Err(Error::refused(format!("{name} has another size or backing file"))
            .on(&self.facts.destination.hostname)
            .hint("choose another place, where a new image can be made"))
    }

    /// The active layer of a guest that is shut off: as it is if it has no backing file or stays an overlay,
    /// otherwise made of its whole chain.
    fn filled(
        &mut self,
        disk: &DiskPlan,
        image: &NewImage,
        base: Option<&NamedLayer>,
    ) -> Result<()> {
        let facts = self.facts;
        let layers = facts.layers(&disk.target);
        let Some((top, below)) = layers.split_first() else {
            return Err(Error::usage(format!("{} has no image to copy", disk.target)));
        };
        let scratch = |what| scratch_beside(&top.read_from).map_err(io(what));
        let (file, _directory) = match base {
            Some(base) if below.first().is_some_and(|own| names(top, own, base)) => {
                (open(&top.read_from)?, None)
            }
            Some(base) => {
                let directory = scratch("could not make a temporary directory")?;
                let copy = directory.path().join("image");
                std::fs::copy(&top.read_from, &copy).map_err(io("could not copy the image"))?;
                let file = File::options().read(true).write(true).open(&copy);
                let file = file.map_err(io("could not open the copy"))?;
                image::stand_on(&file, base)?;
                (file, Some(directory))
            }
            None if below.is_empty() && top.format == image.format && plain(top) => {
                (open(&top.read_from)?, None)
            }
            None => {
                let directory = scratch("could not make a temporary directory")?;
                let made = directory.path().join("image");
                let options = FlattenOptions::default().target(image::options(image));
                let chain = self.pinned.open(layers)?;
                flatten(&chain, &made, &options, self.observer, self.cancel)?;
                (open(&made)?, Some(directory))
            }
        };
        let chain = self.pinned.open(layers)?;
        let digest = tree_hash(&chain, 0, self.observer, self.cancel)?.root.to_string();
        self.put(&image.path, &file, Mode::Private)?;
        self.arrived(&image.path, image.format, &digest, &file)
    }

    /// The backing file of the new image of `disk`: copied to the destination unless it exists already.
    fn base(
        &mut self,
        disk: &DiskPlan,
        base: &BasePlan,
        seeded: &mut Vec<PathBuf>,
    ) -> Result<NamedLayer> {
        match base {
            BasePlan::Existing { chain, .. } => chain.first().cloned().ok_or_else(|| {
                Error::usage(format!("the plan does not name the backing file of {}", disk.target))
            }),
            BasePlan::BaseCopy { path, format, how, digest } => {
                // Disks that share a base share its copy.
                if !seeded.contains(path) {
                    self.seed(path, *format, how, digest)?;
                    seeded.push(path.clone());
                }
                Ok(NamedLayer { path: path.clone(), format: Some(format.to_string()) })
            }
        }
    }

    fn seed(
        &mut self,
        path: &Path,
        format: Format,
        how: &BaseCopyMethod,
        digest: &str,
    ) -> Result<()> {
        let (file, _directory) = match how {
            BaseCopyMethod::CopyFile { from } => (open(from)?, None),
            BaseCopyMethod::Flatten { from, .. } => {
                let directory =
                    scratch_beside(from).map_err(io("could not make a temporary directory"))?;
                (open(&self.flatten(from, directory.path())?)?, Some(directory))
            }
        };
        self.put(path, &file, Mode::ReadOnly)?;
        self.arrived(path, format, digest, &file)
    }

    /// Makes one file of the lower layers whose uppermost is read from `from`.
    fn flatten(&self, from: &Path, scratch: &Path) -> Result<PathBuf> {
        let below = self.lower_layers(from).ok_or_else(|| {
            Error::usage(format!(
                "the plan names {}, which is the backing file of no disk",
                from.display()
            ))
        })?;
        let chain = self.pinned.open(below)?;
        let made = scratch.join("base");
        flatten(&chain, &made, &FlattenOptions::default(), self.observer, self.cancel)?;
        Ok(made)
    }

    fn lower_layers(&self, from: &Path) -> Option<&[LayerFacts]> {
        self.facts.disks.iter().find_map(|disk| {
            let below = disk.chain.as_ref()?.layers.get(1..)?;
            (below.first()?.read_from == from).then_some(below)
        })
    }

    /// A read-only medium, copied as the file it is.
    fn copy_medium(&mut self, disk: &DiskPlan, from: &Path, to: &Path) -> Result<()> {
        let facts = self.facts;
        let layers = facts.layers(&disk.target);
        let Some(medium) = layers.first().filter(|medium| medium.path == from) else {
            return Err(Error::usage(format!("{} has no such medium", disk.target)));
        };
        let file = open(&medium.read_from)?;
        let digest = tree_hash(&self.pinned.open(layers)?, 0, self.observer, self.cancel)?;
        self.put(to, &file, Mode::ReadOnly)?;
        self.arrived(to, medium.format, &digest.root.to_string(), &file)
    }

    /// Proves that what was sent is what is there (`ContentBelowEqual`).
    fn arrived(&self, path: &Path, format: Format, digest: &str, file: &File) -> Result<()> {
        let wanted = Wanted { digest, file: Some(file) };
        let found = self.store.same_content(path, format, &wanted, self.observer, self.cancel)?;
        let equal = match found {
            Content::Equal { .. } => true,
            Content::Different => false,
            // The other end cannot read the disk, but it can hand out the file.
            Content::Unknown { .. } => self.same_bytes(path, file)?,
        };
        if equal {
            return Ok(());
        }
        let name = path.display();
        let message = format!("the copy {name} differs from what was sent");
        Err(Error::new(ErrorKind::Unverified, message).on(&self.facts.destination.hostname))
    }

    /// Whether the file at `path` is what `file` is, byte for byte.
    fn same_bytes(&self, path: &Path, file: &File) -> Result<bool> {
        let failed = io("could not read what is to be compared");
        let length = file.metadata().map_err(failed)?.len();
        let copy = self.store.fetch(path, length)?;
        same_bytes(file, &copy, self.observer, self.cancel)
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| {
        Error::changed(format!("{} cannot be read: {error}", path.display()))
            .hint("plan again")
            .caused_by(error)
    })
}

/// A directory for large files: where the image is there is room for images.
fn scratch_beside(path: &Path) -> std::io::Result<tempfile::TempDir> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    tempfile::Builder::new().prefix(".qcowtool-").tempdir_in(directory)
}

/// Whether the header of `top`, whose backing file is `own`, would find `base` at the destination.
fn names(top: &LayerFacts, own: &LayerFacts, base: &NamedLayer) -> bool {
    own.path == base.path
        && top.backing.as_deref() == base.path.to_str()
        && top.backing_format == base.format
}

/// Nothing outside the file belongs to it, and nothing in it needs mending.
fn plain(layer: &LayerFacts) -> bool {
    !layer.block_device
        && layer.qcow2.as_ref().is_none_or(|qcow2| qcow2.data_file.is_none() && !qcow2.dirty)
}
