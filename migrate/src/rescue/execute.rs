//! Carries a plan out: copies, proves the copies, and gives them names that were free.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::path::{Path, PathBuf};

use qcow::chain::{Chain, FilePolicy, Format, Open, OpenOptions, Policy, WorkingDirectory, walk};
use qcow::io::FileStorage;
use qcow::ops::digest::tree_hash;
use qcow::{CancelToken, Observer};
use rustix::fs::{Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid};
use serde::Serialize;

use super::facts::{Facts, Gone, OpenImage, ProcessFacts, Unseen};
use super::look::object;
use super::pinned_files::PinnedFiles;
use super::refer::below;
use super::value::{Action, Item, Lost, Plan, Restore, lossy};
use super::writers::Writers;
use crate::facts::Identity;
use crate::fs::{fd_path, same_bytes};
use crate::store::{LocalStore, Mode as Rights, Store, identity_of};
use crate::{Error, ErrorKind, Remedy, Result, Reword};

/// Opens the layers below a copy through what the process has open, whatever their names mean here.
struct Through<'a> {
    process: &'a ProcessFacts,
    pinned_files: &'a PinnedFiles,
    /// The object that is copied, and where the copy can be read.
    top: ((u64, u64), PathBuf),
    /// The layer above.
    last: Cell<Option<(u64, u64)>>,
    /// Names, and where the files can be read.
    opened: RefCell<Vec<(PathBuf, PathBuf)>>,
}

impl Open for &Through<'_> {
    type File = FileStorage;

    fn open(&self, path: &Path, _depth: usize) -> qcow::Result<FileStorage> {
        let (is, place) = match self.last.get() {
            None => self.top.clone(),
            Some(above) => {
                let is = below(self.process, above);
                is.and_then(|is| Some((is, self.pinned_files.path(is)?))).ok_or_else(|| {
                    let path = path.display();
                    qcow::Error::denied(format!(
                        "the backing file '{path}' is not open in the process"
                    ))
                })?
            }
        };
        self.last.set(Some(is));
        self.opened.borrow_mut().push((path.to_path_buf(), place.clone()));
        FileStorage::open(&place)
    }

    fn identity(&self, file: &FileStorage) -> Option<qcow::io::Identity> {
        Some(file.identity())
    }
}

/// What became of a plan.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// What was planned, and what became of it.
    pub items: Vec<Rescue>,
    /// As in the plan.
    pub lost: Vec<Lost>,
    /// As in the plan.
    pub unseen: Vec<Unseen>,
}

/// What became of one file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rescue {
    /// What was planned.
    #[serde(flatten)]
    pub item: Item,
    /// What became of it.
    #[serde(flatten)]
    pub state: State,
}

impl Reword for Outcome {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        for rescue in &mut self.items {
            rescue.item.reword(words);
            if let State::Failed { hint, .. } = &mut rescue.state {
                hint.reword(words);
            }
        }
    }
}

/// How it ended.
#[derive(Debug, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum State {
    /// There is a copy, equal to what is held open, on stable storage.
    Saved(Saved),
    /// Nothing was done, as planned.
    Refused,
    /// Nothing had to be done.
    Nothing,
    /// There is no copy.
    Failed {
        /// The kind of the error, for programs.
        kind: &'static str,
        /// What happened.
        message: String,
        /// What to do next.
        #[serde(skip_serializing_if = "Option::is_none")]
        hint: Option<Remedy>,
        /// The error's kind.
        #[serde(skip)]
        error: ErrorKind,
    },
}

/// A copy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Saved {
    /// Where it is.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// It was there already, from an earlier run.
    pub found: bool,
    /// Tree hash of its content, backing files included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tree_hash: Option<String>,
    /// Why there is no tree hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// The name that it got back.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_lossy")]
    pub restored: Option<PathBuf>,
    /// Why it did not get its name back although that was planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrestored: Option<Unrestored>,
}

/// Why a copy did not get its name back.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Unrestored {
    /// What happened.
    pub why: String,
}

#[allow(clippy::ref_option, reason = "serde calls it with the field")]
fn some_lossy<S: serde::Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => lossy(path, serializer),
        None => serializer.serialize_none(),
    }
}

