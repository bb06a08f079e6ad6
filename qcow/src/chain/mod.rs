//! Backing chains: names, policy, resolution, loops.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use crate::{Error, Result};

/// The image formats that this crate reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
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
            _ => Err(Error::unsupported(format!("unknown image format '{name}'"))
                .hint("the formats are qcow2 and raw")),
        }
    }
}

/// Which files an image may name and have opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FilePolicy {
    /// Any regular file or block device that the process can open.
    #[default]
    AnyLocal,
    /// Only files that resolve to a place below one of these directories.
    Within(Vec<PathBuf>),
    /// None.
    Deny,
}

/// What may be opened on the word of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Backing files.
    pub backing: FilePolicy,
    /// External data files.
    pub data_file: FilePolicy,
}

/// How much an image may demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Images in a chain, the active layer included; at most 200.
    pub max_depth: usize,
    /// Largest virtual size in bytes.
    pub max_virtual_size: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_depth: 200, max_virtual_size: i64::MAX as u64 }
    }
}

/// How to open an image and what it stands on.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Format of the active layer; `None` looks at its first bytes.
    pub format: Option<Format>,
    /// Format to assume for a backing file whose format is not recorded; `None` refuses it.
    pub backing_format: Option<Format>,
    /// Internal snapshot (id, then name) whose view to read instead of the current state.
    pub snapshot: Option<String>,
    /// What may be opened.
    pub policy: Policy,
    /// How much may be demanded.
    pub limits: Limits,
}

/// An image and everything it stands on, opened once and read-only; depth 0 is the active layer.
#[derive(Debug)]
pub struct Chain {}

impl Chain {
    /// Opens the image at `path` and its whole backing chain, read-only.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `Unsupported`, `Denied` or `Limit`, naming the file and the structure.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let _ = (path, options);
        Err(Error::unsupported("not built yet"))
    }
}
