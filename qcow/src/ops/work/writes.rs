//! What one item of a transfer writes into a disk.

use std::ops::Range;

use crc32fast::Hasher;

use super::crc::hash;
use super::rate::{Rate, wait};
use super::sparse::Sparse;
use crate::codec::is_zero;
use crate::disk::Disk;
use crate::exact::{Exact, to_usize};
use crate::io::Zeroes;
use crate::{CancelToken, Observer, Result};

/// Zeros in the data of a raw disk become holes in pieces of this many bytes.
const HOLE: u64 = 64 << 10;

/// How a transfer is done.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Settings<'a> {
    pub(in crate::ops) threads: usize,
    /// Write nothing, and count what would be written.
    pub(in crate::ops) dry_run: bool,
    /// Read back what was written.
    pub(in crate::ops) verify: bool,
    /// Compress what fills a cluster.
    pub(in crate::ops) compress: bool,
    /// Which zeros in data are written as zeros.
    pub(in crate::ops) sparse: Sparse,
    /// Items write one after another, in disk order: so clusters are placed in that order. Not with compression,
    /// which is what takes the time then.
    pub(in crate::ops) in_order: bool,
    /// How many bytes are written in a second.
    pub(in crate::ops) rate: Option<&'a Rate>,
    /// Zeros may be written by entries; else they are written as data.
    pub(in crate::ops) zeros_by_entry: bool,
    pub(in crate::ops) observer: &'a dyn Observer,
    pub(in crate::ops) cancel: &'a CancelToken,
}

/// A range that was written.
pub(super) struct Written {
    pub(super) range: Range<u64>,
    pub(super) content: Content,
}

/// What was written there.
pub(super) enum Content {
    Zeros,
    /// Bytes with this digest.
    Bytes(Hasher),
    /// Bytes that were not read.
    Unread,
}

/// Writes into a disk, and keeps a list of it.
pub(in crate::ops) struct Writes<'a> {
    disk: &'a Disk,
    settings: Settings<'a>,
    written: Vec<Written>,
    /// What waits for its turn.
    waiting: Vec<Waiting>,
}

/// A write that is not carried out yet.
enum Waiting {
    Data(Vec<u8>, u64),
    Zeros { at: u64, len: u64 },
}

impl<'a> Writes<'a> {
    pub(super) fn new(disk: &'a Disk, settings: Settings<'a>) -> Self {
        Self { disk, settings, written: Vec::new(), waiting: Vec::new() }
    }

    pub(super) fn into_written(self) -> Vec<Written> {
        self.written
    }

    /// Whether writes wait for the item's turn.
    fn waits(&self) -> bool {
        self.settings.in_order && !self.settings.compress
    }

    /// Carries out what has waited for its turn.
    pub(super) fn carry_out(&mut self) -> Result<()> {
        for write in std::mem::take(&mut self.waiting) {
            match write {
                Waiting::Data(bytes, at) => self.disk.write_at(&bytes, at)?,
                Waiting::Zeros { at, len } => self.zeros_now(at, len)?,
            }
        }
        Ok(())
    }

