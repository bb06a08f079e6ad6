//! What an image refers to past the end of its file: a download or a copy that was cut short.

use std::sync::atomic::Ordering;

use byteorder::{BigEndian, ByteOrder};

use super::{Image, Tables, tables};
use crate::Result;
use crate::format::{L1Entry, RefcountTableEntry};
use crate::io::read_padded;

/// L1 entries are looked at in pieces of so many.
const PIECE: u64 = 8192;

impl Image {
    /// Remembers that something that was looked up is past the end of the file.
    pub(crate) fn note_passes_end(&self) {
        self.passes_end.store(true, Ordering::Relaxed);
    }

    /// Whether anything that was looked up does.
    pub(crate) fn passes_end(&self) -> bool {
        self.passes_end.load(Ordering::Relaxed)
    }

    /// Remembers it if the L1 table does: no range has to be looked up for that.
    pub(super) fn notice_l1(&self) {
        let entries = self.geometry().l1_entries_for(self.virtual_size()).min(self.l1().entries);
        if self.l1_entries_in_file() < entries {
            self.note_passes_end();
        }
    }

    /// Bytes of the guest's disk of which an L2 table, or the entry for one, lies past the end.
    pub(crate) fn unmapped_past_end(&self) -> Result<u64> {
        let (geometry, size) = (self.geometry(), self.virtual_size());
        let file = self.storage().len();
        let covered = |entry: u64, skipped: u64| {
            let start = entry.saturating_mul(geometry.l2_coverage());
            let end = start.saturating_add(geometry.l2_coverage()).min(size);
            end.saturating_sub(start.saturating_add(skipped))
        };
        let entries = self.l1().entries.min(geometry.l1_entries_for(size));
        let there = self.l1_entries_in_file().min(entries);
        let mut bytes = 0u64;
        let (mut first, mut buffer) = (0, Vec::new());
        while first < there {
            let count = there.saturating_sub(first).min(PIECE);
            buffer.resize(usize::try_from(count.saturating_mul(8)).unwrap_or_default(), 0);
            tables::read_l1(self, Tables::Direct, first, &mut buffer)?;
            for (index, word) in (first..).zip(buffer.chunks_exact(8)) {
                let entry = L1Entry(BigEndian::read_u64(word));
                if entry.is_empty() {
                    continue;
                }
                // Of a table that is cut the entries that are there count.
                let kept = file.saturating_sub(entry.offset().0);
                let kept = kept.checked_div(geometry.l2_entry_size()).unwrap_or(0);
                let skipped = kept.saturating_mul(geometry.cluster_size());
                bytes = bytes.saturating_add(covered(index, skipped));
            }
            first = first.saturating_add(count);
        }
        let start = there.saturating_mul(geometry.l2_coverage());
        let end = entries.saturating_mul(geometry.l2_coverage()).min(size);
        Ok(bytes.saturating_add(end.saturating_sub(start)))
    }

    /// Where the last cluster begins that the refcounts count as used, if that is past the end of the
    /// file or a refcount block is: then the file was cut short, or QEMU did not come to write what it had
    /// allocated. `None` for a file that is as long as it has to be. Costs three small reads: the
    /// refcounts of an image that was not closed properly may not tell.
    ///
    /// # Errors
    /// What reading raises.
    pub fn used_past_end(&self) -> Result<Option<u64>> {
        let (header, geometry) = (self.header(), self.geometry());
        let file = self.storage().len();
        let width = header.refcounts();
        let per_block = width.entries_per_block(geometry).max(1);
        let entries =
            u64::from(header.refcount_table_clusters).saturating_mul(geometry.cluster_size()) / 8;
        let table = header.refcount_table_offset;
        let mut last = None;
        let (mut first, mut buffer) = (0, Vec::new());
        while first < entries {
            let count = entries.saturating_sub(first).min(PIECE);
            buffer.resize(usize::try_from(count.saturating_mul(8)).unwrap_or_default(), 0);
            let from = table.checked_add(first.saturating_mul(8))?;
            if from.0 >= file {
                break;
            }
            read_padded(&**self.storage(), &mut buffer, from.0)?;
            for (index, word) in (first..).zip(buffer.chunks_exact(8)) {
                let entry = RefcountTableEntry(BigEndian::read_u64(word));
                last = entry.block_offset().map(|block| (index, block)).or(last);
            }
            first = first.saturating_add(count);
        }
        let Some((index, block)) = last else {
            return Ok((table.0 >= file).then_some(table.0));
        };
        if block.0 >= file {
            return Ok(Some(block.0));
        }
        let size = usize::try_from(geometry.cluster_size()).unwrap_or_default();
        let mut bytes = vec![0; size];
        read_padded(&**self.storage(), &mut bytes, block.0)?;
        for at in (0..per_block).rev() {
            if width.get(&bytes, at)? != 0 {
                let cluster = index.saturating_mul(per_block).saturating_add(at);
                let start = cluster.saturating_mul(geometry.cluster_size());
                return Ok((start >= file).then_some(start));
            }
        }
        Ok(None)
    }
}
