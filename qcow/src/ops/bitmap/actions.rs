//! The directory of bitmaps while it is changed.

use std::ops::Range;

use crate::exact::Exact;
use crate::format::{
    Autoclear, BitmapEntry, BitmapFlags, BitmapsExtension, Extension, HeaderArea, HostOffset,
    MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAP_GRANULARITY_BITS, MAX_BITMAP_NAME, MAX_BITMAPS,
    MIN_BITMAP_GRANULARITY_BITS, Version,
};
use crate::image::bits::{Bits, free, table_entries};
use crate::image::edit::Edit;
use crate::image::first_cluster::editable;
use crate::image::{BitmapInfo, Image};
use crate::ops::info::BitmapSummary;
use crate::{Error, ErrorKind, Escaped, Remedy, Result};

use super::BitmapAction;

/// Smallest and largest granularity of a bitmap for which none is asked.
const USUAL: std::ops::RangeInclusive<u64> = 4 << 10..=64 << 10;

#[derive(Debug)]
pub(super) struct Directory {
    items: Vec<Item>,
    /// Bitmaps of the image that are to be gone.
    removed: Vec<BitmapEntry>,
    changed: bool,
}

#[derive(Debug)]
struct Item {
    entry: BitmapEntry,
    /// Its entry in the image, if it is there.
    stored: Option<BitmapEntry>,
    /// Its bits, if they are to change.
    bits: Option<Bits>,
}

impl Directory {
    pub(super) fn read(image: &Image) -> Result<Self> {
        let items = image.bitmap_entries()?.into_iter().map(|entry| Item {
            stored: Some(entry.clone()),
            entry,
            bits: None,
        });
        Ok(Self { items: items.collect(), removed: Vec::new(), changed: false })
    }

    /// The bitmaps' entries, to be changed.
    pub(super) fn entries(&mut self) -> impl Iterator<Item = &mut BitmapEntry> {
        self.items.iter_mut().map(|item| &mut item.entry)
    }

    /// Checks that all are such as can get another size.
    pub(super) fn check_closed(&mut self) -> Result<()> {
        match self.entries().find(|entry| entry.flags.contains(BitmapFlags::IN_USE)) {
            None => Ok(()),
            Some(entry) => {
                let name = shown(&entry.name);
                Err(Error::usage(format!(
                    "the bitmap '{name}' was not stored cleanly, and cannot get another size"
                ))
                .hint(Remedy::DropBitmaps))
            }
        }
    }

    /// Sets bits in those that record writes, for a disk that gets `size` bytes. Gives how many that are.
    pub(super) fn mark(&mut self, image: &Image, ranges: &[Range<u64>], size: u64) -> Result<u64> {
        let mut marked = 0u64;
        for item in &mut self.items {
            let flags = item.entry.flags;
            let records = flags.contains(BitmapFlags::AUTO) && !flags.contains(BitmapFlags::IN_USE);
            if !records && size == image.virtual_size() {
                continue;
            }
            let bits = item.bits(image)?;
            bits.resize(size)?;
            if records {
                for range in ranges {
                    bits.set(&**image.storage(), range.clone())?;
                }
                marked = marked.plus(1)?;
            }
            self.changed = true;
        }
        Ok(marked)
    }

    pub(super) fn summaries(&self) -> Vec<BitmapSummary> {
        let infos = self.items.iter().map(|item| BitmapInfo::of(&item.entry));
        infos.map(|info| BitmapSummary::of(&info)).collect()
    }

