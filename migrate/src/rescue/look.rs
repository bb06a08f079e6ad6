//! Looks into processes: which images they have open, which of those were deleted, and which has which backing file.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use qcow::chain::{Format, WorkingDirectory, resolve_name};
use qcow::io::FileStorage;
use qcow::ops::info::{FormatSpecific, ImageInfo};
use qcow::{CancelToken, Silent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::facts::{
    Content, DirectoryFacts, Facts, Gone, Need, OpenImage, Place, ProcessFacts, Reference, Taken,
    Unseen,
};
use super::pinned::{Pinned, content, io_error, pin};
use super::pinned_files::PinnedFiles;
use super::view::{View, is_ours, mount};
use super::writers::Writers;
use crate::domain::{XmlDisk, parse};
use crate::driver::Hypervisor;
use crate::facts::{DomainState, Identity, Source};
use crate::fs::same_bytes;
use crate::process::{PROC, Process};
use crate::store::{LocalStore, Store, identity_of};
use crate::{Error, Remedy, Result};

/// Whose files are looked at.
#[derive(Clone, Copy)]
pub enum Whose<'a> {
    /// Those of all processes of this machine.
    All,
    /// Those of the process with this number.
    Process(u32),
    /// Those of the process that runs a domain.
    Domain {
        /// The domain's host, which is this machine.
        hypervisor: &'a dyn Hypervisor,
        /// The domain's name or UUID.
        name: &'a str,
    },
}

impl std::fmt::Debug for Whose<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("All"),
            Self::Process(number) => write!(f, "Process({number})"),
            Self::Domain { name, .. } => write!(f, "Domain({name:?})"),
        }
    }
}

/// What a look brings.
#[derive(Debug)]
pub struct Looked {
    /// The facts.
    pub facts: Facts,
    /// The deleted files and their backing files, kept open from now on.
    pub pinned_files: PinnedFiles,
}

/// Looks into one process or all, and opens what is gone. `to` is the directory that copies shall go to.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if there is no such process or domain, or no such directory;
/// [`Refused`](crate::ErrorKind::Refused) if the domain does not run;
/// [`Changed`](crate::ErrorKind::Changed) if a process that was asked for ended meanwhile;
/// [`Environment`](crate::ErrorKind::Environment) if it may not be looked into;
/// [`Interrupted`](crate::ErrorKind::Interrupted).
pub fn look(whose: &Whose<'_>, to: Option<&Path>, cancel: &CancelToken) -> Result<Looked> {
    let proc = Path::new(PROC);
    let mut look = Look::default();
    look.facts.to = to.map(directory_named).transpose()?;
    match whose {
        Whose::Process(number) => {
            let process = Process::now(proc, *number).ok_or_else(|| {
                Error::usage(format!("there is no process {number}, or it has no program"))
            })?;
            look.process(&process, &[], false, cancel).map_err(|error| error.told(&process))?;
        }
        Whose::Domain { hypervisor, name } => look.domain(*hypervisor, name, cancel)?,
        Whose::All => {
            for number in Process::numbers(proc) {
                cancel.check()?;
                let Some(process) = Process::now(proc, number) else { continue };
                look.one_of_all(&process, cancel);
            }
        }
    }
    cancel.check()?;
    look.writers();
    look.facts.processes.sort_by_key(|process| process.process);
    Ok(Looked { facts: look.facts, pinned_files: look.pinned_files })
}

/// Why a process could not be looked into.
enum Failed {
    /// It ended.
    Ended,
    /// The system said so.
    System(std::io::Error),
}

impl Failed {
    fn told(self, process: &Process) -> Error {
        let who = format!("process {} ({})", process.number, process.shown);
        match self {
            Self::Ended => Error::changed(format!("{who} ended while it was being inspected")),
            Self::System(error) => {
                Error::io(format!("the open files of {who} are not known"), error)
                    .hint("run it as root, or as the user of the process")
            }
        }
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::SRCH | rustix::io::Errno::NOENT) => Self::Ended,
            _ => Self::System(error),
        }
    }
}

impl From<rustix::io::Errno> for Failed {
    fn from(error: rustix::io::Errno) -> Self {
        std::io::Error::from(error).into()
    }
}

