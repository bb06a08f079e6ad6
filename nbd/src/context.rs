//! Metadata contexts: what block status tells of a range.

use std::fmt;

use crate::wire::Extent;

/// Extents that one reply to a block status request has at most; a client asks again for the rest.
pub const MAX_EXTENTS: usize = 1 << 16;

/// `base:allocation`: no space is kept for the range.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: it reads as zeros.
pub const STATE_ZERO: u32 = 2;
/// `qemu:dirty-bitmap:`: it is marked in the bitmap.
pub const STATE_DIRTY: u32 = 1;

/// A metadata context of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Context {
    /// `base:allocation`: data, zeros and holes.
    Allocation,
    /// `qemu:allocation-depth`: 0 is nowhere, 1 the active image, 2 its backing file.
    Depth,
    /// `qemu:dirty-bitmap:NAME`: what a persistent bitmap marks.
    DirtyBitmap(String),
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allocation => f.write_str("base:allocation"),
            Self::Depth => f.write_str("qemu:allocation-depth"),
            Self::DirtyBitmap(name) => write!(f, "qemu:dirty-bitmap:{name}"),
        }
    }
}

/// Collects the extents of a reply: neighbours that say the same are one, and there are not too many.
#[derive(Debug)]
pub struct Extents {
    list: Vec<Extent>,
    most: usize,
    full: bool,
}

impl Extents {
    /// Room for `most` extents.
    pub fn new(most: usize) -> Self {
        Self { list: Vec::new(), most, full: false }
    }

    /// Adds the next part of the range. Gives back whether more is wanted.
    pub fn push(&mut self, len: u64, flags: u32) -> bool {
        if self.full || len == 0 {
            return !self.full;
        }
        let full = self.list.len() >= self.most;
        match self.list.last_mut() {
            Some(last) if last.flags == flags => last.len = last.len.saturating_add(len),
            _ if full => self.full = true,
            _ => self.list.push(Extent { len, flags }),
        }
        !self.full
    }

    /// What was collected.
    pub fn into_list(self) -> Vec<Extent> {
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_merged_and_a_full_list_takes_no_more() {
        let mut extents = Extents::new(2);
        assert!(extents.push(10, 0) && extents.push(5, 0) && extents.push(0, 3));
        assert!(extents.push(7, 3) && extents.push(1, 3));
        assert!(!extents.push(1, 0) && !extents.push(1, 3));
        let expected = [Extent { len: 15, flags: 0 }, Extent { len: 8, flags: 3 }];
        assert_eq!(extents.into_list(), expected);
    }
}
