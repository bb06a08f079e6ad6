//! Copies data of a source into a disk inside the kernel, without reading it: for those who want no digest of it, and look
//! for no zeros in it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::io::Errno;

use super::offload::is_final;
use crate::chain::Chain;
use crate::disk::Disk;
use crate::exact::Exact;
use crate::extent::{Extent, ExtentKind};
use crate::io::copy_range;
use crate::{Error, Result};

/// Shorter extents are read and written, many with one call.
const LEAST: u64 = 64 << 10;

/// Whether the kernel copies between these files.
#[derive(Debug, Default)]
pub(in crate::ops) struct InKernel {
    refused: AtomicBool,
}

impl InKernel {
    /// Copies an extent of `chain` into `disk`; `false` if it has to be read and written. Parts of it may then be there
    /// already.
    ///
    /// # Errors
    /// As [`Disk::prepare_write`] and its commit; what the kernel says of the target.
    pub(in crate::ops) fn copy(&self, chain: &Chain, extent: &Extent, disk: &Disk) -> Result<bool> {
        let ExtentKind::Data { host } = extent.kind else { return Ok(false) };
        let source = chain.layers().get(extent.depth).and_then(|layer| layer.data_file());
        let (Some(source), Some(target)) = (source, disk.data_storage().as_file()) else {
            return Ok(false);
        };
        // What the file does not have reads as zeros.
        let there = source.file().metadata().map_or(0, |file| file.len());
        let all_there = host.0.plus(extent.len)? <= there;
        if extent.len < LEAST || !all_there || self.refused.load(Relaxed) {
            return Ok(false);
        }
        let Some(write) = disk.prepare_write(extent.guest.0, extent.len)? else {
            return Ok(false);
        };
        for place in write.places() {
            let from = host.0.plus(place.at.minus(extent.guest.0)?)?;
            let mut done: u64 = 0;
            while done < place.len {
                let (from, to) = (from.plus(done)?, place.host.0.plus(done)?);
                match copy_range((source.file(), from), (target.file(), to), place.len.minus(done)?)
                {
                    Ok(copied) if copied > 0 => done = done.plus(copied)?,
                    Err(Errno::INTR) => {}
                    Err(error) if is_final(error) => {
                        return Err(Error::io("could not copy", error.into()).host_offset(to));
                    }
                    Ok(_) | Err(_) => {
                        self.refused.store(true, Relaxed);
                        return Ok(false);
                    }
                }
            }
        }
        write.commit()?;
        Ok(true)
    }
}
