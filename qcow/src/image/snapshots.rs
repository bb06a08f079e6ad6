//! Reads the snapshot table. Counts and lengths come from the image, so memory is taken only for
//! what has really been read (traps 80 to 82, 144).

use crate::format::{Header, HostOffset, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS, Snapshot};
use crate::io::{Storage, read_padded};
use crate::{Error, Remedy, Result};

/// Length of the fixed part of an entry.
const FIXED: usize = 40;
/// An entry has two 16-bit lengths and its extra data (at most 1 KiB): this and no more.
const LONGEST: usize = 132 << 10;

pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<Vec<Snapshot>> {
    read_measured(storage, header).map(|(snapshots, _)| snapshots)
}

/// The snapshots and the table's length in bytes, which ends without padding.
pub(super) fn read_measured(
    storage: &dyn Storage,
    header: &Header,
) -> Result<(Vec<Snapshot>, u64)> {
    let mut snapshots = Vec::new();
    if header.snapshot_count == 0 {
        return Ok((snapshots, 0));
    }
    if header.snapshot_count > MAX_SNAPSHOTS {
        return Err(damaged(format!(
            "{} snapshots, expected at most {MAX_SNAPSHOTS}",
            header.snapshot_count
        )));
    }
    let start = header.snapshots_offset;
    let (mut at, mut end) = (start, start);
    for index in 0..u64::from(header.snapshot_count) {
        let (snapshot, len, padding) = read_entry(storage, header, at.0)
            .map_err(|error| error.structure("snapshot table").index(index).host_offset(at))?;
        at = at.checked_add(len)?;
        end = HostOffset(at.0.saturating_sub(padding));
        if at.0.saturating_sub(start.0) > MAX_SNAPSHOT_TABLE_BYTES {
            return Err(damaged(format!(
                "the table is longer than {MAX_SNAPSHOT_TABLE_BYTES} bytes"
            ))
            .index(index));
        }
        snapshots.push(snapshot);
    }
    Ok((snapshots, end.0.saturating_sub(start.0)))
}

/// An entry, its length, and how much of that is padding.
fn read_entry(storage: &dyn Storage, header: &Header, at: u64) -> Result<(Snapshot, u64, u64)> {
    let mut fixed = [0; FIXED];
    read_padded(storage, &mut fixed, at)?;
    let len = Snapshot::entry_len(&fixed)?;
    if len > LONGEST {
        return Err(damaged(format!("the entry claims {len} bytes, expected at most {LONGEST}")));
    }
    let mut bytes = vec![0; len];
    read_padded(storage, &mut bytes, at)?;
    let (snapshot, consumed) = Snapshot::parse(&bytes, header.version)?;
    let padding = padding(&fixed, snapshot.id.len().saturating_add(snapshot.name.len()));
    Ok((snapshot, consumed as u64, padding))
}

/// Zero to seven bytes up to the next multiple of eight.
fn padding(fixed: &[u8; FIXED], names: usize) -> u64 {
    let extra = fixed.last_chunk().copied().map_or(0, u32::from_be_bytes);
    let used = u64::from(extra).saturating_add(names as u64);
    used.next_multiple_of(8).saturating_sub(used)
}

fn damaged(message: String) -> Error {
    Error::corrupt(message).structure("snapshot table").hint(Remedy::DropSnapshots)
}
