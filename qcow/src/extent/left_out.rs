//! What a chain leaves to a backing file that was not opened.

use super::ExtentKind;
use crate::Result;
use crate::chain::{Chain, Layer};

/// At most so many ranges are listed; the bytes of all are counted.
const MOST_RANGES: usize = 1_000_000;

/// What of the disk comes from a backing file that was not opened: it reads as zeros, and need not be
/// zeros. Bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct LeftOut {
    /// All of it together.
    pub bytes: u64,
    /// In ascending order.
    pub ranges: Vec<LeftOutRange>,
    /// There are more ranges than are listed.
    pub more: bool,
}

/// A range of the guest's disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct LeftOutRange {
    /// Where it starts.
    pub start: u64,
    /// Its length.
    pub length: u64,
}

impl Chain {
    /// The ranges that come from the backing file of the lowest layer, if that was
    /// [left out](Self::backing_left_out); `None` if nothing was. Reads the tables of all layers.
    ///
    /// # Errors
    /// What reading the tables raises.
    pub fn left_out(&self) -> Result<Option<LeftOut>> {
        if !self.backing_left_out() {
            return Ok(None);
        }
        // Past the end of any layer, nothing below it is seen.
        let end = self.layers().iter().map(Layer::virtual_size).min().unwrap_or_default();
        let mut left_out = LeftOut::default();
        for extent in self.extents() {
            let extent = extent?;
            if extent.guest.0 >= end {
                break;
            }
            if extent.kind == ExtentKind::Unallocated {
                left_out.add(extent.guest.0, extent.end().min(end));
            }
        }
        Ok(Some(left_out))
    }
}

impl LeftOut {
    /// Adds `start..end`, which lies past all that was added before, in bytes. It joins the last range if it
    /// touches it; once a million ranges are listed, only the bytes of further ones are counted.
    ///
    /// ```
    /// let mut left_out = qcow::extent::LeftOut::default();
    /// left_out.add(0, 512);
    /// left_out.add(512, 1024);
    /// assert_eq!((left_out.bytes, left_out.ranges.len()), (1024, 1));
    /// ```
    pub fn add(&mut self, start: u64, end: u64) {
        let length = end.saturating_sub(start);
        self.bytes = self.bytes.saturating_add(length);
        let full = self.ranges.len() >= MOST_RANGES;
        match self.ranges.last_mut() {
            Some(last) if last.start.saturating_add(last.length) == start => {
                last.length = last.length.saturating_add(length);
            }
            _ if full => self.more = true,
            _ => self.ranges.push(LeftOutRange { start, length }),
        }
    }
}