    /// Does one thing with the bitmap `name`, in memory.
    pub(super) fn apply(
        &mut self,
        image: &Image,
        name: &[u8],
        action: &BitmapAction,
    ) -> Result<()> {
        match action {
            BitmapAction::Add { granularity } => self.add(image, name, *granularity)?,
            BitmapAction::Remove => {
                let index = self.find(name)?;
                self.removed.extend(self.items.remove(index).stored);
            }
            BitmapAction::Clear => self.usable(name)?.bits(image)?.clear(),
            BitmapAction::Enable => self.usable(name)?.set_auto(true),
            BitmapAction::Disable => self.usable(name)?.set_auto(false),
            BitmapAction::Merge { bitmap, from } => {
                let source = match from {
                    None => image,
                    Some(chain) => {
                        let layer = chain.layers().first().and_then(|layer| layer.image());
                        layer.ok_or_else(|| Error::unsupported("raw images have no bitmaps"))?
                    }
                };
                self.merge(image, name, source, bitmap)?;
            }
        }
        self.changed |= self
            .items
            .iter()
            .any(|item| item.bits.is_some() || item.stored.as_ref() != Some(&item.entry))
            || !self.removed.is_empty();
        Ok(())
    }

    fn find(&self, name: &[u8]) -> Result<usize> {
        let found = self.items.iter().position(|item| item.entry.name == name);
        found
            .ok_or_else(|| Error::usage(format!("the image has no bitmap named '{}'", shown(name))))
    }

    /// The bitmap of this name, if it was stored cleanly.
    fn usable(&mut self, name: &[u8]) -> Result<&mut Item> {
        let index = self.find(name)?;
        let item = self.items.get_mut(index);
        let item = item.ok_or_else(|| Error::internal("a bitmap was found and is gone"))?;
        if item.entry.flags.contains(BitmapFlags::IN_USE) {
            return Err(Error::corrupt(format!(
                "the bitmap '{}' was not stored cleanly, and can only be removed",
                shown(name)
            ))
            .structure("bitmap directory")
            .hint("make a full backup, and remove the bitmap"));
        }
        Ok(item)
    }

    fn add(&mut self, image: &Image, name: &[u8], granularity: Option<u64>) -> Result<()> {
        if image.header().version == Version::V2 {
            return Err(Error::unsupported("images of version 2 have no bitmaps")
                .hint("raise the image's version to 3 first"));
        }
        if name.is_empty() || name.len() > usize::from(MAX_BITMAP_NAME) || name.contains(&0) {
            return Err(Error::usage(format!(
                "a bitmap's name has 1 to {MAX_BITMAP_NAME} bytes, without NUL"
            )));
        }
        if self.find(name).is_ok() {
            let message = format!("the image already has a bitmap named '{}'", shown(name));
            return Err(Error::new(ErrorKind::Exists, message));
        }
        if self.items.len() as u64 >= u64::from(MAX_BITMAPS) {
            return Err(Error::limit(format!("an image has at most {MAX_BITMAPS} bitmaps")));
        }
        if image.virtual_size() == 0 {
            return Err(Error::usage("a disk of no bytes has no bitmaps"));
        }
        let cluster_size = image.geometry().cluster_size();
        let granularity =
            granularity.unwrap_or_else(|| cluster_size.clamp(*USUAL.start(), *USUAL.end()));
        let bits = granularity.trailing_zeros();
        let range = u32::from(MIN_BITMAP_GRANULARITY_BITS)..=u32::from(MAX_BITMAP_GRANULARITY_BITS);
        let granularity_bits = u8::try_from(bits)
            .ok()
            .filter(|_| granularity.is_power_of_two() && range.contains(&bits))
            .ok_or_else(|| {
                let message = format!(
                    "a granularity of {granularity} bytes, expected a power of two from 512 to 2 GiB"
                );
                Error::usage(message)
            })?;
        let entries = table_entries(image.geometry(), image.virtual_size(), bits)?;
        let entry = BitmapEntry {
            // Both are known when it is stored.
            table_offset: HostOffset(0),
            table_entries: u32::try_from(entries).unwrap_or_default(),
            flags: BitmapFlags::AUTO,
            kind: BitmapEntry::DIRTY_TRACKING,
            granularity_bits,
            extra: Vec::new(),
            name: name.to_vec(),
        };
        let bits = Some(Bits::clean(image.geometry(), image.virtual_size(), bits)?);
        self.items.push(Item { entry, stored: None, bits });
        Ok(())
    }

