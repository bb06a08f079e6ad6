//! A disk that is read and written.

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
pub struct DiskBackend(Disk);

impl DiskBackend {
    /// What is written goes to `disk`.
    pub fn new(disk: Disk) -> Self {
        Self(disk)
    }

    /// The part of the image itself, and of what it is backed by where the image has nothing.
    fn piece(&self, context: &Context, at: u64, len: u64, found: &mut Extents) -> Result<bool> {
        for range in self.0.ranges(at, len)? {
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
        let backing = self.0.backing();
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
        self.0.size()
    }

    fn can_write(&self) -> bool {
        true
    }

    fn preferred(&self) -> u32 {
        preferred(self.0.cluster_size())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<()> {
        Ok(self.0.read_at(buf, at)?)
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
        Ok(self.0.write_at(buf, at)?)
    }

    fn write_zeroes(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        let zeroes = if how.unmap { Zeroes::Unmap } else { Zeroes::Keep };
        if how.fast && !self.0.zeroes_fast(at, len, zeroes)? {
            return Err(Failed::new(Errno::Unsupported, "zeros would have to be written"));
        }
        Ok(self.0.write_zeroes(at, len, zeroes)?)
    }

    fn discard(&self, at: u64, len: u64) -> Result<()> {
        Ok(self.0.discard(at, len)?)
    }

    fn flush(&self) -> Result<()> {
        Ok(self.0.flush()?)
    }

    fn close(self: Box<Self>) -> qcow::Result<()> {
        self.0.close()
    }
}
