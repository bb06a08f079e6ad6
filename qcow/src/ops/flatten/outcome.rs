//! What a flatten has written.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::totals::Totals;
use crate::Result;
use crate::chain::{Chain, Foreign, Format};
use crate::extent::Truncation;
use crate::ops::bitmap::Carried;
use crate::ops::info::BitmapSummary;
use crate::ops::not_carried::{SourceFacts, not_carried};
use crate::ops::work::offload::TransferStats;
use crate::ops::{DamageReport, NotCarried, TargetOptions};

/// What was written.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct FlattenOutcome {
    /// The new image.
    #[serde(serialize_with = "crate::ops::path_text")]
    pub filename: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_length: u64,
    /// Guest bytes stored as data (before compression).
    pub data_bytes: u64,
    /// Guest bytes that read as zeros and were not written.
    pub zero_bytes: u64,
    /// How the bytes of the new image got there.
    #[serde(flatten)]
    pub transfer: TransferStats,
    /// CRC-32 of the guest's disk, if asked for: eight hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc32: Option<String>,
    /// What could not be read, with [`FlattenOptions::salvage`](super::FlattenOptions::salvage).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<DamageReport>,
    /// Files of the chain that end before what their images refer to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<Truncation>,
    /// Persistent bitmaps of the active layer that the new image has, too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bitmaps: Vec<BitmapSummary>,
    /// What the active layer has and the new image does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_carried_over: Vec<NotCarried>,
    /// What the first bytes of a stream look like that was stated to be a raw disk, if that is
    /// something else.
    #[serde(skip)]
    pub looks_like: Option<Foreign>,
    /// What could not be kept of a file that was replaced, and what a power cut may undo.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What a target knows when it is finished.
pub(super) struct Done {
    pub(super) file_length: u64,
    pub(super) transfer: TransferStats,
    pub(super) totals: Totals,
    pub(super) warnings: Vec<String>,
    pub(super) damage: Option<DamageReport>,
}

/// A disk that came as a stream: its virtual size, and what was written.
pub(super) type Received = (u64, Done);

/// Adds what of the source is not in the new image.
pub(super) fn with_losses(
    chain: &Chain,
    target: &TargetOptions,
    carried: &Carried,
    outcome: FlattenOutcome,
) -> Result<FlattenOutcome> {
    let active = chain.layers().first().and_then(|layer| layer.image());
    let not_carried_over = not_carried(&SourceFacts::of(active).without(carried), target);
    let (truncated, bitmaps) = (chain.truncations()?, carried.summaries());
    Ok(FlattenOutcome { truncated, bitmaps, not_carried_over, ..outcome })
}

pub(super) fn outcome(
    path: &Path,
    format: Format,
    virtual_size: u64,
    done: Done,
) -> FlattenOutcome {
    FlattenOutcome {
        filename: path.to_path_buf(),
        format,
        virtual_size,
        file_length: done.file_length,
        data_bytes: done.totals.data_bytes,
        zero_bytes: virtual_size.saturating_sub(done.totals.data_bytes),
        transfer: done.transfer,
        crc32: done.totals.digest(),
        damage: done.damage,
        truncated: Vec::new(),
        bitmaps: Vec::new(),
        not_carried_over: Vec::new(),
        looks_like: None,
        warnings: done.warnings,
    }
}
