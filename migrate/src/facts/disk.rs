//! Disks: images, chains, and what is at the places where they shall go.

use std::path::PathBuf;

use qcow::chain::Format;
use serde::{Deserialize, Serialize};

/// What the guest takes a disk for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// A disk.
    Disk,
    /// A CD-ROM drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// A SCSI unit that is passed through.
    Lun,
}

/// Where the XML says that a disk's content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Source {
    /// No medium.
    None,
    /// A file.
    File {
        /// Its path on the guest's host.
        path: PathBuf,
    },
    /// A block device.
    Block {
        /// Its path on the guest's host.
        path: PathBuf,
    },
    /// A volume of a storage pool.
    Volume {
        /// The pool's name.
        pool: String,
        /// The volume's name.
        volume: String,
        /// What libvirt says it is as a path.
        path: Option<PathBuf>,
    },
    /// Storage that is reached over the network by the hypervisor itself.
    Network {
        /// `rbd`, `iscsi`, `nbd`, ...
        protocol: String,
        /// Its server is reached in a way that each host has for itself: by this Unix socket, or by the loopback
        /// address, for which `/` stands here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        local: Option<PathBuf>,
    },
    /// Anything else: `nvme`, `vhostuser`, `vhostvdpa`, `dir`.
    Other {
        /// The XML's word.
        kind: String,
    },
}

/// One layer of a chain as a name and a format, as in the XML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NamedLayer {
    /// Its path.
    pub path: PathBuf,
    /// Its format; `None` if it is not given.
    pub format: Option<String>,
}

/// A chain as the domain's XML tells it, the active layer first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct XmlChain {
    /// The layers, the active one first.
    pub layers: Vec<NamedLayer>,
    /// It says that nothing follows (`<backingStore/>`). Where it just stops, libvirt looks into the
    /// last layer's header.
    pub terminated: bool,
}

/// A disk, its backing files, and what exists at its path at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskFacts {
    /// The name in the guest's XML, such as `vda`.
    pub target: String,
    /// What the guest takes it for.
    pub device: Device,
    /// Where its content is.
    pub source: Source,
    /// The format in the XML (`<driver type>`).
    pub format: Option<String>,
    /// The guest cannot write to it.
    pub readonly: bool,
    /// Other guests may write to it.
    pub shareable: bool,
    /// Its changes are thrown away when the guest stops.
    pub transient: bool,
    /// The cache mode in the XML.
    pub cache: Option<String>,
    /// A block job that runs on it, in words.
    pub block_job: Option<String>,
    /// Its size as the running hypervisor reports it.
    pub live_capacity: Option<u64>,
    /// The chain in the live XML.
    pub live_chain: XmlChain,
    /// The chain in the migratable XML: what an administrator wrote, or what snapshots and block jobs made,
    /// but not what libvirt found in headers, unless libvirtd was restarted since the guest started.
    pub migratable_chain: XmlChain,
    /// The chain as the headers tell it; `None` where there is no file or device to look into.
    pub chain: Option<ChainFacts>,
    /// The place where it shall go; `None` if it stays where it is, or has no content.
    #[serde(rename = "there")]
    pub destination: Option<TargetFacts>,
}

/// A backing chain as the headers on the source host tell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChainFacts {
    /// The layers that could be opened, the active one first; empty if not even that one could.
    pub layers: Vec<LayerFacts>,
    /// The first layer that could not be opened.
    pub missing: Option<Missing>,
    /// Bytes that the active layer holds itself.
    pub top_bytes: u64,
    /// Bytes of the guest's disk that any layer holds and are not marked as zeros; `None` if the chain is
    /// incomplete.
    pub guest_bytes: Option<u64>,
    /// Tree hash of what the guest would read of everything below the active layer, if that was asked
    /// for and there is something below.
    pub below: Option<String>,
}

/// A layer that is named but cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Missing {
    /// Its path.
    pub path: PathBuf,
    /// Why it cannot be opened.
    pub why: String,
}

/// How a layer's format is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FormatFrom {
    /// The domain's XML.
    Xml,
    /// The header of the layer above.
    Header,
    /// It is not recorded.
    Nowhere,
}

