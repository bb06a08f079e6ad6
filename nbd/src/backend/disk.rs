//! A disk that is read and written.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use qcow::chain::Chain;
use qcow::disk::{Disk, RangeKind};
use qcow::io::Zeroes;

use super::chain::{allocation, depth, preferred};
use super::{Backend, Failed, Result, Zero};
use crate::context::{Context, Extents, STATE_HOLE, STATE_ZERO};
use crate::wire::Errno;

/// Ranges are looked up in pieces of this many bytes of disk.
const PIECE: u64 = 1 << 30;

/// A [`Disk`], read-write. Its locks are held until the server closes it.
#[derive(Debug)]
pub struct DiskBackend {
    disk: Disk,
    flushes: AtomicU64,
}

impl DiskBackend {
    /// What is written goes to `disk`.
    pub fn new(disk: Disk) -> Self {
        Self { disk, flushes: AtomicU64::new(0) }
    }

    /// The part of the image itself, and of what it is backed by where the image has nothing.
    fn piece(&self, context: &Context, at: u64, len: u64, found: &mut Extents) -> Result<bool> {
        for range in self.disk.ranges(at, len)? {
            let (flags, depth) = match range.kind {
                RangeKind::Zero => (STATE_HOLE | STATE_ZERO, 1),
                RangeKind::Backing => {
                    if !self.below(context, range.at, range.len, found)? {
                        return Ok(false);
                    }
                    continue;
                }
                _ => (0, 1),
            };
            let flags = if *context == Context::Depth { depth } else { flags };
            if !found.push(range.len, flags) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn below(&self, context: &Context, at: u64, len: u64, found: &mut Extents) -> Result<bool> {
        let backing = self.disk.backing();
        let size = backing.map_or(0, Chain::virtual_size);
        let there = size.saturating_sub(at).min(len);
        if let Some(chain) = backing.filter(|_| there > 0) {
            let more = match context {
                Context::Depth => depth(chain, 2, at, there, found)?,
                _ => allocation(chain, at, there, found)?,
            };
            if !more {
                return Ok(false);
            }
        }
        // Past the end of a backing file that is shorter, its zeros count as its own.
        let depth = if backing.is_some() { 2 } else { 0 };
        let flags = if *context == Context::Depth { depth } else { STATE_HOLE | STATE_ZERO };
        Ok(found.push(len.saturating_sub(there), flags))
    }
}

impl Backend for DiskBackend {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn can_write(&self) -> bool {
        true
    }

    fn preferred(&self) -> u32 {
        preferred(self.disk.cluster_size())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<()> {
        Ok(self.disk.read_at(buf, at)?)
    }

    fn extents(&self, context: &Context, at: u64, len: u64, found: &mut Extents) -> Result<()> {
        if let Context::DirtyBitmap(name) = context {
            // It would change while it is read.
            let message = format!("the bitmap '{name}' of a disk that is written to is not shown");
            return Err(Failed::new(Errno::Invalid, message));
        }
        let end = at.saturating_add(len);
        let mut now = at;
        while now < end {
            let len = end.saturating_sub(now).min(PIECE);
            if !self.piece(context, now, len, found)? {
                break;
            }
            now = now.saturating_add(len);
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: u64) -> Result<()> {
        Ok(self.disk.write_at(buf, at)?)
    }

    fn write_zeroes(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        let zeroes = if how.unmap { Zeroes::Unmap } else { Zeroes::Allocate };
        if how.fast && !self.disk.zeroes_fast(at, len, zeroes)? {
            return Err(Failed::new(Errno::Unsupported, "zeros would have to be written"));
        }
        Ok(self.disk.write_zeroes(at, len, zeroes)?)
    }

    fn discard(&self, at: u64, len: u64) -> Result<()> {
        Ok(self.disk.discard(at, len)?)
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()?;
        self.flushes.fetch_add(1, Relaxed);
        Ok(())
    }

    fn syncs(&self) -> u64 {
        // A raw disk is synced by each flush.
        let raw = self.disk.cluster_size().is_none();
        if raw { self.flushes.load(Relaxed) } else { self.disk.syncs() }
    }

    fn close(self: Box<Self>) -> qcow::Result<()> {
        self.disk.close()
    }
}
