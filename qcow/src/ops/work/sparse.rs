//! Which zeros in data are left out of a copy.

use super::item::ITEM;

/// Which zeros in data are left out. What the tables say to be zeros is, but with `Nothing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::ops) enum Sparse {
    /// As small ones as the copy can leave out.
    #[default]
    Finest,
    /// Aligned blocks of so many bytes, a power of two that is at most [`ITEM`].
    Blocks(u64),
    /// None: zeros are written like any data.
    Nothing,
}

impl Sparse {
    /// What a size stands for that a user gave: see
    /// [`FlattenOptions::sparse`](crate::ops::flatten::FlattenOptions::sparse).
    pub(in crate::ops) fn of(size: Option<u64>) -> Self {
        match size.map(u64::checked_ilog2) {
            None => Self::Finest,
            Some(None) => Self::Nothing,
            Some(Some(bits)) => Self::Blocks((1 << bits).min(ITEM)),
        }
    }

    /// Blocks of how many bytes are left out, where `finest` is the smallest.
    pub(in crate::ops) fn block(self, finest: u64) -> u64 {
        match self {
            Self::Blocks(size) => size.max(finest),
            Self::Finest | Self::Nothing => finest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_down_to_powers_of_two_and_bounded() {
        let of = |size| Sparse::of(Some(size));
        assert_eq!(Sparse::of(None), Sparse::Finest);
        assert_eq!(of(0), Sparse::Nothing);
        assert_eq!(of(4096), Sparse::Blocks(4096));
        assert_eq!(of(7 * 512), Sparse::Blocks(2048));
        assert_eq!(of(16 << 20), Sparse::Blocks(2 << 20));
        assert_eq!(of(4096).block(65536), 65536);
        assert_eq!(of(4096).block(512), 4096);
    }
}
