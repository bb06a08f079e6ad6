//! Pictures in a build without the feature `pictures`: there are none, and that is said before any work.

use std::path::Path;

use migrate::audit::{Report, Survey};
use qcow::chain::Chain;
use qcow::io::Replace;
use qcow::ops::map::MapOptions;
use qcow::{Error, Result};

/// There is none.
pub(crate) enum PictureFile {}

impl PictureFile {
    /// Refuses.
    ///
    /// # Errors
    /// `Unsupported`.
    pub(crate) fn at(path: &Path, _: Replace) -> Result<Self> {
        Err(Error::unsupported("this program was built without pictures")
            .file(path)
            .hint("build it with the cargo feature 'pictures'"))
    }

    pub(crate) fn map(&self, _: &Path, _: &Chain, _: &MapOptions) -> Result<()> {
        match *self {}
    }

    pub(crate) fn audit(&self, _: &Survey, _: &Report) -> Result<()> {
        match *self {}
    }
}
