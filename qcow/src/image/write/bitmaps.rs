//! Persistent bitmaps: what is written is marked in those that record writes.
//!
//! Before the first change each of them is marked as in use, so that after a crash it is not believed. A
//! bit is set in memory before the data that it stands for can be in the file. At the end the bits are
//! written, then the table's entries, then the mark is taken back, each durable before the next.
//! Specification: "Bitmaps extension".

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

use super::{Put, Writer, put};
use crate::exact::{Exact, to_usize};
use crate::format::{
    BitmapEntry, BitmapFlags, BitmapTableEntry, Geometry, HostOffset, decode_table,
};
use crate::image::Image;
use crate::io::{Storage, read_padded};
use crate::{Error, Result};

/// Memory that bitmaps may take, in bytes.
const MOST: u64 = 512 << 20;
/// Where the flags are in an entry of the directory.
const FLAGS: u64 = 12;

/// The bitmaps that record writes.
#[derive(Debug, Default)]
pub(super) struct Bitmaps(Vec<Recording>);

#[derive(Debug)]
struct Recording {
    /// Where its flags lie in the image, and what they say when it is stored.
    flags: (u64, BitmapFlags),
    granularity_bits: u32,
    table: HostOffset,
    entries: Vec<u64>,
    bits: Box<[AtomicU8]>,
    /// One for each entry of the table: bits of its cluster have been set.
    changed: Box<[AtomicBool]>,
}

impl Bitmaps {
    /// Reads the bitmaps that record writes. Inconsistent ones stay as they are.
    pub(super) fn read(image: &Image) -> Result<Self> {
        let Some(extension) = image.area().bitmaps() else { return Ok(Self::default()) };
        let storage: &dyn Storage = &**image.storage();
        let mut directory = vec![0; to_usize(extension.directory_size)];
        read_padded(storage, &mut directory, extension.directory_offset.0)?;
        let (mut bitmaps, mut at, mut memory) = (Vec::new(), 0, 0);
        while let Some(rest) = directory.get(at..).filter(|rest| !rest.is_empty()) {
            let (entry, consumed) = BitmapEntry::parse(rest)?;
            let place = extension.directory_offset.0.plus(at as u64)?;
            at = at.plus(consumed)?;
            if !entry.flags.contains(BitmapFlags::AUTO) || entry.flags.contains(BitmapFlags::IN_USE)
            {
                continue;
            }
            memory = memory
                .plus(u64::from(entry.table_entries).times(image.geometry().cluster_size())?)?;
            if memory > MOST {
                return Err(Error::limit(format!(
                    "the bitmaps need {memory} bytes of memory, and {MOST} are allowed"
                )));
            }
            bitmaps.push(Recording::read(storage, image.geometry(), &entry, place)?);
        }
        Ok(Self(bitmaps))
    }

    /// The clusters of their tables and bits.
    pub(super) fn clusters(&self, geometry: Geometry) -> Result<Vec<u64>> {
        let mut clusters = Vec::new();
        for bitmap in &self.0 {
            let first = bitmap.table.0 >> geometry.cluster_bits();
            let tables = geometry.clusters_for((bitmap.entries.len() as u64).times(8)?);
            clusters.extend(first..first.plus(tables)?);
            let stored = bitmap.entries.iter().filter_map(|entry| stored(*entry, geometry));
            clusters.extend(stored.map(|host| host.0 >> geometry.cluster_bits()));
        }
        Ok(clusters)
    }

    /// What marks them as in use.
    pub(super) fn marks(&self) -> impl Iterator<Item = Put> + '_ {
        self.0.iter().map(|bitmap| bitmap.put_flags(BitmapFlags::IN_USE))
    }

    /// Notes that a range of the disk changes.
    pub(super) fn set(&self, range: &Range<u64>) {
        self.0.iter().filter(|_| !range.is_empty()).for_each(|bitmap| bitmap.set(range));
    }
}

/// The cluster of an entry, if it has one.
fn stored(entry: u64, geometry: Geometry) -> Option<HostOffset> {
    match BitmapTableEntry::decode(entry, geometry) {
        Ok(BitmapTableEntry::Stored(host)) => Some(host),
        _ => None,
    }
}

