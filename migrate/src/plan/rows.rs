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
    (Row::D01, refusing::no_medium),
    (Row::D02, refusing::read_only),
    (Row::D03, refusing::over_the_network),
    (Row::D04, refusing::on_shared_storage),
    (Row::D05, refusing::storage_unknown),
    (Row::D06, refusing::shareable),
    (Row::D07, refusing::passed_through),
    (Row::D08c, refusing::layer_lost),
    (Row::D12, refusing::encrypted),
    (Row::D21, refusing::corrupt),
    (Row::D09, refusing::chain_in_doubt),
    (Row::D10, refusing::data_file),
    (Row::D11, refusing::internal_snapshots),
    (Row::D23, refusing::place_unusable),
    (Row::D20, refusing::occupied),
    // Nothing is in the way: the disk is copied, and these say how.
    (Row::D08b, copying::layer_rescued),
    (Row::D08a, copying::layer_deleted),
    (Row::D09, copying::chains_differ),
    (Row::D20, copying::adopted),
    (Row::D10, copying::data_file_left),
    (Row::D11, copying::internal_snapshots_left),
    (Row::D21, copying::dirty_below),
    (Row::D13, copying::any_other),
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
    (Row::D07, Verdict::Refuse { message, way_out: "report this".to_owned() })
}