/// Does what the plan says. One file that cannot be saved does not keep the others from it.
///
/// # Errors
/// [`Interrupted`](ErrorKind::Interrupted); copies that were ready by then stay.
pub fn carry_out(
    plan: &Plan,
    facts: &Facts,
    pinned_files: &PinnedFiles,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Outcome> {
    let run = Run { facts, pinned_files, observer, cancel };
    let mut items = Vec::new();
    for item in &plan.items {
        cancel.check()?;
        let state = match &item.action {
            Action::Refuse { .. } => State::Refused,
            Action::Nothing { .. } => State::Nothing,
            Action::Save { copy, restore } => match run.save(item, copy, restore) {
                Ok(saved) => State::Saved(saved),
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => State::Failed {
                    kind: error.kind().as_str(),
                    message: error.message().to_owned(),
                    hint: error.what_next().cloned(),
                    error: error.kind(),
                },
            },
        };
        items.push(Rescue { item: item.clone(), state });
    }
    Ok(Outcome { items, lost: plan.lost.clone(), unseen: plan.unseen.clone() })
}

pub(super) struct Run<'a> {
    pub(super) facts: &'a Facts,
    pub(super) pinned_files: &'a PinnedFiles,
    pub(super) observer: &'a dyn Observer,
    pub(super) cancel: &'a CancelToken,
}

/// A directory's files, and a name in it as they call it.
pub(super) struct At {
    pub(super) store: LocalStore,
    pub(super) path: PathBuf,
}

/// A copy that is there.
pub(super) struct Copied {
    pub(super) file: File,
    pub(super) identity: Identity,
    found: bool,
}

