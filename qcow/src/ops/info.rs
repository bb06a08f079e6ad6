//! What an image says about itself, with the keys and values of `qemu-img info`.

use std::path::Path;

use serde::Serialize;

use crate::chain::OpenOptions;
use crate::{Error, Result};

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct InfoOptions {
    /// How to open.
    pub open: OpenOptions,
    /// Walk the whole chain; otherwise no backing or data file is opened.
    pub backing_chain: bool,
    /// Insist on this internal snapshot (id or name) and report only it.
    pub snapshot: Option<String>,
}

/// One image of the chain. Serialises to the object that `qemu-img info --output json` prints.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ImageInfo {}

/// Facts about the image at `path`, and about its chain if asked: active layer first.
///
/// # Errors
/// As [`Chain::open`](crate::chain::Chain::open); encrypted images are reported, not refused.
pub fn info(path: &Path, options: &InfoOptions) -> Result<Vec<ImageInfo>> {
    let _ = (path, options);
    Err(Error::unsupported("not built yet"))
}
