//! What of a disk could not be read, for operations that go on past damage.

use crate::chain::Layer;
use crate::image::Fault;

/// A range of the guest's disk that could not be read. Offsets and lengths are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct Damage {
    /// Where it starts on the guest's disk.
    pub guest_offset: u64,
    /// Its length.
    pub length: u64,
    /// The layer that should provide it, 0 being the active one.
    pub depth: usize,
    /// The name of that layer's file; bytes that are not UTF-8 are replaced.
    pub filename: String,
    /// What could not be read or understood, for example `"L2 table"`.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub structure: Option<&'static str>,
    /// Why; of a range in which several neighbours are damaged, the reason of the first.
    pub reason: String,
}

impl Damage {
    /// The fault that `layer`, at `depth`, has.
    pub(super) fn new(fault: Fault, depth: usize, layer: &Layer) -> Self {
        let Fault { guest, error } = fault;
        let reason = match error.io_source() {
            Some(source) => format!("{}: {source}", error.message()),
            None => error.message().to_owned(),
        };
        Self {
            guest_offset: guest.start,
            length: guest.end.saturating_sub(guest.start),
            depth,
            filename: layer.path().to_string_lossy().into_owned(),
            structure: error.place().structure,
            reason,
        }
    }

    /// Whether `next` is of the same layer and structure and starts where this ends.
    pub(crate) fn continues_in(&self, next: &Self) -> bool {
        self.guest_offset.checked_add(self.length) == Some(next.guest_offset)
            && (self.depth, self.structure) == (next.depth, next.structure)
    }
}
