//! What a scan finds, as values: images, what they name, who uses them, and what could not be seen.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// Which object an image is, whatever it is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A file of this machine.
    File {
        /// The device that holds it.
        device: u64,
        /// Its number there.
        inode: u64,
    },
    /// A block device of this machine.
    Device {
        /// Its number.
        number: u64,
    },
    /// Something of which only the name is known: it is not there, or it is on another host.
    Name {
        /// The other host; `None` for this machine.
        host: Option<String>,
        /// The name, its directory free of symbolic links if that exists.
        path: PathBuf,
    },
}

impl Key {
    /// The other host that it is on.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Name { host, .. } => host.as_deref(),
            Self::File { .. } | Self::Device { .. } => None,
        }
    }
}

/// Whether an image is where its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// It was found.
    Here,
    /// It was deleted, and a process holds it open.
    Deleted {
        /// Where it can still be read.
        through: PathBuf,
    },
    /// There is nothing of this name.
    Missing,
    /// Something is there that cannot be an image, or could not be looked at.
    Unusable {
        /// Why.
        why: String,
        /// No program could use it as an image; otherwise only this program could not look.
        sure: bool,
    },
    /// It is on another host, whose libvirt told of it.
    Elsewhere,
}

/// What an image's first bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The magic of QCOW2.
    Qcow2,
    /// VMDK: a sparse image, an extent of one, or the descriptor that names extents.
    Vmdk,
    /// No known magic.
    Raw,
    /// Another format, in words.
    Other(String),
    /// It was not examined, or could not be.
    Unknown,
}

/// Lengths, times and rights of a file. Times are in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Bytes that are allocated for it.
    pub allocated: u64,
    /// When its content was last changed; `None` for what keeps no times.
    pub mtime_ns: Option<i64>,
    /// When its inode was last changed: content, rights or names; `None` for what keeps no times.
    pub changed_ns: Option<i64>,
    /// When it was made, if the file system knows.
    pub birth_ns: Option<i64>,
    /// Its permission bits.
    pub mode: u32,
    /// It is a block device.
    pub block_device: bool,
}

/// What the header of a QCOW2 image, or the descriptor of a VMDK image, says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// Size of its disk in bytes.
    pub virtual_size: u64,
    /// It was not closed properly.
    pub dirty: bool,
    /// It is marked corrupt.
    pub corrupt: bool,
    /// The name of its backing file, as it is recorded.
    pub backing: Option<PathBuf>,
    /// The format of that, if it is recorded.
    pub backing_format: Option<String>,
    /// The name of its external data file.
    pub data_file: Option<PathBuf>,
    /// The names of the files that a VMDK descriptor has its data in.
    pub extents: Vec<PathBuf>,
    /// The file is shorter than its refcounts say.
    pub truncated: Option<Truncated>,
}

/// A file that ends before the last cluster that its refcounts count as used. In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated {
    /// Where that cluster would begin.
    pub used: u64,
    /// Where the file ends.
    pub file_length: u64,
}

/// A name of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// A symbolic link leads from it to the image. Other names come first.
    pub symlink: bool,
    /// Absolute, its directory free of symbolic links.
    pub path: PathBuf,
}

/// How an image needs another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Need {
    /// It is its backing file.
    Backing,
    /// Its data is there.
    Data,
    /// A part of its data is there: it is a VMDK descriptor.
    Extent,
    /// It is a loop device, and shows that file.
    LoopDevice,
}

/// What an image needs, seen from one of its names: relative names mean other files in other directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What for.
    pub need: Need,
    /// The directory of the image's name.
    pub through: PathBuf,
    /// The name of the other image, made absolute.
    pub name: PathBuf,
    /// The other image.
    pub to: Key,
}

/// What the manifests say of an image's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It is as it was when the manifest was taken.
    Equal,
    /// It is not.
    Different,
}