impl Run<'_> {
    fn save(&self, item: &Item, copy: &Path, restore: &Restore) -> Result<Saved> {
        let object = (item.device, item.inode);
        let missing = || Error::environment("the file is not open");
        let pinned_files = self.pinned_files.file(object).ok_or_else(missing)?;
        let (process, image) = self.image(object).ok_or_else(missing)?;
        let at = match &self.facts.to {
            Some(_) => At { store: LocalStore::new(Path::new("/"))?, path: copy.to_path_buf() },
            None => self.seen_by(process, copy)?,
        };
        let copied = self.copied(&at, pinned_files, &image.identity, object)?;
        let hash = self.chain(item, process, &copied.file).and_then(|chain| {
            Ok(tree_hash(&chain, 0, self.observer, self.cancel)?.root.to_string())
        });
        let hash = match hash {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                discard(&at, &copied);
                return Err(error);
            }
            hash => hash,
        };
        let mut saved = Saved {
            path: copy.to_path_buf(),
            found: copied.found,
            tree_hash: hash.as_ref().ok().cloned(),
            unreadable: hash.as_ref().err().map(|error| error.message().to_owned()),
            restored: None,
            unrestored: None,
        };
        if let Restore::Planned { path } = restore {
            // Guests would find it under that name.
            let readable = hash.map(drop).map_err(|error| {
                Error::refused(format!("what it shows cannot be read: {}", error.message()))
            });
            match readable.and_then(|()| self.restore(&copied, process, image, copy, path)) {
                Ok(moved) => {
                    if moved {
                        saved.path.clone_from(path);
                    }
                    saved.restored = Some(path.clone());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => {
                    saved.unrestored = Some(Unrestored { why: error.message().to_owned() });
                }
            }
        }
        Ok(saved)
    }

    /// The facts about a file, and a process that has it open.
    fn image(&self, wanted: (u64, u64)) -> Option<(&ProcessFacts, &OpenImage)> {
        self.facts.processes.iter().find_map(|process| {
            let image = process.images.iter().find(|image| object(image) == Some(wanted))?;
            (image.gone != Gone::No).then_some((process, image))
        })
    }

    fn seen_by(&self, process: &ProcessFacts, path: &Path) -> Result<At> {
        let view = self.pinned_files.view(process.process);
        let view = view.ok_or_else(|| Error::environment("what the process sees is not known"))?;
        Ok(At { store: LocalStore::new(&view.root())?, path: view.inside(path) })
    }

    /// Makes a copy, or takes one that an earlier run made, and proves it equal to what is held. Nothing is
    /// left of one that is not.
    pub(super) fn copied(
        &self,
        at: &At,
        pinned_files: &File,
        before: &Identity,
        object: (u64, u64),
    ) -> Result<Copied> {
        self.still(pinned_files, before, object)?;
        let found = at.store.look(&at.path)?;
        let identity = match &found {
            Some(found) => found.identity,
            None => {
                let put = at.store.put(
                    &at.path,
                    pinned_files,
                    Rights::Private,
                    self.observer,
                    self.cancel,
                );
                put.inspect_err(|_| at.store.abandon(&at.path, pinned_files))?
            }
        };
        let copied =
            Copied { file: at.store.open(&at.path, &identity)?, identity, found: found.is_some() };
        let proven =
            same_bytes(pinned_files, &copied.file, self.observer, self.cancel).and_then(|same| {
                if !same && copied.found {
                    return Err(Error::refused(format!(
                        "{}: another file exists already",
                        at.path.display()
                    ))
                    .hint("move it away, then try again"));
                }
                if !same {
                    return Err(Error::new(
                        ErrorKind::Unverified,
                        format!("{}: it reads back as something else", at.path.display()),
                    ));
                }
                self.still(pinned_files, before, object)?;
                like(&copied.file, pinned_files)
            });
        match proven {
            Ok(()) => Ok(copied),
            Err(error) => {
                discard(at, &copied);
                Err(error)
            }
        }
    }

    /// Whether the file is as it was when it was examined, and no process can change it.
    fn still(&self, pinned_files: &File, before: &Identity, object: (u64, u64)) -> Result<()> {
        let storage = FileStorage::from_file(pinned_files.try_clone().map_err(system)?)?;
        let now = identity_of(&storage)?;
        if (now.size, now.mtime_ns, now.ctime_ns) != (before.size, before.mtime_ns, before.ctime_ns)
        {
            return Err(Error::changed("the file was changed meanwhile")
                .hint("make sure that no process changes it, then try again"));
        }
        match Writers::of(&[object]).to(pinned_files, object) {
            Some(writers) if writers.is_empty() => Ok(()),
            Some(writers) => {
                let who = writers.join(", ");
                Err(Error::changed(format!("the file is open for writing by now: {who}")))
            }
            None => {
                Err(Error::changed("it can no longer be determined whether a process writes to it"))
            }
        }
    }

    /// The content of a copy, with its backing files: the files that the process has open, whatever
    /// their names mean here.
    fn chain(&self, item: &Item, process: &ProcessFacts, copy: &File) -> Result<Chain> {
        let here = fd_path(copy);
        let format = match item.format {
            Some(format) => format,
            None => Format::probe(&FileStorage::open(&here)?)?,
        };
        // The names are only compared with each other: where they start does not matter.
        let working_directory = WorkingDirectory::At("/".into());
        let options = OpenOptions::default()
            .format(format)
            .force_share(true)
            .working_directory(working_directory.clone());
        let files = Through {
            process,
            pinned_files: self.pinned_files,
            last: Cell::new(None),
            opened: RefCell::new(Vec::new()),
            top: ((item.device, item.inode), here),
        };
        for found in walk(&files, &item.name, &options) {
            found.map_err(|broken| Error::environment(broken.error.message()))?;
        }
        let overrides = files.opened.into_inner();
        // Nothing is opened by its name.
        let policy = Policy::default().backing(FilePolicy::Deny).data_file(FilePolicy::Deny);
        let options = OpenOptions::default()
            .format(format)
            .force_share(true)
            .overrides(overrides)
            .working_directory(working_directory)
            .policy(policy);
        Ok(Chain::open(&item.name, &options)?)
    }

    /// Gives a copy the file's own name, if that is still free. `true` if the copy itself got it; if it is in
    /// another directory, one more is made.
    fn restore(
        &self,
        copied: &Copied,
        process: &ProcessFacts,
        image: &OpenImage,
        copy: &Path,
        name: &Path,
    ) -> Result<bool> {
        let target = self.seen_by(process, name)?;
        let place = image.place.as_ref().map_err(|why| Error::environment(why.clone()))?;
        let beside = At {
            path: target.path.with_file_name(copy.file_name().unwrap_or_default()),
            store: target.store,
        };
        let there = self.facts.to.as_ref().is_none_or(|to| {
            (to.device, to.inode) == (place.directory.device, place.directory.inode)
        });
        if there {
            beside.store.rename(&beside.path, &target.path, &copied.identity)?;
            return Ok(true);
        }
        let pinned_files =
            object(image).and_then(|object| Some((object, self.pinned_files.file(object)?)));
        let (object, pinned_files) =
            pinned_files.ok_or_else(|| Error::environment("the file is not open"))?;
        let second = self.copied(&beside, pinned_files, &image.identity, object)?;
        let renamed = beside.store.rename(&beside.path, &target.path, &second.identity);
        renamed.inspect_err(|_| discard(&beside, &second))?;
        Ok(false)
    }
}

