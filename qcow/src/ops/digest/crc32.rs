//! CRC-32 of what a guest would read.

use crc32fast::Hasher;

use crate::chain::Chain;
use crate::ops::work::crc::{Crc, hash};
use crate::ops::work::pipeline::{self, Job};
use crate::{CancelToken, Observer, Result};

/// The CRC-32 of the disk: eight hex digits.
pub(super) fn crc32(
    chain: &Chain,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<String> {
    Ok(pipeline::run(chain, &CrcJob, Crc::new(), threads, observer, cancel)?.to_hex())
}

/// Items are hashed in parallel, and joined in order.
struct CrcJob;

impl Job for CrcJob {
    type Worker = ();
    type Ready = Hasher;
    type Ordered = Crc;
    type Placed = ();

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, (): &mut (), _guest: u64, bytes: &[u8]) -> Result<Hasher> {
        Ok(hash(bytes))
    }

    fn place(&self, crc: &mut Crc, ready: &Hasher) -> Result<()> {
        crc.append(ready);
        Ok(())
    }

    fn place_zeros(&self, crc: &mut Crc, _guest: u64, len: u64) -> Result<()> {
        crc.append_zeros(len);
        Ok(())
    }

    fn write(&self, (): &mut (), _bytes: &[u8], _ready: Hasher, (): ()) -> Result<()> {
        Ok(())
    }
}
