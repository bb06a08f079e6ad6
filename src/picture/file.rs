//! The file that a command draws into: its kind is known before any work, and it appears when it is whole.

use std::path::Path;

use migrate::audit::{Report, Survey};
use qcow::chain::Chain;
use qcow::io::Replace;
use qcow::ops::begin;
use qcow::ops::map::{MapOptions, map};
use qcow::{CancelToken, Result};

use super::{Bands, Caption, Graph, Kind, Picture, Tally, draw};
use crate::losses::warn_truncated;
use crate::output::{shown, warn};
use crate::size;

/// A picture that is to be drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PictureFile<'a> {
    path: &'a Path,
    kind: Kind,
    replace: Replace,
}

impl<'a> PictureFile<'a> {
    /// A picture under the name `path`, whose extension says what kind.
    ///
    /// # Errors
    /// `Usage` for an extension that is none of a picture.
    pub(crate) fn at(path: &'a Path, replace: Replace) -> Result<Self> {
        Ok(Self { path, kind: Kind::of(path)?, replace })
    }

    /// Draws where the parts of the disk of the image `name` come from.
    ///
    /// # Errors
    /// `Interrupted`; what reading tables raises, and as [`begin`].
    pub(crate) fn map(
        &self,
        name: &Path,
        chain: &Chain,
        options: &MapOptions,
        cancel: &CancelToken,
    ) -> Result<()> {
        let rest = chain.virtual_size().saturating_sub(options.start);
        let length = options.max_length.unwrap_or(u64::MAX).min(rest);
        let mut tally = Tally::new(options.start, length, chain.layers().len());
        for entry in map(chain, options) {
            cancel.check()?;
            tally.add(&entry?);
        }
        warn_truncated(&chain.truncations()?);
        let short = |path: &Path| shown(path.file_name().map_or(path, Path::new));
        let caption = Caption {
            title: format!("{}, {}", short(name), size::human(chain.virtual_size())),
            layers: chain.layers().iter().map(|layer| short(layer.path())).collect(),
        };
        self.write(&Bands { tally: &tally, caption: &caption })
    }

    /// Draws the backing-file dependencies.
    ///
    /// # Errors
    /// As [`begin`].
    pub(crate) fn audit(&self, survey: &Survey, report: &Report) -> Result<()> {
        self.write(&Graph::new(survey, report))
    }

    fn write(&self, picture: &impl Picture) -> Result<()> {
        let bytes = draw(self.kind, picture)?;
        let output = begin(self.path, self.replace)?;
        output.write_at(&bytes, 0)?;
        warn(&output.publish()?);
        Ok(())
    }
}
