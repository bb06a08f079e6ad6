//! An image opened for checking: what its header and snapshot table say, and no more.
//!
//! A refcount table of zero clusters, which stops readers, is for `check` to report, so it does
//! not stop this (trap 24).

use std::sync::Arc;

use super::{L1Table, MAX_FILE_OFFSET, bitmaps, read_first_cluster, snapshots};
use crate::exact::to_usize;
use crate::format::{Autoclear, EntryRules, Geometry, HeaderArea, Incompatible, Snapshot, field};
use crate::io::Storage;
use crate::{Error, Result};

/// Header and snapshot table of an image that may be damaged.
#[derive(Debug)]
pub(crate) struct Skeleton {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) area: HeaderArea,
    pub(crate) snapshots: Vec<Snapshot>,
    /// Length of the snapshot table in bytes, without padding at its end.
    pub(crate) snapshot_table_len: u64,
}

impl Skeleton {
    /// Opens the image in `storage`, accepting what `qemu-img check` accepts.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt), [`Limit`](crate::ErrorKind::Limit) or
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where QEMU too gives up before it checks.
    pub(crate) fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let area = read_area(&*storage)?;
        check_data_file(&area)?;
        let header = &area.header;
        let l1 = L1Table { offset: header.l1_table_offset, entries: header.l1_entries.into() };
        for (structure, offset) in [
            ("L1 table", l1.offset.0.saturating_add(l1.entries.saturating_mul(8))),
            ("refcount table", header.refcount_table_offset.0),
        ] {
            if offset > MAX_FILE_OFFSET {
                return Err(Error::corrupt("the table is past any file").structure(structure));
            }
        }
        bitmaps::read(&*storage, &area)?;
        let (snapshots, snapshot_table_len) = snapshots::read_measured(&*storage, header)?;
        Ok(Self { storage, area, snapshots, snapshot_table_len })
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.area.header.geometry()
    }

    pub(crate) fn has_data_file(&self) -> bool {
        self.area.header.incompatible.contains(Incompatible::DATA_FILE)
    }

    pub(crate) fn rules(&self) -> EntryRules {
        EntryRules {
            geometry: self.geometry(),
            version: self.area.header.version,
            data_file: self.has_data_file(),
        }
    }
}

/// QEMU opens no image that needs a data file and does not name one, or the other way round.
fn check_data_file(area: &HeaderArea) -> Result<()> {
    let needed = area.header.incompatible.contains(Incompatible::DATA_FILE);
    if needed && area.data_file_name().is_none_or(<[u8]>::is_empty) {
        return Err(Error::corrupt("the image has an external data file but does not name it"));
    }
    if !needed && area.header.autoclear.contains(Autoclear::DATA_FILE_RAW) {
        return Err(Error::corrupt("the bit for a raw data file is set, but there is none")
            .structure("header"));
    }
    Ok(())
}

/// Parses the first cluster as if its refcount table were not empty.
pub(crate) fn read_area(storage: &dyn Storage) -> Result<HeaderArea> {
    let mut cluster = read_first_cluster(storage)?;
    let start = to_usize(field::REFCOUNT_TABLE_CLUSTERS);
    let field = cluster.get_mut(start..).and_then(|rest| rest.get_mut(..4)).unwrap_or_default();
    let clusters = field.first_chunk().copied().map_or(0, u32::from_be_bytes);
    if clusters == 0 && field.len() == 4 {
        field.copy_from_slice(&1u32.to_be_bytes());
    }
    let mut area = HeaderArea::parse(&cluster)?;
    area.header.refcount_table_clusters = clusters;
    Ok(area)
}