impl Recording {
    fn read(
        storage: &dyn Storage,
        geometry: Geometry,
        entry: &BitmapEntry,
        place: u64,
    ) -> Result<Self> {
        let mut table = vec![0; to_usize(u64::from(entry.table_entries).times(8)?)];
        read_padded(storage, &mut table, entry.table_offset.0)?;
        let entries = decode_table(&table);
        let cluster = to_usize(geometry.cluster_size());
        let mut bits = vec![0; entries.len().times(cluster)?];
        for (entry, bits) in entries.iter().zip(bits.chunks_mut(cluster)) {
            match BitmapTableEntry::decode(*entry, geometry)? {
                BitmapTableEntry::AllZeros => {}
                BitmapTableEntry::AllOnes => bits.fill(0xff),
                BitmapTableEntry::Stored(host) => read_padded(storage, bits, host.0)?,
            }
        }
        Ok(Self {
            flags: (place.plus(FLAGS)?, entry.flags),
            granularity_bits: entry.granularity_bits.into(),
            table: entry.table_offset,
            changed: entries.iter().map(|_| AtomicBool::new(false)).collect(),
            entries,
            bits: bits.into_iter().map(AtomicU8::new).collect(),
        })
    }

    fn put_flags(&self, more: BitmapFlags) -> Put {
        let (offset, flags) = self.flags;
        Put { offset, bytes: (flags | more).bits().to_be_bytes().to_vec() }
    }

    /// Sets the bits of a range, which is not empty.
    fn set(&self, range: &Range<u64>) {
        let first = range.start >> self.granularity_bits;
        let Some(last) = range.end.checked_sub(1) else { return };
        let last = last >> self.granularity_bits;
        // As many bits as there are in the clusters of an entry.
        let per_entry =
            (self.bits.len() as u64).checked_div(self.changed.len() as u64).unwrap_or(1);
        for byte in first >> 3..=last >> 3 {
            let low = if byte == first >> 3 { first & 7 } else { 0 };
            let high = if byte == last >> 3 { last & 7 } else { 7 };
            // From the lowest to the highest bit.
            let mask = 0xffu64 >> (7 ^ high) & 0xff << low;
            let mask = u8::try_from(mask).unwrap_or(0);
            let Some(bits) = self.bits.get(to_usize(byte)) else { return };
            if bits.load(Relaxed) & mask != mask {
                bits.fetch_or(mask, Relaxed);
                let entry = byte.checked_div(per_entry).unwrap_or(0);
                if let Some(changed) = self.changed.get(to_usize(entry)) {
                    changed.store(true, Relaxed);
                }
            }
        }
    }
}

impl Writer {
    /// Writes the bitmaps back, and says that they can be believed. No request is in flight.
    pub(super) fn store_bitmaps(&self) -> Result<()> {
        let mut entries = Vec::new();
        let geometry = self.geometry();
        let cluster = to_usize(geometry.cluster_size());
        for bitmap in &self.bitmaps.0 {
            let parts = bitmap.bits.chunks(cluster).zip(&bitmap.changed).zip(&bitmap.entries);
            for (index, ((bits, changed), entry)) in (0u64..).zip(parts) {
                if !changed.swap(false, Relaxed) {
                    continue;
                }
                let host = match stored(*entry, geometry) {
                    Some(host) => host.0,
                    None => {
                        let cluster = self.with_space(|space| space.allocate(1))?.start;
                        let host = cluster.times(geometry.cluster_size())?;
                        let offset = bitmap.table.0.plus(index.times(8)?)?;
                        let entry = BitmapTableEntry::Stored(HostOffset(host)).encode();
                        entries.push(Put { offset, bytes: entry.to_be_bytes().to_vec() });
                        host
                    }
                };
                let bytes: Vec<u8> = bits.iter().map(|byte| byte.load(Relaxed)).collect();
                put(&*self.storage, &bytes, host)?;
            }
        }
        self.commit_all()?;
        for puts in [
            entries,
            self.bitmaps.0.iter().map(|bitmap| bitmap.put_flags(BitmapFlags::empty())).collect(),
        ] {
            if !puts.is_empty() {
                puts.iter()
                    .try_for_each(|Put { offset, bytes }| put(&*self.storage, bytes, *offset))?;
                self.barrier(&*self.storage)?;
            }
        }
        Ok(())
    }

    /// Whether bitmaps are marked as in use.
    pub(super) fn has_bitmaps(&self) -> bool {
        !self.bitmaps.0.is_empty()
    }
}
