//! Pictures in a build without the feature `pictures`: there are none, and that is said before any work.

use std::path::Path;

use migrate::audit::{Report, Survey};
use qcow::chain::Chain;
use qcow::io::Replace;
use qcow::ops::map::MapOptions;
use qcow::{CancelToken, Error, Result};

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

    pub(crate) fn map(&self, _: &Path, _: &Chain, _: &MapOptions, _: &CancelToken) -> Result<()> {
        match *self {}
    }

    pub(crate) fn audit(&self, _: &Survey, _: &Report) -> Result<()> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Run by `scripts/test-features`.
    #[test]
    fn without_pictures_none_is_drawn() {
        let refused = PictureFile::at(Path::new("map.svg"), Replace::Never);
        let error = refused.map(drop).unwrap_err();
        assert_eq!(error.kind(), qcow::ErrorKind::Unsupported);
        assert!(error.to_string().contains("the cargo feature 'pictures'"), "{error}");
    }
}
