//! CRC-32 of what a guest would read.

use crc32fast::Hasher;
use serde::Serialize;

use super::pipeline::{self, Job};
use crate::chain::Chain;
use crate::{CancelToken, Observer, Result};

/// How to compute.
#[derive(Debug, Clone, Default)]
pub struct ChecksumOptions {
    /// Worker threads; 0 means one per core, at most 16.
    pub threads: usize,
}

/// The digest.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ChecksumOutcome {
    /// Bytes covered: the virtual size.
    pub virtual_size: u64,
    /// CRC-32 (zlib's) of the guest's disk: eight hex digits.
    pub crc32: String,
}

/// Computes the CRC-32 of the guest-visible content of `chain`: what zlib's `crc32` gives for
/// the whole disk as a raw image. Ranges that are zeros by what the tables say cost nothing.
///
/// # Errors
/// Whatever reading the chain raises; [`Io`](crate::ErrorKind::Io) if a file of the chain was changed
/// meanwhile; [`Interrupted`](crate::ErrorKind::Interrupted).
pub fn checksum(
    chain: &Chain,
    options: &ChecksumOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<ChecksumOutcome> {
    let crc = pipeline::run(chain, &Digest, Crc::new(), options.threads, observer, cancel)?;
    Ok(ChecksumOutcome { virtual_size: chain.virtual_size(), crc32: crc.to_hex() })
}

/// The job of computing and nothing else.
struct Digest;

impl Job for Digest {
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

/// The CRC of one piece, to be appended later.
pub(super) fn hash(bytes: &[u8]) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    hasher
}

/// A CRC-32 that is put together from pieces in order.
#[derive(Debug, Clone)]
pub(super) struct Crc {
    whole: Hasher,
    /// Entry n is the CRC of 2^n zero bytes, made when first needed.
    zeros: Vec<Hasher>,
}

impl Crc {
    pub(super) fn new() -> Self {
        Self { whole: Hasher::new(), zeros: vec![hash(&[0])] }
    }

    pub(super) fn append(&mut self, piece: &Hasher) {
        self.whole.combine(piece);
    }

    /// Appends `len` zero bytes in a number of steps that grows with log2(`len`) only.
    pub(super) fn append_zeros(&mut self, len: u64) {
        let mut rest = len;
        let mut power = 0;
        while rest != 0 {
            while self.zeros.len() <= power {
                let Some(last) = self.zeros.last() else { return };
                let mut double = last.clone();
                double.combine(last);
                self.zeros.push(double);
            }
            if rest & 1 == 1
                && let Some(zeros) = self.zeros.get(power)
            {
                self.whole.combine(zeros);
            }
            rest >>= 1;
            power = power.saturating_add(1);
        }
    }

    /// Eight lower-case hex digits.
    pub(super) fn to_hex(&self) -> String {
        format!("{:08x}", self.whole.clone().finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_appended_by_doubling_equal_zeros_hashed() {
        for len in [0usize, 1, 2, 3, 512, 65_535, 1_000_001] {
            let mut crc = Crc::new();
            crc.append(&hash(b"head"));
            crc.append_zeros(len as u64);
            crc.append(&hash(b"tail"));
            let mut bytes = b"head".to_vec();
            bytes.resize(4 + len, 0);
            bytes.extend_from_slice(b"tail");
            assert_eq!(crc.to_hex(), format!("{:08x}", hash(&bytes).finalize()), "{len} zeros");
        }
    }
}
