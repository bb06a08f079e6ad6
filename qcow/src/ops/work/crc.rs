//! CRC-32 of a disk, put together from those of its pieces.

use crc32fast::Hasher;

/// The CRC of one piece, to be appended later.
pub(in crate::ops) fn hash(bytes: &[u8]) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    hasher
}

/// A CRC-32 that is put together from pieces in order.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Crc {
    whole: Hasher,
    /// Entry n is the CRC of 2^n zero bytes, made when first needed.
    zeros: Vec<Hasher>,
}

impl Crc {
    pub(in crate::ops) fn new() -> Self {
        Self { whole: Hasher::new(), zeros: vec![hash(&[0])] }
    }

    pub(in crate::ops) fn append(&mut self, piece: &Hasher) {
        self.whole.combine(piece);
    }

    /// Appends `len` zero bytes in a number of steps that grows with log2(`len`) only.
    pub(in crate::ops) fn append_zeros(&mut self, len: u64) {
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
    pub(in crate::ops) fn to_hex(&self) -> String {
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
