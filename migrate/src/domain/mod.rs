//! The domain's XML: read as far as disks need it, and edited for the destination without touching
//! anything else.

use std::path::PathBuf;

use qcow::chain::Format;

use crate::facts::{Device, NamedLayer, Source, XmlChain};
use crate::{Error, Result};

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
    /// The guest cannot write to it.
    pub readonly: bool,
    /// Other guests may write to it.
    pub shareable: bool,
    /// Its changes are thrown away when the guest stops.
    pub transient: bool,
    /// It is being mirrored (`<mirror>`): the kind of job.
    pub mirror: Option<String>,
    /// The chain, the disk's own source first; empty if that is no file or device.
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
        /// What it stands on, the uppermost first; empty if it stands alone. Every layer has a format.
        below: Vec<NamedLayer>,
        /// Use only so many bytes of the device, because it is larger than the disk.
        slice: Option<u64>,
    },
    /// A read-only medium is at another path.
    Medium {
        /// Its path at the destination.
        path: PathBuf,
    },
    /// The drive is empty.
    Eject,
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
pub fn parse(_xml: &str) -> Result<XmlDomain> {
    Err(Error::usage("not done yet"))
}

/// The XML for the destination's running domain, from the migratable one: edited disks have an explicit,
/// terminated chain, everything else stays as it is. The result has been checked against the original.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if a disk is not there, or the XML not understood.
pub fn destination_xml(_migratable: &str, _edits: &[DiskEdit]) -> Result<String> {
    Err(Error::usage("not done yet"))
}

/// The XML for the destination's next start, from the inactive one: no `<backingStore>` for edited disks
/// unless somebody had written one, because the header is the truth then.
///
/// # Errors
/// As [`destination_xml`].
pub fn persistent_xml(_inactive: &str, _edits: &[DiskEdit]) -> Result<String> {
    Err(Error::usage("not done yet"))
}
