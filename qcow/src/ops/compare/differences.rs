//! What one piece of two disks differs in.

use std::ops::Range;

use super::CompareError;
use crate::chain::Chain;
use crate::codec::is_zero;
use crate::extent::{Extent, ExtentKind, Reader};
use crate::format::SECTOR;
use crate::io::Buffer;
use crate::ops::work::pieces::Work;
use crate::{Error, Result};

/// So much is read of each image before it is compared, while it is still in the cache.
const BITE: u64 = 256 << 10;
/// Of compressed clusters so much is read of each image: they lie near each other in their file, and one call
/// reads many.
const COMPRESSED_BITE: u64 = 1 << 20;

/// Differences of one work item.
#[derive(Default)]
pub(super) struct Differences {
    pub(super) first: Option<u64>,
    pub(super) ranges: Vec<(u64, u64)>,
    pub(super) shared: u64,
}

/// How a worker reads one image.
pub(super) struct Side {
    reader: Reader,
    buffer: Buffer,
}

impl Side {
    pub(super) fn new(chain: &Chain) -> Result<Self> {
        let buffer = Buffer::new(in_memory(COMPRESSED_BITE))?;
        Ok(Self { reader: chain.reader(), buffer })
    }

    /// Reads `extents`, which lie in guest order within a bite, and returns the bytes from the start of the
    /// first to the end of the last. Where they are zeros, or between them, the bytes are any.
    fn read(&mut self, extents: &[Extent]) -> Result<&[u8]> {
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else { return Ok(&[]) };
        let bytes = self.buffer.first(in_memory(last.end().saturating_sub(first.guest.0)))?;
        let stored: Vec<Extent> =
            extents.iter().filter(|extent| !extent.is_zero()).copied().collect();
        self.reader.read_extents(first.guest.0, &stored, bytes)?;
        Ok(bytes)
    }
}

/// The same range in both images.
type Pair = (Extent, Extent);

/// Cuts pairs into what is read at once: a part of one pair, or many compressed clusters.
fn bites(pairs: &[Pair]) -> Vec<Vec<Pair>> {
    let compressed = |(a, b): &Pair| {
        [a, b].into_iter().any(|extent| matches!(extent.kind, ExtentKind::Compressed { .. }))
    };
    let mut bites: Vec<Vec<Pair>> = Vec::new();
    for pair in pairs {
        let longest = if compressed(pair) { COMPRESSED_BITE } else { BITE };
        let mut at = pair.0.guest.0;
        while at < pair.0.end() {
            let end = at.saturating_add(longest).min(pair.0.end());
            let part = (pair.0.slice(at, end), pair.1.slice(at, end));
            let joins = |first: &Pair| {
                compressed(first) && end.saturating_sub(first.0.guest.0) <= COMPRESSED_BITE
            };
            match bites.last_mut() {
                Some(bite) if compressed(pair) && bite.first().is_some_and(joins) => {
                    bite.push(part)
                }
                _ => bites.push(vec![part]),
            }
            at = end;
        }
    }
    bites
}

/// What differs, as far as it can be read.
pub(super) fn differences(
    sides: &mut [Side; 2],
    work: &Work,
) -> (Differences, Result<(), CompareError>) {
    let mut found = Differences { shared: work.shared, ..Differences::default() };
    let result = bites(&work.pairs).iter().try_for_each(|bite| match found.add_bite(sides, bite) {
        // What differs before the cluster that cannot be read comes first.
        Err(_) if bite.len() > 1 => bite.chunks(1).try_for_each(|pair| found.add_bite(sides, pair)),
        result => result,
    });
    (found, result.map_err(CompareError::Reading))
}

impl Differences {
    /// Adds what differs in `bite`, or nothing if not all of it can be read.
    fn add_bite(&mut self, sides: &mut [Side; 2], bite: &[Pair]) -> Result<()> {
        let Some((first, _)) = bite.first() else { return Ok(()) };
        let (a, b): (Vec<Extent>, Vec<Extent>) = bite.iter().copied().unzip();
        let [one, other] = sides;
        let (one, other) = (one.read(&a)?, other.read(&b)?);
        for (a, b) in bite {
            let from = in_memory(a.guest.0.saturating_sub(first.guest.0));
            let range = from..from.saturating_add(in_memory(a.len));
            let part = |extent: &Extent, bytes| match extent.is_zero() {
                true => Ok(None),
                false => stored(bytes, range.clone()).map(Some),
            };
            self.add_range(a.guest.0, part(a, one)?, part(b, other)?);
        }
        Ok(())
    }

    /// Adds what differs from `start` on, where `None` is zeros.
    fn add_range(&mut self, start: u64, one: Option<&[u8]>, other: Option<&[u8]>) {
        let sector = in_memory(SECTOR);
        match (one, other) {
            (Some(one), Some(other)) if one != other => {
                let pairs = one.chunks(sector).zip(other.chunks(sector));
                self.add(start, pairs.map(|(one, other)| mismatch(one, other)));
            }
            (Some(bytes), None) | (None, Some(bytes)) if !is_zero(bytes) => {
                let nonzero = |sector: &[u8]| sector.iter().position(|&byte| byte != 0);
                self.add(start, bytes.chunks(sector).map(nonzero));
            }
            _ => {}
        }
    }

    /// Adds sectors from `start` on, each with the position of its first differing byte, if any.
    fn add(&mut self, start: u64, sectors: impl Iterator<Item = Option<usize>>) {
        let mut at = start;
        for sector in sectors {
            let end = at.saturating_add(SECTOR);
            if let Some(position) = sector {
                self.first.get_or_insert(at.saturating_add(position as u64));
                match self.ranges.last_mut() {
                    Some(last) if last.1 == at => last.1 = end,
                    _ => self.ranges.push((at, end)),
                }
            }
            at = end;
        }
    }
}

/// A part of what was read.
fn stored(bytes: &[u8], range: Range<usize>) -> Result<&[u8]> {
    bytes.get(range).ok_or_else(|| Error::internal("an extent reaches out of what was read"))
}

fn mismatch(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b { None } else { a.iter().zip(b).position(|(a, b)| a != b) }
}

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