/// An image, or the name of one that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Which object it is.
    pub key: Key,
    /// All its names that were met, in order; never empty.
    pub names: Vec<Name>,
    /// Whether it is there.
    pub presence: Presence,
    /// Its first bytes.
    pub content: Content,
    /// Its file.
    pub status: Status,
    /// Its header, if it has one that can be read.
    pub header: Option<Header>,
    /// Why its header could not be read, and whether it is the header that is wrong.
    pub problem: Option<(String, bool)>,
    /// What it needs.
    pub links: Vec<Link>,
    /// Names in its header that are no local files, with the reason.
    pub not_followed: Vec<(PathBuf, String)>,
    /// What others say that they do with it, by QEMU's image locks.
    pub locks: Vec<&'static str>,
    /// What the manifests say of it.
    pub proof: Option<Proof>,
}

impl Image {
    /// An image of which nothing is known yet.
    pub fn new(key: Key, name: Name, presence: Presence) -> Self {
        Self {
            key,
            names: vec![name],
            presence,
            content: Content::Unknown,
            status: Status::default(),
            header: None,
            problem: None,
            links: Vec::new(),
            not_followed: Vec::new(),
            locks: Vec::new(),
            proof: None,
        }
    }

    /// The name that it is shown by.
    pub fn path(&self) -> &Path {
        self.names.first().map_or(Path::new(""), |name| name.path.as_path())
    }

    /// Its backing file when it is opened by `name`.
    pub fn below(&self, name: &Path) -> Option<&Link> {
        let mut backing = self.links.iter().filter(|link| link.need == Need::Backing);
        let seen = backing.clone().find(|link| Some(link.through.as_path()) == name.parent());
        seen.or_else(|| backing.next())
    }
}

/// Which of a domain's descriptions names a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// What runs, or is defined where nothing runs.
    Now,
    /// What the next start of a running domain uses.
    NextStart,
}

/// A layer as a domain's XML names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedLayer {
    /// The image.
    pub key: Key,
    /// Its name.
    pub name: PathBuf,
    /// Its format.
    pub format: Option<String>,
}

/// A domain's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The name in the guest, such as `vda`.
    pub target: String,
    /// Which description names it.
    pub form: Form,
    /// The layers that the XML names, the disk's own first; never empty.
    pub layers: Vec<UsedLayer>,
    /// The XML says that no other layer follows.
    pub terminated: bool,
    /// The guest may write to it.
    pub writes: bool,
    /// The XML says that several guests may.
    pub shareable: bool,
}

/// A domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// The other host that it is on; `None` for this machine.
    pub host: Option<String>,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// It has a process.
    pub runs: bool,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Disks whose backing chain libvirt names in the XML for another host, if it runs: the disk's name, and the names of
    /// all layers but the active one.
    pub named: Vec<(String, Vec<PathBuf>)>,
}

/// A process that has an image open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The image.
    pub key: Key,
    /// The process's number.
    pub process: u32,
    /// The process's program, and the guest's name if it tells.
    pub program: String,
    /// It may write.
    pub writes: bool,
}

/// Something that could not be looked at, so that what is in it is not known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unseen {
    /// The other host that it is on; `None` for this machine.
    pub host: Option<String>,
    /// The directory, the file, or another name of it.
    pub path: PathBuf,
    /// Why.
    pub why: String,
    /// The caller asked for just this.
    pub asked: bool,
}

/// All that a scan found.
#[derive(Debug, Default)]
pub struct Survey {
    /// The images.
    pub images: Vec<Image>,
    /// The domains of all hosts that were asked.
    pub domains: Vec<Domain>,
    /// Who has images of this machine open.
    pub holders: Vec<Holder>,
    /// What could not be looked at.
    pub unseen: Vec<Unseen>,
    /// This machine's libvirt was asked for its domains.
    pub domains_known: bool,
    /// Directories that were read.
    pub directories: u64,
    /// Those directories, in no order.
    pub entered: Vec<PathBuf>,
    /// The directories and files that were given, and the pools' directories, free of symbolic links.
    pub places: Vec<PathBuf>,
    /// Files that are no images.
    pub other_files: u64,
}

/// JSON has no names that are not UTF-8.
#[allow(clippy::ptr_arg, reason = "serde calls it with the field")]
pub(super) fn lossy<S: Serializer>(path: &PathBuf, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}
