//! The domain's XML: read as far as disks need it, and edited for the destination without touching
//! anything else.
//!
//! An edit replaces pieces of the text; whatever is not replaced stays as it is to the byte: unknown
//! elements, comments, entities, the order of attributes, blanks. Every result is read again and compared
//! with the original, by code that shares nothing with the edit but the parser.
//!
//! No DTD is accepted, so there are no entities but XML's own five; size, depth and number of nodes are bounded.

mod check;
mod devices;
mod edit;
mod files;
mod parse;
mod splice;
#[cfg(test)]
mod tests;
pub(crate) mod tree;

pub(crate) use splice::quoted;

pub use devices::Obstacle;
pub use files::XmlFiles;
pub(crate) use parse::is_device;

use std::path::PathBuf;

use qcow::chain::Format;

use crate::Result;
use crate::facts::{Device, NamedLayer, Source, XmlChain};

/// A disk as the XML tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XmlDisk {
    /// The name in the guest (`<target dev>`), such as `vda`.
    pub target: String,
    /// What the guest takes it for.
    pub device: Device,
    /// Where its content is. The path of a volume is not known here.
    pub source: Source,
    /// `<driver type>`.
    pub format: Option<String>,
    /// The cache mode.
    pub cache: Option<String>,
    /// The guest cannot write to it: the XML says so, or it is a CD-ROM.
    pub readonly: bool,
    /// Other guests may write to it.
    pub shareable: bool,
    /// Its changes are thrown away when the guest stops.
    pub transient: bool,
    /// What the guest discards is given back to the host (`discard='unmap'`).
    pub discard: bool,
    /// It is being mirrored (`<mirror>`): the kind of job.
    pub mirror: Option<String>,
    /// The element that gives its image, or a layer below, more than a file of its format: `encryption`,
    /// `slices` or `dataStore`.
    pub special: Option<String>,
    /// The chain, the disk's own source first; without layers if that is no file or device and nothing
    /// is named below it.
    ///
    /// A layer that is no file or device is listed as well, because a chain that left it out would look
    /// like another chain: its path is no path but its kind and name, such as `volume:default/base` or
    /// `rbd:pool/base`, and never absolute. So is a volume on top if there are layers below.
    pub chain: XmlChain,
}

/// What becomes of one disk in the destination's XML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskEdit {
    /// The disk's name in the guest.
    pub target: String,
    /// The change.
    pub change: Change,
}

/// A change to one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is at another place, or in another file of the same name.
    Move {
        /// Its path at the destination.
        path: PathBuf,
        /// The place is a block device.
        block: bool,
        /// Its format there.
        format: Format,
        /// Its backing files, the uppermost first; empty if it has none. Every layer has a format.
        /// Those below `/dev`, but not `/dev/shm`, are written as devices.
        below: Vec<NamedLayer>,
        /// Use only this number of bytes of the device, because it is larger than the disk.
        slice: Option<u64>,
    },
    /// A read-only medium is at another path.
    Medium {
        /// Its path at the destination; below `/dev`, but not `/dev/shm`, it is a device's.
        path: PathBuf,
    },
    /// It stays at its path; only the chain below it is another.
    Chain {
        /// Its backing files, the uppermost first; empty if it has none. Every layer has a format.
        below: Vec<NamedLayer>,
    },
    /// The drive is empty.
    Eject,
}

/// Which of a domain's descriptions an XML is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// What runs at the destination: every edited disk has an explicit, terminated chain.
    Running,
    /// What the next start uses: chains are in the images' headers, unless the XML had one.
    NextStart,
}

/// The name, UUID and disks of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XmlDomain {
    /// Its name.
    pub name: String,
    /// Its UUID; `None` if the XML has none.
    pub uuid: Option<String>,
    /// Its disks, in their order.
    pub disks: Vec<XmlDisk>,
}

/// Reads a domain's XML.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if it is not one.
pub fn parse(xml: &str) -> Result<XmlDomain> {
    parse::domain(&tree::read(xml)?)
}

/// What keeps libvirt or QEMU from migrating a domain while it runs, as its XML tells; not what its disks do, which
/// is the planner's.
///
/// # Errors
/// As [`parse`].
pub fn obstacles(xml: &str) -> Result<Vec<Obstacle>> {
    Ok(devices::obstacles(&tree::read(xml)?))
}

/// The files that a domain's XML names besides its disks: NVRAM, firmware, kernels, the state of its TPM, ...
///
/// # Errors
/// As [`parse`].
pub fn files(xml: &str) -> Result<XmlFiles> {
    let document = tree::read(xml)?;
    let uuid = parse::domain(&document)?.uuid;
    Ok(files::files(&document, uuid.as_deref()))
}

/// The XML for the destination's running domain, from the migratable one: edited disks have an explicit,
/// terminated chain, everything else stays as it is. The result has been checked against the original.
///
/// Of an edited disk, what describes its old place is dropped: its slices, external data file, mirror,
/// reservations, the descriptors and numbers that libvirt gave it. What holds at any place stays:
/// security labels, `startupPolicy`, cache mode, limits.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if a disk is not there, an edit makes no sense, or the XML is not
/// understood. [`Refused`](crate::ErrorKind::Refused) if an edit would lose something: the disk is
/// encrypted, is passed through or is not on a file, device or volume; a medium has layers below it.
pub fn destination_xml(migratable: &str, edits: &[DiskEdit]) -> Result<String> {
    edit::edit(migratable, edits, Form::Running)
}

/// The XML for the destination's next start, from the inactive one: no `<backingStore>` for edited disks
/// unless one had been written into the XML, because the header is the truth then. Where one was written, it is
/// replaced by the new chain.
///
/// A disk that this XML does not have, because it was plugged in for this run only, and a drive that is
/// empty in it stay so. The caller must not ask for an edit of a disk that is another one in this
/// XML than in the running domain's.
///
/// # Errors
/// As [`destination_xml`], but that a disk may be missing.
pub fn persistent_xml(inactive: &str, edits: &[DiskEdit]) -> Result<String> {
    edit::edit(inactive, edits, Form::NextStart)
}

/// Whether `after` is what the edits make of `before`, and nothing more: the same devices in the same
/// order, everything outside the edited disks equal, and in these only what had to change. A net below
/// [`destination_xml`] and [`persistent_xml`], which have called it already.
///
/// # Errors
/// [`Refused`](crate::ErrorKind::Refused) with the first difference, and [`Usage`](crate::ErrorKind::Usage)
/// if either is not a domain's XML.
pub fn check_edit(before: &str, after: &str, edits: &[DiskEdit], form: Form) -> Result<()> {
    check::check(before, after, edits, form)
}
