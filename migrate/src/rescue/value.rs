//! The plan as a value.

use std::path::PathBuf;

use qcow::chain::Format;
use serde::{Serialize, Serializer};

use super::facts::Unseen;
use crate::Remedy;
use crate::Reword;

/// What will be saved, and what will not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// The deleted files that processes have open, in the order of their names.
    pub items: Vec<Item>,
    /// Backing files that an open image names, that do not exist, and that no process has open.
    pub lost: Vec<Lost>,
    /// Processes that could not be looked into.
    pub unseen: Vec<Unseen>,
}

impl Reword for Plan {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        self.items.reword(words);
    }
}

impl Plan {
    /// Everything that was found can be saved, and restored if that was asked for.
    pub fn is_whole(&self) -> bool {
        let whole = |item: &Item| match &item.action {
            Action::Save { restore, .. } => !matches!(restore, Restore::No { .. }),
            Action::Nothing { .. } => true,
            Action::Refuse { .. } => false,
        };
        self.lost.is_empty() && self.items.iter().all(whole)
    }
}

/// One file that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Item {
    /// The name that it had; that of an NFS leftover if it is not known which one that was.
    #[serde(serialize_with = "lossy")]
    pub name: PathBuf,
    /// The device that holds it.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes that are allocated for it.
    pub allocated: u64,
    /// Its format, if it is recorded or its first bytes tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Size of its disk in bytes, if it has a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
    /// The processes that hold it open.
    pub holders: Vec<Holder>,
    /// The images that name it.
    #[serde(serialize_with = "all_lossy")]
    pub needed_by: Vec<PathBuf>,
    /// What is worth knowing about it.
    pub notes: Vec<String>,
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
}

/// A process that holds a file open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Holder {
    /// Its number.
    pub process: u32,
    /// Its program, and the guest's name if it tells.
    pub program: String,
}

/// What is done with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Action {
    /// It is copied.
    Save {
        /// The copy's name.
        #[serde(serialize_with = "lossy")]
        copy: PathBuf,
        /// Whether it gets its own name back.
        restore: Restore,
    },
    /// Nothing has to be done: a file that is equal to it, byte by byte, has its name already.
    Nothing {
        /// The name.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
    },
    /// It is not copied.
    Refuse {
        /// The reason, for programs.
        code: Code,
        /// The reason, for people.
        why: String,
        /// What to do instead.
        way_out: Remedy,
    },
}

impl Reword for Item {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        if let Action::Refuse { way_out, .. } = &mut self.action {
            way_out.reword(words);
        }
    }
}

/// Whether a copy is restored under the file's own name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Restore {
    /// It was not asked for.
    NotAsked,
    /// It is.
    Planned {
        /// The name.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
    },
    /// It cannot be.
    No {
        /// Why.
        why: String,
    },
}

/// Why a file is not saved. The words of programs are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Code {
    /// It is the disk that a guest writes to: no copy of it would be consistent.
    ActiveLayer,
    /// No open image has it as its backing file: it is the active layer of a disk.
    NoBase,
    /// A process has it open for writing.
    Written,
    /// It could not be determined whether a process writes to it.
    WritersUnknown,
    /// It is not of the format that the image on it records.
    OtherFormat,
    /// The directory where it was is gone.
    NoDirectory,
    /// Nothing can be made in the directory.
    NotWritable,
    /// There is not enough space.
    NoSpace,
}

/// A base that is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Lost {
    /// Its name.
    #[serde(serialize_with = "lossy")]
    pub name: PathBuf,
    /// The image that names it.
    #[serde(serialize_with = "lossy")]
    pub needed_by: PathBuf,
    /// The process that has that image open.
    pub holder: Holder,
}

/// JSON has no names that are not UTF-8.
#[allow(clippy::ptr_arg, reason = "serde calls it with the field")]
pub(super) fn lossy<S: Serializer>(path: &PathBuf, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

pub(super) fn all_lossy<S: Serializer>(
    paths: &[PathBuf],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}
