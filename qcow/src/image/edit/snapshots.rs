//! The snapshot table.

use super::Edit;
use crate::exact::{Exact, to_usize};
use crate::format::{HeaderPatch, HostOffset, MAX_SNAPSHOT_TABLE_BYTES, Snapshot};
use crate::{Error, Result};

impl Edit {
    /// Writes the snapshot table anew, and frees the old one. What the snapshots lead to is the caller's business.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if it would be too long; as [`allocate`](Self::allocate) and
    /// [`lower`](Self::lower).
    pub(crate) fn set_snapshots(&mut self, snapshots: &[Snapshot]) -> Result<()> {
        let image = self.image();
        let (old, old_len) = (image.header().snapshots_offset, image.snapshot_table_len());
        let mut bytes = Vec::new();
        for snapshot in snapshots {
            // Entries begin at multiples of eight; the last one ends where it ends.
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let entry = snapshot.to_bytes()?;
            let text = snapshot.id.len().plus(snapshot.name.len())?;
            let extra = entry.get(..Snapshot::FIXED_BYTES).and_then(|fixed| fixed.last_chunk());
            let extra = extra.map_or(0, |len| u32::from_be_bytes(*len));
            let len = Snapshot::FIXED_BYTES.plus(to_usize(extra.into()))?.plus(text)?;
            bytes.extend_from_slice(entry.get(..len).unwrap_or_default());
        }
        if bytes.len() as u64 > MAX_SNAPSHOT_TABLE_BYTES {
            return Err(Error::limit(format!(
                "the snapshot table would be longer than {MAX_SNAPSHOT_TABLE_BYTES} bytes"
            )));
        }
        let old = self.clusters(old, old_len)?;
        self.lower(old)?;
        let place = if bytes.is_empty() { HostOffset(0) } else { self.write_new(bytes)? };
        let count = u32::try_from(snapshots.len())
            .map_err(|_| Error::internal("more snapshots than were there"))?;
        self.set_header(&HeaderPatch::snapshots(place, count))
    }
}
