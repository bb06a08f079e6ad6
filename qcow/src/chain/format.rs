//! Image formats: the two that are read and written, and those that are known well enough to be
//! refused by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::io::{Storage, read_padded};
use crate::{Error, ErrorKind, Remedy, Result};

/// The image formats that this crate reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

    /// Looks at the first bytes: QCOW2 by its magic, any other known image format refused by
    /// name, everything else raw.
    ///
    /// Only for images that a person named. What an image calls its backing file is never probed:
    /// a guest can write any magic it likes into a raw disk (traps 101, 145).
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) with the name of the format found.
    pub fn probe(storage: &dyn Storage) -> Result<Self> {
        let mut start = [0; 512];
        read_padded(storage, &mut start, 0)?;
        if start.starts_with(b"QFI\xfb") {
            let version = start.get(4..8);
            return if version == Some(&[0, 0, 0, 1]) {
                Err(other("QCOW version 1"))
            } else {
                Ok(Self::Qcow2)
            };
        }
        let found = MAGICS
            .iter()
            .find(|(at, magic, _)| start.get(*at..).is_some_and(|bytes| bytes.starts_with(magic)));
        found.map_or(Ok(Self::Raw), |(_, _, name)| Err(other(name)))
    }
}

/// Offset, magic, name.
const MAGICS: &[(usize, &[u8], &str)] = &[
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"QED\0", "QED"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"Bochs Virtual HD Image", "Bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
];

fn other(name: &str) -> Error {
    let message = format!("this is a {name} image; only qcow2 and raw are supported");
    Error::new(ErrorKind::WrongFormat, message).hint(Remedy::Convert)
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
                crate::Printable(name)
            ))
            .hint("the formats are qcow2 and raw")),
        }
    }
}