/// One image names another, not yet looked up.
struct Named {
    by: PathBuf,
    by_object: Option<(u64, u64)>,
    need: Need,
    name: PathBuf,
    relative: bool,
    format: Option<Format>,
}

#[derive(Default)]
struct Look {
    facts: Facts,
    pinned_files: PinnedFiles,
}

impl Look {
    fn domain(
        &mut self,
        hypervisor: &dyn Hypervisor,
        name: &str,
        cancel: &CancelToken,
    ) -> Result<()> {
        let host = hypervisor.host()?;
        let domain = hypervisor.domain(name)?.ok_or_else(|| {
            Error::usage(format!("there is no domain '{name}'")).on(&host.hostname)
        })?;
        crate::probe::is_this_machine(&host)?;
        if !matches!(domain.state, DomainState::Running | DomainState::Paused) {
            return Err(Error::refused(format!(
                "the domain '{}' has no process, so no process has the deleted files open",
                domain.name
            ))
            .hint(Remedy::SearchCopy));
        }
        let disks = parse(&domain.live_xml)?.disks;
        let named: Vec<_> = disks.iter().flat_map(told_by_xml).collect();
        let mut processes = Process::of_domain(Path::new(PROC), &domain.uuid);
        // Anybody can call himself so. The domain's own process has its disks open.
        if processes.len() > 1 {
            processes.retain(|process| disks.iter().any(|disk| holds(process, disk)));
        }
        let [process] = processes.as_slice() else {
            return Err(Error::environment(format!(
                "{} processes of this machine claim to run the domain '{}'",
                processes.len(),
                domain.name
            ))
            .hint(Remedy::ChooseProcess));
        };
        self.process(process, &named, false, cancel).map_err(|error| error.told(process))
    }

    fn one_of_all(&mut self, process: &Process, cancel: &CancelToken) {
        match self.process(process, &[], true, cancel) {
            Err(Failed::System(error)) if process.qemu => self.facts.unseen.push(Unseen {
                process: process.number,
                program: process.shown.clone(),
                why: error.to_string(),
            }),
            // What ends meanwhile holds nothing, and others rarely hold images.
            Err(_) | Ok(()) => {}
        }
    }

    /// Looks into one process; `passing` leaves it if nothing that it has open is gone.
    fn process(
        &mut self,
        process: &Process,
        xml: &[Named],
        passing: bool,
        cancel: &CancelToken,
    ) -> Result<(), Failed> {
        let number = i32::try_from(process.number).ok().and_then(rustix::process::Pid::from_raw);
        let number = number.ok_or(Failed::Ended)?;
        // Its number could be another process's by the end.
        let alive = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty())?;
        if !process.is_there() {
            return Err(Failed::Ended);
        }
        let view = View::of(&Path::new(PROC).join(process.number.to_string()))?;
        let descriptors = process.descriptors()?.ok_or(Failed::Ended)?;
        let mut open: Vec<_> = descriptors.iter().filter_map(|path| pin(path, &view)).collect();
        // One that is open twice counts once, and writes if it does so once.
        open.sort_by_key(|pinned| (pinned.object, !pinned.written));
        open.dedup_by_key(|pinned| pinned.object);
        if passing && open.iter().all(|pinned| pinned.gone == Gone::No) {
            return Ok(());
        }
        let directory = working_directory(process, &view);
        let mut images = Vec::new();
        let mut named: Vec<Named> = Vec::new();
        for pinned in &open {
            let (file, storage) = match pinned.open() {
                Ok(opened) => opened,
                // What is not gone needs no help.
                Err(_) if pinned.gone == Gone::No => continue,
                Err(error) => return Err(Failed::System(error)),
            };
            let (content, told) = content(&storage, pinned);
            if let Some(told) = &told {
                named.extend(told_by_header(pinned, told, &view, &directory));
            }
            images.push((image(pinned, &file, content, &view, cancel)?, file));
        }
        named.extend(xml.iter().map(|named| Named {
            by: view.canonical(&named.by),
            name: named.name.clone(),
            ..*named
        }));
        let references: Vec<_> = named.into_iter().map(|named| look_up(named, &view)).collect();
        let names: HashSet<_> = references.iter().map(|reference| &reference.name).collect();
        // A program has many files open that are no images.
        images.retain(|(image, _)| {
            image.gone != Gone::No || image.content != Content::Raw || names.contains(&image.name)
        });
        if has_ended(&alive) {
            return Err(Failed::Ended);
        }
        let mut kept = Vec::new();
        for (image, file) in images {
            // What was deleted, and its possible backing files.
            if (image.gone != Gone::No || !image.written)
                && let Some(object) = object(&image)
            {
                self.pinned_files.hold(object, file);
            }
            kept.push(image);
        }
        self.facts.processes.push(ProcessFacts {
            process: process.number,
            program: process.shown.clone(),
            images: kept,
            references,
        });
        self.pinned_files.see(process.number, view);
        Ok(())
    }

    /// Finds out who writes to what is gone.
    fn writers(&mut self) {
        let gone = |image: &&mut OpenImage| image.gone != Gone::No;
        let images = self.facts.processes.iter_mut().flat_map(|process| &mut process.images);
        let mut images: Vec<_> = images.filter(gone).collect();
        let mut objects: Vec<_> = images.iter().filter_map(|image| object(image)).collect();
        objects.sort_unstable();
        objects.dedup();
        let writers = Writers::of(&objects);
        for image in &mut images {
            let pinned_files =
                object(image).and_then(|object| Some((object, self.pinned_files.file(object)?)));
            image.writers = pinned_files.and_then(|(object, file)| writers.to(file, object));
        }
    }
}

