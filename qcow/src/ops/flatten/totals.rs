//! Totals over the whole guest disk, added up in ascending order of guest offsets.

use crc32fast::Hasher;

use crate::ops::work::crc::Crc;

/// How much of the disk is data, and its digest if one is wanted.
pub(super) struct Totals {
    pub(super) data_bytes: u64,
    crc: Option<Crc>,
}

impl Totals {
    pub(super) fn new(digest: bool) -> Self {
        Self { data_bytes: 0, crc: digest.then(Crc::new) }
    }

    /// Adds the next range of the disk, of which `data_bytes` are data.
    pub(super) fn add(&mut self, data_bytes: u64, hash: Option<&Hasher>) {
        self.data_bytes = self.data_bytes.saturating_add(data_bytes);
        if let (Some(crc), Some(hash)) = (&mut self.crc, hash) {
            crc.append(hash);
        }
    }

    /// Adds the next `len` bytes of the disk, which are zeros.
    pub(super) fn add_zeros(&mut self, len: u64) {
        if let Some(crc) = &mut self.crc {
            crc.append_zeros(len);
        }
    }

    /// The digest of all of it, as hex digits.
    pub(super) fn digest(&self) -> Option<String> {
        self.crc.as_ref().map(Crc::to_hex)
    }
}
