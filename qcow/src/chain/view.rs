//! A range of a storage, which is what QEMU's raw driver shows with `offset` and `size`.

use std::fmt::Debug;
use std::ops::Deref;

use super::name::Window;
use crate::format::whole_sectors;
use crate::io::{Identity, Storage};
use crate::{Error, Result};

/// Where a range lies in the storage; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    start: u64,
    /// A multiple of 512.
    pub(super) size: u64,
    /// Offset in the storage from which zeros are read.
    limit: u64,
}

impl Range {
    /// What `windows`, the innermost last, leave of `len` bytes. Each is padded with zeros to whole sectors,
    /// as a raw file is (trap 106).
    pub(super) fn of(windows: &[Window], len: u64) -> Result<Self> {
        let mut range = Self { start: 0, size: whole_sectors(len), limit: len };
        for window in windows.iter().rev() {
            let Window { offset, size } = *window;
            let within = range.size;
            let left = within.checked_sub(offset).ok_or_else(|| {
                Error::corrupt(format!(
                    "offset {offset} of the json: name is past the {within} bytes of the file"
                ))
            })?;
            range.start = range.start.saturating_add(offset);
            range.size = match size {
                Some(size) if size % 512 != 0 => {
                    return Err(Error::corrupt(format!(
                        "size {size} of the json: name is not a multiple of 512"
                    )));
                }
                Some(size) if size > left => {
                    return Err(Error::corrupt(format!(
                        "size {size} of the json: name is more than the {left} bytes that are there"
                    )));
                }
                Some(size) => size,
                None => whole_sectors(left),
            };
            range.limit = range.limit.min(range.start.saturating_add(range.size));
        }
        Ok(range)
    }
}

/// A range of a storage as a storage of its own.
#[derive(Debug)]
pub(super) struct View<S> {
    inner: S,
    range: Range,
}

impl<S> View<S> {
    pub(super) fn new(inner: S, range: Range) -> Self {
        Self { inner, range }
    }
}

impl<S> Storage for View<S>
where
    S: Deref + Debug + Send + Sync,
    S::Target: Storage,
{
    fn len(&self) -> u64 {
        self.range.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let Range { start, size, limit } = self.range;
        let shorter =
            |buf: &[u8], most: u64| buf.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let wanted = shorter(buf, size.saturating_sub(offset));
        let buf = buf.split_at_mut(wanted).0;
        let host = start.saturating_add(offset);
        if host >= limit {
            buf.fill(0);
            return Ok(wanted);
        }
        let there = shorter(buf, limit.saturating_sub(host));
        self.inner.read_at(buf.split_at_mut(there).0, host)
    }

    fn next_data(&self, offset: u64) -> std::io::Result<Option<u64>> {
        let Range { start, size, limit } = self.range;
        let found = self.inner.next_data(start.saturating_add(offset))?;
        let found = found.filter(|at| *at < limit).map(|at| at.saturating_sub(start));
        Ok(found.filter(|at| *at < size))
    }

    fn next_hole(&self, offset: u64) -> std::io::Result<u64> {
        let Range { start, size, limit } = self.range;
        if offset >= size {
            return Ok(size.max(offset));
        }
        let found = self.inner.next_hole(start.saturating_add(offset))?.min(limit);
        Ok(found.saturating_sub(start).clamp(offset, size))
    }

    fn identity(&self) -> Option<Identity> {
        self.inner.identity()
    }

    fn allocated(&self) -> u64 {
        self.inner.allocated()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.inner.check_unchanged()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{MemoryStorage, read_padded};

    fn window(offset: u64, size: Option<u64>) -> Window {
        Window { offset, size }
    }

    fn content(windows: &[Window], bytes: &[u8]) -> Vec<u8> {
        let storage = MemoryStorage::new(bytes.to_vec());
        let range = Range::of(windows, storage.len()).unwrap();
        let view = View::new(&storage, range);
        let mut content = vec![0xee; usize::try_from(view.len()).unwrap()];
        read_padded(&view, &mut content, 0).unwrap();
        content
    }

    #[test]
    fn a_range_is_padded_with_zeros_where_the_file_or_the_range_below_ends() {
        let bytes: Vec<u8> = (1..=251).cycle().take(4197).collect();
        let padded = |start: usize, end: usize, len: usize| {
            let mut expected = bytes[start..end].to_vec();
            expected.resize(len, 0);
            expected
        };
        assert_eq!(content(&[window(101, None)], &bytes), padded(101, 4197, 4608));
        assert_eq!(content(&[window(512, Some(1024))], &bytes), padded(512, 1536, 1024));
        // The outer range reaches past the inner one, which hides the bytes behind it.
        let nested = [window(100, None), window(0, Some(1024))];
        assert_eq!(content(&nested, &bytes), padded(100, 1024, 1024));
        assert_eq!(content(&[window(4608, None)], &bytes), Vec::<u8>::new());
    }

    #[test]
    fn ranges_that_are_not_there_are_refused() {
        for wrong in [window(4609, None), window(0, Some(100)), window(512, Some(8192))] {
            assert!(Range::of(&[wrong], 4197).is_err(), "{wrong:?}");
        }
        assert!(Range::of(&[window(u64::MAX, Some(512))], 4197).is_err());
    }
}