/// What is so of one file.
fn image(
    pinned: &Pinned,
    file: &File,
    content: Content,
    view: &View,
    cancel: &CancelToken,
) -> Result<OpenImage, Failed> {
    let storage = FileStorage::from_file(file.try_clone()?);
    let storage = storage.map_err(|error| io_error(error.message()))?;
    let identity = identity_of(&storage).map_err(|error| io_error(error.message()))?;
    let place = match pinned.gone {
        Gone::No => Err("it has its name".into()),
        Gone::Deleted | Gone::LeftOver => place(pinned, file, view, cancel),
    };
    Ok(OpenImage {
        identity,
        allocated: storage.allocated(),
        name: pinned.name.clone(),
        gone: pinned.gone,
        written: pinned.written,
        content,
        locked: !storage.used_for().is_empty(),
        writers: None,
        place,
    })
}

/// Device and inode.
pub(super) fn object(image: &OpenImage) -> Option<(u64, u64)> {
    image.identity.device.zip(image.identity.inode)
}

/// Where a process opens relative names, as it would write it.
fn working_directory(process: &Process, view: &View) -> WorkingDirectory {
    match process.working_directory() {
        WorkingDirectory::At(shown) => WorkingDirectory::At(view.inside(&shown)),
        other => other,
    }
}

/// What a header says of other files.
fn told_by_header(
    pinned: &Pinned,
    told: &ImageInfo,
    view: &View,
    directory: &WorkingDirectory,
) -> Vec<Named> {
    let holder = view.inside(&pinned.name);
    let mut named = Vec::new();
    let mut add = |need, name: PathBuf, relative, format| {
        let (by, by_object) = (pinned.name.clone(), Some(pinned.object));
        named.push(Named { by, by_object, need, name, relative, format });
    };
    if let Some(backing) = &told.backing_filename
        && let Ok(name) = resolve_name(backing, &holder, directory)
    {
        let own = WorkingDirectory::Own;
        let seen_from_nowhere = resolve_name(backing, Path::new("image"), &own);
        let relative = seen_from_nowhere.is_ok_and(|name| name.is_relative());
        let format = told.backing_filename_format.as_ref().and_then(|name| name.parse().ok());
        add(Need::Backing, name, relative, format);
    }
    if let Some(FormatSpecific::Qcow2(qcow2)) = &told.format_specific
        && let Some(data) = &qcow2.data_file
    {
        let directory = holder.parent().unwrap_or(Path::new("/"));
        let relative = Path::new(data).is_relative();
        add(Need::Data, directory.join(data), relative, Some(Format::Raw));
    }
    named
}

