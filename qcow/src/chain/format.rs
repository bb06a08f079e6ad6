//! The image formats that are read and written, and how the format of a file is found.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::Foreign;
use crate::io::Storage;
use crate::{Error, Result};

/// The image formats that this crate reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Format {
    /// QCOW2, version 2 or 3.
    Qcow2,
    /// The guest's bytes and nothing else.
    Raw,
}

impl Format {
    /// `"qcow2"` or `"raw"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }

    /// Looks at the first and the last bytes: QCOW2 by its magic; any other known image format,
    /// compressed data and archives refused by name; everything else raw.
    ///
    /// Only for images that a person named. What an image calls its backing file is never probed:
    /// a guest can write any magic it likes into a raw disk (traps 101, 145).
    ///
    /// # Errors
    /// [`WrongFormat`](crate::ErrorKind::WrongFormat) with the name of what was found.
    pub fn probe(storage: &dyn Storage) -> Result<Self> {
        Self::of(Foreign::find(storage)?)
    }

    /// As [`probe`](Self::probe), of a file that was opened by the name `path`, which tells QEMU
    /// something too.
    pub(super) fn probe_named(storage: &dyn Storage, path: &Path) -> Result<Self> {
        Self::of(Foreign::find(storage)?.or_else(|| Foreign::by_name(path)))
    }

    fn of(found: Option<Foreign>) -> Result<Self> {
        match found {
            None => Ok(Self::Raw),
            Some(found) if found.is_qcow2() => Ok(Self::Qcow2),
            Some(found) => Err(found.refused()),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "qcow2" => Ok(Self::Qcow2),
            "raw" => Ok(Self::Raw),
            _ => Err(Error::unsupported(format!(
                "image format '{}' is not supported",
                crate::Escaped(name)
            ))
            .hint("the formats are qcow2 and raw")),
        }
    }
}
