//! SHA-256 of what a guest would read.

use sha2::{Digest as _, Sha256};

use crate::chain::Chain;
use crate::io::zeros;
use crate::ops::work::pipeline::{self, Job};
use crate::sync::{Mutex, lock};
use crate::{CancelToken, Observer, Result};

/// The SHA-256 of the disk: 64 hex digits. It has to hash every byte in order, zeros too.
pub(super) fn sha256(
    chain: &Chain,
    threads: usize,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<String> {
    let job = Sha256Job { cancel, spare: Mutex::new(Vec::new()) };
    let sha = pipeline::run(chain, &job, Sha256::new(), threads, observer, cancel)?;
    Ok(sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Items are read in parallel, and hashed in order.
struct Sha256Job<'a> {
    cancel: &'a CancelToken,
    /// Buffers that have been hashed.
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Job for Sha256Job<'_> {
    type Worker = ();
    type Ready = Vec<u8>;
    type Ordered = Sha256;
    type Placed = ();

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, (): &mut (), _guest: u64, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut copy = lock(&self.spare).pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(bytes);
        Ok(copy)
    }

    fn place(&self, sha: &mut Sha256, ready: &Vec<u8>) -> Result<()> {
        sha.update(ready);
        Ok(())
    }

    fn place_zeros(&self, sha: &mut Sha256, _guest: u64, len: u64) -> Result<()> {
        let mut rest = len;
        while rest > 0 {
            self.cancel.check()?;
            let piece = zeros(rest);
            sha.update(piece);
            rest = rest.saturating_sub(piece.len() as u64);
        }
        Ok(())
    }

    fn write(&self, (): &mut (), _bytes: &[u8], ready: Vec<u8>, (): ()) -> Result<()> {
        lock(&self.spare).push(ready);
        Ok(())
    }
}
