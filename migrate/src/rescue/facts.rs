//! What processes have open, as values.

use std::path::PathBuf;

use qcow::chain::Format;

use crate::facts::Identity;

/// Everything that a plan rests on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The processes that hold an image open that is gone.
    pub processes: Vec<ProcessFacts>,
    /// Processes that could not be looked into.
    pub unseen: Vec<Unseen>,
    /// The directory that copies shall go to, if one was named.
    pub to: Option<DirectoryFacts>,
}

/// A process that could not be looked into.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Unseen {
    /// Its number.
    pub process: u32,
    /// Its program, and the guest's name if it tells.
    pub program: String,
    /// Why.
    pub why: String,
}

/// A process and the images that it has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Its number.
    pub process: u32,
    /// Its program, and the guest's name if it tells.
    pub program: String,
    /// Files that may be images: those with the magic of QCOW2, and those that are gone.
    pub images: Vec<OpenImage>,
    /// What images, or the guest's definition, say of backing files.
    pub references: Vec<Reference>,
}

/// Whether a file still has the name under which it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It has it.
    No,
    /// It was deleted.
    Deleted,
    /// An NFS client gave it another name instead of deleting it, because it is open (`.nfs...`).
    LeftOver,
}

/// A file that a process has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenImage {
    /// Which file it is.
    pub identity: Identity,
    /// Bytes that are allocated for it.
    pub allocated: u64,
    /// The name under which it was opened, as the process sees names; that of an NFS leftover is its new one.
    pub name: PathBuf,
    /// Whether it still has it.
    pub gone: Gone,
    /// The process opened it for writing.
    pub written: bool,
    /// Its first bytes, and its header.
    pub content: Content,
    /// QEMU's image locks show that it is used as an image.
    pub locked: bool,
    /// Who else may write to it, in words; `None` if it could not be found out. Only of what is gone.
    pub writers: Option<Vec<String>>,
    /// The directory where it was, or why there is none. Only of what is gone.
    pub place: Result<Place, String>,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A QCOW2 image.
    Qcow2 {
        /// Size of its disk in bytes.
        virtual_size: u64,
    },
    /// It has the magic of QCOW2, but not a header that can be read.
    Broken {
        /// What is wrong.
        why: String,
    },
    /// Nothing that is known: a raw image, or something else.
    Raw,
}

/// The place where a file was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its directory.
    pub directory: DirectoryFacts,
    /// It is by this way that the file was opened: another directory may cover the name by now.
    pub same_mount: bool,
    /// What has the file's name now.
    pub taken: Option<Taken>,
    /// The process sees another directory there than this program does.
    pub own_view: bool,
}

/// What has a file's name by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its inode.
    pub inode: u64,
    /// It is a file of the same length and time, and the same bytes.
    pub equal: bool,
}

/// A directory that copies may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryFacts {
    /// Its path.
    pub path: PathBuf,
    /// The device of its file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Free bytes; or why nothing can be made there.
    pub available: Result<u64, String>,
}

/// What an image is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It is the backing file of another.
    Backing,
    /// It holds another's data.
    Data,
}

/// One image names another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The image that names it.
    pub by: PathBuf,
    /// Device and inode of that, where they are known.
    pub by_object: Option<(u64, u64)>,
    /// What for.
    pub need: Need,
    /// The name, made absolute, as the process sees names.
    pub name: PathBuf,
    /// It was written without its directory.
    pub relative: bool,
    /// The format that is recorded there.
    pub format: Option<Format>,
    /// Something is at the name.
    pub exists: bool,
}