/// Takes away a copy that this run made.
pub(super) fn discard(at: &At, copied: &Copied) {
    if !copied.found {
        let _ = at.store.remove(&at.path, &copied.identity);
    }
}

/// Gives a copy the owner, the rights and the time of the file that it is of: a process that could open that must be
/// able to open it too, and a program that compares times must not take it for changed.
fn like(copy: &File, pinned_files: &File) -> Result<()> {
    let failed = |error: rustix::io::Errno| system(error.into());
    let is = rustix::fs::fstat(pinned_files).map_err(failed)?;
    let (owner, group) = (Uid::from_raw(is.st_uid), Gid::from_raw(is.st_gid));
    match rustix::fs::fchown(copy, Some(owner), Some(group)) {
        // Only root can give files away.
        Ok(()) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(failed(error)),
    }
    rustix::fs::fchmod(copy, Mode::from_raw_mode(is.st_mode & 0o777)).map_err(failed)?;
    let modified = Timespec {
        tv_sec: is.st_mtime,
        tv_nsec: i64::try_from(is.st_mtime_nsec).unwrap_or_default(),
    };
    let kept = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: kept, last_modification: modified };
    rustix::fs::futimens(copy, &times).map_err(failed)?;
    copy.sync_all().map_err(system)
}

fn system(error: std::io::Error) -> Error {
    Error::io("the copy could not be worked on", error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::SystemTime;

    use qcow::Silent;
    use qcow::ops::create::{Backing, CreateOptions, create};

    use super::super::look::{Whose, look};
    use super::super::plan::{Options, plan};
    use super::*;

    /// Deletes a base that this process holds open, looks, does something to the file, and carries the plan
    /// out. Returns what became of it, and the names that are there then.
    fn after(meanwhile: impl FnOnce(File) -> Option<File>) -> (State, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let (base, top) = (real.join("base"), real.join("top"));
        create(&base, &CreateOptions::default().size(1 << 20)).unwrap();
        let backing = Backing::new("base", Format::Qcow2);
        let options = CreateOptions::default().backing(backing);
        create(&top, &options).unwrap();
        let writer = File::options().write(true).open(&base).unwrap();
        writer.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        drop(writer);
        let pinned_files = [&base, &top].map(|path| File::open(path).unwrap());
        std::fs::remove_file(&base).unwrap();
        let cancel = CancelToken::new();
        let looked = look(&Whose::Process(std::process::id()), None, &cancel).unwrap();
        let mut plan = plan(&looked.facts, &Options { restore: true });
        // Other tests of this process have files open as well.
        plan.items.retain(|item| item.name == base);
        let again = fd_path(&pinned_files[0]);
        let kept = meanwhile(File::options().write(true).open(again).unwrap());
        let outcome = carry_out(&plan, &looked.facts, &looked.pinned_files, &Silent, &cancel);
        drop(kept);
        let mut states = outcome.unwrap().items.into_iter().map(|rescue| rescue.state);
        let names = std::fs::read_dir(&real).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        (states.next().unwrap(), names.filter(|name| name != "top").collect())
    }

    fn failed(state: &State) -> Option<ErrorKind> {
        match state {
            State::Failed { error, .. } => Some(*error),
            _ => None,
        }
    }

    #[test]
    fn what_is_still_is_saved_and_what_changes_meanwhile_is_not() {
        let (state, names) = after(|_| None);
        assert!(matches!(&state, State::Saved(saved) if saved.restored.is_some()), "{state:?}");
        assert_eq!(names, ["base"]);
        let (state, names) = after(|file| {
            file.write_all_at(b"another", 300_000).unwrap();
            None
        });
        assert_eq!(failed(&state), Some(ErrorKind::Changed), "{state:?}");
        assert_eq!(names, [""; 0]);
        // It may be written to at any moment.
        let (state, names) = after(Some);
        assert_eq!(failed(&state), Some(ErrorKind::Changed), "{state:?}");
        assert_eq!(names, [""; 0]);
    }
}