    fn merge(&mut self, image: &Image, name: &[u8], source: &Image, other: &[u8]) -> Result<()> {
        let item = self.usable(name)?;
        let same = std::ptr::eq(image, source);
        if same && name == other {
            return Ok(());
        }
        let (size, other_size) = (image.virtual_size(), source.virtual_size());
        let dirty = source.bitmap(other)?.dirty_ranges()?;
        if size != other_size {
            return Err(Error::usage(format!(
                "bitmaps of different sizes, {size} and {other_size} bytes, cannot be merged"
            )));
        }
        let bits = item.bits(image)?;
        for range in dirty {
            let range = range?;
            bits.set(&**image.storage(), range.start.0..range.end.0)?;
        }
        Ok(())
    }

    /// Has the changed directory stored, with all that it leads to.
    pub(super) fn store(self, edit: &mut Edit) -> Result<()> {
        let differs = |item: &Item| item.stored.as_ref() != Some(&item.entry);
        if !self.changed && !self.items.iter().any(differs) {
            return Ok(());
        }
        let mut area = editable(&**edit.image().storage())?;
        for entry in &self.removed {
            free(edit, entry, true)?;
        }
        let mut directory = Vec::new();
        let count = u32::try_from(self.items.len())
            .map_err(|_| Error::internal("more bitmaps than there can be"))?;
        for mut item in self.items {
            if let Some(bits) = item.bits {
                if let Some(stored) = &item.stored {
                    free(edit, stored, false)?;
                }
                (item.entry.table_offset, item.entry.table_entries) = bits.store(edit)?;
            }
            directory.extend(item.entry.to_bytes()?);
        }
        if let Some(old) = area.bitmaps().copied() {
            let clusters = edit.clusters(old.directory_offset, old.directory_size)?;
            edit.lower(clusters)?;
        }
        let extension = place_directory(count, directory, |bytes| edit.write_new(bytes))?;
        set_extension(&mut area, extension);
        edit.set_area(area);
        Ok(())
    }
}

impl Item {
    fn set_auto(&mut self, auto: bool) {
        self.entry.flags.set(BitmapFlags::AUTO, auto);
    }

    /// Its bits, to be changed.
    fn bits(&mut self, image: &Image) -> Result<&mut Bits> {
        let bits = match self.bits.take() {
            Some(bits) => bits,
            None => Bits::stored(image, &self.entry)?,
        };
        Ok(self.bits.insert(bits))
    }
}

/// Has the directory of `count` bitmaps written by `place`, and gives the extension that leads to it; `None` for no
/// bitmaps.
///
/// # Errors
/// [`Limit`](crate::ErrorKind::Limit) if it is longer than it may be; as `place`.
pub(super) fn place_directory(
    count: u32,
    directory: Vec<u8>,
    place: impl FnOnce(Vec<u8>) -> Result<HostOffset>,
) -> Result<Option<BitmapsExtension>> {
    if count == 0 {
        return Ok(None);
    }
    let directory_size = directory.len() as u64;
    if directory_size > MAX_BITMAP_DIRECTORY_BYTES {
        return Err(Error::limit(format!(
            "the bitmap directory would have {directory_size} bytes, and may have \
             {MAX_BITMAP_DIRECTORY_BYTES}"
        )));
    }
    let directory_offset = place(directory)?;
    Ok(Some(BitmapsExtension { count, directory_size, directory_offset }))
}

/// Replaces the header's word of the bitmap directory.
pub(crate) fn set_extension(area: &mut HeaderArea, extension: Option<BitmapsExtension>) {
    area.extensions.0.retain(|extension| !matches!(extension, Extension::Bitmaps(_)));
    area.header.autoclear.set(Autoclear::BITMAPS, extension.is_some());
    if let Some(extension) = extension {
        // Before the names of features, so that it lies within the first sector.
        let names = |extension: &Extension| matches!(extension, Extension::FeatureNames(_));
        let at = area.extensions.0.iter().position(names);
        let at = at.unwrap_or(area.extensions.0.len());
        area.extensions.0.insert(at, Extension::Bitmaps(extension));
    }
}

pub(super) fn shown(name: &[u8]) -> String {
    Escaped(&String::from_utf8_lossy(name)).to_string()
}