/// One image of a chain on the source host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerFacts {
    /// Its name: what the XML or the layer above calls it, as an absolute path.
    pub path: PathBuf,
    /// Where it can be read; another path than `path` if it was deleted and a process holds it open.
    pub read_from: PathBuf,
    /// The file was deleted; the running hypervisor holds it open.
    pub deleted: bool,
    /// It is a block device.
    pub block_device: bool,
    /// Which file it is, and when it was changed.
    pub identity: Identity,
    /// Its format.
    pub format: Format,
    /// How that is known.
    pub format_from: FormatFrom,
    /// Size of its disk.
    pub virtual_size: u64,
    /// What only QCOW2 images have.
    pub qcow2: Option<Qcow2Facts>,
    /// The name of the layer below, as its header gives it.
    pub backing: Option<String>,
    /// The format of the layer below, as its header gives it.
    pub backing_format: Option<String>,
}

/// What the header of a QCOW2 image says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2Facts {
    /// 2 or 3.
    pub version: u32,
    /// Size of its clusters.
    pub cluster_size: u64,
    /// It has subclusters.
    pub extended_l2: bool,
    /// It was not closed properly. Normal for the active layer of a running guest with lazy refcounts.
    pub dirty: bool,
    /// It is marked corrupt.
    pub corrupt: bool,
    /// `aes` or `luks`.
    pub encryption: Option<String>,
    /// Name of its external data file.
    pub data_file: Option<String>,
    /// Names of its internal snapshots.
    pub snapshots: Vec<String>,
    /// Names of its bitmaps.
    pub bitmaps: Vec<String>,
}

/// Which object a file is, and when it was changed. The numbers that a host's way of access does not
/// give are `None`, and prove nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Identity {
    /// The device that holds it.
    pub device: Option<u64>,
    /// Its number there.
    pub inode: Option<u64>,
    /// How many names it has.
    pub links: Option<u64>,
    /// Its length.
    pub size: u64,
    /// When its content was last changed.
    pub mtime_ns: i64,
    /// When it was last changed at all.
    pub ctime_ns: i64,
}

/// Whether two directories, one on each host, are the same storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Storage {
    /// What is written on one host appears on the other.
    Shared,
    /// It does not.
    Distinct,
    /// That could not be found out.
    Unknown {
        /// Why not.
        why: String,
    },
}

/// The place on the destination host where a disk shall go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TargetFacts {
    /// Path of the new image, after all mapping.
    pub path: PathBuf,
    /// Whether it is the storage that the disk is on already.
    pub storage: Storage,
    /// What is at that path now.
    pub object: Option<ObjectFacts>,
    /// Why nothing can be made in its directory; `None` if it can, also if the directory is one of
    /// [`missing`](super::Facts::missing).
    pub unusable: Option<String>,
    /// Free bytes there, or where a missing directory would be made.
    pub available: Option<u64>,
    /// Path of the layer below, after the same mapping: where a base is looked for first. `None` if the
    /// disk has no backing file.
    pub base_path: Option<PathBuf>,
    /// Images on the destination that may be what the disk's lower layers are. Always holds what is at
    /// `base_path`, if anything is.
    pub bases: Vec<BaseFacts>,
}

/// Something that exists at a place where we would make something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ObjectFacts {
    /// Which object it is.
    pub identity: Identity,
    /// It is a block device; its `identity.size` is the device's.
    pub block_device: bool,
    /// Its format and virtual size, if it could be read.
    pub image: Option<ImageFacts>,
    /// Which process has it open for writing, in words.
    pub in_use: Option<String>,
}

/// Format and size of an image on the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageFacts {
    /// Its format.
    pub format: Format,
    /// Size of its disk.
    pub virtual_size: u64,
}

/// A possible base at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BaseFacts {
    /// Its path.
    pub path: PathBuf,
    /// Which object it is.
    pub identity: Identity,
    /// Itself and everything below, as the destination's XML must name it; every layer has a format.
    pub chain: Vec<NamedLayer>,
    /// Size of its disk.
    pub virtual_size: u64,
    /// A process has it, or something below it, open for writing.
    pub in_use: Option<String>,
    /// Whether it is what the source's lower layers are.
    pub content: Content,
}

/// Whether two disks hold the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Content {
    /// Equal to the byte and of equal size.
    Equal {
        /// The digest that both have.
        digest: String,
    },
    /// Not equal.
    Different,
    /// Not compared.
    Unknown {
        /// Why not.
        why: String,
    },
}
