//! Requests with several buffers, and writes that are durable when they return.

use std::io::{IoSlice, IoSliceMut};

use super::Disk;
use crate::Result;
use crate::exact::{Exact, to_usize};

/// Buffers are joined up to this many bytes, so that they are one request of the system's.
const JOINED: u64 = 256 << 10;

/// Requests with several buffers, and durable ones.
impl Disk {
    /// As [`read_at`](Self::read_at), into one buffer after the other.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use qcow::{chain::Format, disk::{Disk, WriteOptions}, io::MemoryStorage};
    /// use std::io::{IoSlice, IoSliceMut};
    ///
    /// let storage = Arc::new(MemoryStorage::new(vec![0; 1 << 20]));
    /// let disk = Disk::from_storage(storage, Format::Raw, WriteOptions::new())?;
    /// disk.write_vectored_at(&[IoSlice::new(b"hel"), IoSlice::new(b"lo")], 4096)?;
    /// let (mut first, mut second) = ([0; 4], [0; 1]);
    /// disk.read_vectored_at(&mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)], 4096)?;
    /// assert_eq!((&first, &second), (b"hell", b"o"));
    /// # Ok::<(), qcow::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], at: u64) -> Result<()> {
        let (mut rest, mut at) = (bufs, at);
        self.named(self.check_range(at, total(rest)?))?;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(joined(rest));
            let len = total(now)?;
            match now {
                [buf] => self.read_at(buf, at)?,
                bufs => {
                    let mut bytes = vec![0; to_usize(len)];
                    self.read_at(&mut bytes, at)?;
                    let mut bytes = &*bytes;
                    for buf in bufs.iter_mut() {
                        let (part, later) = bytes.split_at(buf.len());
                        buf.copy_from_slice(part);
                        bytes = later;
                    }
                }
            }
            at = at.plus(len)?;
            rest = later;
        }
        Ok(())
    }

    /// As [`write_at`](Self::write_at), of one buffer after the other.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn write_vectored_at(&self, bufs: &[IoSlice<'_>], at: u64) -> Result<()> {
        let (mut rest, mut at) = (bufs, at);
        self.named(self.check_range(at, total(rest)?))?;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(joined(rest));
            match now {
                [buf] => self.write_at(buf, at)?,
                bufs => {
                    let bytes: Vec<&[u8]> = bufs.iter().map(|buf| &**buf).collect();
                    self.write_at(&bytes.concat(), at)?;
                }
            }
            at = at.plus(total(now)?)?;
            rest = later;
        }
        Ok(())
    }

    /// As [`write_at`](Self::write_at), and durable when it returns, as is all that was written before: one sync if
    /// clusters need not be allocated, and those of a [`flush`](Self::flush) if they do.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at) and [`flush`](Self::flush).
    pub fn write_durable_at(&self, buf: &[u8], at: u64) -> Result<()> {
        self.write_at(buf, at)?;
        self.flush()
    }
}

fn total<B: std::ops::Deref<Target = [u8]>>(bufs: &[B]) -> Result<u64> {
    bufs.iter().try_fold(0u64, |sum, buf| sum.plus(buf.len() as u64))
}

/// How many of the first buffers are joined: one at least, if there is one.
fn joined<B: std::ops::Deref<Target = [u8]>>(bufs: &[B]) -> usize {
    let mut sum = 0u64;
    let fits = |buf: &&B| {
        sum = sum.checked_add(buf.len() as u64).unwrap_or(u64::from(u32::MAX));
        sum <= JOINED
    };
    bufs.iter().take_while(fits).count().max(1).min(bufs.len())
}
