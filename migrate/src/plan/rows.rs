//! The decision table: what is done to one disk. The first row that fits decides.
//!
//! The rows that can only refuse or leave alone come first, whatever their numbers, so that nothing which
//! allows a copy can hide a reason against it. `docs/migration.md` has the table in words.

mod copying;
mod refusing;

use super::disk::{Disk, Verdict};
use super::value::Row;

/// A row's answer to a disk; `None` if it does not fit.
type Judge = fn(&Disk<'_>) -> Option<Verdict>;

/// The table.
#[rustfmt::skip]
const TABLE: [(Row, Judge); 23] = [
    (Row::EmptyDrive, refusing::no_medium),
    (Row::ReadOnly, refusing::read_only),
    (Row::OverTheNetwork, refusing::over_the_network),
    (Row::SharedStorage, refusing::on_shared_storage),
    (Row::StorageUnknown, refusing::storage_unknown),
    (Row::Shareable, refusing::shareable),
    (Row::PassedThrough, refusing::passed_through),
    (Row::LayerLost, refusing::layer_lost),
    (Row::Encrypted, refusing::encrypted),
    (Row::UncleanLayer, refusing::corrupt),
    (Row::ChainInDoubt, refusing::chain_in_doubt),
    (Row::DataFile, refusing::data_file),
    (Row::InternalSnapshots, refusing::internal_snapshots),
    (Row::PlaceUnusable, refusing::place_unusable),
    (Row::PathOccupied, refusing::occupied),
    // Nothing is in the way: the disk is copied, and these say how.
    (Row::LayerRescued, copying::layer_rescued),
    (Row::LayerDeleted, copying::layer_deleted),
    (Row::ChainInDoubt, copying::chains_differ),
    (Row::PathOccupied, copying::adopted),
    (Row::DataFile, copying::data_file_left),
    (Row::InternalSnapshots, copying::internal_snapshots_left),
    (Row::UncleanLayer, copying::dirty_below),
    (Row::RawFile, copying::any_other),
];

/// The first row that fits, and its verdict.
pub(super) fn judge(disk: &Disk<'_>) -> (Row, Verdict) {
    for (row, judge) in TABLE {
        match judge(disk) {
            Some(Verdict::Copy(copy)) => return (copy.row.unwrap_or(row), Verdict::Copy(copy)),
            Some(verdict) => return (row, verdict),
            None => {}
        }
    }
    // The last row fits every disk that has a chain and a place; `layer_lost` and
    // `storage_unknown` have refused the others.
    let message = "no rule covers this disk".to_owned();
    (Row::PassedThrough, Verdict::Refuse { message, way_out: "report this".into() })
}
