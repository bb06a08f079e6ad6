//! Lays the extents of two images side by side and cuts them into work.

use std::iter::Peekable;
use std::sync::Arc;

use crate::Result;
use crate::chain::Chain;
use crate::extent::{Extent, ExtentKind, Extents};
use crate::format::GuestOffset;
use crate::io::Storage;

/// No work is longer than this many bytes, unless nothing is to be read.
const LONGEST: u64 = 2 << 20;

/// One unit of work.
pub(in crate::ops) struct Work {
    /// Bytes of the disk that it covers.
    pub(in crate::ops) len: u64,
    /// Bytes that both images take from one place.
    pub(in crate::ops) shared: u64,
    /// What may differ: the same range in both images.
    pub(in crate::ops) pairs: Vec<(Extent, Extent)>,
}

/// Hands out numbered work in disk order.
pub(in crate::ops) struct Pieces<'a> {
    sides: [Cursor<'a>; 2],
    at: u64,
    end: u64,
    number: u64,
}

impl<'a> Pieces<'a> {
    pub(in crate::ops) fn new(chains: [&'a Chain; 2], end: u64) -> Self {
        Self { sides: chains.map(Cursor::new), at: 0, end, number: 0 }
    }

    /// The next work and its number; `None` at the end. After an error there is no more.
    pub(in crate::ops) fn next_work(&mut self) -> Option<(u64, Result<Work>)> {
        if self.at >= self.end {
            return None;
        }
        let number = self.number;
        self.number = number.saturating_add(1);
        let work = self.cut();
        if work.is_err() {
            self.at = self.end;
        }
        Some((number, work))
    }

    fn cut(&mut self) -> Result<Work> {
        let start = self.at;
        let mut work = Work { len: 0, shared: 0, pairs: Vec::new() };
        // Up to the next border, or as long as nothing is to be read.
        let border = (start | LONGEST.wrapping_sub(1)).saturating_add(1).min(self.end);
        while self.at < self.end {
            let [one, other] = &mut self.sides;
            let (one, other) = (one.at(self.at)?, other.at(self.at)?);
            let mut end = one.1.end().min(other.1.end()).min(self.end);
            let same = one.1.is_zero() && other.1.is_zero();
            let shared = !same && one_place(&one, &other);
            if !same && !shared {
                if self.at >= border {
                    break;
                }
                end = end.min(border);
                work.pairs.push((one.1.slice(self.at, end), other.1.slice(self.at, end)));
            } else if !work.pairs.is_empty() {
                // Keep turns short: what is skipped waits for the next work.
                end = end.min(border.max(self.at));
                if end == self.at {
                    break;
                }
            }
            if shared {
                work.shared = work.shared.saturating_add(end.saturating_sub(self.at));
            }
            self.at = end;
        }
        work.len = self.at.saturating_sub(start);
        Ok(work)
    }
}

/// Walks the extents of one image; past its end everything is zero.
struct Cursor<'a> {
    chain: &'a Chain,
    extents: Peekable<Extents>,
}

impl<'a> Cursor<'a> {
    fn new(chain: &'a Chain) -> Self {
        Self { chain, extents: chain.extents().peekable() }
    }

    /// The extent that holds `at`, which never goes back.
    fn at(&mut self, at: u64) -> Result<(&'a Chain, Extent)> {
        while let Some(next) = self.extents.peek() {
            match next {
                Ok(extent) if extent.end() > at => return Ok((self.chain, *extent)),
                _ => self.extents.next().transpose().map(drop)?,
            }
        }
        let rest = u64::MAX.saturating_sub(at);
        Ok((self.chain, Extent::unallocated(self.chain, GuestOffset(at), rest, 0)))
    }
}

/// Whether two storages are one, as far as that can be told.
fn same(one: &Arc<dyn Storage>, other: &Arc<dyn Storage>) -> bool {
    Arc::ptr_eq(one, other) || one.identity().is_some_and(|own| other.identity() == Some(own))
}

/// Whether both images take the range, at which both extents are, from one place.
fn one_place((one, a): &(&Chain, Extent), (other, b): &(&Chain, Extent)) -> bool {
    let (Some(upper), Some(lower)) = (one.layers().get(a.depth), other.layers().get(b.depth))
    else {
        return false;
    };
    let place = |extent: &Extent, host: u64| host.wrapping_sub(extent.guest.0);
    match (a.kind, b.kind) {
        (ExtentKind::Data { host: here }, ExtentKind::Data { host: there }) => {
            same(upper.data_storage(), lower.data_storage())
                && place(a, here.0) == place(b, there.0)
        }
        // One file is one image, unless it is read as raw on one side.
        (ExtentKind::Compressed { span: here }, ExtentKind::Compressed { span: there }) => {
            same(upper.storage(), lower.storage()) && here == there
        }
        _ => false,
    }
}
