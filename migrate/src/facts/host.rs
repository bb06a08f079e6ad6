//! Hosts, and what their libvirt tells of storage.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::NamedLayer;

/// A host, and the versions that decide what it can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostFacts {
    /// How it is reached: a libvirt URI, or `dir:` and a directory.
    pub uri: String,
    /// Its name.
    pub hostname: String,
    /// Its UUID; two hosts have different ones. `None` for a directory.
    pub uuid: Option<String>,
    /// libvirt's version; `None` for a directory.
    pub libvirt: Option<Version>,
    /// The hypervisor's version; `None` for a directory.
    pub qemu: Option<Version>,
}

/// A version of libvirt or QEMU. Written as `11.3.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third.
    pub micro: u32,
}

impl Version {
    /// `major.minor.micro`.
    pub const fn new(major: u32, minor: u32, micro: u32) -> Self {
        Self { major, minor, micro }
    }

    /// From libvirt's way to write one as a number: `1_000_000 * major + 1000 * minor + micro`.
    pub const fn from_number(number: u64) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "three digits each")]
        Self::new(
            (number / 1_000_000) as u32,
            (number / 1000 % 1000) as u32,
            (number % 1000) as u32,
        )
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut numbers = text.split('.').map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(micro)), None) => {
                Ok(Self::new(major, minor, micro))
            }
            _ => Err(format!("'{text}' is not a version like 11.3.0")),
        }
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A storage pool as its libvirt tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoolFacts {
    /// Its name.
    pub name: String,
    /// `dir`, `fs`, `netfs`, `logical`, ...
    pub kind: String,
    /// Where its volumes are found on its host.
    pub path: Option<PathBuf>,
    /// It is started. What is in one that is not, libvirt does not know.
    pub active: bool,
}

/// A volume as its libvirt tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeFacts {
    /// Its path and its format.
    pub own: NamedLayer,
    /// Its backing file, as its header named it when libvirt last looked.
    pub backing: Option<NamedLayer>,
    /// Size of its disk.
    pub capacity: u64,
    /// Bytes that are allocated for it.
    pub allocation: u64,
}
