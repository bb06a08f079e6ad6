//! A storage of which a range reads as something else, in memory.

use std::io;
use std::sync::Arc;

use crate::exact::to_usize;
use crate::io::{Identity, Storage};
use crate::{Error, Result};

/// `under`, with `bytes` in the place of what is at `at`. Whatever else changes in it shows.
#[derive(Debug)]
pub(super) struct LaidOver {
    under: Arc<dyn Storage>,
    at: u64,
    bytes: Vec<u8>,
}

impl LaidOver {
    /// Lays `bytes` over what is in `under` at `at`.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if no file can have these bytes.
    pub(super) fn new(under: Arc<dyn Storage>, at: u64, bytes: Vec<u8>) -> Result<Self> {
        match at.checked_add(bytes.len() as u64) {
            Some(_) => Ok(Self { under, at, bytes }),
            None => Err(Error::internal("bytes are laid over where no file reaches")),
        }
    }
}

impl Storage for LaidOver {
    fn len(&self) -> u64 {
        self.under.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.under.read_at(buf, offset)?;
        let skipped = to_usize(self.at.saturating_sub(offset));
        let from = to_usize(offset.saturating_sub(self.at));
        let within = buf.iter_mut().take(read).skip(skipped);
        for (byte, new) in within.zip(self.bytes.iter().skip(from)) {
            *byte = *new;
        }
        Ok(read)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.under.next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.under.next_hole(offset)
    }

    fn identity(&self) -> Option<Identity> {
        self.under.identity()
    }

    fn allocated(&self) -> u64 {
        self.under.allocated()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.under.check_unchanged()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{MemoryStorage, read_padded};

    #[test]
    fn what_is_laid_over_is_read_from_wherever_reading_begins() {
        let under = Arc::new(MemoryStorage::new(vec![1; 10]));
        let over = LaidOver::new(under, 4, vec![2; 3]).unwrap();
        for start in 0..10 {
            for len in 0..=10 - start {
                let mut bytes = vec![9; len];
                read_padded(&over, &mut bytes, start as u64).unwrap();
                let expected = [1, 1, 1, 1, 2, 2, 2, 1, 1, 1];
                assert_eq!(bytes, expected[start..start + len], "{start} {len}");
            }
        }
    }
}
