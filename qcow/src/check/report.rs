//! What a check finds: exact counts, and the first findings in the order of the file's structures
//! whatever the threads did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Serialize, Serializer};

/// What a finding counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Severity {
    /// Data may be wrong, or further writes may destroy some.
    Corruption,
    /// Space is allocated that nothing uses.
    Leak,
    /// A part of the check could not be done.
    CheckError,
    /// Worth knowing; `qemu-img check` says nothing about it, so it counts for nothing.
    Note,
}

impl Severity {
    /// `"corruption"`, `"leak"`, `"check-error"` or `"note"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Corruption => "corruption",
            Self::Leak => "leak",
            Self::CheckError => "check-error",
            Self::Note => "note",
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// The refcount is higher than the number of references.
    Leaked,
    /// The refcount is lower than the number of references.
    RefcountTooLow,
    /// There are more references than the refcounts can express.
    RefcountOverflow,
    /// The copied flag does not say whether the refcount is one.
    CopiedFlag,
    /// Reserved bits are set.
    ReservedBits,
    /// An offset is not a multiple of the cluster size.
    Misaligned,
    /// A reference reaches a cluster or more past the end of the file.
    PastEnd,
    /// A subcluster bitmap contradicts its entry or itself.
    Subclusters,
    /// A compressed cluster where none may be.
    Compressed,
    /// A refcount block is used for something else as well.
    SharedRefcountBlock,
    /// A snapshot table entry lacks what its version asks for, or names an impossible L1 table.
    Snapshot,
    /// A snapshot table entry has more extra data than QEMU reads.
    SnapshotExtra,
    /// A bitmap's table is broken.
    Bitmap,
    /// The refcount of a cluster cannot be read.
    Unreadable,
    /// A cluster is used by two structures, or by metadata and data.
    Overlap,
    /// A zero flag in a version that has none.
    ZeroFlag,
    /// A cluster of a data file that does not lie at its guest offset.
    DataFileOffset,
}

/// The structures of an image, in the order in which findings are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// The header.
    Header,
    /// The snapshot table.
    SnapshotTable,
    /// The L1 table of the active image.
    L1Table,
    /// The L1 table of a snapshot.
    SnapshotL1Table,
    /// An L2 table.
    L2Table,
    /// The encryption header.
    EncryptionHeader,
    /// The bitmap directory.
    BitmapDirectory,
    /// A bitmap's table.
    BitmapTable,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// A cluster of the file; the index is its number.
    Cluster,
}

impl Structure {
    /// Its name, for example `"L2 table"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::SnapshotTable => "snapshot table",
            Self::L1Table => "L1 table",
            Self::SnapshotL1Table => "snapshot's L1 table",
            Self::L2Table => "L2 table",
            Self::EncryptionHeader => "encryption header",
            Self::BitmapDirectory => "bitmap directory",
            Self::BitmapTable => "bitmap table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::Cluster => "cluster",
        }
    }
}

impl Serialize for Structure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One thing that is wrong, and where. Offsets are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Finding {
    /// The structure.
    pub structure: Structure,
    /// Where in the file the structure, or for tables the entry, lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_offset: Option<u64>,
    /// Index of the entry in its structure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// What is wrong.
    pub kind: FindingKind,
    /// What it counts as.
    pub severity: Severity,
    /// The place on the guest's disk, where one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_offset: Option<u64>,
    /// What was found and what was expected.
    pub message: String,
    /// The numbers in the message, for programs that word it themselves.
    #[serde(skip)]
    pub numbers: Option<Numbers>,
}

/// What a finding was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Numbers {
    /// What the refcount of the cluster is, and how many references there are.
    Refcount {
        /// As it is stored.
        refcount: u64,
        /// As they were counted, no more than refcounts can express.
        references: u64,
    },
    /// The entry as it is stored, and the refcount of the cluster that it names, where that is known.
    Entry {
        /// Its bits, without a subcluster bitmap.
        entry: u64,
        /// As it is stored.
        refcount: u64,
    },
    /// A range of the file.
    Range {
        /// Where it begins.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
}

/// Where something was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    pub(super) structure: Structure,
    pub(super) host_offset: Option<u64>,
    pub(super) index: Option<u64>,
    pub(super) guest_offset: Option<u64>,
    pub(super) numbers: Option<Numbers>,
}

