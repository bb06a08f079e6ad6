//! The decision table: what is done to one disk. The first row that fits decides.
//!
//! The rows that can only refuse or leave alone come first, whatever their numbers, so that nothing which
//! allows a copy can hide a reason against it. `docs/migration.md` has the table in words.

mod copying;
mod refusing;

use std::path::{Path, PathBuf};

use super::domain_rules;
use super::policy::{Policy, Style};
use super::proofs::SeedNames;
use super::value::{BasePlan, Mode, Row};
use crate::facts::{ChainFacts, DiskFacts, Facts, LayerFacts, Source, TargetFacts};

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

/// What is done to a disk.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is not moved, and neither is anything else.
    Refuse { message: String, way_out: String },
    /// Nothing is done.
    Skip { why: String },
    /// The drive is emptied.
    Eject { why: String },
    /// The read-only medium is copied.
    CopyMedium { why: String, from: PathBuf, to: PathBuf },
    /// The migration, or we, fill an image.
    Copy(Copy),
}

/// How an image at the destination is filled.
#[derive(Debug, Default)]
pub(super) struct Copy {
    /// The row, where one judge stands for several.
    pub(super) row: Option<Row>,
    /// The row in words.
    pub(super) why: String,
    /// What the new image stands on; `None` makes it stand alone.
    pub(super) base: Option<BasePlan>,
    /// Why only a copy of the whole disk is right.
    pub(super) whole: Option<String>,
    /// An overlay was wanted, and this is why it cannot be.
    pub(super) not_thin: Option<String>,
    /// What is there already is filled.
    pub(super) adopt: bool,
}

/// A disk with all that judging it takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk<'a> {
    pub(super) facts: &'a Facts,
    pub(super) disk: &'a DiskFacts,
    pub(super) policy: &'a Policy,
    /// Why no disk of the guest may be an overlay, once that turned out.
    pub(super) alone_because: Option<&'a str>,
    /// Names for bases that have to be brought.
    pub(super) seeds: &'a SeedNames,
}

impl<'a> Disk<'a> {
    /// The first row that fits, and its verdict.
    pub(super) fn judge(&self) -> (Row, Verdict) {
        for (row, judge) in TABLE {
            match judge(self) {
                Some(Verdict::Copy(copy)) => return (copy.row.unwrap_or(row), Verdict::Copy(copy)),
                Some(verdict) => return (row, verdict),
                None => {}
            }
        }
        // The last row fits every disk that has a chain and a place; `layer_lost` and
        // `storage_unknown` have refused the others.
        let message = "no rule covers this disk".to_owned();
        (Row::PassedThrough, Verdict::Refuse { message, way_out: "report this".to_owned() })
    }

    pub(super) fn style(&self) -> Style {
        self.policy.style
    }

    pub(super) fn mode(&self) -> Mode {
        domain_rules::mode(self.facts.domain.state)
    }

    pub(super) fn live(&self) -> bool {
        self.mode() == Mode::Live
    }

    pub(super) fn chain(&self) -> Option<&'a ChainFacts> {
        self.disk.chain.as_ref()
    }

    pub(super) fn layers(&self) -> &'a [LayerFacts] {
        self.chain().map_or(&[], |chain| &chain.layers)
    }

    pub(super) fn top(&self) -> Option<&'a LayerFacts> {
        self.layers().first()
    }

    /// The layers below the active one, the uppermost first.
    pub(super) fn below(&self) -> &'a [LayerFacts] {
        self.layers().get(1..).unwrap_or_default()
    }

    pub(super) fn there(&self) -> Option<&'a TargetFacts> {
        self.disk.there.as_ref()
    }

    /// The guest's size of the disk: what the hypervisor reports, or else the header; in whole sectors,
    /// because the hypervisor knows no others.
    pub(super) fn size(&self) -> u64 {
        let header = self.top().map_or(0, |top| top.virtual_size);
        let size = match self.disk.live_capacity {
            Some(capacity) if self.live() => capacity,
            _ => header,
        };
        whole_sectors(size)
    }
}

/// Rounds up to the hypervisor's sectors.
pub(super) fn whole_sectors(size: u64) -> u64 {
    size.checked_next_multiple_of(512).unwrap_or(size)
}

/// The path of a source that has one.
pub(super) fn source_path(source: &Source) -> Option<&Path> {
    match source {
        Source::File { path } | Source::Block { path } => Some(path),
        Source::Volume { path, .. } => path.as_deref(),
        Source::None | Source::Network { .. } | Source::Other { .. } => None,
    }
}