/// What a domain's XML says of one disk's layers. Where it says nothing, headers do.
fn told_by_xml(disk: &XmlDisk) -> Vec<Named> {
    let pairs = disk.chain.layers.windows(2);
    let named = pairs.filter_map(|pair| {
        let [above, below] = pair else { return None };
        (above.path.is_absolute() && below.path.is_absolute()).then(|| Named {
            by: above.path.clone(),
            by_object: None,
            need: Need::Backing,
            name: below.path.clone(),
            relative: false,
            format: below.format.as_ref().and_then(|name| name.parse().ok()),
        })
    });
    named.collect()
}

/// Whether a process has the file or device of a disk open.
fn holds(process: &Process, disk: &XmlDisk) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Source::File { path } | Source::Block { path }) = &disk.source else { return false };
    let Ok(named) = std::fs::metadata(path) else { return false };
    let is_it = |path: PathBuf| {
        std::fs::metadata(path)
            .is_ok_and(|open| (open.dev(), open.ino()) == (named.dev(), named.ino()))
    };
    process.descriptors().ok().flatten().is_some_and(|open| open.into_iter().any(is_it))
}

fn look_up(named: Named, view: &View) -> Reference {
    let name = view.canonical(&named.name);
    Reference {
        by: named.by,
        by_object: named.by_object,
        need: named.need,
        relative: named.relative,
        format: named.format,
        exists: view.at(&name).is_some(),
        name,
    }
}

/// The directory where a file was.
fn place(pinned: &Pinned, file: &File, view: &View, cancel: &CancelToken) -> Result<Place, String> {
    let path = pinned.name.parent().unwrap_or(Path::new("/"));
    let open = view.directory(&view.inside(path)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("the directory '{}' was removed", path.display()),
        _ => format!("the directory '{}' could not be opened: {error}", path.display()),
    })?;
    let status = rustix::fs::fstat(&open).map_err(|error| error.to_string())?;
    let taken = view.at(&pinned.name).filter(|_| pinned.gone == Gone::Deleted);
    Ok(Place {
        directory: DirectoryFacts {
            path: path.to_path_buf(),
            device: status.st_dev,
            inode: status.st_ino,
            available: available(&view.root(), &view.inside(path)),
        },
        same_mount: mount(open.as_fd()).is_some_and(|id| mount(pinned.pin.as_fd()) == Some(id)),
        taken: taken.map(|status| Taken {
            inode: status.st_ino,
            equal: is_equal(pinned, file, &status, view, cancel),
        }),
        own_view: !is_ours(path, status.st_dev, status.st_ino),
    })
}

/// Whether what has the name of a deleted file is equal to it, as a restored copy is. Only what has
/// the same length and time is read.
fn is_equal(
    pinned: &Pinned,
    file: &File,
    named: &rustix::fs::Stat,
    view: &View,
    cancel: &CancelToken,
) -> bool {
    let Ok(is) = rustix::fs::fstat(file) else { return false };
    let looks = |status: &rustix::fs::Stat| {
        let kind = rustix::fs::FileType::from_raw_mode(status.st_mode);
        (kind, status.st_size, status.st_mtime, status.st_mtime_nsec)
    };
    if looks(&is) != looks(named) {
        return false;
    }
    let store = LocalStore::new(&view.root());
    let path = view.inside(&pinned.name);
    let made =
        Identity { device: Some(named.st_dev), inode: Some(named.st_ino), ..Identity::default() };
    let other = store.and_then(|store| store.open(&path, &made));
    other.is_ok_and(|other| same_bytes(file, &other, &Silent, cancel).unwrap_or(false))
}

/// The directory that was named.
fn directory_named(path: &Path) -> Result<DirectoryFacts> {
    use std::os::unix::fs::MetadataExt;
    let wrong = |error: std::io::Error| {
        Error::usage(format!("the directory '{}': {error}", path.display())).caused_by(error)
    };
    let path = path.canonicalize().map_err(wrong)?;
    let status = std::fs::metadata(&path).map_err(wrong)?;
    if !status.is_dir() {
        return Err(Error::usage(format!("'{}' is not a directory", path.display())));
    }
    let available = available(Path::new("/"), &path);
    Ok(DirectoryFacts { path, device: status.dev(), inode: status.ino(), available })
}

fn available(root: &Path, directory: &Path) -> Result<u64, String> {
    let store = LocalStore::new(root).map_err(|error| error.message().to_owned())?;
    store.available(directory).map_err(|error| error.message().to_owned())
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&now)).is_ok_and(|ready| ready > 0)
}