impl Spot {
    /// With the numbers that the finding is made of.
    pub(super) fn with(self, numbers: Numbers) -> Self {
        Self { numbers: Some(numbers), ..self }
    }

    pub(super) fn new(structure: Structure) -> Self {
        Self { structure, host_offset: None, index: None, guest_offset: None, numbers: None }
    }

    /// Entry `index`, which lies at `host_offset` of the file.
    pub(super) fn entry(structure: Structure, index: u64, host_offset: u64) -> Self {
        Self { host_offset: Some(host_offset), index: Some(index), ..Self::new(structure) }
    }
}

/// Collects findings from all threads: counts all, keeps the first.
#[derive(Debug)]
pub(super) struct Report {
    corruptions: AtomicU64,
    leaks: AtomicU64,
    check_errors: AtomicU64,
    kept: Mutex<Kept>,
    most: usize,
}

#[derive(Debug, Default)]
struct Kept {
    first: BTreeSet<Finding>,
    /// How many there are of each sort, kept or not.
    sorts: BTreeMap<(Structure, FindingKind), u64>,
}

impl Report {
    /// A report that keeps at most `most` findings.
    pub(super) fn new(most: usize) -> Self {
        Self {
            corruptions: AtomicU64::new(0),
            leaks: AtomicU64::new(0),
            check_errors: AtomicU64::new(0),
            kept: Mutex::default(),
            most,
        }
    }

    /// Counts a finding `times` times and keeps it if it is among the first.
    pub(super) fn add(
        &self,
        (severity, kind): (Severity, FindingKind),
        times: u64,
        spot: Spot,
        message: impl FnOnce() -> String,
    ) {
        if times == 0 {
            return;
        }
        let counter = match severity {
            Severity::Corruption => Some(&self.corruptions),
            Severity::Leak => Some(&self.leaks),
            Severity::CheckError => Some(&self.check_errors),
            Severity::Note => None,
        };
        if let Some(counter) = counter {
            counter.fetch_add(times, Relaxed);
        }
        let mut kept = self.kept();
        let sort = kept.sorts.entry((spot.structure, kind)).or_default();
        *sort = sort.saturating_add(1);
        let kept = &mut kept.first;
        let Spot { structure, host_offset, index, guest_offset, numbers } = spot;
        let full = kept.len() >= self.most;
        let after = |last: &Finding| {
            (structure, host_offset, index) > (last.structure, last.host_offset, last.index)
        };
        if full && kept.last().is_none_or(after) {
            return;
        }
        let message = message();
        kept.insert(Finding {
            structure,
            host_offset,
            index,
            kind,
            severity,
            guest_offset,
            message,
            numbers,
        });
        if kept.len() > self.most {
            kept.pop_last();
        }
    }

    /// As [`add`](Self::add), for what counts as corruption.
    pub(super) fn corruption(
        &self,
        kind: FindingKind,
        times: u64,
        spot: Spot,
        message: impl FnOnce() -> String,
    ) {
        self.add((Severity::Corruption, kind), times, spot, message);
    }

    /// As [`add`](Self::add), for what counts for nothing.
    pub(super) fn note(&self, kind: FindingKind, spot: Spot, message: impl FnOnce() -> String) {
        self.add((Severity::Note, kind), 1, spot, message);
    }

    pub(super) fn corruptions(&self) -> u64 {
        self.corruptions.load(Relaxed)
    }

    pub(super) fn leaks(&self) -> u64 {
        self.leaks.load(Relaxed)
    }

    pub(super) fn check_errors(&self) -> u64 {
        self.check_errors.load(Relaxed)
    }

    /// The findings that were kept, in order, and how many were left out.
    pub(super) fn findings(&self) -> (Vec<Finding>, u64) {
        let kept = self.kept();
        let found = kept.sorts.values().fold(0u64, |sum, &sort| sum.saturating_add(sort));
        let first: Vec<Finding> = kept.first.iter().cloned().collect();
        let left_out = found.saturating_sub(first.len() as u64);
        (first, left_out)
    }

    /// The sorts of findings that there are.
    pub(super) fn sorts(&self) -> Vec<(Structure, FindingKind)> {
        self.kept().sorts.keys().copied().collect()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
