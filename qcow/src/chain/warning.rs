//! What a caller should know about a chain that was opened.

use std::fmt;
use std::path::PathBuf;

use super::Foreign;
use crate::Escaped;

/// A chain was opened, but may not be what it seems.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The name of a backing file is relative behind `json:` or `file:`: it means another file in every
    /// working directory of the process that opens the image.
    WorkingDirectory {
        /// The file that it was taken for.
        layer: PathBuf,
    },
    /// The backing file of the lowest layer was not opened.
    BackingLeftOut {
        /// The lowest layer.
        layer: PathBuf,
        /// The name of the backing file, as it stands in the header.
        backing: String,
    },
    /// A layer is read as raw, as stated or recorded, although its bytes are something else's.
    ReadAsRaw {
        /// The layer.
        layer: PathBuf,
        /// What it looks like.
        looks: Foreign,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WorkingDirectory { layer } => write!(
                f,
                "backing file '{}': its name is relative behind json: or file:, so it depends on the \
                 working directory of each process that opens the image",
                Escaped(&layer.to_string_lossy())
            ),
            Self::BackingLeftOut { layer, backing } => write!(
                f,
                "the backing file '{}' of '{}' was not read: what it holds is shown as zeros",
                Escaped(backing),
                Escaped(&layer.to_string_lossy())
            ),
            Self::ReadAsRaw { layer, looks } => write!(
                f,
                "'{}' is read as raw, as stated, although it looks like {looks}",
                Escaped(&layer.to_string_lossy())
            ),
        }
    }
}
