//! The persistent bitmaps of a source in a copy of it.

use std::collections::HashSet;

use super::actions::{Directory, place_directory, shown};
use super::{BitmapAction, BitmapSummary};
use crate::chain::Chain;
use crate::format::{BitmapEntry, BitmapFlags, BitmapsExtension, Geometry, HostOffset, Version};
use crate::image::bits::{Bits, table_entries};
use crate::image::edit::Edit;
use crate::image::{BitmapInfo, Image};
use crate::{CancelToken, Error, Remedy, Result};

/// Which persistent bitmaps of a source its copy gets. Those of its active layer are meant, with name, granularity,
/// dirty ranges, and whether they record writes.
///
/// ```
/// use qcow::ops::bitmap::CarryBitmaps;
/// use qcow::ops::flatten::FlattenOptions;
///
/// let options = FlattenOptions::default().bitmaps(CarryBitmaps::Sound);
/// assert_eq!(FlattenOptions::default().bitmaps, CarryBitmaps::None);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CarryBitmaps {
    /// None.
    #[default]
    None,
    /// All. One that was not stored cleanly is an error.
    All,
    /// Those that were stored cleanly; the others are listed.
    Sound,
}

/// The bitmaps that are carried.
#[derive(Debug)]
pub(crate) struct Carried {
    source: Chain,
    sound: Vec<BitmapInfo>,
    skipped: Vec<String>,
}

impl Carried {
    /// Decides which bitmaps of `chain` an image gets, whose version is `target` if it is one of QCOW2.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the source or the target is raw or of version 2;
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for a bitmap that was not stored cleanly.
    pub(crate) fn of(chain: &Chain, how: CarryBitmaps, target: Option<Version>) -> Result<Self> {
        let mut carried = Self { source: chain.clone(), sound: Vec::new(), skipped: Vec::new() };
        if how == CarryBitmaps::None {
            return Ok(carried);
        }
        if target != Some(Version::V3) {
            return Err(Error::unsupported(
                "the target cannot have bitmaps: only qcow2 images of version 3 can",
            ));
        }
        carried.choose(how).map_err(|error| match chain.layers().first() {
            Some(layer) => error.file(layer.path()),
            None => error,
        })?;
        Ok(carried)
    }

    fn choose(&mut self, how: CarryBitmaps) -> Result<()> {
        let (chain, mut seen) = (self.source.clone(), HashSet::new());
        for bitmap in source(&chain)?.bitmaps() {
            let (name, text) = (&bitmap.name, shown(&bitmap.name));
            if !bitmap.in_use {
                if !seen.insert(name.as_slice()) {
                    let twice = format!("the source has two bitmaps named '{text}'");
                    return Err(Error::corrupt(twice).structure("bitmap directory"));
                }
                self.sound.push(bitmap.clone());
            } else if how == CarryBitmaps::Sound {
                self.skipped.push(String::from_utf8_lossy(name).into_owned());
            } else {
                let broken =
                    format!("the bitmap '{text}' was not stored cleanly, and cannot be carried");
                return Err(Error::corrupt(broken)
                    .structure("bitmap directory")
                    .hint(Remedy::SkipBrokenBitmaps));
            }
        }
        Ok(())
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.sound.is_empty()
    }

    /// What the copy gets.
    pub(crate) fn summaries(&self) -> Vec<BitmapSummary> {
        self.sound.iter().map(BitmapSummary::of).collect()
    }

    /// Names of those that the copy gets, and of those that are left out, as they are in the image.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        let text = |bitmap: &BitmapInfo| String::from_utf8_lossy(&bitmap.name).into_owned();
        self.sound.iter().map(text).chain(self.skipped.iter().cloned())
    }

    /// Names of those that are left out because they were not stored cleanly, as they are in the image.
    pub(crate) fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Whether clusters of this geometry can hold them.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if one is too large for them.
    pub(crate) fn check(&self, geometry: Geometry) -> Result<()> {
        for bitmap in &self.sound {
            let bits = bitmap.granularity.trailing_zeros();
            table_entries(geometry, self.source.virtual_size(), bits)?;
        }
        Ok(())
    }

    /// Has them written for a new image by `place`, which gives the place of each structure in new clusters. Gives the
    /// extension of the header that leads to them.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if the new clusters are too small for them; what reading raises, and
    /// `place`.
    pub(crate) fn place(
        &self,
        geometry: Geometry,
        cancel: &CancelToken,
        mut place: impl FnMut(Vec<u8>) -> Result<HostOffset>,
    ) -> Result<Option<BitmapsExtension>> {
        if self.is_empty() {
            return Ok(None);
        }
        let source = source(&self.source)?;
        let (mut directory, mut count) = (Vec::new(), 0u32);
        for bitmap in &self.sound {
            let granularity = bitmap.granularity.trailing_zeros();
            let mut bits = Bits::clean(geometry, source.virtual_size(), granularity)?;
            for range in source.bitmap(&bitmap.name)?.dirty_ranges()? {
                cancel.check()?;
                let range = range?;
                bits.set(&**source.storage(), range.start.0..range.end.0)?;
            }
            let (table_offset, table_entries) = bits.place(&mut place)?;
            let flags = if bitmap.auto { BitmapFlags::AUTO } else { BitmapFlags::empty() };
            let entry = BitmapEntry {
                table_offset,
                table_entries,
                flags,
                kind: BitmapEntry::DIRTY_TRACKING,
                granularity_bits: u8::try_from(granularity)
                    .map_err(|_| Error::internal("a granularity of more than 2^255"))?,
                extra: Vec::new(),
                name: bitmap.name.clone(),
            };
            directory.extend(entry.to_bytes()?);
            count = count.checked_add(1).ok_or_else(|| Error::internal("2^32 bitmaps"))?;
        }
        place_directory(count, directory, place)
    }

    /// Adds them to the bitmaps of an image that is there.
    ///
    /// # Errors
    /// As [`change_bitmap`](super::change_bitmap) for adding and merging: [`Exists`](crate::ErrorKind::Exists) for a name
    /// that is taken, [`Usage`](crate::ErrorKind::Usage) for a disk of another size.
    pub(crate) fn add_to(&self, edit: &mut Edit, cancel: &CancelToken) -> Result<()> {
        let mut directory = Directory::read(edit.image())?;
        for bitmap in &self.sound {
            cancel.check()?;
            let merge = BitmapAction::Merge {
                bitmap: bitmap.name.clone(),
                from: Some(self.source.clone()),
            };
            let add = BitmapAction::Add { granularity: Some(bitmap.granularity) };
            let actions = [add, merge, BitmapAction::Disable];
            for action in actions.iter().take(if bitmap.auto { 2 } else { 3 }) {
                directory.apply(edit.image(), &bitmap.name, action)?;
            }
        }
        directory.store(edit)
    }
}

/// The active layer, which can have bitmaps.
fn source(chain: &Chain) -> Result<&Image> {
    let image = chain.layers().first().and_then(|layer| layer.image());
    let image = image.filter(|image| image.header().version == Version::V3);
    image.ok_or_else(|| {
        Error::unsupported("the source cannot have bitmaps: only qcow2 images of version 3 can")
    })
}