    /// The disk that is written into.
    pub(in crate::ops) fn disk(&self) -> &'a Disk {
        self.disk
    }

    /// Writes `bytes` at `at`; whole units of zeros are written as zeros.
    pub(in crate::ops) fn data(&mut self, bytes: &[u8], at: u64) -> Result<()> {
        let cluster = self.disk.cluster_size().unwrap_or(HOLE);
        let unit = match self.settings.sparse {
            Sparse::Nothing => return self.plain(bytes, at, cluster),
            _ if self.settings.compress => cluster,
            sparse => sparse.block(zero_unit(self.disk)),
        };
        let (mut rest, mut at) = (bytes, at);
        while !rest.is_empty() {
            let zeros = self.leading(rest, at, unit, true)?;
            if zeros > 0 {
                self.zeros(at, zeros)?;
                (rest, at) = (rest.get(to_usize(zeros)..).unwrap_or_default(), at.plus(zeros)?);
                continue;
            }
            let data = self.leading(rest, at, unit, false)?;
            let (now, later) = rest.split_at_checked(to_usize(data)).unwrap_or((rest, &[]));
            self.plain(now, at, unit)?;
            (rest, at) = (later, at.plus(data)?);
        }
        Ok(())
    }

    /// How many bytes at the start of `bytes`, which is not empty, are whole units of zeros, or are not.
    fn leading(&self, bytes: &[u8], at: u64, unit: u64, zeros: bool) -> Result<u64> {
        let (mut rest, mut now) = (bytes, at);
        while !rest.is_empty() {
            let border = (now | unit.wrapping_sub(1)).plus(1)?;
            let len = border.minus(now)?.min(rest.len() as u64);
            let (piece, later) = rest.split_at_checked(to_usize(len)).unwrap_or((rest, &[]));
            let end = now.plus(len)?;
            let whole =
                now & unit.wrapping_sub(1) == 0 && (end == border || end == self.disk.size());
            if (whole && is_zero(piece)) != zeros {
                break;
            }
            (rest, now) = (later, end);
        }
        now.minus(at)
    }

    fn plain(&mut self, bytes: &[u8], at: u64, unit: u64) -> Result<()> {
        if !self.settings.dry_run {
            wait(self.settings.rate, bytes.len() as u64, self.settings.cancel)?;
            match self.settings.compress {
                true => self.compressed(bytes, at, unit)?,
                false if self.waits() => self.waiting.push(Waiting::Data(bytes.to_vec(), at)),
                false => self.disk.write_at(bytes, at)?,
            }
        }
        self.note(at, bytes.len() as u64, Content::Bytes(hash(bytes)))
    }

    fn compressed(&self, bytes: &[u8], at: u64, cluster: u64) -> Result<()> {
        let (mut rest, mut at) = (bytes, at);
        while !rest.is_empty() {
            let border = (at | cluster.wrapping_sub(1)).plus(1)?.min(self.disk.size());
            let len = border.minus(at)?.min(rest.len() as u64);
            let (piece, later) = rest.split_at_checked(to_usize(len)).unwrap_or((rest, &[]));
            match at & cluster.wrapping_sub(1) == 0 && at.plus(len)? == border {
                true => self.disk.write_compressed(piece, at)?,
                false => self.disk.write_at(piece, at)?,
            }
            (rest, at) = (later, at.plus(len)?);
        }
        Ok(())
    }

    /// Makes `len` bytes from `at` on zeros.
    pub(in crate::ops) fn zeros(&mut self, at: u64, len: u64) -> Result<()> {
        match self.settings.dry_run {
            true => {}
            false if self.waits() => self.waiting.push(Waiting::Zeros { at, len }),
            false => self.zeros_now(at, len)?,
        }
        self.note(at, len, Content::Zeros)
    }

    /// `len` bytes from `at` on were written by somebody else, who did not read them.
    pub(in crate::ops) fn copied(&mut self, at: u64, len: u64) -> Result<()> {
        self.note(at, len, Content::Unread)
    }

    fn zeros_now(&self, at: u64, len: u64) -> Result<()> {
        match self.settings.zeros_by_entry && self.settings.sparse != Sparse::Nothing {
            true => self.disk.write_zeroes(at, len, Zeroes::Unmap),
            false => self.zeros_as_data(at, len),
        }
    }

    fn zeros_as_data(&self, at: u64, len: u64) -> Result<()> {
        let (mut at, end) = (at, at.plus(len)?);
        while at < end {
            let cluster = self.disk.cluster_size().unwrap_or(HOLE);
            let next = (at | cluster.max(HOLE).wrapping_sub(1)).plus(1)?.min(end);
            wait(self.settings.rate, next.minus(at)?, self.settings.cancel)?;
            let zeros = vec![0; to_usize(next.minus(at)?)];
            match self.settings.compress {
                true => self.compressed(&zeros, at, cluster)?,
                false => self.disk.write_at(&zeros, at)?,
            }
            at = next;
        }
        Ok(())
    }

    fn note(&mut self, at: u64, len: u64, content: Content) -> Result<()> {
        if len > 0 {
            self.written.push(Written { range: at..at.plus(len)?, content });
        }
        Ok(())
    }
}

/// Zeros of this many bytes need no space in the disk.
fn zero_unit(disk: &Disk) -> u64 {
    match disk.cluster_size() {
        Some(_) => disk.write_unit(),
        None => HOLE,
    }
}
