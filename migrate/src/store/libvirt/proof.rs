//! What is in a file that proves it ours, where libvirt does not tell which file it is.

use qcow::codec::is_zero;
use qcow::io::{FileStorage, Storage, read_padded};
use serde::{Deserialize, Serialize};

use super::chain::Head;
use crate::Result;

/// As much of a file as tells whether anything was sent yet.
pub(super) const SECTOR: usize = 512;

/// What tells a file that we made from others once libvirt has filled it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proof {
    /// Its length as it was made.
    pub(super) length: u64,
    /// How its header began; `None` if it is no QCOW2 image.
    pub(super) head: Option<Head>,
    /// Digest of its first sector as it was sent.
    start: String,
}

impl Proof {
    pub(super) fn of(content: &FileStorage) -> Result<Self> {
        let read = |length: usize| {
            let length = u64::try_from(length).unwrap_or(u64::MAX).min(content.len());
            let mut start = vec![0; usize::try_from(length).unwrap_or_default()];
            read_padded(content, &mut start, 0)?;
            Ok(start)
        };
        let start = blake3::hash(&read(SECTOR)?).to_hex().to_string();
        Ok(Self { length: content.len(), head: Head::read(read)?, start })
    }

    /// Whether what of it may have been sent begins so: as the content does, or with nothing yet.
    pub(super) fn begins(&self, start: &[u8]) -> bool {
        is_zero(start) || blake3::hash(start).to_hex().to_string() == self.start
    }
}
