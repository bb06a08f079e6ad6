//! Finds what reads as zeros in an image, and computes the digest of all it has on the way.

use std::ops::Range;

use crc32fast::Hasher;

use crate::chain::Chain;
use crate::codec::is_zero;
use crate::extent::{Extent, ExtentKind};
use crate::ops::work::crc::{Crc, hash};
use crate::ops::work::pipeline::{self, Job};
use crate::{CancelToken, Observer, Result};

/// What of a raw disk is zeros or not: the block of usual file systems.
const RAW_UNIT: u64 = 4096;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// Ranges of the guest's disk that read as zeros, in ascending order and not adjoining: those of data, and those
    /// that the tables have so.
    pub(super) zeros: Vec<Range<u64>>,
    /// Where zeros are stored as data: in the order of the guest's disk.
    pub(super) places: Vec<Range<u64>>,
    /// Bytes that are allocated and zeros.
    pub(super) zero_bytes: u64,
    /// CRC-32 of the disk.
    pub(super) crc32: String,
}

/// Reads the one layer of `chain`.
pub(super) fn scan(
    chain: &Chain,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Scanned> {
    let image = chain.layers().first().and_then(|layer| layer.image());
    let unit = image.map_or(RAW_UNIT, |image| image.geometry().subcluster_size());
    let found = (Crc::new(), Scanned::default());
    let (crc, found) = pipeline::run(chain, &Scan { unit }, found, threads, observer, cancel)?;
    Ok(Scanned { crc32: crc.to_hex(), ..found })
}

struct Scan {
    /// What is told apart.
    unit: u64,
}

/// What an item has.
struct Item {
    hash: Hasher,
    zeros: Vec<Range<u64>>,
    places: Vec<Range<u64>>,
    zero_bytes: u64,
}

impl Job for Scan {
    type Worker = ();
    type Ready = Item;
    type Ordered = (Crc, Scanned);
    type Placed = ();

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, (): &mut (), guest: u64, bytes: &[u8]) -> Result<Item> {
        self.prepare_extents(&mut (), guest, bytes, &[])
    }

    fn prepare_extents(
        &self,
        (): &mut (),
        guest: u64,
        bytes: &[u8],
        extents: &[Extent],
    ) -> Result<Item> {
        let mut item =
            Item { hash: hash(bytes), zeros: Vec::new(), places: Vec::new(), zero_bytes: 0 };
        let (mut rest, mut at) = (bytes, guest);
        while !rest.is_empty() {
            // Where file holes were taken into account, an item may begin within a unit.
            let len = self.unit.wrapping_sub(at & self.unit.wrapping_sub(1));
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(len).unwrap_or(1)));
            let end = at.wrapping_add(now.len() as u64);
            if is_zero(now) {
                append(&mut item.zeros, at..end);
            }
            (rest, at) = (later, end);
        }
        for zeros in &item.zeros {
            for extent in extents {
                let part = extent.slice(zeros.start, zeros.end);
                if part.len == 0 || part.is_zero() {
                    continue;
                }
                item.zero_bytes = item.zero_bytes.wrapping_add(part.len);
                if let ExtentKind::Data { host } = part.kind {
                    append(&mut item.places, host.0..host.0.wrapping_add(part.len));
                }
            }
        }
        Ok(item)
    }

    fn place(&self, (crc, found): &mut (Crc, Scanned), ready: &Item) -> Result<()> {
        crc.append(&ready.hash);
        ready.zeros.iter().for_each(|range| append(&mut found.zeros, range.clone()));
        ready.places.iter().for_each(|range| append(&mut found.places, range.clone()));
        found.zero_bytes = found.zero_bytes.wrapping_add(ready.zero_bytes);
        Ok(())
    }

    fn place_zeros(&self, (crc, found): &mut (Crc, Scanned), guest: u64, len: u64) -> Result<()> {
        crc.append_zeros(len);
        append(&mut found.zeros, guest..guest.wrapping_add(len));
        Ok(())
    }

    fn write(&self, (): &mut (), _bytes: &[u8], _ready: Item, (): ()) -> Result<()> {
        Ok(())
    }
}

/// Adds a range, to the last one if it goes on there.
fn append(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
