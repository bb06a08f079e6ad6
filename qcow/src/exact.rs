//! Arithmetic of places to write. A sum that does not fit would be a bug of this crate's: it must
//! become an error, never the plausible offset that saturating or wrapping arithmetic gives.

use std::fmt;

use crate::{Error, Result};

// What is in memory has a length that fits 64 bits, and the other way round.
const _: () = assert!(usize::BITS == 64);

/// A length or index in memory.
pub(crate) fn to_usize(value: u64) -> usize {
    // Never the second, as asserted above.
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Sums, differences and products that must fit.
///
/// # Errors
/// [`Internal`](crate::ErrorKind::Internal) if they do not.
pub(crate) trait Exact: Sized {
    fn plus(self, other: Self) -> Result<Self>;
    fn minus(self, other: Self) -> Result<Self>;
    fn times(self, other: Self) -> Result<Self>;
}

macro_rules! exact {
    ($($number:ty),*) => {
        $(impl Exact for $number {
            #[inline]
            fn plus(self, other: Self) -> Result<Self> {
                self.checked_add(other).ok_or_else(|| does_not_fit(self, '+', other))
            }

            #[inline]
            fn minus(self, other: Self) -> Result<Self> {
                self.checked_sub(other).ok_or_else(|| does_not_fit(self, '-', other))
            }

            #[inline]
            fn times(self, other: Self) -> Result<Self> {
                self.checked_mul(other).ok_or_else(|| does_not_fit(self, '*', other))
            }
        })*
    };
}

exact!(u64, usize);

#[cold]
fn does_not_fit(one: impl fmt::LowerHex, sign: char, other: impl fmt::LowerHex) -> Error {
    Error::internal(format!("{one:#x} {sign} {other:#x} is no offset or length"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn what_does_not_fit_is_a_bug_and_not_the_largest_number() {
        assert_eq!(u64::MAX.minus(1).unwrap().plus(1).unwrap(), u64::MAX);
        for wrong in [u64::MAX.plus(1), 1u64.minus(2), (1u64 << 63).times(2)] {
            assert_eq!(wrong.unwrap_err().kind(), ErrorKind::Internal);
        }
        assert_eq!(to_usize(u64::MAX), usize::MAX);
    }
}
